"""Winograd's minimal filtering, F(2x2, 3x3): 3x3 windows at stride 1 with 16 products where 36 are usual.

Along one axis two neighbouring outputs of a window of three weights share four inputs d, and

    y0 = m0 + m1 + m2        m0 = (d0 - d2) w0        m1 = (d1 + d2) (w0 + w1 + w2) / 2
    y1 = m1 - m2 - m3        m3 = (d1 - d3) w2        m2 = (d2 - d1) (w0 - w1 + w2) / 2

Along both axes: tiles of 2x2 outputs from 4x4 inputs. The sum over the channels turns each of the 16 products into a
matrix product over all tiles. The factors are halves and signs, so that errors stay within a small factor of the
direct sum's; larger tiles save more products and lose digits.
Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2015.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._geometry import ConvGeometry
from ._blocks import Blocks, cut, map_blocks
from ._windows import pad_axes

WEIGHTS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
# Along an axis, a tile's cells: outputs, and inputs with those that it shares with the next tile.
OUTPUTS, INPUTS = 2, 4


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Tiles of the input times the transformed weights, put together to outputs."""
    *_, channels, features = kernel.shape
    # In the order in which the tiles' axes come below: columns, then rows.
    both = jnp.asarray(np.einsum("ic,jr->ijrc", WEIGHTS, WEIGHTS).reshape(INPUTS**2, -1), kernel.dtype)
    weights = jnp.matmul(both, kernel.reshape(-1, channels * features)).reshape(INPUTS**2, channels, features)

    def outputs(x: jax.Array, g: ConvGeometry) -> jax.Array:
        rows, columns = (-(-out // OUTPUTS) for out in g.window.output_shape)
        x = pad_axes(x, [2], [(0, (columns + 1) * OUTPUTS - x.shape[2])], 0)
        d = _input_tiles(_input_tiles(x, 1, rows), 3, columns)
        m = jnp.matmul(d.reshape(INPUTS**2, -1, channels), weights)
        m = m.reshape(*d.shape[:-1], features)
        y = _outputs(_outputs(m, 4), 2)
        y = y.reshape(x.shape[0], rows * OUTPUTS, columns * OUTPUTS, features)
        return y[:, :, : g.window.output_shape[1]]

    return map_blocks(outputs, x, g, blocks(g, x.shape[0], channels, features))


def blocks(g: ConvGeometry, batch: int, channels: int, features: int) -> Blocks:
    """Blocks of twice the usual size: each of the 16 products should have many tiles."""
    per_output = (INPUTS // OUTPUTS) ** 2 * max(channels, features)
    return cut(g, batch, per_output, OUTPUTS, times=2)


def _input_tiles(x: jax.Array, axis: int, tiles: int) -> jax.Array:
    """What the products take along an axis of 2 (tiles + 1) cells: a new first axis of 4, and the tiles."""
    pairs = x.reshape(*x.shape[:axis], tiles + 1, OUTPUTS, *x.shape[axis + 1 :])
    first, second = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in range(OUTPUTS))
    d0, d2 = (lax.slice_in_dim(first, i, i + tiles, axis=axis) for i in (0, 1))
    d1, d3 = (lax.slice_in_dim(second, i, i + tiles, axis=axis) for i in (0, 1))
    return jnp.stack([d0 - d2, d1 + d2, d2 - d1, d1 - d3])


def _outputs(m: jax.Array, axis: int) -> jax.Array:
    """Two outputs, on a new axis, from the first axis of 4."""
    return jnp.stack([m[0] + m[1] + m[2], m[1] - m[2] - m[3]], axis)
