"""Which algorithm evaluates a sum on a CPU, and why: a table for each sum.

The rows were fitted to what `python -m jaxbp bench --algorithms --random` says on x86 CPUs with AVX2 and with AVX-512.
"""

import math

from .._algorithms import _space_to_batch, _winograd
from .._algorithms._valid_taps import valid_share
from .._algorithms._winograd import fills_tiles
from .._geometry import Problem, dilated_size
from ._row import ONE_BY_ONE, Row, always

# Facts of the processor and of XLA:CPU on it.
CACHE = 1 << 21  # elements that stay in the cache: 8 MiB of float32
NARROW = 16  # channels or features: a narrower GEMM takes as long
WIDE = 64  # columns, channels or features
FEW = 4  # images, channels or features
FEW_TAPS = 9  # of a window whose rows share little
MANY_POSITIONS = 1 << 13  # of a whole batch: worth an elementwise loop
TERMS = 150  # of an elementwise sum
WEIGHTS, FEW_WEIGHTS = 1 << 11, 1 << 9  # that an elementwise sum multiplies, or of one output
POSITIONS = 384  # of a whole batch, which share Winograd's weights
PASSES = 4  # over kn2row's parts, each as slow as gathering a window's element
VALID = 0.6  # share of what windows read that is inside the input
WEIGHTS_OF_POSITION = 256  # for each position: a GEMM is as slow as reading its weights
LARGE_MEMBER = 1 << 13  # elements of a member that is worth a step of a loop


def _copies_little(p: Problem) -> bool:
    """Windows are rows as they are (pixels, a single window, delta's), or XLA's convolution is slower than the copy."""
    in_order = p.taps == 1 or p.over_zeros or p.outputs == 1
    return in_order or p.out == "kernel" or p.rank != 2 or p.features >= WIDE or p.columns >= WEIGHTS


def _parts_suit(p: Problem) -> bool:
    """Parts fit the cache, and subpixel's phases are unequal, or most of the work is reading the weights."""
    fit = p.taps * p.features * p.pixels <= CACHE
    if p.dilated and p.channels > NARROW:
        return fit
    few_features = PASSES * p.features <= p.channels and p.taps <= FEW_TAPS
    few_parts = few_features or p.batch * p.pixels <= NARROW * p.channels
    reads_weights = WEIGHTS_OF_POSITION * p.batch * p.pixels <= p.channels * p.features
    return fit and few_parts and (p.dilated or reads_weights or _added_zeros(p) > 0)


