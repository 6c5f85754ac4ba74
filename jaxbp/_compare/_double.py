"""A program run as it is, and in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._call import is_inexact
from ._wide import Wide

Arrays = list[np.ndarray]


def run(program: Callable, *operands: Any) -> Arrays | Exception:
    """The program's results as NumPy arrays, or what it raised. It gets copies: it may donate its arguments."""
    try:
        try:
            return [np.asarray(leaf) for leaf in jax.tree.leaves(program(*_copies(operands)))]
        except RuntimeError as error:
            if "deleted" not in str(error):
                raise
            # A donated argument is needed again on the way back; inside of a program donation has no effect.
            return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(program)(*_copies(operands)))]
    except Exception as error:  # whatever a rule under test raises belongs into the report
        return error


def _copies(operands: Any) -> Any:
    """The operands, their arrays copied."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf, operands)


def run_under_x64(program: Callable, *operands: Any) -> Arrays | Exception:
    """The same, called again with float64 arguments while JAX allows them."""
    with jax.enable_x64(True):
        return run(program, *jax.tree.map(lambda leaf: widen(leaf, 8), operands))


class Double:
    """A program in float64: by its jaxpr, or, where that cannot be, called again with float64 arguments.

    `further` is as in `Wide`, `problem` is why the first way failed, `kept` what was not float64 in it.
    """

    def __init__(
        self, program: Callable, operands: tuple, fallback: Callable | None = None, further: bool = False
    ) -> None:
        self.wide: Wide | None = None
        self.problem: Exception | None = None
        self.kept: tuple[str, ...] = ()
        self._fallback = program if fallback is None else fallback
        try:
            wide = Wide(program, *operands, further=further)
            self.first: Arrays | Exception = wide(*operands)
            self.wide, self.kept = wide, wide.kept
        except Exception as error:  # not traceable, not differentiable, or not in float64
            self.problem = error
            self.first = run_under_x64(self._fallback, *operands)

    @property
    def exact(self) -> bool:
        """True when every float was float64."""
        if self.wide is not None:
            return not self.kept
        return not isinstance(self.first, Exception) and all(
            array.dtype.itemsize >= 8 for array in self.first if is_inexact(array)
        )

    def __call__(self, *operands: Any) -> Arrays | Exception:
        if self.wide is None:
            return run_under_x64(self._fallback, *operands)
        try:
            return self.wide(*operands)
        except Exception as error:
            return error

    def many(self, *operands: Any) -> Arrays | Exception:
        """At several points: each operand has one more axis in front."""
        leaves, treedef = jax.tree.flatten(operands)
        if self.wide is not None:
            try:
                return self.wide.many(*operands)
            except Exception:  # no batching rule: one after the other
                pass
        found = []
        for at in range(leaves[0].shape[0]):
            one = self(*jax.tree.unflatten(treedef, [leaf[at] for leaf in leaves]))
            if isinstance(one, Exception):
                return one
            found.append(one)
        return [np.stack(arrays) for arrays in zip(*found, strict=True)]


def widen(leaf: Any, size: int) -> Any:
    """An inexact array with at least `size` bytes for each real number; anything else as it is."""
    if not is_inexact(leaf):
        return leaf
    bits = 16 * size if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 8 * size
    dtype = np.dtype(f"complex{bits}" if bits > 8 * size else f"float{bits}")
    return jnp.asarray(leaf if leaf.dtype.itemsize >= dtype.itemsize else np.asarray(leaf).astype(dtype))
