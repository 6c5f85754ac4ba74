"""Which algorithm evaluates a kernel's gradient on a CPU, and why. The other two sums are in `_cpu`."""

import math

from .._algorithms import _width_tiling
from .._algorithms._windows import Choice
from .._geometry import ConvGeometry, Window, is_static, read_padding, transposed
from ._cpu_winograd import kernel_grad_winograd
from ._limits import (
    FEW_COLUMNS,
    FEW_FEATURES,
    FEW_IMAGES,
    FEW_POSITIONS,
    FEW_PRODUCTS,
    FEW_VIEWS,
    LARGE_WINDOW,
    MANY_POSITIONS,
    MAX_ROWS,
    MAX_TAPS,
    MORE_VIEWS,
    MOST_OUTPUTS,
    OLD_COMPILER,
    SOME_FEATURES,
    as_patches,
    gathers_much,
    has_few_positions,
    is_short_sum,
    kernel_grad_over_zeros,
    non_overlapping,
    suits_shift_add,
    valid_taps_or_winograd,
)

# Thresholds, measured.
SMALL_WINDOW = 7  # taps
MORE_COLUMNS = 300  # taps times channels of a small window: columns of an im2col
MANY_FEATURES = 96
MANY_DELTAS = 1 << 19  # elements of a whole batch's delta
NARROW = 32  # outputs along the last axis


