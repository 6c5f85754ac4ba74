"""winograd: Winograd's minimal filtering, F(2, 3) along each axis. Windows of 3 at stride 1, with 4 products for 6.

Along one axis two neighbouring outputs of a window of three weights share four inputs d, and

    y0 = m0 + (m1 + m2)      m0 = (d2 + d1) (w0 + w1 + w2) / 2      m2 = (d0 - d2) w0
    y1 = m0 - (m1 + m3)      m1 = (d2 - d1) (w0 - w1 + w2) / 2      m3 = (d1 - d3) w2

The two lines are one expression over both, with a sign: half as many for the compiler. Where the sign comes first, the
compiler orders the arguments alike for every use, and compiles equal steps once.
Along two axes: tiles of 2x2 outputs from 4x4 inputs, 16 products for 36. With the sum over the channels each product is
a GEMM over all tiles. The factors are halves and signs. So errors stay within a small factor of the direct sum's, and
small integers stay exact. Larger tiles save more products and lose both. The kernel's gradient takes the transposed
steps.
Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2015.
"""

import math
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._geometry import ConvGeometry, Problem
from ._gemm import over_positions
from ._memory import after, materialize
from ._tiles import Tiles, chunk, largest_divisor, map_concat, map_tiles, sum_tiles, tile
from ._windows import pad_to

