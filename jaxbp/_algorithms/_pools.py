"""How the maps of pools are evaluated: on a CPU some images at a time, where temporaries are large.

Large temporaries do not stay in the cache, and their pages are mapped anew on every call. Algorithms without
temporaries take all images at once. Arrays are (N, *spatial, C).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._arguments import sum_dtype
from .._geometry import Window, is_static, read_padding
from . import _upsample, _windows
from ._tiles import MOST_MATERIALIZED, images_at_once, some_images


def max_and_winners(x: jax.Array, w: Window) -> tuple[jax.Array, jax.Array]:
    """The maximum of every window of x, and the tap that won it."""
    if 0 in (*x.shape, *w.output_shape):
        lowest = _full(x, w.output_shape, w, _windows.lowest(x.dtype), x.dtype)
        return lowest, _full(x, w.output_shape, w, w.taps, _windows.winner_dtype(w.taps))
    # Temporaries: pixels and winners along each axis, or a padded copy.
    times = 2 * w.rank if _windows.max_form(w)[0] == "separable" else _padded_copies(w)
    return _some_at_a_time(partial(_windows.max_and_winners, w=w), w, times, x)


def upsample_winners(delta: jax.Array, winners: jax.Array, w: Window, chosen: bool = False) -> jax.Array:
    """Each delta at the input pixel that won its window, added where one pixel won several, 0 elsewhere.

    `chosen`: a maximum chose the winners, so that windows that chose in the same row chose the same pixel of it.
    """
    if 0 in (*delta.shape, *w.input_shape):
        return _full(delta, w.input_shape, w, 0, delta.dtype)
    # Temporaries: delta and winners along each axis; or both padded, and winners as int32.
    times = 2 * w.rank if _upsample.winners_form(w, chosen)[0] == "separable" else 3 * _windows.overlaps(w)
    return _some_at_a_time(partial(_upsample.by_winners, w=w, chosen=chosen), w, times, delta, winners)


def upsample_chosen(delta: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """`upsample_winners` of winners that a maximum chose."""
    return upsample_winners(delta, winners, w, chosen=True)


def unpool_winners(values: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """Each value at the input pixel that won its window, the last one where a pixel won several, 0 elsewhere."""
    if 0 in (*values.shape, *w.input_shape):
        return _full(values, w.input_shape, w, 0, values.dtype)
    return _upsample.unpool(values, winners, w)


def take_winners(x: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """The input pixel that won each window."""
    return _windows.take_winners(x, winners, w) if x.size and winners.size else jnp.zeros(winners.shape, x.dtype)


def window_sum(x: jax.Array, w: Window) -> jax.Array:
    """The sum of every window, in the dtype in which sums are accumulated."""
    x = x.astype(sum_dtype(x.dtype))
    if 0 in (*x.shape, *w.output_shape):
        return _full(x, w.output_shape, w, 0, x.dtype)
    # Temporaries: a copy along each axis, or a padded copy.
    times = {"separable": w.rank, "views": _padded_copies(w)}.get(_windows.sum_form(w)[0], 0)
    return _some_at_a_time(partial(_windows.window_sum, w=w), w, times, x)


def upsample_evenly(delta: jax.Array, w: Window) -> jax.Array:
    """Each delta at every input pixel of its window, added where windows overlap."""
    if 0 in (*delta.shape, *w.input_shape):
        return _full(delta, w.input_shape, w, 0, delta.dtype)
    # Temporaries: a copy along each axis.
    times = w.rank if _upsample.even_form(w)[0] == "separable" else 0
    return _some_at_a_time(partial(_upsample.evenly, w=w), w, times, delta)


def _full(like: jax.Array, sizes: tuple[int, ...], w: Window, value: Any, dtype: Any) -> jax.Array:
    """One value everywhere, with the batch and channels of an array."""
    return jnp.full((*like.shape[: like.ndim - w.rank - 1], *sizes, like.shape[-1]), value, dtype)


def _padded_copies(w: Window) -> int:
    """How many padded copies the views are slices of: 1 or 0."""
    return int(any(not is_static([end]) or end > 0 for pair in read_padding(w) for end in pair))


def _some_at_a_time(form: Callable[..., Any], w: Window, times: int, *arrays: jax.Array) -> Any:
    """`form` of so many images that its temporaries, `times` the size of the first array, stay small."""
    shape = arrays[0].shape
    if len(shape) != w.rank + 2 or not is_static(shape) or times * math.prod(shape) < MOST_MATERIALIZED:
        return form(*arrays)
    images = images_at_once(shape[0], times * math.prod(shape[1:]), times=2)
    if images == shape[0]:
        return form(*arrays)
    # A GPU would only wait between the parts.
    return lax.platform_dependent(*arrays, cpu=lambda *arrays: some_images(form, arrays, images), default=form)
