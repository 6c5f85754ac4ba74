"""Which algorithm evaluates a sum on a CPU, and why: a table for the output and x's gradient, one for the kernel's.

In the first table the kernel slides, over x or over delta: for x's gradient "channels" are delta's, and the zeros that
a stride puts between delta's pixels are input dilation. The rows were fitted to what
`python -m jaxbp bench --algorithms --random` says on x86 CPUs with AVX2 and with AVX-512.
"""

from .._algorithms._subpixel import added_zeros
from .._algorithms._valid_taps import valid_share
from .._algorithms._winograd import fills_tiles
from .._geometry import Problem
from ._row import ONE_BY_ONE, Row, always

# Thresholds of the processor, and of XLA:CPU on it.
CACHE = 1 << 21  # elements that stay in the cache: 8 MiB of float32
NARROW = 16  # channels or features: a narrower GEMM takes as long as one of 16
WIDE = 64  # columns, channels or features
FEW = 4  # images, channels or features
FEW_TAPS, MANY_TAPS = 9, 27  # of a window
MANY_POSITIONS = 1 << 13  # of a whole batch: worth an elementwise loop over more weights
TERMS = 150  # of an elementwise sum
WEIGHTS, FEW_WEIGHTS = 1 << 11, 1 << 9  # of an elementwise sum, over many positions and over few
LONG_ROW = 1 << 11  # columns of a GEMM that is worth the copy of windows into rows
WINOGRAD_POSITIONS = 384  # of a whole batch: worth the transform of the weights
PART = 4  # one element of kn2row's parts costs as much as so many that windows gather
VALID = 0.6  # share of what windows read that is inside the input
WEIGHTS_PER_POSITION = 256  # a GEMM is as slow as reading its weights
MOST_ZEROS = 0.5  # for each tap
LARGE_MEMBER = 1 << 13  # elements of a member that is worth a step of a loop


def _suits_gemm(p: Problem) -> bool:
    """Windows are rows as they are (pixels, a single window, zeros between pixels), or the GEMM is worth their copy."""
    in_order = p.taps == 1 or p.over_zeros or p.outputs == 1
    return in_order or p.rank == 1 or p.features >= 2 * NARROW or not WIDE < p.columns < LONG_ROW


def _parts_suit(p: Problem) -> bool:
    """kn2row's parts (all taps' products of each pixel) fit the cache, and either windows of many channels are dilated,
    or parts are few, and subpixel would multiply with many zeros or the time is that of reading the weights.
    """
    fit = p.taps * p.features * p.pixels <= CACHE
    if p.dilated and p.channels > NARROW:
        return fit
    few_features = PART * p.features <= p.channels and p.taps <= FEW_TAPS
    few_parts = few_features or p.batch * p.pixels <= NARROW * p.channels
    reads_weights = WEIGHTS_PER_POSITION * p.batch * p.pixels <= p.channels * p.features
    return fit and few_parts and (reads_weights or added_zeros(p.window) >= MOST_ZEROS)


def _wastes_little(p: Problem) -> bool:
    """Subpixel adds few zeros, or XLA is slow at a dilated input: of groups, three axes or few channels."""
    fast = p.groups == 1 and p.rank < 3 and min(p.channels, p.features) >= 2 * NARROW
    return not fast or added_zeros(p.window) < MOST_ZEROS


def _has_few_features(p: Problem) -> bool:
    """Features are so few that the parts of all pixels, which a stride skips, cost less than what windows gather: in
    three dimensions twice as much, unless an axis is folded.
    """
    few = not p.over_zeros and (p.features <= FEW or not p.strided)
    gathered = p.channels * p.outputs * (2 if p.rank > 2 and not _has_many_taps(p) else 1)
    return few and PART * p.features * p.pixels <= gathered


def _has_many_taps(p: Problem) -> bool:
    """At stride 1, more taps than three dimensions usually have: gathering all is more work than folding an axis."""
    return not p.strided and p.taps > MANY_TAPS


def _is_short(p: Problem) -> bool:
    """A short elementwise sum of few weights, or of more over many positions."""
    many = p.rank == 2 and p.positions >= MANY_POSITIONS
    return p.columns <= TERMS and p.columns * p.features <= (WEIGHTS if many else FEW_WEIGHTS)


def _is_grouped_finely(p: Problem) -> bool:
    """Depthwise, or many groups of few features and few weights: the loop runs along the groups."""
    few = p.group_features <= FEW and p.columns * p.group_features <= WIDE * FEW
    return p.groups > 1 and (p.group_channels == 1 or (p.groups >= NARROW and few))


def _fills_gemms(p: Problem) -> bool:
    """Two axes, many channels and features, and outputs that fill their tiles."""
    return p.rank == 2 and min(p.channels, p.features) >= 2 * NARROW and fills_tiles(p)


def _reads_padding(p: Problem) -> bool:
    """Much of what windows read is padding."""
    return min(p.channels, p.features) >= NARROW and valid_share(p.window) <= VALID


