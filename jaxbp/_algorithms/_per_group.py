"""per_group: each group of a grouped convolution as a dense sum of its own, in a loop over the groups.

XLA:CPU runs a grouped kernel gradient as if it were dense, and wastes all products of different groups.
"""

import jax
import jax.numpy as jnp

from .._geometry import ConvGeometry
from . import _im2col, _row_im2col
from ._tiles import chunk, map_concat
from ._windows import Form

# Parts of the sum over the positions of a group, at most: in parts it is more exact.
MOST_SUMS = 4


def per_group(form: Form, a: jax.Array, b: jax.Array, g: ConvGeometry) -> jax.Array:
    """Evaluate each group with `form`: the outputs, or a kernel's gradient."""
    groups, dense = g.feature_group_count, g._replace(feature_group_count=1)
    return map_concat(lambda i: form(chunk(a, i, groups), chunk(b, i, groups), dense), groups, a, a.ndim - 1)


def grouped_kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, groups_at_once: int) -> jax.Array:
    """The kernel's gradient by im2col, so many groups in one GEMM: the diagonal blocks of its result are theirs."""
    groups, window = g.feature_group_count, g.window.window_shape
    c, o, count = x.shape[-1] // groups, delta.shape[-1] // groups, groups // groups_at_once
    dense = g._replace(feature_group_count=1)
    small = 1 < g.window.taps <= _im2col.FEWEST_ELEMENTS // (groups_at_once * c)
    form = _im2col.kernel_grad if small else _row_im2col.kernel_grad

    def some(i: jax.Array | int) -> jax.Array:
        return form(chunk(x, i, count), chunk(delta, i, count), dense, MOST_SUMS)[None]

    products = map_concat(some, count, x, 0).reshape(count, -1, groups_at_once, c, groups_at_once, o)
    return jnp.einsum("ntbcbo->tcnbo", products).reshape(*window, c, delta.shape[-1])
