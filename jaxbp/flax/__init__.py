"""`flax` with jaxbp's convolutions and pools: `from jaxbp.flax import linen as nn`, or `nnx`.

Change `from flax import linen as nn` (or `import flax.linen as nn`) to `from jaxbp.flax import linen as nn`,
and nothing else. Classes, parameter names, shapes and checkpoints stay the same in both directions.
"""

from typing import Any

from .._adapter import not_installed, other_names

try:
    import flax
except ModuleNotFoundError as error:
    raise not_installed("jaxbp.flax", "flax", "flax", error) from None

from . import linen, nnx

__all__ = ["linen", "nnx"]
__all__ += other_names(flax, __all__)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Everything else is Flax's own."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(flax, name)


def __dir__() -> list[str]:
    """The names of both."""
    return __all__
