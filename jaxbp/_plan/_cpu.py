"""Which form evaluates a map on a CPU, and why. One function per map, from geometry, batch and channels alone.

The kernel's gradient has its choice in `_cpu_kernel_grad`; what both ask of a window is in `_limits`.
The reasons are measurements on x86 CPUs (BENCHMARKS.md). Every other platform uses the textbook forms for
convolutions, which their libraries run well. Each function returns the form's name and the reason.
"""

import math

from .._algorithms import _pack_batch, _subpixel, _valid_taps, _width_tiling
from .._algorithms._tiles import TILE_ELEMENTS
from .._algorithms._windows import Choice
from .._geometry import ConvGeometry, Window, is_static, transposed
from ._cpu_kernel_grad import kernel_grad_form
from ._cpu_winograd import forward_tiles
from ._limits import (
    FEW_COLUMNS,
    FEW_FEATURES,
    FEW_IMAGES,
    FEW_POSITIONS,
    FEW_PRODUCTS,
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
    non_overlapping,
    suits_multiply_add,
)

# Where the measurements change sides.
DENSE_MULTIPLY_ADD_TERMS = 32  # taps times channels of a single group
FEW_WEIGHTS = 512  # of all taps
MOST_ZEROS = 8  # numbers of a banded matrix for each that is a weight
FEW_BANDS = 20  # channels times features, for which a banded matrix may be mostly zeros
MOST_PARTS = 1 << 17  # numbers: an image's outputs, each tap's by itself, of which some images fit the cache
SOME_COLUMNS = 81  # taps times channels, side by side in one product
MULTIPLICATIONS = 100  # for each number that is copied
FEWEST_MULTIPLICATIONS = 1 << 22  # that are worth a second copy of the outputs
MOST_SHARED = 4  # parts of an output along one axis, which are added up one by one
MUCH_PADDING = 1.25  # outputs for each pixel, and more
FEWEST_SUMMED = 12  # channels for each part
LITTLE_PADDING = 0.8  # of what windows read, at least, is not padding
MOST_PADDED = 3  # taps of a window for each pixel of its input, which is padded for a few images


