"""valid_taps: a GEMM for each tap, of the valid pixels alone, where windows read much padding.

A convolution multiplies the zeros of its padding, too. That is about half of its products where taps lie 12 pixels
apart on an input of 33x33, or where a window of 3x3 slides over an input of 2x2. The outputs for which a tap reads the
input are a rectangle, and so are the pixels that it reads.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from .._geometry import ConvGeometry, Problem, Window, outputs_inside
from ._gemm import read_across
from ._tiles import images_at_once, some_images, sum_images
from ._windows import Slices, as_matrix, at_places, gather_pixels, valid_rectangles

# Taps that are unrolled, each with a gather and a GEMM of its own.
MOST_TAPS = 16


def applies(p: Problem) -> bool:
    """One group, no zeros between pixels, a few taps."""
    return p.dense and 1 < p.taps <= MOST_TAPS


def run(a: jax.Array, b: jax.Array, p: Problem) -> jax.Array:
    """A GEMM for each tap, of some images at a time."""
    elements = p.pixels * p.channels + p.outputs * p.features
    if p.out == "kernel":
        sums = sum_images(partial(_kernel_grad, g=p.g), a, b, elements, times=2)
        return sums.reshape(*p.window.window_shape, p.channels, p.features)
    form = partial(_forward, b, g=p.g, features=p.features, back=p.out == "x")
    return some_images(form, [a], images_at_once(p.batch, elements, times=2))


def _forward(kernel: jax.Array, x: jax.Array, g: ConvGeometry, features: int, back: bool) -> jax.Array:
    """Each tap's valid pixels times its weights, added to its outputs. With `back`, the kernel is rotated."""
    w = g.window
    z = jnp.zeros_like(x, shape=(x.shape[0], *w.output_shape, features))
    for tap, pixels, places in valid_rectangles(w):
        weights = kernel[tuple(-1 - t for t in tap)].T if back else kernel[tap]
        part = jnp.matmul(_gather(x, pixels), weights, precision=g.precision)
        part = part.reshape(x.shape[0], *(s.stop - s.start for s in places), features)
        z = z + at_places(part, places, w)
    return z


def _kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """(taps, C, O): each tap's valid pixels times the delta of its outputs, summed over them."""
    none = jnp.zeros_like(x, shape=(x.shape[-1], delta.shape[-1]))
    by_tap = {
        tap: read_across(as_matrix(_gather(x, pixels)), as_matrix(_gather(delta, places)), g.precision)
        for tap, pixels, places in valid_rectangles(g.window)
    }
    taps = itertools.product(*map(range, g.window.window_shape))
    return jnp.stack([by_tap.get(tap, none) for tap in taps])


def valid_share(w: Window) -> float:
    """The share of what the windows read that lies inside the input."""
    axes = zip(outputs_inside(w), w.window_shape, w.output_shape, strict=True)
    return math.prod(sum(end - first for first, end in pairs) / (k * out) for pairs, k, out in axes)


def _gather(a: jax.Array, pixels: Slices) -> jax.Array:
    """(N, pixels, C): a rectangle of pixels. A gather compiles in half the time of a slice."""
    sizes = a.shape[1:-1]
    places = np.arange(math.prod(sizes), dtype=np.int32).reshape(sizes)
    return gather_pixels(a, places[pixels].ravel())
