"""row_im2col: the taps' views of one row of the window concatenated, reused for every row. A GEMM for each row.

The next row of taps reads the same views, some rows further down. So views are gathered for one row of taps only.
Source: Cho and Brand, "MEC: memory-efficient convolution for deep neural network", 2017.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from .._geometry import ConvGeometry, Problem, dilated_size
from ._gemm import over_positions
from ._memory import after
from ._tiles import largest_divisor, map_concat, sum_tiles, tile
from ._windows import MAX_TAPS, as_matrix, concat_views, first_axis, tap_views

# Rows of taps that are unrolled. More of them run in a loop.
ROWS_AT_ONCE = 4
# A narrow GEMM adds its positions up in order, with three times the rounding error of XLA:CPU's own convolution.
# In this many parts its sum is more exact.
SHORT_SUMS = 2
FEW_CHANNELS = 16


def applies(p: Problem) -> bool:
    """Kernel gradients of one group, without zeros between pixels, of rows that are not long."""
    return p.out == "kernel" and p.dense and p.taps // p.window.window_shape[0] <= MAX_TAPS


def run(x: jax.Array, delta: jax.Array, p: Problem) -> jax.Array:
    """The views of one row of taps times delta, summed over the positions, for each row; tile by tile."""
    sums = SHORT_SUMS if p.channels < FEW_CHANNELS else 1
    tiles = tile(p.g, p.batch, p.columns // p.window.window_shape[0])
    rows = sum_tiles(partial(_row_products, most_sums=sums), x, delta, p.g, tiles)
    return rows.reshape(*p.window.window_shape, p.channels, p.features)


def _row_products(x: jax.Array, delta: jax.Array, g: ConvGeometry, most_sums: int) -> jax.Array:
    """(rows, columns of a row, O): one tile's sums over its positions, in up to `most_sums` equal parts."""
    w = g.window
    row = w._replace(
        window_shape=(1, *w.window_shape[1:]),
        strides=(1, *w.strides[1:]),
        output_shape=(x.shape[1], *w.output_shape[1:]),
    )
    views, delta = concat_views(x, row), as_matrix(delta)
    parts = largest_divisor(delta.shape[0], most_sums)

    def product(rows: jax.Array) -> jax.Array:
        return over_positions(as_matrix(rows), delta, g.precision, parts)

    if w.window_shape[0] <= ROWS_AT_ONCE:
        sums: list[jax.Array] = []
        for rows in tap_views(views, first_axis(w, views), 0):
            # One copy of the views at a time.
            sums.append(product(after(rows, sums[-1]) if sums else rows))
        return jnp.stack(sums)
    reach = dilated_size(w.output_shape[0], w.strides[0])

    def rows_of_tap(i: jax.Array | int) -> list[jax.Array]:
        rows = lax.dynamic_slice_in_dim(views, i * w.dilation[0], reach, 1, allow_negative_indices=False)
        return [lax.slice_in_dim(rows, 0, reach, w.strides[0], 1)]

    return map_concat(lambda rows: product(rows)[None], rows_of_tap, w.window_shape[0], x, 0)
