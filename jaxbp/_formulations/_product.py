"""Matrix products: convolutions whose windows do not overlap, where every input cell meets one position only."""

import jax
import jax.numpy as jnp
from jax import lax

from .._geometry import ConvGeometry, Window, read_padding
from ._windows import pad_axes


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Each window's cells in a row, times the kernel."""
    rows = _windows_as_rows(x, g.window)
    return jnp.matmul(rows, kernel.reshape(-1, kernel.shape[-1]), precision=g.precision)


def transposed(delta: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """The input's gradient: every delta times the kernel is one window's cells, put back in their place."""
    w = g.window
    rows = jnp.matmul(delta, kernel.reshape(-1, kernel.shape[-1]).T, precision=g.precision)
    return _rows_as_windows(rows, w)


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Delta, transposed, times the windows in rows: of the two orders the one that runs along memory.

    A long sum of few outputs is taken in two halves where windows are cells: one product leaves a core without work.
    """
    rows = _windows_as_rows(x, g.window)
    rows, columns = rows.reshape(-1, rows.shape[-1]), delta.reshape(-1, delta.shape[-1])
    (count, cells), features = rows.shape, columns.shape[-1]
    if g.window.taps == 1 and features < cells <= count // 3 and count % 2 == 0:
        halves = [a.reshape(2, count // 2, -1) for a in (columns, rows)]
        product = jnp.einsum("hmo,hmc->hoc", *halves, precision=g.precision).sum(0)
    else:
        product = jnp.matmul(columns.T, rows, precision=g.precision)
    return product.T.reshape(*g.window.window_shape, x.shape[-1], features)


def _windows_as_rows(x: jax.Array, w: Window) -> jax.Array:
    """(N, *output, cells of a window): cut the padded input into windows, leaving out what no window reads."""
    n, channels = x.shape[0], x.shape[-1]
    if w.taps == 1:
        axes = range(1, w.rank + 1)
        x = pad_axes(x, axes, read_padding(w), 0)
        return lax.slice(x, (0,) * x.ndim, x.shape, (1, *w.strides, 1))
    x = pad_axes(x, range(1, w.rank + 1), _whole_blocks(w), 0)
    split = [size for out, s in zip(w.output_shape, w.strides, strict=True) for size in (out, s)]
    x = x.reshape(n, *split, channels)
    x = x.transpose(0, *range(1, 2 * w.rank, 2), *range(2, 2 * w.rank + 1, 2), x.ndim - 1)
    return x.reshape(n, *w.output_shape, -1)


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
    x = rows.reshape(n, *w.output_shape, *w.strides, channels)
    order = [axis for i in range(w.rank) for axis in (1 + i, 1 + w.rank + i)]
    x = x.transpose(0, *order, x.ndim - 1)
    x = x.reshape(n, *(out * s for out, s in zip(w.output_shape, w.strides, strict=True)), channels)
    return pad_axes(x, axes, [(-low, -high) for low, high in _whole_blocks(w)], 0)


def _whole_blocks(w: Window) -> list[tuple[int, int]]:
    """The padding (or cropping) that makes the input exactly as long as its windows."""
    return [
        (low, out * s - low - n)
        for (low, _), out, s, n in zip(w.padding, w.output_shape, w.strides, w.input_shape, strict=True)
    ]
