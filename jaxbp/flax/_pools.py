"""The pools that `linen` and `nnx` share: Flax's own functions, with jaxbp's gradients."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import pooling

from .. import _avg_pool
from .._swap import JAXBP_LAX, has_no_place, rebind

# Flax's pool with any reduction; maximum, minimum and sum have jaxbp's gradients.
pool = rebind(pooling.pool, __name__, lax=JAXBP_LAX)
max_pool = rebind(pooling.max_pool, __name__, pool=pool)
min_pool = rebind(pooling.min_pool, __name__, pool=pool)
_flax_avg_pool: Any = rebind(pooling.avg_pool, pool=pool)


def avg_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    count_include_pad: bool = True,
) -> jax.Array:
    """`jaxbp.avg_pool`, and Flax's own where that has no answer: integers, and windows larger than their input."""
    rank = len(window_shape)
    pads = (padding,) * rank if isinstance(padding, str) else padding
    spatial = inputs.shape[inputs.ndim - rank - 1 : -1]
    arguments: Any = (inputs, window_shape, strides, padding, count_include_pad)
    is_inexact = jnp.issubdtype(inputs.dtype, jnp.inexact)
    if not is_inexact or len(spatial) != rank or has_no_place(spatial, window_shape, pads, (1,) * rank):
        return _flax_avg_pool(*arguments)
    return _avg_pool.avg_pool(*arguments)