def _has_few_positions(p: Problem) -> bool:
    """At stride 1, so few positions that reading the weights takes most of the time; along one axis for few taps."""
    reads_weights = WEIGHTS_PER_POSITION * p.positions <= p.channels * p.features
    return reads_weights and not p.strided and (p.rank > 1 or p.taps < FEW)


def _delta_is_narrower(p: Problem) -> bool:
    """Delta's windows gather at most half of what x's do; along one axis they are narrower than a pixel of x."""
    if p.rank == 1:
        return 2 * p.taps * p.features <= p.channels
    return p.channels * p.outputs >= 2 * p.features * p.pixels and p.group_channels >= 2 * p.group_features


def _suits_width_tiling(p: Problem) -> bool:
    """Few channels in two axes, or in more at stride 1 with few taps; taps side by side."""
    tiles = p.rank == 2 or (p.rank > 2 and not p.strided and p.taps <= MANY_TAPS)
    return tiles and 2 * p.channels <= NARROW and not p.dilated


def _suits_im2col(p: Problem) -> bool:
    """Two axes or more, and delta is wide, or windows are and images few; along one axis XLA is slow for these."""
    if p.rank == 1:
        return 2 * p.columns <= p.features or p.members > 1 or (p.strided and p.batch <= FEW)
    return p.rank > 2 or p.features >= NARROW or (p.columns >= WIDE and p.batch <= FEW)


GEMM = Row(_suits_gemm, "gemm", "windows do not overlap: one GEMM")
PER_GROUP = Row(always, "per_group", "XLA runs a grouped convolution as if it were dense")
WINOGRAD = "windows of 3 at stride 1: 4 products for 6 along each axis"
VALID_TAPS = "much padding, few positions or features: a GEMM for each tap, of the pixels that it reads"
FOLD = "XLA has no fast convolution beyond two dimensions: the first axis into batch and channels"
DIRECT = Row(always, "direct", "nothing else was faster than XLA's own convolution")
SLIDING = [
    GEMM,
    Row(
        lambda p: p.over_zeros and _parts_suit(p),
        "kn2row",
        "input dilation, small parts: one GEMM of pixels and all weights, no products with zeros",
    ),
    Row(_wastes_little, "subpixel", "input dilation: more features on the input without zeros, then depth-to-space"),
    Row(_is_grouped_finely, "shift_add", "depthwise, or many small groups: elementwise sums"),
    PER_GROUP,
    Row(_has_few_features, "kn2row", "few features: one GEMM of pixels and all weights, then shifted sums"),
    Row(_is_short, "shift_add", "few weights: a short elementwise sum"),
    Row(lambda p: _reads_padding(p) or _has_few_positions(p), "valid_taps", VALID_TAPS),
    Row(lambda p: p.positions >= WINOGRAD_POSITIONS and _fills_gemms(p), "winograd", WINOGRAD),
    Row(lambda p: _has_many_taps(p) and not p.channels <= FEW < p.features, "fold_axis", FOLD),
    Row(
        lambda p: p.rank > 2 or (p.features > FEW and (p.channels <= FEW or (p.rank == 2 and p.strided))),
        "im2col",
        "windows as rows: XLA's own is slow beyond two dimensions, for few channels, and for strides in two",
    ),
    DIRECT,
]
KERNEL = [
    Row(lambda p: p.over_zeros and p.channels > 1, "swap_operands", "input dilation: with operands swapped, a stride"),
    GEMM,
    Row(_fills_gemms, "winograd", WINOGRAD),
    Row(_delta_is_narrower, "swap_operands", "delta has fewer channels: gathered in place of x"),
    Row(
        always, "shift_add", "one channel in a group: elementwise sums over the batch, then one reduction for all taps"
    ),
    PER_GROUP,
    Row(
        lambda p: _reads_padding(p) or _has_few_positions(p) or (p.strided and p.features <= NARROW <= p.channels),
        "valid_taps",
        VALID_TAPS,
    ),
    Row(
        _suits_width_tiling,
        "width_tiling > im2col",
        "few channels: several outputs per GEMM row, so each pixel is gathered once",
    ),
    Row(_has_many_taps, "fold_axis", FOLD),
    Row(_suits_im2col, "im2col", "a wide GEMM of all taps, worth the copy of windows into rows"),
    Row(
        lambda p: p.outputs > p.pixels and not p.over_zeros,
        "swap_operands > direct",
        "delta is larger than x: swapped, x slides over delta in XLA's fast convolution",
    ),
    DIRECT,
]
# For sums that a vmap asks for. In any case in place of direct: mapped, it has groups, which XLA runs as if dense.
LOOP = Row(
    lambda p: p.batch * p.pixels * p.channels >= LARGE_MEMBER,
    ONE_BY_ONE,
    "members with kernels of their own: one after the other",
)
TABLES = {"z": SLIDING, "x": SLIDING, "kernel": KERNEL}
