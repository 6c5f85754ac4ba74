"""Adaptive pooling and its backward rules: windows that divide an axis of n pixels into m as evenly as they can.

Window o reads the pixels from `floor(o n / m)` up to `ceil((o + 1) n / m)`, which may differ in size by one and
overlap by one. Pooling over a block is pooling over its axes one after the other, so one axis is all there is to
derive. A pixel i lies in the windows from `floor(i m / n)` up to `ceil((i + 1) m / n)`: the same rule with n and m
exchanged. So the backward pass of a sum over windows is a sum over the windows of each pixel.
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._arguments import as_array, keeping_64_bits, refuse_complex, require_inexact, sum_dtype
from ._forward_mode import custom_vjp
from ._geometry import is_static
from ._mesh import call_rule

# More places in a window than this are looped over.
TAPS_AT_ONCE = 16


class Division(NamedTuple):
    """An axis of `pixels` pixels divided into `windows` windows."""

    axis: int
    pixels: int
    windows: int


# --------------------------------------------------------------------------------------------- the rules


@partial(custom_vjp, nondiff_argnums=(0,))
def _mean(d: Division, x: jax.Array) -> jax.Array:
    """The mean of every window."""
    return _mean_op(d, x)


def _mean_op(d: Division, x: jax.Array) -> jax.Array:
    """The forward pass as a plain function."""
    return _sum_of_windows(d, x) / _window_sizes(d, x)


def _mean_fwd(d: Division, x: jax.Array) -> tuple[jax.Array, None]:
    """Keep nothing."""
    return _mean_op(d, x), None


def _mean_bwd(d: Division, _: None, delta: jax.Array) -> tuple[jax.Array]:
    """Each pixel gets an equal share of the delta of every window that it lies in."""
    shares = delta / _window_sizes(d, delta)
    return (_sum_of_windows(Division(d.axis, d.windows, d.pixels), shares),)


def _mean_tangent(d: Division, _: None, x: jax.Array) -> jax.Array:
    """Linear in x."""
    return _mean_op(d, x)


_mean.defvjp(_mean_fwd, _mean_bwd, _mean_tangent, linear=True)


@partial(custom_vjp, nondiff_argnums=(0,))
def _max(d: Division, x: jax.Array) -> jax.Array:
    """The maximum of every window."""
    return _max_and_winners(d, x)[0]


def _max_fwd(d: Division, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keep the winners: for each window the pixel that it chose."""
    return _max_and_winners(d, x)


def _max_bwd(d: Division, winners: jax.Array, delta: jax.Array) -> tuple[jax.Array]:
    """Each pixel gets the deltas of the windows that it won."""
    return (_upsample_winners(d, winners, delta),)


def _max_tangent(d: Division, winners: jax.Array, dx: jax.Array) -> jax.Array:
    """The tangent of each winner: gathered, where JAX would transpose `_max_bwd` to a scatter."""
    return jnp.take_along_axis(dx, winners, d.axis)


_max.defvjp(_max_fwd, _max_bwd, _max_tangent)


# ------------------------------------------------------------------------------------------- the public ops


@keeping_64_bits
def adaptive_avg_pool(inputs: jax.Array, output_shape: Sequence[int]) -> jax.Array:
    """Average pooling to an output of given size; global average pooling is the case of size 1.

    `y[o] = mean of x[i]` for `floor(o n / m) <= i < ceil((o + 1) n / m)` along every spatial axis.

    Args:
      inputs: (*batch, *spatial, C), with or without batch axes, floating-point.
      output_shape: m for each spatial axis.

    Returns:
      (*batch, *output_shape, C), of the inputs' dtype; bfloat16 and float16 accumulate in float32 inside.

    Raises:
      TypeError: inputs is not an array of floating-point numbers, or output_shape not a sequence of integers.
      ValueError: too few axes, an axis without pixels, or an output size below 1.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.adaptive_avg_pool(jnp.arange(5.)[:, None], (2,))[:, 0]
      Array([1., 3.], dtype=float32)

    Source: PyTorch's `AdaptiveAvgPool2d`.
    """
    op = "adaptive_avg_pool"
    inputs = as_array(op, "inputs", inputs)
    require_inexact(op, "inputs", inputs)
    y = inputs.astype(sum_dtype(inputs.dtype))
    for division in _divisions(op, inputs.shape, output_shape):
        y = _call(_mean, division, y)
    return y.astype(inputs.dtype)


@keeping_64_bits
def adaptive_max_pool(inputs: jax.Array, output_shape: Sequence[int]) -> jax.Array:
    """Max pooling to an output of given size; global max pooling is the case of size 1.

    `y[o] = max of x[i]` for `floor(o n / m) <= i < ceil((o + 1) n / m)` along every spatial axis. Ties and NaN as
    in `max_pool`: along the last axis first, then the others, which together is row-major order.

    Args:
      inputs: (*batch, *spatial, C), with or without batch axes.
      output_shape: m for each spatial axis.

    Returns:
      (*batch, *output_shape, C), of the inputs' dtype.

    Raises:
      TypeError: inputs is not an array of real numbers, or output_shape not a sequence of integers.
      ValueError: too few axes, an axis without pixels, or an output size below 1.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.adaptive_max_pool(jnp.arange(5.)[:, None], (2,))[:, 0]
      Array([2., 4.], dtype=float32)

    Source: PyTorch's `AdaptiveMaxPool2d`.
    """
    op = "adaptive_max_pool"
    inputs = as_array(op, "inputs", inputs)
    refuse_complex(op, "inputs", inputs)
    for division in reversed(_divisions(op, inputs.shape, output_shape)):
        inputs = _call(_max, division, inputs)
    return inputs


# --------------------------------------------------------------------------------------- sums and arithmetic