def _added_zeros(p: Problem) -> float:
    """Zeros by which subpixel pads a window to a multiple of the input dilation, for each tap."""
    w = p.window
    spans = map(dilated_size, w.window_shape, w.dilation)
    return math.prod(-(-span // s) * s for span, s in zip(spans, w.input_dilation, strict=True)) / p.taps - 1


def _wastes_little(p: Problem) -> bool:
    """Subpixel adds few zeros, or the sum is not wide enough for XLA, which skips zeros, to be faster."""
    wide = p.groups == 1 and p.rank < 3 and min(p.channels, p.features) >= 2 * NARROW
    return not wide or _added_zeros(p) < 0.5


def _adds_little(p: Problem) -> bool:
    """Outputs are so few that the parts of all pixels are fewer than what windows gather."""
    few = not p.over_zeros and (p.features <= FEW or not p.strided)
    return few and PASSES * p.features * p.pixels <= p.channels * p.outputs


def _is_short(p: Problem) -> bool:
    """A short elementwise sum over many positions."""
    few = p.channels <= FEW
    many = p.positions >= MANY_POSITIONS and (p.rank == 2 or (p.rank == 1 and few))
    most = WEIGHTS * (2 if few else 1) if many else FEW_WEIGHTS
    return p.columns <= (TERMS if few else WIDE) and p.columns * p.features <= most


def _is_grouped_finely(p: Problem) -> bool:
    """Depthwise, or groups of few features and few weights."""
    few = p.group_features <= FEW and p.columns * p.group_features <= FEW_WEIGHTS
    return p.groups > 1 and (p.group_channels == 1 or few)


def _fills_gemms(p: Problem) -> bool:
    """Channels and features are many, and outputs fill their tiles."""
    return p.rank == 2 and min(p.channels, p.features) >= 2 * NARROW and fills_tiles(p)


def _fills_gemms_in_phases(p: Problem) -> bool:
    """The same of the phases of a dilated convolution, which are copied twice."""
    phases = _space_to_batch.inner(p)
    return _winograd.applies(phases) and min(p.channels, p.features) >= WIDE and _fills_gemms(phases)


def _reads_padding(p: Problem) -> bool:
    """Much of what windows read is padding."""
    return min(p.channels, p.features) >= NARROW and valid_share(p.window) <= VALID


def _delta_is_narrower(p: Problem) -> bool:
    """Views of delta have fewer columns than views of x."""
    if p.rank == 1:
        return 2 * p.taps * p.features <= p.channels
    return 2 * p.channels * p.outputs >= PASSES * p.features * p.pixels and p.group_channels >= 2 * p.group_features


def _shares_few_views(p: Problem) -> bool:
    """At a stride, or along one axis with columns that are few beside delta's, or batched: one of several examples."""
    if p.rank == 1 and (p.members > 1 or 2 * p.columns <= p.features):
        return True
    return p.rank < 3 and p.strided and p.taps <= FEW_TAPS and p.features >= NARROW


def _shares_views(p: Problem) -> bool:
    """Views of a row of taps serve all rows, and are wide, or of a single image."""
    wide = p.features >= NARROW or (p.columns >= WIDE and p.batch <= FEW)
    return p.rank > 2 or (p.rank == 2 and wide)


def _is_a_large_member(p: Problem) -> bool:
    """One of several sums that a vmap asks for, with kernels or deltas of their own, worth a step of a loop."""
    return p.batch * p.pixels * p.channels >= LARGE_MEMBER


GEMM = Row(_copies_little, "gemm", "windows do not overlap: one GEMM")
PER_GROUP = Row(always, "per_group", "XLA runs a grouped convolution as if it were dense")
WINOGRAD = "windows of 3 at stride 1: 4 products for 6 along each axis"
PHASES = Row(
    _fills_gemms_in_phases, "space_to_batch", "dilation: in each phase taps are neighbours, so Winograd applies"
)
VALID_TAPS = "a GEMM for each tap, of the pixels inside alone: much padding, no products with zeros"
FOLD = Row(
    lambda p: not p.strided and p.taps > FEW_TAPS,
    "fold_axis",
    "XLA has no fast convolution beyond two dimensions: the first axis into batch and channels",
)
DIRECT = Row(always, "direct", "a dense convolution is what XLA does best")
SLIDING = [
    GEMM,
    Row(
        lambda p: p.over_zeros and _parts_suit(p),
        "kn2row",
        "input dilation, few pixels: one GEMM with all weights, no products with zeros",
    ),
    Row(_wastes_little, "subpixel", "input dilation: more features on the input without zeros, then depth-to-space"),
    Row(_is_grouped_finely, "shift_add", "few weights in a group: a short elementwise sum"),
    PER_GROUP,
    Row(_adds_little, "kn2row", "few outputs: one GEMM of pixels and all weights, then shifted sums"),
    Row(_is_short, "shift_add", "few weights: a short elementwise sum"),
    Row(lambda p: p.positions >= POSITIONS and _fills_gemms(p), "winograd", WINOGRAD),
    PHASES,
    Row(_reads_padding, "valid_taps", VALID_TAPS),
    Row(always, "swap_operands > direct", "a window larger than the input: the input slides over the kernel"),
    Row(lambda p: p.channels <= FEW, "im2col", "few channels: XLA's convolution gathers windows slowly"),
    FOLD,
    Row(lambda p: p.rank > 2, "im2col", "XLA has no fast convolution beyond two dimensions"),
    DIRECT,
]
KERNEL = [
    Row(lambda p: p.over_zeros and p.channels > 1, "swap_operands", "input dilation: with operands swapped, a stride"),
    GEMM,
    Row(_fills_gemms, "winograd", WINOGRAD),
    Row(_delta_is_narrower, "swap_operands", "delta has fewer channels: gathered in place of x"),
    Row(always, "shift_add", "depthwise: elementwise sums over the batch, then one reduction for all taps"),
    PER_GROUP,
    Row(
        lambda p: _reads_padding(p) or (p.strided and p.features <= NARROW <= p.channels),
        "valid_taps",
        VALID_TAPS + ", or few features at a stride",
    ),
    PHASES,
    Row(
        lambda p: p.channels <= FEW and (p.rank == 1 or p.features < NARROW),
        "width_tiling > im2col",
        "few channels: several outputs per GEMM row, so each pixel is gathered once",
    ),
    FOLD,
    Row(_shares_few_views, "im2col", "taps share few views: one GEMM for all of them"),
    Row(_shares_views, "row_im2col", "views of one row of taps serve all rows"),
    Row(
        lambda p: p.outputs > p.pixels and not p.over_zeros,
        "swap_operands > direct",
        "delta is larger than x: it slides over x in XLA's fast convolution only where operands are swapped",
    ),
    DIRECT,
]
# Mapped, the definition would be a convolution of as many groups, which XLA runs as if it were dense.
LOOP = Row(_is_a_large_member, ONE_BY_ONE, "members with kernels of their own: one after the other, in the cache")
TABLES = {"z": SLIDING, "x": SLIDING, "kernel": KERNEL}
