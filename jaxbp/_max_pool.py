"""Max pooling and its backward rule.

    y[o] = max_t x[s o + d t - p]

Moving any pixel of a window but the winner (a little) changes nothing; moving the winner moves the output as much.
So delta is upsampled: it goes to the position that won, every other pixel gets zero, and a pixel that won several
windows gets the sum. What the rule keeps is not the input but the winners: the tap, counted in row-major order,
that each window chose. Of equal pixels the first wins. NaN counts as the maximum, so that it is seen and not lost;
of several the last one wins, as in PyTorch.

Unpooling writes what pooling read: each value goes to the place that won its window. Its backward pass reads delta
there again.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from . import _pool_maps as pools
from ._arguments import as_array, keeping_64_bits, refuse_complex
from ._forward_mode import custom_vjp
from ._geometry import Window, canonical_padding, dilated_size, per_axis
from ._mesh import call_map, call_rule
from ._pool import call_pool, pool_window, require_pooled_shape, require_winners, window_sizes

# --------------------------------------------------------------------------------------------- the rule


@partial(custom_vjp, nondiff_argnums=(0,))
def _max(w: Window, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maximum of every window, and its winner."""
    return pools.max_and_winners(x, w)


def _max_fwd(w: Window, x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Keep the winners."""
    pooled, winners = pools.max_and_winners(x, w)
    return (pooled, winners), winners


def _max_bwd(w: Window, winners: jax.Array, cotangents: tuple[jax.Array, Any]) -> tuple[jax.Array]:
    """Upsample delta to the winners; the winners themselves, integers, send nothing back."""
    delta, _ = cotangents
    return (pools.upsample_winners(delta, winners, w, chosen=True),)


_max.defvjp(_max_fwd, _max_bwd)


@partial(custom_vjp, nondiff_argnums=(0,))
def _unpool(w: Window, values: jax.Array, winners: jax.Array) -> jax.Array:
    """Each value at the place that won its window."""
    return pools.unpool_winners(values, winners, w)


def _unpool_fwd(w: Window, values: jax.Array, winners: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keep the winners."""
    return pools.unpool_winners(values, winners, w), winners


def _unpool_bwd(w: Window, winners: jax.Array, delta: jax.Array) -> tuple[jax.Array, None]:
    """Each window reads delta where it wrote, unless a later window wrote over it."""
    return pools.transpose_of_unpool(delta, winners, w), None


def _unpool_tangent(w: Window, winners: jax.Array, values: jax.Array) -> jax.Array:
    """Linear in the values."""
    return pools.unpool_winners(values, winners, w)


_unpool.defvjp(_unpool_fwd, _unpool_bwd, _unpool_tangent, linear=True)


# ------------------------------------------------------------------------------------- the gradient maps


@keeping_64_bits
def max_pool_grad(
    delta: jax.Array,
    winners: jax.Array,
    input_shape: Sequence[int],
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """The gradient of max pooling's input: delta upsampled to the winners.

    `dJ/dx[i] = sum of delta[o]` over the windows o that i won, and 0 elsewhere.

    Args:
      delta: cotangent of the pooled output, (*batch, *output, C).
      winners: what `max_pool_with_winners` returned, of delta's shape; a number that is no position of the window
        wins nothing.
      input_shape: shape of the pool's input, (*batch, *spatial, C).
      window_shape, strides, padding, window_dilation, ceil_mode: as given to `max_pool`.

    Returns:
      An array of shape `input_shape` and delta's dtype.

    Raises:
      TypeError, ValueError: where `max_pool` would, and where delta or winners is not of the output's shape.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> y, winners = jaxbp.max_pool_with_winners(jnp.arange(16.).reshape(4, 4, 1), (2, 2), (2, 2))
      >>> jaxbp.max_pool_grad(y, winners, (4, 4, 1), (2, 2), (2, 2))[..., 0]
      Array([[ 0.,  0.,  0.,  0.],
             [ 0.,  5.,  0.,  7.],
             [ 0.,  0.,  0.,  0.],
             [ 0., 13.,  0., 15.]], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.3.
    """
    op = "max_pool_grad"
    delta, winners = as_array(op, "delta", delta), as_array(op, "winners", winners)
    w = pool_window(op, input_shape, window_shape, strides, padding, window_dilation, ceil_mode, name="input_shape")
    for name, array in (("delta", delta), ("winners", winners)):
        require_pooled_shape(op, name, array, input_shape, w)
    require_winners(op, winners)
    upsample = partial(pools.upsample_winners, w=w)
    like = [(delta, axis) for axis in range(delta.ndim)]
    return call_map(upsample, delta, winners, output_shape=tuple(input_shape), like=like)


# ------------------------------------------------------------------------------------------- the public ops


@keeping_64_bits
def max_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """Max pooling: the largest number of every window; delta goes back to the position that won.

    `y[o] = max_t x[s o + d t - p]`, where t is a position in the window, s the stride, d the dilation and p the
    padding before the input. Ties: the first maximum in row-major window order; NaN counts as the maximum.

    Args:
      inputs: (*batch, *spatial, C): channels last, with or without batch axes.
      window_shape: n integers, one for each spatial axis, in pixels.
      strides: steps between windows, in pixels: an integer or n of them; None: 1 (Flax; PyTorch's is the window).
      padding: "SAME", "SAME_LOWER", "VALID", an integer, or n (low, high) pairs in pixels; negative pads crop.
      window_dilation: distance between the window's pixels: an integer or n of them; None: 1.
      ceil_mode: keep a last window that hangs over the end, if it starts on the input or its low padding.

    Returns:
      (*batch, *output, C), of the inputs' dtype; the lowest value where a window lies wholly in padding.

    Raises:
      TypeError: inputs is not an array, or is complex.
      ValueError: too few axes, a stride or dilation below 1, padding that is not understood, or a window larger than
        its padded input.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.max_pool(jnp.arange(16.).reshape(4, 4, 1), (2, 2), (2, 2))[..., 0]
      Array([[ 5.,  7.],
             [13., 15.]], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.3.
    """
    inputs, w = _max_arguments("max_pool", inputs, window_shape, strides, padding, window_dilation, ceil_mode)
    return call_pool(partial(_max, w), w, inputs)[0]


@keeping_64_bits
def max_pool_with_winners(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Max pooling that also returns which position of each window won.

    `winners[o] = argmax_t x[s o + d t - p]`, where t is a position in the window, s the stride, d the dilation and p
    the padding before the input. Positions are counted in row-major order inside the window.

    Args:
      inputs: (*batch, *spatial, C): channels last, with or without batch axes.
      window_shape: n integers, one for each spatial axis, in pixels.
      strides: steps between windows, in pixels: an integer or n of them; None: 1 (Flax; PyTorch's is the window).
      padding: "SAME", "SAME_LOWER", "VALID", an integer, or n (low, high) pairs in pixels; negative pads crop.
      window_dilation: distance between the window's pixels: an integer or n of them; None: 1.
      ceil_mode: keep a last window that hangs over the end, if it starts on the input or its low padding.

    Returns:
      The pair (pooled, winners), both (*batch, *output, C): pooled as `max_pool` returns it, winners in the smallest
      unsigned integer dtype that holds them; where a window lies wholly in padding the number of its pixels.

    Raises:
      TypeError: inputs is not an array, or is complex.
      ValueError: too few axes, a stride or dilation below 1, padding that is not understood, or a window larger than
        its padded input.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> pooled, winners = jaxbp.max_pool_with_winners(jnp.array([[1.], [3.], [2.], [2.]]), (2,), (2,))
      >>> winners[:, 0]
      Array([1, 0], dtype=uint8)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.3.
    """
    op = "max_pool_with_winners"
    inputs, w = _max_arguments(op, inputs, window_shape, strides, padding, window_dilation, ceil_mode)
    return call_pool(partial(_max, w), w, inputs)


@keeping_64_bits
def min_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """Min pooling: the smallest number of every window; delta goes back to the position that won.

    `y[o] = min_t x[s o + d t - p]`, where t is a position in the window, s the stride, d the dilation and p the
    padding before the input. It is the maximum in reversed order; ties and NaN as in `max_pool`.

    Args:
      inputs: (*batch, *spatial, C): channels last, with or without batch axes.
      window_shape: n integers, one for each spatial axis, in pixels.
      strides: steps between windows, in pixels: an integer or n of them; None: 1 (Flax; PyTorch's is the window).
      padding: "SAME", "SAME_LOWER", "VALID", an integer, or n (low, high) pairs in pixels; negative pads crop.
      window_dilation: distance between the window's pixels: an integer or n of them; None: 1.
      ceil_mode: keep a last window that hangs over the end, if it starts on the input or its low padding.

    Returns:
      (*batch, *output, C), of the inputs' dtype; the highest value where a window lies wholly in padding.

    Raises:
      TypeError: inputs is not an array, or is complex.
      ValueError: too few axes, a stride or dilation below 1, padding that is not understood, or a window larger than
        its padded input.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.min_pool(jnp.arange(16.).reshape(4, 4, 1), (2, 2), (2, 2))[..., 0]
      Array([[ 0.,  2.],
             [ 8., 10.]], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.3.
    """
    inputs, w = _max_arguments("min_pool", inputs, window_shape, strides, padding, window_dilation, ceil_mode)
    return _reverse_order(call_pool(partial(_max, w), w, _reverse_order(inputs))[0])


@keeping_64_bits
def max_unpool(
    pooled: jax.Array,
    winners: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    input_shape: Sequence[int] | None = None,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """Undo max pooling: write each value to the position that won its window, and 0 everywhere else.

    `x[s o + d winners[o] - p] = y[o]`; where windows that overlap share a winner, the last one writes.

    Args:
      pooled: (*batch, *output, C).
      winners: what `max_pool_with_winners` returned, of pooled's shape (positions inside the window, not PyTorch's
        indices into the input); a number that is no position of the window writes nothing.
      window_shape, strides, padding, window_dilation, ceil_mode: as given to `max_pool_with_winners`.
      input_shape: shape of the pool's input, (*batch, *spatial, C); None: the smallest that pools to this output,
        which needs explicit padding or "VALID".

    Returns:
      An array of shape `input_shape` and pooled's dtype.

    Raises:
      TypeError: an argument is not an array, or winners are not integers.
      ValueError: as `max_pool_with_winners`; shapes that do not follow from each other; a padding word that needs
        `input_shape`.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> pooled, winners = jaxbp.max_pool_with_winners(jnp.array([[1.], [3.], [2.], [2.]]), (2,), (2,))
      >>> jaxbp.max_unpool(pooled, winners, (2,), (2,))[:, 0]
      Array([0., 3., 2., 0.], dtype=float32)

    Source: PyTorch's `MaxUnpool2d`; Zeiler and Fergus, "Visualizing and understanding convolutional networks" (2014).
    """
    op = "max_unpool"
    pooled, winners = as_array(op, "pooled", pooled), as_array(op, "winners", winners)
    require_winners(op, winners)
    sizes = window_sizes(op, window_shape)
    if input_shape is None:
        input_shape = _smallest_input(op, pooled.shape, sizes, strides, padding, window_dilation)
    w = pool_window(op, input_shape, sizes, strides, padding, window_dilation, ceil_mode, name="input_shape")
    for name, array in (("pooled", pooled), ("winners", winners)):
        require_pooled_shape(op, name, array, input_shape, w)
    like = [(pooled, axis) for axis in range(pooled.ndim)]
    return call_rule(partial(_unpool, w), pooled, winners, output_shape=tuple(input_shape), like=like)


def _smallest_input(
    op: str,
    pooled_shape: tuple[int, ...],
    sizes: tuple[int, ...],
    strides: Any,
    padding: Any,
    window_dilation: Any,
) -> tuple[int, ...]:
    """The shape of the smallest input that pools to `pooled_shape`."""
    rank = len(sizes)
    steps = per_axis(op, "strides", strides, rank)
    dilation = per_axis(op, "window_dilation", window_dilation, rank)
    pads = canonical_padding(op, padding, rank)
    if pads in ("SAME", "SAME_LOWER"):
        raise ValueError(
            f"{op}: padding={padding!r} leaves the size of the input open (pooled has shape {pooled_shape}); give "
            "input_shape, or padding as (low, high) pairs"
        )
    if len(pooled_shape) < rank + 1:
        raise ValueError(
            f"{op}: pooled has shape {pooled_shape}, but window_shape={sizes} calls for at least {rank + 1} axes: "
            "(*batch, *output, channels)"
        )
    pairs = ((0, 0),) * rank if isinstance(pads, str) else pads
    first = len(pooled_shape) - rank - 1
    spatial = [
        (out - 1) * s + dilated_size(k, d) - low - high
        for out, s, k, d, (low, high) in zip(pooled_shape[first:-1], steps, sizes, dilation, pairs, strict=True)
    ]
    return (*pooled_shape[:first], *spatial, pooled_shape[-1])


def _max_arguments(
    op: str, inputs: Any, window_shape: Any, strides: Any, padding: Any, window_dilation: Any, ceil_mode: bool
) -> tuple[jax.Array, Window]:
    """The checked arguments of a pool that compares."""
    inputs = as_array(op, "inputs", inputs)
    refuse_complex(op, "inputs", inputs)
    return inputs, pool_window(op, inputs.shape, window_shape, strides, padding, window_dilation, ceil_mode)


def _reverse_order(x: jax.Array) -> jax.Array:
    """A map that turns the order of all numbers around, and is its own inverse."""
    return ~x if jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == jnp.bool_ else -x
