"""The dense layer and its backward rule.

    z = x W + b

Each weight `W[i, o]` carried `x[i]` to `z[o]`, and the chain rule needs nothing but delta, the gradient above:

    dJ/dx = delta W^T        dJ/dW = x^T delta        dJ/db = sum over the batch of delta
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._arguments import Asked, as_array, keeping_64_bits, require_same_dtype, sum_dtype
from ._batching import op_primitive
from ._forward_mode import mode
from ._mesh import call_rule
from ._norms import dense_geometry, with_norms


def _dense(precision: Any, x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """z = a W + b for x of (*batch, I) and kernel of (I, O)."""
    z = jnp.matmul(x, kernel, precision=precision)
    return z if bias is None else z + jnp.broadcast_to(bias, z.shape)


def _dense_fwd(
    precision: Any, asked: Asked, x: jax.Array, kernel: jax.Array, *bias: jax.Array
) -> tuple[jax.Array, tuple]:
    """Keep what the gradients that are asked for need: x for the kernel's, the kernel for x's."""
    asks_x, asks_kernel, *_ = asked
    return _dense(precision, x, kernel, *bias), (x if asks_kernel else None, kernel if asks_x else None)


def _dense_bwd(precision: Any, asked: Asked, kept: tuple, delta: jax.Array) -> tuple:
    """The three gradients of the derivation above; None where nobody asked."""
    x, kernel = kept
    asks_x, asks_kernel, *asks_bias = asked
    wide, batch = sum_dtype(delta.dtype), tuple(range(delta.ndim - 1))
    dx = jnp.matmul(delta, kernel.T, precision=precision) if asks_x else None
    dkernel = None
    if asks_kernel:
        summed = ((batch, batch), ((), ()))
        dkernel = lax.dot_general(x, delta, summed, precision=precision, preferred_element_type=wide).astype(x.dtype)
    dbias = jnp.sum(delta.astype(wide), axis=batch).astype(delta.dtype) if any(asks_bias) else None
    return dx, dkernel, dbias


dense_p = op_primitive("dense", _dense, _dense_fwd, _dense_bwd)


@keeping_64_bits
def dense(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    precision: Any = None,
    norms: jax.Array | None = None,
) -> jax.Array:
    """A dense (fully connected) layer with a hand-written backward rule.

    `z[o] = sum_i x[i] W[i, o] + b[o]`

    Args:
      x: (*batch, I).
      kernel: (I, O), of x's dtype.
      bias: (O,), of x's dtype, or None.
      precision: as in `jax.lax.dot_general`.
      norms: as in `conv`: zeros in float32 whose cotangent is each example's squared gradient norm; None: none.

    Returns:
      (*batch, O), of x's dtype; gradients in bfloat16 and float16 accumulate in float32 inside.

    Raises:
      TypeError: an argument is not an array, or dtypes differ; norms is not float32 (or float64).
      ValueError: the kernel is not a matrix, or x, bias or norms does not fit.

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
    precision = tuple(precision) if isinstance(precision, list) else precision
    batch = x.shape[:-1]
    shape = (*batch, kernel.shape[1])

    def call(x: jax.Array, *parameters: jax.Array) -> jax.Array:
        # Examples under a vmap join the first axis of the batch.
        z = dense_p.bind(x if batch else x[None], *parameters, static=precision, batch=(0, 0), levels=(), **mode())
        return z if batch else z[0]

    arrays = (x, kernel) if bias is None else (x, kernel, bias)
    like = [*((x, axis) for axis in range(len(batch))), (kernel, 1)]
    z = call_rule(call, *arrays, output_shape=shape, like=like)
    return z if norms is None else with_norms("dense", dense_geometry(precision), z, x, norms, bias=bias is not None)
