"""Convolution and its backward rule.

The derivation, in one dimension and for one channel. The forward pass is a cross-correlation plus a bias:

    z[o] = sum_t x[o + t] w[t] + b

Let J be what is differentiated in the end, and `delta[o] = dJ/dz[o]`. Every gradient follows from asking
which outputs a number had a part in.

*Input.* `x[i]` met `w[t]` in the output `o = i - t`, for every t, so

    dJ/dx[i] = sum_t delta[i - t] w[t]

delta's index falls while the weight's rises. To slide a window over delta in the usual way, both rising, read
the weights from the last to the first: **dJ/dx = delta (full) rot180(w)**, where "full" means that delta has
zeros around it, because `i - t` runs over its edges.

*Kernel.* `w[t]` met `x[o + t]` in every output o, so

    dJ/dw[t] = sum_o x[o + t] delta[o]

which is the forward sum with delta in the kernel's place: **dJ/dw = x (corr) delta**, the same sum as
rot180(delta (full) x).

*Bias.* b is in every output once: **dJ/db = sum_o delta[o]**.

Everything else is bookkeeping on indices. With strides s, kernel dilation d and padding p, output o and tap t
meet at input `i = s o + d t - p`: the strides put s - 1 zeros between delta's pixels, the dilation puts zeros
between the weights, the padding is what the full zeros lose. Channels and the batch are summed over wherever
they do not appear on the left. Groups are convolutions side by side.

The three sums stand below by definition. `_sums` evaluates them, by an equal algorithm of `_algorithms` where `_plan`
knows a faster one.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _sums as sums
from ._algorithms import _direct
from ._algorithms._direct import at_least_one_pixel, slide, swap_channels
from ._algorithms._windows import of_shape
from ._arguments import Asked, as_array, keeping_64_bits, require_same_dtype, sum_dtype
from ._batching import op_primitive
from ._forward_mode import mode
from ._geometry import (
    CONV_WORDS,
    MOST_PIXELS,
    ConvGeometry,
    Window,
    as_shape,
    conv_window,
    dilated_size,
    full_padding,
    per_axis,
)
from ._mesh import call_map, call_rule, whole_along
from ._norms import with_norms

# -------------------------------------------------------------------------------- the three sums by definition


def forward_by_definition(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """z = x * W: the kernel slides over the padded input."""
    w = g.window
    z = slide(
        x, kernel, strides=w.strides, zeros_around=w.padding, zeros_between=w.input_dilation, dilation=w.dilation,
        feature_group_count=g.feature_group_count, precision=g.precision, dtype=g.preferred_element_type,
    )  # fmt: skip
    return of_shape(z, (x.shape[0], *w.output_shape, kernel.shape[-1]))


def input_grad_by_definition(delta: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """dJ/dx = delta (full) rot180(W): the strides put zeros between delta's pixels, "full" puts zeros around them."""
    w, groups = g.window, g.feature_group_count
    rotated = _direct.rot180(swap_channels(kernel, groups), w.rank)
    dx = slide(
        delta, rotated, strides=w.input_dilation, zeros_around=full_padding(w), zeros_between=w.strides,
        dilation=w.dilation, feature_group_count=groups, precision=g.precision,
    )  # fmt: skip
    return of_shape(dx, (delta.shape[0], *w.input_shape, kernel.shape[-2] * groups))


