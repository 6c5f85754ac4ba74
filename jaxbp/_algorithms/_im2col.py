"""im2col: all taps' views of the input concatenated, times the kernel or delta. One GEMM.

Source: Chellapilla et al., "High performance convolutional neural networks for document processing", 2006.
"""

import jax
import jax.numpy as jnp

from .._geometry import ConvGeometry, Problem
from ._direct import weights
from ._gemm import over_positions
from ._tiles import largest_divisor, some_tiles, sum_tiles, tile
from ._windows import MAX_TAPS, as_matrix, concat_views

# Elements that each output counts for, at least, when tiles are chosen. So no GEMM sums over more than
# TILE_ELEMENTS / FEWEST_ELEMENTS positions, beyond which its rounding error would show.
FEWEST_ELEMENTS = 256


def applies(p: Problem) -> bool:
    """One group, no zeros between pixels, and not too many views."""
    return p.dense and p.taps <= MAX_TAPS


def run(a: jax.Array, b: jax.Array, p: Problem) -> jax.Array:
    """Of as many images or rows at a time as fit the cache."""
    if p.out == "kernel":
        return kernel_grad(a, b, p.g)
    kernel = weights(b, p)
    # Larger tiles where outputs are many, as a loop copies them.
    times = 6 if p.columns <= p.features else 2
    return some_tiles(lambda x, g: forward(x, kernel, g), a, p.g, p.columns, times)


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """The views of all taps, concatenated, times the kernel."""
    views = concat_views(x, g.window)
    return jnp.matmul(views, kernel.reshape(-1, kernel.shape[-1]), precision=g.precision)


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, most_sums: int = 1) -> jax.Array:
    """The views of all taps, concatenated, times delta, summed over the positions; tile by tile.

    The sum over the positions of a tile is taken in up to `most_sums` equal parts, which are more exact.
    """
    channels, features = x.shape[-1], delta.shape[-1]

    def product(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
        views, delta = as_matrix(concat_views(x, g.window)), as_matrix(delta)
        return over_positions(views, delta, g.precision, largest_divisor(delta.shape[0], most_sums))

    tiles = tile(g, x.shape[0], max(g.window.taps * channels, FEWEST_ELEMENTS))
    return sum_tiles(product, x, delta, g, tiles).reshape(*g.window.window_shape, channels, features)
