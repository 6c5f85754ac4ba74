"""Which algorithm evaluates a sum on a CPU, and why: a table for each sum.

Each row's gain was measured by `python -m jaxbp bench --algorithms --random` on an x86 CPU with AVX2: at least 1.15 as
the geometric mean over the sums that it decides, against the table without it.
"""

import math

from .._algorithms._gemm import are_apart
from .._algorithms._valid_taps import valid_share
from .._algorithms._winograd import fills_tiles
from .._geometry import Problem
from ._row import Row, always

# Facts of the processor and of XLA:CPU on it.
CACHE = 1 << 21  # elements that stay in the cache: 8 MiB of float32
NARROW = 16  # channels or features: a GEMM of fewer is as fast as one of so many
WIDE = 64  # channels or features of which a GEMM runs at full speed
FEW = 4  # images, or features
MANY_POSITIONS = 1 << 13  # of a whole batch: worth an elementwise loop
LONG_LOOP = 1 << 18  # elements that windows gather: what they cost is seen
TERMS, TERMS_OF_GROUP = 150, 128  # of an elementwise sum
WEIGHTS, FEW_WEIGHTS = 1 << 11, 1 << 9  # that an elementwise sum multiplies
PASSES = 3  # over kn2row's parts, each as slow as gathering a window's element
MANY_COLUMNS = 256  # of an im2col along three axes
VALID = 0.6  # share of what windows read that is inside the input
WEIGHTS_OF_POSITION = 256  # for each position: a GEMM is as slow as reading its weights
LARGE_EXAMPLE = 1 << 13  # elements of an example that is worth a step of a loop


def _copies_little(p: Problem) -> bool:
    """Pixels or single windows are rows already; others are copied into rows, which few features are not worth."""
    return p.taps == 1 or p.over_zeros or p.outputs == 1 or p.features >= 2 * NARROW or p.columns <= WIDE


def _has_few_pixels(p: Problem) -> bool:
    """Few pixels for many channels, whose parts fit the cache."""
    return p.batch * p.pixels <= NARROW * p.channels and p.taps * p.features * p.pixels <= CACHE


