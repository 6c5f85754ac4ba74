"""Sums and maxima over windows, and the taps' views of an input. No scatter. The transposes are in `_upsample.py`.

Arrays are (*batch, *spatial, C). A tap is a pixel of the window. Taps are counted in row-major order. Each tap reads
one strided view of the padded input. Windows are pooled by views, all taps at once, or separably, along one axis after
the other. A sum may also take views of the input without its padding, and pad each view.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._geometry import Window, dilated_size, is_static, outputs_inside, read_padding
from ._memory import materialize

Pair = tuple[jax.Array, jax.Array]
Form = Callable[..., jax.Array]
Slices = tuple[slice, ...]

# Taps of a convolution that are unrolled.
MAX_TAPS = 64
# Along one axis, more taps than this are combined in runs of 1, 2, 4, ... pixels.
TAPS_AT_ONCE = 16
# Below this many channels the loop over them is too short: winners are then faster read than found again, and views are
# not gathered fast.
FEW_CHANNELS = 16
# More views than this are concatenated in a loop. Unrolled, each of them takes time to compile.
VIEWS_AT_ONCE = 8


def max_of_views(x: jax.Array, w: Window) -> Pair:
    """The maximum of every window and the tap that won, by a view of the input for each tap."""
    views = tap_views(x, w, lowest(x.dtype))
    best = next(views)
    winner = jnp.zeros(best.shape, jnp.int32)
    for tap, view in enumerate(views, start=1):
        best, winner = _better((best, winner), (view, jnp.full((), tap, jnp.int32)))
    return _maxima(best, winner, w)


def max_separably(x: jax.Array, w: Window) -> Pair:
    """The same along one axis after the other."""
    best, winner = x, jnp.zeros(x.shape, jnp.int32)
    # From the last axis to the first, so that of equal pixels the first in row-major order wins.
    for i in reversed(range(w.rank)):
        code = math.prod(w.window_shape[i + 1 :])

        def later_tap(pixel: jax.Array, winner: jax.Array, taps: int, code: int = code) -> Pair:
            return pixel, winner + taps * code

        best, winner = _reduce_axis(w, i, (best, winner), (lowest(x.dtype), 0), _better, later_tap)
    return _maxima(best, winner, w)


def _maxima(best: jax.Array, winner: jax.Array, w: Window) -> Pair:
    """The maxima, and the winners: the first maximum, but the last NaN (as PyTorch).

    A window that lies wholly in the padding has the dtype's lowest value and the winner `w.taps`: nobody.
    """
    # Where every pixel is as low as the padding, the first pixel inside the input wins.
    winner = jnp.where(best == jnp.array(lowest(best.dtype), best.dtype), _first_inside(w, best), winner)
    if overlaps(w) or (is_static(best.shape[-1:]) and best.shape[-1] < FEW_CHANNELS):
        winner = materialize(winner)
    return best, winner.astype(winner_dtype(w.taps))


def take_winners(x: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """Read the input pixel that won each window: what `unpool_winners` wrote, fetched again."""
    winners = winners.astype(jnp.int32)
    taken = jnp.zeros(winners.shape, x.dtype)
    for tap, view in enumerate(tap_views(x, w, 0)):
        taken = jnp.where(winners == tap, view, taken)
    return taken


def sum_of_views(x: jax.Array, w: Window) -> jax.Array:
    """The sum of every window, by a view of the input for each tap."""
    return functools.reduce(jnp.add, tap_views(x, w, 0))


def sum_separably(x: jax.Array, w: Window) -> jax.Array:
    """The same along one axis after the other."""
    for i in range(w.rank):
        x = axis_sum(x, w, i)
    return x


def sum_of_valid_views(x: jax.Array, w: Window) -> jax.Array:
    """The same without a padded copy: a view of the pixels that each tap reads, padded by itself."""
    z = jnp.zeros_like(x, shape=(x.shape[0], *w.output_shape, x.shape[-1]))
    for _, pixels, places in valid_rectangles(w):
        starts, limits, strides = zip(*((s.start, s.stop, s.step) for s in pixels), strict=True)
        view = lax.slice(x, (0, *starts, 0), (x.shape[0], *limits, x.shape[-1]), (1, *strides, 1))
        z = z + at_places(view, places, w)
    return z


def valid_rectangles(w: Window) -> Iterator[tuple[tuple[int, ...], Slices, Slices]]:
    """Every tap that reads the input, the pixels that it reads, and the outputs for which it reads them."""
    by_axis = outputs_inside(w)
    for tap in itertools.product(*map(range, w.window_shape)):
        pixels, places = [], []
        for axis, t in enumerate(tap):
            first, end = by_axis[axis][t]
            stride, start = w.strides[axis], t * w.dilation[axis] - w.padding[axis][0]
            pixels.append(slice(first * stride + start, (end - 1) * stride + start + 1, stride))
            places.append(slice(first, end))
        if all(place.start < place.stop for place in places):
            yield tap, tuple(pixels), tuple(places)


def at_places(a: jax.Array, places: Slices, w: Window) -> jax.Array:
    """Values for a rectangle of outputs, with zeros for all others."""
    pads = [(s.start, out - s.stop) for s, out in zip(places, w.output_shape, strict=True)]
    return pad_axes(a, range(1, w.rank + 1), pads, 0)


def lowest(dtype: jnp.dtype) -> float | int | bool:
    """What no value of the dtype is below; some floating-point dtypes of eight bits and less have no infinity."""
    if dtype == jnp.bool_:
        return False
    if not jnp.issubdtype(dtype, jnp.floating):
        return int(jnp.iinfo(dtype).min)
    return -np.inf if np.isinf(np.array(np.inf, dtype)) else float(jnp.finfo(dtype).min)


def winner_dtype(taps: int) -> jnp.dtype:
    """The smallest unsigned integer that holds a tap's number, or their count for "nobody"."""
    return next(jnp.dtype(d) for d in (jnp.uint8, jnp.uint16, jnp.uint32) if taps <= jnp.iinfo(d).max)


