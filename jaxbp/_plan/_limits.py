"""Thresholds that several choices share, and what several of them ask of a window."""

import math

import jaxlib

from .._algorithms import _valid_taps
from .._algorithms._windows import Choice
from .._geometry import ConvGeometry, Window

# It runs narrow convolutions, kernel gradients among them, on one thread. Without padding it gathers no windows.
OLD_COMPILER = jaxlib.version.__version_info__ < (0, 11)

# Thresholds, measured.
MAX_TAPS = 64  # that are unrolled
MAX_ROWS = 16  # of a window, concatenated for a Toeplitz matrix
FEW_PRODUCTS = 64  # channels times features
FEW_VIEWS = 16  # taps whose views are worth their compile time
MORE_VIEWS = 28  # the same for few channels
LARGE_WINDOW = 25  # taps
FEW_COLUMNS = 72  # taps times channels: columns of an im2col
FEW_FEATURES = 16
SOME_FEATURES = 64
FEW_IMAGES = 4  # of a batch
FEW_POSITIONS = 1 << 9  # of a whole batch
MANY_POSITIONS = 1 << 12
LARGE_EXAMPLE = 1 << 13  # elements of an input, from which on kernel gradients under vmap run one by one
MOST_OUTPUTS = 1 << 21  # elements: 8 MiB of float32, which stay in the cache and may be copied
SHIFT_ADD_TERMS = 40  # taps times channels of a group
MANY_WEIGHTS = 256  # of a tap, for each position
MOST_GATHERED = 1 << 21  # elements that the windows of a whole batch read
MOST_VALID = 0.6  # share of what windows read that is inside the input, for a GEMM per tap


def non_overlapping(w: Window) -> bool:
    """Whether every pixel lies in one window at most, and windows are patches or single pixels."""
    if any(d > 1 for d in w.input_dilation):
        return False
    return w.taps == 1 or (w.window_shape == w.strides and set(w.dilation) <= {1})


def as_patches(w: Window) -> Window:
    """The same windows as patches, where they are: the stride is free along an axis that has one window."""
    steps = zip(w.window_shape, w.strides, w.output_shape, strict=True)
    patches = w._replace(strides=tuple(k if out == 1 else s for k, s, out in steps))
    return patches if non_overlapping(patches) else w


def kernel_grad_over_zeros(w: Window) -> Choice | None:
    """The algorithm of a kernel's gradient with input dilation, on every platform."""
    if all(d == 1 for d in w.input_dilation):
        return None
    if all(s == 1 for s in w.strides):
        return "swap_operands", "input dilation: with input and delta swapped, it is a stride"
    return "direct", "both strides and input dilation"


def is_short_sum(g: ConvGeometry, channels: int, features: int, most: int) -> bool:
    """Whether a single tap, at stride 1 in one or two dimensions, has few weights: at most `most`."""
    w = g.window
    steps = {g.feature_group_count, w.taps, *w.strides, *w.input_dilation}
    return w.rank in (1, 2) and steps == {1} and max(channels, features) <= 8 and channels * features <= most


def suits_shift_add(w: Window, channels: int) -> bool:
    """Whether a group's sum has few terms; for one channel, that of one row of taps."""
    if channels == 1:
        return w.taps // max(w.window_shape, default=1) <= MAX_TAPS
    return channels * w.taps <= SHIFT_ADD_TERMS


def valid_taps_or_winograd(
    winograd: Choice | None, g: ConvGeometry, channels: int, features: int, few_positions: bool
) -> Choice | None:
    """`valid_taps` where much is padding; else Winograd, if any; else `valid_taps` where positions are few."""
    if _suits_valid_taps(g, channels, features) and _valid_taps.valid_share(g.window) <= MOST_VALID:
        return "valid_taps", "much padding: a GEMM per tap, no products with zeros"
    if winograd or not few_positions:
        return winograd
    return "valid_taps", "few positions, many weights: a GEMM per tap, no products with zeros"


def has_few_positions(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether a few taps have few positions for their weights, and GEMMs are not too narrow."""
    positions = batch * math.prod(g.window.output_shape)
    return _suits_valid_taps(g, channels, features) and MANY_WEIGHTS * positions <= channels * features


def _suits_valid_taps(g: ConvGeometry, channels: int, features: int) -> bool:
    """Whether taps are few, and their GEMMs not too narrow."""
    dense = {*g.window.input_dilation, g.feature_group_count} == {1}
    return dense and 1 < g.window.taps <= FEW_VIEWS and min(channels, features) >= FEW_FEATURES


def gathers_much(w: Window, batch: int, channels: int) -> bool:
    """Whether windows have so many elements that a compiler that does not gather them is slow."""
    return OLD_COMPILER and w.rank == 2 and batch * math.prod(w.output_shape) * w.taps * channels >= MOST_GATHERED
