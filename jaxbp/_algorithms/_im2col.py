"""im2col: all taps' views of the input concatenated, times the kernel or delta. One GEMM.

Source: Chellapilla et al., "High performance convolutional neural networks for document processing", 2006.
"""

from functools import partial

import jax
import jax.numpy as jnp

from .._geometry import ConvGeometry, Problem
from ._direct import sliding_kernel
from ._gemm import over_positions
from ._tiles import some_tiles, sum_tiles, tile
from ._windows import MAX_TAPS, as_matrix, concat_views

# Elements that each output counts for, at least, when tiles are chosen. So no GEMM sums over more than
# TILE_ELEMENTS / FEWEST_ELEMENTS positions, beyond which its rounding error would show.
FEWEST_ELEMENTS = 256


def applies(p: Problem) -> bool:
    """One group, no zeros between pixels; in one or two dimensions not too many views."""
    return p.dense and (p.rank > 2 or p.taps <= MAX_TAPS)


def run(a: jax.Array, b: jax.Array, p: Problem) -> jax.Array:
    """Of as many images or rows at a time as fit the cache."""
    if p.out == "kernel":
        sums = sum_tiles(_kernel_grad, a, b, p.g, tile(p.g, p.batch, max(p.columns, FEWEST_ELEMENTS)))
        return sums.reshape(*p.window.window_shape, p.channels, p.features)
    # Larger tiles where outputs are many, as a loop copies them.
    times = 6 if p.columns <= p.features else 2
    return some_tiles(partial(_forward, sliding_kernel(b, p)), a, p.g, p.columns, times)


def _forward(kernel: jax.Array, x: jax.Array, g: ConvGeometry) -> jax.Array:
    """The views of all taps, concatenated, times the kernel."""
    views = concat_views(x, g.window)
    return jnp.matmul(views, kernel.reshape(-1, kernel.shape[-1]), precision=g.precision)


def _kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """The views of all taps, concatenated, times delta, summed over the positions."""
    return over_positions(as_matrix(concat_views(x, g.window)), as_matrix(delta), g.precision)
