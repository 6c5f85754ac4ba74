"""Whether Winograd evaluates a sum on a CPU: windows of 3 at stride 1, or the phases of dilated ones."""

import math
from collections.abc import Callable

from .._algorithms import _space_to_batch, _winograd
from .._algorithms._tiles import largest_divisor
from .._algorithms._windows import Choice
from .._geometry import ConvGeometry
from ._limits import OLD_COMPILER, has_few_positions

Predicate = Callable[[ConvGeometry, int, int, int], bool]

FEWEST_WEIGHTS = 32 * 32 if OLD_COMPILER else 48 * 48  # channels times features
FEWEST_TILES = 96  # of a whole batch, which share the weights; for a kernel's gradient a third of it
FEWEST_PRODUCTS = 1 << 19  # of a kernel's gradient: tiles times channels times features
MOST_WEIGHTS = 1 << 17  # channels times features, transformed in one chunk


def forward_winograd(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice | None:
    """The Winograd algorithm of a forward sum, if any."""
    choice = _winograd_or_phases(_suits_winograd_forward, _in_chunks_forward, g, batch, channels, features)
    if choice and choice[0] == "space_to_batch" and not _suits_space_to_batch_forward(g, channels, features):
        return None
    return choice


def kernel_grad_winograd(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice | None:
    """The Winograd algorithm of a kernel's gradient, if any."""
    return _winograd_or_phases(_suits_winograd_kernel_grad, _in_chunks_kernel_grad, g, batch, channels, features)


def features_in_chunk(channels: int, features: int) -> int:
    """Features in each of equal chunks whose weights fit the cache."""
    return largest_divisor(features, MOST_WEIGHTS // channels)


def _winograd_or_phases(
    suits: Predicate, in_chunks: Predicate, g: ConvGeometry, batch: int, channels: int, features: int
) -> Choice | None:
    """Winograd, if that suits the window as it is, or its phases."""
    if suits(g, batch, channels, features):
        if in_chunks(g, batch, channels, features):
            return (
                "winograd in chunks",
                "windows of 3 at stride 1; weights larger than the cache: a chunk of the features at a time",
            )
        return "winograd", "windows of 3 at stride 1: 4 products for 6 along each axis"
    if _has_phases(g) and suits(
        _space_to_batch.phase_geometry(g), batch * math.prod(g.window.dilation), channels, features
    ):
        return "space_to_batch", "dilation: in each phase taps are neighbours, so Winograd applies"
    return None


def _suits_winograd(g: ConvGeometry, channels: int, features: int) -> bool:
    """Whether windows of 3 have enough channels, and outputs fill most of their tiles."""
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
    in_chunks = _in_chunks_forward(g, batch, channels, features)
    one_band = _winograd.cache_tiles(g, batch, channels, features).bands == 1
    if in_chunks:
        enough = batch * _tiles(g) >= 2 * FEWEST_TILES
    else:
        # A training step keeps the transformed weights of all layers: 16 MiB for 512 x 512.
        fits = not _are_too_large(channels, features) and not has_few_positions(g, batch, channels, features)
        enough = fits and batch * _tiles(g) >= FEWEST_TILES
    return enough and (one_band or max(channels, features) >= 256)


def _suits_winograd_kernel_grad(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether, moreover, tiles are many for the weights that they add up to; also where an image has several bands."""
    if not _suits_winograd(g, channels, features):
        return False
    in_chunks = _in_chunks_kernel_grad(g, batch, channels, features)
    tiles = batch * _tiles(g)
    one_band = _winograd.cache_tiles(g, batch, channels, features, kernel_grad=True).bands == 1
    if in_chunks:
        enough = tiles >= 2 * FEWEST_TILES
    else:
        enough = not _are_too_large(channels, features) and tiles >= FEWEST_TILES / 3
    many = tiles * channels * features >= FEWEST_PRODUCTS
    return enough and many and (one_band or min(channels, features) >= 48)


def _suits_space_to_batch_forward(g: ConvGeometry, channels: int, features: int) -> bool:
    """Whether outputs fill the tiles of the phases, each of which is copied twice, and channels are many."""
    products = math.prod(g.window.dilation) * math.prod(_winograd.tile_counts(_space_to_batch.phase_geometry(g)))
    usual = math.prod(g.window.output_shape) * g.window.taps
    fits = usual >= 2 * products * _winograd.INPUTS**g.window.rank
    return fits and min(channels, features) ** 2 >= 4 * FEWEST_WEIGHTS


def _in_chunks_forward(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether weights exceed the cache, and few chunks of them fit it."""
    return _are_too_large(channels, features) and _has_few_chunks(channels, features)


def _in_chunks_kernel_grad(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """The same; or they are large, and several cache tiles add up to them."""
    several = _winograd.cache_tiles(g, batch, channels, features, kernel_grad=True).count > 1
    large = several and 2 * channels * features > 3 * MOST_WEIGHTS
    return (large or _are_too_large(channels, features)) and _has_few_chunks(channels, features)


def _are_too_large(channels: int, features: int) -> bool:
    """Whether transformed weights exceed the cache."""
    return channels * features > 2 * MOST_WEIGHTS


def _has_few_chunks(channels: int, features: int) -> bool:
    """Whether features divide into few chunks that fit the cache."""
    return 4 * channels * features_in_chunk(channels, features) >= MOST_WEIGHTS


def _tiles(g: ConvGeometry) -> int:
    """How many Winograd tiles an image has."""
    return math.prod(_winograd.tile_counts(g))


def _has_phases(g: ConvGeometry) -> bool:
    """Whether the convolution is dilated, and its phases are convolutions at stride 1."""
    w = g.window
    return any(d > 1 for d in w.dilation) and {*w.strides, *w.input_dilation, g.feature_group_count} == {1}
