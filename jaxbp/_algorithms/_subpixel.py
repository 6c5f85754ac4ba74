"""subpixel: a convolution of a dilated input as one with more features on the input itself, then depth-to-space.

Let the input's pixels lie s apart. Output `o = s m - q + p` is the one of phase q, 0 <= q < s, in block m; p is the
padding. Tap t of it reads place `o + t - p = s m + t - q`, where a pixel lies only if t - q is a multiple of s. So

    z[s m - q + p] = sum_j x[m + j] w[s j + q]

which for every phase is a convolution of the input without zeros, with a window of ceil(k / s) taps. All phases read
the same pixels, so they are one convolution with s times as many features. This is the polyphase form of the sum.
Source: Shi et al., "Real-time single image and video super-resolution", 2016, which calls it sub-pixel convolution.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from .._geometry import Problem, Window, dilated_size, read_padding
from ._direct import sliding_kernel
from ._tiles import images_at_once, some_images
from ._windows import Form, pad_axes


def applies(p: Problem) -> bool:
    """Zeros between pixels, along axes of stride 1; a precision asks for products with no zeros of its own."""
    steps = zip(p.window.strides, p.window.input_dilation, strict=True)
    if p.out == "kernel" or not p.over_zeros or any(s > 1 and d > 1 for s, d in steps):
        return False
    return p.g.precision is None or added_zeros(p.window) == 0


def inner(p: Problem) -> Problem:
    """The convolution with more features, of some images at a time on a CPU."""
    block, features = block_window(p.window), p.features * math.prod(p.window.input_dilation)
    return p.inside(geometry=p.g._replace(window=block), features=features, batch=_images(p, block))


def run(a: jax.Array, b: jax.Array, p: Problem, of: Form) -> jax.Array:
    """The convolution with more features, of some images at a time, then depth-to-space."""
    w, block = p.window, block_window(p.window)
    weights, axes = _weights(sliding_kernel(b, p), w, block, p.groups), range(1, w.rank + 1)
    shape = [size * s for size, s in zip(block.output_shape, w.input_dilation, strict=True)]
    interleaved = [axis for i in axes for axis in (i, i + w.rank + 1)]
    order = (0, *interleaved, w.rank + 1, 2 * w.rank + 2)
    # The first block begins in front of output 0, by less than s.
    before = [
        _first_block(w, i) * s - (s - 1) + w.padding[i][0] if s > 1 else 0 for i, s in enumerate(w.input_dilation)
    ]
    crop = [(low, out - low - size) for low, out, size in zip(before, w.output_shape, shape, strict=True)]

    def outputs(x: jax.Array) -> jax.Array:
        z = of(x, weights)
        z = z.reshape(x.shape[0], *block.output_shape, p.groups, *w.input_dilation, -1)
        return pad_axes(z.transpose(order).reshape(x.shape[0], *shape, p.features), axes, crop, 0)

    return some_images(outputs, [a], _images(p, block))


def _images(p: Problem, block: Window) -> int:
    """How many images at a time."""
    if p.platform != "cpu":
        return p.batch
    outputs = math.prod(block.output_shape) * math.prod(p.window.input_dilation)
    return images_at_once(p.batch, outputs * p.features, times=4)


def added_zeros(w: Window) -> float:
    """How many of the weights that are multiplied are zeros, for each tap of the window."""
    axes = zip(w.window_shape, w.dilation, w.input_dilation, strict=True)
    return math.prod(k if s == 1 else -(-dilated_size(k, d) // s) * s for k, d, s in axes) / w.taps - 1


def block_window(w: Window) -> Window:
    """The window over the input without zeros: one step for each block of s outputs, the first to the last."""
    taps, dilation, padding, blocks = list(w.window_shape), list(w.dilation), list(w.padding), list(w.output_shape)
    for i, s in enumerate(w.input_dilation):
        if s > 1:
            first, last = _first_block(w, i), -((w.padding[i][0] + 1 - w.output_shape[i]) // s)
            taps[i], dilation[i] = -(-dilated_size(taps[i], dilation[i]) // s), 1
            # `read_padding` knows the high end.
            padding[i], blocks[i] = (-first, 0), last - first + 1
    ones = (1,) * w.rank
    block = Window(w.input_shape, tuple(taps), w.strides, tuple(padding), tuple(dilation), ones, tuple(blocks))
    return block._replace(padding=read_padding(block))


def _first_block(w: Window, i: int) -> int:
    """The block m of output 0: the first whose output of phase 0, s m + p, is not negative."""
    return -(w.padding[i][0] // w.input_dilation[i])


def _weights(kernel: jax.Array, w: Window, block: Window, groups: int) -> jax.Array:
    """(*taps, C / groups, groups * s * ... * O): w[s j + q] of all phases, the largest q first."""
    *_, channels, features = kernel.shape
    config, shape = [], []
    for k, d, s, taps in zip(w.window_shape, w.dilation, w.input_dilation, block.window_shape, strict=True):
        config.append((0, taps * s - dilated_size(k, d), d - 1) if s > 1 else (0, 0, 0))
        shape += [taps, s]
    kernel = lax.pad(kernel, jnp.zeros((), kernel.dtype), [*config, (0, 0, 0), (0, 0, 0)])
    kernel = kernel.reshape(*shape, channels, groups, features // groups)
    phases = range(1, 2 * w.rank, 2)
    order = (*range(0, 2 * w.rank, 2), 2 * w.rank, 2 * w.rank + 1, *phases, 2 * w.rank + 2)
    return jnp.flip(kernel, phases).transpose(order).reshape(*block.window_shape, channels, -1)
