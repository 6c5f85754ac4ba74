"""Average, sum and p-norm pooling and their backward rules.

*Average.* `y[o] = sum_t x[s o + d t - p] / m[o]`, where m counts pixels. Each pixel of the window moves the output by
1 / m: upsampled evenly, delta / m goes to every one of them. The sum is the case m = 1.

*p-norm.* `y[o] = (sum_t |x[s o + d t - p]|^P)^(1/P)`. By the chain rule through the root and the power, pixel i gets
`sign(x[i]) |x[i]|^(P-1)` times the evenly upsampled `delta / y^(P-1)`, and 0 where the norm is 0.

A pixel that lies in several windows gets the sum of what they send. Pixels of the padding get nothing.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _pool_maps as pools
from ._arguments import as_array, keeping_64_bits, refuse_complex, require_inexact, sum_dtype
from ._forward_mode import custom_vjp
from ._geometry import Pairs, Window, make_window
from ._max_pool import max_pool
from ._mesh import call_map
from ._pool import call_pool, pool_window, require_pooled_shape

# --------------------------------------------------------------------------------------------- the rules


class Average(NamedTuple):
    """A window, and what its sum is divided by: a given number, or the pixels that lie on what is counted."""

    window: Window
    divisor: float | None
    counted_padding: Pairs = ()


@partial(custom_vjp, nondiff_argnums=(0,))
def _average(g: Average, x: jax.Array) -> jax.Array:
    """The sum of every window over its divisor."""
    return _average_op(g, x)


def _average_op(g: Average, x: jax.Array) -> jax.Array:
    """The forward pass as a plain function."""
    total = pools.window_sum(x, g.window)
    return (total if g.divisor == 1 else total / _divisor(g, total)).astype(x.dtype)


def _average_fwd(g: Average, x: jax.Array) -> tuple[jax.Array, None]:
    """Keep nothing: the gradient does not depend on the input."""
    return _average_op(g, x), None


def _average_bwd(g: Average, _: None, delta: jax.Array) -> tuple[jax.Array]:
    """Upsample delta / divisor evenly."""
    wide = delta.astype(sum_dtype(delta.dtype))
    share = wide / _divisor(g, wide, at_least=1)
    return (pools.upsample_evenly(share, g.window).astype(delta.dtype),)


def _average_tangent(g: Average, _: None, x: jax.Array) -> jax.Array:
    """Linear in x."""
    return _average_op(g, x)


_average.defvjp(_average_fwd, _average_bwd, _average_tangent, linear=True)


@partial(custom_vjp, nondiff_argnums=(0, 1))
def _norm(w: Window, p: float, x: jax.Array) -> jax.Array:
    """The p-norm of every window."""
    return _norm_op(w, p, x).astype(x.dtype)


def _norm_op(w: Window, p: float, x: jax.Array) -> jax.Array:
    """The forward pass as a plain function, in the dtype of its sums."""
    total = pools.window_sum(_power(jnp.abs(x.astype(sum_dtype(x.dtype))), p), w)
    return _power(total, 1 / p)


def _norm_fwd(w: Window, p: float, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Keep the input and the norms, these unrounded: rounded before, their power would be far off."""
    y = _norm_op(w, p, x)
    return y.astype(x.dtype), (x, y)


def _norm_bwd(w: Window, p: float, kept: tuple[jax.Array, jax.Array], delta: jax.Array) -> tuple[jax.Array]:
    """Upsample delta / y^(p-1), and weigh each pixel with its own sign(x) |x|^(p-1)."""
    x, y, wide_delta = (v.astype(sum_dtype(v.dtype)) for v in (*kept, delta))
    share = wide_delta * _power(y, 1 - p)
    dx = jnp.sign(x) * _power(jnp.abs(x), p - 1) * pools.upsample_evenly(share, w)
    return (dx.astype(delta.dtype),)


_norm.defvjp(_norm_fwd, _norm_bwd)


# ------------------------------------------------------------------------------------- the gradient maps


