"""Winograd's minimal filtering, F(2x2, 3x3): 3x3 windows at stride 1 with 16 products where 36 are usual.

Along one axis two neighbouring outputs of a window of three weights share four inputs d, and

    y0 = m2 + (m3 + m0)      m0 = (d0 - d2) w0      m2 = (d2 + d1) (w0 + w1 + w2) / 2
    y1 = m2 - (m3 + m1)      m1 = (d1 - d3) w2      m3 = (d2 - d1) (w0 - w1 + w2) / 2

What stands below each other is one expression over both, with a sign: half as many for the compiler.
Along both axes: tiles of 2x2 outputs from 4x4 inputs. The sum over the channels turns each of the 16 products into a
matrix product over all tiles. The factors are halves and signs, so that errors stay within a small factor of the
direct sum's; larger tiles save more products and lose digits. The kernel's gradient takes the same steps backward.
Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2015.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .._geometry import ConvGeometry
from ._blocks import CELLS, Blocks, cut, map_blocks, sum_blocks
from ._windows import pad_axes

WEIGHTS = np.array([[1, 0, 0], [0, 0, 1], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5]])
# Along an axis, a tile's cells: outputs, and inputs with those that it shares with the next tile.
OUTPUTS, INPUTS = 2, 4


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Tiles of the input times the transformed weights, put together to outputs."""
    *_, channels, features = kernel.shape
    weights = jnp.matmul(_both_axes(kernel.dtype), kernel.reshape(-1, channels * features))
    weights = weights.reshape(INPUTS**2, channels, features)

    def outputs(x: jax.Array, g: ConvGeometry) -> jax.Array:
        rows, columns = _tile_counts(g)
        m = jnp.matmul(_tiles_of_input(x, rows, columns), weights)
        y = _outputs(m.reshape(INPUTS, -1, features))
        y = _outputs(y.reshape(INPUTS, x.shape[0] * rows, -1))
        y = y.reshape(x.shape[0], rows * OUTPUTS, columns * OUTPUTS, features)
        return y[:, :, : g.window.output_shape[1]]

    return map_blocks(outputs, x, g, blocks(g, x.shape[0], channels, features))


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Tiles of delta, transposed, times tiles of the input: the gradient of the transformed weights, taken back."""
    channels, features = x.shape[-1], delta.shape[-1]

    def products(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
        rows, columns = _tile_counts(g)
        return jnp.matmul(_tiles_of_delta(delta, rows, columns).swapaxes(1, 2), _tiles_of_input(x, rows, columns))

    sums = sum_blocks(products, x, delta, g, blocks(g, x.shape[0], channels, features))
    taps = jnp.matmul(_both_axes(x.dtype).T, sums.reshape(INPUTS**2, -1))
    return taps.reshape(*g.window.window_shape, features, channels).swapaxes(-2, -1)


def blocks(g: ConvGeometry, batch: int, channels: int, features: int) -> Blocks:
    """Blocks of twice the usual size, unless the weights are large: each of the 16 products should have many tiles."""
    per_output = (INPUTS // OUTPUTS) ** 2 * max(channels, features)
    times = 2 if INPUTS**2 * channels * features < CELLS else 1
    return cut(g, batch, per_output, OUTPUTS, times)


def _both_axes(dtype: jnp.dtype) -> jax.Array:
    """(16, 9): what the weights are transformed with, in the order of the tiles' axes below: columns, then rows."""
    return jnp.asarray(np.einsum("ic,jr->ijrc", WEIGHTS, WEIGHTS).reshape(INPUTS**2, -1), dtype)


def _tile_counts(g: ConvGeometry) -> list[int]:
    """How many tiles a block's outputs need along each axis."""
    return [-(-out // OUTPUTS) for out in g.window.output_shape]


def _tiles_of_input(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """(16, tiles, C): what the products take of a block of the padded input."""
    n, height, _, channels = x.shape
    x = pad_axes(x, [2], [(0, (columns + 1) * OUTPUTS - x.shape[2])], 0)
    d = _inputs(x.reshape(n, height, -1), rows)
    return _inputs(d.reshape(-1, x.shape[2], channels), columns).reshape(INPUTS**2, -1, channels)


def _tiles_of_delta(delta: jax.Array, rows: int, columns: int) -> jax.Array:
    """(16, tiles, O): the gradient of the products, each with what it added to its tile's outputs."""
    n, height, width, features = delta.shape
    delta = pad_axes(delta, [1, 2], [(0, rows * OUTPUTS - height), (0, columns * OUTPUTS - width)], 0)
    e = _outputs_back(delta.reshape(n, rows * OUTPUTS, -1))
    return _outputs_back(e.reshape(-1, columns * OUTPUTS, features)).reshape(INPUTS**2, -1, features)


def _inputs(x: jax.Array, tiles: int) -> jax.Array:
    """(4, A, tiles, B) from (A, 2 (tiles + 1), B): what the products take along the middle axis."""
    pairs = x.reshape(x.shape[0], tiles + 1, OUTPUTS, -1)
    first, second = pairs[:, :-1], pairs[:, 1:]
    middle = second[None, :, :, 0] + _signs(first, 0) * first[None, :, :, 1]
    return jnp.concatenate([jnp.moveaxis(first - second, 2, 0), middle])


def _outputs(m: jax.Array) -> jax.Array:
    """(A, 2, B) from (4, A, B): two outputs of each tile."""
    return m[2][:, None] + _signs(m, 1) * (m[3][:, None] + m[:2].swapaxes(0, 1))


def _outputs_back(delta: jax.Array) -> jax.Array:
    """(4, A, tiles, B) from (A, 2 tiles, B): the transpose of `_outputs`."""
    pairs = delta.reshape(delta.shape[0], -1, OUTPUTS, delta.shape[-1])
    middle = pairs[None, :, :, 0] + _signs(pairs, 0) * pairs[None, :, :, 1]
    return jnp.concatenate([jnp.moveaxis(_signs(pairs, 2) * pairs, 2, 0), middle])


def _signs(a: jax.Array, axis: int) -> jax.Array:
    """1 and -1 along one axis, for something of the rank of `a`."""
    return jnp.asarray([1, -1], a.dtype).reshape([OUTPUTS if i == axis else 1 for i in range(a.ndim)])
