"""Upsampling, the transpose of pooling: delta to the winners, or to all pixels of a window. Gathers, no scatter.

Arrays are (*batch, *output, C). A scatter asks of each window which pixel it writes to. A gather asks of each pixel
which windows reach it. With stride s, pixel `p` of the padded input is `q s + r`, and window `q - j` covers it with tap
`t` where `t d = j s + r`. So for each of the few j there is one expression over all pixels, whose tap depends on the
phase r alone. Where windows overlap and phases are few, there is one expression per phase, whose taps are constants.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import max_dim

from .._geometry import Window, dilated_size, transposed
from ._windows import axis_alone, axis_sum, pad_axes, spatial_axes

# If more windows than this reach a pixel, they are gathered in a loop, and the table takes another algorithm.
WINDOWS_AT_ONCE = 16
# More taps or phases than this are not unrolled.
PHASES_AT_ONCE = 32


class Blocks(NamedTuple):
    """The padded input in blocks of stride-many pixels along each axis; a single window has a block of its own size."""

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    reach: tuple[int, ...]  # how many windows reach a pixel at most


def blocks_of(w: Window) -> Blocks:
    """The blocks of a window's input."""
    axes = []
    for i, (low, _) in enumerate(w.padding):
        span = dilated_size(w.window_shape[i], w.dilation[i])
        size = span if w.output_shape[i] == 1 else w.strides[i]
        axes.append((size, max_dim(-(-(low + w.input_shape[i]) // size), 0), -(-span // size)))
    return Blocks(*zip(*axes, strict=True)) if axes else Blocks((), (), ())


def few_phases(w: Window) -> bool:
    """Whether windows, taps and phases are few enough to unroll."""
    blocks = blocks_of(w)
    return math.prod(blocks.reach) <= WINDOWS_AT_ONCE and max(math.prod(blocks.sizes), w.taps) <= PHASES_AT_ONCE


def winners_gathered(delta: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """Each delta at the input pixel that won its window; the sum where a pixel won several."""
    return _gather_windows(w, [Write(delta, _add)], _as_int32(winners))[0]


def winners_separably(delta: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """The same along the first axis, then the next: for winners that a maximum chose.

    Of windows that cover the same columns, all that chose a pixel in one row chose the same pixel of it. So a delta
    that has reached its row has one place along the other axes, whichever window it came from.
    """
    places: list[jax.Array] = [_as_int32(winners)]
    for i in range(w.rank):
        rest = math.prod(w.window_shape[i + 1 :])
        writes, here = [Write(delta, _add)], places[0] if places else None
        # After the last axis with several taps there is nothing left to choose.
        if here is not None and rest > 1:
            here, column = _divided(here, rest)
            writes.append(Write(column, _overwrite, rest))
        delta, *places = _gather_windows(axis_alone(w, i, delta), writes, here)
    return delta


def winners_per_phase(delta: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """The same phase by phase: a window that reaches a phase has one constant tap there."""
    blocks, axes = blocks_of(w), spatial_axes(w, delta.ndim)
    delta, winners = _pad_windows(w, blocks, delta, 0), _pad_windows(w, blocks, _as_int32(winners), w.taps)

    def sum_of(phase: tuple[int, ...]) -> jax.Array:
        total = jnp.zeros_like(delta, shape=(*delta.shape[: axes.start], *blocks.counts, delta.shape[-1]))
        for starts in itertools.product(*map(range, blocks.reach)):
            steps = [most - 1 - start for most, start in zip(blocks.reach, starts, strict=True)]
            offsets = [j * s + p for j, s, p in zip(steps, blocks.sizes, phase, strict=True)]
            places = [divmod(offset, d) for offset, d in zip(offsets, w.dilation, strict=True)]
            if all(rest == 0 and t < k for (t, rest), k in zip(places, w.window_shape, strict=True)):
                tap = int(np.ravel_multi_index([t for t, _ in places], w.window_shape))
                won = _one_window_of_each_block(axes, blocks, winners, starts) == tap
                total = total + jnp.where(won, _one_window_of_each_block(axes, blocks, delta, starts), 0)
        return total

    def stacked(phase: tuple[int, ...]) -> jax.Array:
        i = len(phase)
        if i == w.rank:
            return sum_of(phase)
        return jnp.stack([stacked((*phase, p)) for p in range(blocks.sizes[i])], axis=axes[i] + 1)

    return _pixels(w, blocks, stacked(()))


def unpool(values: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """Each value at the pixel that won its window; the last window's where a pixel won several."""
    return _gather_windows(w, [Write(values, _overwrite)], _as_int32(winners))[0]


def evenly_gathered(delta: jax.Array, w: Window) -> jax.Array:
    """Each delta at every input pixel of its window: the transpose of a sum over windows."""
    return _gather_windows(w, [Write(delta, _add)])[0]


def evenly_separably(delta: jax.Array, w: Window) -> jax.Array:
    """The same along one axis after the other."""
    for i in range(w.rank):
        if w.strides[i] == 1 and w.output_shape[i] != 1:
            delta = axis_sum(delta, transposed(w), i)
        else:
            delta = evenly_gathered(delta, axis_alone(w, i, delta))
    return delta


class Write(NamedTuple):
    """What windows write: a value for each window, how a pixel folds it in, and what a pixel starts from."""

    values: jax.Array
    fold: Callable[..., jax.Array]
    otherwise: int = 0


def _add(total: jax.Array, value: jax.Array, reaches: jax.Array | bool) -> jax.Array:
    """The sum of what reaches a pixel."""
    return total + jnp.where(reaches, value, 0)


def _overwrite(kept: jax.Array, value: jax.Array, reaches: jax.Array | bool) -> jax.Array:
    """The last that reaches a pixel."""
    return jnp.where(reaches, value, kept)


def _as_int32(winners: jax.Array) -> jax.Array:
    """Comparing bytes inside a padded view is several times slower than comparing int32."""
    return winners.astype(jnp.int32)


def _gather_windows(w: Window, writes: Sequence[Write], winners: jax.Array | None = None) -> list[jax.Array]:
    """Fold `fold(total, values, reaches)` over the windows that may reach each pixel, first to last.

    All three are broadcast over (*batch, block, phase, ..., C). A window reaches a pixel that won it, or without
    winners every pixel that it covers.
    """
    like = writes[0].values
    axes, blocks = spatial_axes(w, like.ndim), blocks_of(w)
    padded = [_pad_windows(w, blocks, each.values, 0) for each in writes]
    padded_winners = None if winners is None else _pad_windows(w, blocks, winners, w.taps)
    phased = [size for both in zip(blocks.counts, blocks.sizes, strict=True) for size in both]
    shape = (*like.shape[: axes.start], *phased, like.shape[-1])

    def fold_window(starts: Sequence[Any], totals: list[jax.Array]) -> list[jax.Array]:
        """Fold in, for every block, the window `starts` windows behind the first that reaches it."""

        def view(a: jax.Array) -> jax.Array:
            a = _one_window_of_each_block(axes, blocks, a, starts)
            return jnp.expand_dims(a, [axis + 1 + i for i, axis in enumerate(axes)])

        steps = [most - 1 - start for most, start in zip(blocks.reach, starts, strict=True)]
        tap, reaches = _tap(w, blocks, steps, axes.start)
        if padded_winners is not None:
            reaches &= view(padded_winners) == tap
        return [each.fold(t, view(a), reaches) for t, a, each in zip(totals, padded, writes, strict=True)]

    totals = [jnp.full_like(each.values, each.otherwise, shape=shape) for each in writes]
    if math.prod(blocks.reach) <= WINDOWS_AT_ONCE:
        for starts in itertools.product(*map(range, blocks.reach)):
            totals = fold_window(starts, totals)
    else:
        totals = lax.fori_loop(
            0,
            math.prod(blocks.reach),
            lambda i, totals: fold_window(jnp.unravel_index(i, blocks.reach), totals),
            totals,
        )
    return [_pixels(w, blocks, total) for total in totals]


def _pad_windows(w: Window, blocks: Blocks, a: jax.Array, fill: int) -> jax.Array:
    """One value for each window, padded so that every block is reached by equally many."""
    facts = zip(blocks.reach, blocks.counts, w.output_shape, strict=True)
    return pad_axes(a, spatial_axes(w, a.ndim), [(most - 1, b - out) for most, b, out in facts], fill)


def _one_window_of_each_block(axes: Sequence[int], blocks: Blocks, a: jax.Array, starts: Sequence[Any]) -> jax.Array:
    """For each block the window `starts` windows behind the first that reaches it."""
    for axis, start, count in zip(axes, starts, blocks.counts, strict=True):
        if isinstance(start, int):
            a = lax.slice_in_dim(a, start, start + count, axis=axis)
        else:
            a = lax.dynamic_slice_in_dim(a, start, count, axis)
    return a


def _pixels(w: Window, blocks: Blocks, total: jax.Array) -> jax.Array:
    """(*batch, *spatial, C) from (*batch, block, phase, ..., C): phases interleaved, then cropped to the input."""
    pixels = [count * size for count, size in zip(blocks.counts, blocks.sizes, strict=True)]
    first = total.ndim - 1 - 2 * w.rank
    whole = total.reshape(*total.shape[:first], *pixels, total.shape[-1])
    crop = [(-low, low + n - c) for (low, _), n, c in zip(w.padding, w.input_shape, pixels, strict=True)]
    return pad_axes(whole, spatial_axes(w, whole.ndim), crop, 0)


def _tap(w: Window, blocks: Blocks, steps: Sequence[Any], first: int) -> tuple[jax.Array | int, jax.Array | bool]:
    """The tap with which window q - j covers each phase of block q, and whether it covers it; `steps` are the j.

    Computed, not looked up: a loop over pixels runs several times faster without a table.
    """
    shape = [1] * (first + 1) + [size for s in blocks.sizes for size in (s, 1)]
    tap: jax.Array | int = 0
    covered = True
    for i, (k, d, s, j) in enumerate(zip(w.window_shape, w.dilation, blocks.sizes, steps, strict=True)):
        # A single phase is constant, and needs no array.
        offset = j if s == 1 else j * s + lax.broadcasted_iota(jnp.int32, shape, first + 1 + 2 * i)
        here, between = divmod(offset, d) if isinstance(offset, int) else _divided(offset, d)
        tap = tap * k + here
        if d > 1:
            covered &= between == 0
        if not isinstance(j, int) or (j + 1) * s > dilated_size(k, d):
            covered &= here < k
    return tap, covered


def _divided(a: jax.Array, d: int) -> tuple[jax.Array, jax.Array]:
    """Quotient and remainder of what is not negative. `//` would also correct signs."""
    divisor = jnp.array(d, a.dtype)
    return lax.div(a, divisor), lax.rem(a, divisor)