def forward_form(g: ConvGeometry, batch: int, channels: int, features: int, back: bool = False) -> Choice:
    """The form of a forward sum with `channels` inputs and `features` outputs; `back`: of delta, as a gradient."""
    w, groups = g.window, g.feature_group_count
    c = channels // groups
    if not is_static((batch, *w.input_shape, *w.output_shape)):
        return "direct", "sizes are symbolic"
    if is_short_sum(g, channels, features, FEW_PRODUCTS // 2):
        return "direct", "few weights of one tap: a loop, where a product is mostly overhead"
    if groups == 1 and non_overlapping(as_blocks(w)):
        return "gemm", "windows do not overlap: one matrix product"
    if groups == 1 and non_overlapping(as_blocks(transposed(w))):
        return "transposed gemm", "windows do not overlap: one matrix product, put in place"
    if any(d > 1 for d in w.input_dilation):
        outputs = math.prod(w.output_shape) * features
        if _suits_parts_in_place(g, batch, channels, features):
            return "kn2row", "zeros between the input's pixels: each pixel times all weights, put in place"
        if not steps_over_zeros(w) and _suits_sub_pixel(g, batch, channels, features):
            return "subpixel", "zeros between the input's pixels are left out: more outputs, put side by side"
        if groups == 1 and features >= 8 and batch * outputs > MOST_OUTPUTS:
            return "per_image", "the compiler skips the zeros itself, but slows down beyond the cache"
        return "direct", "the compiler skips the zeros itself"
    if groups > 1 and suits_multiply_add(w, c):
        return "shift_add", "few channels in a group: a short elementwise sum"
    if groups == 1 and c * w.taps <= DENSE_MULTIPLY_ADD_TERMS and c * w.taps * features <= FEW_WEIGHTS:
        return "shift_add", "few weights: a short elementwise sum"
    if groups == 1 and _suits_bands(g, batch, c, features):
        return "toeplitz", "few channels, a large window: rows of pixels times a banded matrix"
    if _suits_neighbours_forward(g, batch, channels, features):
        return "width_tiling", "few channels: windows of neighbouring outputs gathered together, one matrix product"
    if OLD_COMPILER and _suits_taps_forward(g, batch, channels, features):
        return "im2col", "few channels, narrow images: views of all taps side by side, for two threads"
    if groups > 1:
        return "per_group", "grouped convolutions run as if dense"
    if set(w.strides) <= {1} and _suits_few_parts(g, batch, channels, features):
        return "kn2row", "few outputs: one matrix product, then shifted sums"
    few_positions = not _takes_steps_inside(w) and has_few_positions(g, batch, channels, features)
    tiles = forward_tiles(g, batch, channels, features)
    if choice := inside_or_tiles(tiles, g, channels, features, few_positions):
        return choice
    if back and _suits_few_pixels(g, batch, channels, features):
        return "kn2row", "few pixels for the weights, which are read as they are: each pixel times all of them"
    if w.rank > 2 and w.window_shape[0] <= MAX_TAPS:
        return "fold_axis", "no fast convolution beyond two dimensions: the first axis becomes channels and images"
    if w.taps > (inputs := math.prod(w.input_shape)):
        if batch <= FEW_IMAGES and w.taps <= MOST_PADDED * inputs:
            return "pad_input", "the compiler exchanges a window and a smaller input, and loses its fast convolution"
        return "swap_operands", "a window slides over a smaller input: the same sum with input and kernel exchanged"
    if _suits_padded_parts(w, channels, features):
        return "kn2row", "much padding, few outputs: each pixel times all weights, then shifted sums"
    if OLD_COMPILER and _suits_side_by_side(g, batch, channels, features):
        return "pack_batch", "narrow images: the compiler leaves them to one thread"
    if not any(map(any, w.padding)) and gathers_much(w, batch, c) and max(c, features) > FEW_FEATURES:
        return (
            "pad_row",
            "nothing is padded, so the compiler gathers no windows, which is slow",
        )
    return "direct", "a dense convolution is what the compiler does best"


def input_grad_form(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice:
    """The form of the input's gradient: of the forward sum that takes delta back."""
    choice = forward_form(g._replace(window=transposed(as_blocks(g.window))), batch, features, channels, back=True)
    narrow = choice[0] == "pack_batch" and forward_form(g, batch, channels, features)[0] == "pack_batch"
    if narrow and kernel_grad_form(g, batch, channels, features)[0] == "direct":
        return "direct", "narrow images: one thread, beside the kernel's gradient on another"
    return choice


def steps_over_zeros(w: Window) -> bool:
    """Whether windows take steps along an axis that has zeros between the input's pixels."""
    return any(s > 1 for s, d in zip(w.strides, w.input_dilation, strict=True) if d > 1)


def _suits_sub_pixel(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether the compiler, which skips zeros itself, is slower: few channels, or a long window, or a large one."""
    w, outputs = g.window, math.prod(g.window.output_shape) * features
    if g.feature_group_count > 1 or w.rank > 2 or _shares_much(w):
        return True
    places = _subpixel.block_window(w).taps * math.prod(w.input_dilation)
    if w.rank == 2 and w.taps > LARGE_WINDOW and features <= 4:
        return channels * places <= 2 * FEW_FEATURES * min(features, 3) * w.taps
    if outputs > MOST_OUTPUTS:
        return False
    if _divides(w):
        return features > (1 if w.rank == 2 else 7)
    multiplications = batch * outputs * channels * w.taps // math.prod(w.input_dilation)
    few = channels * places <= SOME_FEATURES * w.taps or w.taps > math.prod(w.input_shape)
    return few and features >= 8 and multiplications >= FEWEST_MULTIPLICATIONS


def _suits_parts_in_place(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether an image's parts fit the cache, and there are channels enough to sum over where more outputs would do."""
    pixels = batch * math.prod(g.window.input_shape)
    if g.feature_group_count > 1 or not _has_few_parts(g.window, features):
        return False
    if _shares_much(g.window) and pixels > channels:
        return False
    if pixels <= FEW_FEATURES * channels or not _suits_sub_pixel(g, batch, channels, features):
        return True
    return channels >= 2 * FEW_FEATURES and not _divides(g.window)


def _suits_few_parts(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether outputs are few, or their parts, one for each tap of each pixel, fewer than what windows would gather."""
    w, pixels, outputs = g.window, math.prod(g.window.input_shape), math.prod(g.window.output_shape)
    parts = w.taps * features * pixels
    cheap = 2 * FEW_PRODUCTS if w.rank > 2 or w.taps * features * outputs <= MOST_PARTS else FEW_PRODUCTS
    if features <= 4 and channels * features <= cheap and w.taps <= DENSE_MULTIPLY_ADD_TERMS:
        return True
    if w.taps == 1 or sum(w.window_shape) > MAX_TAPS or (w.rank == 1 and features > FEW_FEATURES):
        return False
    # Along one axis the compiler gathers faster.
    gathered = channels * outputs if w.rank == 1 else 3 * channels * outputs
    few = 2 * parts <= gathered and max(parts, channels * pixels) <= 2 * MOST_OUTPUTS
    return few and not forward_tiles(g, batch, channels, features)


def _suits_padded_parts(w: Window, channels: int, features: int) -> bool:
    """Whether more of what windows read is padding than parts cost: a few features' for each tap of each pixel."""
    pixels, outputs = math.prod(w.input_shape), math.prod(w.output_shape)
    if w.rank != 2 or {*w.strides, *w.input_dilation} != {1} or sum(w.window_shape) > MAX_TAPS:
        return False
    if not 1 < w.taps <= pixels or outputs < MUCH_PADDING * pixels:
        return False
    return channels >= FEWEST_SUMMED and 4 * features * pixels <= channels * outputs


def _takes_steps_inside(w: Window) -> bool:
    """Whether the compiler gathers faster than taps read: steps along a single axis, and little padding."""
    return w.rank == 1 and w.strides != (1,) and _valid_taps.share_inside(w) > LITTLE_PADDING


def _suits_few_pixels(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether a rotated copy of the weights would be larger than the parts of the few pixels."""
    pixels = batch * math.prod(g.window.input_shape)
    several = g.window.taps > 1 and set(g.window.strides) == {1}
    return several and channels >= max(FEW_FEATURES, pixels / 4) and _has_few_parts(g.window, features)


def _has_few_parts(w: Window, features: int) -> bool:
    """Whether the parts of an image's outputs, one for each tap of each pixel, fit the cache; of a window not long."""
    return sum(w.window_shape) <= MAX_TAPS and w.taps * features * math.prod(w.input_shape) <= MOST_OUTPUTS


def _shares_much(w: Window) -> bool:
    """Whether, along a single axis, many pixels have a part in each output."""
    return w.rank == 1 and w.taps > MOST_SHARED * w.input_dilation[0]


def _divides(w: Window) -> bool:
    """Whether the distance between pixels divides the window along every axis: no weight of a block of outputs is 0."""
    facts = zip(w.window_shape, w.dilation, w.input_dilation, strict=True)
    return all(s == 1 or (k % s == 0 and d == 1) for k, d, s in facts)


def _suits_bands(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether a window is large enough for its banded matrix, which then has rows and columns enough to multiply."""
    w = g.window
    if w.rank != 2 or w.taps < LARGE_WINDOW or w.window_shape[0] > MAX_ROWS or g.precision is not None:
        return False
    if _suits_padded_parts(w, channels, features):
        return False
    zeros = MOST_ZEROS if channels * features <= FEW_BANDS else 2
    if w.input_shape[-1] > zeros * w.window_shape[-1]:
        return False
    rows, columns = batch * w.output_shape[0], w.output_shape[-1] * features
    return channels <= 16 and features < 8 and columns >= 64 and rows >= 256


def _suits_side_by_side(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether narrow images make several tasks together, and so much work that two copies are little of it."""
    w = g.window
    if w.rank != 2:
        return False
    copied = math.prod(w.strides) * channels + features
    if MULTIPLICATIONS * copied > w.taps * channels * features:
        return False
    images = _pack_batch.images_in_a_row(g, batch, channels, features)
    one, row = (_pack_batch.tasks(g, count, channels, features) for count in (1, images))
    return one < 1 and row > 4 / 3


def _suits_neighbours_forward(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether channels and features are few; or on one thread the compiler would gather an odd number of channels."""
    w = g.window
    if w.rank not in (1, 2) or {*w.input_dilation, g.feature_group_count} != {1} or channels > 8:
        return False
    if g.precision is not None:
        return False
    b, step, columns = _width_tiling.together(w, features), w.strides[-1], w.taps * channels
    taps, positions = _width_tiling.neighbours(g, b).window.taps, batch * math.prod(w.output_shape)
    gathered = taps * channels
    views = gathered * step * math.prod(w.output_shape)
    if b == step == 1 or gathered > FEW_COLUMNS or views > TILE_ELEMENTS * times_at_once(gathered * step, features):
        return False
    inputs, steps = batch * math.prod(w.input_shape) * channels, max(w.strides[:-1], default=1)
    if inputs >= 2 * MOST_OUTPUTS or taps * steps > MORE_VIEWS:
        return False
    if features <= FEW_FEATURES and channels * features < 2 * FEW_PRODUCTS:
        return positions >= 2 * FEW_POSITIONS
    if channels == 1 or w.rank == 1 or not OLD_COMPILER or positions < 2 * MANY_POSITIONS:
        return False
    if channels % 2 == 1:
        return features <= 2 * FEW_FEATURES or columns <= FEW_COLUMNS
    return channels < 8 and b == 2 and step == 1 and columns <= FEW_COLUMNS


def times_at_once(columns: int, features: int) -> int:
    """How much larger than others a block of views may be: more where outputs are most, as a loop copies them."""
    return 6 if columns <= features else 2


def _suits_taps_forward(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether views of all taps are few columns, which enough outputs share, of what is else one thread's."""
    w = g.window
    if w.rank != 2 or {*w.input_dilation, g.feature_group_count} != {1} or channels < 3 or features < 15:
        return False
    columns, positions = w.taps * channels, math.prod(w.output_shape)
    if columns > SOME_COLUMNS or columns * positions > TILE_ELEMENTS or batch * positions < 2 * MANY_POSITIONS:
        return False
    return _pack_batch.tasks(g, 1, channels, features) < 1
