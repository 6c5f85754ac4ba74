"""`flax.linen` with jaxbp's hand-written gradients in Conv, ConvTranspose and the pools; the rest is Flax's.

The layers are subclasses of Flax's own, of the same names, so a model's parameter tree is the same
(`Conv_0/kernel`, ...), and checkpoints can be exchanged both ways. Conv hands `jaxbp.conv_general_dilated` to
Flax's own hook of that name. Flax's layers that are made of other layers (`ConvLSTMCell`) keep Flax's
convolutions; `jaxbp.swap_lax(flax)` reaches those.

    >>> import jax, jax.numpy as jnp
    >>> from jaxbp.flax import linen as nn
    >>> class CNN(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         x = nn.relu(nn.Conv(features=4, kernel_size=(3, 3))(x))
    ...         return nn.max_pool(x, (2, 2), strides=(2, 2))
    >>> variables = CNN().init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    >>> jax.tree.map(jnp.shape, variables)
    {'params': {'Conv_0': {'bias': (4,), 'kernel': (3, 3, 3, 4)}}}
"""

from typing import Any

from flax import linen

from .._adapter import other_names
from .._conv_lax import conv_general_dilated
from .._swap import JAXBP_LAX, rebind
from ._pools import avg_pool, max_pool, min_pool, pool

__all__ = ["Conv", "ConvTranspose", "avg_pool", "max_pool", "min_pool", "pool"]
__all__ += other_names(linen, __all__)  # pyright: ignore[reportUnsupportedDunderAll]


class Conv(linen.Conv):
    """`flax.linen.Conv`, with the convolution and its gradients from `jaxbp.conv_general_dilated`."""

    conv_general_dilated: Any = conv_general_dilated


class ConvTranspose(linen.ConvTranspose):
    """`flax.linen.ConvTranspose`, with the convolution and its gradients from `jaxbp.conv_transpose`."""

    __call__ = linen.compact(rebind(linen.ConvTranspose.__call__, __name__, lax=JAXBP_LAX))


def __getattr__(name: str) -> Any:
    """Everything else is Flax's own."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(linen, name)


def __dir__() -> list[str]:
    """The names of both."""
    return __all__