def _call(rule: Callable[..., Any], d: Division, x: jax.Array) -> jax.Array:
    """Call the rule of one axis."""
    shape = (*x.shape[: d.axis], d.windows, *x.shape[d.axis + 1 :])
    return call_rule(partial(rule, d), x, output_shape=shape, like=[(x, axis) for axis in range(x.ndim)])


# Below, what is called eagerly is compiled once: a loop of a new function would be compiled in every call.
@partial(jax.jit, static_argnums=0, inline=True)
def _sum_of_windows(d: Division, x: jax.Array) -> jax.Array:
    """The sum of every window."""
    if d.pixels % d.windows == 0:
        split = (*x.shape[: d.axis], d.windows, d.pixels // d.windows, *x.shape[d.axis + 1 :])
        return jnp.sum(x.reshape(split), axis=d.axis + 1)

    def add(total: jax.Array, index: Any, inside: Any) -> jax.Array:
        return total + jnp.where(_along(d, inside, x.ndim), jnp.take(x, index, d.axis), 0)

    return _over_taps(d, add, _zeros(d, x))


@partial(jax.jit, static_argnums=0, inline=True)
def _max_and_winners(d: Division, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maximum of every window and the pixel that it chose: the first maximum, but the last NaN."""
    first = _bounds(d)[0].astype(np.int32)
    best = jnp.take(x, first, d.axis)
    winner = jnp.zeros_like(best, jnp.int32) + _along(d, first, x.ndim)

    def better(found: tuple[jax.Array, jax.Array], index: Any, inside: Any) -> tuple[jax.Array, jax.Array]:
        best, winner = found
        view = jnp.take(x, index, d.axis)
        wins = (view > best) & _along(d, inside, x.ndim)
        if jnp.issubdtype(x.dtype, jnp.floating):
            wins |= jnp.isnan(view) & _along(d, inside, x.ndim)
        return jnp.where(wins, view, best), jnp.where(wins, _along(d, index, x.ndim), winner)

    return _over_taps(d, better, (best, winner))


@partial(jax.jit, static_argnums=0, inline=True)
def _upsample_winners(d: Division, winners: jax.Array, delta: jax.Array) -> jax.Array:
    """For every pixel the sum of the deltas of the windows that it won."""
    pixels = _along(d, np.arange(d.pixels, dtype=np.int32), delta.ndim)
    windows_of_pixels = Division(d.axis, d.windows, d.pixels)

    def add(total: jax.Array, index: Any, inside: Any) -> jax.Array:
        won = (jnp.take(winners, index, d.axis) == pixels) & _along(d, inside, delta.ndim)
        return total + jnp.where(won, jnp.take(delta, index, d.axis), 0)

    return _over_taps(windows_of_pixels, add, _zeros(windows_of_pixels, delta))


def _bounds(d: Division) -> tuple[np.ndarray, np.ndarray]:
    """The first pixel of every window and the one behind its last."""
    window = np.arange(d.windows)
    return window * d.pixels // d.windows, -(-(window + 1) * d.pixels // d.windows)


def _over_taps(d: Division, step: Callable[..., Any], total: Any) -> Any:
    """`total = step(total, index, inside)` for every place in the largest window, in order.

    `index` is the pixel there in each window, `inside` whether the window has it. Many places are looped over.
    """
    start, end = _bounds(d)
    places = np.arange(np.max(end - start))[:, None]
    index, inside = np.minimum(start + places, d.pixels - 1).astype(np.int32), start + places < end
    if len(places) <= TAPS_AT_ONCE:
        for each in zip(index, inside, strict=True):
            total = step(total, *each)
        return total
    indices, insides = jnp.asarray(index), jnp.asarray(inside)
    return lax.fori_loop(0, len(places), lambda t, total: step(total, indices[t], insides[t]), total)


def _zeros(d: Division, x: jax.Array) -> jax.Array:
    """A zero for every window of x."""
    return jnp.zeros_like(x, shape=(*x.shape[: d.axis], d.windows, *x.shape[d.axis + 1 :]))


def _window_sizes(d: Division, x: jax.Array) -> jax.Array:
    """How many pixels every window has."""
    start, end = _bounds(d)
    return jnp.asarray(_along(d, end - start, x.ndim), x.real.dtype)


def _along(d: Division, values: Any, ndim: int) -> Any:
    """A vector laid along the divided axis of an array with `ndim` axes."""
    return values.reshape([-1 if axis == d.axis else 1 for axis in range(ndim)])


def _divisions(op: str, shape: tuple[int, ...], output_shape: Any) -> list[Division]:
    """The checked division of every spatial axis."""
    try:
        sizes = tuple(operator.index(m) for m in output_shape)
    except TypeError:
        raise TypeError(
            f"{op}: output_shape={output_shape!r} must be a sequence of integers, one for each spatial axis"
        ) from None
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{op}: output_shape={sizes} must hold at least one integer, and all at least 1")
    if len(shape) < len(sizes) + 1:
        raise ValueError(
            f"{op}: inputs has shape {shape}, but output_shape={sizes} calls for at least {len(sizes) + 1} axes: "
            "(*batch, *spatial, channels)"
        )
    first = len(shape) - len(sizes) - 1
    for size in shape[first:-1]:
        if not is_static([size]):
            raise ValueError(
                f"{op}: inputs has shape {shape}, but windows divide a known number of cells, and {size} is symbolic; "
                "export with known spatial sizes (the batch may be symbolic), or reduce the axis with jax.numpy"
            )
        if size == 0:
            raise ValueError(f"{op}: inputs has shape {shape}, but there is nothing to pool along an axis of size 0")
    return [Division(first + i, shape[first + i], m) for i, m in enumerate(sizes)]