@keeping_64_bits
def avg_pool_grad(
    delta: jax.Array,
    input_shape: Sequence[int],
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    count_include_pad: bool = True,
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
    divisor_override: int | None = None,
) -> jax.Array:
    """The gradient of average pooling's input: delta / window size upsampled to every pixel of the window.

    `dJ/dx[i] = sum of delta[o] / m[o]` over the windows o that i lies in.

    Args:
      delta: cotangent of the pooled output, (*batch, *output, C).
      input_shape: shape of the pool's input, (*batch, *spatial, C).
      window_shape, strides, padding, count_include_pad, window_dilation, ceil_mode, divisor_override: as given to
        `avg_pool`.

    Returns:
      An array of shape `input_shape` and delta's dtype.

    Raises:
      TypeError, ValueError: where `avg_pool` would, and where delta is not of the output's shape.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> delta = jnp.array([[2.5, 4.5], [10.5, 12.5]]).reshape(2, 2, 1)
      >>> jaxbp.avg_pool_grad(delta, (4, 4, 1), (2, 2), (2, 2))[..., 0]
      Array([[0.625, 0.625, 1.125, 1.125],
             [0.625, 0.625, 1.125, 1.125],
             [2.625, 2.625, 3.125, 3.125],
             [2.625, 2.625, 3.125, 3.125]], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.3.
    """
    op = "avg_pool_grad"
    delta = as_array(op, "delta", delta)
    require_inexact(op, "delta", delta)
    arguments = (input_shape, window_shape, strides, padding, window_dilation, ceil_mode)
    g = _average_geometry(op, *arguments, count_include_pad, divisor_override, name="input_shape")
    require_pooled_shape(op, "delta", delta, input_shape, g.window)
    like = [(delta, axis) for axis in range(delta.ndim)]
    return call_map(lambda delta: _average_bwd(g, None, delta)[0], delta, output_shape=tuple(input_shape), like=like)


# ------------------------------------------------------------------------------------------- the public ops


@keeping_64_bits
def avg_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    count_include_pad: bool = True,
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
    divisor_override: int | None = None,
) -> jax.Array:
    """Average pooling: the mean of every window; each of its pixels gets an equal share of delta.

    `y[o] = sum_t x[s o + d t - p] / m[o]`, where m[o] counts the window's pixels, t is a position in the window, s the
    stride, d the dilation and p the padding before the input.

    Args:
      inputs: (*batch, *spatial, C): channels last, with or without batch axes.
      window_shape: n integers, one for each spatial axis, in pixels.
      strides: steps between windows, in pixels: an integer or n of them; None: 1 (Flax; PyTorch's is the window).
      padding: "SAME", "SAME_LOWER", "VALID", an integer, or n (low, high) pairs in pixels; negative pads crop.
      count_include_pad: count pixels of the padding, too (never those beyond it that `ceil_mode` adds).
      window_dilation: distance between the window's pixels: an integer or n of them; None: 1.
      ceil_mode: keep a last window that hangs over the end, if it starts on the input or its low padding.
      divisor_override: divide by this number instead of the count.

    Returns:
      (*batch, *output, C), of the inputs' dtype; bfloat16 and float16 accumulate in float32 inside.

    Raises:
      TypeError: inputs is not an array, or holds integers.
      ValueError: too few axes, a stride or dilation below 1, padding that is not understood, or a window larger than
        its padded input.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.avg_pool(jnp.arange(16.).reshape(4, 4, 1), (2, 2), (2, 2))[..., 0]
      Array([[ 2.5,  4.5],
             [10.5, 12.5]], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.3.
    """
    inputs = as_array("avg_pool", "inputs", inputs)
    require_inexact("avg_pool", "inputs", inputs)
    arguments = (inputs.shape, window_shape, strides, padding, window_dilation, ceil_mode)
    g = _average_geometry("avg_pool", *arguments, count_include_pad, divisor_override)
    return call_pool(partial(_average, g), g.window, inputs)


@keeping_64_bits
def sum_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """Sum pooling: the sum of every window; each of its pixels gets delta.

    `y[o] = sum_t x[s o + d t - p]`, where t is a position in the window, s the stride, d the dilation and p the
    padding before the input.

    Args:
      inputs: (*batch, *spatial, C): channels last, with or without batch axes.
      window_shape: n integers, one for each spatial axis, in pixels.
      strides: steps between windows, in pixels: an integer or n of them; None: 1 (Flax; PyTorch's is the window).
      padding: "SAME", "SAME_LOWER", "VALID", an integer, or n (low, high) pairs in pixels; negative pads crop.
      window_dilation: distance between the window's pixels: an integer or n of them; None: 1.
      ceil_mode: keep a last window that hangs over the end, if it starts on the input or its low padding.

    Returns:
      (*batch, *output, C), of the inputs' dtype; bfloat16 and float16 accumulate in float32 inside.

    Raises:
      TypeError: inputs is not an array, or holds booleans.
      ValueError: too few axes, a stride or dilation below 1, padding that is not understood, or a window larger than
        its padded input.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.sum_pool(jnp.arange(16.).reshape(4, 4, 1), (2, 2), (2, 2))[..., 0]
      Array([[10., 18.],
             [42., 50.]], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.3.
    """
    inputs = as_array("sum_pool", "inputs", inputs)
    if inputs.dtype == jnp.bool_:
        raise TypeError(
            "sum_pool: inputs has dtype bool, which has no sums; for example inputs.astype(jax.numpy.int32)"
        )
    w = pool_window("sum_pool", inputs.shape, window_shape, strides, padding, window_dilation, ceil_mode)
    return call_pool(partial(_average, Average(w, 1)), w, inputs)


