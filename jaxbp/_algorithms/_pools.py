"""Sums and maxima of pools. On a CPU, of some images at a time where temporaries are large.

Large temporaries do not stay in the cache, and their pages are mapped anew on every call. Algorithms without
temporaries take all images at once.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax

from .._geometry import Window, is_static, read_padding
from . import _upsample, _windows
from ._tiles import MOST_MATERIALIZED, images_at_once, some_images


def max_and_winners(x: jax.Array, w: Window) -> tuple[jax.Array, jax.Array]:
    """`_windows.max_and_winners`. Temporaries: pixels and winners along each axis, or a padded copy."""
    times = 2 * w.rank if _windows.max_form(w)[0] == "separable" else _padded_copies(w)
    return _some_at_a_time(partial(_windows.max_and_winners, w=w), w, times, x)


def window_sum(x: jax.Array, w: Window) -> jax.Array:
    """`_windows.window_sum`. Temporaries: a copy along each axis, or a padded copy."""
    times = {"separable": w.rank, "views": _padded_copies(w)}.get(_windows.sum_form(w)[0], 0)
    return _some_at_a_time(partial(_windows.window_sum, w=w), w, times, x)


def by_winners(delta: jax.Array, winners: jax.Array, w: Window, chosen: bool = False) -> jax.Array:
    """`_upsample.by_winners`. Temporaries: delta and winners along each axis; or both padded, and winners as int32."""
    times = 2 * w.rank if _upsample.winners_form(w, chosen)[0] == "separable" else 3 * _windows.overlaps(w)
    return _some_at_a_time(partial(_upsample.by_winners, w=w, chosen=chosen), w, times, delta, winners)


def evenly(delta: jax.Array, w: Window) -> jax.Array:
    """`_upsample.evenly`. Temporaries: a copy along each axis."""
    times = w.rank if _upsample.even_form(w)[0] == "separable" else 0
    return _some_at_a_time(partial(_upsample.evenly, w=w), w, times, delta)


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
