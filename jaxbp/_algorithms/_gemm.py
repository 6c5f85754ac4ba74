"""Matrix products: convolutions whose windows do not overlap, where every input pixel meets one position only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._geometry import ConvGeometry, Window, read_padding
from ._memory import materialize
from ._windows import pad_axes

# Where the measurements change sides.
WIDE = 256
FEW_OUTPUTS = 1 << 14
FEWEST_TERMS = 3 << 19  # positions times outputs, for which a copy of the narrower factor is worth it
FEWEST_COLUMNS = 64  # of that copy
MOST_COPIED = 1 << 21  # its numbers


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Each window's pixels in a row, times the kernel."""
    rows = _windows_as_rows(x, g.window)
    return jnp.matmul(rows, kernel.reshape(-1, kernel.shape[-1]), precision=g.precision)


def transposed(delta: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """The input's gradient: every delta times the kernel is one window's pixels, put back in their place."""
    w = g.window
    rows = jnp.matmul(delta, kernel.reshape(-1, kernel.shape[-1]).T, precision=g.precision)
    return _rows_as_windows(rows, w)


def over_positions(x: jax.Array, delta: jax.Array, precision: Any, parts: int = 1) -> jax.Array:
    """(..., C, O), the sum of x times delta over the positions of (..., positions, C) and (..., positions, O).

    XLA:CPU's fast products read their first factor along memory, and here it would be read across: so it is an
    exchanged copy of the narrower factor, where it is worth one.
    """
    narrow, wide = sorted((x, delta), key=_cost_across)
    if x.ndim > 2 or parts > 1 or not _suits_a_copy(narrow, wide):
        return read_across(x, delta, precision, parts)
    # Behind a barrier, as the compiler would fold the exchange into the product; so would it that of the result.
    product = jnp.matmul(lax.optimization_barrier(narrow.T), wide, precision=precision)
    return product if narrow is x else lax.optimization_barrier(product).T


def _suits_a_copy(narrow: jax.Array, wide: jax.Array) -> bool:
    """Whether the copy of the narrower factor stays in the cache and costs little of a product that is not tiny."""
    few = narrow.shape[-1] < FEWEST_COLUMNS or narrow.size * wide.shape[-1] < FEWEST_TERMS
    return not few and narrow.size <= MOST_COPIED


def read_across(x: jax.Array, delta: jax.Array, precision: Any, parts: int = 1) -> jax.Array:
    """The same without a copy: a product that reads the narrower factor across memory.

    Its sum is taken in equal parts where that is asked for (they are more exact); a long one of few but wide rows in
    two, as a single product leaves a core without work.
    """
    narrow, wide = sorted((x, delta), key=_cost_across)
    positions, columns = wide.shape[-2:]
    outputs = narrow.shape[-1] * columns
    long = positions >= (3 if outputs <= FEW_OUTPUTS else 12) * columns
    if long and positions % 2 == 0 and columns >= WIDE and outputs <= 4 * FEW_OUTPUTS:
        parts = 2
    if x.ndim == 2 and parts > 1:
        narrow_parts, wide_parts = (a.reshape(parts, positions // parts, -1) for a in (narrow, wide))
        product = jnp.matmul(narrow_parts.swapaxes(1, 2), wide_parts, precision=precision).sum(0)
    else:
        product = jnp.matmul(narrow.swapaxes(-2, -1), wide, precision=precision)
        if narrow is not x and positions * (_cost_across(wide) - _cost_across(narrow)) >= 3 * outputs:
            # Exchanged as it is, the compiler would exchange the factors again. Worth a copy of the outputs.
            product = lax.optimization_barrier(product)
    return product if narrow is x else product.swapaxes(-2, -1)


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, product: Callable = over_positions) -> jax.Array:
    """The windows in rows, times delta, summed over all positions."""
    rows = _windows_as_rows(x, g.window)
    rows, delta = rows.reshape(-1, rows.shape[-1]), delta.reshape(-1, delta.shape[-1])
    if _steps(g.window) and not _worth_two_copies(x):
        product = read_across
    return product(rows, delta, g.precision).reshape(*g.window.window_shape, x.shape[-1], delta.shape[-1])


def _cost_across(a: jax.Array) -> float:
    """How long a position's numbers take if read across memory; rows of 256 bytes meet in few sets of the cache."""
    width = a.shape[-1]
    return width * (1.5 if width % 64 == 0 else 1)


def _windows_as_rows(x: jax.Array, w: Window) -> jax.Array:
    """(N, *output, pixels of a window): cut the padded input into windows, leaving out what no window reads."""
    n, channels = x.shape[0], x.shape[-1]
    if w.taps == 1:
        axes = range(1, w.rank + 1)
        x = pad_axes(x, axes, read_padding(w), 0)
        x = lax.slice(x, (0,) * x.ndim, x.shape, (1, *w.strides, 1))
        return materialize(x) if _steps(w) and _worth_two_copies(x) else x
    x = pad_axes(x, range(1, w.rank + 1), _whole_blocks(w), 0)
    x = x.reshape(n, *_split(w, channels))
    x = x.transpose(0, *range(1, 2 * w.rank, 2), *range(2, 2 * w.rank + 1, 2))
    return x.reshape(n, *w.output_shape, -1)


def _steps(w: Window) -> bool:
    """Whether windows are single pixels, with others between them."""
    return w.taps == 1 and not set(w.strides) <= {1}


def _worth_two_copies(x: jax.Array) -> bool:
    """Whether rows are wide: the exchanged copy of pixels that lie apart is slow, but for one that all sums share."""
    return x.shape[-1] >= 2 * FEWEST_COLUMNS


def _rows_as_windows(rows: jax.Array, w: Window) -> jax.Array:
    """The transpose of `_windows_as_rows`."""
    n = rows.shape[0]
    channels = rows.shape[-1] // w.taps
    axes = range(1, w.rank + 1)
    if w.taps == 1:
        config = [(0, 0, 0)] * rows.ndim
        for axis, s, (low, high) in zip(axes, w.strides, read_padding(w), strict=True):
            config[axis] = (-low, -high, s - 1)
        return lax.pad(rows, jnp.zeros((), rows.dtype), config)
    split = _split(w, channels)
    x = rows.reshape(n, *split[::2], *split[1::2])
    x = x.transpose(0, *(axis for i in range(w.rank) for axis in (1 + i, 1 + w.rank + i)))
    x = x.reshape(n, *(out * s for out, s in zip(w.output_shape, w.strides, strict=True)), channels)
    return pad_axes(x, axes, [(-low, -high) for low, high in _whole_blocks(w)], 0)


def _split(w: Window, channels: int) -> list[int]:
    """The number of windows along each axis, and of pixels in each; the last with their channels: copied as one."""
    pixels = (*w.strides[:-1], w.strides[-1] * channels)
    return [size for pair in zip(w.output_shape, pixels, strict=True) for size in pair]


def _whole_blocks(w: Window) -> list[tuple[int, int]]:
    """The padding (or cropping) that makes the input exactly as long as its windows."""
    return [
        (low, out * s - low - n)
        for (low, _), out, s, n in zip(w.padding, w.output_shape, w.strides, w.input_shape, strict=True)
    ]
