"""Softmax cross entropy and its backward rule.

For one example with logits z and target distribution t,

    J = sum_c t[c] (log sum_k exp(z[k]) - z[c])

and with p = softmax(z), differentiating the logarithm gives p back:

    dJ/dz = p sum(t) - t        dJ/dt[c] = log sum_k exp(z[k]) - z[c]

An integer label is the distribution that has a single 1; then `dJ/dz = p - t`.
"""

import jax
import jax.numpy as jnp

from ._arguments import as_array, keeping_64_bits, refuse_complex, require_inexact, require_same_dtype, sum_dtype, wider
from ._forward_mode import custom_vjp
from ._mesh import call_rule


@custom_vjp
def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of every example, for a target distribution."""
    return _cross_entropy_op(logits, targets)


def _cross_entropy_op(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The forward pass as a plain function; a class of target 0 costs nothing, however unlikely."""
    targets = _wide(targets)
    costs = jnp.where(targets == 0, 0, _negative_log_softmax(_wide(logits)))
    return jnp.sum(targets * costs, axis=-1).astype(logits.dtype)


def _cross_entropy_fwd(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Keep both arguments."""
    return _cross_entropy_op(logits, targets), (logits, targets)


def _cross_entropy_bwd(kept: tuple[jax.Array, jax.Array], delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """p sum(t) - t for the logits, the classes' costs for the targets."""
    logits, targets = kept
    wide, delta = _wide(targets), _wide(delta)[..., None]
    costs = _negative_log_softmax(_wide(logits))
    dlogits = jnp.exp(-costs) * jnp.sum(wide, axis=-1, keepdims=True) - wide
    # An infinite cost would make NaN of a delta of 0, and asking whether delta is 0 would not be linear in it.
    finite = jnp.minimum(costs, jnp.finfo(costs.dtype).max)
    return (delta * dlogits).astype(logits.dtype), (delta * finite).astype(targets.dtype)


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


@custom_vjp
def _label_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of every example, for the index of its class."""
    return _label_cross_entropy_op(logits, labels)


def _label_cross_entropy_op(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The forward pass as a plain function; a label that names no class makes the loss NaN."""
    costs = jnp.sum(jnp.where(_is_label(logits, labels), _negative_log_softmax(_wide(logits)), 0), axis=-1)
    known = (labels >= 0) & (labels < logits.shape[-1])
    return jnp.where(known, costs, jnp.nan).astype(logits.dtype)


def _label_cross_entropy_fwd(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Keep both arguments."""
    return _label_cross_entropy_op(logits, labels), (logits, labels)


def _label_cross_entropy_bwd(kept: tuple[jax.Array, jax.Array], delta: jax.Array) -> tuple[jax.Array, None]:
    """p - t for the logits, where t has its single 1 at the label."""
    logits, labels = kept
    known = ((labels >= 0) & (labels < logits.shape[-1]))[..., None]
    softmax = jnp.exp(-_negative_log_softmax(_wide(logits)))
    dlogits = jnp.where(known, softmax - _is_label(logits, labels).astype(softmax.dtype), jnp.nan)
    return (_wide(delta)[..., None] * dlogits).astype(logits.dtype), None


_label_cross_entropy.defvjp(_label_cross_entropy_fwd, _label_cross_entropy_bwd)


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
    if jnp.issubdtype(labels.dtype, jnp.integer):
        if labels.shape != logits.shape[:-1]:
            raise ValueError(
                f"{op}: integer labels have shape {labels.shape}, but logits have shape {logits.shape}; "
                f"labels of shape {logits.shape[:-1]} would fit"
            )
        rule = _label_cross_entropy
        # Labels of eight bits are too narrow for more than 128 classes.
        labels = labels.astype(wider(labels.dtype, jnp.int32))
    else:
        require_same_dtype(op, logits=logits, labels=labels)
        if labels.shape != logits.shape:
            raise ValueError(
                f"{op}: labels have shape {labels.shape}, but logits have shape {logits.shape}; labels of "
                f"{labels.dtype} are a distribution over the classes, in the shape of the logits (integer labels "
                f"have one axis less)"
            )
        rule = _cross_entropy
    like = [(logits, axis) for axis in range(logits.ndim - 1)]
    return call_rule(rule, logits, labels, output_shape=logits.shape[:-1], like=like)


def _is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether a class is the label, for every class of every example."""
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    return classes == labels[..., None]


def _wide(a: jax.Array) -> jax.Array:
    """Short floating-point numbers as float32, in which sums are taken."""
    return a.astype(sum_dtype(a.dtype))


def _negative_log_softmax(logits: jax.Array) -> jax.Array:
    """log sum_k exp(z[k]) - z[c], shifted by the largest logit so that nothing overflows."""
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True)) - shifted
