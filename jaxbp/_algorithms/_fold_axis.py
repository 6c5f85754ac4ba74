"""fold_axis: the first of three spatial axes folded into batch and channels.

Compilers have fast convolutions for two spatial axes. The taps along the first axis become channels, and its outputs
become images of a larger batch. More than three axes are folded one after the other.
"""

import math

import jax
import jax.numpy as jnp

from .._geometry import ConvGeometry, Problem, Window
from ._direct import sliding_kernel
from ._memory import materialize
from ._tiles import Tiles, map_tiles, sum_tiles, tile
from ._windows import MAX_TAPS, Form, axis_alone, concat_views, concat_views_by_axis


def applies(p: Problem) -> bool:
    """One group, more than two axes, no zeros between pixels."""
    return p.dense and p.rank > 2 and p.window.window_shape[0] <= MAX_TAPS


def inner(p: Problem) -> Problem:
    """The sum with one axis less, of one tile."""
    tiles = _tiles(p)
    g = p.g if tiles is None else tiles.geometry
    return p.inside(
        geometry=g._replace(window=Window._make(per_axis[1:] for per_axis in g.window)),
        batch=(p.batch if tiles is None else tiles.images) * g.window.output_shape[0],
        channels=p.channels * p.window.window_shape[0],
    )


def run(a: jax.Array, b: jax.Array, p: Problem, of: Form) -> jax.Array:
    """On a CPU tile by tile where the folded input exceeds the cache."""
    tiles = _tiles(p)

    def folded(x: jax.Array, w: Window) -> jax.Array:
        """(N * output, *rest, taps * C): for every output along the first axis what its taps read."""
        first = axis_alone(w, 0, x)
        # Materialized, the forward sum and the kernel's gradient share them.
        taps = materialize(concat_views(x, first)) if p.platform == "cpu" else concat_views_by_axis(x, first)
        return taps.reshape(-1, *taps.shape[2:])

    if p.out == "kernel":

        def sums(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
            dkernel = of(folded(x, g.window), delta.reshape(-1, *delta.shape[2:]))
            dkernel = dkernel.reshape(-1, g.window.window_shape[0], p.channels * p.features).swapaxes(0, 1)
            return dkernel.reshape(*g.window.window_shape, p.channels, p.features)

        return sums(a, b, p.g) if tiles is None else sum_tiles(sums, a, b, p.g, tiles)
    kernel = sliding_kernel(b, p)

    def outputs(x: jax.Array, g: ConvGeometry) -> jax.Array:
        # Taps along the first axis are channels of the folded convolution.
        taps = jnp.moveaxis(kernel, 0, -3)
        taps = taps.reshape(*taps.shape[:-3], -1, p.features)
        z = of(folded(x, g.window), taps)
        return z.reshape(x.shape[0], *g.window.output_shape, p.features)

    return outputs(a, p.g) if tiles is None else map_tiles(outputs, a, p.g, tiles)


def _tiles(p: Problem) -> Tiles | None:
    """The tiles, if there are several."""
    if p.platform != "cpu":
        return None
    w = p.window
    of_first = p.window.window_shape[0] * p.channels
    elements = of_first * -(-math.prod(w.input_shape[1:]) // math.prod(w.output_shape[1:]))
    tiles = tile(p.g, p.batch, elements)
    return tiles if tiles.count > 1 else None
