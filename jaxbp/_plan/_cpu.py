"""Which algorithm evaluates a sum on a CPU, and why. One function per sum, from geometry, batch and channels alone.

Each function returns the algorithm's name and the reason. The kernel's gradient is in `_cpu_kernel_grad`. What both ask
of a window is in `_limits`. The reasons are measurements on x86 CPUs (BENCHMARKS.md).
"""

import math

from .._algorithms import _pack_batch, _subpixel, _valid_taps, _width_tiling
from .._algorithms._tiles import TILE_ELEMENTS
from .._algorithms._windows import Choice
from .._geometry import ConvGeometry, Window, is_static, transposed
from ._cpu_kernel_grad import kernel_grad_form
from ._cpu_winograd import forward_winograd
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
    as_patches,
    gathers_much,
    has_few_positions,
    is_short_sum,
    non_overlapping,
    suits_shift_add,
    valid_taps_or_winograd,
)

# Thresholds, measured.
DENSE_SHIFT_ADD_TERMS = 32  # taps times channels of a single group
FEW_WEIGHTS = 512  # of all taps
MOST_ZEROS = 8  # entries of a Toeplitz matrix for each weight
SMALL_BLOCK = 20  # channels times features, up to which a Toeplitz matrix may have MOST_ZEROS
MOST_PARTS = 1 << 17  # elements of an image's parts (taps times outputs), so that some images fit the cache
SOME_COLUMNS = 81  # taps times channels: columns of an im2col
MULTIPLICATIONS = 100  # for each element that is copied
FEWEST_MULTIPLICATIONS = 1 << 22  # that are worth a second copy of the outputs
MOST_SHARED = 4  # parts that are added up for an output, along one axis
MUCH_PADDING = 1.25  # outputs for each pixel, at least
FEWEST_SUMMED = 12  # channels of a part
LITTLE_PADDING = 0.8  # of what windows read, more than this is inside the input
MOST_PADDED = 3  # taps of a window for each pixel of an input that is padded, for a few images


