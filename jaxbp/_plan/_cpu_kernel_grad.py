"""Which form evaluates a kernel's gradient on a CPU, and why: as `_cpu` has it for the other sums."""

import math

from .._algorithms import _width_tiling
from .._algorithms._windows import Choice
from .._geometry import ConvGeometry, Window, is_static, read_padding, transposed
from ._cpu_winograd import kernel_grad_tiles
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
    as_blocks,
    gathers_much,
    has_few_positions,
    inside_or_tiles,
    is_short_sum,
    kernel_grad_over_zeros,
    non_overlapping,
    suits_multiply_add,
)

# Where the measurements change sides.
SMALL_WINDOW = 7  # taps
MORE_COLUMNS = 300  # taps times channels of a small window, side by side in one product
MANY_FEATURES = 96
MANY_DELTAS = 1 << 19  # numbers of a whole batch
NARROW = 32  # outputs along the last axis


def kernel_grad_form(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice:
    """The form of the kernel's gradient."""
    w, groups = g.window, g.feature_group_count
    c, o = channels // groups, features // groups
    if not is_static((batch, *w.input_shape, *w.output_shape)):
        return "direct", "sizes are symbolic"
    if over_zeros := kernel_grad_over_zeros(w):
        return over_zeros
    if c > 1 and is_short_sum(g, c, o, FEW_PRODUCTS // 4):
        return "direct", "few weights of one tap: a loop, where a product is mostly overhead"
    if groups == 1 and non_overlapping(as_blocks(w)):
        return "gemm", "windows do not overlap: one matrix product"
    if groups == 1 and non_overlapping(as_blocks(transposed(w))):
        return "swap_operands", "the same sum with input and delta exchanged: windows do not overlap"
    tiles = kernel_grad_tiles(g, batch, channels, features)
    if choice := inside_or_tiles(tiles, g, channels, features, has_few_positions(g, batch, channels, features)):
        return choice
    if groups == 1 and w.rank > 2 and w.window_shape[0] <= MAX_TAPS:
        return "fold_axis", "no fast convolution beyond two dimensions: the first axis becomes channels and images"
    if w.rank == 0:
        return "direct", "no window"
    if groups > 1 and c == 1 and o <= 4 and suits_multiply_add(w, c):
        return "shift_add", "depthwise: products summed over the batch, one reduction for all taps"
    if groups > 1 and w.taps <= MAX_TAPS and c < (FEW_FEATURES if w.taps == 1 else 4):
        return "grouped im2col", "grouped convolutions run as if dense; few channels in a group: some groups at once"
    if groups > 1:
        return "per_group", "grouped convolutions run as if dense"
    if _suits_no_views(g, batch, c, o):
        return "direct", "few channels of few images, or a smaller delta: the compiler's own sum is fast"
    if w.rank == 2 and _suits_mirrored_views(g, batch, c, o):
        if batch * math.prod(w.output_shape) < FEW_POSITIONS:
            return "swap_operands", "few outputs: the same sum with input and delta exchanged has few inputs"
        if w.taps <= FEW_VIEWS and w.taps * o <= MORE_COLUMNS:
            return "swap_operands im2col", "few outputs: views of all taps of delta, times the input"
        return "swap_operands row_im2col", "few outputs: views of one row of taps of delta, times the input"
    if w.rank in (1, 2) and _suits_neighbours_kernel_grad(g, batch, c, o):
        if w.rank == 1 or (_deltas(w, batch, o) >= 2 * MOST_OUTPUTS and o > FEW_FEATURES):
            return "width_tiling im2col", "few channels: windows of neighbouring outputs gathered together: one product"
        return "width_tiling row_im2col", "few channels: windows of neighbouring outputs gathered together: row by row"
    if _suits_steps_of_one_axis(g, batch):
        if w.taps > SMALL_WINDOW or w.taps * c <= FEW_COLUMNS:
            return "im2col", "steps along one axis, few images: views of all taps side by side: one product"
        return "row_im2col", "steps along one axis, few images: a product for each tap"
    if _suits_taps_of_one_axis(g, batch, c, o):
        return "im2col", "delta is large for the views of all taps: one product, where the compiler exchanges delta"
    if _suits_views_of_large_deltas(g, batch, c, o):
        return _views_of_large_delta(w, c, o)
    if w.rank == 2 and _suits_taps(g, batch, c, o):
        return "im2col", "few channels: views of all taps side by side, block by block: one product"
    if w.rank == 2 and w.taps <= MAX_TAPS and _suits_rows(g, batch, c, o):
        if _shares_few_rows(w, c, o):
            return "im2col", "strides: rows of taps share few views; all taps side by side, block by block"
        return "row_im2col", "views of one row of taps side by side, block by block: a product for each row"
    if _suits_few_columns(g, batch, c, o):
        return "row_im2col", "many features for the views of one row of taps: a product for each row"
    larger = math.prod(w.output_shape) > math.prod(w.input_shape)
    unpadded = larger or not any(map(any, read_padding(w)))
    if unpadded and gathers_much(w, batch, c) and max(batch, o) > FEW_FEATURES and w.taps <= MAX_TAPS:
        return "row_im2col", "no padding: XLA:CPU then gathers no windows, which is slow. A GEMM for each row of taps"
    if larger:
        return "pad_input", "the compiler exchanges a delta and a smaller input, and loses its fast convolution"
    return "direct", "a dense convolution is what the compiler does best"


def _suits_views(batch: int, channels: int, fewest: int) -> bool:
    """Whether the compiler's own kernel gradient is slow: on one thread, of few images, or with so many channels."""
    return OLD_COMPILER or batch <= FEW_IMAGES or channels >= fewest


def _suits_no_views(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether the compiler does not exchange delta and the input: few channels of few large images, or of one image."""
    w = g.window
    if w.rank != 2 or batch > FEW_IMAGES or channels > FEW_FEATURES:
        return False
    if OLD_COMPILER and batch == 1 and channels <= 2 and features > FEW_FEATURES and w.taps <= LARGE_WINDOW:
        return True
    positions = math.prod(w.output_shape)
    smaller = {*w.strides, *w.dilation} == {1} and positions < math.prod(w.input_shape)
    return smaller and batch * positions >= MANY_POSITIONS


def _suits_mirrored_views(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether views of delta are far fewer columns than views of the input."""
    w = g.window
    if set(w.strides) != {1} or channels < 2 * features or sum(w.window_shape) > MAX_TAPS:
        return False
    # Delta's views have as many rows as the input, and steps if it is dilated; the input's views as many as delta.
    least = 1.5 if set(w.dilation) == {1} else 2.5
    if channels * math.prod(w.output_shape) < least * features * math.prod(w.input_shape):
        return False
    return _suits_views(batch, channels, max(2 * FEW_FEATURES, 4 * features))


def _suits_neighbours_kernel_grad(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether channels are few: with few features of few images, or many outputs and the compiler's single thread.

    Steps along the rows multiply the rows that are written, and the time that their views take to compile.
    """
    w, columns = g.window, g.window.taps * channels
    rows, step = max(w.window_shape[:-1], default=1), max(w.strides[:-1], default=1)
    deltas, inputs = _deltas(w, batch, features), batch * math.prod(w.input_shape) * channels
    if channels > 8 or rows * step > MAX_ROWS or inputs * step >= MOST_OUTPUTS:
        return False
    if batch <= FEW_IMAGES:
        if features > FEW_FEATURES or columns < FEW_IMAGES * batch or deltas >= 2 * MOST_OUTPUTS:
            return False
        if w.rank == 1 and w.strides == (1,):
            return 2 * features <= FEW_FEATURES and _width_tiling.together(w, features) == _width_tiling.MOST_TOGETHER
        return w.rank == 1 or w.taps > SMALL_WINDOW
    if not OLD_COMPILER or w.rank != 2 or not SMALL_WINDOW < w.taps <= 9 or columns > FEW_COLUMNS:
        return False
    if features < FEW_FEATURES or channels == 8:
        return False
    shared = channels > 1 if w.strides[-1] > 1 else _width_tiling.together(w, features) % 2 == 0
    narrow = w.output_shape[-1] <= NARROW or (features >= 4 * FEW_FEATURES and deltas < 2 * MOST_OUTPUTS)
    return shared and narrow and deltas > MANY_DELTAS


def _suits_steps_of_one_axis(g: ConvGeometry, batch: int) -> bool:
    """Whether the compiler's own kernel gradient, of few images that are its channels, is slow as delta has gaps."""
    w = g.window
    return w.rank == 1 and w.strides != (1,) and batch <= FEW_IMAGES and w.taps <= FEW_VIEWS


def _suits_taps_of_one_axis(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether, along a single axis, views of all taps are few columns for a large delta, or for its many features."""
    w, columns = g.window, g.window.taps * channels
    if w.rank != 1 or w.taps > MORE_VIEWS:
        return False
    few = channels <= FEW_FEATURES and columns <= FEW_COLUMNS
    if few and _is_large_delta(w, batch, features, times=1 if channels < FEW_FEATURES else 2):
        return True
    # Of a single image the compiler's own sum, on two threads, is more exact and about as fast.
    return batch > 1 and features >= max(4 * SOME_FEATURES, 2 * columns)


def _suits_views_of_large_deltas(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether delta, of which the compiler reads all for each tap, does not stay in the cache; or has many features."""
    w = g.window
    if w.rank != 2 or w.taps > MAX_TAPS:
        return False
    if channels >= FEW_FEATURES:
        fewest = FEW_FEATURES if OLD_COMPILER else 2 * FEW_FEATURES
        return features >= 2 * FEW_FEATURES and _deltas(w, batch, features) * features >= MOST_OUTPUTS * fewest
    return _is_large_delta(w, batch, features)


def _is_large_delta(w: Window, batch: int, features: int, times: int = 1) -> bool:
    """Whether delta does not stay in the cache, and has features enough for views of few channels."""
    fewest = 2 * FEW_FEATURES if OLD_COMPILER else 4 * FEW_FEATURES
    return features >= fewest and _deltas(w, batch, features) >= times * MOST_OUTPUTS


def _views_of_large_delta(w: Window, channels: int, features: int) -> Choice:
    """Which views: the fewest numbers to gather, but no product of a few rows by many columns."""
    if channels <= 4 and SOME_FEATURES <= features < MANY_FEATURES and _width_tiling.together(w, features) > 1:
        return "width_tiling im2col", "delta is large: windows of neighbouring outputs together, block by block"
    short = features >= MANY_FEATURES and w.window_shape[-1] * channels < FEW_FEATURES
    at_once = channels >= FEW_FEATURES or short
    few_columns = w.taps * channels <= MORE_COLUMNS or _shares_few_rows(w, channels, features)
    if at_once and w.taps <= MORE_VIEWS and few_columns:
        return "im2col", "delta is large: views of all taps side by side, block by block"
    return "row_im2col", "delta is large: views of one row of taps side by side, block by block"


def _shares_few_rows(w: Window, channels: int, features: int) -> bool:
    """Whether rows of a small window read different rows of the input, as strides skip those between."""
    return w.taps <= 9 and w.strides[0] > 1 and features > channels >= FEW_FEATURES


def _deltas(w: Window, batch: int, features: int) -> int:
    """How many numbers a delta has."""
    return batch * math.prod(w.output_shape) * features


def _suits_taps(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether views of all taps are few columns for their product, which enough outputs share."""
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


def _suits_few_columns(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether delta has far more columns than views of a row of taps, and numbers enough to be worth those."""
    w = g.window
    few = w.rank == 2 and w.taps <= MAX_TAPS and features >= 2 * w.window_shape[-1] * channels
    return few and _deltas(w, batch, features) >= MANY_DELTAS


def _suits_rows(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether views of a row of taps cost less than what the compiler loses by few outputs, strides, or in general."""
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
