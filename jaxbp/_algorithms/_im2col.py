"""Matrix products of the taps' shifted views of the input."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from .._geometry import ConvGeometry, Window, dilated_size, read_padding
from ._gemm import over_positions
from ._memory import after, materialize
from ._tiles import chunk, largest_divisor, map_concat, sum_tiles, tile
from ._windows import first_axis, side_by_side, tap_views

# Rows of taps in one program; more of them in a loop.
ROWS_AT_ONCE = 4
# For each output of a block, so that no product sums over so many positions that its rounding errors show.
FEWEST_ELEMENTS = 256
# Parts of all positions: a narrow product adds them up in order, with three times the compiler's rounding errors.
SHORT_SUMS = 2
MOST_SUMS = 4  # of a group's


def kn2row(x: jax.Array, kernel: jax.Array, g: ConvGeometry, back: bool = False) -> jax.Array:
    """The input times all weights at once, then each tap's part put in its place: for few outputs, or few pixels.

    Taken back, of delta, the sum is over the kernel's features and taps count from the last; no copy of it has to be.
    """
    w, (channels, features) = g.window, kernel.shape[-2:]
    if back:
        outputs, weights = channels, kernel.reshape(-1, features).T
    else:
        outputs, weights = features, kernel.reshape(-1, channels, features).swapaxes(0, 1).reshape(channels, -1)
    parts = jnp.matmul(x, weights, precision=g.precision).reshape(*x.shape[:-1], w.taps, outputs)
    parts = jnp.moveaxis(parts, -2, 0)
    parts = parts[::-1] if back else parts
    # Axis by axis: the sum of the window's sizes where all taps at once would be their product, slow to compile.
    for i in range(w.rank):
        behind = math.prod(x.shape[i + 2 : -1]) * outputs
        parts = parts.reshape(w.window_shape[i], -1, x.shape[i + 1], behind)
        parts = materialize(functools.reduce(jnp.add, (_shifted(part, w, i, tap) for tap, part in enumerate(parts))))
    return parts.reshape(x.shape[0], *w.output_shape, outputs)


def _shifted(part: jax.Array, w: Window, i: int, tap: int) -> jax.Array:
    """What one tap along spatial axis i, the middle one, reads of its own part."""
    start, reach = tap * w.dilation[i], dilated_size(w.output_shape[i], w.strides[i])
    config = [(0, 0, 0), (*read_padding(w)[i], w.input_dilation[i] - 1), (0, 0, 0)]
    padded = lax.pad(part, jnp.zeros((), part.dtype), config)
    return lax.slice_in_dim(padded, start, start + reach, w.strides[i], 1)


def taps_forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """The views of all taps side by side times the kernel: one matrix product."""
    views = side_by_side(x, g.window)
    return jnp.matmul(views, kernel.reshape(-1, kernel.shape[-1]), precision=g.precision)


def taps_kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, most_sums: int = 1) -> jax.Array:
    """The views of all taps side by side times delta, summed over the positions, block by block: for few channels."""
    channels, features = x.shape[-1], delta.shape[-1]

    def product(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
        views, delta = _rows(side_by_side(x, g.window)), _rows(delta)
        return over_positions(views, delta, g.precision, largest_divisor(delta.shape[0], most_sums))

    blocks = tile(g, x.shape[0], max(g.window.taps * channels, FEWEST_ELEMENTS))
    return sum_tiles(product, x, delta, g, blocks).reshape(*g.window.window_shape, channels, features)


def rows_kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, most_sums: int = 1) -> jax.Array:
    """The views of one row of taps side by side times delta, summed over the positions; block by block.

    The next row of taps reads the same views, some rows on.
    """
    channels, features = x.shape[-1], delta.shape[-1]

    def products(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
        w = g.window
        row = w._replace(
            window_shape=(1, *w.window_shape[1:]),
            strides=(1, *w.strides[1:]),
            output_shape=(x.shape[1], *w.output_shape[1:]),
        )
        views, delta = side_by_side(x, row), _rows(delta)
        parts = largest_divisor(delta.shape[0], most_sums)

        def product(rows: jax.Array) -> jax.Array:
            return over_positions(_rows(rows), delta, g.precision, parts)

        if w.window_shape[0] <= ROWS_AT_ONCE:
            sums: list[jax.Array] = []
            for rows in tap_views(views, first_axis(w, views), 0):
                # One copy of the views at a time.
                sums.append(product(after(rows, sums[-1]) if sums else rows))
            return jnp.stack(sums)
        reach = dilated_size(w.output_shape[0], w.strides[0])

        def row_product(i: jax.Array | int) -> jax.Array:
            rows = lax.dynamic_slice_in_dim(views, i * w.dilation[0], reach, 1, allow_negative_indices=False)
            return product(lax.slice_in_dim(rows, 0, reach, w.strides[0], 1))[None]

        return map_concat(row_product, w.window_shape[0], x, 0)

    blocks = tile(g, x.shape[0], math.prod(g.window.window_shape[1:]) * channels)
    return sum_tiles(products, x, delta, g, blocks).reshape(*g.window.window_shape, channels, features)


def grouped_kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, together: int) -> jax.Array:
    """The same for one group after the other; or `together` of them in one product, whose diagonal is theirs."""
    groups, window = g.feature_group_count, g.window.window_shape
    c, o, count = x.shape[-1] // groups, delta.shape[-1] // groups, groups // together
    alone = g._replace(feature_group_count=1)
    small = 1 < g.window.taps <= FEWEST_ELEMENTS // (together * c)
    form = taps_kernel_grad if small else rows_kernel_grad

    def some(i: jax.Array | int) -> jax.Array:
        return form(chunk(x, i, count), chunk(delta, i, count), alone, MOST_SUMS)[None]

    products = map_concat(some, count, x, 0).reshape(count, -1, together, c, together, o)
    return jnp.einsum("ntbcbo->tcnbo", products).reshape(*window, c, delta.shape[-1])


def _rows(a: jax.Array) -> jax.Array:
    """(positions, channels)."""
    return a.reshape(-1, a.shape[-1])
