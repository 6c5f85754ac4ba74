"""Which algorithm evaluates a sum on an NVIDIA GPU, and why. One function per sum, as `_cpu` has them for a CPU.

Measured on two GPUs (BENCHMARKS.md). cuDNN's own sums are hard to beat where XLA finds the right one of them, where
channels fill their tiles, and in at most two dimensions. All else is brought there.
"""

import math

from .._algorithms import _width_tiling
from .._algorithms._windows import Choice
from .._geometry import ConvGeometry, Window, is_static, transposed
from ._cpu import steps_over_zeros
from ._limits import MAX_TAPS, as_patches, kernel_grad_over_zeros, non_overlapping

# Thresholds, measured.
FEW_CHANNELS = 8
NARROW = 16  # channels
SMALL_WINDOW = 9  # taps
LARGE_WINDOW = 49  # taps
HALF = 2  # bytes of an element


def forward_form(g: ConvGeometry, batch: int, channels: int, features: int, back: bool = False) -> Choice:
    """The algorithm of a forward sum. `back`: of delta and the rotated kernel, as the input's gradient."""
    w, groups = g.window, g.feature_group_count
    if not is_static((batch, *w.input_shape, *w.output_shape)):
        return "direct", "sizes are symbolic"
    if groups == 1 and _suits_gemm(as_patches(w), channels):
        return "gemm", "windows do not overlap: one GEMM"
    if groups == 1 and _suits_gemm(as_patches(transposed(w)), features):
        return "transposed gemm", "windows do not overlap: one GEMM, its results put in place"
    if any(d > 1 for d in w.input_dilation):
        if groups == 1 and not steps_over_zeros(w) and (not back or features <= FEW_CHANNELS or w.rank > 2):
            return "subpixel", "input dilation: more features on the input without zeros, then depth-to-space"
        return "direct", "cuDNN has the gradient of a strided convolution's input"
    if groups > 1:
        if w.rank == 1 and channels == groups and w.taps <= MAX_TAPS:
            return "shift_add", "depthwise in one dimension: a short elementwise sum"
        return "direct", "cuDNN has groups"
    if w.rank > 2 and w.window_shape[0] <= MAX_TAPS and features > FEW_CHANNELS:
        return "fold_axis", "XLA keeps channels last in at most two dimensions"
    if _suits_width_tiling(g, channels, features):
        return "width_tiling", "few channels do not fill cuDNN's tiles: those of neighbouring pixels are combined"
    return "direct", "what cuDNN does best"


def input_grad_form(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice:
    """The algorithm of the input's gradient, which is a forward sum of delta and the rotated kernel."""
    return forward_form(g._replace(window=transposed(as_patches(g.window))), batch, features, channels, back=True)


def kernel_grad_form(g: ConvGeometry, batch: int, channels: int, features: int, itemsize: int) -> Choice:
    """The algorithm of the kernel's gradient, for elements of so many bytes."""
    w, groups = g.window, g.feature_group_count
    if not is_static((batch, *w.input_shape, *w.output_shape)):
        return "direct", "sizes are symbolic"
    if over_zeros := kernel_grad_over_zeros(w):
        return over_zeros
    if groups == 1 and _suits_gemm(as_patches(w), channels):
        return "gemm", "windows do not overlap: one GEMM"
    if any(d > 1 for d in w.dilation) and set(w.strides) == {1}:
        return "space_to_batch", "XLA finds cuDNN's sum only without dilation, as in every phase"
    if groups > 1:
        large = itemsize > HALF and w.taps >= LARGE_WINDOW
        if channels == groups and (large or (w.rank == 1 and w.taps <= MAX_TAPS)):
            return "reductions", "depthwise, many taps: one reduction for each tap"
        return "batch_group_count", "cuDNN has groups; batch and channels swapped by dimension numbers, not transposed"
    if w.rank > 2 and w.window_shape[0] <= MAX_TAPS and not FEW_CHANNELS < channels <= NARROW:
        return "fold_axis", "XLA keeps channels last in at most two dimensions"
    if _suits_width_tiling(g, channels, features) and (channels <= 2 or itemsize <= HALF):
        return "width_tiling", "few channels do not fill cuDNN's tiles: those of neighbouring pixels are combined"
    if itemsize <= HALF:
        return "half", "cuDNN accumulates in float32 by itself: no cast"
    return "direct", "what cuDNN does best"


def _suits_gemm(w: Window, channels: int) -> bool:
    """Whether windows do not overlap, and their copy costs less than cuDNN loses."""
    whole = math.prod(w.output_shape) == 1 or (w.taps == 1 and set(w.strides) <= {1})
    return non_overlapping(w) and (whole or w.rank > 2 or (w.taps > 1 and channels <= NARROW))


def _suits_width_tiling(g: ConvGeometry, channels: int, features: int) -> bool:
    """Whether channels are few, and tiling makes more of them. A precision asks for the direct sum."""
    w = g.window
    if (
        g.precision is not None
        or w.rank not in (1, 2)
        or channels > FEW_CHANNELS
        or w.taps == 1
        # Small windows of some channels gain nothing in a whole program: the outputs are written twice.
        or (channels > 2 and w.taps <= SMALL_WINDOW)
        or set(w.input_dilation) != {1}
    ):
        return False
    return _width_tiling.tile_width(w, features) * w.strides[-1] > 1