def axis_alone(w: Window, i: int, values: jax.Array) -> Window:
    """The window that slides along spatial axis i of these values alone."""
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


def spatial_axes(w: Window, ndim: int) -> range:
    """The axes of an array (*batch, *spatial, C) over which the window slides."""
    return range(ndim - 1 - w.rank, ndim - 1)


def overlaps(w: Window) -> bool:
    """Whether windows span more pixels along an axis than they step."""
    return any(dilated_size(k, d) > s for k, d, s in zip(w.window_shape, w.dilation, w.strides, strict=True))


def tap_views(x: jax.Array, w: Window, fill: float | int | bool, trailing: int = 1) -> Iterator[jax.Array]:
    """For every tap in order, the strided view of the padded input that this tap of all windows reads."""
    axes = spatial_axes(w, x.ndim + 1 - trailing)
    padded = pad_axes(x, axes, read_padding(w), fill)
    for taps in itertools.product(*map(range, w.window_shape)):
        starts, limits, strides = [0] * x.ndim, list(padded.shape), [1] * x.ndim
        for axis, tap, d, s, out in zip(axes, taps, w.dilation, w.strides, w.output_shape, strict=True):
            starts[axis], strides[axis] = tap * d, s
            limits[axis] = tap * d + dilated_size(out, s)
        view = lax.slice(padded, starts, limits, strides)
        yield of_shape(view, (*x.shape[: axes.start], *w.output_shape, *x.shape[axes.stop :]))


def concat_views(x: jax.Array, w: Window) -> jax.Array:
    """The views of all taps, concatenated along the channels: im2col.

    One gather, of slices of all channels. Slices of few channels are copied slowly. So such views are concatenated axis
    by axis: as many as the sum of the window's sizes, not as their product.
    """
    return _gathered(x, w) if w.rank == 1 or x.shape[-1] >= FEW_CHANNELS else concat_views_by_axis(x, w)


