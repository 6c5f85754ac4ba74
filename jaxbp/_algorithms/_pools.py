"""The algorithms of the maps of pools: where each is correct, and how it runs.

Large temporaries do not stay in the cache of a CPU, and their pages are mapped anew on every call. So on a CPU an
algorithm with large ones takes some images at a time. Arrays are (N, *spatial, C).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from .._arguments import sum_dtype
from .._geometry import PoolProblem, Window, is_static, read_padding
from . import _upsample, _windows
from ._tiles import MOST_MATERIALIZED, images_at_once, some_images


def _none(w: Window) -> int:
    """No temporaries."""
    return 0


def _everywhere(w: Window) -> bool:
    """For all windows."""
    return True


class Algorithm(NamedTuple):
    """`form(*arrays, w)`; its temporaries, in sizes of the first array; the windows for which it is made."""

    form: Callable[..., Any]
    copies: Callable[[Window], int] = _none
    suits: Callable[[Window], bool] = _everywhere

    def applies(self, p: PoolProblem) -> bool:
        """Whether it is made for the map's windows."""
        return self.suits(p.window)

    def run(self, *arrays: jax.Array, p: PoolProblem) -> Any:
        """The map; on a CPU of so many images at a time that temporaries stay small."""
        form, shape = partial(self.form, w=p.window), arrays[0].shape
        copies = self.copies(p.window) if p.platform == "cpu" and not p.symbolic else 0
        if copies * math.prod(shape) < MOST_MATERIALIZED:
            return form(*arrays)
        return some_images(form, arrays, images_at_once(shape[0], copies * math.prod(shape[1:]), times=2))


def _few_taps(w: Window) -> bool:
    """Whether all taps may be unrolled."""
    return w.taps <= _windows.MAX_TAPS


def _few_known_taps(w: Window) -> bool:
    """The same, and sizes are known."""
    return _few_taps(w) and is_static(w.input_shape)


def _padded(w: Window) -> int:
    """How many padded copies the views are slices of: 1 or 0."""
    return int(any(not is_static([end]) or end > 0 for pair in read_padding(w) for end in pair))


def _one_for_each_axis(w: Window) -> int:
    """A copy along each axis."""
    return w.rank


def _two_for_each_axis(w: Window) -> int:
    """Pixels, or delta, and winners along each axis."""
    return 2 * w.rank


def _padded_winners(w: Window) -> int:
    """Delta and winners padded, and winners as int32."""
    return 3 * _windows.overlaps(w)


def _summed(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The sum in the dtype in which sums are accumulated."""
    return lambda x, w: form(x.astype(sum_dtype(x.dtype)), w)


BY_WINNERS = {
    "per_phase": Algorithm(_upsample.winners_per_phase, _padded_winners, _upsample.few_phases),
    "gather": Algorithm(_upsample.winners_gathered, _padded_winners),
}
# By the names of the primitives.
ALGORITHMS = {
    "max_pool": {
        "views": Algorithm(_windows.max_of_views, _padded, _few_taps),
        "separable": Algorithm(_windows.max_separably, _two_for_each_axis),
    },
    "take_winners": {"views": Algorithm(_windows.take_winners)},
    "upsample_winners": BY_WINNERS,
    "upsample_chosen": {**BY_WINNERS, "separable": Algorithm(_upsample.winners_separably, _two_for_each_axis)},
    "unpool_winners": {"gather": Algorithm(_upsample.unpool)},
    "window_sum": {
        "views": Algorithm(_summed(_windows.sum_of_views), _padded, _few_taps),
        "separable": Algorithm(_summed(_windows.sum_separably), _one_for_each_axis),
        "valid_views": Algorithm(_summed(_windows.sum_of_valid_views), suits=_few_known_taps),
    },
    "upsample_evenly": {
        "gather": Algorithm(_upsample.evenly_gathered),
        "separable": Algorithm(_upsample.evenly_separably, _one_for_each_axis),
    },
}
