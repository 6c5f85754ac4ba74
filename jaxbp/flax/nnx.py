"""`flax.nnx` with jaxbp's hand-written gradients in Conv, ConvTranspose and the pools; the rest is Flax's.

The layers are subclasses of Flax's own with the same parameters, so `nnx.state` of a model and its checkpoints
can be exchanged both ways. Graph definitions differ, as they name the class: move the state alone. Conv hands
`jaxbp.conv_general_dilated` to Flax's own argument of that name.

    >>> import jax.numpy as jnp
    >>> from jaxbp.flax import nnx
    >>> layer = nnx.Conv(3, 4, kernel_size=(3, 3), rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 8, 8, 3))).shape
    (1, 8, 8, 4)
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from .._adapter import other_names
from .._conv_lax import conv_general_dilated
from .._swap import JAXBP_LAX, rebind
from ._pools import avg_pool, max_pool, min_pool, pool

__all__ = ["Conv", "ConvTranspose", "avg_pool", "max_pool", "min_pool", "pool"]
__all__ += other_names(nnx, __all__)  # pyright: ignore[reportUnsupportedDunderAll]


class Conv(nnx.Conv):
    """`flax.nnx.Conv`, with the convolution and its gradients from `jaxbp.conv_general_dilated`."""

    @functools.wraps(nnx.Conv.__init__)
    def __init__(self, *args: Any, conv_general_dilated: Callable[..., Any] = conv_general_dilated, **kwargs: Any):
        super().__init__(*args, conv_general_dilated=conv_general_dilated, **kwargs)


class ConvTranspose(nnx.ConvTranspose):
    """`flax.nnx.ConvTranspose`, with the convolution and its gradients from `jaxbp.conv_transpose`."""

    __call__ = rebind(nnx.ConvTranspose.__call__, __name__, lax=JAXBP_LAX)


def __getattr__(name: str) -> Any:
    """Everything else is Flax's own."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(nnx, name)


def __dir__() -> list[str]:
    """The names of both."""
    return __all__
