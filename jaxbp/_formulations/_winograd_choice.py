"""Whether Winograd's tiles evaluate a map on a CPU, as `_choice` asks: windows of 3 at stride 1, or phases of them."""

import math
from collections.abc import Callable

from .._geometry import ConvGeometry
from . import _phases, _winograd
from ._blocks import largest_divisor
from ._limits import OLD_COMPILER
from ._windows import Choice

FEWEST_WEIGHTS = 32 * 32 if OLD_COMPILER else 48 * 48  # channels times features, to be transformed for Winograd
FEWEST_TILES = 128  # of a whole batch, to share Winograd's weights
MOST_WEIGHTS = 1 << 17  # channels times features, to be transformed for Winograd


def forward_tiles(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice | None:
    """The form of a forward sum in tiles, where it has one."""
    choice = _in_tiles(_suits_winograd_forward, g, batch, channels, features)
    return None if choice and choice[0] == "phases" and not _suits_phases_forward(g, channels, features) else choice


def kernel_grad_tiles(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice | None:
    """The form of a kernel's gradient in tiles, where it has one."""
    return _in_tiles(_suits_winograd_kernel_grad, g, batch, channels, features)


def features_in_part(channels: int, features: int) -> int:
    """How many features' weights fit the cache, in equal parts."""
    return largest_divisor(features, MOST_WEIGHTS // channels)


def _in_tiles(
    suits: Callable[[ConvGeometry, int, int, int], bool], g: ConvGeometry, batch: int, channels: int, features: int
) -> Choice | None:
    """One of Winograd's forms, if that suits the window as it is or its phases."""
    if suits(g, batch, channels, features):
        if _in_parts(g, batch, channels, features):
            return "winograd in parts", "windows of 3 at stride 1; large weights, for some features at a time"
        return "winograd", "windows of 3 at stride 1: 4 products for 6 along each axis"
    if _in_phases(g) and suits(_phases.phases(g), batch * math.prod(g.window.dilation), channels, features):
        return "phases", "taps that lie apart are neighbours in every phase: 4 products for 6 along each axis"
    return None


def _suits_winograd(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether there are channels enough to sum over, and tiles enough to share the weights."""
    w = g.window
    fewest = 192 if w.rank == 1 else 32
    if w.rank not in (1, 2) or {*w.window_shape} != {3} or {*w.strides, *w.dilation, g.feature_group_count} != {1}:
        return False
    if g.precision is not None or min(channels, features) < fewest or channels * features < FEWEST_WEIGHTS:
        return False
    tiles = math.prod(_winograd.tile_counts(g))
    products, usual = tiles * _winograd.INPUTS**w.rank, math.prod(w.output_shape) * w.taps
    return 2 * usual >= 3 * products and batch * tiles >= FEWEST_TILES


def _suits_winograd_forward(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether, moreover, an image fits the cache or has many channels, and large weights few parts."""
    if not _suits_winograd(g, batch, channels, features):
        return False
    one_band = _winograd.blocks(g, batch, channels, features).bands == 1
    shared = channels * features <= MOST_WEIGHTS or _in_parts(g, batch, channels, features)
    return shared and (one_band or max(channels, features) >= 256)


def _suits_winograd_kernel_grad(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether, moreover, products are large, and of one image's bands many."""
    if not _suits_winograd(g, batch, channels, features):
        return False
    fewest = min(channels, features)
    tiles = batch * math.prod(_winograd.tile_counts(g))
    one_band = _winograd.blocks(g, batch, channels, features, kernel_grad=True).bands == 1
    return tiles * fewest >= MOST_WEIGHTS // 8 and (one_band or fewest >= 48)


def _suits_phases_forward(g: ConvGeometry, channels: int, features: int) -> bool:
    """Whether tiles fit the phases, of which each is copied twice, and channels are more than a few."""
    products = math.prod(g.window.dilation) * math.prod(_winograd.tile_counts(_phases.phases(g)))
    usual = math.prod(g.window.output_shape) * g.window.taps
    fits = usual >= 2 * products * _winograd.INPUTS**g.window.rank
    return fits and min(channels, features) ** 2 >= 4 * FEWEST_WEIGHTS


def _in_parts(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether weights are large, to be transformed for some features at a time, a few times."""
    few_parts = 4 * channels * features_in_part(channels, features) >= MOST_WEIGHTS
    return channels * features > MOST_WEIGHTS and few_parts


def _in_phases(g: ConvGeometry) -> bool:
    """Whether taps that lie apart are neighbours in each phase."""
    w = g.window
    return any(d > 1 for d in w.dilation) and {*w.strides, *w.input_dilation, g.feature_group_count} == {1}
