"""Whether Winograd's tiles evaluate a map on a CPU, as `_cpu` asks: windows of 3 at stride 1, or phases of them."""

import math
from collections.abc import Callable

from .._algorithms import _space_to_batch, _winograd
from .._algorithms._tiles import largest_divisor
from .._algorithms._windows import Choice
from .._geometry import ConvGeometry
from ._limits import OLD_COMPILER, has_few_positions

Predicate = Callable[[ConvGeometry, int, int, int], bool]

FEWEST_WEIGHTS = 32 * 32 if OLD_COMPILER else 48 * 48  # channels times features, to be transformed for Winograd
FEWEST_TILES = 96  # of a whole batch, to share Winograd's weights; a third of them to add up to those of a gradient
FEWEST_PRODUCTS = 1 << 19  # of a kernel's gradient: tiles times channels times features
MOST_WEIGHTS = 1 << 17  # channels times features, to be transformed for Winograd in one part


def forward_tiles(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice | None:
    """The form of a forward sum in tiles, where it has one."""
    choice = _in_tiles(_suits_winograd_forward, _in_parts_forward, g, batch, channels, features)
    if choice and choice[0] == "space_to_batch" and not _suits_phases_forward(g, channels, features):
        return None
    return choice


def kernel_grad_tiles(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice | None:
    """The form of a kernel's gradient in tiles, where it has one."""
    return _in_tiles(_suits_winograd_kernel_grad, _in_parts_kernel_grad, g, batch, channels, features)


def features_in_part(channels: int, features: int) -> int:
    """How many features' weights fit the cache, in equal parts."""
    return largest_divisor(features, MOST_WEIGHTS // channels)


def _in_tiles(
    suits: Predicate, in_parts: Predicate, g: ConvGeometry, batch: int, channels: int, features: int
) -> Choice | None:
    """One of Winograd's forms, if that suits the window as it is or its phases."""
    if suits(g, batch, channels, features):
        if in_parts(g, batch, channels, features):
            return "winograd in parts", "windows of 3 at stride 1; large weights, for some features at a time"
        return "winograd", "windows of 3 at stride 1: 4 products for 6 along each axis"
    if _in_phases(g) and suits(_space_to_batch.phases(g), batch * math.prod(g.window.dilation), channels, features):
        return "space_to_batch", "taps that lie apart are neighbours in every phase: 4 products for 6 along each axis"
    return None


def _suits_winograd(g: ConvGeometry, channels: int, features: int) -> bool:
    """Whether windows of 3 have channels enough to sum over, and most of an image's tiles are outputs."""
    w = g.window
    fewest = 192 if w.rank == 1 else 32
    if w.rank not in (1, 2) or {*w.window_shape} != {3} or {*w.strides, *w.dilation, g.feature_group_count} != {1}:
        return False
    if g.precision is not None or min(channels, features) < fewest or channels * features < FEWEST_WEIGHTS:
        return False
    products, usual = _tiles(g) * _winograd.INPUTS**w.rank, math.prod(w.output_shape) * w.taps
    return 2 * usual >= 3 * products


def _suits_winograd_forward(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether, moreover, many tiles share the weights, and an image fits the cache or has many channels."""
    if not _suits_winograd(g, channels, features):
        return False
    in_parts = _in_parts_forward(g, batch, channels, features)
    one_band = _winograd.blocks(g, batch, channels, features).bands == 1
    if in_parts:
        enough = batch * _tiles(g) >= 2 * FEWEST_TILES
    else:
        # A network's step keeps the whole weights of all its layers: 16 MiB of 512 x 512, transformed.
        fits = not _are_too_large(channels, features) and not has_few_positions(g, batch, channels, features)
        enough = fits and batch * _tiles(g) >= FEWEST_TILES
    return enough and (one_band or max(channels, features) >= 256)


def _suits_winograd_kernel_grad(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether, moreover, tiles are many for the weights that they add up to, and of one image's bands many."""
    if not _suits_winograd(g, channels, features):
        return False
    in_parts = _in_parts_kernel_grad(g, batch, channels, features)
    tiles = batch * _tiles(g)
    one_band = _winograd.blocks(g, batch, channels, features, kernel_grad=True).bands == 1
    if in_parts:
        enough = tiles >= 2 * FEWEST_TILES
    else:
        enough = not _are_too_large(channels, features) and tiles >= FEWEST_TILES / 3
    many = tiles * channels * features >= FEWEST_PRODUCTS
    return enough and many and (one_band or min(channels, features) >= 48)


def _suits_phases_forward(g: ConvGeometry, channels: int, features: int) -> bool:
    """Whether tiles fit the phases, of which each is copied twice, and channels are more than a few."""
    products = math.prod(g.window.dilation) * math.prod(_winograd.tile_counts(_space_to_batch.phases(g)))
    usual = math.prod(g.window.output_shape) * g.window.taps
    fits = usual >= 2 * products * _winograd.INPUTS**g.window.rank
    return fits and min(channels, features) ** 2 >= 4 * FEWEST_WEIGHTS


def _in_parts_forward(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether weights are too large for the cache, and some features' fit it, a few times."""
    return _are_too_large(channels, features) and _has_few_parts(channels, features)


def _in_parts_kernel_grad(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """The same; or they are large, and several blocks add up to them."""
    several = _winograd.blocks(g, batch, channels, features, kernel_grad=True).count > 1
    large = several and 2 * channels * features > 3 * MOST_WEIGHTS
    return (large or _are_too_large(channels, features)) and _has_few_parts(channels, features)


def _are_too_large(channels: int, features: int) -> bool:
    """Whether weights, transformed, are too large for the cache."""
    return channels * features > 2 * MOST_WEIGHTS


def _has_few_parts(channels: int, features: int) -> bool:
    """Whether features divide into few parts that fit the cache."""
    return 4 * channels * features_in_part(channels, features) >= MOST_WEIGHTS


def _tiles(g: ConvGeometry) -> int:
    """How many tiles an image has."""
    return math.prod(_winograd.tile_counts(g))


def _in_phases(g: ConvGeometry) -> bool:
    """Whether taps that lie apart are neighbours in each phase."""
    w = g.window
    return any(d > 1 for d in w.dilation) and {*w.strides, *w.input_dilation, g.feature_group_count} == {1}
