"""toeplitz: rows of pixels times a block-Toeplitz matrix of the kernel, for few channels and large windows.

Along one axis a convolution is a product with a banded Toeplitz matrix: its entry (i, o) is the weight of the tap with
which output o reads pixel i, and 0 where it does not. With C channels the entries are blocks of the kernel. Most of the
products are with zeros. But with few channels a convolution spends its time on gathering windows, and one GEMM of whole
rows gathers nothing.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from .._geometry import ConvGeometry, Window
from ._windows import tap_views


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Rows of pixels, concatenated for all taps along the other axes, times the block-Toeplitz matrix."""
    *window, channels, features = kernel.shape
    taps = kernel.reshape(-1, window[-1], channels, features)
    matrix = jnp.einsum("tio,rtcf->ricof", _indicator(g.window, kernel.dtype), taps, precision=g.precision)
    rows = _rows(x, g.window)
    z = jnp.matmul(rows, matrix.reshape(rows.shape[-1], -1), precision=g.precision)
    return z.reshape(x.shape[0], *g.window.output_shape, features)


def _rows(x: jax.Array, w: Window) -> jax.Array:
    """(N * outputs along the other axes, taps along them * pixels * C): all rows that a row of outputs reads."""
    whole = w._replace(
        window_shape=(*w.window_shape[:-1], 1),
        strides=(*w.strides[:-1], 1),
        padding=(*w.padding[:-1], (0, 0)),
        output_shape=(*w.output_shape[:-1], w.input_shape[-1]),
    )
    views = [view.reshape(*view.shape[:-2], -1) for view in tap_views(x, whole, 0)]
    rows = jnp.concatenate(views, axis=-1)
    return rows.reshape(math.prod(rows.shape[:-1]), -1)


def _indicator(w: Window, dtype: jnp.dtype) -> jax.Array:
    """(taps, pixels, outputs) along the last axis: 1 where an output reads a pixel with a tap."""
    taps, pixels, outputs = np.ogrid[: w.window_shape[-1], : w.input_shape[-1], : w.output_shape[-1]]
    return jnp.asarray(pixels == outputs * w.strides[-1] + taps * w.dilation[-1] - w.padding[-1][0], dtype)
