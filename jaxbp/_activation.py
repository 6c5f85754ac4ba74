"""Activations and their backward rules: `delta[l-1] = dJ/da (.) sigma'(z)`, elementwise.

Each derivative can be read off the activation's own output, which the next layer keeps anyway:

    relu'(z) = 1 where a > 0        sigmoid'(z) = a (1 - a)        tanh'(z) = 1 - a^2
"""

import jax
import jax.numpy as jnp

from ._arguments import as_array, keeping_64_bits, refuse_complex, require_inexact
from ._forward_mode import custom_vjp


def _relu_op(z: jax.Array) -> jax.Array:
    """The forward pass; written so that NaN stays NaN."""
    return jnp.where(z <= 0, jnp.zeros((), z.dtype), z)


@custom_vjp
def _relu(z: jax.Array) -> jax.Array:
    """a = max(z, 0)."""
    return _relu_op(z)


def _relu_fwd(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keep the output."""
    a = _relu_op(z)
    return a, a


def _relu_bwd(a: jax.Array, delta: jax.Array) -> tuple[jax.Array]:
    """Pass delta where the output is positive."""
    return (jnp.where(a > 0, delta, jnp.zeros((), delta.dtype)),)


_relu.defvjp(_relu_fwd, _relu_bwd)


@custom_vjp
def _sigmoid(z: jax.Array) -> jax.Array:
    """a = 1 / (1 + exp(-z))."""
    return jax.lax.logistic(z)


def _sigmoid_fwd(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keep the output."""
    a = jax.lax.logistic(z)
    return a, a


def _sigmoid_bwd(a: jax.Array, delta: jax.Array) -> tuple[jax.Array]:
    """Scale delta by a (1 - a)."""
    return (delta * a * (1 - a),)


_sigmoid.defvjp(_sigmoid_fwd, _sigmoid_bwd)


@custom_vjp
def _tanh(z: jax.Array) -> jax.Array:
    """a = tanh(z)."""
    return jax.lax.tanh(z)


def _tanh_fwd(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keep the output."""
    a = jax.lax.tanh(z)
    return a, a


def _tanh_bwd(a: jax.Array, delta: jax.Array) -> tuple[jax.Array]:
    """Scale delta by 1 - a^2, factored so that it keeps its digits near |a| = 1."""
    return (delta * (1 - a) * (1 + a),)


_tanh.defvjp(_tanh_fwd, _tanh_bwd)


@keeping_64_bits
def relu(x: jax.Array) -> jax.Array:
    """The rectifier, with a hand-written backward rule.

    `y = max(x, 0)`; `dJ/dx = delta` where x > 0, else 0 (also at 0 itself).

    Args:
      x: an array of any shape and real dtype.

    Returns:
      An array of the same shape and dtype; NaN stays NaN.

    Raises:
      TypeError: x is not an array, or is complex.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.relu(jnp.array([-1., 0., 2.]))
      Array([0., 0., 2.], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 6.3.1.
    """
    x = as_array("relu", "x", x)
    refuse_complex("relu", "x", x)
    return _relu(x)


@keeping_64_bits
def sigmoid(x: jax.Array) -> jax.Array:
    """The logistic sigmoid, with a hand-written backward rule.

    `y = 1 / (1 + exp(-x))`; `dJ/dx = delta y (1 - y)`.

    Args:
      x: an array of any shape and floating-point dtype.

    Returns:
      An array of the same shape and dtype.

    Raises:
      TypeError: x is not an array of floating-point numbers.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.sigmoid(jnp.array([0.]))
      Array([0.5], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 6.3.2.
    """
    x = as_array("sigmoid", "x", x)
    require_inexact("sigmoid", "x", x)
    return _sigmoid(x)


@keeping_64_bits
def tanh(x: jax.Array) -> jax.Array:
    """The hyperbolic tangent, with a hand-written backward rule.

    `y = tanh(x)`; `dJ/dx = delta (1 - y^2)`.

    Args:
      x: an array of any shape and floating-point dtype.

    Returns:
      An array of the same shape and dtype.

    Raises:
      TypeError: x is not an array of floating-point numbers.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.tanh(jnp.array([0.]))
      Array([0.], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 6.3.2.
    """
    x = as_array("tanh", "x", x)
    require_inexact("tanh", "x", x)
    return _tanh(x)
