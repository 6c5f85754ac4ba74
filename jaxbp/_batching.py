"""`vmap` inside `grad`: the examples join the batch before a rule sees them.

JAX maps a custom_vjp rule by mapping its backward pass, so that a model written for one example and mapped over many
(as Equinox models are) would compute one kernel gradient for each example and add them up afterwards. A convolution
has a batch axis already: mapped over x alone, it is the same convolution of a larger batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.custom_batching import custom_vmap
from jax.extend.core import take_current_trace


def over_examples(rule: Callable[..., jax.Array], x: jax.Array, *shared: Any) -> jax.Array:
    """`rule(x, *shared)` for x with any number of batch axes; a vmap over x alone calls it with one more."""
    if not is_mapped_here(x):
        return rule(x, *shared)
    mapped = custom_vmap(rule)

    @mapped.def_vmap
    def join(axis_size: int, is_mapped: Any, x: jax.Array, *shared: Any) -> tuple[jax.Array, bool]:
        x_is_mapped, *shared_are_mapped = is_mapped
        if x_is_mapped and not any(jax.tree.leaves(shared_are_mapped)):
            return over_examples(rule, x, *shared), True
        axes = tuple(None if flag is None else 0 if flag else None for flag in is_mapped)
        return jax.vmap(rule, axes)(x, *shared), True

    return mapped(x, *shared)


def one_by_one(sum_of: Callable[..., jax.Array], x: jax.Array, delta: jax.Array) -> jax.Array:
    """`sum_of(x, delta)` below a vmap: of one example after the other, where both have examples.

    Only where the vmap is certain (`is_mapped_here`): what is left of this afterwards has no derivative.
    """
    mapped = custom_vmap(sum_of)

    @mapped.def_vmap
    def loop(axis_size: int, is_mapped: Any, x: jax.Array, delta: jax.Array) -> tuple[jax.Array, bool]:
        if not all(is_mapped):
            return jax.vmap(sum_of, tuple(0 if flag else None for flag in is_mapped))(x, delta), True
        again = partial(one_by_one, sum_of) if is_mapped_here(x) else sum_of
        return jax.lax.map(lambda pair: again(*pair), (x, delta)), True

    return mapped(x, delta)


def is_mapped_here(x: jax.Array) -> bool:
    """Whether the innermost transformation is a vmap, over x."""
    with take_current_trace() as trace:
        return type(trace).__name__ == "BatchTrace" and getattr(x, "_trace", None) is trace
