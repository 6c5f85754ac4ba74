"""`haiku` with jaxbp's hand-written gradients in the Conv family and the pools; the rest is Haiku's.

Change `import haiku as hk` to `from jaxbp import haiku as hk`, and nothing else. The layers are subclasses of
Haiku's own, of the same names, so parameters (`conv2_d/w`, ...) can be exchanged both ways. Haiku's layers that
are made of other layers (`Conv2DLSTM`, `hk.nets`) keep Haiku's convolutions; `jaxbp.swap_lax("haiku")` reaches
those.

    >>> import jax, jax.numpy as jnp
    >>> from jaxbp import haiku as hk
    >>> net = hk.without_apply_rng(hk.transform(lambda x: hk.Conv2D(4, kernel_shape=3)(x)))
    >>> params = net.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    >>> jax.tree.map(jnp.shape, params)
    {'conv2_d': {'b': (4,), 'w': (3, 3, 3, 4)}}
"""

from typing import Any

import jax

from ._adapter import not_installed, other_names
from ._swap import JAXBP_LAX, rebind

try:
    import haiku
except ModuleNotFoundError as error:
    raise not_installed("jaxbp.haiku", "haiku", "haiku", error) from None

__all__ = [
    "AvgPool",
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "ConvND",
    "ConvNDTranspose",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "DepthwiseConv3D",
    "MaxPool",
    "SeparableDepthwiseConv2D",
    "avg_pool",
    "max_pool",
]
__all__ += other_names(haiku, __all__)  # pyright: ignore[reportUnsupportedDunderAll]

# Public in Haiku, but missing from its `__all__`.
_SeparableDepthwiseConv2D: Any = haiku.SeparableDepthwiseConv2D  # pyright: ignore[reportPrivateImportUsage]

avg_pool = rebind(haiku.avg_pool, __name__, lax=JAXBP_LAX)
max_pool = rebind(haiku.max_pool, __name__, lax=JAXBP_LAX)


class ConvND(haiku.ConvND):
    """`haiku.ConvND`, with the convolution and its gradients from `jaxbp.conv_general_dilated`."""

    __call__ = rebind(haiku.ConvND.__call__, __name__, lax=JAXBP_LAX)


class ConvNDTranspose(haiku.ConvNDTranspose):
    """`haiku.ConvNDTranspose`, with the convolution and its gradients from `jaxbp.conv_transpose`."""

    __call__ = rebind(haiku.ConvNDTranspose.__call__, __name__, lax=JAXBP_LAX)


# Below, Haiku's class supplies the arguments, and `super()` inside it leads to the class above: Python looks
# for a method in Conv2D, haiku.Conv2D, ConvND, haiku.ConvND, in this order.


class Conv1D(haiku.Conv1D, ConvND):
    """`haiku.Conv1D` on jaxbp."""


class Conv2D(haiku.Conv2D, ConvND):
    """`haiku.Conv2D` on jaxbp."""


class Conv3D(haiku.Conv3D, ConvND):
    """`haiku.Conv3D` on jaxbp."""


class Conv1DTranspose(haiku.Conv1DTranspose, ConvNDTranspose):
    """`haiku.Conv1DTranspose` on jaxbp."""


class Conv2DTranspose(haiku.Conv2DTranspose, ConvNDTranspose):
    """`haiku.Conv2DTranspose` on jaxbp."""


class Conv3DTranspose(haiku.Conv3DTranspose, ConvNDTranspose):
    """`haiku.Conv3DTranspose` on jaxbp."""


class DepthwiseConv1D(haiku.DepthwiseConv1D):
    """`haiku.DepthwiseConv1D` on jaxbp."""

    __call__ = rebind(haiku.DepthwiseConv1D.__call__, __name__, lax=JAXBP_LAX)


class DepthwiseConv2D(haiku.DepthwiseConv2D):
    """`haiku.DepthwiseConv2D` on jaxbp."""

    __call__ = rebind(haiku.DepthwiseConv2D.__call__, __name__, lax=JAXBP_LAX)


class DepthwiseConv3D(haiku.DepthwiseConv3D):
    """`haiku.DepthwiseConv3D` on jaxbp."""

    __call__ = rebind(haiku.DepthwiseConv3D.__call__, __name__, lax=JAXBP_LAX)


class SeparableDepthwiseConv2D(_SeparableDepthwiseConv2D):
    """`haiku.SeparableDepthwiseConv2D` on jaxbp: two depthwise convolutions."""

    __init__ = rebind(_SeparableDepthwiseConv2D.__init__, __name__, DepthwiseConv2D=DepthwiseConv2D)


class MaxPool(haiku.MaxPool):
    """`haiku.MaxPool` on jaxbp."""

    def __call__(self, value: jax.Array) -> jax.Array:
        return max_pool(value, self.window_shape, self.strides, self.padding, self.channel_axis)


class AvgPool(haiku.AvgPool):
    """`haiku.AvgPool` on jaxbp."""

    def __call__(self, value: jax.Array) -> jax.Array:
        return avg_pool(value, self.window_shape, self.strides, self.padding, self.channel_axis)


def __getattr__(name: str) -> Any:
    """Everything else is Haiku's own."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(haiku, name)


def __dir__() -> list[str]:
    """The names of both."""
    return __all__
