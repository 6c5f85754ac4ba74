"""pack_batch: several narrow images packed into one wide image, with their padding between them.

A work-around for jaxlib up to 0.10. XLA:CPU divides a convolution among threads along its last spatial axis alone, so
narrow images with few channels run on one thread. A packed image is a task for each thread. Outputs whose windows lie
across a border are dropped. Two more copies, of the input and of the outputs, cost less than the second thread gains.
"""

import math

import jax
import jax.numpy as jnp

from .._geometry import ConvGeometry, dilated_size, read_padding
from . import _direct
from ._memory import materialize
from ._tiles import images_at_once, largest_divisor, map_images
from ._windows import pad_axes

# XLA:CPU's cost of one task: (outputs along the last axis + features) times the elements of a window.
TASK = 3 << 15
# Elements of the input that are packed at once, as a multiple of TILE_ELEMENTS.
TIMES = 2


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """The direct sum of packed images, which have work for several threads; of some images at a time."""
    return map_images(lambda x: _packed(x, kernel, g), x, _image_elements(g, x.shape[-1]), TIMES)


def _packed(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Pack, convolve, and take the outputs apart."""
    w, n, features = g.window, x.shape[0], kernel.shape[-1]
    *_, out = w.output_shape
    *_, stride = w.strides
    span = dilated_size(w.window_shape[-1], w.dilation[-1])
    low, high = read_padding(w)[-1]
    # Every image begins at a multiple of the stride.
    pixels = -(-(low + w.input_shape[-1] + high) // stride) * stride
    x = pad_axes(x, [w.rank], [(low, pixels - low - w.input_shape[-1])], 0)

    images = packed_images(g, n, x.shape[-1], features)
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


def packed_images(g: ConvGeometry, batch: int, channels: int, features: int) -> int:
    """Images in one packed image: as many as make four tasks, if the batch has them."""
    at_once = images_at_once(batch, _image_elements(g, channels), TIMES)
    most = max(1, 4 * TASK // _window_elements(g, channels) - features) // g.window.output_shape[-1]
    return largest_divisor(at_once, most)


def tasks(g: ConvGeometry, images: int, channels: int, features: int) -> float:
    """About how many tasks XLA:CPU makes of so many images packed into one."""
    return (images * g.window.output_shape[-1] + features) * _window_elements(g, channels) / TASK


def _image_elements(g: ConvGeometry, channels: int) -> int:
    """Elements of an image."""
    return math.prod(g.window.input_shape) * channels


def _window_elements(g: ConvGeometry, channels: int) -> int:
    """Elements of a window, as XLA:CPU counts them: it divides a sum over more than 1024."""
    return min(math.prod(g.window.window_shape) * channels, 1024)
