"""per_group: each group of a grouped convolution as a dense sum of its own, in a loop over the groups.

XLA:CPU runs a grouped convolution as if it were dense, and wastes all products of different groups.
"""

import jax

from .._geometry import Problem
from ._direct import sliding_kernel
from ._tiles import chunk, map_concat
from ._windows import Form


def applies(p: Problem) -> bool:
    """Several groups."""
    return p.groups > 1


def inner(p: Problem) -> Problem:
    """The sum of one group."""
    dense = p.g._replace(feature_group_count=1)
    return p.inside(geometry=dense, channels=p.group_channels, features=p.group_features)


def run(a: jax.Array, b: jax.Array, p: Problem, of: Form) -> jax.Array:
    """One group after the other, concatenated."""
    b = sliding_kernel(b, p)
    return map_concat(of, lambda i: (chunk(a, i, p.groups), chunk(b, i, p.groups)), p.groups, a, a.ndim - 1)
