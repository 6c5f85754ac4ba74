"""gemm: one matrix product, where windows do not overlap (1x1, patches): each input pixel belongs to one window."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._geometry import ConvGeometry, Problem, Window, as_patches, non_overlapping, read_padding, transposed
from ._direct import backward_kernel, sliding_kernel
from ._memory import materialize
from ._tiles import MOST_MATERIALIZED, images_at_once, some_images, sum_images
from ._windows import pad_axes

# Thresholds, measured.
WIDE = 256
FEW_OUTPUTS = 1 << 14
FEWEST_TERMS = 3 << 19  # positions times outputs, from which a transposed copy of the narrower factor is worth it
FEWEST_COLUMNS = 64  # of that copy
MOST_COPIED = 1 << 21  # its elements


def applies(p: Problem) -> bool:
    """Where windows do not overlap, or (but for a kernel's gradient) those of the transposed convolution do not."""
    return p.groups == 1 and (non_overlapping(as_patches(p.window)) or (p.out != "kernel" and _is_transposed(p)))


def run(a: jax.Array, b: jax.Array, p: Problem) -> jax.Array:
    """One GEMM; on a CPU of some images at a time where the rearranged copy of the input is large."""
    w = as_patches(p.window)
    if p.out == "kernel":
        g = p.g._replace(window=w)
        if p.platform != "cpu":
            return kernel_grad(a, b, g, read_across)
        if not _copies_much(w, p.batch, p.channels):
            return kernel_grad(a, b, g)
        return sum_images(partial(kernel_grad, g=g), a, b, p.pixels * p.channels, times=2)
    channels = p.channels
    # A single pixel's kernel is not rotated but read across.
    if _is_transposed(p) and (not non_overlapping(w) or (p.out == "x" and p.taps == 1)):
        kernel = b if p.out == "x" else backward_kernel(b, 1)
        w, channels = as_patches(transposed(p.window)), p.features
        form = partial(transposed_product, kernel=kernel, g=p.g._replace(window=w))
    else:
        form = partial(forward, kernel=sliding_kernel(b, p), g=p.g._replace(window=w))
    if p.platform != "cpu" or not _copies_much(w, p.batch, channels):
        return form(a)
    return some_images(form, [a], images_at_once(p.batch, math.prod(w.input_shape) * channels, times=2))


def _is_transposed(p: Problem) -> bool:
    """Whether the windows of the transposed convolution do not overlap."""
    return non_overlapping(as_patches(transposed(p.window)))


def _copies_much(w: Window, batch: int, channels: int) -> bool:
    """Whether many pixels are rearranged into windows. Windows of one pixel, or a single window, need none of that."""
    in_order = w.taps == 1 or math.prod(w.output_shape) == 1
    return not in_order and batch * math.prod(w.input_shape) * channels >= MOST_MATERIALIZED


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Each window's pixels as one row, times the kernel."""
    rows = _windows_as_rows(x, g.window)
    return jnp.matmul(rows, kernel.reshape(-1, kernel.shape[-1]), precision=g.precision)


def transposed_product(delta: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """The input's gradient: every delta times the kernel is one window's pixels, put in their place."""
    w = g.window
    rows = jnp.matmul(delta, kernel.reshape(-1, kernel.shape[-1]).T, precision=g.precision)
    return _rows_as_windows(rows, w)


def over_positions(x: jax.Array, delta: jax.Array, precision: Any) -> jax.Array:
    """(..., C, O): x^T delta, summed over the positions of (..., positions, C) and (..., positions, O).

    XLA:CPU's fast GEMM needs a first factor with contiguous rows. Here its columns are contiguous. So the narrower
    factor is copied, transposed, where that is worth it.
    """
    narrow, wide = sorted((x, delta), key=_cost_across)
    # The copy has to stay in the cache, and to cost little beside the GEMM.
    few = narrow.shape[-1] < FEWEST_COLUMNS or narrow.size * wide.shape[-1] < FEWEST_TERMS
    if x.ndim > 2 or few or narrow.size > MOST_COPIED:
        return read_across(x, delta, precision)
    # Behind barriers: the compiler would fold both transposes into the GEMM.
    product = jnp.matmul(lax.optimization_barrier(narrow.T), wide, precision=precision)
    return product if narrow is x else lax.optimization_barrier(product).T


def read_across(x: jax.Array, delta: jax.Array, precision: Any) -> jax.Array:
    """The same without a copy: the GEMM reads the narrower factor against the order of memory, with a stride.

    A long sum of few but wide rows is taken in two parts: a single GEMM would leave a core without work.
    """
    narrow, wide = sorted((x, delta), key=_cost_across)
    positions, columns = wide.shape[-2:]
    outputs = narrow.shape[-1] * columns
    long = positions >= (3 if outputs <= FEW_OUTPUTS else 12) * columns
    if x.ndim == 2 and long and positions % 2 == 0 and columns >= WIDE and outputs <= 4 * FEW_OUTPUTS:
        narrow_parts, wide_parts = (a.reshape(2, positions // 2, -1) for a in (narrow, wide))
        product = jnp.matmul(narrow_parts.swapaxes(1, 2), wide_parts, precision=precision).sum(0)
    else:
        product = jnp.matmul(narrow.swapaxes(-2, -1), wide, precision=precision)
        if narrow is not x and positions * (_cost_across(wide) - _cost_across(narrow)) >= 3 * outputs:
            # Without a barrier the compiler would swap the factors back. Worth a copy of the outputs.
            product = lax.optimization_barrier(product)
    return product if narrow is x else product.swapaxes(-2, -1)


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, product: Callable = over_positions) -> jax.Array:
    """The windows as rows, times delta, summed over all positions."""
    rows = _windows_as_rows(x, g.window)
    rows, delta = rows.reshape(-1, rows.shape[-1]), delta.reshape(-1, delta.shape[-1])
    if _steps(g.window) and not _worth_two_copies(x):
        product = read_across
    return product(rows, delta, g.precision).reshape(*g.window.window_shape, x.shape[-1], delta.shape[-1])


def _cost_across(a: jax.Array) -> float:
    """Cost of reading a column: rows of a multiple of 256 bytes meet in few sets of the cache."""
    width = a.shape[-1]
    return width * (1.5 if width % 64 == 0 else 1)


def _windows_as_rows(x: jax.Array, w: Window) -> jax.Array:
    """(N, *output, elements of a window): the padded input split into windows, without what no window reads."""
    n, channels = x.shape[0], x.shape[-1]
    if w.taps == 1:
        axes = range(1, w.rank + 1)
        x = pad_axes(x, axes, read_padding(w), 0)
        x = lax.slice(x, (0,) * x.ndim, x.shape, (1, *w.strides, 1))
        return materialize(x) if _steps(w) and _worth_two_copies(x) else x
    x = pad_axes(x, range(1, w.rank + 1), _whole_windows(w), 0)
    x = x.reshape(n, *_split(w, channels))
    x = x.transpose(0, *range(1, 2 * w.rank, 2), *range(2, 2 * w.rank + 1, 2))
    return x.reshape(n, *w.output_shape, -1)


def _steps(w: Window) -> bool:
    """Whether windows are single pixels, at a stride."""
    return w.taps == 1 and not set(w.strides) <= {1}


def _worth_two_copies(x: jax.Array) -> bool:
    """Whether rows are wide enough for a copy of the strided pixels, and a transposed copy of that."""
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
    return pad_axes(x, axes, [(-low, -high) for low, high in _whole_windows(w)], 0)


def _split(w: Window, channels: int) -> list[int]:
    """Windows and pixels of each window, along each axis. The last axis includes the channels: copied as one."""
    pixels = (*w.strides[:-1], w.strides[-1] * channels)
    return [size for pair in zip(w.output_shape, pixels, strict=True) for size in pair]


def _whole_windows(w: Window) -> list[tuple[int, int]]:
    """The padding, or cropping, that makes the input exactly as long as its windows."""
    return [
        (low, out * s - low - n)
        for (low, _), out, s, n in zip(w.padding, w.output_shape, w.strides, w.input_shape, strict=True)
    ]
