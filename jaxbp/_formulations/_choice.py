"""Which form evaluates a map on a CPU, and why. One function per map, from geometry, batch and channels alone.

The reasons are measurements on x86 CPUs (BENCHMARKS.md). Every other platform uses the textbook forms for
convolutions, which their libraries run well. Each function returns the form's name and the reason.
"""

import math

from .._geometry import ConvGeometry, Window, is_static, read_padding, transposed
from . import _inside, _neighbours, _side_by_side, _subpixel
from ._blocks import CELLS
from ._windows import Choice
from ._winograd_choice import NARROW_ON_ONE_THREAD, forward_tiles, kernel_grad_tiles

# Where the measurements change sides.
MAX_TAPS = 64  # that are written out one by one
MULTIPLY_ADD_TERMS = 40  # taps times channels of a group
DENSE_MULTIPLY_ADD_TERMS = 32  # the same in a single group
FEW_WEIGHTS = 512
LARGE_WINDOW = 25  # taps
MANY_WEIGHTS = 256  # of a tap, for each position
MOST_INSIDE = 0.6  # of what windows read, for a product for each tap
MAX_ROWS = 16  # of a window, side by side before a banded matrix
MOST_ZEROS = 8  # numbers of a banded matrix for each that is a weight
FEW_BANDS = 20  # channels times features, for which a banded matrix may be mostly zeros
MOST_PARTS = 1 << 17  # numbers: an image's outputs, each tap's by itself, of which some images fit the cache
FEW_PRODUCTS = 64  # channels times features, for which every tap's part is a product of its own
FEW_VIEWS = 16  # taps side by side or one by one, that are worth their compile time
MORE_VIEWS = 28  # the same for few channels
SMALL_WINDOW = 7  # taps
FEW_COLUMNS = 72  # taps times channels, side by side in one product
SOME_COLUMNS = 81  # the same for a forward sum
MORE_COLUMNS = 300  # the same for a small window
FEW_FEATURES = 16
SOME_FEATURES = 64
MANY_FEATURES = 96
FEW_IMAGES = 4  # of a batch
MULTIPLICATIONS = 100  # for each number that is copied
FEWEST_MULTIPLICATIONS = 1 << 22  # that are worth a second copy of the outputs
MOST_PADDED = 3  # taps of a window for each cell of its input, which is padded for a few images
FEW_POSITIONS = 1 << 9  # of a whole batch
MANY_POSITIONS = 1 << 12
MANY_DELTAS = 1 << 19  # numbers of a whole batch
NARROW = 32  # outputs along the last axis
LARGE_EXAMPLE = 1 << 13  # numbers of an input, whose kernel gradient under vmap is faster by itself
MOST_GATHERED = 1 << 23  # numbers
MOST_OUTPUTS = 1 << 21  # numbers: 8 MiB of float32 that stay in the cache, and may be copied


