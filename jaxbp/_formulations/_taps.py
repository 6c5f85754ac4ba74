"""Matrix products of the taps' shifted views of the input."""

import jax
import jax.numpy as jnp
from jax import lax

from .._geometry import ConvGeometry
from ._blocks import cut, sum_blocks
from ._windows import tap_views


def project_then_add(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """The input times all weights at once, then each tap's part shifted to its place: for few output channels."""
    w, (channels, features) = g.window, kernel.shape[-2:]
    weights = kernel.reshape(-1, channels, features)
    parts = jnp.einsum("...c,tco->t...o", x, weights, precision=g.precision)
    total = jnp.zeros((), x.dtype)
    # The view of tap t is read from part t alone.
    for tap, part in enumerate(parts):
        total = total + next(view for i, view in enumerate(tap_views(part, w, 0)) if i == tap)
    return total


def rows_kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Delta, transposed, times the taps' views side by side, block by block.

    Of a product's two orders this is the one that runs along memory.
    """

    def product(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
        rows = jnp.concatenate(list(tap_views(x, g.window, 0)), axis=-1)
        columns = delta.reshape(-1, delta.shape[-1]).T
        return jnp.matmul(columns, rows.reshape(-1, rows.shape[-1]), precision=g.precision)

    channels = x.shape[-1]
    blocks = cut(g, x.shape[0], g.window.taps * channels)
    return sum_blocks(product, x, delta, g, blocks).T.reshape(*g.window.window_shape, channels, delta.shape[-1])


def grouped_kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, together: int) -> jax.Array:
    """The same with groups: image by image, `together` groups in one product, whose diagonal blocks are theirs."""
    w, groups = g.window, g.feature_group_count
    c, o, blocks = x.shape[-1] // groups, delta.shape[-1] // groups, groups // together

    def step(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, delta = image
        rows = jnp.stack([view.reshape(-1, blocks, together * c) for view in tap_views(x, w, 0)], axis=1)
        columns = delta.reshape(-1, blocks, together * o)
        return total + jnp.einsum("mno,mtnc->notc", columns, rows, precision=g.precision), None

    first = jnp.zeros_like(x, shape=(blocks, together * o, w.taps, together * c))
    products, _ = lax.scan(step, first, (x[:, None], delta[:, None]))
    products = products.reshape(blocks, together, o, w.taps, together, c)
    return jnp.einsum("nbotbc->tcnbo", products).reshape(*w.window_shape, c, delta.shape[-1])
