"""`equinox.nn` with jaxbp's hand-written gradients in Conv*, ConvTranspose* and the pools; the rest is Equinox's.

The layers are subclasses of Equinox's own, with the same fields, layouts (channels first) and defaults. The
adaptive pools are Equinox's: they are made of reshapes, and split the axis differently from
`jaxbp.adaptive_avg_pool` and PyTorch.

    >>> import jax, jax.numpy as jnp
    >>> from jaxbp import equinox as eqx
    >>> layer = eqx.nn.Conv2d(3, 4, kernel_size=3, key=jax.random.key(0))
    >>> layer(jnp.ones((3, 8, 8))).shape
    (4, 6, 6)
"""

from typing import Any

import jax
from equinox import nn

from .._adapter import other_names
from .._swap import JAXBP_LAX, rebind

__all__ = [
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "Conv",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Pool",
]
__all__ += other_names(nn, __all__)  # pyright: ignore[reportUnsupportedDunderAll]


class Conv(nn.Conv):
    """`equinox.nn.Conv`, with the convolution and its gradients from `jaxbp.conv_general_dilated`."""

    __call__ = jax.named_scope("eqx.nn.Conv")(rebind(nn.Conv.__call__, __name__, lax=JAXBP_LAX))


class ConvTranspose(nn.ConvTranspose):
    """`equinox.nn.ConvTranspose`, with the convolution and its gradients from `jaxbp.conv_general_dilated`."""

    __call__ = jax.named_scope("eqx.nn.ConvTranspose")(rebind(nn.ConvTranspose.__call__, __name__, lax=JAXBP_LAX))


class Pool(nn.Pool):
    """`equinox.nn.Pool`; maximum, minimum and sum have the gradients of jaxbp's pools."""

    __call__ = jax.named_scope("eqx.nn.Pool")(rebind(nn.Pool.__call__, __name__, lax=JAXBP_LAX))


# Below, Equinox's class supplies the arguments, and `super()` inside it leads to the class above: Python looks
# for a method in Conv2d, nn.Conv2d, Conv, nn.Conv, in this order.


class Conv1d(nn.Conv1d, Conv):
    """`equinox.nn.Conv1d` on jaxbp."""


class Conv2d(nn.Conv2d, Conv):
    """`equinox.nn.Conv2d` on jaxbp."""


class Conv3d(nn.Conv3d, Conv):
    """`equinox.nn.Conv3d` on jaxbp."""


class ConvTranspose1d(nn.ConvTranspose1d, ConvTranspose):
    """`equinox.nn.ConvTranspose1d` on jaxbp."""


class ConvTranspose2d(nn.ConvTranspose2d, ConvTranspose):
    """`equinox.nn.ConvTranspose2d` on jaxbp."""


class ConvTranspose3d(nn.ConvTranspose3d, ConvTranspose):
    """`equinox.nn.ConvTranspose3d` on jaxbp."""


class AvgPool1d(nn.AvgPool1d, Pool):
    """`equinox.nn.AvgPool1d` on jaxbp."""


class AvgPool2d(nn.AvgPool2d, Pool):
    """`equinox.nn.AvgPool2d` on jaxbp."""


class AvgPool3d(nn.AvgPool3d, Pool):
    """`equinox.nn.AvgPool3d` on jaxbp."""


class MaxPool1d(nn.MaxPool1d, Pool):
    """`equinox.nn.MaxPool1d` on jaxbp."""


class MaxPool2d(nn.MaxPool2d, Pool):
    """`equinox.nn.MaxPool2d` on jaxbp."""


class MaxPool3d(nn.MaxPool3d, Pool):
    """`equinox.nn.MaxPool3d` on jaxbp."""


def __getattr__(name: str) -> Any:
    """Everything else is Equinox's own."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(nn, name)


def __dir__() -> list[str]:
    """The names of both."""
    return __all__
