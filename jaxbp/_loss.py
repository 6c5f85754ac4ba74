"""Softmax cross entropy and its backward rule.

For one example with logits z and target distribution t,

    J = sum_c t[c] (log sum_k exp(z[k]) - z[c])

and with p = softmax(z), differentiating the logarithm gives p back:

    dJ/dz = p sum(t) - t        dJ/dt[c] = log sum_k exp(z[k]) - z[c]

An integer label is the distribution that has a single 1; then `dJ/dz = p - t`.
"""

import jax
import jax.numpy as jnp

from ._arguments import (
    as_array,
    call_rule,
    keeping_64_bits,
    refuse_complex,
    require_inexact,
    require_same_dtype,
    sum_dtype,
    wider,
)


@jax.custom_vjp
def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of every example."""
    return _cross_entropy_op(logits, targets)


def _cross_entropy_op(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The forward pass as a plain function; a class of target 0 costs nothing, however unlikely."""
    costs = jnp.where(targets == 0, 0, _negative_log_softmax(logits))
    return jnp.sum(targets * costs, axis=-1)


def _cross_entropy_fwd(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Keep both arguments."""
    return _cross_entropy_op(logits, targets), (logits, targets)


def _cross_entropy_bwd(kept: tuple[jax.Array, jax.Array], delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """p sum(t) - t for the logits, the classes' costs for the targets."""
    logits, targets = kept
    costs = _negative_log_softmax(logits)
    dlogits = jnp.exp(-costs) * jnp.sum(targets, axis=-1, keepdims=True) - targets
    delta = delta[..., None]
    return delta * dlogits, delta * jnp.where(delta == 0, 0, costs)


_cross_entropy.defvjp(keeping_64_bits(_cross_entropy_fwd), keeping_64_bits(_cross_entropy_bwd))


@keeping_64_bits
def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross entropy of every example, numerically stable, with a hand-written backward rule.

    `J = -sum_c t[c] log softmax(z)[c]`; `dJ/dz = softmax(z) - t`.

    Args:
      logits: (*batch, classes), floating-point.
      labels: (*batch) of integers, the index of each example's class; or (*batch, classes) of logits' dtype, a
        distribution over the classes. An index outside 0 .. classes - 1 gives a loss of NaN.

    Returns:
      (*batch), the loss of every example, of logits' dtype. Take the mean yourself.

    Raises:
      TypeError: an argument is not an array, logits hold integers, or the dtypes differ.
      ValueError: the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> jaxbp.softmax_cross_entropy(jnp.zeros((1, 2)), jnp.array([1]))
      Array([0.6931472], dtype=float32)

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 6.2.2.3.
    """
    op = "softmax_cross_entropy"
    logits, labels = as_array(op, "logits", logits), as_array(op, "labels", labels)
    require_inexact(op, "logits", logits)
    refuse_complex(op, "logits", logits)
    if logits.ndim > 0 and logits.shape[-1] == 0:
        raise ValueError(f"{op}: logits has shape {logits.shape}, but there is no class to choose; use at least one")
    if logits.ndim == 0:
        raise ValueError(f"{op}: logits has shape (), but it needs at least one axis: (*batch, classes)")
    wide = sum_dtype(logits.dtype)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        if labels.shape != logits.shape[:-1]:
            raise ValueError(
                f"{op}: integer labels have shape {labels.shape}, but logits have shape {logits.shape}; "
                f"labels of shape {logits.shape[:-1]} would fit"
            )
        # Labels of eight bits are too narrow for more than 128 classes.
        labels = labels.astype(wider(labels.dtype, jnp.int32))
        classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
        known = (labels >= 0) & (labels < logits.shape[-1])
        one_hot = jnp.expand_dims(labels, -1) == jnp.expand_dims(classes, tuple(range(labels.ndim)))
        targets = jnp.where(known[..., None], one_hot.astype(wide), jnp.nan)
    else:
        require_same_dtype(op, logits=logits, labels=labels)
        if labels.shape != logits.shape:
            raise ValueError(
                f"{op}: labels have shape {labels.shape}, but logits have shape {logits.shape}; labels of "
                f"{labels.dtype} are a distribution over the classes, in the shape of the logits (integer labels "
                f"have one axis less)"
            )
        targets = labels.astype(wide)
    losses = call_rule(
        _cross_entropy, logits.astype(wide), targets,
        output_shape=logits.shape[:-1],
        like=[(logits, axis) for axis in range(logits.ndim - 1)],
    )  # fmt: skip
    return losses.astype(logits.dtype)


def _negative_log_softmax(logits: jax.Array) -> jax.Array:
    """log sum_k exp(z[k]) - z[c], shifted by the largest logit so that nothing overflows."""
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True)) - shifted
