"""What `linen` and `nnx` share: an average pool that takes every dtype that Flax's own takes."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .._avg_pool import avg_pool


def avg_pool_for(flax_avg_pool: Callable[..., Any]) -> Callable[..., Any]:
    """`jaxbp.avg_pool`, and Flax's own for integers, which have no gradient."""

    @functools.wraps(avg_pool)
    def average(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        dtype = getattr(inputs, "dtype", None)
        if dtype is not None and (jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_):
            return flax_avg_pool(inputs, *args, **kwargs)
        return avg_pool(inputs, *args, **kwargs)

    return average