def _added_zeros(p: Problem) -> float:
    """Zeros by which subpixel pads a window to a multiple of the input dilation, for each tap."""
    facts = zip(p.window.window_shape, p.window.input_dilation, strict=True)
    return math.prod(-(-k // s) * s for k, s in facts) / p.taps - 1


def _adds_little(p: Problem) -> bool:
    """Outputs are so few that the parts of all pixels are fewer than what windows gather."""
    few = p.features <= FEW or not p.strided
    return few and PASSES * p.features * p.pixels <= p.channels * p.outputs


def _is_short(p: Problem) -> bool:
    """A short elementwise sum over many positions."""
    few = p.columns * p.features <= (WEIGHTS if p.positions >= MANY_POSITIONS else FEW_WEIGHTS)
    return few and p.columns <= TERMS


def _is_grouped_finely(p: Problem) -> bool:
    """Depthwise, or many groups of short sums."""
    return p.groups > 1 and (p.group_channels == 1 or (2 * p.groups >= NARROW and p.columns <= TERMS_OF_GROUP))


def _is_wide(p: Problem) -> bool:
    """Channels and features for GEMMs at full speed, of several images."""
    return min(p.channels, p.features) >= WIDE and p.batch >= FEW and fills_tiles(p)


def _reads_padding(p: Problem) -> bool:
    """Much of what windows read is padding."""
    return min(p.channels, p.features) >= NARROW and valid_share(p.window) <= VALID


def _has_few_positions(p: Problem) -> bool:
    """So few positions that a GEMM is as slow as reading its weights."""
    return WEIGHTS_OF_POSITION * p.positions <= p.channels * p.features


def _gathers_nothing(p: Problem) -> bool:
    """Windows without padding, which XLA:CPU up to jaxlib 0.10 reads in place."""
    return p.rank == 2 and not any(map(any, p.window.padding)) and p.positions * p.columns >= LONG_LOOP


def _delta_is_narrower(p: Problem) -> bool:
    """Views of delta have fewer columns than views of x."""
    fewer = 2 * p.channels * p.outputs >= PASSES * p.features * p.pixels
    return fewer and p.group_channels >= 2 * p.group_features


def _has_few_columns(p: Problem) -> bool:
    """Views of all taps cost little: along three axes, or beside a delta of a single axis, which XLA transposes."""
    return (p.rank > 2 and p.columns <= MANY_COLUMNS) or (p.rank == 1 and 2 * p.columns <= p.features)


def _is_one_of_many(p: Problem) -> bool:
    """One of several kernel gradients along one axis, which a vmap asks for."""
    return p.members > 1 and p.rank == 1


GEMM = Row(_copies_little, "gemm", "windows do not overlap: one GEMM")
FOLD = Row(
    lambda p: not p.strided and p.columns > MANY_COLUMNS,
    "fold_axis",
    "XLA has no fast convolution beyond two dimensions: the first axis into batch and channels",
)
SLIDING = [
    GEMM,
    Row(lambda p: p.group_channels > 1 and are_apart(p), "per_group", "windows do not overlap: a GEMM for each group"),
    Row(
        lambda p: p.over_zeros and _has_few_pixels(p) and _added_zeros(p) > 0,
        "kn2row",
        "input dilation, few pixels: one GEMM with all weights, no products with zeros",
    ),
    Row(
        lambda p: (
            p.over_zeros and p.groups == 1 and min(p.channels, p.features) >= 2 * NARROW and _added_zeros(p) >= 0.5
        ),
        "direct",
        "input dilation that does not divide the window: XLA skips the zeros",
    ),
    Row(always, "subpixel", "input dilation: more features on the input without zeros, then depth-to-space"),
    Row(_is_grouped_finely, "shift_add", "few channels in a group: a short elementwise sum"),
    Row(always, "per_group", "XLA runs a grouped convolution as if it were dense"),
    Row(_adds_little, "kn2row", "few outputs: one GEMM of pixels and all weights, then shifted sums"),
    Row(_is_short, "shift_add", "few weights: a short elementwise sum"),
    Row(_reads_padding, "valid_taps", "much padding: a GEMM per tap, no products with zeros"),
    Row(
        lambda p: p.rank == 2 and _is_wide(p), "winograd", "windows of 3 at stride 1: 4 products for 6 along each axis"
    ),
    FOLD,
    Row(lambda p: p.rank > 2, "im2col", "XLA has no fast convolution beyond two dimensions"),
    Row(_gathers_nothing, "pad_row", "no padding: XLA would not gather windows, which is slow"),
    Row(always, "direct", "a dense convolution is what XLA does best"),
]
KERNEL = [
    Row(lambda p: p.over_zeros and p.channels > 1, "swap_operands", "input dilation: with operands swapped, a stride"),
    GEMM,
    Row(_delta_is_narrower, "swap_operands", "delta has fewer channels: gathered in place of x"),
    Row(always, "shift_add", "depthwise: elementwise sums over the batch, then one reduction for all taps"),
    Row(always, "per_group", "XLA runs a grouped convolution as if it were dense"),
    Row(
        lambda p: _reads_padding(p) or (p.strided and p.features <= NARROW <= p.channels) or _has_few_positions(p),
        "valid_taps",
        "much padding, few outputs or positions: a GEMM per tap reads x in place",
    ),
    Row(
        lambda p: p.rank == 2 and min(p.channels, p.features) >= 2 * NARROW and fills_tiles(p),
        "winograd",
        "windows of 3 at stride 1: 4 products for 6 along each axis",
    ),
    Row(
        lambda p: p.channels <= FEW and p.features <= NARROW,
        "width_tiling im2col",
        "few channels: several outputs per GEMM row, so each pixel is gathered once",
    ),
    FOLD,
    Row(_is_one_of_many, "im2col", "of several examples: a batched GEMM"),
    Row(
        lambda p: _has_few_columns(p) or (p.strided and p.taps <= 9 and p.features >= NARROW),
        "im2col",
        "few columns, or strides: rows of taps share few views",
    ),
    Row(
        lambda p: p.rank > 2 or (p.rank == 2 and p.features >= NARROW),
        "row_im2col",
        "views of one row of taps serve all rows",
    ),
    Row(always, "direct", "a dense convolution is what XLA does best"),
]
# The gradient of x is seldom without padding.
INPUT_GRAD = [row for row in SLIDING if row.algorithm != "pad_row"]
TABLES = {"z": SLIDING, "x": INPUT_GRAD, "kernel": KERNEL}
