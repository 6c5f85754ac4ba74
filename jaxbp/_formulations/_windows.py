"""Sums and maxima over windows, and the upsampling that undoes them. No scatter, no reduce_window.

Arrays are (*batch, *spatial, C). A tap is a cell of the window; taps are counted in row-major order. The forward
forms read one strided view of the padded input per tap. The upsampling forms ask the other way round, for an
input cell, which windows reached it: with stride s, cell `p` of the padded input is `q s + r`, and the window
`q - j` covers it with tap `t` where `t d = j s + r`. So for each of the few j there is one expression over all
cells, in which tap is a constant table over the phases r.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._geometry import Window, dilated_size, read_padding, transposed

Pair = tuple[jax.Array, jax.Array]
Choice = tuple[str, str]

# Above this many taps a window is pooled axis by axis: the sum of its sizes where it would be their product.
TAPS_AT_ONCE = 16
# Above this many windows that reach a cell, the program loops over them.
WINDOWS_AT_ONCE = 32


def max_form(w: Window) -> Choice:
    """The form of a maximum over windows."""
    if w.taps <= TAPS_AT_ONCE:
        return "views", "few cells in a window: one shifted view of the input for each"
    return "axis by axis", "runs of 1, 2, 4, ... cells along each axis: a sum of sizes, not their product"


def sum_form(w: Window) -> Choice:
    """The form of a sum over windows."""
    if 1 in w.output_shape:
        return "axis by axis", "one window along an axis: one reduction"
    return max_form(w)


def upsample_form(w: Window) -> Choice:
    """The form of an upsampling by winners."""
    if math.prod(_reach(w)) <= WINDOWS_AT_ONCE:
        return "windows back", "each window that reaches a cell: does the winner lie here? No scatter"
    return "windows back, looped", "many windows reach a cell: a loop over them, no scatter"


def even_form(w: Window) -> Choice:
    """The form of an even upsampling."""
    if all(k == s for k, s in zip(w.window_shape, w.strides, strict=True)):
        return "windows back", "windows do not overlap: delta is repeated"
    return "axis by axis", "the transpose of a sum, along each axis alone"


def max_and_winners(x: jax.Array, w: Window) -> tuple[jax.Array, jax.Array]:
    """The maximum of every window and the tap that won: the first maximum, but the last NaN (as PyTorch).

    A window that lies wholly in the padding has the dtype's lowest value and the winner `w.taps`: nobody.
    """
    best, winner = x, jnp.zeros(x.shape, jnp.int32)
    if max_form(w)[0] == "views":
        views = tap_views(x, w, lowest(x.dtype))
        best = next(views)
        winner = jnp.zeros(best.shape, jnp.int32)
        for tap, view in enumerate(views, start=1):
            best, winner = _better((best, winner), (view, jnp.full((), tap, jnp.int32)))
    else:
        # From the last axis to the first, so that of equal cells the first in row-major order wins.
        for i in reversed(range(w.rank)):
            code = math.prod(w.window_shape[i + 1 :])

            def later_tap(cell: jax.Array, winner: jax.Array, taps: int, code: int = code) -> Pair:
                return cell, winner + taps * code

            best, winner = _run(w, i, (best, winner), (lowest(x.dtype), 0), _better, later_tap)
    # Where every cell is as low as the padding, the first one that is not padding has won.
    winner = jnp.where(best == jnp.array(lowest(x.dtype), x.dtype), _first_inside(w, best), winner)
    return best, winner.astype(winner_dtype(w.taps))


def upsample_winners(delta: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """Give each delta to the input cell that won its window; the sum where a cell won several."""
    # Bytes inside a padded view compare several times slower than int32.
    return _upsample(
        w,
        delta,
        winners.astype(jnp.int32),
        lambda total, d, winner, tap: total + jnp.where(winner == tap, d, 0),
    )


def unpool_winners(values: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """Write each value to the cell that won its window; the last window's where a cell won several."""
    return _upsample(
        w, values, winners.astype(jnp.int32), lambda kept, v, winner, tap: jnp.where(winner == tap, v, kept)
    )


