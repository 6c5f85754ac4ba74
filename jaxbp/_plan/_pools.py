"""Which algorithm evaluates a map of a pool, on every platform."""

import math

from .._algorithms._upsample import WINDOWS_AT_ONCE, blocks_of
from .._geometry import PoolProblem, Window, read_padding
from ._row import Row, always

FEW_TAPS = 8  # at stride 1, in at most two dimensions: each tap's view is padded by itself
FEW_STRIDED_TAPS = 12  # the same for strided windows, in any number of dimensions
TAPS_AT_ONCE = 16  # more are pooled separably: as many steps as the sum of the window's sizes, not as their product


def _pads_few_views(w: Window) -> bool:
    """Padding the views of a few taps costs less than a padded copy of the input."""
    strided = not set(w.strides) <= {1}
    few = w.taps <= FEW_STRIDED_TAPS if strided else w.taps <= FEW_TAPS and w.rank < 3
    return few and any(max(pair) > 0 for pair in read_padding(w))


def _windows_of_a_pixel(p: PoolProblem) -> int:
    """How many windows reach a pixel at most."""
    return math.prod(blocks_of(p.window).reach)


SEPARABLE = "large window: one axis after the other, by runs of 1, 2, 4, ... pixels"
PER_PHASE = Row(
    lambda p: _windows_of_a_pixel(p) > 1,
    "per_phase",
    "windows overlap: in a phase of pixels a window has one constant tap",
)
TABLES = {
    "max_pool": [
        Row(lambda p: p.window.taps <= TAPS_AT_ONCE, "views", "small window: one shifted view of the input per tap"),
        Row(always, "separable", SEPARABLE),
    ],
    "take_winners": [Row(always, "views", "one shifted view of the input per tap")],
    "upsample_winners": [
        PER_PHASE,
        Row(always, "gather", "compare the winner of each window that reaches a pixel with the pixel's tap"),
    ],
    "upsample_chosen": [
        PER_PHASE,
        Row(
            lambda p: _windows_of_a_pixel(p) <= WINDOWS_AT_ONCE,
            "gather",
            "few windows reach a pixel: compare the winner of each with the pixel's tap",
        ),
        Row(always, "separable", "many windows reach a pixel: one axis after the other"),
    ],
    "unpool_winners": [Row(always, "gather", "compare the winner of each window that reaches a pixel with its tap")],
    "window_sum": [
        Row(lambda p: 1 in p.window.output_shape, "separable", "one window along an axis: one reduction"),
        Row(lambda p: _pads_few_views(p.window), "valid_views", "few taps: each one's view is padded, not the input"),
        Row(lambda p: p.window.taps <= TAPS_AT_ONCE, "views", "small window: one shifted view of the input per tap"),
        Row(always, "separable", SEPARABLE),
    ],
    "upsample_evenly": [
        Row(lambda p: p.window.window_shape == p.window.strides, "gather", "windows do not overlap: delta is repeated"),
        Row(always, "separable", "the transpose of a sum, one axis after the other"),
    ],
}
