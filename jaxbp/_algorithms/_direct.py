"""direct: lax's own convolution. It is the definition of each sum, which `_conv.py` writes down and hands over.

Layouts: x is (N, *spatial, C), kernel (*window, C / groups, O), delta (N, *output, O).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import max_dim

from .._geometry import Ints, Pairs, Problem, Window, dilated_size, read_padding
from ._compiler_faults import append_zeros, crop_first, pad_row, reads_in_place

# By what they give: "z", "x" and "kernel".
definition: dict[str, Callable[..., jax.Array]] = {}


def applies(p: Problem) -> bool:
    """Everywhere."""
    return True


def run(a: jax.Array, b: jax.Array, p: Problem) -> jax.Array:
    """The sum by definition; written around what slows a compiler down."""
    if p.out != "kernel" and not p.symbolic and reads_in_place(p):
        kernel = sliding_kernel(b, p)
        return pad_row(lambda x, g: definition["z"](x, kernel, g), a, p)
    return definition[p.out](a, b, p.geometry)


def slide(
    x: jax.Array, kernel: jax.Array, *, strides: Ints, zeros_around: Pairs, zeros_between: Ints, dilation: Ints,
    feature_group_count: int = 1, batch_group_count: int = 1, precision: Any = None, dtype: Any = None,
) -> jax.Array:  # fmt: skip
    """lax's convolution, channels last: a kernel of (*window, I, O) slides over x, (N, *spatial, C), and its zeros.

    `zeros_between` is the distance between the input's pixels, `dilation` that of the kernel's.
    """
    rank = kernel.ndim - 2
    spatial = tuple(range(1, rank + 1))
    x, padding, zeros_between = crop_first(x, zeros_around, zeros_between, spatial)
    kernel, padding = append_zeros(kernel, x.shape[1:-1], strides, padding, zeros_between, dilation)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=padding,
        lhs_dilation=zeros_between,
        rhs_dilation=dilation,
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, rank + 1, *spatial), (rank + 1, rank, *range(rank)), (0, rank + 1, *spatial)
        ),
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=dtype,
    )


def at_least_one_pixel(delta: jax.Array, w: Window) -> tuple[jax.Array, Ints, Pairs]:
    """Delta with at least one pixel along each axis, its strides, and the padding of the input that it slides over.

    lax refuses an empty window. For symbolic sizes alone, which may turn out too small.
    """
    starts = tuple(map(dilated_size, w.output_shape, w.strides))
    pixels = tuple(max_dim(start, 1) for start in starts)
    if pixels == starts:
        return delta, w.strides, read_padding(w)
    more = [pixel - start for pixel, start in zip(pixels, starts, strict=True)]
    config = [(0, 0, 0), *((0, zeros, s - 1) for zeros, s in zip(more, w.strides, strict=True)), (0, 0, 0)]
    padding = tuple((low, high + zeros) for (low, high), zeros in zip(read_padding(w), more, strict=True))
    return lax.pad(delta, jnp.zeros((), delta.dtype), config), (1,) * w.rank, padding


def sliding_kernel(kernel: jax.Array, p: Problem) -> jax.Array:
    """The kernel as it slides: for the gradient of x rotated, with inputs and outputs of each group swapped."""
    return backward_kernel(kernel, p.groups) if p.out == "x" else kernel


def backward_kernel(kernel: jax.Array, groups: int) -> jax.Array:
    """The kernel that slides over delta. Rotated last: by that XLA:GPU finds the gradient of an input."""
    return rot180(swap_channels(kernel, groups), kernel.ndim - 2)


def rot180(kernel: jax.Array, rank: int) -> jax.Array:
    """Reverse the first `rank` axes: in two dimensions, a rotation by 180 degrees."""
    return lax.rev(kernel, range(rank))


def swap_channels(kernel: jax.Array, groups: int) -> jax.Array:
    """(*window, C / groups, O) to (*window, O / groups, C): inputs and outputs of each group swapped."""
    *window, group_channels, features = kernel.shape
    grouped = kernel.reshape(*window, group_channels, groups, features // groups)
    return grouped.swapaxes(-3, -1).reshape(*window, features // groups, groups * group_channels)
