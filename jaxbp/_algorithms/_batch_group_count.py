"""batch_group_count: a kernel's gradient whose batch and channels are swapped by dimension numbers, not transposed.

It is the definition in the pattern that XLA:GPU knows as cuDNN's own.
"""

import jax
from jax import lax

from .._geometry import Problem, read_padding
from ._compiler_faults import crop_first


def applies(p: Problem) -> bool:
    """Kernel gradients."""
    return p.out == "kernel"


def run(x: jax.Array, delta: jax.Array, p: Problem) -> jax.Array:
    """Delta, with zeros between its pixels, slides over the padded input; the sum runs over the batch."""
    w = p.window
    spatial = tuple(range(1, w.rank + 1))
    x, padding, input_dilation = crop_first(x, read_padding(w), w.input_dilation, spatial)
    swapped = (w.rank + 1, 0, *spatial)
    return lax.conv_general_dilated(
        x,
        delta,
        window_strides=w.dilation,
        padding=padding,
        lhs_dilation=input_dilation,
        rhs_dilation=w.strides,
        dimension_numbers=lax.ConvDimensionNumbers(swapped, swapped, (w.rank, w.rank + 1, *range(w.rank))),
        batch_group_count=p.groups,
        precision=p.g.precision,
    )