def kernel_grad_by_definition(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """dJ/dW = x (corr) delta: delta, with zeros between its pixels, slides over the padded input.

    The sum runs over the batch, which takes the channels' place; a transpose says so, as inside of loops XLA:CPU has
    its fast convolution for the channels-last layout alone.
    """
    w = g.window
    spatial = range(1, w.rank + 1)
    delta, strides, padding = at_least_one_pixel(delta, w)
    dkernel = slide(
        x.transpose(w.rank + 1, *spatial, 0), delta.transpose(*spatial, 0, w.rank + 1), strides=w.dilation,
        zeros_around=padding, zeros_between=w.input_dilation, dilation=strides,
        batch_group_count=g.feature_group_count, precision=g.precision,
    )  # fmt: skip
    return dkernel.transpose(*spatial, 0, w.rank + 1)


_direct.definition.update(z=forward_by_definition, x=input_grad_by_definition, kernel=kernel_grad_by_definition)

# ---------------------------------------------------------------------------------------------- the rule


def _conv(g: ConvGeometry, x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """z = x * W + b for x of (N, *spatial, C) and kernel of (*window, C / groups, O)."""
    z = sums.forward(x, kernel, g)
    return z if bias is None else z + jnp.broadcast_to(bias, z.shape)


def _conv_fwd(
    g: ConvGeometry, asked: Asked, x: jax.Array, kernel: jax.Array, *bias: jax.Array
) -> tuple[jax.Array, tuple]:
    """Keep what the gradients that are asked for need: x for the kernel's, the kernel for x's."""
    asks_x, asks_kernel, *_ = asked
    return _conv(g, x, kernel, *bias), (x if asks_kernel else None, kernel if asks_x else None)


def conv_backward(g: ConvGeometry, asked: Asked, kept: tuple, delta: jax.Array) -> tuple:
    """The three gradients of the derivation above; None where nobody asked."""
    x, kernel = kept
    asks_x, asks_kernel, *asks_bias = asked
    dkernel = sums.kernel_grad(x, delta, g) if asks_kernel else None
    dx = sums.input_grad(delta, kernel, g, first=dkernel) if asks_x else None
    dbias = sum_to_channels(delta) if any(asks_bias) else None
    return dx, dkernel, dbias


conv_p = op_primitive("conv", _conv, _conv_fwd, conv_backward)

# ------------------------------------------------------------------------------------- the gradient maps


@keeping_64_bits
def conv_input_grad(
    delta: jax.Array,
    kernel: jax.Array,
    input_shape: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Any = "SAME",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """The gradient of a convolution's input: delta in full convolution with the kernel rotated by 180 degrees.

    `dJ/dx[i] = sum_t delta[(i + p - d t) / s] w[t]`, over the positions t in the window for which the index is whole.
    Here w is the kernel, s the stride, d the kernel dilation and p the padding before the input.

    Args:
      delta: cotangent of the convolution's output, (*batch, *output, O).
      kernel: (*window, C / groups, O), of delta's dtype.
      input_shape: shape of the convolution's input, (*batch, *spatial, C).
      strides, padding, input_dilation, kernel_dilation, feature_group_count, precision: as given to `conv`.
      preferred_element_type: dtype to accumulate in and to return; None: delta's.

    Returns:
      An array of shape `input_shape` and of delta's dtype or `preferred_element_type`.

    Raises:
      TypeError, ValueError: where `conv` would, and where delta is not of the shape `conv` returns.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> delta = jnp.array([[19., 25.], [37., 43.]]).reshape(2, 2, 1)
      >>> kernel = jnp.arange(4.).reshape(2, 2, 1, 1)
      >>> jaxbp.conv_input_grad(delta, kernel, (3, 3, 1), padding="VALID")[..., 0]
      Array([[  0.,  19.,  25.],
             [ 38., 144., 118.],
             [ 74., 197., 129.]], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.5.
    """
    op = "conv_input_grad"
    delta, kernel = as_array(op, "delta", delta), as_array(op, "kernel", kernel)
    require_same_dtype(op, delta=delta, kernel=kernel)
    shape = as_shape(op, "input_shape", input_shape)
    w = conv_window(
        op, shape, kernel.shape, strides, padding, input_dilation, kernel_dilation, feature_group_count,
        names=("input_shape", *CONV_WORDS[1:]),
    )  # fmt: skip
    require_shape(op, "delta", delta, output_shape(shape, kernel.shape, w))
    g = conv_geometry(w, feature_group_count, precision, delta.dtype, preferred_element_type)
    dtype, g = g.preferred_element_type or delta.dtype, g._replace(preferred_element_type=None)

    def input_grad(delta: jax.Array, kernel: jax.Array) -> jax.Array:
        return sums.input_grad(one_batch_axis(delta, w.rank), kernel, g).reshape(shape)

    delta, kernel = whole(delta, w).astype(dtype), kernel.astype(dtype)
    like = [*((delta, axis) for axis in range(delta.ndim - 1)), (kernel, -2)]
    return call_map(input_grad, delta, kernel, output_shape=shape, like=like)


@keeping_64_bits
def conv_kernel_grad(
    x: jax.Array,
    delta: jax.Array,
    kernel_shape: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Any = "SAME",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """The gradient of a convolution's kernel: the valid correlation of its input with delta.

    `dJ/dw[t] = sum_o x[s o + d t - p] delta[o]`, summed over the batch; the same sum as rot180(delta (full) x). Here t
    is a position in the window, s the stride, d the kernel dilation and p the padding before the input.

    Args:
      x: the convolution's input, (*batch, *spatial, C).
      delta: cotangent of the convolution's output, (*batch, *output, O), of x's dtype.
      kernel_shape: shape of the kernel, (*window, C / groups, O).
      strides, padding, input_dilation, kernel_dilation, feature_group_count, precision: as given to `conv`.
      preferred_element_type: dtype to accumulate in and to return; None: x's.

    Returns:
      An array of shape `kernel_shape` and of x's dtype or `preferred_element_type`; bfloat16 and float16 accumulate
      in float32 inside.

    Raises:
      TypeError, ValueError: where `conv` would, and where delta is not of the shape `conv` returns.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> x = jnp.arange(9.).reshape(3, 3, 1)
      >>> delta = jnp.array([[19., 25.], [37., 43.]]).reshape(2, 2, 1)
      >>> jaxbp.conv_kernel_grad(x, delta, (2, 2, 1, 1), padding="VALID")[..., 0, 0]
      Array([[308., 432.],
             [680., 804.]], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.5.
    """
    op = "conv_kernel_grad"
    x, delta = as_array(op, "x", x), as_array(op, "delta", delta)
    require_same_dtype(op, x=x, delta=delta)
    shape = as_shape(op, "kernel_shape", kernel_shape)
    w = conv_window(
        op, x.shape, shape, strides, padding, input_dilation, kernel_dilation, feature_group_count,
        names=("x", "kernel_shape", *CONV_WORDS[2:]),
    )  # fmt: skip
    require_shape(op, "delta", delta, output_shape(x.shape, shape, w))
    g = conv_geometry(w, feature_group_count, precision, x.dtype, preferred_element_type)
    dtype, g = g.preferred_element_type or x.dtype, g._replace(preferred_element_type=None)

    def kernel_grad(x: jax.Array, delta: jax.Array) -> jax.Array:
        return sums.kernel_grad(one_batch_axis(x, w.rank), one_batch_axis(delta, w.rank), g)

    x, delta = whole(x, w).astype(dtype), whole(delta, w).astype(dtype)
    like = [*(None,) * w.rank, (x, -1), (delta, -1)]
    return call_map(kernel_grad, x, delta, output_shape=shape, like=like)


@keeping_64_bits
def conv_bias_grad(delta: jax.Array) -> jax.Array:
    """The gradient of a convolution's bias: the sum of delta over the batch and all positions.

    `dJ/db[c] = sum_(n, o) delta[n, o, c]`

    Args:
      delta: cotangent of the convolution's output, (*batch, *output, O).

    Returns:
      An array of shape (O,) and delta's dtype; bfloat16 and float16 accumulate in float32 inside.

    Raises:
      TypeError: delta is not an array.
      ValueError: delta has no axes, and so no channels.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.conv_bias_grad(jnp.array([[19., 25.], [37., 43.]]).reshape(2, 2, 1))
      Array([124.], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 6.5.
    """
    delta = as_array("conv_bias_grad", "delta", delta)
    if delta.ndim == 0:
        raise ValueError("conv_bias_grad: delta has shape (), but it needs at least one axis: (*batch, *output, O)")
    return sum_to_channels(delta)


@keeping_64_bits
def rot180(kernel: jax.Array) -> jax.Array:
    """Rotate a kernel by 180 degrees: reverse each of its spatial axes.

    `rot180(w)[t] = w[k - 1 - t]` along every spatial axis of k pixels.

    Args:
      kernel: (*window, I, O), reversed in all axes but the last two; or a bare vector or matrix, reversed in all.

    Returns:
      An array of the same shape and dtype.

    Raises:
      TypeError: kernel is not an array.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.rot180(jnp.array([[1, 2], [3, 4]]))
      Array([[4, 3],
             [2, 1]], dtype=int32)

    Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016), section 4.
    """
    kernel = as_array("rot180", "kernel", kernel)
    return _direct.rot180(kernel, kernel.ndim - 2 if kernel.ndim > 2 else kernel.ndim)


@keeping_64_bits
def dilate(x: jax.Array, dilation: int | Sequence[int]) -> jax.Array:
    """Put `dilation - 1` zeros between neighbouring pixels along each spatial axis.

    `dilate(x, d)[d i] = x[i]`, and 0 elsewhere: (n - 1) d + 1 pixels where there were n.

    Args:
      x: a bare array of n spatial axes, or (*batch, *spatial, C) with one axis more at least.
      dilation: n positive integers, or one integer for every axis of a bare array.

    Returns:
      The dilated array, of x's dtype.

    Raises:
      TypeError, ValueError: dilation is not made of positive integers, or has more entries than x has axes.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.dilate(jnp.array([[1, 2], [3, 4]]), (2, 2))
      Array([[1, 0, 2],
             [0, 0, 0],
             [3, 0, 4]], dtype=int32)

    Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016), section 4.5.
    """
    x = as_array("dilate", "x", x)
    rank = np.size(dilation) if np.ndim(dilation) else x.ndim
    steps = per_axis("dilate", "dilation", dilation, rank)
    if rank > x.ndim:
        raise ValueError(f"dilate: dilation={steps} has {rank} entries, but x of shape {x.shape} has {x.ndim} axes")
    trailing = 0 if rank == x.ndim else 1
    pixels = [dilated_size(n, d) for n, d in zip(x.shape[x.ndim - rank - trailing :], steps, strict=False)]
    if any(isinstance(n, int) and n > MOST_PIXELS for n in pixels):
        raise ValueError(
            f"dilate: dilation={steps} makes {max(pixels)} pixels of x of shape {x.shape}; positions are counted up to "
            f"{MOST_PIXELS}"
        )
    steps = (1,) * (x.ndim - rank - trailing) + steps + (1,) * trailing

    def pad(x: jax.Array) -> jax.Array:
        return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, step - 1) for step in steps])

    shape = [dilated_size(n, d) for n, d in zip(x.shape, steps, strict=True)]
    return call_map(pad, x, output_shape=shape, like=[(x, axis) for axis in range(x.ndim)])


# ------------------------------------------------------------------------------------------- the public ops


@keeping_64_bits
def conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Any = "SAME",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    norms: jax.Array | None = None,
) -> jax.Array:
    """Convolution (cross-correlation, as everywhere in deep learning) with a hand-written backward rule.

    `z[o] = sum_t x[s o + d t - p] w[t] + b` along every spatial axis, summed over the input channels. Here t is
    a position in the window, w the kernel, s the stride, d the kernel dilation and p the padding before the input.

    Args:
      x: (*batch, *spatial, C): channels last, any number of spatial axes, with or without batch axes.
      kernel: (*window, C / groups, O), of x's dtype.
      bias: (O,) or None.
      strides: steps between windows, in pixels: an integer or one for each spatial axis.
      padding: "SAME", "SAME_LOWER", "VALID", an integer, or (low, high) pairs in pixels; negative pads crop.
      input_dilation: distance between the input's pixels (zeros between them), as in a transposed convolution.
      kernel_dilation: distance between the kernel's pixels, as in an atrous convolution.
      feature_group_count: number of groups that channels are split into; C of them: depthwise.
      precision: as in `jax.lax.conv_general_dilated`. Any but None keeps an infinity or NaN of x to the outputs whose
        windows contain it, as it leaves out the algorithms that compute neighbouring outputs together.
      preferred_element_type: dtype to accumulate in and to return; None: x's.
      norms: None, or zeros in float32 whose shape is how x's batch axes begin, such as (N,). Takes part in nothing
        forward; its cotangent is, for each example, the squared norm of its gradient of kernel and bias. Batch axes
        behind those are positions: an example's gradients are summed over them first.

    Returns:
      (*batch, *output, O), of x's dtype or `preferred_element_type`.

    Raises:
      TypeError: an argument is not an array, or dtypes differ; norms is not float32 (or float64).
      ValueError: ranks, channels, groups, bias or norms do not fit, a stride or dilation is below 1, the padding is
        not understood, or a window is larger than its padded input.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> x, kernel = jnp.arange(9.).reshape(3, 3, 1), jnp.arange(4.).reshape(2, 2, 1, 1)
      >>> jaxbp.conv(x, kernel, padding="VALID")[..., 0]
      Array([[19., 25.],
             [37., 43.]], dtype=float32)

    Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016), section 2.
    """
    x, kernel, bias, call = prepared(
        "conv", x, kernel, bias, strides, padding, input_dilation, kernel_dilation, feature_group_count, precision,
        preferred_element_type,
    )  # fmt: skip
    g, shape = call.geometry, call.output_shape

    def rule(x: jax.Array, *parameters: jax.Array) -> jax.Array:
        z = conv_p.bind(one_batch_axis(x, g.window.rank), *parameters, static=g, batch=(0, 0), levels=(), **mode())
        return z if z.shape == shape else z.reshape(shape)

    arrays = (x, kernel) if bias is None else (x, kernel, bias)
    z = call_rule(rule, *arrays, output_shape=shape, like=call.like)
    return z if norms is None else with_norms("conv", g, z, x, norms, bias=bias is not None)


