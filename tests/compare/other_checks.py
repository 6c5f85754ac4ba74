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
TORCH = "`torch.autograd.gradcheck`"


def with_torch() -> dict[str, Callable]:
    """OTHERS and torch's gradcheck where torch is installed."""
    try:
        import torch
    except ImportError:
        return OTHERS

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(context, value, pull, *tensors):
            context.pull = pull
            context.save_for_backward(*tensors)
            return in_float64(value, *tensors)[0]

        @staticmethod
        def backward(context, g):
            return (None, None, *in_float64(context.pull, g, *context.saved_tensors))

    def in_float64(function, *tensors):
        with jax.enable_x64(True):
            results = function(*(jnp.asarray(tensor.detach().numpy()) for tensor in tensors))
            return [torch.from_numpy(np.array(result, np.float64)) for result in results]

    def gradcheck(rule, args):
        # Its tolerances are for float64 alone, so whatever the dtype is, it asks there.
        tensors = [torch.from_numpy(np.array(arg, np.float64)).requires_grad_() for arg in args]
        value = jax.jit(lambda *a: [rule(*a)])
        pull = jax.jit(lambda g, *a: jax.vjp(rule, *a)[1](g))
        torch.autograd.gradcheck(lambda *t: Rule.apply(value, pull, *t), tensors)

    return {**OTHERS, TORCH: gradcheck}


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
