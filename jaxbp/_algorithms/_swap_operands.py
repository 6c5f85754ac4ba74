"""swap_operands: a kernel's gradient with delta's windows in place of x's.

At stride 1, kernel dilation d, input dilation e and padding p, substitute the pixel i that output and tap share:

    dw[t] = sum_o x[(o + d t - p) / e] delta[o] = sum_i delta[e i - d t + p] x[i]

So x slides over delta, pixels e apart, and the taps count backwards: it is the kernel's gradient of the transposed
convolution, rotated. Worth it where delta has fewer channels than x, or input dilation becomes a stride.
"""

import jax

from .._geometry import Problem, transposed
from ._direct import backward_kernel
from ._windows import Form


def applies(p: Problem) -> bool:
    """Kernel gradients at stride 1."""
    return p.out == "kernel" and p.rank > 0 and not p.strided


def inner(p: Problem) -> Problem:
    """The sum with delta in the input's place."""
    geometry = p.g._replace(window=transposed(p.window))
    return p.inside(geometry=geometry, channels=p.features, features=p.channels)


def run(x: jax.Array, delta: jax.Array, p: Problem, of: Form) -> jax.Array:
    """The swapped sum, swapped back."""
    return backward_kernel(of(delta, x), p.groups)
