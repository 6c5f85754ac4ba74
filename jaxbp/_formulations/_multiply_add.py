"""Shifted multiply-adds: a convolution as one elementwise expression, for groups of few channels.

A depthwise convolution is no matrix product in disguise: each output is a short sum of numbers times weights. Written
as `sum_t view_t(x) * w_t` over whole arrays, the compiler makes one loop of it that reads the input once. With c
channels in a group the sum has c terms for each tap. Channels are laid out as (c, groups), so that the loop runs
along the groups (or, in a single group, along the outputs).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from .._geometry import ConvGeometry, Window, read_padding
from ._blocks import largest_divisor
from ._memory import written
from ._windows import pad_axes, tap_views

# Images (or bands of their rows) added up explicitly, taps in one program, and both: what is worth its compile time.
AT_ONCE = 8
TAPS_AT_ONCE = 8
TERMS_AT_ONCE = 40


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Add up every tap of every channel of the group."""
    groups = g.feature_group_count
    *_, c, features = kernel.shape
    weights = kernel.reshape(-1, *[1] * (x.ndim - 1), groups, features // groups).swapaxes(-2, -1)
    views = tap_views(_channels_by_group(x, groups), g.window, 0, trailing=2)
    cells = [lax.slice_in_dim(view, i, i + 1, axis=x.ndim - 1) for view in views for i in range(c)]
    terms = [cell * lax.index_in_dim(weights, i, keepdims=False) for i, cell in enumerate(cells)]
    total = functools.reduce(lax.add, terms)
    return written(total.swapaxes(-2, -1).reshape(*total.shape[:-2], features))


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Add up the products of shifted inputs and delta over the batch, then over all positions at once.

    A reduction for each tap would run once over the arrays for each tap; the explicit sum over some images is
    elementwise and fuses, and one reduction over the stacked taps is left. Large windows take one row of taps at a
    time, so that the program stays small.
    """
    groups, w = g.feature_group_count, g.window
    features = delta.shape[-1]
    x, delta = _channels_by_group(x, groups), _channels_by_group(delta, groups)
    if w.taps <= TAPS_AT_ONCE or w.window_shape[0] == 1:
        sums = _kernel_sums(x, delta, w)
    else:
        padded = pad_axes(x, range(1, w.rank + 1), read_padding(w), 0)
        reach = (w.output_shape[0] - 1) * w.strides[0] + 1
        row = w._replace(
            input_shape=(reach, *padded.shape[2 : w.rank + 1]),
            window_shape=(1, *w.window_shape[1:]),
            padding=((0, 0),) * w.rank,
        )

        def row_sums(tap: jax.Array) -> jax.Array:
            rows = lax.dynamic_slice_in_dim(padded, tap * w.dilation[0], reach, axis=1)
            return _kernel_sums(rows, delta, row)

        sums = lax.map(row_sums, jnp.arange(w.window_shape[0]))
    return sums.swapaxes(-2, -1).reshape(*w.window_shape, sums.shape[-3], features)


def _kernel_sums(x: jax.Array, delta: jax.Array, w: Window) -> jax.Array:
    """(taps, c, o, groups): the sum over batch and positions for every tap."""
    batch, rows = delta.shape[0], w.output_shape[0]
    at_once = min(AT_ONCE, TERMS_AT_ONCE // w.taps)
    images = largest_divisor(batch, at_once)
    bands = largest_divisor(rows, at_once // images)

    def sums(x: jax.Array, delta: jax.Array) -> jax.Array:
        """The sums of some images: over them, and over bands of rows, at every position; then over all positions."""
        delta, by_tap = jnp.expand_dims(delta, -3), []
        for view in tap_views(x, w, 0, trailing=2):
            terms = jnp.expand_dims(view, -2) * delta
            terms = terms.reshape(images * bands, rows // bands, *terms.shape[2:])
            parts = [lax.slice_in_dim(terms, i, i + 1) for i in range(images * bands)]
            by_tap.append(functools.reduce(lax.add, parts))
        return jnp.sum(jnp.concatenate(by_tap), axis=tuple(range(1, w.rank + 1)))

    def add(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + sums(*block), None

    def blocks(a: jax.Array) -> jax.Array:
        return a.reshape(batch // images, images, *a.shape[1:])

    if batch == images:
        return sums(x, delta)
    first = jnp.zeros_like(x, shape=(w.taps, x.shape[-2], *delta.shape[-2:]))
    return lax.scan(add, first, (blocks(x), blocks(delta)))[0]


def _channels_by_group(x: jax.Array, groups: int) -> jax.Array:
    """(..., C) as (..., C / groups, groups)."""
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups).swapaxes(-2, -1)
