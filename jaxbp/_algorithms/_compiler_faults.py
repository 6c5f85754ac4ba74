"""Faults of compilers that convolutions are written around, each with the versions that have it.

| fault | seen in jaxlib | upstream | written around by |
| --- | --- | --- | --- |
| XLA:CPU reads outside of the input where padding crops one end of an axis and extends the other | 0.10 | https://github.com/openxla/xla/issues/48713 | `crop_first` |
| XLA:CPU aborts the process where it swaps a window and an input of fewer pixels, and they differ along an axis that it takes for groups (`is_group_dim` in `SwapConvolutionOperandsIfBeneficial`) | 0.10.2 to 0.12.0.1 | not reported | `append_zeros` |
| XLA:CPU gathers no windows where nothing is padded: half the speed, or a twentieth | up to 0.10 | mended in 0.11 | `pad_row` |
"""  # noqa: E501

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import jaxlib
from jax import lax
from jax.core import max_dim

from .._geometry import ConvGeometry, Ints, Pairs, Problem, dilated_size, is_static, read_padding
from ._tiles import some_tiles

# The compiler that does not gather windows without padding.
OLD_COMPILER = jaxlib.version.__version_info__ < (0, 11)
# Elements that windows gather, from which on that shows.
FEWEST_GATHERED = 1 << 18


def crop_first(
    x: jax.Array, padding: Pairs, input_dilation: Ints, axes: Sequence[int]
) -> tuple[jax.Array, Pairs, Ints]:
    """The input, cropped where padding is negative, and what is left for lax: the padding and the input dilation.

    lax takes no padding of symbolic size, so that is padded here, too.
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


def append_zeros(
    kernel: jax.Array, sizes: Ints, strides: Ints, padding: Pairs, input_dilation: Ints, dilation: Ints
) -> tuple[jax.Array, Pairs]:
    """The kernel with a zero appended along axes that XLA:CPU takes for groups, and the padding that it reads."""
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


def reads_in_place(p: Problem) -> bool:
    """Whether the compiler gathers no windows, as nothing is padded, and there is much to gather."""
    unpadded = OLD_COMPILER and p.platform == "cpu" and not any(map(any, p.window.padding))
    return unpadded and p.dense and p.rank == 2 and p.positions * p.columns >= FEWEST_GATHERED


def pad_row(correlate: Callable[..., jax.Array], x: jax.Array, p: Problem) -> jax.Array:
    """`correlate(x, geometry)` with one more row of outputs, which reads padding, and without that row afterwards."""

    def padded(x: jax.Array, g: ConvGeometry) -> jax.Array:
        rows, *rest = g.window.output_shape
        w = g.window._replace(output_shape=(rows + 1, *rest))
        w = w._replace(padding=(read_padding(w)[0], *w.padding[1:]))
        return correlate(x, g._replace(window=w))[:, :rows]

    return some_tiles(padded, x, p.g, p.features, times=4)
