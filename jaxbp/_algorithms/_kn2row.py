"""kn2row: one GEMM of all pixels with all taps' weights. Then each tap's result is shifted to its place and added.

No views are gathered: the GEMM reads each pixel once. Its result has taps * outputs elements for each pixel, so it is
for few outputs, or few pixels.
Source: Vasudevan, Anderson and Gregg, "Parallel multi channel convolution using general matrix multiplication", 2017.
"""

import math
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from .._geometry import ConvGeometry, Problem, Window, dilated_size, read_padding
from ._memory import materialize
from ._tiles import TILE_ELEMENTS, images_at_once, some_images, some_tiles
from ._windows import MAX_TAPS


def applies(p: Problem) -> bool:
    """One group and few shifted sums: as many as the sum of the window's sizes."""
    return p.out != "kernel" and p.groups == 1 and p.rank > 0 and sum(p.window.window_shape) <= MAX_TAPS


def run(a: jax.Array, b: jax.Array, p: Problem) -> jax.Array:
    """Of some images at a time, or of some rows where images are large and have no zeros between pixels.

    Whole images are not padded: their padding is part of the shifted sums.
    """
    form = partial(forward, b, back=p.out == "x")
    elements = p.taps * p.features
    if a.size > 4 * TILE_ELEMENTS:
        # The GEMM reads a copy of the input with its channels first, which would not stay in the cache.
        elements = max(elements, p.channels)
    if elements * p.pixels > 4 * TILE_ELEMENTS and not p.over_zeros:
        return some_tiles(form, a, p.g, elements)
    return some_images(partial(form, g=p.g), [a], images_at_once(p.batch, elements * p.pixels, times=2))


def forward(kernel: jax.Array, x: jax.Array, g: ConvGeometry, back: bool) -> jax.Array:
    """The input times all weights, then the shifted sum of what the taps got.

    With `back`, the input's gradient: the GEMM sums over the kernel's features, and taps count from the last. The
    kernel is read as it is, with no rotated copy.
    """
    w, (channels, features) = g.window, kernel.shape[-2:]
    if back:
        outputs, weights = channels, kernel.reshape(-1, features).T
    else:
        outputs, weights = features, kernel.reshape(-1, channels, features).swapaxes(0, 1).reshape(channels, -1)
    parts = jnp.matmul(x, weights, precision=g.precision).reshape(*x.shape[:-1], w.taps, outputs)
    parts = jnp.moveaxis(parts, -2, 0)
    parts = parts[::-1] if back else parts
    # One axis after the other: as many terms as the sum of the window's sizes. All taps at once would be as many as
    # their product, which is slow to compile.
    for i in range(w.rank):
        behind = math.prod(x.shape[i + 2 : -1]) * outputs
        parts = parts.reshape(w.window_shape[i], -1, x.shape[i + 1], behind)
        parts = materialize(reduce(jnp.add, (_shifted(part, w, i, tap) for tap, part in enumerate(parts))))
    return parts.reshape(x.shape[0], *w.output_shape, outputs)


def _shifted(part: jax.Array, w: Window, i: int, tap: int) -> jax.Array:
    """What one tap along spatial axis i, the middle one, reads of its own part."""
    start, reach = tap * w.dilation[i], dilated_size(w.output_shape[i], w.strides[i])
    config = [(0, 0, 0), (*read_padding(w)[i], w.input_dilation[i] - 1), (0, 0, 0)]
    padded = lax.pad(part, jnp.zeros((), part.dtype), config)
    return lax.slice_in_dim(padded, start, start + reach, w.strides[i], 1)
