"""The gradient checks that check_vjp is measured beside, and when a hint says anything."""

import warnings
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

# Reverse mode alone: with forward mode they would refuse every custom_vjp, right or wrong.
OTHERS: dict[str, Callable] = {
    "`jax.test_util.check_grads`": lambda rule, args: check_grads(rule, args, order=1, modes=["rev"]),
    "`chex.assert_numerical_grads`": lambda rule, args: chex.assert_numerical_grads(rule, args, 1, modes=["rev"]),
}


def with_torch() -> dict[str, Callable]:
    """OTHERS and torch's gradcheck where torch is installed."""
    try:
        import torch
    except ImportError:
        return OTHERS

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(context, rule, *tensors):
            arrays = [jnp.asarray(t.detach().numpy().astype(np.float32)) for t in tensors]
            value, context.pull = jax.vjp(rule, *arrays)
            return torch.from_numpy(np.asarray(value).astype(np.float64))

        @staticmethod
        def backward(context, g):
            gradients = context.pull(jnp.asarray(g.numpy().astype(np.float32)))
            return (None, *(torch.from_numpy(np.asarray(d).astype(np.float64)) for d in gradients))

    def gradcheck(rule, args):
        tensors = [torch.from_numpy(np.asarray(a).astype(np.float64)).requires_grad_() for a in args]
        assert torch.autograd.gradcheck(lambda *t: Function.apply(rule, *t), tensors, eps=1e-2, atol=1e-2, rtol=1e-2)

    return {**OTHERS, "`torch.autograd.gradcheck`": gradcheck}


def complains(check, rule, args) -> bool:
    """Whether a check of somebody else's raises, whatever it raises: its user sees a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check(rule, tuple(args))
        except Exception:
            return True
    return False


def is_vague(hints: str) -> bool:
    """True where hints say no more than that something is wrong."""
    return all("no pattern known" in hint or "right to" in hint for hint in hints.split(" | "))
