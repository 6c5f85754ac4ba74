"""The input and the kernel exchanged: the input slides over the kernel, for windows larger than their input.

With pixels e apart, steps of s, taps d apart and padding p, substitute the place u that a tap reads:

    z[y] = sum_t x[(s y + d t - p) / e] k[t] = sum_u x[u / e] k[(u - s y + p) / d]

With both turned around (K and U the sizes that taps and pixels span, u' = U - 1 - u) the last index grows with y again,

    z[y] = sum_u' rot180(x)[u' / e] rot180(k)[(s y + u' + K - U - p) / d]

which is a convolution of rot180(k), with the output's channels as its images, by rot180(x), with images as its outputs:
the compiler does the same, but loses its fast convolution by it.
"""

import jax
import jax.numpy as jnp

from .._geometry import ConvGeometry, dilated_size
from ._direct import forward as correlate
from ._direct import rot180


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry, back: bool = False) -> jax.Array:
    """Slide the input over the kernel; taken back, the kernel is turned around twice, that is, not at all."""
    w, rank = g.window, g.window.rank
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
    spatial = tuple(range(1, rank + 1))
    windows = jnp.flip(x, spatial).transpose(*spatial, rank + 1, 0)
    kernel, axis = (kernel, rank) if back else (rot180(kernel, rank), rank + 1)
    images = jnp.moveaxis(kernel, axis, 0)
    z = correlate(images, windows, g._replace(window=window))
    return z.transpose(rank + 1, *spatial, 0)
