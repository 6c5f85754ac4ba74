"""fold_axis: the first of three spatial axes folded into batch and channels.

Compilers have fast convolutions for two spatial axes. The taps along the first axis become channels, and its outputs
become images of a larger batch. More than three axes are folded one after the other.
"""

import jax
import jax.numpy as jnp

from .._geometry import ConvGeometry, Window
from ._windows import Form, first_axis


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry, form: Form, views: Form) -> jax.Array:
    """The forward sum by `form`, which has one axis less. `views` concatenates the views of the taps."""
    folded = _folded(x, g.window, views)
    weights = jnp.moveaxis(kernel, 0, -3)
    weights = weights.reshape(*weights.shape[:-3], -1, weights.shape[-1])
    z = form(folded, weights, g._replace(window=_without_first(g.window)))
    return z.reshape(x.shape[0], *g.window.output_shape, z.shape[-1])


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, form: Form, views: Form) -> jax.Array:
    """The kernel's gradient of the folded convolution by `form`, unfolded."""
    images = delta.reshape(-1, *delta.shape[2:])
    w = g.window
    dkernel = form(_folded(x, w, views), images, g._replace(window=_without_first(w)))
    channels, features = x.shape[-1], delta.shape[-1]
    dkernel = dkernel.reshape(-1, w.window_shape[0], channels * features).swapaxes(0, 1)
    return dkernel.reshape(*w.window_shape, channels, features)


def _folded(x: jax.Array, w: Window, views: Form) -> jax.Array:
    """(N * output, *rest, taps * C): for every output along the first axis what its taps read."""
    taps = views(x, first_axis(w, x))
    return taps.reshape(-1, *taps.shape[2:])


def _without_first(w: Window) -> Window:
    """The window without its first axis."""
    return Window._make(per_axis[1:] for per_axis in w)
