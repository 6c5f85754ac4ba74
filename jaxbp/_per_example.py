"""Each example's own kernel gradient, and its squared norm."""

import math
from collections.abc import Sequence
from typing import Any

import jax

from . import _sums as sums
from ._arguments import as_array, keeping_64_bits, require_same_dtype
from ._conv import conv_geometry, output_shape, require_shape, whole
from ._geometry import CONV_WORDS, ConvGeometry, as_shape, conv_window
from ._mesh import call_map
from ._norms import kernel_sqnorms


@keeping_64_bits
def conv_kernel_grad_per_example(
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
) -> jax.Array:
    """The gradient of a convolution's kernel for each example by itself: `conv_kernel_grad` without the sum over them.

    `dJ/dw[n, t] = sum_o x[n, s o + d t - p] delta[n, o]`, where t is a position in the window, s the stride, d the
    kernel dilation and p the padding before the input.

    Args:
      x: the convolution's input, (*batch, *spatial, C).
      delta: cotangent of the convolution's output, (*batch, *output, O), of x's dtype.
      kernel_shape: shape of the kernel, (*window, C / groups, O).
      strides, padding, input_dilation, kernel_dilation, feature_group_count, precision: as given to `conv`.

    Returns:
      An array of shape (*batch, *kernel_shape) and x's dtype.

    Raises:
      TypeError, ValueError: where `conv_kernel_grad` would.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> x, delta = jnp.arange(6.).reshape(2, 3, 1), jnp.ones((2, 2, 1))
      >>> jaxbp.conv_kernel_grad_per_example(x, delta, (2, 1, 1), padding="VALID")[..., 0, 0]
      Array([[1., 3.],
             [7., 9.]], dtype=float32)

    Source: Rochette, Manoel, Tramel, "Efficient per-example gradient computations in convolutional neural networks"
    (2019).
    """
    x, delta, g, shape, batch = _checked(
        "conv_kernel_grad_per_example", x, delta, kernel_shape, strides, padding, input_dilation, kernel_dilation,
        feature_group_count, precision,
    )  # fmt: skip
    rank = g.window.rank

    def of_one(x: jax.Array, delta: jax.Array) -> jax.Array:
        return sums.kernel_grad(x[None], delta[None], g)

    def of_all(x: jax.Array, delta: jax.Array) -> jax.Array:
        examples = (a.reshape(math.prod(batch), *a.shape[len(batch) :]) for a in (x, delta))
        return jax.vmap(of_one)(*examples).reshape(*batch, *shape)

    like = [*((x, axis) for axis in range(len(batch))), *(None,) * rank, (x, -1), (delta, -1)]
    return call_map(of_all, x, delta, output_shape=(*batch, *shape), like=like)


@keeping_64_bits
def conv_kernel_grad_sqnorms(
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
    exact: bool = False,
) -> jax.Array:
    """The squared norm of each example's kernel gradient, mostly without that gradient.

    `|dW|^2 = sum_(t, s) (p_t . p_s) (delta_t . delta_s)` over all pairs of output positions, where p_t is the patch
    that output t reads. With T positions, D elements in a patch and p features of a group, these Gram matrices are
    taken where T (D + p) < D p, else the gradient is summed and squared, one example at a time where all would take
    more than 32 MiB.

    Args:
      x: the convolution's input, (*batch, *spatial, C).
      delta: cotangent of the convolution's output, (*batch, *output, O), of x's dtype.
      kernel_shape: shape of the kernel, (*window, C / groups, O).
      strides, padding, input_dilation, kernel_dilation, feature_group_count, precision: as given to `conv`.
      exact: always sum the gradient itself. Where its terms cancel, Gram matrices leave an absolute error of up to 1e-6
        times the square of sum_t |p_t| |delta_t|.

    Returns:
      An array of shape (*batch,) in float32 (float64 for float64 arrays), never negative.

    Raises:
      TypeError, ValueError: where `conv_kernel_grad` would.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> x, delta = jnp.arange(6.).reshape(2, 3, 1), jnp.ones((2, 2, 1))
      >>> jaxbp.conv_kernel_grad_sqnorms(x, delta, (2, 1, 1), padding="VALID")
      Array([ 10., 130.], dtype=float32)

    Source: Rochette, Manoel, Tramel, "Efficient per-example gradient computations in convolutional neural networks"
    (2019).
    """
    x, delta, g, _, batch = _checked(
        "conv_kernel_grad_sqnorms", x, delta, kernel_shape, strides, padding, input_dilation, kernel_dilation,
        feature_group_count, precision,
    )  # fmt: skip

    def of_all(x: jax.Array, delta: jax.Array) -> jax.Array:
        x, delta = (a.reshape(math.prod(batch), 1, *a.shape[len(batch) :]) for a in (x, delta))
        return kernel_sqnorms(x, delta, g, bool(exact)).reshape(batch)

    return call_map(of_all, x, delta, output_shape=batch, like=[(x, axis) for axis in range(len(batch))])


def _checked(
    op: str, x: Any, delta: Any, kernel_shape: Any, strides: Any, padding: Any, input_dilation: Any,
    kernel_dilation: Any, feature_group_count: Any, precision: Any,
) -> tuple[jax.Array, jax.Array, ConvGeometry, tuple[int, ...], tuple[int, ...]]:  # fmt: skip
    """The arrays, the geometry, the kernel's shape and the batch axes."""
    x, delta = as_array(op, "x", x), as_array(op, "delta", delta)
    require_same_dtype(op, x=x, delta=delta)
    shape = as_shape(op, "kernel_shape", kernel_shape)
    w = conv_window(
        op, x.shape, shape, strides, padding, input_dilation, kernel_dilation, feature_group_count,
        names=("x", "kernel_shape", *CONV_WORDS[2:]),
    )  # fmt: skip
    require_shape(op, "delta", delta, output_shape(x.shape, shape, w))
    g = conv_geometry(w, feature_group_count, precision, x.dtype)
    return whole(x, w), whole(delta, w), g, shape, x.shape[: x.ndim - w.rank - 1]
