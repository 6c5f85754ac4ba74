"""`equinox` with jaxbp's convolutions and pools in `nn`: `from jaxbp import equinox as eqx`.

Change `import equinox as eqx` to `from jaxbp import equinox as eqx`, and nothing else. Field names, shapes and
files written by `eqx.tree_serialise_leaves` stay the same in both directions.

The layers are subclasses, so a model of theirs has another tree structure than Equinox's: `jax.tree.map` over both, an
optimiser state made for the other, `eqx.combine` and `eqx.tree_equal` fail across the two. Move the parameters by
`jax.tree.unflatten(jax.tree.structure(new), jax.tree.leaves(old))`, or keep Equinox's types and use
`jaxbp.swap_lax("equinox")`.
"""

from typing import Any

from .._adapter import not_installed, other_names

try:
    import equinox
except ModuleNotFoundError as error:
    raise not_installed("jaxbp.equinox", "equinox", "equinox", error) from None

from . import nn

__all__ = ["nn"]
__all__ += other_names(equinox, __all__)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Everything else is Equinox's own."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(equinox, name)


def __dir__() -> list[str]:
    """The names of both."""
    return __all__
