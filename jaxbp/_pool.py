"""What all pools share: the article's `upsample`, and the checks of their arguments.

A pool replaces each window of the input by one number. Its backward pass takes one delta per window back to the
window's pixels: to the one that won (`_max_pool.py`), or to all alike (`_avg_pool.py`).
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from . import _pool_maps as pools
from ._arguments import as_array, keeping_64_bits, require_inexact
from ._geometry import Window, as_shape, make_window
from ._mesh import call_map, call_rule


@keeping_64_bits
def upsample(delta: jax.Array, window_shape: Sequence[int], *, winners: jax.Array | None = None) -> jax.Array:
    """The article's upsample: each pixel becomes a block, delta at its winner or spread evenly.

    With winners, block o is delta[o] at tap winners[o] and 0 elsewhere; without, delta[o] / block size everywhere.
    These are the backward passes of max and average pooling whose strides equal the window.

    Args:
      delta: a bare array of n axes, or (*batch, *output, C).
      window_shape: n integers, the size of a block.
      winners: integers of delta's shape, positions inside the block in row-major order; or None. A number that is no
        position of the block leaves it 0.

    Returns:
      An array of delta's dtype whose spatial axes are `window_shape` times as long.

    Raises:
      TypeError, ValueError: delta is not an array of at least n axes, or winners has another shape.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.upsample(jnp.array([[1., 2.]]), (2, 2), winners=jnp.array([[0, 3]]))
      Array([[1., 0., 0., 0.],
             [0., 0., 0., 2.]], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.3.
    """
    op = "upsample"
    delta = as_array(op, "delta", delta)
    sizes = window_sizes(op, window_shape)
    rank = len(sizes)
    if delta.ndim < rank:
        raise ValueError(f"{op}: delta has shape {delta.shape}, but window_shape={sizes} calls for {rank} axes")
    if delta.ndim == rank:
        winners = None if winners is None else as_array(op, "winners", winners)[..., None]
        return upsample(delta[..., None], sizes, winners=winners)[..., 0]
    first = delta.ndim - rank - 1
    spatial = [n * k for n, k in zip(delta.shape[first:-1], sizes, strict=True)]
    w = make_window(op, spatial, sizes, sizes, "VALID")
    shape, like = (*delta.shape[:first], *spatial, delta.shape[-1]), [(delta, axis) for axis in range(delta.ndim)]
    if winners is None:
        require_inexact(op, "delta", delta)
        evenly = partial(pools.upsample_evenly, w=w)
        return call_map(evenly, delta / w.taps, output_shape=shape, like=like)
    winners = as_array(op, "winners", winners)
    require_winners(op, winners)
    if winners.shape != delta.shape:
        raise ValueError(f"{op}: winners has shape {winners.shape}, but delta has shape {delta.shape}; they must agree")
    return call_map(partial(pools.upsample_winners, w=w), delta, winners, output_shape=shape, like=like)


def pool_window(
    op: str, shape: Sequence[int], window_shape: Any, strides: Any, padding: Any, window_dilation: Any,
    ceil_mode: bool, name: str = "inputs",
) -> Window:  # fmt: skip
    """The checked window of a pool over an input of `shape`."""
    sizes = window_sizes(op, window_shape)
    shape = as_shape(op, name, shape)
    if len(shape) < len(sizes) + 1:
        raise ValueError(
            f"{op}: {name} has shape {shape}, but window_shape={sizes} calls for at least {len(sizes) + 1} axes: "
            "(*batch, *spatial, channels)"
        )
    spatial = shape[len(shape) - len(sizes) - 1 : -1]
    return make_window(op, spatial, sizes, strides, padding, window_dilation, ceil_mode=ceil_mode)


def window_sizes(op: str, window_shape: Any) -> tuple[int, ...]:
    """The window's shape as a tuple; it says how many spatial axes there are, so one integer is not enough."""
    try:
        sizes = tuple(operator.index(k) for k in window_shape)
    except TypeError:
        raise TypeError(
            f"{op}: window_shape={window_shape!r} must be a sequence of integers, one for each spatial axis; "
            "for example (2, 2) for images"
        ) from None
    if not sizes:
        raise ValueError(f"{op}: window_shape=() has no axes to pool over; give one integer for each spatial axis")
    return sizes


def require_pooled_shape(op: str, name: str, array: jax.Array, input_shape: Sequence[int], w: Window) -> None:
    """Refuse an array that is not of the shape that pooling an input of `input_shape` gives."""
    *batch, channels = tuple(input_shape)
    shape = (*batch[: len(batch) - w.rank], *w.output_shape, channels)
    if array.shape != shape:
        raise ValueError(
            f"{op}: {name} has shape {array.shape}, but pooling an input of shape {tuple(input_shape)} with "
            f"window_shape={w.window_shape} and strides={w.strides} gives {shape}"
        )


def require_winners(op: str, winners: jax.Array) -> None:
    """Refuse winners that are not integers."""
    if not jnp.issubdtype(winners.dtype, jnp.integer):
        raise TypeError(f"{op}: winners has dtype {winners.dtype}, but positions are integers")


def call_pool(rule: Callable[..., Any], w: Window, inputs: jax.Array) -> Any:
    """Call the rule of a pool; each axis of its output is the pooled axis of its input."""
    shape = (*inputs.shape[: inputs.ndim - w.rank - 1], *w.output_shape, inputs.shape[-1])
    return call_rule(rule, inputs, output_shape=shape, like=[(inputs, axis) for axis in range(inputs.ndim)])
