"""The sums and maxima of pools, on a CPU some images at a time where what a form writes on the way is large.

Large temporaries leave the cache, and their pages are mapped anew on every call. Forms that write nothing on the way
take all images at once.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax

from .._geometry import Window, is_static, read_padding
from . import _upsample, _windows
from ._tiles import MOST_WRITTEN, images_at_once, some_images


def max_and_winners(x: jax.Array, w: Window) -> tuple[jax.Array, jax.Array]:
    """`_windows.max_and_winners`: along each axis a copy of the pixels and one of their winners, or a padded copy."""
    times = 2 * w.rank if _windows.max_form(w)[0] == "axis by axis" else _padded_copies(w)
    return _some_at_a_time(partial(_windows.max_and_winners, w=w), w, times, x)


def window_sum(x: jax.Array, w: Window) -> jax.Array:
    """`_windows.window_sum`: along each axis a copy, or a padded copy."""
    times = {"axis by axis": w.rank, "views": _padded_copies(w)}.get(_windows.sum_form(w)[0], 0)
    return _some_at_a_time(partial(_windows.window_sum, w=w), w, times, x)


def by_winners(delta: jax.Array, winners: jax.Array, w: Window, chosen: bool = False) -> jax.Array:
    """`_upsample.by_winners`: along each axis copies of delta and of the winners; or of both, and wide winners."""
    times = 2 * w.rank if _upsample.winners_form(w, chosen)[0] == "axis by axis" else 3 * _windows.overlaps(w)
    return _some_at_a_time(partial(_upsample.by_winners, w=w, chosen=chosen), w, times, delta, winners)


def evenly(delta: jax.Array, w: Window) -> jax.Array:
    """`_upsample.evenly`: along each axis a copy."""
    times = w.rank if _upsample.even_form(w)[0] == "axis by axis" else 0
    return _some_at_a_time(partial(_upsample.evenly, w=w), w, times, delta)


def _padded_copies(w: Window) -> int:
    """Whether views are cut out of a padded copy: 1 or 0."""
    return int(any(not is_static([end]) or end > 0 for pair in read_padding(w) for end in pair))


def _some_at_a_time(form: Callable[..., Any], w: Window, times: int, *arrays: jax.Array) -> Any:
    """`form` of so many images that it writes few numbers: `times` as many as the first array has."""
    shape = arrays[0].shape
    if len(shape) != w.rank + 2 or not is_static(shape) or times * math.prod(shape) < MOST_WRITTEN:
        return form(*arrays)
    images = images_at_once(shape[0], times * math.prod(shape[1:]), times=2)
    if images == shape[0]:
        return form(*arrays)
    # A GPU would only wait between the parts.
    return lax.platform_dependent(*arrays, cpu=lambda *arrays: some_images(form, arrays, images), default=form)
