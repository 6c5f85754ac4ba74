"""shift_add: shift, multiply, add. A convolution as one elementwise expression, for depthwise and for few channels.

A depthwise convolution is not a GEMM: each output is a short sum of products. The compiler makes one loop of
`sum_t view_t(x) * w_t` over whole arrays, which reads the input once. With c channels in a group the sum has c terms
for each tap. Channels are laid out as (c, groups), so that the loop runs along the groups, or in a single group along
the outputs.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from .._arguments import sum_dtype
from .._geometry import ConvGeometry, Ints, Problem, Window, read_padding
from ._direct import sliding_kernel
from ._memory import materialize
from ._tiles import TILE_ELEMENTS, images_at_once, largest_divisor, some_images
from ._windows import MAX_TAPS, pad_axes, tap_views

# Limits of compile time. The forward sum: terms that are unrolled (fewer for many groups, where passes are as fast),
# and terms in each pass.
TERMS_AT_ONCE = 64
TERMS_OF_MANY_GROUPS = 48
MANY_GROUPS = 96
TERMS_IN_PASS = 16
# The kernel's gradient: taps in one pass, and images (or bands of their rows) whose sum is unrolled.
TAPS_AT_ONCE = 8
PARTS_AT_ONCE = 8
# From so many groups and elements of delta on, each part has a product of its own.
LONG_LOOP = 16
MANY_DELTAS = 1 << 14


def applies(p: Problem) -> bool:
    """No zeros between pixels, few terms in a row of taps; for a kernel's gradient one channel in a group.

    Taps of a row are those at one place of the window's longest axis.
    """
    if p.over_zeros or p.rank == 0:
        return False
    in_row = p.columns // max(p.window.window_shape)
    return in_row <= MAX_TAPS and (p.out != "kernel" or (p.group_channels == 1 and p.group_features <= 4))


def run(a: jax.Array, b: jax.Array, p: Problem) -> jax.Array:
    """Elementwise sums in the dtype for sums, which operands have already on a CPU."""
    if p.platform != "cpu":
        wide = sum_dtype(a.dtype)
        a, b = a.astype(wide), b.astype(wide)
    if p.out == "kernel":
        return kernel_grad(a, b, p.g) if p.platform == "cpu" else reductions(a, b, p.g)
    kernel = sliding_kernel(b, p)
    if p.columns <= (TERMS_AT_ONCE if p.groups < MANY_GROUPS else TERMS_OF_MANY_GROUPS):
        pixels, weights = (_channels_by_group(operand, p.groups) for operand in (a, kernel))
        return _channels_in_order(materialize(_sum_of_terms(pixels, weights, p.window)))
    # A large window takes some rows at a time. Every pass reads and writes the sum so far: it has to stay in the cache.
    form = functools.partial(_sum_by_rows, kernel, g=p.g)
    return some_images(form, [a], images_at_once(p.batch, 2 * p.outputs * p.features))


def _sum_by_rows(kernel: jax.Array, x: jax.Array, g: ConvGeometry) -> jax.Array:
    """The forward sum in a loop over the window's rows."""
    w, groups, features = g.window, g.feature_group_count, kernel.shape[-1]
    axis, rows = _longest_axis(w)
    most = max(1, TERMS_IN_PASS * rows // (w.taps * kernel.shape[-2]))
    # Rows that are left over are compiled once more. So passes are equal, unless they would be much smaller.
    equal = largest_divisor(rows, most)
    at_once = equal if 2 * equal >= most else most
    padded = pad_axes(_channels_by_group(x, groups), range(1, w.rank + 1), read_padding(w), 0)

    def add_rows(i: jax.Array | int, z: jax.Array, count: int = at_once) -> jax.Array:
        first = i * at_once
        part, pixels = _window_rows(padded, w, first, count)
        weights = lax.dynamic_slice_in_dim(kernel, first, count, axis, allow_negative_indices=False)
        weights = _channels_by_group(weights, groups)
        # Materialized: loads at an offset that is known only at run time would not be vectorized.
        return z + _sum_of_terms(materialize(pixels), materialize(weights), part)

    passes, rest = divmod(rows, at_once)
    none = jnp.zeros_like(x, shape=(x.shape[0], *w.output_shape, features // groups, groups))
    z = lax.fori_loop(0, passes, add_rows, none)
    return _channels_in_order(add_rows(passes, z, rest) if rest else z)


def _sum_of_terms(x: jax.Array, kernel: jax.Array, w: Window) -> jax.Array:
    """The forward sum as one expression: (N, *output, o, groups)."""
    channels, axis = x.shape[-2], x.ndim - 2
    weights = lax.split(kernel.reshape(-1, *[1] * w.rank, *kernel.shape[-2:]), [1] * (w.taps * channels))
    views = tap_views(x, w, 0, trailing=2)
    pixels = views if channels == 1 else (pixel for view in views for pixel in lax.split(view, [1] * channels, axis))
    return functools.reduce(lax.add, map(lax.mul, pixels, weights))


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Sum the products of shifted inputs and delta over images, elementwise, then over all positions.

    A reduction for each tap would read the arrays once for each tap. The unrolled sum over some images is elementwise,
    so it fuses, and one reduction over the stacked taps is left. Large windows take a row of taps at a time, or a part
    of one, so that the program stays small.
    """
    groups, w = g.feature_group_count, g.window
    counts = _taps_in_pass(w)
    images = largest_divisor(x.shape[0], min(PARTS_AT_ONCE, 4 * TILE_ELEMENTS // math.prod(x.shape[1:])))
    bands = largest_divisor(w.output_shape[0], PARTS_AT_ONCE // images)
    of_tap = x.shape[-1] // groups * delta.shape[-1]
    # Flat: nested loops over few elements are slow to compile.
    none = jnp.zeros_like(x, shape=w.taps * of_tap)

    def sums_of_images(x: jax.Array, delta: jax.Array) -> jax.Array:
        x, delta = _channels_by_group(x, groups), _channels_by_group(delta, groups)
        if counts == w.window_shape:
            return _kernel_sums(x, delta, w, bands)
        padded = pad_axes(x, range(1, w.rank + 1), read_padding(w), 0)
        passes = math.prod(-(-k // n) for k, n in zip(w.window_shape, counts, strict=True))

        def put_taps(i: jax.Array, sums: jax.Array) -> jax.Array:
            first = _first_taps(i, w.window_shape, counts)
            part, pixels = _window_part(padded, w, first, counts)
            part_sums = _kernel_sums(materialize(pixels), delta, part, bands)
            place = sum(tap * math.prod(w.window_shape[axis + 1 :]) for axis, tap in enumerate(first))
            return lax.dynamic_update_slice(sums, part_sums, [place * of_tap], allow_negative_indices=False)

        return lax.fori_loop(0, passes, put_taps, none)

    def add_images(i: jax.Array, sums: jax.Array) -> jax.Array:
        x_chunk, delta_chunk = (materialize(lax.dynamic_slice_in_dim(a, i * images, images)) for a in (x, delta))
        return sums + sums_of_images(x_chunk, delta_chunk)

    chunks = x.shape[0] // images
    sums = sums_of_images(x, delta) if chunks == 1 else lax.fori_loop(0, chunks, add_images, none)
    return sums.reshape(*w.window_shape, -1, delta.shape[-1])


def _taps_in_pass(w: Window) -> tuple[int, ...]:
    """How many taps along each axis one pass takes: a contiguous run of at most TAPS_AT_ONCE in row-major order."""
    counts, most = [], TAPS_AT_ONCE
    for k in reversed(w.window_shape):
        # Passes overlap where the parts are not equal.
        counts.append(next(n for n in range(min(k, most), 0, -1) if -(-k // n) * n <= k + k // 8))
        most = most // k if counts[-1] == k else 1
    return tuple(reversed(counts))


def _first_taps(i: jax.Array, window: Ints, counts: Ints) -> list[jax.Array | int]:
    """Along each axis of the window the first tap of the i-th pass."""
    first: list[jax.Array | int] = [0] * len(window)
    for axis in reversed(range(len(window))):
        k, n = window[axis], counts[axis]
        passes = -(-k // n)
        if passes > 1:
            place = lax.rem(i, passes) if counts[:axis] != window[:axis] else i
            first[axis] = lax.min(place * n, k - n) if k % n else place * n
            i = lax.div(i, passes)
    return first


def reductions(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """A depthwise kernel's gradient as a reduction for each tap: on a GPU each of them is fast.

    Large windows take one row of taps after the other, so that the program stays small.
    """
    w = g.window
    x = jnp.repeat(x, delta.shape[-1] // x.shape[-1], axis=-1)
    axis, rows = _longest_axis(w)

    def sums(x: jax.Array, w: Window) -> jax.Array:
        by_tap = [lax.reduce_sum(lax.mul(view, delta), axes=tuple(range(w.rank + 1))) for view in tap_views(x, w, 0)]
        return jnp.stack(by_tap).reshape(*w.window_shape, 1, delta.shape[-1])

    if w.taps <= TERMS_AT_ONCE:
        return sums(x, w)
    padded = pad_axes(x, range(1, w.rank + 1), read_padding(w), 0)

    def row(first: jax.Array) -> jax.Array:
        part, pixels = _window_rows(padded, w, first, 1)
        return sums(pixels, part)

    by_row = lax.map(row, jnp.arange(rows))
    return jnp.moveaxis(by_row.squeeze(axis + 1), 0, axis)


def _longest_axis(w: Window) -> tuple[int, int]:
    """The spatial axis along which the window has the most taps, and their number. Loops run along it."""
    axis = max(range(w.rank), key=lambda i: w.window_shape[i])
    return axis, w.window_shape[axis]


def _window_rows(padded: jax.Array, w: Window, first: jax.Array | int, count: int) -> tuple[Window, jax.Array]:
    """`count` of the window's rows from `first` on, as a window, and the padded input that they read."""
    axis, _ = _longest_axis(w)
    starts = [first if i == axis else 0 for i in range(w.rank)]
    return _window_part(padded, w, starts, (*w.window_shape[:axis], count, *w.window_shape[axis + 1 :]))


def _window_part(
    padded: jax.Array, w: Window, first: Sequence[jax.Array | int], counts: Ints
) -> tuple[Window, jax.Array]:
    """`counts` of the window's taps along each axis from `first` on, as a window, and the padded input they read."""
    part, rest = w.unpadded(window_shape=counts), padded.shape[w.rank + 1 :]
    starts = [tap * d for tap, d in zip(first, w.dilation, strict=True)]
    sizes = (padded.shape[0], *part.input_shape, *rest)
    return part, lax.dynamic_slice(padded, [0, *starts, *[0] * len(rest)], sizes, allow_negative_indices=False)


def _kernel_sums(x: jax.Array, delta: jax.Array, w: Window, bands: int) -> jax.Array:
    """The kernel's gradient, flat: each tap's sum over images and bands of rows, then over all positions."""
    parts = delta.shape[0] * bands

    def by_part(a: jax.Array) -> Sequence[jax.Array]:
        return lax.split(a.reshape(parts, -1, *a.shape[2:]), [1] * parts)

    delta, by_tap = jnp.expand_dims(delta, -3), []
    # The compiler makes a function of what is used several times, and compiles the loops that call it twice. That is
    # worth it for short loops only.
    alone = w.taps > 1 and delta.shape[-1] >= LONG_LOOP and delta.size >= MANY_DELTAS
    deltas = by_part(delta) if alone else []
    for view in tap_views(x, w, 0, trailing=2):
        view = jnp.expand_dims(view, -2)
        terms = map(lax.mul, by_part(view), deltas) if alone else by_part(lax.mul(view, delta))
        by_tap.append(functools.reduce(lax.add, terms))
    positions = tuple(range(1, w.rank + 1))
    sums = jnp.sum(jnp.concatenate(by_tap), axis=positions)
    return _channels_in_order(sums.reshape(*w.window_shape, *sums.shape[1:])).ravel()


def _channels_by_group(x: jax.Array, groups: int) -> jax.Array:
    """(..., C) as (..., C / groups, groups)."""
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups).swapaxes(-2, -1)


def _channels_in_order(a: jax.Array) -> jax.Array:
    """(..., C) from (..., C / groups, groups)."""
    return a.swapaxes(-2, -1).reshape(*a.shape[:-2], -1)
