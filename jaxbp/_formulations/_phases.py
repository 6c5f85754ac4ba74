"""Zeros between the input's cells, left out: a convolution of a dilated input as one convolution for each phase.

With the input's cells s apart, the outputs `o = m s + r` of phase r meet input cells only with the taps t for which
`r + t d - p` is a multiple of s. These taps form a kernel of their own, which slides over the input as it is.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._geometry import ConvGeometry, Window, read_padding
from ._windows import pad_axes


class Phase(NamedTuple):
    """The taps of one phase along one axis: `start`, `start + step`, ...; and where the first of them reads."""

    start: int
    step: int
    taps: int
    dilation: int
    offset: int


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry, correlate: Callable[..., jax.Array]) -> jax.Array:
    """Evaluate every phase with `correlate`, and interleave them."""
    w = g.window
    per_axis = [_phases(w, axis) for axis in range(w.rank)]
    blocks = [-(-out // s) for out, s in zip(w.output_shape, w.input_dilation, strict=True)]
    zeros = jnp.zeros((x.shape[0], *blocks, kernel.shape[-1]), x.dtype)
    pieces = []
    for phases in itertools.product(*per_axis):
        if all(p.taps for p in phases):
            taps = tuple(slice(p.start, None, p.step) for p in phases)
            pieces.append(correlate(x, kernel[taps], g._replace(window=_phase_window(w, phases, blocks))))
        else:
            pieces.append(zeros)
    # From the last axis to the first: the phases of one axis become neighbours behind its blocks.
    for axis in range(w.rank, 0, -1):
        s, merged = w.input_dilation[axis - 1], []
        for i in range(0, len(pieces), s):
            stacked = jnp.stack(pieces[i : i + s], axis=axis + 1) if s > 1 else pieces[i]
            shape = list(pieces[i].shape)
            shape[axis] *= s
            merged.append(stacked.reshape(shape))
        pieces = merged
    crop = [(0, out - b * s) for out, b, s in zip(w.output_shape, blocks, w.input_dilation, strict=True)]
    return pad_axes(pieces[0], range(1, w.rank + 1), crop, 0)


def _phases(w: Window, axis: int) -> list[Phase]:
    """The taps of every phase along an axis."""
    s, d, k, (low, _) = w.input_dilation[axis], w.dilation[axis], w.window_shape[axis], w.padding[axis]
    step = s // math.gcd(s, d)
    phases = []
    for r in range(s):
        start = next((t for t in range(min(k, step)) if (r + t * d - low) % s == 0), k)
        phases.append(Phase(start, step, len(range(start, k, step)), d * step // s, (r + start * d - low) // s))
    return phases


def _phase_window(w: Window, phases: tuple[Phase, ...], blocks: list[int]) -> Window:
    """The window of one phase over the input without zeros."""
    window = Window(
        w.input_shape,
        tuple(p.taps for p in phases),
        w.strides,
        tuple((-p.offset, 0) for p in phases),
        tuple(p.dilation for p in phases),
        (1,) * w.rank,
        tuple(blocks),
    )
    return window._replace(padding=read_padding(window))
