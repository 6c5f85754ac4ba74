"""Windows whose taps lie d cells apart, as ordinary windows on every d-th cell.

An output at place d i + p reads cells d (i + t) + p only: those of the same phase p. With the d phases of an axis as
images of a larger batch, the taps of a window are neighbours again, and what is fast for such windows serves here too.
Source: the space-to-batch of Chen et al., "DeepLab", 2016.
"""

import math
from collections.abc import Callable

import jax

from .._geometry import ConvGeometry, read_padding
from ._windows import pad_axes

Form = Callable[..., jax.Array]


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry, correlate: Form) -> jax.Array:
    """Evaluate the sum over the phases with `correlate`, and put its outputs back in place."""
    w = g.window
    inner = phases(g)
    z = correlate(_padded_phases(x, g), kernel, inner)
    z = z.reshape(*w.dilation, x.shape[0], *inner.window.output_shape, z.shape[-1])
    places = [axis for i in range(w.rank) for axis in (w.rank + 1 + i, i)]
    z = z.transpose(w.rank, *places, 2 * w.rank + 1)
    sizes = [out * d for out, d in zip(inner.window.output_shape, w.dilation, strict=True)]
    z = z.reshape(x.shape[0], *sizes, z.shape[-1])
    return z[(slice(None), *(slice(out) for out in w.output_shape))]


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, form: Form) -> jax.Array:
    """The kernel's gradient is the same sum over all phases."""
    w = g.window
    inner = phases(g)
    sizes = [out * d for out, d in zip(inner.window.output_shape, w.dilation, strict=True)]
    ends = [(0, size - out) for size, out in zip(sizes, w.output_shape, strict=True)]
    delta = pad_axes(delta, range(1, w.rank + 1), ends, 0)
    return form(_padded_phases(x, g), _apart(delta, w.dilation), inner)


def phases(g: ConvGeometry) -> ConvGeometry:
    """The geometry of the sum over one phase, padding included in its input."""
    w = g.window
    outputs = tuple(-(-out // d) for out, d in zip(w.output_shape, w.dilation, strict=True))
    inputs = tuple(out + k - 1 for out, k in zip(outputs, w.window_shape, strict=True))
    ones, none = (1,) * w.rank, ((0, 0),) * w.rank
    return g._replace(window=w._replace(input_shape=inputs, output_shape=outputs, padding=none, dilation=ones))


def _padded_phases(x: jax.Array, g: ConvGeometry) -> jax.Array:
    """(phases * N, *inputs, C): the padded input, as many cells as its last window reads in any phase."""
    w = g.window
    inputs = phases(g).window.input_shape
    pads = [
        (low, size * d - low - old)
        for (low, _), size, d, old in zip(read_padding(w), inputs, w.dilation, w.input_shape, strict=True)
    ]
    return _apart(pad_axes(x, range(1, w.rank + 1), pads, 0), w.dilation)


def _apart(a: jax.Array, dilation: tuple[int, ...]) -> jax.Array:
    """(phases * N, *sizes / d, C) from (N, *sizes, C)."""
    n, *sizes, channels = a.shape
    rank = len(sizes)
    apart = [part for size, d in zip(sizes, dilation, strict=True) for part in (size // d, d)]
    order = (*range(2, 2 * rank + 1, 2), 0, *range(1, 2 * rank, 2), 2 * rank + 1)
    a = a.reshape(n, *apart, channels).transpose(order)
    return a.reshape(math.prod(dilation) * n, *(size // d for size, d in zip(sizes, dilation, strict=True)), channels)