def take_winners(x: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """Read the input cell that won each window: what `unpool_winners` wrote, fetched again."""
    winners = winners.astype(jnp.int32)
    taken = jnp.zeros(winners.shape, x.dtype)
    for tap, view in enumerate(tap_views(x, w, 0)):
        taken = jnp.where(winners == tap, view, taken)
    return taken


def window_sum(x: jax.Array, w: Window) -> jax.Array:
    """The sum of every window."""
    if sum_form(w)[0] == "views":
        return functools.reduce(jnp.add, tap_views(x, w, 0))
    for i in range(w.rank):
        x = _axis_sum(x, w, i)
    return x


def upsample_evenly(delta: jax.Array, w: Window) -> jax.Array:
    """Give each delta to every input cell of its window: the transpose of `window_sum`."""
    if even_form(w)[0] == "windows back":
        return _upsample_evenly(delta, w)
    for i in range(w.rank):
        if w.strides[i] == 1 and w.output_shape[i] != 1:
            delta = _axis_sum(delta, transposed(w), i)
        else:
            delta = _upsample_evenly(delta, _axis_alone(w, i, delta))
    return delta


def lowest(dtype: jnp.dtype) -> float | int | bool:
    """What no value of the dtype is below."""
    if dtype == jnp.bool_:
        return False
    return -np.inf if jnp.issubdtype(dtype, jnp.floating) else int(jnp.iinfo(dtype).min)


def winner_dtype(taps: int) -> jnp.dtype:
    """The smallest unsigned integer that holds a tap's number, or their count for "nobody"."""
    return next(jnp.dtype(d) for d in (jnp.uint8, jnp.uint16, jnp.uint32) if taps <= jnp.iinfo(d).max)


def first_axis_views(x: jax.Array, w: Window) -> Iterator[jax.Array]:
    """For every tap along the first spatial axis of x, (N, *spatial, C), the view that it reads."""
    first = w._replace(
        window_shape=(w.window_shape[0], *(1,) * (w.rank - 1)), strides=(w.strides[0], *(1,) * (w.rank - 1))
    )
    rest = tuple((0, 0) for _ in range(1, w.rank))
    return tap_views(
        x,
        first._replace(
            input_shape=x.shape[1:-1], padding=(w.padding[0], *rest), output_shape=(w.output_shape[0], *x.shape[2:-1])
        ),
        0,
    )


def spatial_axes(w: Window, ndim: int) -> range:
    """The axes of an array (*batch, *spatial, C) over which the window slides."""
    return range(ndim - 1 - w.rank, ndim - 1)


def tap_views(x: jax.Array, w: Window, fill: float | int | bool, trailing: int = 1) -> Iterator[jax.Array]:
    """For every tap in order, the strided view of the padded input that this tap of all windows reads."""
    axes = spatial_axes(w, x.ndim + 1 - trailing)
    padded = pad_axes(x, axes, read_padding(w), fill)
    for taps in itertools.product(*map(range, w.window_shape)):
        starts, limits, strides = [0] * x.ndim, list(padded.shape), [1] * x.ndim
        for axis, tap, d, s, out in zip(axes, taps, w.dilation, w.strides, w.output_shape, strict=True):
            starts[axis], strides[axis] = tap * d, s
            limits[axis] = tap * d + dilated_size(out, s)
        yield lax.slice(padded, starts, limits, strides)


def _better(left: Pair, right: Pair) -> Pair:
    """Of two cells with their taps the one that wins: the larger, the first of equals, the last NaN."""
    wins = right[0] > left[0]
    if jnp.issubdtype(left[0].dtype, jnp.floating):
        wins |= jnp.isnan(right[0])
    return jnp.where(wins, right[0], left[0]), jnp.where(wins, right[1], left[1])


def _axis_sum(x: jax.Array, w: Window, i: int) -> jax.Array:
    """The sums of the windows along spatial axis i alone."""
    if w.output_shape[i] == 1:
        axis = spatial_axes(w, x.ndim)[i]
        x = pad_axes(x, [axis], [read_padding(w)[i]], 0)
        return jnp.sum(lax.slice_in_dim(x, 0, None, w.dilation[i], axis), axis=axis, keepdims=True)
    (total,) = _run(w, i, (x,), (0,), lambda a, b: (a[0] + b[0],), lambda cell, taps: (cell,))
    return total


def _run(w: Window, i: int, cells: tuple, fills: tuple, combine: Callable, moved: Callable) -> tuple:
    """Combine the cells of each window along spatial axis i alone, in order.

    `moved(*cells, taps)` tells cells that they stand so many taps behind the first. A run of k cells is put
    together from runs of 1, 2, 4, ... cells, so that it takes log k steps and not k.
    """
    k, d, s, out = w.window_shape[i], w.dilation[i], w.strides[i], w.output_shape[i]
    axis = spatial_axes(w, cells[0].ndim)[i]
    length = dilated_size(out, s)

    def part(cells: tuple, start: int, length: int) -> tuple:
        return tuple(lax.slice_in_dim(a, start, start + length, axis=axis) for a in cells)

    runs = tuple(pad_axes(a, [axis], [read_padding(w)[i]], fill) for a, fill in zip(cells, fills, strict=True))
    total, done, size = None, 0, 1
    while True:
        if k & size:
            piece = moved(*part(runs, done * d, length), done)
            total = piece if total is None else combine(total, piece)
            done += size
        if 2 * size > k:
            break
        rest = runs[0].shape[axis] - size * d
        runs = combine(part(runs, 0, rest), moved(*part(runs, size * d, rest), size))
        size *= 2
    assert total is not None
    return tuple(lax.slice_in_dim(a, 0, None, s, axis) for a in total)


def _axis_alone(w: Window, i: int, values: jax.Array) -> Window:
    """The window that slides along spatial axis i of the pooled values alone."""
    sizes = tuple(values.shape[axis] for axis in spatial_axes(w, values.ndim))

    def only(per_axis: tuple, others: tuple) -> tuple:
        return (*others[:i], per_axis[i], *others[i + 1 :])

    ones = (1,) * w.rank
    return Window(
        only(w.input_shape, sizes),
        only(w.window_shape, ones),
        only(w.strides, ones),
        only(w.padding, ((0, 0),) * w.rank),
        only(w.dilation, ones),
        ones,
        only(w.output_shape, sizes),
    )


def _upsample_evenly(delta: jax.Array, w: Window) -> jax.Array:
    """Add up the windows that reach each cell."""
    return _upsample(w, delta, None, lambda total, d, _, tap: total + jnp.where(tap >= 0, d, 0))


def _first_inside(w: Window, like: jax.Array) -> jax.Array:
    """For every window the first tap that lies on the input and not on padding; `w.taps` if none does."""
    first = jnp.zeros((), jnp.int32)
    inside = jnp.ones((), bool)
    axes = spatial_axes(w, like.ndim)
    for i, axis in enumerate(axes):
        low, high = w.padding[i]
        if low <= 0 and high <= 0:
            continue
        start = lax.broadcasted_iota(jnp.int32, like.shape, axis) * w.strides[i] - low
        tap = jnp.maximum(0, -(start // w.dilation[i]))
        inside &= (tap < w.window_shape[i]) & (start + tap * w.dilation[i] < w.input_shape[i])
        first = first + tap * math.prod(w.window_shape[i + 1 :])
    return jnp.broadcast_to(jnp.where(inside, first, w.taps), like.shape)


def _upsample(w: Window, values: jax.Array, winners: jax.Array | None, fold: Callable[..., jax.Array]) -> jax.Array:
    """Fold `fold(total, values, winners, tap)` over the windows that reach each cell, first to last.

    All four are broadcast over (*batch, block, phase, ..., C); `tap` is -1 where a window has none on a cell.
    """
    strides = _block_sizes(w)
    w = w._replace(strides=strides)
    axes, reach = spatial_axes(w, values.ndim), _reach(w)
    blocks = [-(-(low + n) // s) for (low, _), n, s in zip(w.padding, w.input_shape, w.strides, strict=True)]
    pads = [(most - 1, b - out) for most, b, out in zip(reach, blocks, w.output_shape, strict=True)]
    arrays = [pad_axes(values, axes, pads, 0)] + ([] if winners is None else [pad_axes(winners, axes, pads, w.taps)])
    phased = [size for b, s in zip(blocks, strides, strict=True) for size in (b, s)]
    total = jnp.zeros_like(values, shape=(*values.shape[: axes.start], *phased, values.shape[-1]))
    tables = np.stack(
        [
            _tap_table(w, tuple(m - 1 - start for m, start in zip(reach, starts, strict=True)))
            for starts in np.ndindex(*reach)
        ]
    )

    def fold_windows(starts: Any, table: Any, total: jax.Array) -> jax.Array:
        """Fold in, for every block, the window that lies `starts` windows behind the first that reaches it."""
        views = arrays
        for axis, start, b in zip(axes, starts, blocks, strict=True):
            views = [lax.dynamic_slice_in_dim(a, start, b, axis) for a in views]
        views = [jnp.expand_dims(a, [axis + 1 + i for i, axis in enumerate(axes)]) for a in views]
        tap = jnp.asarray(table).reshape([1] * (axes.start + 1) + [size for s in strides for size in (s, 1)])
        return fold(total, views[0], None if winners is None else views[1], tap)

    if upsample_form(w)[0] == "windows back":
        for starts, table in zip(np.ndindex(*reach), tables, strict=True):
            total = fold_windows(starts, table, total)
    else:
        each = jnp.asarray(tables)
        total = lax.fori_loop(
            0, len(tables), lambda i, total: fold_windows(jnp.unravel_index(i, tuple(reach)), each[i], total), total
        )
    cells = [b * s for b, s in zip(blocks, strides, strict=True)]
    total = total.reshape(*values.shape[: axes.start], *cells, values.shape[-1])
    crop = [(-low, low + n - c) for (low, _), n, c in zip(w.padding, w.input_shape, cells, strict=True)]
    return pad_axes(total, axes, crop, 0)


def _block_sizes(w: Window) -> tuple[int, ...]:
    """The strides, but a lone window has none: with a stride of its own size it is one block."""
    return tuple(
        dilated_size(k, d) if out == 1 else s
        for k, d, s, out in zip(w.window_shape, w.dilation, w.strides, w.output_shape, strict=True)
    )


def _reach(w: Window) -> list[int]:
    """How many windows reach a cell along each axis, at most."""
    return [-(-dilated_size(k, d) // s) for k, d, s in zip(w.window_shape, w.dilation, _block_sizes(w), strict=True)]


def _tap_table(w: Window, steps: tuple[int, ...]) -> np.ndarray:
    """The tap with which window q - j covers phase r of block q, for all phases; -1 where it has none."""
    table = np.zeros((), np.int32)
    for k, d, s, j in zip(w.window_shape, w.dilation, w.strides, steps, strict=True):
        offset = j * s + np.arange(s, dtype=np.int32)
        on_tap = (offset % d == 0) & (offset // d < k)
        table = np.where((table[..., None] >= 0) & on_tap, table[..., None] * k + offset // d, -1)
    return table


def pad_axes(x: jax.Array, axes: Sequence[int], pads: Sequence[tuple[int, int]], fill: float | int | bool) -> jax.Array:
    """Pad (or, where negative, crop) some axes of x with a constant."""
    config = [(0, 0, 0)] * x.ndim
    for axis, (low, high) in zip(axes, pads, strict=True):
        config[axis] = (low, high, 0)
    return lax.pad(x, jnp.array(fill, x.dtype), config)
