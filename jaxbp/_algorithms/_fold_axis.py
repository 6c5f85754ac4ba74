"""fold_axis: the first of three spatial axes folded into batch and channels.

cuDNN has fast convolutions for two spatial axes. The taps along the first axis become channels, and its outputs become
images of a larger batch. More than three axes are folded one after the other.
"""

import jax
import jax.numpy as jnp

from .._geometry import Problem, Window
from ._direct import sliding_kernel
from ._windows import MAX_TAPS, Form, axis_alone, concat_views_by_axis


def applies(p: Problem) -> bool:
    """One group, more than two axes, no zeros between pixels."""
    return p.dense and p.rank > 2 and p.window.window_shape[0] <= MAX_TAPS


def inner(p: Problem) -> Problem:
    """The sum with one axis less."""
    w = p.window
    return p.inside(
        geometry=p.g._replace(window=Window._make(per_axis[1:] for per_axis in w)),
        batch=p.batch * w.output_shape[0],
        channels=p.channels * w.window_shape[0],
    )


def run(a: jax.Array, b: jax.Array, p: Problem, of: Form) -> jax.Array:
    """The sum over images of one axis less: for each output along the first axis what its taps read."""
    w = p.window
    taps = concat_views_by_axis(a, axis_alone(w, 0, a))
    folded = taps.reshape(-1, *taps.shape[2:])
    if p.out == "kernel":
        dkernel = of(folded, b.reshape(-1, *b.shape[2:]))
        dkernel = dkernel.reshape(-1, w.window_shape[0], p.channels * p.features).swapaxes(0, 1)
        return dkernel.reshape(*w.window_shape, p.channels, p.features)
    kernel = jnp.moveaxis(sliding_kernel(b, p), 0, -3)
    z = of(folded, kernel.reshape(*kernel.shape[:-3], -1, p.features))
    return z.reshape(a.shape[0], *w.output_shape, p.features)