@keeping_64_bits
def lp_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    p: float = 2.0,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """Power pooling: the p-norm of every window.

    `y[o] = (sum_t |x[s o + d t - p]|^P)^(1/P)`, where P is the argument `p`, t is a position in the window, s the
    stride, d the dilation and p the padding before the input. The gradient at a norm of 0 is 0.

    Args:
      inputs: (*batch, *spatial, C): channels last, with or without batch axes.
      window_shape: n integers, one for each spatial axis, in pixels.
      strides: steps between windows, in pixels: an integer or n of them; None: 1 (Flax; PyTorch's is the window).
      padding: "SAME", "SAME_LOWER", "VALID", an integer, or n (low, high) pairs in pixels; negative pads crop.
      p: the order of the norm, at least 1; infinity: the largest magnitude.
      window_dilation: distance between the window's pixels: an integer or n of them; None: 1.
      ceil_mode: keep a last window that hangs over the end, if it starts on the input or its low padding.

    Returns:
      (*batch, *output, C), of the inputs' dtype; bfloat16 and float16 accumulate in float32 inside.

    Raises:
      TypeError: inputs is not an array, or does not hold real floating-point numbers.
      ValueError: too few axes, a stride or dilation below 1, padding that is not understood, or a window larger than
        its padded input; p below 1.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.lp_pool(jnp.array([[3.], [-4.], [0.], [0.]]), (2,), (2,))[:, 0]
      Array([5., 0.], dtype=float32)

    Source: ONNX operator LpPool; PyTorch's `LPPool2d` without its loss of negative sums.
    """
    op = "lp_pool"
    inputs = as_array(op, "inputs", inputs)
    require_inexact(op, "inputs", inputs)
    refuse_complex(op, "inputs", inputs)
    if not isinstance(p, int | float | np.number):
        raise TypeError(f"{op}: p={p!r} must be a number, the order of a norm")
    if not p >= 1:
        raise ValueError(f"{op}: p={p!r} is not the order of a norm; use a number of at least 1")
    w = pool_window(op, inputs.shape, window_shape, strides, padding, window_dilation, ceil_mode)
    if math.isinf(p):
        # The derivative of jnp.abs at 0 is 1; a norm's is 0 here.
        magnitudes = jnp.where(inputs == 0, 0, jnp.abs(inputs))
        largest = max_pool(
            magnitudes, window_shape, strides, padding, window_dilation=window_dilation, ceil_mode=ceil_mode
        )
        # Padding counts as 0 here, as in every other norm.
        return jnp.maximum(largest, 0)
    return call_pool(partial(_norm, w, float(p)), w, inputs)


# ----------------------------------------------------------------------------------------------- arguments


def _average_geometry(
    op: str, shape: Sequence[int], window_shape: Any, strides: Any, padding: Any, window_dilation: Any,
    ceil_mode: bool, count_include_pad: bool, divisor_override: int | None, name: str = "inputs",
) -> Average:  # fmt: skip
    """The checked window of an average and its divisor."""
    w = pool_window(op, shape, window_shape, strides, padding, window_dilation, ceil_mode, name)
    if divisor_override is not None:
        if not isinstance(divisor_override, int | float | np.number) or not math.isfinite(divisor_override):
            raise TypeError(f"{op}: divisor_override={divisor_override!r} must be a finite number, or None to count")
        if divisor_override == 0:
            raise ValueError(f"{op}: divisor_override=0 would divide by zero; give another number, or None to count")
        number = divisor_override.item() if isinstance(divisor_override, np.number) else divisor_override
        return Average(w, number)
    if not count_include_pad:
        return Average(w, None, ((0, 0),) * w.rank)
    if ceil_mode:
        floor = make_window(op, w.input_shape, w.window_shape, w.strides, padding, w.dilation, allow_empty=True)
        return Average(w, None, floor.padding)
    return Average(w, w.taps)


def _divisor(g: Average, sums: jax.Array, at_least: int = 0) -> jax.Array | float:
    """What each window's sum is divided by, to be broadcast against the sums, (*batch, *output, C)."""
    if g.divisor is not None:
        return g.divisor
    w = g.window
    count = jnp.ones((1,) * sums.ndim, jnp.int32)
    for i in range(w.rank):
        (low, high), n, k, d = g.counted_padding[i], w.input_shape[i], w.window_shape[i], w.dilation[i]
        start = jnp.arange(w.output_shape[i], dtype=jnp.int32) * w.strides[i] - w.padding[i][0]
        first, end = (jnp.clip(-((start - bound) // d), 0, k) for bound in (-low, n + high))
        shape = [1] * sums.ndim
        shape[sums.ndim - 1 - w.rank + i] = w.output_shape[i]
        count = count * (end - first).reshape(shape)
    return jnp.maximum(count, at_least).astype(sums.real.dtype)


def _power(base: jax.Array, exponent: float) -> jax.Array:
    """`base ** exponent`, and 0 where base is 0: values and derivatives stay finite there."""
    safe = jnp.where(base == 0, 1, base)
    return jnp.where(base == 0, 0, safe**exponent)
