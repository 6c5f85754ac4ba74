"""space_to_batch: the phases of a dilated convolution as images of a larger batch. Its taps are then neighbours.

With dilation d, the output at d i + p reads pixels d (i + t) + p only, those of the same phase p. So the kernel's
gradient sums over the phases as over images, and each phase is a convolution without dilation.
Source: Chen et al., "DeepLab", 2016, which calls it space-to-batch.
"""

import math

import jax

from .._geometry import ConvGeometry, Ints, Problem, read_padding
from ._windows import Form, pad_axes, pad_to


def applies(p: Problem) -> bool:
    """Kernel gradients at stride 1, with dilation, without zeros between pixels."""
    return p.out == "kernel" and p.dilated and not p.strided and not p.over_zeros


def inner(p: Problem) -> Problem:
    """The sum over all phases, which are images."""
    return p.inside(geometry=_phase_geometry(p.g), batch=p.batch * math.prod(p.window.dilation))


def run(x: jax.Array, delta: jax.Array, p: Problem, of: Form) -> jax.Array:
    """x, padded as far as the last window of any phase reads, and delta, in phases."""
    w, phase = p.window, _phase_geometry(p.g).window
    read = _times(phase.input_shape, w.dilation)
    pads = [(low, size - low - old) for (low, _), size, old in zip(read_padding(w), read, w.input_shape, strict=True)]
    x = pad_axes(x, range(1, w.rank + 1), pads, 0)
    delta = pad_to(delta, _times(phase.output_shape, w.dilation))
    return of(_phases(x, w.dilation), _phases(delta, w.dilation))


def _phase_geometry(g: ConvGeometry) -> ConvGeometry:
    """The geometry of one phase, whose input includes the padding."""
    w = g.window
    outputs = tuple(-(-out // d) for out, d in zip(w.output_shape, w.dilation, strict=True))
    return g._replace(window=w.unpadded(output_shape=outputs, dilation=(1,) * w.rank))


def _phases(a: jax.Array, dilation: Ints) -> jax.Array:
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
