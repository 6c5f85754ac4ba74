"""swap_operands: the input slides over the kernel, where windows are larger than their input.

With input dilation e, stride s, kernel dilation d and padding p, substitute the place u that a tap reads:

    z[y] = sum_t x[(s y + d t - p) / e] k[t] = sum_u x[u / e] k[(u - s y + p) / d]

Reverse both (K and U the sizes that taps and pixels span, u' = U - 1 - u), and the last index grows with y again:

    z[y] = sum_u' rot180(x)[u' / e] rot180(k)[(s y + u' + K - U - p) / d]

This is a convolution of rot180(k), with the output's features as its batch, by rot180(x), with the batch as its
features. XLA:CPU swaps the operands by itself, too, but loses its fast convolution by it.
"""

import jax
import jax.numpy as jnp

from .._geometry import ConvGeometry, Problem, dilated_size, transposed
from ._direct import backward_kernel, rot180
from ._windows import Form


def applies(p: Problem) -> bool:
    """Kernel gradients at stride 1; other sums of one group where a window has more taps than the input has pixels."""
    if p.out == "kernel":
        return p.rank > 0 and not p.strided
    return p.groups == 1 and p.taps > p.pixels


def inner(p: Problem) -> Problem:
    """The sum with swapped operands: delta in the input's place, or the input in the kernel's."""
    if p.out == "kernel":
        geometry = p.g._replace(window=transposed(p.window))
        return p.inside(geometry=geometry, channels=p.features, features=p.channels)
    return p.inside(geometry=_swapped(p.g), batch=p.features, features=p.batch)


def run(a: jax.Array, b: jax.Array, p: Problem, of: Form) -> jax.Array:
    """The swapped sum, swapped back."""
    if p.out == "kernel":
        return backward_kernel(of(b, a), p.groups)
    spatial = tuple(range(1, p.rank + 1))
    windows = jnp.flip(a, spatial).transpose(*spatial, p.rank + 1, 0)
    # In the gradient of x two rotations of the kernel cancel.
    kernel, features = (b, p.rank) if p.out == "x" else (rot180(b, p.rank), p.rank + 1)
    return of(jnp.moveaxis(kernel, features, 0), windows).transpose(p.rank + 1, *spatial, 0)


def _swapped(g: ConvGeometry) -> ConvGeometry:
    """The geometry of the input that slides over the kernel."""
    w = g.window
    taps = [dilated_size(k, d) for k, d in zip(w.window_shape, w.dilation, strict=True)]
    pixels = [dilated_size(n, e) for n, e in zip(w.input_shape, w.input_dilation, strict=True)]
    reach = [dilated_size(out, s) for out, s in zip(w.output_shape, w.strides, strict=True)]
    low = [p + u - k for (p, _), u, k in zip(w.padding, pixels, taps, strict=True)]
    window = w._replace(
        input_shape=w.window_shape,
        window_shape=w.input_shape,
        dilation=w.input_dilation,
        input_dilation=w.dilation,
        padding=tuple((lo, r + u - 1 - k - lo) for lo, r, u, k in zip(low, reach, pixels, taps, strict=True)),
    )
    return g._replace(window=window)
