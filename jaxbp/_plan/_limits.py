"""Where the measurements change sides for more than one choice, and what several of them ask of a window."""

import math

import jaxlib

from .._algorithms import _valid_taps
from .._algorithms._windows import Choice
from .._geometry import ConvGeometry, Window

# It leaves narrow convolutions, kernel gradients among them, to one thread; where nothing is padded it gathers nothing.
OLD_COMPILER = jaxlib.version.__version_info__ < (0, 11)

# Where the measurements change sides.
MAX_TAPS = 64  # that are written out one by one
MAX_ROWS = 16  # of a window, side by side before a banded matrix
FEW_PRODUCTS = 64  # channels times features, for which every tap's part is a product of its own
FEW_VIEWS = 16  # taps side by side or one by one, that are worth their compile time
MORE_VIEWS = 28  # the same for few channels
LARGE_WINDOW = 25  # taps
FEW_COLUMNS = 72  # taps times channels, side by side in one product
FEW_FEATURES = 16
SOME_FEATURES = 64
FEW_IMAGES = 4  # of a batch
FEW_POSITIONS = 1 << 9  # of a whole batch
MANY_POSITIONS = 1 << 12
LARGE_EXAMPLE = 1 << 13  # numbers of an input, whose kernel gradient under vmap is faster by itself
MOST_OUTPUTS = 1 << 21  # numbers: 8 MiB of float32 that stay in the cache, and may be copied
MULTIPLY_ADD_TERMS = 40  # taps times channels of a group
MANY_WEIGHTS = 256  # of a tap, for each position
MOST_GATHERED = 1 << 21  # numbers that the windows of a whole batch read
MOST_INSIDE = 0.6  # of what windows read, for a product for each tap


def non_overlapping(w: Window) -> bool:
    """Whether every pixel lies in one window at most, and windows are blocks or single pixels."""
    if any(d > 1 for d in w.input_dilation):
        return False
    return w.taps == 1 or (w.window_shape == w.strides and set(w.dilation) <= {1})


def as_blocks(w: Window) -> Window:
    """The same windows with other strides, where that makes them blocks: one alone along an axis takes no step."""
    steps = zip(w.window_shape, w.strides, w.output_shape, strict=True)
    blocks = w._replace(strides=tuple(k if out == 1 else s for k, s, out in steps))
    return blocks if non_overlapping(blocks) else w


def kernel_grad_over_zeros(w: Window) -> Choice | None:
    """The form of a kernel's gradient where zeros stand between the input's pixels, on every platform."""
    if all(d == 1 for d in w.input_dilation):
        return None
    if all(s == 1 for s in w.strides):
        return "swap_operands", "the same sum with input and delta exchanged has strides in place of zeros"
    return "direct", "strides and input dilation together"


def is_short_sum(g: ConvGeometry, channels: int, features: int, most: int) -> bool:
    """Whether a single tap, at stride 1 in one or two dimensions, has so few weights."""
    w = g.window
    steps = {g.feature_group_count, w.taps, *w.strides, *w.input_dilation}
    return w.rank in (1, 2) and steps == {1} and max(channels, features) <= 8 and channels * features <= most


def suits_multiply_add(w: Window, channels: int) -> bool:
    """Whether the sum of a group's taps, or for one channel that of one of their rows, is short."""
    if channels == 1:
        return w.taps // max(w.window_shape, default=1) <= MAX_TAPS
    return channels * w.taps <= MULTIPLY_ADD_TERMS


def inside_or_tiles(
    tiles: Choice | None, g: ConvGeometry, channels: int, features: int, few_positions: bool
) -> Choice | None:
    """Every tap by itself where much is padding; else the form in tiles, if any; else taps where positions are few."""
    if _suits_inside(g, channels, features) and _valid_taps.share_inside(g.window) <= MOST_INSIDE:
        return "valid_taps", "much padding: every tap by itself, without the zeros"
    if tiles or not few_positions:
        return tiles
    return "valid_taps", "few positions for the weights: every tap by itself, without the zeros"


def has_few_positions(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether a few taps have few positions for their weights, and products are not too narrow."""
    positions = batch * math.prod(g.window.output_shape)
    return _suits_inside(g, channels, features) and MANY_WEIGHTS * positions <= channels * features


def _suits_inside(g: ConvGeometry, channels: int, features: int) -> bool:
    """Whether taps are few, and their products not too narrow."""
    dense = {*g.window.input_dilation, g.feature_group_count} == {1}
    return dense and 1 < g.window.taps <= FEW_VIEWS and min(channels, features) >= FEW_FEATURES


def gathers_much(w: Window, batch: int, channels: int) -> bool:
    """Whether windows are so many numbers that it shows how slow a compiler is that gathers none."""
    return OLD_COMPILER and w.rank == 2 and batch * math.prod(w.output_shape) * w.taps * channels >= MOST_GATHERED
