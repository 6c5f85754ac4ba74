"""Which algorithm evaluates a sum on an NVIDIA GPU, and why: a table for each sum.

Measured on two GPUs (BENCHMARKS.md). cuDNN's own sums are hard to beat where XLA finds the right one of them, where
channels fill their tiles, and in at most two dimensions. All else is brought there.
"""

import math

from .._algorithms._windows import MAX_TAPS
from .._geometry import Problem, Window, as_patches, non_overlapping, transposed
from ._row import Row, always

FEW_CHANNELS = 8
NARROW = 16  # channels
SMALL_WINDOW = 9  # taps
LARGE_WINDOW = 49  # taps
HALF = 2  # bytes of an element


def _copies_little(w: Window, channels: int) -> bool:
    """Whether windows do not overlap, and their copy costs less than cuDNN loses."""
    whole = math.prod(w.output_shape) == 1 or (w.taps == 1 and set(w.strides) <= {1})
    return non_overlapping(w) and (whole or w.rank > 2 or (w.taps > 1 and channels <= NARROW))


def _suits_gemm(p: Problem) -> bool:
    """The same of the windows, or of those of the transposed convolution."""
    back = p.out != "kernel" and _copies_little(as_patches(transposed(p.window)), p.features)
    return back or _copies_little(as_patches(p.window), p.channels)


def _few_channels(p: Problem) -> bool:
    """Few channels, in at most two dimensions; small windows gain only with 1 or 2, as outputs are written twice."""
    return p.rank < 3 and p.channels <= (2 if p.taps <= SMALL_WINDOW else FEW_CHANNELS)


GEMM = Row(_suits_gemm, "gemm", "windows do not overlap: one GEMM")
DEPTHWISE = Row(
    lambda p: p.group_channels == 1 < p.groups and p.rank == 1 and p.taps <= MAX_TAPS,
    "shift_add",
    "depthwise in one dimension: short elementwise sums",
)
FOLD = Row(lambda p: p.features > FEW_CHANNELS, "fold_axis", "XLA keeps channels last in at most two dimensions")
NARROW_TILES = "few channels do not fill cuDNN's tiles: those of neighbouring pixels are combined"
SUBPIXEL = "input dilation: more features on the input without zeros, then depth-to-space"
CUDNN = Row(always, "direct", "what cuDNN does best")

TABLES = {
    "z": [
        GEMM,
        Row(lambda p: p.groups == 1, "subpixel", SUBPIXEL),
        DEPTHWISE,
        FOLD,
        Row(_few_channels, "width_tiling > direct", NARROW_TILES),
        CUDNN,
    ],
    "x": [
        GEMM,
        Row(lambda p: p.groups == 1 and (p.features <= FEW_CHANNELS or p.rank > 2), "subpixel", SUBPIXEL),
        DEPTHWISE,
        FOLD,
        Row(_few_channels, "width_tiling > direct", NARROW_TILES),
        CUDNN,
    ],
    "kernel": [
        Row(lambda p: p.over_zeros, "swap_operands", "input dilation: with input and delta swapped, it is a stride"),
        GEMM,
        Row(
            always,
            "space_to_batch",
            "XLA finds cuDNN's sum only without dilation, as in every phase",
        ),
        DEPTHWISE,
        Row(
            lambda p: p.group_channels == 1 < p.groups and p.dtype.itemsize > HALF and p.taps >= LARGE_WINDOW,
            "shift_add",
            "depthwise, many taps: one reduction for each tap",
        ),
        Row(
            lambda p: p.groups > 1,
            "batch_group_count",
            "cuDNN has groups; batch and channels swapped by dimension numbers, not transposed",
        ),
        Row(
            lambda p: not FEW_CHANNELS < p.channels <= NARROW,
            "fold_axis",
            "XLA keeps channels last in at most two dimensions",
        ),
        Row(
            lambda p: _few_channels(p) and (p.channels <= 2 or p.dtype.itemsize <= HALF),
            "width_tiling > direct",
            NARROW_TILES,
        ),
        CUDNN,
    ],
}