# ------------------------------------------------------------------------------ arguments, shared with other files


class Call(NamedTuple):
    """What a convolution's arguments come to: its geometry, and the output's shape and sharding."""

    geometry: ConvGeometry
    output_shape: tuple[int, ...]
    like: Sequence[tuple[jax.Array, int] | None]


def prepared(
    op: str, x: Any, kernel: Any, bias: Any, strides: Any, padding: Any, input_dilation: Any, kernel_dilation: Any,
    feature_group_count: Any, precision: Any, preferred_element_type: Any,
) -> tuple[jax.Array, jax.Array, jax.Array | None, Call]:  # fmt: skip
    """The arguments of `conv`, checked once."""
    x, kernel = as_array(op, "x", x), as_array(op, "kernel", kernel)
    require_same_dtype(op, x=x, kernel=kernel)
    w = conv_window(op, x.shape, kernel.shape, strides, padding, input_dilation, kernel_dilation, feature_group_count)
    if bias is not None:
        bias = as_array(op, "bias", bias)
        require_same_dtype(op, x=x, bias=bias)
        require_shape(op, "bias", bias, kernel.shape[-1:])
    g = conv_geometry(w, feature_group_count, precision, x.dtype, preferred_element_type)
    bias = None if bias is None else bias.astype(g.preferred_element_type or x.dtype)
    x = whole(x, w)
    like = [*((x, axis) for axis in range(x.ndim - 1)), (kernel, -1)]
    return x, kernel, bias, Call(g, output_shape(x.shape, kernel.shape, w), like)