def forward_form(g: ConvGeometry, batch: int, channels: int, features: int, back: bool = False) -> Choice:
    """The form of a forward sum with `channels` inputs and `features` outputs; `back`: of delta, as a gradient."""
    w, groups = g.window, g.feature_group_count
    c = channels // groups
    if not is_static((batch, *w.input_shape, *w.output_shape)):
        return "textbook", "sizes are symbolic"
    if _is_short_sum(g, channels, features, FEW_PRODUCTS // 2):
        return "textbook", "few weights of one tap: a loop, where a product is mostly overhead"
    if groups == 1 and apart(as_blocks(w)):
        return "product", "windows do not overlap: one matrix product"
    if groups == 1 and apart(as_blocks(transposed(w))):
        return "transposed product", "windows do not overlap: one matrix product, put in place"
    if any(d > 1 for d in w.input_dilation):
        outputs = math.prod(w.output_shape) * features
        if _suits_parts_in_place(g, batch, channels, features):
            return "project then add", "zeros between the input's cells: each cell times all weights, put in place"
        if not steps_over_zeros(w) and _suits_sub_pixel(g, batch, channels, features):
            return "sub-pixel", "zeros between the input's cells are left out: more outputs, put side by side"
        if groups == 1 and features >= 8 and batch * outputs > MOST_OUTPUTS:
            return "image by image", "the compiler skips the zeros itself, but slows down beyond the cache"
        return "textbook", "the compiler skips the zeros itself"
    if groups > 1 and _suits_multiply_add(w, c):
        return "multiply-add", "few channels in a group: a short elementwise sum"
    if groups == 1 and c * w.taps <= DENSE_MULTIPLY_ADD_TERMS and c * w.taps * features <= FEW_WEIGHTS:
        return "multiply-add", "few weights: a short elementwise sum"
    if groups == 1 and _suits_bands(g, batch, c, features):
        return "bands", "few channels, a large window: rows of cells times a banded matrix"
    if _suits_neighbours_forward(g, batch, channels, features):
        return "neighbours", "few channels: windows of neighbouring outputs gathered together, one matrix product"
    if NARROW_ON_ONE_THREAD and _suits_taps_forward(g, batch, channels, features):
        return "taps", "few channels, narrow images: views of all taps side by side, for two threads"
    if groups > 1 and w.rank <= 2:
        return "group by group", "grouped convolutions run as if dense"
    if groups == 1 and set(w.strides) <= {1} and _suits_few_parts(g, batch, channels, features):
        return "project then add", "few outputs: one matrix product, then shifted sums"
    if _suits_inside(g, batch, channels, features):
        return "inside", "much padding, or few positions for the weights: every tap by itself, without the zeros"
    if tiles := forward_tiles(g, batch, channels, features):
        return tiles
    if back and _suits_few_cells(g, batch, channels, features):
        return "project then add", "few cells for the weights, which are read as they are: each cell times all of them"
    if groups == 1 and w.rank > 2 and w.window_shape[0] <= MAX_TAPS:
        return "fold", "no fast convolution beyond two dimensions: the first axis becomes channels and images"
    if w.taps > (inputs := math.prod(w.input_shape)):
        if groups > 1 or (batch <= FEW_IMAGES and w.taps <= MOST_PADDED * inputs):
            return "padded", "the compiler exchanges a window and a smaller input, and loses its fast convolution"
        return "exchanged", "a window slides over a smaller input: the same sum with input and kernel exchanged"
    if NARROW_ON_ONE_THREAD and _suits_side_by_side(g, batch, channels, features):
        return "side by side", "narrow images: the compiler leaves them to one thread"
    return "textbook", "a dense convolution is what the compiler does best"


def input_grad_form(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice:
    """The form of the input's gradient: of the forward sum that takes delta back."""
    choice = forward_form(g._replace(window=transposed(as_blocks(g.window))), batch, features, channels, back=True)
    narrow = choice[0] == "side by side" and forward_form(g, batch, channels, features)[0] == "side by side"
    if narrow and kernel_grad_form(g, batch, channels, features)[0] == "textbook":
        return "textbook", "narrow images: one thread, beside the kernel's gradient on another"
    return choice


def kernel_grad_form(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice:
    """The form of the kernel's gradient."""
    w, groups = g.window, g.feature_group_count
    c, o = channels // groups, features // groups
    if not is_static((batch, *w.input_shape, *w.output_shape)):
        return "textbook", "sizes are symbolic"
    if any(d > 1 for d in w.input_dilation):
        if all(s == 1 for s in w.strides):
            return "mirrored", "the same sum with input and delta exchanged has strides in place of zeros"
        return "textbook", "strides and input dilation together"
    if c > 1 and _is_short_sum(g, c, o, FEW_PRODUCTS // 4):
        return "textbook", "few weights of one tap: a loop, where a product is mostly overhead"
    if groups == 1 and apart(as_blocks(w)):
        return "product", "windows do not overlap: one matrix product"
    if groups == 1 and apart(as_blocks(transposed(w))):
        return "mirrored", "the same sum with input and delta exchanged: windows do not overlap"
    if _suits_inside(g, batch, channels, features):
        return "inside", "much padding, or few positions for the weights: every tap by itself, without the zeros"
    if groups == 1 and w.rank > 2 and w.window_shape[0] <= MAX_TAPS:
        return "fold", "no fast convolution beyond two dimensions: the first axis becomes channels and images"
    if w.rank == 0:
        return "textbook", "no window"
    if groups > 1 and c == 1 and o <= 4 and _suits_multiply_add(w, c):
        return "multiply-add", "depthwise: products summed over the batch, one reduction for all taps"
    if groups > 1 and w.taps <= MAX_TAPS:
        return "grouped taps", "grouped convolutions run as if dense"
    if groups > 1:
        return "textbook", "a large window"
    if tiles := kernel_grad_tiles(g, batch, c, o):
        return tiles
    if _suits_no_views(g, batch, c):
        return "textbook", "few images, and a delta smaller than the input: the compiler's own sum is fast"
    if w.rank == 2 and _suits_mirrored_views(g, batch, c, o):
        if batch * math.prod(w.output_shape) < FEW_POSITIONS:
            return "mirrored", "few outputs: the same sum with input and delta exchanged has few inputs"
        if w.taps <= FEW_VIEWS and w.taps * o <= MORE_COLUMNS:
            return "mirrored taps", "few outputs: views of all taps of delta, times the input"
        return "mirrored rows", "few outputs: views of one row of taps of delta, times the input"
    if w.rank in (1, 2) and _suits_neighbours_kernel_grad(g, batch, c, o):
        if w.rank == 1 or (_deltas(w, batch, o) >= 2 * MOST_OUTPUTS and o > FEW_FEATURES):
            return "neighbours taps", "few channels: windows of neighbouring outputs gathered together: one product"
        return "neighbours rows", "few channels: windows of neighbouring outputs gathered together: row by row"
    if _suits_steps_of_one_axis(g, batch):
        if w.taps > SMALL_WINDOW or w.taps * c <= FEW_COLUMNS:
            return "taps", "steps along one axis, few images: views of all taps side by side: one product"
        return "rows", "steps along one axis, few images: a product for each tap"
    if _suits_views_of_large_deltas(g, batch, c, o):
        return _views_of_large_delta(w, c, o)
    if w.rank == 2 and _suits_taps(g, batch, c, o):
        return "taps", "few channels: views of all taps side by side, block by block: one product"
    if w.rank == 2 and w.taps <= MAX_TAPS and _suits_rows(g, batch, c, o):
        if _shares_few_rows(w, c, o):
            return "taps", "strides: rows of taps share few views; all taps side by side, block by block"
        return "rows", "views of one row of taps side by side, block by block: a product for each row"
    if math.prod(w.output_shape) > math.prod(w.input_shape):
        return "padded", "the compiler exchanges a delta and a smaller input, and loses its fast convolution"
    return "textbook", "a dense convolution is what the compiler does best"


def apart(w: Window) -> bool:
    """Whether every cell lies in one window at most, and windows are blocks or single cells."""
    if any(d > 1 for d in w.input_dilation):
        return False
    return w.taps == 1 or (w.window_shape == w.strides and set(w.dilation) <= {1})


def steps_over_zeros(w: Window) -> bool:
    """Whether windows take steps along an axis that has zeros between the input's cells."""
    return any(s > 1 for s, d in zip(w.strides, w.input_dilation, strict=True) if d > 1)


def as_blocks(w: Window) -> Window:
    """The same windows with other strides, where that makes them blocks: one alone along an axis takes no step."""
    steps = zip(w.window_shape, w.strides, w.output_shape, strict=True)
    blocks = w._replace(strides=tuple(k if out == 1 else s for k, s, out in steps))
    return blocks if apart(blocks) else w


def _is_short_sum(g: ConvGeometry, channels: int, features: int, most: int) -> bool:
    """Whether a single tap, at stride 1 in one or two dimensions, has so few weights."""
    w = g.window
    steps = {g.feature_group_count, w.taps, *w.strides, *w.input_dilation}
    return w.rank in (1, 2) and steps == {1} and max(channels, features) <= 8 and channels * features <= most


def _suits_multiply_add(w: Window, channels: int) -> bool:
    """Whether the sum of a group's taps, or for one channel that of one of their rows, is short."""
    if channels == 1:
        return w.taps // max(w.window_shape, default=1) <= MAX_TAPS
    return channels * w.taps <= MULTIPLY_ADD_TERMS


def _suits_sub_pixel(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether the compiler, which skips zeros itself, is slower: few channels, or a window larger than its input."""
    w, outputs = g.window, math.prod(g.window.output_shape) * features
    if g.feature_group_count > 1 or w.rank > 2:
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
    cells = batch * math.prod(g.window.input_shape)
    if g.feature_group_count > 1 or not _has_few_parts(g.window, features):
        return False
    if cells <= FEW_FEATURES * channels or not _suits_sub_pixel(g, batch, channels, features):
        return True
    return channels >= 2 * FEW_FEATURES and not _divides(g.window)


def _suits_few_parts(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether outputs are few, or their parts, one for each tap of each cell, fewer than what windows would gather.

    Without padding the compiler leaves its fast convolution where it would gather too much for less than 16 outputs.
    """
    w, cells, outputs = g.window, math.prod(g.window.input_shape), math.prod(g.window.output_shape)
    parts, gathered = w.taps * features * cells, w.taps * channels * outputs
    cheap = 2 * FEW_PRODUCTS if w.rank > 2 or w.taps * features * outputs <= MOST_PARTS else FEW_PRODUCTS
    if features <= 4 and channels * features <= cheap and w.taps <= DENSE_MULTIPLY_ADD_TERMS:
        return True
    if w.taps == 1 or sum(w.window_shape) > MAX_TAPS or forward_tiles(g, batch, channels, features):
        return False
    unpadded = max(end for pair in read_padding(w) for end in pair) <= 0
    if unpadded and features < FEW_FEATURES and batch * gathered >= MOST_GATHERED:
        return True
    return 2 * parts <= 3 * channels * outputs and max(parts, channels * cells) <= 2 * MOST_OUTPUTS


def _suits_few_cells(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether a rotated copy of the weights would be larger than the parts of the few cells."""
    cells = batch * math.prod(g.window.input_shape)
    alone = g.feature_group_count == 1 < g.window.taps and set(g.window.strides) == {1}
    return alone and FEW_FEATURES <= channels >= cells / 4 and _has_few_parts(g.window, features)


def _has_few_parts(w: Window, features: int) -> bool:
    """Whether the parts of an image's outputs, one for each tap of each cell, fit the cache."""
    return w.taps * features * math.prod(w.input_shape) <= MOST_OUTPUTS


def _divides(w: Window) -> bool:
    """Whether the distance between cells divides the window along every axis: no weight of a block of outputs is 0."""
    facts = zip(w.window_shape, w.dilation, w.input_dilation, strict=True)
    return all(s == 1 or (k % s == 0 and d == 1) for k, d, s in facts)


def _suits_bands(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether a window is large enough for its banded matrix, which then has rows and columns enough to multiply."""
    w = g.window
    if w.rank != 2 or w.taps < LARGE_WINDOW or w.window_shape[0] > MAX_ROWS or g.precision is not None:
        return False
    zeros = MOST_ZEROS if channels * features <= FEW_BANDS else 2
    if w.input_shape[-1] > zeros * w.window_shape[-1]:
        return False
    rows, columns = batch * w.output_shape[0], w.output_shape[-1] * features
    return channels <= 16 and features < 8 and columns >= 64 and rows >= 256


def _suits_inside(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether much of what a few taps read is padding, or they have few positions; and products are not too narrow."""
    w = g.window
    if {*w.input_dilation, g.feature_group_count} != {1} or not 1 < w.taps <= FEW_VIEWS:
        return False
    few_positions = MANY_WEIGHTS * batch * math.prod(w.output_shape) <= channels * features
    return min(channels, features) >= FEW_FEATURES and (few_positions or _inside.share_inside(w) <= MOST_INSIDE)


def _suits_side_by_side(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether narrow images make several tasks together, and so much work that two copies are little of it."""
    w = g.window
    if w.rank != 2 or {*w.input_dilation, g.feature_group_count} != {1}:
        return False
    copied = math.prod(w.strides) * channels + features
    if MULTIPLICATIONS * copied > w.taps * channels * features:
        return False
    images = _side_by_side.images_in_a_row(g, batch, channels, features)
    one, row = (_side_by_side.tasks(g, count, channels, features) for count in (1, images))
    return one < 1 and row > 4 / 3


def _suits_views(batch: int, channels: int, fewest: int) -> bool:
    """Whether the compiler's own kernel gradient is slow: on one thread, of few images, or with so many channels."""
    return NARROW_ON_ONE_THREAD or batch <= FEW_IMAGES or channels >= fewest


def _suits_no_views(g: ConvGeometry, batch: int, channels: int) -> bool:
    """Whether the compiler does not exchange delta and the input, of few images that are large, and few channels."""
    w = g.window
    if w.rank != 2 or {*w.strides, *w.dilation} != {1} or batch > FEW_IMAGES or channels > FEW_FEATURES:
        return False
    positions = math.prod(w.output_shape)
    return positions < math.prod(w.input_shape) and batch * positions >= MANY_POSITIONS


def _suits_mirrored_views(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether views of delta are far fewer columns than views of the input."""
    w = g.window
    if set(w.strides) != {1} or channels < 2 * features or sum(w.window_shape) > MAX_TAPS:
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
            return 2 * features <= FEW_FEATURES and _neighbours.together(w, features) == _neighbours.MOST_TOGETHER
        return w.rank == 1 or w.taps > SMALL_WINDOW
    if not NARROW_ON_ONE_THREAD or w.rank != 2 or not SMALL_WINDOW < w.taps <= 9 or columns > FEW_COLUMNS:
        return False
    if features < FEW_FEATURES or channels == 8:
        return False
    shared = channels > 1 if w.strides[-1] > 1 else _neighbours.together(w, features) % 2 == 0
    narrow = w.output_shape[-1] <= NARROW or (features >= 4 * FEW_FEATURES and deltas < 2 * MOST_OUTPUTS)
    return shared and narrow and deltas > MANY_DELTAS


def _suits_steps_of_one_axis(g: ConvGeometry, batch: int) -> bool:
    """Whether the compiler's own kernel gradient, of few images that are its channels, is slow as delta has gaps."""
    w = g.window
    return w.rank == 1 and w.strides != (1,) and batch <= FEW_IMAGES and w.taps <= FEW_VIEWS


def _suits_views_of_large_deltas(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether delta, of which the compiler reads all for each tap, does not stay in the cache; or has many features."""
    w, deltas = g.window, _deltas(g.window, batch, features)
    if w.rank > 2 or w.taps > MAX_TAPS:
        return False
    if channels >= FEW_FEATURES:
        fewest = FEW_FEATURES if NARROW_ON_ONE_THREAD else 2 * FEW_FEATURES
        return w.rank == 2 and features >= 2 * FEW_FEATURES and deltas * features >= MOST_OUTPUTS * fewest
    fewest = 2 * FEW_FEATURES if NARROW_ON_ONE_THREAD else 4 * FEW_FEATURES
    if w.rank == 1 and (w.taps * channels > FEW_COLUMNS or w.taps > MORE_VIEWS):
        return False
    return features >= fewest and deltas >= MOST_OUTPUTS


def _views_of_large_delta(w: Window, channels: int, features: int) -> Choice:
    """Which views: the fewest numbers to gather, but no product of a few rows by many columns."""
    if channels < FEW_FEATURES and w.rank == 2:
        if channels <= 4 and SOME_FEATURES <= features < MANY_FEATURES and _neighbours.together(w, features) > 1:
            return "neighbours taps", "delta is large: windows of neighbouring outputs together, block by block"
        at_once = features >= MANY_FEATURES and w.window_shape[-1] * channels < FEW_FEATURES
    else:
        at_once = True
    few_columns = w.taps * channels <= MORE_COLUMNS or _shares_few_rows(w, channels, features)
    if at_once and w.taps <= MORE_VIEWS and few_columns:
        return "taps", "delta is large: views of all taps side by side, block by block"
    return "rows", "delta is large: views of one row of taps side by side, block by block"


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


def _suits_neighbours_forward(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether channels and features are few; or on one thread the compiler would gather an odd number of channels."""
    w = g.window
    if w.rank not in (1, 2) or {*w.input_dilation, g.feature_group_count} != {1} or channels > 8:
        return False
    if g.precision is not None:
        return False
    b, step, columns = _neighbours.together(w, features), w.strides[-1], w.taps * channels
    taps, positions = _neighbours.neighbours(g, b).window.taps, batch * math.prod(w.output_shape)
    gathered = taps * channels
    views = gathered * step * math.prod(w.output_shape)
    if b == step == 1 or gathered > FEW_COLUMNS or views > CELLS * times_at_once(gathered * step, features):
        return False
    inputs, steps = batch * math.prod(w.input_shape) * channels, max(w.strides[:-1], default=1)
    if inputs >= 2 * MOST_OUTPUTS or taps * steps > MORE_VIEWS:
        return False
    if features <= FEW_FEATURES and channels * features < 2 * FEW_PRODUCTS:
        return positions >= 2 * FEW_POSITIONS
    if channels == 1 or w.rank == 1 or not NARROW_ON_ONE_THREAD or positions < 2 * MANY_POSITIONS:
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
    if columns > SOME_COLUMNS or columns * positions > CELLS or batch * positions < 2 * MANY_POSITIONS:
        return False
    return _side_by_side.tasks(g, 1, channels, features) < 1


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
