"""Neighbouring outputs as one output with more features, for few channels: their windows are gathered together.

Let b outputs of the last axis stand side by side, and count them as `o = b m + p`, 0 <= p < b. With strides s and taps
d apart, tap t of output o reads place `s o + d t = b s m + (s p + d t)`. So with b s pixels of that axis as channels of
one pixel

    z[b m + p] = sum_j sum_q x[m + j, q] w_p[b s j + q]

where w_p is the window behind s p zeros, its taps d apart: a convolution at stride 1, of fewer and shorter windows.
Some of its products are with zeros; but of few channels a product costs less than gathering what it multiplies, and
neighbouring windows read mostly the same pixels.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from .._arguments import sum_dtype
from .._geometry import ConvGeometry, Window, dilated_size
from ._windows import Form, pad_axes

MOST_TOGETHER = 4
# Products that cost as much as gathering one number.
PRODUCTS_OF_A_COPY = 150


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry, correlate: Form) -> jax.Array:
    """Evaluate the sum with `correlate`, and take its outputs apart."""
    w, features = g.window, kernel.shape[-1]
    b = together(w, features)
    z = correlate(_pixels_as_channels(x, w, b), _weights(kernel, w, b), neighbours(g, b))
    return z.reshape(x.shape[0], *w.output_shape, features)


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, form: Form) -> jax.Array:
    """The kernel's gradient: the sum of what every w_p gets."""
    w, features = g.window, delta.shape[-1]
    b = together(w, features)
    sums = form(_pixels_as_channels(x, w, b), delta.reshape(*delta.shape[:-2], -1, b * features), neighbours(g, b))
    sums = sums.reshape(*w.window_shape[:-1], -1, x.shape[-1], b, features).astype(sum_dtype(sums.dtype))
    starts = range(0, b * w.strides[-1], w.strides[-1])
    parts = [
        lax.slice_in_dim(sums[..., p, :], start, start + _span(w), w.dilation[-1], w.rank - 1)
        for p, start in enumerate(starts)
    ]
    return functools.reduce(jnp.add, parts)


def together(w: Window, features: int) -> int:
    """How many outputs side by side are the least work: gathering their windows, and products, with zeros too."""

    def work(b: int) -> int:
        return _taps(w, b) * w.strides[-1] * (PRODUCTS_OF_A_COPY + b * features)

    return min((b for b in range(1, MOST_TOGETHER + 1) if w.output_shape[-1] % b == 0), key=work)


def neighbours(g: ConvGeometry, b: int) -> ConvGeometry:
    """The geometry of the sum over b * s pixels as channels of one, padding along that axis included in its input."""
    w = g.window
    outputs, taps = w.output_shape[-1] // b, _taps(w, b)
    last = dict(
        input_shape=outputs + taps - 1, window_shape=taps, strides=1, padding=(0, 0), dilation=1, output_shape=outputs
    )
    return g._replace(window=w._replace(**{name: (*getattr(w, name)[:-1], value) for name, value in last.items()}))


def _taps(w: Window, b: int) -> int:
    """The pixels, of b * s old ones, that b neighbouring windows read."""
    return -(-(b * w.strides[-1] - w.strides[-1] + _span(w)) // (b * w.strides[-1]))


def _span(w: Window) -> int:
    """The old pixels from the first to the last of a window."""
    return dilated_size(w.window_shape[-1], w.dilation[-1])


def _pixels_as_channels(x: jax.Array, w: Window, b: int) -> jax.Array:
    """(N, *spatial, pixels, b * s * C) of the padded input."""
    pixels, size = w.output_shape[-1] // b + _taps(w, b) - 1, b * w.strides[-1]
    low = w.padding[-1][0]
    x = pad_axes(x, [w.rank], [(low, pixels * size - low - w.input_shape[-1])], 0)
    return x.reshape(*x.shape[:-2], pixels, -1)


def _weights(kernel: jax.Array, w: Window, b: int) -> jax.Array:
    """(*window, taps, b * s * C, b * O): every w_p beside the others."""
    taps, axis, size = _taps(w, b), w.rank - 1, b * w.strides[-1]
    config, weights = [(0, 0, 0)] * kernel.ndim, []
    for start in range(0, size, w.strides[-1]):
        config[axis] = (start, taps * size - start - _span(w), w.dilation[-1] - 1)
        weights.append(lax.pad(kernel, jnp.zeros((), kernel.dtype), config))
    *window, features = kernel.shape
    return jnp.stack(weights, axis=-2).reshape(*window[:axis], taps, -1, b * features)
