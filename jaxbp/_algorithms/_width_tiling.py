"""width_tiling: b neighbouring outputs of a row as features of one output. For few channels.

Each pixel is gathered once for b outputs, not once for each. This is space-to-depth along the width. Count the outputs
of the last axis as `o = b m + p`, 0 <= p < b. With stride s and dilation d, tap t of output o reads place
`s o + d t = b s m + (s p + d t)`. So with b s pixels of that axis as channels of one pixel

    z[b m + p] = sum_j sum_q x[m + j, q] w_p[b s j + q]

where w_p is the dilated window with s p zeros in front: a convolution at stride 1, with fewer and shorter windows.
Some products are with zeros. But with few channels a product costs less than the gather of its factor.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from .._arguments import sum_dtype
from .._geometry import ConvGeometry, Problem, Window, dilated_size
from ._direct import sliding_kernel
from ._windows import Form, pad_axes

MAX_TILE_WIDTH = 4
# Products that cost as much as gathering one element.
PRODUCTS_OF_A_COPY = 150


def applies(p: Problem) -> bool:
    """One group, outputs that divide into tiles; a precision asks for products with no zeros."""
    if not p.dense or p.g.precision is not None or p.taps == 1:
        return False
    return p.symbolic or tile_width(p.window, p.features) * p.window.strides[-1] > 1


def inside(p: Problem) -> tuple[str, ...]:
    """The algorithm that the sum of tiles is made for."""
    return ("im2col",) if p.platform == "cpu" else ("direct",)


def inner(p: Problem) -> Problem:
    """The sum of tiles."""
    b = tile_width(p.window, p.features)
    channels, features = b * p.window.strides[-1] * p.channels, b * p.features
    return p.inside(geometry=tiled(p.g, b), channels=channels, features=features)


def run(a: jax.Array, b: jax.Array, p: Problem, of: Form) -> jax.Array:
    """The sum of tiles, split: its features into outputs, or its kernel's gradient into those of all w_p, added up."""
    w, width = p.window, tile_width(p.window, p.features)
    if p.out != "kernel":
        kernel = sliding_kernel(b, p)
        z = of(_pixels_as_channels(a, w, width), _weights(kernel, w, width))
        return z.reshape(a.shape[0], *w.output_shape, p.features)
    sums = of(_pixels_as_channels(a, w, width), b.reshape(*b.shape[:-2], -1, width * p.features))
    sums = sums.reshape(*w.window_shape[:-1], -1, p.channels, width, p.features).astype(sum_dtype(sums.dtype))
    starts = range(0, width * w.strides[-1], w.strides[-1])
    parts = [
        lax.slice_in_dim(sums[..., place, :], start, start + _span(w), w.dilation[-1], w.rank - 1)
        for place, start in enumerate(starts)
    ]
    return functools.reduce(jnp.add, parts)


def tile_width(w: Window, features: int) -> int:
    """The b of the least work: gathered elements, and products, those with zeros included."""

    def work(b: int) -> int:
        return _taps(w, b) * w.strides[-1] * (PRODUCTS_OF_A_COPY + b * features)

    return min((b for b in range(1, MAX_TILE_WIDTH + 1) if w.output_shape[-1] % b == 0), key=work)


def tiled(g: ConvGeometry, b: int) -> ConvGeometry:
    """The geometry with b * s pixels as channels of one. Its input includes the padding of that axis."""
    w = g.window
    outputs, taps = w.output_shape[-1] // b, _taps(w, b)
    last = dict(
        input_shape=outputs + taps - 1, window_shape=taps, strides=1, padding=(0, 0), dilation=1, output_shape=outputs
    )
    return g._replace(window=w._replace(**{name: (*getattr(w, name)[:-1], value) for name, value in last.items()}))


def _taps(w: Window, b: int) -> int:
    """Pixels, each of b * s original ones, that b neighbouring windows read."""
    return -(-(b * w.strides[-1] - w.strides[-1] + _span(w)) // (b * w.strides[-1]))


def _span(w: Window) -> int:
    """Original pixels from the first to the last of a window."""
    return dilated_size(w.window_shape[-1], w.dilation[-1])


def _pixels_as_channels(x: jax.Array, w: Window, b: int) -> jax.Array:
    """(N, *spatial, pixels, b * s * C) of the padded input."""
    pixels, size = w.output_shape[-1] // b + _taps(w, b) - 1, b * w.strides[-1]
    low = w.padding[-1][0]
    x = pad_axes(x, [w.rank], [(low, pixels * size - low - w.input_shape[-1])], 0)
    return x.reshape(*x.shape[:-2], pixels, -1)


def _weights(kernel: jax.Array, w: Window, b: int) -> jax.Array:
    """(*window, taps, b * s * C, b * O): all w_p, stacked."""
    taps, axis, size = _taps(w, b), w.rank - 1, b * w.strides[-1]
    config, weights = [(0, 0, 0)] * kernel.ndim, []
    for start in range(0, size, w.strides[-1]):
        config[axis] = (start, taps * size - start - _span(w), w.dilation[-1] - 1)
        weights.append(lax.pad(kernel, jnp.zeros((), kernel.dtype), config))
    *window, features = kernel.shape
    return jnp.stack(weights, axis=-2).reshape(*window[:axis], taps, -1, b * features)
