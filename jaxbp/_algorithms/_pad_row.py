"""pad_row: the input padded for one more row of outputs, which is dropped.

A work-around for jaxlib up to 0.10 (`_compiler_faults`). Where nothing is padded, XLA:CPU gathers no windows but reads
them in place: at half the speed, and at a twentieth where windows have many elements. With padding it gathers.
"""

import jax

from .._geometry import ConvGeometry, Problem, dilated_size
from ._compiler_faults import OLD_COMPILER
from ._direct import definition, weights
from ._tiles import some_tiles


def applies(p: Problem) -> bool:
    """Compilers that have the fault."""
    return OLD_COMPILER and p.out != "kernel" and p.dense


def run(a: jax.Array, b: jax.Array, p: Problem) -> jax.Array:
    """Of some images or rows at a time."""
    kernel = weights(b, p)
    return some_tiles(lambda x, g: forward(x, kernel, g), a, p.g, p.features, times=4)


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """The direct sum with one more row of outputs, without that row."""
    w = g.window
    (low, _), *others = w.padding
    rows, *rest = w.output_shape
    read = rows * w.strides[0] + dilated_size(w.window_shape[0], w.dilation[0])
    high = read - low - dilated_size(w.input_shape[0], w.input_dilation[0])
    more = w._replace(padding=((low, high), *others), output_shape=(rows + 1, *rest))
    return definition["z"](x, kernel, g._replace(window=more))[:, :rows]
