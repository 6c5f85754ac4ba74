"""space_to_batch: the phases of a dilated convolution as images of a larger batch. Its taps are then neighbours.

With dilation d, the output at d i + p reads pixels d (i + t) + p only, those of the same phase p. So each phase is a
convolution without dilation, and the algorithms for those apply.
Source: Chen et al., "DeepLab", 2016, which calls it space-to-batch.
"""

import math

import jax

from .._geometry import ConvGeometry, Ints, Problem, Window, read_padding
from ._direct import weights
from ._windows import Form, pad_axes, pad_to


def applies(p: Problem) -> bool:
    """Stride 1, dilation, no zeros between pixels."""
    return p.dilated and not p.strided and not p.over_zeros


def inner(p: Problem) -> Problem:
    """The sum of all phases, which are images."""
    return p.inside(geometry=phase_geometry(p.g), batch=p.batch * math.prod(p.window.dilation))


def run(a: jax.Array, b: jax.Array, p: Problem, of: Form) -> jax.Array:
    """The sum of all phases, which `of` takes as images; their outputs are interleaved."""
    w, phase = p.window, phase_geometry(p.g).window
    if p.out == "kernel":
        delta = pad_to(b, _times(phase.output_shape, w.dilation))
        return of(_padded_phases(a, w, phase), _split_phases(delta, w.dilation))
    kernel = weights(b, p)
    z = of(_padded_phases(a, w, phase), kernel)
    z = z.reshape(*w.dilation, a.shape[0], *phase.output_shape, z.shape[-1])
    places = [axis for i in range(w.rank) for axis in (w.rank + 1 + i, i)]
    z = z.transpose(w.rank, *places, 2 * w.rank + 1)
    z = z.reshape(a.shape[0], *_times(phase.output_shape, w.dilation), z.shape[-1])
    return z[(slice(None), *(slice(out) for out in w.output_shape))]


def phase_geometry(g: ConvGeometry) -> ConvGeometry:
    """The geometry of one phase, whose input includes the padding."""
    w = g.window
    outputs = tuple(-(-out // d) for out, d in zip(w.output_shape, w.dilation, strict=True))
    return g._replace(window=w.unpadded(output_shape=outputs, dilation=(1,) * w.rank))


def _padded_phases(x: jax.Array, w: Window, inner: Window) -> jax.Array:
    """(phases * N, *inputs, C): the phases of the padded input, as far as the last window of any phase reads."""
    read = _times(inner.input_shape, w.dilation)
    pads = [(low, size - low - old) for (low, _), size, old in zip(read_padding(w), read, w.input_shape, strict=True)]
    return _split_phases(pad_axes(x, range(1, w.rank + 1), pads, 0), w.dilation)


def _split_phases(a: jax.Array, dilation: Ints) -> jax.Array:
    """(phases * N, *sizes / d, C) from (N, *sizes, C): space-to-batch."""
    n, *sizes, channels = a.shape
    rank = len(sizes)
    inner = [size // d for size, d in zip(sizes, dilation, strict=True)]
    a = a.reshape(n, *(part for pair in zip(inner, dilation, strict=True) for part in pair), channels)
    a = a.transpose(*range(2, 2 * rank + 1, 2), 0, *range(1, 2 * rank, 2), 2 * rank + 1)
    return a.reshape(-1, *inner, channels)


def _times(sizes: Ints, dilation: Ints) -> Ints:
    """Pixels of all phases along each axis."""
    return tuple(size * d for size, d in zip(sizes, dilation, strict=True))
