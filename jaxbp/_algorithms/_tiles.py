"""Cache tiles: sums evaluated for some images, or a band of one image's rows, at a time.

Large temporaries are slow on a CPU: they do not stay in the cache, and their pages are mapped anew on every call. An
algorithm is called with one tile of the padded input (and of delta), and with the geometry of that tile, which has no
padding. A chunk is one of several equal parts of an axis.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._geometry import ConvGeometry, read_padding
from ._memory import after
from ._windows import pad_axes

# Elements of a tile's largest temporary: 4 MiB of float32.
TILE_ELEMENTS = 1 << 20
# A temporary of more elements than this is worth a loop.
MOST_MATERIALIZED = 7 << 20

# The operands of the i-th of several equal steps.
Part = Callable[[jax.Array | int], Sequence[Any]]


class Tiles(NamedTuple):
    """`count` tiles, each of `images` images and `rows` output rows; an image has `bands` such bands of rows."""

    count: int
    images: int
    bands: int
    rows: int
    geometry: ConvGeometry


def tile(g: ConvGeometry, batch: int, elements: int, multiple: int = 1, times: int = 1) -> Tiles:
    """Tiles of a multiple of so many rows: temporaries, `elements` per output, have at most `times * TILE_ELEMENTS`."""
    w = g.window
    height, *rest = w.output_shape
    per_row = elements * math.prod(rest)
    limit = times * TILE_ELEMENTS
    most = max(1, limit // (per_row * multiple)) * multiple
    bands = -(-height // most)
    rows = -(-height // (bands * multiple)) * multiple
    images = largest_divisor(batch, limit // (height * per_row))
    geometry = g._replace(window=w.unpadded(output_shape=(rows, *rest)))
    return Tiles(batch // images * bands, images, bands, rows, geometry)


def largest_divisor(size: int, most: int) -> int:
    """The largest number up to `most`, but at least 1, that divides size."""
    return max(n for n in range(1, max(1, min(size, most)) + 1) if size % n == 0)


def images_at_once(batch: int, elements: int, times: int = 1) -> int:
    """How many images at a time, with temporaries of `elements` each: a divisor of the batch."""
    return largest_divisor(batch, times * TILE_ELEMENTS // elements)


def chunk(a: jax.Array, i: jax.Array | int, count: int, axis: int = -1) -> jax.Array:
    """The i-th of `count` equal parts of an axis."""
    size = a.shape[axis] // count
    return lax.dynamic_slice_in_dim(a, i * size, size, axis, allow_negative_indices=False)


def some_images(form: Callable[..., Any], arrays: Sequence[jax.Array], images: int) -> Any:
    """`form` of so many images of all arrays at a time."""
    count = arrays[0].shape[0] // images
    if count == 1:
        return form(*arrays)
    # Sliced inside the loop. Mapping over a leading axis would copy the whole input into another layout.
    return map_concat(form, lambda i: [chunk(a, i, count, axis=0) for a in arrays], count, arrays[0], axis=0)


def map_concat(form: Callable[..., Any], part: Part, count: int, like: jax.Array, axis: int) -> Any:
    """`form(*part(i))` for `count` values of i, one after the other, concatenated along an axis."""
    # Any value will do, as all elements are overwritten. Zeros would be one array for all layers, kept and copied.
    number = lax.slice(like, (0,) * like.ndim, (1,) * like.ndim).reshape(())

    def whole(part: jax.ShapeDtypeStruct) -> jax.Array:
        shape = (*part.shape[:axis], count * part.shape[axis], *part.shape[axis + 1 :])
        return jnp.broadcast_to(number.astype(part.dtype), shape)

    def put(i: jax.Array, wholes: Any) -> Any:
        def put_one(whole: jax.Array, part: jax.Array) -> jax.Array:
            at = i * part.shape[axis]
            return lax.dynamic_update_slice_in_dim(whole, part, at, axis, allow_negative_indices=False)

        return jax.tree.map(put_one, wholes, form(*part(i)))

    return lax.fori_loop(0, count, put, jax.tree.map(whole, jax.eval_shape(lambda i: form(*part(i)), 0)))


def some_tiles(
    form: Callable[..., jax.Array], x: jax.Array, g: ConvGeometry, elements: int, times: int = 1
) -> jax.Array:
    """`form` of the whole input, or tile by tile where its temporaries, `elements` per output, exceed the cache."""
    tiles = tile(g, x.shape[0], elements, times=times)
    return form(x, g) if tiles.count == 1 else map_tiles(form, x, g, tiles)


def map_tiles(form: Callable[..., jax.Array], x: jax.Array, g: ConvGeometry, tiles: Tiles) -> jax.Array:
    """The forward sum: `form(x, geometry)` of every tile, concatenated."""
    x_tile = _input_tiles(x, g, tiles)

    def part(i: jax.Array | int) -> tuple[jax.Array, ConvGeometry]:
        return x_tile(i), tiles.geometry

    z = form(*part(0)) if tiles.count == 1 else map_concat(form, part, tiles.count, x, axis=0)
    z = z.reshape(x.shape[0], tiles.bands * tiles.rows, *g.window.output_shape[1:], z.shape[-1])
    return z[:, : g.window.output_shape[0]]


def sum_tiles(
    form: Callable[..., jax.Array], x: jax.Array, delta: jax.Array, g: ConvGeometry, tiles: Tiles
) -> jax.Array:
    """The kernel's gradient: the sum of `form(x, delta, geometry)` over all tiles."""
    delta = pad_axes(delta, [1], [(0, tiles.bands * tiles.rows - delta.shape[1])], 0)
    x_tile = _input_tiles(x, g, tiles)

    def part(i: jax.Array | int) -> tuple[jax.Array, jax.Array, ConvGeometry]:
        delta_tile = _tile(delta, i, tiles, tiles.rows, tiles.rows)
        return x_tile(i), delta_tile, tiles.geometry

    return _sum(form, part, tiles.count, x)