def kernel_grad_form(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice:
    """The algorithm of the kernel's gradient."""
    w, groups = g.window, g.feature_group_count
    c, o = channels // groups, features // groups
    if not is_static((batch, *w.input_shape, *w.output_shape)):
        return "direct", "sizes are symbolic"
    if over_zeros := kernel_grad_over_zeros(w):
        return over_zeros
    if c > 1 and is_short_sum(g, c, o, FEW_PRODUCTS // 4):
        return "direct", "1x1 with few weights: XLA's loop has less overhead than a GEMM"
    if groups == 1 and non_overlapping(as_patches(w)):
        return "gemm", "windows do not overlap: one GEMM"
    if groups == 1 and non_overlapping(as_patches(transposed(w))):
        return "swap_operands", "with input and delta swapped, windows do not overlap"
    winograd = kernel_grad_winograd(g, batch, channels, features)
    if choice := valid_taps_or_winograd(
        winograd, g, channels, features, has_few_positions(g, batch, channels, features)
    ):
        return choice
    if groups == 1 and w.rank > 2 and w.window_shape[0] <= MAX_TAPS:
        return "fold_axis", "XLA has no fast convolution beyond two dimensions"
    if w.rank == 0:
        return "direct", "no window"
    if groups > 1 and c == 1 and o <= 4 and suits_shift_add(w, c):
        return "shift_add", "depthwise: elementwise sums over the batch, then one reduction for all taps"
    if groups > 1 and w.taps <= MAX_TAPS and c < (FEW_FEATURES if w.taps == 1 else 4):
        return "per_group im2col", "few channels in a group: several groups in one GEMM"
    if groups > 1:
        return "per_group", "XLA runs a grouped convolution as if it were dense"
    if _suits_direct(g, batch, c, o):
        return "direct", "few channels of few images, or a small delta: XLA's own sum is fast"
    if w.rank == 2 and _suits_swapped_views(g, batch, c, o):
        if batch * math.prod(w.output_shape) < FEW_POSITIONS:
            return "swap_operands", "few outputs: with input and delta swapped, few inputs"
        if w.taps <= FEW_VIEWS and w.taps * o <= MORE_COLUMNS:
            return "swap_operands im2col", "few outputs: views of delta have fewer columns than views of the input"
        return "swap_operands row_im2col", "few outputs: views of delta have fewer columns than views of the input"
    if w.rank in (1, 2) and _suits_width_tiling_kernel_grad(g, batch, c, o):
        if w.rank == 1 or (_delta_elements(w, batch, o) >= 2 * MOST_OUTPUTS and o > FEW_FEATURES):
            return "width_tiling im2col", "few channels: several outputs per GEMM row, each pixel is gathered once"
        return "width_tiling row_im2col", "few channels: several outputs per GEMM row, each pixel is gathered once"
    if _suits_strided_axis(g, batch):
        if w.taps > SMALL_WINDOW or w.taps * c <= FEW_COLUMNS:
            return "im2col", "strides along one axis, few images: XLA's sum over a dilated delta is slow"
        return "row_im2col", "strides along one axis, few images: XLA's sum over a dilated delta is slow"
    if _suits_im2col_of_one_axis(g, batch, c, o):
        return "im2col", "delta is larger than the views of all taps: XLA would transpose it"
    if _suits_views_of_large_delta(g, batch, c, o):
        return _views_of_large_delta(w, c, o)
    if w.rank == 2 and _suits_im2col(g, batch, c, o):
        return "im2col", "few channels: the views of all taps have few columns"
    if w.rank == 2 and w.taps <= MAX_TAPS and _suits_row_im2col(g, batch, c, o):
        if _rows_share_little(w, c, o):
            return "im2col", "strides: rows of taps share few views"
        return "row_im2col", "views of one row of taps have few columns, and serve all rows"
    if _suits_row_im2col_of_few_columns(g, batch, c, o):
        return "row_im2col", "many more features than columns in one row of taps"
    larger = math.prod(w.output_shape) > math.prod(w.input_shape)
    unpadded = larger or not any(map(any, read_padding(w)))
    if unpadded and gathers_much(w, batch, c) and max(batch, o) > FEW_FEATURES and w.taps <= MAX_TAPS:
        return "row_im2col", "no padding: XLA would not gather windows, which is slow"
    if larger:
        return "pad_input", "delta larger than the input: XLA would swap them, and lose its fast convolution"
    return "direct", "a dense convolution is what XLA does best"


def _suits_views(batch: int, channels: int, fewest: int) -> bool:
    """Whether XLA's own kernel gradient is slow: on one thread, of few images, or with so many channels."""
    return OLD_COMPILER or batch <= FEW_IMAGES or channels >= fewest


def _suits_direct(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether XLA does not swap delta and the input: few channels of few large images, or of one image."""
    w = g.window
    if w.rank != 2 or batch > FEW_IMAGES or channels > FEW_FEATURES:
        return False
    if OLD_COMPILER and batch == 1 and channels <= 2 and features > FEW_FEATURES and w.taps <= LARGE_WINDOW:
        return True
    positions = math.prod(w.output_shape)
    smaller = {*w.strides, *w.dilation} == {1} and positions < math.prod(w.input_shape)
    return smaller and batch * positions >= MANY_POSITIONS


def _suits_swapped_views(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether views of delta have far fewer columns than views of the input."""
    w = g.window
    if set(w.strides) != {1} or channels < 2 * features or sum(w.window_shape) > MAX_TAPS:
        return False
    # Delta's views have as many rows as the input has pixels, and strides if it is dilated. The input's views have as
    # many rows as delta.
    least = 1.5 if set(w.dilation) == {1} else 2.5
    if channels * math.prod(w.output_shape) < least * features * math.prod(w.input_shape):
        return False
    return _suits_views(batch, channels, max(2 * FEW_FEATURES, 4 * features))


def _suits_width_tiling_kernel_grad(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether channels are few: with few features of few images, or with many outputs where XLA uses one thread.

    Strides along the other axes multiply the rows that are gathered, and the time that their views take to compile.
    """
    w, columns = g.window, g.window.taps * channels
    rows, step = max(w.window_shape[:-1], default=1), max(w.strides[:-1], default=1)
    deltas, inputs = _delta_elements(w, batch, features), batch * math.prod(w.input_shape) * channels
    if channels > 8 or rows * step > MAX_ROWS or inputs * step >= MOST_OUTPUTS:
        return False
    if batch <= FEW_IMAGES:
        if features > FEW_FEATURES or columns < FEW_IMAGES * batch or deltas >= 2 * MOST_OUTPUTS:
            return False
        if w.rank == 1 and w.strides == (1,):
            return (
                2 * features <= FEW_FEATURES and _width_tiling.tile_width(w, features) == _width_tiling.MAX_TILE_WIDTH
            )
        return w.rank == 1 or w.taps > SMALL_WINDOW
    if not OLD_COMPILER or w.rank != 2 or not SMALL_WINDOW < w.taps <= 9 or columns > FEW_COLUMNS:
        return False
    if features < FEW_FEATURES or channels == 8:
        return False
    shared = channels > 1 if w.strides[-1] > 1 else _width_tiling.tile_width(w, features) % 2 == 0
    narrow = w.output_shape[-1] <= NARROW or (features >= 4 * FEW_FEATURES and deltas < 2 * MOST_OUTPUTS)
    return shared and narrow and deltas > MANY_DELTAS


def _suits_strided_axis(g: ConvGeometry, batch: int) -> bool:
    """Whether XLA's own kernel gradient is slow: delta is dilated, and few images are its channels."""
    w = g.window
    return w.rank == 1 and w.strides != (1,) and batch <= FEW_IMAGES and w.taps <= FEW_VIEWS


def _suits_im2col_of_one_axis(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether, along a single axis, views have few columns for a large delta, or for its many features."""
    w, columns = g.window, g.window.taps * channels
    if w.rank != 1 or w.taps > MORE_VIEWS:
        return False
    few = channels <= FEW_FEATURES and columns <= FEW_COLUMNS
    if few and _is_large_delta(w, batch, features, times=1 if channels < FEW_FEATURES else 2):
        return True
    # Of a single image XLA's own sum, on two threads, is more exact and about as fast.
    return batch > 1 and features >= max(4 * SOME_FEATURES, 2 * columns)


def _suits_views_of_large_delta(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether delta, which XLA reads once per tap, does not stay in the cache, or has many features."""
    w = g.window
    if w.rank != 2 or w.taps > MAX_TAPS:
        return False
    if channels >= FEW_FEATURES:
        fewest = FEW_FEATURES if OLD_COMPILER else 2 * FEW_FEATURES
        return features >= 2 * FEW_FEATURES and _delta_elements(w, batch, features) * features >= MOST_OUTPUTS * fewest
    return _is_large_delta(w, batch, features)


def _is_large_delta(w: Window, batch: int, features: int, times: int = 1) -> bool:
    """Whether delta does not stay in the cache, and has enough features for views of few channels."""
    fewest = 2 * FEW_FEATURES if OLD_COMPILER else 4 * FEW_FEATURES
    return features >= fewest and _delta_elements(w, batch, features) >= times * MOST_OUTPUTS


def _views_of_large_delta(w: Window, channels: int, features: int) -> Choice:
    """Which views: the fewest elements to gather, but no GEMM of few rows and many columns."""
    if channels <= 4 and SOME_FEATURES <= features < MANY_FEATURES and _width_tiling.tile_width(w, features) > 1:
        return "width_tiling im2col", "delta is larger than the cache, few channels: several outputs per GEMM row"
    short = features >= MANY_FEATURES and w.window_shape[-1] * channels < FEW_FEATURES
    at_once = channels >= FEW_FEATURES or short
    few_columns = w.taps * channels <= MORE_COLUMNS or _rows_share_little(w, channels, features)
    if at_once and w.taps <= MORE_VIEWS and few_columns:
        return "im2col", "delta is larger than the cache: XLA would read it once per tap"
    return "row_im2col", "delta is larger than the cache: XLA would read it once per tap"


def _rows_share_little(w: Window, channels: int, features: int) -> bool:
    """Whether the rows of a small window read different rows of the input, because of strides."""
    return w.taps <= 9 and w.strides[0] > 1 and features > channels >= FEW_FEATURES


def _delta_elements(w: Window, batch: int, features: int) -> int:
    """How many elements a delta has."""
    return batch * math.prod(w.output_shape) * features


def _suits_im2col(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether views of all taps have few columns, and many rows."""
    w, positions = g.window, batch * math.prod(g.window.output_shape)
    columns = w.taps * channels
    fewest = FEW_FEATURES if channels > 1 else 4 * FEW_FEATURES
    if features < fewest or not _suits_views(batch, features, MANY_FEATURES):
        return False
    if w.taps <= SMALL_WINDOW and columns <= MORE_COLUMNS:
        return positions >= FEW_POSITIONS
    narrow = w.output_shape[-1] <= NARROW and features >= 2 * FEW_FEATURES
    worth = channels == 8 and (narrow or features >= 4 * FEW_FEATURES)
    return worth and columns <= FEW_COLUMNS and positions >= MANY_POSITIONS and batch > FEW_IMAGES


def _suits_row_im2col_of_few_columns(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether delta has far more columns than the views of one row of taps, and enough elements."""
    w = g.window
    few = w.rank == 2 and w.taps <= MAX_TAPS and features >= 2 * w.window_shape[-1] * channels
    return few and _delta_elements(w, batch, features) >= MANY_DELTAS


def _suits_row_im2col(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether views of one row of taps cost less than what XLA loses by few outputs, strides, or in general."""
    w, positions = g.window, batch * math.prod(g.window.output_shape)
    columns, fewest = w.taps * channels, min(channels, features)
    if not _suits_views(batch, features, 16 * FEW_FEATURES):
        return False
    if batch <= FEW_IMAGES and features <= FEW_FEATURES:
        return channels > 1 and columns >= 4 * features
    if fewest < FEW_FEATURES or not 3 * features <= columns <= 50 * features:
        return False
    if set(w.strides) != {1} or fewest >= MANY_FEATURES:
        return True
    return positions >= 2 * FEW_POSITIONS and (fewest >= 3 * FEW_FEATURES or features < 2 * FEW_FEATURES)