WEIGHTS = np.array([[0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [1, 0, 0], [0, 0, 1]])
# Along an axis, a tile's pixels: outputs, and inputs with those that it shares with the next tile.
OUTPUTS, INPUTS = 2, 4
# Weights (channels times features) that are transformed in one chunk, so that they fit the cache.
MOST_WEIGHTS = 1 << 17


def applies(p: Problem) -> bool:
    """One axis or two, windows of 3 at stride 1, one group; a precision asks for no differences of inputs."""
    w = p.window
    if not p.dense or p.rank > 2 or p.g.precision is not None:
        return False
    return set(w.window_shape) == {3} and {*w.strides, *w.dilation} == {1}


def run(a: jax.Array, b: jax.Array, p: Problem) -> jax.Array:
    """Of a chunk of the features at a time where the weights exceed the cache."""
    if p.out == "kernel":
        form, axis = partial(kernel_grad, a, g=p.g), b.ndim - 1
    else:
        back = p.out == "x"
        form, axis = partial(forward, a, g=p.g, back=back), b.ndim - (2 if back else 1)
    count = p.features // _features_in_chunk(p)
    return form(b) if count == 1 else map_concat(form, lambda i: [chunk(b, i, count, axis)], count, b, b.ndim - 1)


def _features_in_chunk(p: Problem) -> int:
    """All features, or a part of them where weights are large, and a few parts fit the cache."""
    part = largest_divisor(p.features, MOST_WEIGHTS // p.channels)
    many = p.channels * p.features > 2 * MOST_WEIGHTS
    return part if many and 4 * p.channels * part >= MOST_WEIGHTS else p.features


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry, back: bool) -> jax.Array:
    """Transformed tiles of the input times transformed weights, transformed to outputs.

    With `back`, the input's gradient: the sum is over the kernel's features, and the kernel is rotated, which swaps the
    weights of m2 and m3 and changes nothing else. The tiles are swapped instead, so that both sums share the weights.
    """
    *_, channels, features = kernel.shape
    # Weights that depend on the kernel alone would be transformed for all layers at once, and kept in memory.
    taps = after(kernel, x).reshape(-1, channels * features)
    weights = jnp.matmul(_weights(g.window.rank, kernel.dtype), taps).reshape(-1, channels, features)

    def outputs(x: jax.Array, g: ConvGeometry) -> jax.Array:
        counts = tile_counts(g)
        tiles = _tiles_of_input(x, counts, back)
        products = jnp.einsum("pto,pco->ptc" if back else "ptc,pco->pto", tiles, weights)
        z = _from_products(products, x.shape[0], counts, back)
        # Otherwise the consumer would be computed from the products, which are four times as large and would be kept.
        return materialize(z[(slice(None), *(slice(out) for out in g.window.output_shape))])

    return map_tiles(outputs, x, g, cache_tiles(g, x.shape[0], max(channels, features)))


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Transformed tiles of the input times those of delta, summed over the tiles: then the weights' transpose."""
    channels, features = x.shape[-1], delta.shape[-1]

    def products(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
        counts = tile_counts(g)
        return over_positions(_tiles_of_input(x, counts), _tiles_of_delta(delta, counts), g.precision)

    sums = sum_tiles(products, x, delta, g, cache_tiles(g, x.shape[0], channels + features))
    taps = jnp.matmul(_weights(g.window.rank, x.dtype).T, sums.reshape(-1, channels * features))
    return taps.reshape(*g.window.window_shape, channels, features)


def cache_tiles(g: ConvGeometry, batch: int, elements: int) -> Tiles:
    """Cache tiles, whose transforms have so many elements, channels or features, for each product."""
    return tile(g, batch, (INPUTS // OUTPUTS) ** g.window.rank * elements, OUTPUTS, times=2)


def tile_counts(g: ConvGeometry) -> list[int]:
    """How many tiles the outputs need along each axis."""
    return [-(-out // OUTPUTS) for out in g.window.output_shape]


def _weights(rank: int, dtype: jnp.dtype) -> jax.Array:
    """(4 ** rank, 3 ** rank): the transform of the weights."""
    return jnp.asarray(reduce(np.kron, [WEIGHTS] * rank), dtype)


def fills_tiles(p: Problem) -> bool:
    """Whether outputs fill most of their tiles, so that two products are saved of six at least."""
    return 2 * p.outputs * p.taps >= 3 * math.prod(tile_counts(p.g)) * INPUTS**p.rank


def _tiles_of_input(x: jax.Array, counts: list[int], back: bool = False) -> jax.Array:
    """(products, tiles, C): the transformed tiles of the padded input."""
    n, *_, channels = x.shape
    read = [(count + 1) * OUTPUTS for count in counts]
    x = pad_to(x, read)
    for axis in reversed(range(len(counts))):
        x = _inputs(x.reshape(-1, read[axis], math.prod(counts[axis + 1 :]) * channels), back)
    return x.reshape(-1, n * math.prod(counts), channels)


def _tiles_of_delta(delta: jax.Array, counts: list[int]) -> jax.Array:
    """(products, tiles, O): the transformed tiles of delta, the gradient of the products."""
    n, *_, features = delta.shape
    delta = pad_to(delta, [count * OUTPUTS for count in counts])
    for axis in reversed(range(len(counts))):
        delta = _outputs_back(delta.reshape(-1, counts[axis], OUTPUTS, math.prod(counts[axis + 1 :]) * features))
    return delta.reshape(-1, n * math.prod(counts), features)


def _from_products(products: jax.Array, n: int, counts: list[int], back: bool) -> jax.Array:
    """(N, *outputs, O) from (products, tiles, O)."""
    features = products.shape[-1]
    for axis in range(len(counts)):
        products = _outputs(products.reshape(INPUTS, -1, math.prod(counts[axis + 1 :]) * features), back)
    return products.reshape(n, *(count * OUTPUTS for count in counts), features)


def _inputs(x: jax.Array, back: bool) -> jax.Array:
    """(4, A, tiles, B) from (A, 2 (tiles + 1), B): the transform of the input along the middle axis."""
    pairs = lax.reshape(x, (x.shape[0], x.shape[1] // OUTPUTS, OUTPUTS, x.shape[2]))
    first, second = lax.slice_in_dim(pairs, 0, -1, axis=1), lax.slice_in_dim(pairs, 1, None, axis=1)
    d1, d2 = (lax.expand_dims(lax.index_in_dim(a, i, 2, keepdims=False), (0,)) for a, i in ((first, 1), (second, 0)))
    middle = lax.add(lax.mul(_signs(first, 0), d1), d2)
    ends = lax.transpose(lax.sub(first, second), (2, 0, 1, 3))
    return lax.concatenate([middle, lax.rev(ends, (0,)) if back else ends], 0)


def _outputs(m: jax.Array, back: bool) -> jax.Array:
    """(A, 2, B) from (4, A, B): two outputs of each tile."""
    m0, m1, m23 = lax.split(m, (1, 1, OUTPUTS))
    m23 = lax.rev(m23, (0,)) if back else m23
    m0, m1, m23 = (lax.transpose(a, (1, 0, 2)) for a in (m0, m1, m23))
    return lax.add(lax.mul(_signs(m, 1), lax.add(m1, m23)), m0)


def _outputs_back(pairs: jax.Array) -> jax.Array:
    """(4, A, tiles, B) from (A, tiles, 2, B): the transpose of `_outputs`."""
    y0, y1 = (lax.expand_dims(lax.index_in_dim(pairs, i, 2, keepdims=False), (0,)) for i in range(OUTPUTS))
    middle = lax.add(lax.mul(_signs(pairs, 0), y1), y0)
    return lax.concatenate([middle, lax.transpose(lax.mul(_signs(pairs, 2), pairs), (2, 0, 1, 3))], 0)


def _signs(a: jax.Array, axis: int) -> jax.Array:
    """1 and -1 along one axis, for something of the rank of `a`."""
    return jnp.asarray([1, -1], a.dtype).reshape([OUTPUTS if i == axis else 1 for i in range(a.ndim)])