def sum_images(
    form: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, delta: jax.Array, elements: int, times: int = 1
) -> jax.Array:
    """The sum of `form(x, delta)` over some images at a time: see `images_at_once`."""
    count = x.shape[0] // images_at_once(x.shape[0], elements, times)
    return _sum(form, lambda i: [chunk(a, i, count, axis=0) for a in (x, delta)], count, x)


def _sum(form: Callable[..., jax.Array], part: Part, count: int, like: jax.Array) -> jax.Array:
    """The sum of `form(*part(i))` for `count` values of i, one after the other."""
    if count == 1:
        return form(*part(0))
    # Zeros that depend on nothing would be allocated for all layers at once, when the program starts.
    none = after(jnp.zeros_like(like, shape=jax.eval_shape(lambda i: form(*part(i)), 0).shape), like)
    return lax.fori_loop(0, count, lambda i, total: lax.add(total, form(*part(i))), none)


def _input_tiles(x: jax.Array, g: ConvGeometry, tiles: Tiles) -> Callable[..., jax.Array]:
    """The i-th tile of the padded input. Neighbouring bands overlap in the rows that both read."""
    w = g.window._replace(output_shape=(tiles.bands * tiles.rows, *g.window.output_shape[1:]))
    pads, step, rows = read_padding(w), tiles.rows * w.strides[0], tiles.geometry.window.input_shape[0]
    return lambda i: _tile(x, i, tiles, step, rows, pads)


def _tile(
    a: jax.Array, i: jax.Array | int, tiles: Tiles, step: int, rows: int, pads: Sequence[tuple[int, int]] = ()
) -> jax.Array:
    """The i-th tile of an array: of its images, padded, a band of `rows` rows, `step` rows after the previous band."""
    if tiles.images < a.shape[0]:
        first = i * tiles.images if tiles.bands == 1 else lax.div(i, tiles.bands) * tiles.images
        a = lax.dynamic_slice_in_dim(a, first, tiles.images, allow_negative_indices=False)
    if pads:
        # Each tile is padded by itself, in the cache. Padded once for all, the whole input would be copied.
        a = pad_axes(a, range(1, len(pads) + 1), pads, 0)
    if tiles.bands > 1:
        a = lax.dynamic_slice_in_dim(a, lax.rem(i, tiles.bands) * step, rows, 1, allow_negative_indices=False)
    return a