def concat_views_by_axis(x: jax.Array, w: Window) -> jax.Array:
    """The same for any number of channels: concatenated along one axis of the window after the other."""
    x = pad_axes(x, spatial_axes(w, x.ndim), read_padding(w), 0)
    for i in reversed(range(w.rank)):
        if w.window_shape[i] > 1 or w.strides[i] > 1:
            x = _views_along(x, w, i)
    return x


def gather_pixels(x: jax.Array, places: np.ndarray) -> jax.Array:
    """(N, *places, C): the pixels of x, (N, *spatial, C), at these flat indices."""
    pixels = x.reshape(x.shape[0], -1, x.shape[-1])
    names = lax.GatherDimensionNumbers((0, places.ndim + 1), collapsed_slice_dims=(1,), start_index_map=(1,))
    return lax.gather(pixels, places[..., None], names, (x.shape[0], 1, x.shape[-1]), mode="promise_in_bounds")


def _gathered(x: jax.Array, w: Window) -> jax.Array:
    """For every output the pixels that its taps read, with zeros for padding."""
    place, inside = np.zeros([1] * (2 * w.rank), np.int32), True
    for i, (low, _) in enumerate(w.padding):
        outputs, taps = (np.arange(sizes[i]) for sizes in (w.output_shape, w.window_shape))
        pixel = np.add.outer(outputs * w.strides[i], taps * w.dilation[i]) - low
        pixel = np.expand_dims(pixel, [axis for axis in range(2 * w.rank) if axis % w.rank != i])
        inside = inside & (pixel >= 0) & (pixel < x.shape[i + 1])
        place = place * x.shape[i + 1] + pixel
    places = np.where(inside, place, math.prod(x.shape[1:-1])).astype(np.int32)
    if not np.all(inside):
        # Padding reads an appended pixel of zeros. A select inside the gather would copy element by element.
        x = pad_axes(x.reshape(x.shape[0], -1, x.shape[-1]), [1], [(0, 1)], 0)
    # Otherwise the producer of x would be computed again for every tap.
    views = gather_pixels(materialize(x), places.reshape(*w.output_shape, w.taps))
    return views.reshape(x.shape[0], *w.output_shape, -1)


def _views_along(x: jax.Array, w: Window, i: int) -> jax.Array:
    """The views of all taps along one axis of the padded input, concatenated; more than a few of them in a loop."""
    axis, channels, taps = spatial_axes(w, x.ndim)[i], x.shape[-1], w.window_shape[i]
    starts = [tap * w.dilation[i] for tap in range(taps)]
    reach, stride = dilated_size(w.output_shape[i], w.strides[i]), w.strides[i]
    if taps <= VIEWS_AT_ONCE:
        return jnp.concatenate([lax.slice_in_dim(x, start, start + reach, stride, axis) for start in starts], axis=-1)

    def put(tap: jax.Array, columns: jax.Array) -> jax.Array:
        view = lax.dynamic_slice_in_dim(x, tap * w.dilation[i], reach, axis, allow_negative_indices=False)
        view = lax.slice_in_dim(view, 0, reach, stride, axis)
        return lax.dynamic_update_slice_in_dim(columns, view, tap * channels, x.ndim - 1, allow_negative_indices=False)

    number = lax.slice(x, (0,) * x.ndim, (1,) * x.ndim).reshape(())
    shape = (*x.shape[:axis], w.output_shape[i], *x.shape[axis + 1 : -1], taps * channels)
    return lax.fori_loop(0, taps, put, jnp.broadcast_to(number, shape))


def _better(left: Pair, right: Pair) -> Pair:
    """The winner of two pixels, with its tap: the larger, the first of equals, the last NaN."""
    wins = right[0] > left[0]
    if jnp.issubdtype(left[0].dtype, jnp.floating):
        wins |= jnp.isnan(right[0])
    return jnp.where(wins, right[0], left[0]), jnp.where(wins, right[1], left[1])


def axis_sum(x: jax.Array, w: Window, i: int) -> jax.Array:
    """The sums of the windows along spatial axis i alone."""
    if w.output_shape[i] == 1:
        axis = spatial_axes(w, x.ndim)[i]
        x = pad_axes(x, [axis], [read_padding(w)[i]], 0)
        return jnp.sum(lax.slice_in_dim(x, 0, None, w.dilation[i], axis), axis=axis, keepdims=True)
    (total,) = _reduce_axis(w, i, (x,), (0,), lambda a, b: (a[0] + b[0],), lambda pixel, taps: (pixel,))
    return total


