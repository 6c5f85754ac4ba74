"""direct: a convolution's three sums by lax's own convolution. This is the definition that all else is tested against.

Layouts: x is (N, *spatial, C), kernel (*window, C / groups, O), delta (N, *output, O).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import max_dim

from .._geometry import ConvGeometry, Ints, Pairs, Window, dilated_size, is_static, read_padding, transposed
from ._windows import of_shape


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Slide the kernel over the padded input: cross-correlation."""
    w = g.window
    x, padding, input_dilation = _crop_first(x, w.padding, w.input_dilation, range(1, w.rank + 1))
    kernel, padding = _append_zeros(kernel, x.shape[1:-1], w.strides, padding, input_dilation, w.dilation)
    z = lax.conv_general_dilated(
        x,
        kernel,
        window_strides=w.strides,
        padding=padding,
        lhs_dilation=input_dilation,
        rhs_dilation=w.dilation,
        dimension_numbers=_channels_last(w.rank),
        feature_group_count=g.feature_group_count,
        precision=g.precision,
        preferred_element_type=g.preferred_element_type,
    )
    return of_shape(z, (z.shape[0], *w.output_shape, z.shape[-1]))


def input_grad(delta: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Slide rot180(kernel) over delta, with zeros between delta's pixels (strides) and around them (full)."""
    back = g._replace(window=transposed(g.window), preferred_element_type=None)
    return forward(delta, backward_kernel(kernel, g.feature_group_count), back)


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Slide delta, with zeros between its pixels (strides), over the padded input; the sum runs over the batch.

    Batch and channels swap their roles. The swap is a transpose: inside of loops XLA:CPU has its fast convolution for
    the channels-last layout alone.
    """
    w = g.window
    spatial = range(1, w.rank + 1)
    delta, strides, padding = _at_least_one_delta(delta, w)
    x, padding, input_dilation = _crop_first(x, padding, w.input_dilation, spatial)
    delta = delta.transpose(*spatial, 0, w.rank + 1)
    delta, padding = _append_zeros(delta, x.shape[1:-1], w.dilation, padding, input_dilation, strides)
    sums = lax.conv_general_dilated(
        x.transpose(w.rank + 1, *spatial, 0),
        delta,
        window_strides=w.dilation,
        padding=padding,
        lhs_dilation=input_dilation,
        rhs_dilation=strides,
        dimension_numbers=_channels_last(w.rank),
        batch_group_count=g.feature_group_count,
        precision=g.precision,
    )
    return sums.transpose(*spatial, 0, w.rank + 1)


def kernel_grad_by_dimension_numbers(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """The same with batch and channels swapped by dimension numbers, not transposed: the pattern that XLA:GPU finds."""
    w = g.window
    spatial = tuple(range(1, w.rank + 1))
    x, padding, input_dilation = _crop_first(x, read_padding(w), w.input_dilation, spatial)
    swapped = (w.rank + 1, 0, *spatial)
    return lax.conv_general_dilated(
        x,
        delta,
        window_strides=w.dilation,
        padding=padding,
        lhs_dilation=input_dilation,
        rhs_dilation=w.strides,
        dimension_numbers=lax.ConvDimensionNumbers(swapped, swapped, (w.rank, w.rank + 1, *range(w.rank))),
        batch_group_count=g.feature_group_count,
        precision=g.precision,
    )


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


def _crop_first(
    x: jax.Array, padding: Pairs, input_dilation: Ints, axes: Sequence[int]
) -> tuple[jax.Array, Pairs, Ints]:
    """The input, cropped where padding is negative, and what is left for lax: the padding and the input dilation.

    Where padding crops one end of an axis and extends the other, XLA:CPU reads outside the input:
    https://github.com/openxla/xla/issues/48713. lax takes no padding of symbolic size, so that is materialized.
    """
    if not is_static([end for pair in padding for end in pair]) or (
        not is_static(x.shape) and any(min(pair) < 0 < max(pair) for pair in padding)
    ):
        config = [(0, 0, 0)] * x.ndim
        for axis, (low, high), step in zip(axes, padding, input_dilation, strict=True):
            size = dilated_size(x.shape[axis], step)
            config[axis] = (low, max_dim(low + size + high, 0) - low - size, step - 1)
        return lax.pad(x, jnp.zeros((), x.dtype), config), ((0, 0),) * len(padding), (1,) * len(padding)
    config, rest, dilation = [(0, 0, 0)] * x.ndim, list(padding), list(input_dilation)
    for i, (axis, (low, high)) in enumerate(zip(axes, padding, strict=True)):
        if min(low, high) < 0 < max(low, high):
            cut = max(min(low, high), -dilated_size(x.shape[axis], dilation[i]))
            ends, rest[i] = ((cut, 0), (0, low + high - cut)) if low < 0 else ((0, cut), (low + high - cut, 0))
            config[axis], dilation[i] = (*ends, dilation[i] - 1), 1
    if rest == list(padding):
        return x, padding, input_dilation
    return lax.pad(x, jnp.zeros((), x.dtype), config), tuple(rest), tuple(dilation)


def _at_least_one_delta(delta: jax.Array, w: Window) -> tuple[jax.Array, Ints, Pairs]:
    """Delta with at least one pixel along each axis, its strides, and the padding of the input that it slides over.

    Delta is lax's window here, and no window may be empty. For symbolic sizes alone, which may turn out too small.
    """
    starts = tuple(map(dilated_size, w.output_shape, w.strides))
    pixels = tuple(max_dim(start, 1) for start in starts)
    if pixels == starts:
        return delta, w.strides, read_padding(w)
    more = [pixel - start for pixel, start in zip(pixels, starts, strict=True)]
    config = [(0, 0, 0), *((0, zeros, s - 1) for zeros, s in zip(more, w.strides, strict=True)), (0, 0, 0)]
    padding = tuple((low, high + zeros) for (low, high), zeros in zip(read_padding(w), more, strict=True))
    return lax.pad(delta, jnp.zeros((), delta.dtype), config), (1,) * w.rank, padding


def _append_zeros(
    kernel: jax.Array, sizes: Ints, strides: Ints, padding: Pairs, input_dilation: Ints, dilation: Ints
) -> tuple[jax.Array, Pairs]:
    """The kernel with a zero appended along some axes, and the padding that this zero reads.

    XLA:CPU swaps a window and an input of fewer pixels. Along axes such as `kept` it takes another path (`is_group_dim`
    in its `SwapConvolutionOperandsIfBeneficial`), which aborts the process where kernel and input differ in size.
    """
    if not is_static((*sizes, *kernel.shape)):
        return kernel, padding
    window = kernel.shape[: len(sizes)]
    axes = zip(window, strides, padding, input_dilation, dilation, strict=True)
    kept = [k == i == s + 1 and pair == (0, 0) and d == 1 for k, s, pair, i, d in axes]
    more = [int(keep and k != n) for k, n, keep in zip(window, sizes, kept, strict=True)]
    taps, pixels = (math.prod(a for a, keep in zip(shape, kept, strict=True) if not keep) for shape in (window, sizes))
    if taps <= pixels or not any(more):
        return kernel, padding
    config = [(0, zeros, 0) for zeros in more]
    kernel = lax.pad(kernel, jnp.zeros((), kernel.dtype), [*config, (0, 0, 0), (0, 0, 0)])
    return kernel, tuple((low, high + zeros) for (low, high), zeros in zip(padding, more, strict=True))


def _channels_last(rank: int) -> lax.ConvDimensionNumbers:
    """lax's numbers for (N, *spatial, C), (*window, I, O) and (N, *spatial, O)."""
    spatial = tuple(range(1, rank + 1))
    return lax.ConvDimensionNumbers((0, rank + 1, *spatial), (rank + 1, rank, *range(rank)), (0, rank + 1, *spatial))
