"""fold_axis: the first of three spatial axes folded into batch and channels.

Compilers have fast convolutions for two spatial axes. The taps along the first axis become channels, and its outputs
become images of a larger batch. More than three axes are folded one after the other.
"""

import math

import jax
import jax.numpy as jnp

from .._geometry import ConvGeometry, Problem, Window
from ._direct import weights
from ._memory import materialize
from ._tiles import Tiles, map_tiles, sum_tiles, tile
from ._windows import MAX_TAPS, Form, concat_views, concat_views_by_axis, first_axis


def applies(p: Problem) -> bool:
    """One group, more than two axes, no zeros between pixels."""
    return p.dense and p.rank > 2 and p.window.window_shape[0] <= MAX_TAPS


def inner(p: Problem) -> Problem:
    """The sum with one axis less, of one tile."""
    tiles = _tiles(p)
    g = p.g if tiles is None else tiles.geometry
    return p.inside(
        geometry=g._replace(window=_without_first(g.window)),
        batch=(p.batch if tiles is None else tiles.images) * g.window.output_shape[0],
        channels=p.channels * p.window.window_shape[0],
    )


def run(a: jax.Array, b: jax.Array, p: Problem, of: Form) -> jax.Array:
    """On a CPU tile by tile where the folded input exceeds the cache."""
    tiles = _tiles(p)

    def views(x: jax.Array, w: Window) -> jax.Array:
        # Materialized, the forward sum and the kernel's gradient share them.
        return materialize(concat_views(x, w)) if p.platform == "cpu" else concat_views_by_axis(x, w)

    if p.out == "kernel":

        def sums(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
            return _kernel_grad(x, delta, g.window, of, views)

        return sums(a, b, p.g) if tiles is None else sum_tiles(sums, a, b, p.g, tiles)
    kernel = weights(b, p)

    def outputs(x: jax.Array, g: ConvGeometry) -> jax.Array:
        return _forward(x, kernel, g.window, of, views)

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


def _forward(x: jax.Array, kernel: jax.Array, w: Window, folded: Form, views: Form) -> jax.Array:
    """The forward sum: taps along the first axis are channels of the folded one."""
    weights = jnp.moveaxis(kernel, 0, -3)
    weights = weights.reshape(*weights.shape[:-3], -1, weights.shape[-1])
    z = folded(_folded(x, w, views), weights)
    return z.reshape(x.shape[0], *w.output_shape, z.shape[-1])


def _kernel_grad(x: jax.Array, delta: jax.Array, w: Window, folded: Form, views: Form) -> jax.Array:
    """The kernel's gradient of the folded convolution, unfolded."""
    dkernel = folded(_folded(x, w, views), delta.reshape(-1, *delta.shape[2:]))
    channels, features = x.shape[-1], delta.shape[-1]
    dkernel = dkernel.reshape(-1, w.window_shape[0], channels * features).swapaxes(0, 1)
    return dkernel.reshape(*w.window_shape, channels, features)


def _folded(x: jax.Array, w: Window, views: Form) -> jax.Array:
    """(N * output, *rest, taps * C): for every output along the first axis what its taps read."""
    taps = views(x, first_axis(w, x))
    return taps.reshape(-1, *taps.shape[2:])


def _without_first(w: Window) -> Window:
    """The window without its first axis."""
    return Window._make(per_axis[1:] for per_axis in w)