def forward_form(g: ConvGeometry, batch: int, channels: int, features: int, back: bool = False) -> Choice:
    """The algorithm of a forward sum from `channels` to `features`. `back`: as the input's gradient, of delta."""
    w, groups = g.window, g.feature_group_count
    c = channels // groups
    if not is_static((batch, *w.input_shape, *w.output_shape)):
        return "direct", "sizes are symbolic"
    if is_short_sum(g, channels, features, FEW_PRODUCTS // 2):
        return "direct", "1x1 with few weights: XLA's loop has less overhead than a GEMM"
    if groups == 1 and non_overlapping(as_patches(w)):
        return "gemm", "windows do not overlap: one GEMM"
    if groups == 1 and non_overlapping(as_patches(transposed(w))):
        return "transposed gemm", "windows do not overlap: one GEMM, its results put in place"
    if any(d > 1 for d in w.input_dilation):
        outputs = math.prod(w.output_shape) * features
        if _suits_kn2row_over_zeros(g, batch, channels, features):
            return "kn2row", "input dilation: one GEMM of pixels and all weights, no products with zeros"
        if not steps_over_zeros(w) and _suits_subpixel(g, batch, channels, features):
            return "subpixel", "input dilation: more features on the input without zeros, then depth-to-space"
        if groups == 1 and features >= 8 and batch * outputs > MOST_OUTPUTS:
            return "per_image", "input dilation: XLA skips the zeros, but slows down beyond the cache"
        return "direct", "input dilation: XLA skips the zeros"
    if groups > 1 and suits_shift_add(w, c):
        return "shift_add", "few channels in a group: a short elementwise sum"
    if groups == 1 and c * w.taps <= DENSE_SHIFT_ADD_TERMS and c * w.taps * features <= FEW_WEIGHTS:
        return "shift_add", "few weights: a short elementwise sum"
    if groups == 1 and _suits_toeplitz(g, batch, c, features):
        return "toeplitz", "few channels, large window: whole rows times a block-Toeplitz matrix, nothing gathered"
    if _suits_width_tiling_forward(g, batch, channels, features):
        return "width_tiling", "few channels: several outputs per GEMM row, so each pixel is gathered once"
    if OLD_COMPILER and _suits_im2col_forward(g, batch, channels, features):
        return "im2col", "few channels, narrow images: XLA uses one thread, im2col two"
    if groups > 1:
        return "per_group", "XLA runs a grouped convolution as if it were dense"
    if set(w.strides) <= {1} and _suits_kn2row(g, batch, channels, features):
        return "kn2row", "few outputs: one GEMM of pixels and all weights, then shifted sums"
    few_positions = not _is_strided_along_one_axis(w) and has_few_positions(g, batch, channels, features)
    winograd = forward_winograd(g, batch, channels, features)
    if choice := valid_taps_or_winograd(winograd, g, channels, features, few_positions):
        return choice
    if back and _suits_kn2row_few_pixels(g, batch, channels, features):
        return "kn2row", "few pixels, many weights: one GEMM that reads the kernel without a rotated copy"
    if w.rank > 2 and w.window_shape[0] <= MAX_TAPS:
        return "fold_axis", "XLA has no fast convolution beyond two dimensions"
    if w.taps > (inputs := math.prod(w.input_shape)):
        if batch <= FEW_IMAGES and w.taps <= MOST_PADDED * inputs:
            return "pad_input", "window larger than the input: XLA would swap them, and lose its fast convolution"
        return "swap_operands", "window larger than the input: the input slides over the kernel"
    if _suits_kn2row_padded(w, channels, features):
        return "kn2row", "much padding, few outputs: one GEMM of pixels and all weights, no products with padding"
    if OLD_COMPILER and _suits_pack_batch(g, batch, channels, features):
        return "pack_batch", "narrow images: XLA uses one thread, for packed images several"
    if not any(map(any, w.padding)) and gathers_much(w, batch, c) and max(c, features) > FEW_FEATURES:
        return "pad_row", "no padding: XLA would not gather windows, which is slow"
    return "direct", "a dense convolution is what XLA does best"


def input_grad_form(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice:
    """The algorithm of the input's gradient, which is a forward sum of delta and the rotated kernel."""
    choice = forward_form(g._replace(window=transposed(as_patches(g.window))), batch, features, channels, back=True)
    narrow = choice[0] == "pack_batch" and forward_form(g, batch, channels, features)[0] == "pack_batch"
    if narrow and kernel_grad_form(g, batch, channels, features)[0] == "direct":
        return "direct", "narrow images: on one thread, while the kernel's gradient runs on the other"
    return choice


def steps_over_zeros(w: Window) -> bool:
    """Whether an axis has both a stride and input dilation."""
    return any(s > 1 for s, d in zip(w.strides, w.input_dilation, strict=True) if d > 1)


def _suits_subpixel(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether XLA, which skips zeros, is slower: few channels, or a long window, or a large one."""
    w, outputs = g.window, math.prod(g.window.output_shape) * features
    if g.feature_group_count > 1 or w.rank > 2 or _adds_many_parts(w):
        return True
    places = _subpixel.block_window(w).taps * math.prod(w.input_dilation)
    if w.rank == 2 and w.taps > LARGE_WINDOW and features <= 4:
        return channels * places <= 2 * FEW_FEATURES * min(features, 3) * w.taps
    if outputs > MOST_OUTPUTS:
        return False
    if _stride_divides_window(w):
        return features > (1 if w.rank == 2 else 7)
    multiplications = batch * outputs * channels * w.taps // math.prod(w.input_dilation)
    few = channels * places <= SOME_FEATURES * w.taps or w.taps > math.prod(w.input_shape)
    return few and features >= 8 and multiplications >= FEWEST_MULTIPLICATIONS


def _suits_kn2row_over_zeros(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether an image's parts fit the cache; and channels are many, where subpixel would do as well."""
    pixels = batch * math.prod(g.window.input_shape)
    if g.feature_group_count > 1 or not _parts_fit_cache(g.window, features):
        return False
    if _adds_many_parts(g.window) and pixels > channels:
        return False
    if pixels <= FEW_FEATURES * channels or not _suits_subpixel(g, batch, channels, features):
        return True
    return channels >= 2 * FEW_FEATURES and not _stride_divides_window(g.window)


def _suits_kn2row(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether outputs are few, or their parts (one per pixel and tap) are fewer than what windows gather."""
    w, pixels, outputs = g.window, math.prod(g.window.input_shape), math.prod(g.window.output_shape)
    parts = w.taps * features * pixels
    cheap = 2 * FEW_PRODUCTS if w.rank > 2 or w.taps * features * outputs <= MOST_PARTS else FEW_PRODUCTS
    if features <= 4 and channels * features <= cheap and w.taps <= DENSE_SHIFT_ADD_TERMS:
        return True
    if w.taps == 1 or sum(w.window_shape) > MAX_TAPS or (w.rank == 1 and features > FEW_FEATURES):
        return False
    # Along one axis XLA gathers faster.
    gathered = channels * outputs if w.rank == 1 else 3 * channels * outputs
    few = 2 * parts <= gathered and max(parts, channels * pixels) <= 2 * MOST_OUTPUTS
    return few and not forward_winograd(g, batch, channels, features)


def _suits_kn2row_padded(w: Window, channels: int, features: int) -> bool:
    """Whether padding costs more products than the parts of a few features (one per pixel and tap) do."""
    pixels, outputs = math.prod(w.input_shape), math.prod(w.output_shape)
    if w.rank != 2 or {*w.strides, *w.input_dilation} != {1} or sum(w.window_shape) > MAX_TAPS:
        return False
    if not 1 < w.taps <= pixels or outputs < MUCH_PADDING * pixels:
        return False
    return channels >= FEWEST_SUMMED and 4 * features * pixels <= channels * outputs


def _is_strided_along_one_axis(w: Window) -> bool:
    """Whether XLA gathers faster than a GEMM per tap reads: strides along a single axis, and little padding."""
    return w.rank == 1 and w.strides != (1,) and _valid_taps.valid_share(w) > LITTLE_PADDING


def _suits_kn2row_few_pixels(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether a rotated copy of the weights would be larger than the parts of the few pixels."""
    pixels = batch * math.prod(g.window.input_shape)
    several = g.window.taps > 1 and set(g.window.strides) == {1}
    return several and channels >= max(FEW_FEATURES, pixels / 4) and _parts_fit_cache(g.window, features)


def _parts_fit_cache(w: Window, features: int) -> bool:
    """Whether an image's parts (one per pixel and tap) fit the cache, and the window is not long."""
    return sum(w.window_shape) <= MAX_TAPS and w.taps * features * math.prod(w.input_shape) <= MOST_OUTPUTS


def _adds_many_parts(w: Window) -> bool:
    """Whether, along a single axis, many parts are added up for each output."""
    return w.rank == 1 and w.taps > MOST_SHARED * w.input_dilation[0]


def _stride_divides_window(w: Window) -> bool:
    """Whether input dilation divides the window along every axis, so that subpixel's weights have no zeros."""
    facts = zip(w.window_shape, w.dilation, w.input_dilation, strict=True)
    return all(s == 1 or (k % s == 0 and d == 1) for k, d, s in facts)


def _suits_toeplitz(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether the window is large enough for a Toeplitz matrix, and that has enough rows and columns."""
    w = g.window
    if w.rank != 2 or w.taps < LARGE_WINDOW or w.window_shape[0] > MAX_ROWS or g.precision is not None:
        return False
    if _suits_kn2row_padded(w, channels, features):
        return False
    zeros = MOST_ZEROS if channels * features <= SMALL_BLOCK else 2
    if w.input_shape[-1] > zeros * w.window_shape[-1]:
        return False
    rows, columns = batch * w.output_shape[0], w.output_shape[-1] * features
    return channels <= 16 and features < 8 and columns >= 64 and rows >= 256


def _suits_pack_batch(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether packed images make several tasks, and two copies are little of their work."""
    w = g.window
    if w.rank != 2:
        return False
    copied = math.prod(w.strides) * channels + features
    if MULTIPLICATIONS * copied > w.taps * channels * features:
        return False
    images = _pack_batch.packed_images(g, batch, channels, features)
    one, row = (_pack_batch.tasks(g, count, channels, features) for count in (1, images))
    return one < 1 and row > 4 / 3


def _suits_width_tiling_forward(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether channels and features are few; or XLA would gather an odd number of channels on one thread."""
    w = g.window
    if w.rank not in (1, 2) or {*w.input_dilation, g.feature_group_count} != {1} or channels > 8:
        return False
    if g.precision is not None:
        return False
    b, step, columns = _width_tiling.tile_width(w, features), w.strides[-1], w.taps * channels
    taps, positions = _width_tiling.tiled(g, b).window.taps, batch * math.prod(w.output_shape)
    gathered = taps * channels
    views = gathered * step * math.prod(w.output_shape)
    if b == step == 1 or gathered > FEW_COLUMNS or views > TILE_ELEMENTS * tile_factor(gathered * step, features):
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


def tile_factor(columns: int, features: int) -> int:
    """The size of a tile of views, in TILE_ELEMENTS. Larger where outputs are many, as a loop copies them."""
    return 6 if columns <= features else 2


def _suits_im2col_forward(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether views have few columns and many rows, where XLA would use one thread."""
    w = g.window
    if w.rank != 2 or {*w.input_dilation, g.feature_group_count} != {1} or channels < 3 or features < 15:
        return False
    columns, positions = w.taps * channels, math.prod(w.output_shape)
    if columns > SOME_COLUMNS or columns * positions > TILE_ELEMENTS or batch * positions < 2 * MANY_POSITIONS:
        return False
    return _pack_batch.tasks(g, 1, channels, features) < 1
