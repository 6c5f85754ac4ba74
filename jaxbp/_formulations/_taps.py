"""One matrix product per tap: what the shifted view of the input contributes, added up."""

import jax
import jax.numpy as jnp
from jax import lax

from .._geometry import ConvGeometry
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


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Delta, transposed once, times each tap's view: of a product's two orders the one that runs along memory."""
    columns = delta.reshape(-1, delta.shape[-1]).T
    taps = [
        jnp.matmul(columns, view.reshape(-1, view.shape[-1]), precision=g.precision).T
        for view in tap_views(x, g.window, 0)
    ]
    return jnp.stack(taps).reshape(*g.window.window_shape, x.shape[-1], delta.shape[-1])


def grouped_kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, together: int) -> jax.Array:
    """The same for groups: image by image, `together` groups in one product, whose diagonal blocks are theirs."""
    w, groups = g.window, g.feature_group_count
    c, o, blocks = x.shape[-1] // groups, delta.shape[-1] // groups, groups // together

    def step(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, delta = image
        rows = jnp.stack([view.reshape(-1, blocks, together * c) for view in tap_views(x, w, 0)], axis=1)
        columns = delta.reshape(-1, blocks, together * o)
        return total + jnp.einsum("mno,mtnc->notc", columns, rows, precision=g.precision), None

    first = jnp.zeros((blocks, together * o, w.taps, together * c), x.dtype)
    products, _ = lax.scan(step, first, (x[:, None], delta[:, None]))
    products = products.reshape(blocks, together, o, w.taps, together, c)
    return jnp.einsum("nbotbc->tcnbo", products).reshape(*w.window_shape, c, delta.shape[-1])
