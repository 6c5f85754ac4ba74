"""A batch of narrow images as a few wide ones, between which stands the padding.

Up to jaxlib 0.10 XLA:CPU divides a convolution among threads along its last spatial axis alone: narrow images with
few channels are left to one of them. Side by side they are one task for each thread; outputs across a border are not
used. Two more copies, of the input and of the outputs, cost less than the second thread brings.
"""

import math

import jax
import jax.numpy as jnp

from .._geometry import ConvGeometry, dilated_size, read_padding
from . import _direct
from ._memory import materialize
from ._tiles import images_at_once, largest_divisor, map_images
from ._windows import pad_axes

# The compiler's cost of a task: (outputs along the last axis + features) times the numbers of a window.
TASK = 3 << 15
# How many blocks' numbers of the input are taken at once.
TIMES = 2


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """The textbook form of so many images side by side that there is work for several threads; part by part."""
    return map_images(lambda x: _strips(x, kernel, g), x, _pixels(g, x.shape[-1]), TIMES)


def _strips(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Rows of images, with their padding between them, as wide images; and the outputs back in their place."""
    w, n, features = g.window, x.shape[0], kernel.shape[-1]
    *_, out = w.output_shape
    *_, stride = w.strides
    span = dilated_size(w.window_shape[-1], w.dilation[-1])
    low, high = read_padding(w)[-1]
    # Every image begins where a window does.
    pixels = -(-(low + w.input_shape[-1] + high) // stride) * stride
    x = pad_axes(x, [w.rank], [(low, pixels - low - w.input_shape[-1])], 0)

    images = images_in_a_row(g, n, x.shape[-1], features)
    strips = jnp.moveaxis(x.reshape(-1, images, *x.shape[1:]), 1, w.rank)
    wide = w._replace(
        input_shape=(*w.input_shape[:-1], images * pixels),
        output_shape=(*w.output_shape[:-1], images * pixels // stride),
        padding=(*w.padding[:-1], (0, span - stride)),
    )
    strips = strips.reshape(-1, *wide.input_shape, x.shape[-1])
    z = _direct.forward(strips, kernel, g._replace(window=wide))
    z = z.reshape(n // images, *w.output_shape[:-1], images, pixels // stride, features)
    return materialize(jnp.moveaxis(z[..., :out, :], w.rank, 1).reshape(n, *w.output_shape, features))


def images_in_a_row(g: ConvGeometry, batch: int, channels: int, features: int) -> int:
    """As many as make four tasks, if the part of the batch that is taken at once has them."""
    at_once = images_at_once(batch, _pixels(g, channels), TIMES)
    most = max(1, 4 * TASK // _numbers(g, channels) - features) // g.window.output_shape[-1]
    return largest_divisor(at_once, most)


def tasks(g: ConvGeometry, images: int, channels: int, features: int) -> float:
    """About how many tasks the compiler makes of so many images side by side, if more than one."""
    return (images * g.window.output_shape[-1] + features) * _numbers(g, channels) / TASK


def _pixels(g: ConvGeometry, channels: int) -> int:
    """The numbers of an image."""
    return math.prod(g.window.input_shape) * channels


def _numbers(g: ConvGeometry, channels: int) -> int:
    """Of a window; the compiler divides the sum over more than 1024."""
    return min(math.prod(g.window.window_shape) * channels, 1024)
