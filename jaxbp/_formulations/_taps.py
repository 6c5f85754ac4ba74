"""Matrix products of the taps' shifted views of the input."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from .._geometry import ConvGeometry
from ._blocks import cut, sum_blocks
from ._memory import written
from ._windows import first_axis_views, tap_views


def project_then_add(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """The input times all weights at once, then each tap's part shifted to its place: for few output channels."""
    w, (channels, features) = g.window, kernel.shape[-2:]
    weights = kernel.reshape(-1, channels, features)
    parts = jnp.einsum("...c,tco->t...o", x, weights, precision=g.precision)
    total = jnp.zeros((), x.dtype)
    # The view of tap t is read from part t alone.
    for tap, part in enumerate(parts):
        total = total + next(view for i, view in enumerate(tap_views(part, w, 0)) if i == tap)
    return written(total)


def rows_kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Delta, transposed, times the views of one row of taps side by side; block by block.

    Of a product's two orders this is the one that runs along memory. The next row of taps reads the same views, some
    rows on.
    """
    channels, features = x.shape[-1], delta.shape[-1]

    def products(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
        w = g.window
        row = w._replace(
            window_shape=(1, *w.window_shape[1:]),
            strides=(1, *w.strides[1:]),
            output_shape=(x.shape[1], *w.output_shape[1:]),
        )
        views = jnp.concatenate(list(tap_views(x, row, 0)), axis=-1)
        columns = delta.reshape(-1, features).T
        return jnp.stack(
            [
                jnp.matmul(columns, rows.reshape(-1, rows.shape[-1]), precision=g.precision)
                for rows in first_axis_views(views, w)
            ]
        )

    blocks = cut(g, x.shape[0], math.prod(g.window.window_shape[1:]) * channels)
    sums = sum_blocks(products, x, delta, g, blocks).swapaxes(1, 2)
    return sums.reshape(*g.window.window_shape, channels, features)


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