def _reduce_axis(w: Window, i: int, pixels: tuple, fills: tuple, combine: Callable, moved: Callable) -> tuple:
    """Reduce the windows along spatial axis i alone by `combine`, in order.

    `moved(*pixels, taps)` marks pixels as `taps` behind the first tap. A run of k pixels is combined from runs of 1, 2,
    4, ... pixels: log k steps. But there is a run for every pixel. Where strides skip most of them, k strided views are
    less work.
    """
    k, d, s, out = w.window_shape[i], w.dilation[i], w.strides[i], w.output_shape[i]
    axis = spatial_axes(w, pixels[0].ndim)[i]
    length = dilated_size(out, s)
    padded = tuple(pad_axes(a, [axis], [read_padding(w)[i]], fill) for a, fill in zip(pixels, fills, strict=True))

    def part(pixels: tuple, start: int, length: int, stride: int = 1) -> tuple:
        return tuple(lax.slice_in_dim(a, start, start + length, stride, axis) for a in pixels)

    steps = k.bit_length() + k.bit_count() - 2
    if k <= TAPS_AT_ONCE and k - 1 <= s * steps:
        views = (moved(*part(padded, tap * d, length, s), tap) for tap in range(k))
        return _of_size(functools.reduce(combine, views), axis, out)
    runs, total, done, size = padded, None, 0, 1
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
    return _of_size(tuple(lax.slice_in_dim(a, 0, None, s, axis) for a in total), axis, out)


def _of_size(arrays: tuple, axis: int, size: int) -> tuple:
    """Arrays of this size along an axis."""
    return tuple(of_shape(a, (*a.shape[:axis], size, *a.shape[axis + 1 :])) for a in arrays)


def _first_inside(w: Window, like: jax.Array) -> jax.Array:
    """For every window the first tap that lies on the input and not on padding; `w.taps` if none does."""
    first = jnp.zeros((), jnp.int32)
    inside = jnp.ones((), bool)
    axes = spatial_axes(w, like.ndim)
    for i, axis in enumerate(axes):
        low, high = w.padding[i]
        if is_static((low, high)) and low <= 0 and high <= 0:
            continue
        start = lax.broadcasted_iota(jnp.int32, like.shape, axis) * w.strides[i] - low
        tap = jnp.maximum(0, -(start // w.dilation[i]))
        inside &= (tap < w.window_shape[i]) & (start + tap * w.dilation[i] < w.input_shape[i])
        first = first + tap * math.prod(w.window_shape[i + 1 :])
    return jnp.broadcast_to(jnp.where(inside, first, w.taps), like.shape)


def of_shape(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """x, of this shape: symbolic sizes are equal whose arithmetic does not show it, and become the given ones."""
    if x.shape == tuple(shape):
        return x
    return pad_axes(x, range(x.ndim), [(0, size - old) for size, old in zip(shape, x.shape, strict=True)], 0)


def as_matrix(a: jax.Array) -> jax.Array:
    """(positions, channels)."""
    return a.reshape(-1, a.shape[-1])


def pad_to(x: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """(N, *spatial, C) padded with zeros at the end, up to these sizes."""
    axes = range(1, len(sizes) + 1)
    return pad_axes(x, axes, [(0, size - x.shape[axis]) for axis, size in zip(axes, sizes, strict=True)], 0)


def pad_axes(x: jax.Array, axes: Sequence[int], pads: Sequence[tuple[int, int]], fill: float | int | bool) -> jax.Array:
    """Pad (or, where negative, crop) some axes of x with a constant."""
    config = [(0, 0, 0)] * x.ndim
    for axis, (low, high) in zip(axes, pads, strict=True):
        config[axis] = (low, high, 0)
    return lax.pad(x, jnp.array(fill, x.dtype), config)
