"""The dense layer and its backward rule.

    z = a W + b

Each weight `W[i, o]` carried `a[i]` to `z[o]`, and the chain rule needs nothing but delta, the gradient above:

    dJ/da = delta W^T        dJ/dW = a^T delta        dJ/db = sum over the batch of delta
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._arguments import as_array, call_rule, require_same_dtype, sum_dtype


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(precision: Any, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """z = a W + b for x of (batch, I) and kernel of (I, O)."""
    return _dense_op(precision, x, kernel, bias)


def _dense_op(precision: Any, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """The forward pass as a plain function."""
    z = jnp.matmul(x, kernel, precision=precision)
    return z if bias is None else z + jnp.broadcast_to(bias, z.shape)


def _dense_fwd(precision: Any, x: Any, kernel: Any, bias: Any) -> tuple[jax.Array, tuple]:
    """Keep what the gradients that are asked for need: x for the kernel's, the kernel for x's."""
    z = _dense_op(precision, x.value, kernel.value, None if bias is None else bias.value)
    kept_x = x.value if kernel.perturbed else None
    kept_kernel = kernel.value if x.perturbed else None
    kept_bias = bias.value if bias is not None and bias.perturbed else None
    return z, (kept_x, kept_kernel, kept_bias)


def _dense_bwd(precision: Any, kept: tuple, delta: jax.Array) -> tuple:
    """The three gradients of the derivation above; None where nobody asked."""
    x, kernel, bias = kept
    wide = sum_dtype(delta.dtype)
    dx = None if kernel is None else jnp.matmul(delta, kernel.T, precision=precision)
    dkernel = None
    if x is not None:
        summed = (((0,), (0,)), ((), ()))
        dkernel = lax.dot_general(x, delta, summed, precision=precision, preferred_element_type=wide).astype(x.dtype)
    dbias = None if bias is None else jnp.sum(delta.astype(wide), axis=0).astype(bias.dtype)
    return dx, dkernel, dbias


_dense.defvjp(_dense_fwd, _dense_bwd, symbolic_zeros=True)


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, precision: Any = None) -> jax.Array:
    """A dense (fully connected) layer with a hand-written backward rule.

    `z[o] = sum_i a[i] W[i, o] + b[o]`

    Args:
      x: (*batch, I).
      kernel: (I, O), of x's dtype.
      bias: (O,), of x's dtype, or None.
      precision: as in `jax.lax.dot_general`.

    Returns:
      (*batch, O), of x's dtype; gradients in bfloat16 and float16 accumulate in float32 inside.

    Raises:
      TypeError: an argument is not an array, or dtypes differ.
      ValueError: the kernel is not a matrix, or x or bias does not fit it.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.dense(jnp.array([1., 2.]), jnp.array([[1., 0., 3.], [0., 1., 4.]]), jnp.ones(3))
      Array([ 2.,  3., 12.], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 6.5.
    """
    x, kernel = as_array("dense", "x", x), as_array("dense", "kernel", kernel)
    require_same_dtype("dense", x=x, kernel=kernel)
    if kernel.ndim != 2:
        raise ValueError(f"dense: kernel has shape {kernel.shape}, but it must be a matrix: (inputs, outputs)")
    if x.ndim < 1 or x.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"dense: x has shape {x.shape}, but kernel has shape {kernel.shape}; "
            f"the last axis of x must have size {kernel.shape[0]}"
        )
    if bias is not None:
        bias = as_array("dense", "bias", bias)
        require_same_dtype("dense", x=x, bias=bias)
        if bias.shape != kernel.shape[1:]:
            raise ValueError(
                f"dense: bias has shape {bias.shape}, but kernel of shape {kernel.shape} calls for {kernel.shape[1:]}"
            )
    batch = x.shape[:-1]
    shape = (*batch, kernel.shape[1])

    def with_one_batch_axis(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        z: Any = _dense(precision, x.reshape(math.prod(batch), x.shape[-1]), kernel, bias)
        return z.reshape(shape)

    like = [*((x, axis) for axis in range(len(batch))), (kernel, 1)]
    return call_rule(with_one_batch_axis, x, kernel, bias, output_shape=shape, like=like)