def conv_geometry(
    w: Window, groups: int, precision: Any, dtype: Any, preferred_element_type: Any = None
) -> ConvGeometry:
    """All of a convolution that is not an array, hashable; refused here where lax would refuse it for this dtype."""
    precision = tuple(precision) if isinstance(precision, list) else precision
    if precision is not None or preferred_element_type is not None:
        one = jax.ShapeDtypeStruct((1, 1), dtype)
        jax.eval_shape(
            lambda a, b: lax.conv_general_dilated(
                a, b, (), (), precision=precision, preferred_element_type=preferred_element_type
            ),
            one,
            one,
        )
    # The scalar type: np.dtype("float64") == None, so that beside None a cache would take the one for the other.
    wide = None if preferred_element_type is None else jax.dtypes.canonicalize_dtype(preferred_element_type).type
    return ConvGeometry(w, operator.index(groups), precision, wide)


def whole(x: jax.Array, w: Window) -> jax.Array:
    """x gathered along its spatial axes where a convolution needs it."""
    return whole_along(x, range(x.ndim - w.rank - 1, x.ndim - 1), x.ndim - 1)


def one_batch_axis(x: jax.Array, rank: int) -> jax.Array:
    """Any number of batch axes as one."""
    batch = x.shape[: x.ndim - rank - 1]
    return x if len(batch) == 1 else x.reshape(math.prod(batch), *x.shape[len(batch) :])


def output_shape(x_shape: Sequence[int], kernel_shape: Sequence[int], w: Window) -> tuple[int, ...]:
    """The shape of a convolution's output, with the input's own batch axes."""
    return (*x_shape[: len(x_shape) - w.rank - 1], *w.output_shape, kernel_shape[-1])


def require_shape(op: str, argument: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    """Refuse an array whose shape does not follow from the other arguments."""
    if array.shape != shape:
        raise ValueError(f"{op}: {argument} has shape {array.shape}, but the other arguments call for {shape}")


def sum_to_channels(delta: jax.Array) -> jax.Array:
    """The sum over all axes but the last, accumulated in float32 at least."""
    wide = sum_dtype(delta.dtype)
    return jnp.sum(delta.astype(wide), axis=tuple(range(delta.ndim - 1))).astype(delta.dtype)
