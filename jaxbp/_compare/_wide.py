"""A function's jaxpr evaluated in another way: without its custom rules, and with every float in float64.

Both are one walk over the equations. Calls (jit, checkpoint, custom rules, composites) are entered; loops and
branches are built again around the walk of their bodies; a Pallas kernel is run block by block (`_pallas.py`).
Everything else is bound as it stands, with float64 in place of each float that a parameter names. Integers keep their
dtype, so that the bits of random numbers are those of the real call. An equation that cannot be evaluated so (a
callback, a foreign call) gets its own dtypes, and the walk remembers its name.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal
from jax.extend.core import Jaxpr as OpenJaxpr

_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat2", "remat", "checkpoint", "composite", "custom_lin"}
_RULES = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
_SCATTERS = {
    "scatter": lax.scatter,
    "scatter-add": lax.scatter_add,
    "scatter-sub": lax.scatter_sub,
    "scatter-mul": lax.scatter_mul,
    "scatter_mul": lax.scatter_mul,
    "scatter-min": lax.scatter_min,
    "scatter-max": lax.scatter_max,
    "scatter_min": lax.scatter_min,
    "scatter_max": lax.scatter_max,
}
# What these mean depends on the bits of a dtype.
_BITS = {"bitcast_convert_type", "nextafter", "reduce_precision"}
# What runs outside of XLA.
_FOREIGN = {"pure_callback", "io_callback", "ffi_call"}
_SILENT = {"debug_callback", "debug_print"}
# By how much a loop's tolerance is made smaller, and after how many steps it ends all the same.
_FURTHER, _MOST_STEPS = 1e-4, 10_000


@dataclasses.dataclass
class Walk:
    """How a jaxpr is evaluated, and what was met on the way.

    `wide`: every float in float64. `replace`: other values for literals. `further`: loops that end when something is
    below a small number run until it is much smaller; `ending` is true inside of their conditions. `rules` counts
    custom rules that were entered, `kept` are the primitives that have their own dtypes, `searching` is true where a
    loop ends when numbers say so.
    """

    wide: bool = False
    replace: dict[float, float] = dataclasses.field(default_factory=dict)
    further: bool = False
    ending: bool = False
    rules: int = 0
    kept: set[str] = dataclasses.field(default_factory=set)
    searching: bool = False
    literals: set[float] = dataclasses.field(default_factory=set)
    grid: tuple[tuple[Any, int], ...] = ()


def is_float(dtype: Any) -> bool:
    """True for real and complex floating dtypes."""
    return jnp.issubdtype(dtype, jnp.inexact)


def double(dtype: Any) -> Any:
    """float64 or complex128 for floating dtypes, any other as it is."""
    if dtype is None or not is_float(dtype):
        return dtype
    return np.dtype("complex128" if jnp.issubdtype(dtype, jnp.complexfloating) else "float64")


def widened(walk: Walk, value: Any) -> Any:
    """A value in the walk's precision."""
    dtype = getattr(value, "dtype", None)
    if not walk.wide or dtype is None or not is_float(dtype) or dtype == double(dtype):
        return value
    return jnp.asarray(value).astype(double(dtype))


def evaluate(walk: Walk, jaxpr: Any, values: Iterable[Any]) -> list[Any]:
    """The results of a jaxpr, open or closed."""
    consts, body = getattr(jaxpr, "consts", ()), getattr(jaxpr, "jaxpr", jaxpr)
    known = {
        variable: widened(walk, value)
        for variable, value in zip((*body.constvars, *body.invars), (*consts, *values), strict=True)
    }

    def read(atom: Any) -> Any:
        return _literal(walk, atom) if isinstance(atom, Literal) else known[atom]

    for equation in body.eqns:
        results = _results(walk, equation, [read(atom) for atom in equation.invars])
        for variable, result in zip(equation.outvars, results, strict=True):
            known[variable] = widened(walk, result)
    return [read(atom) for atom in body.outvars]


def _literal(walk: Walk, atom: Any) -> Any:
    """A literal's value as an array of its dtype."""
    if not is_float(atom.aval.dtype):
        return jnp.asarray(atom.val, atom.aval.dtype)
    if np.ndim(atom.val) == 0 and not np.iscomplexobj(atom.val):
        walk.literals.add(float(atom.val))
        if float(atom.val) in walk.replace:
            return widened(walk, jnp.asarray(walk.replace[float(atom.val)], atom.aval.dtype))
        if walk.ending and 0 < atom.val <= 1e-2:
            return jnp.asarray(_FURTHER * atom.val, double(atom.aval.dtype))
    return jnp.asarray(atom.val, double(atom.aval.dtype) if walk.wide else atom.aval.dtype)


def _results(walk: Walk, equation: Any, values: list[Any]) -> Sequence[Any]:
    """The results of one equation."""
    name, params = equation.primitive.name, equation.params
    if name in _RULES:
        walk.rules += 1
        return evaluate(walk, params.get("call_jaxpr", params.get("fun_jaxpr")), values)
    if name in _CALLS:
        return evaluate(walk, params.get("jaxpr", params.get("call_jaxpr")), values)
    if name in _SILENT:
        return []
    if name == "scan":
        return _scan(walk, equation, values)
    if name == "while":
        return _while(walk, params, values)
    if name == "cond":
        branches: list[Callable[..., Any]] = [functools.partial(_branch, walk, branch) for branch in params["branches"]]
        switch: Any = lax.switch
        return switch(values[0], branches, *values[1:])
    if name == "program_id" and walk.grid:
        return [walk.grid[params["axis"]][0]]
    if name == "num_programs" and walk.grid:
        return [jnp.int32(walk.grid[params["axis"]][1])]
    if name == "pallas_call":
        from ._pallas import run_kernel

        try:
            return run_kernel(walk, equation, values)
        except Exception:  # its inside is private to JAX, so whatever it raises means "not in this way"
            return _as_it_is(walk, equation, values)
    if not walk.wide:
        return _bind(equation, values, equation.params)
    if name == "custom_linear_solve" and not walk.grid:
        solve = params["jaxprs"].solve
        lengths = params["const_lengths"]
        before = lengths.matvec + lengths.vecmat
        right = values[before + lengths.solve + lengths.transpose_solve :]
        return evaluate(walk, solve, [*values[before : before + lengths.solve], *right])
    if name in _SCATTERS:
        keywords = {key: params[key] for key in ("indices_are_sorted", "unique_indices", "mode")}
        operand, indices, updates = values
        return [_SCATTERS[name](operand, indices, updates, params["dimension_numbers"], **keywords)]
    if name in _BITS or name in _FOREIGN or any(map(_holds_jaxpr, params.values())):
        return _narrow(walk, equation, values, name not in _BITS)
    try:
        results = _bind(equation, values, _wide_parameters(params))
    except Exception:  # an operation without float64
        return _as_it_is(walk, equation, values)
    for result, variable in zip(results, equation.outvars, strict=True):
        dtype = double(getattr(variable.aval, "dtype", None))
        if getattr(result, "shape", None) != variable.aval.shape or result.dtype != dtype:
            return _as_it_is(walk, equation, values)
    return results


def _branch(walk: Walk, branch: Any, *values: Any) -> list[Any]:
    """One branch of a cond, its results in strong types."""
    return [_strong(value) for value in evaluate(walk, branch, values)]


def _strong(value: Any) -> Any:
    """A value whose dtype is not weak, so that loops and branches agree."""
    return lax.convert_element_type(value, value.dtype) if getattr(value, "weak_type", False) else value


def _scan(walk: Walk, equation: Any, values: list[Any]) -> list[Any]:
    """A scan around the walk of its body; what is scanned over has one more axis outside than inside."""
    params = equation.params
    body_jaxpr = getattr(params["jaxpr"], "jaxpr", params["jaxpr"])
    carries = sum(a.aval.ndim == b.aval.ndim for a, b in zip(equation.outvars, body_jaxpr.outvars, strict=True))
    kept = sum(a.aval.ndim == b.aval.ndim for a, b in zip(equation.invars, body_jaxpr.invars, strict=True))
    consts = kept - carries
    fixed, start = values[:consts], [_strong(value) for value in values[consts : consts + carries]]

    def body(carry: list[Any], item: Any) -> tuple[list[Any], list[Any]]:
        results = [_strong(value) for value in evaluate(walk, params["jaxpr"], [*fixed, *carry, *item])]
        return results[:carries], results[carries:]

    last, stacked = lax.scan(
        body, start, list(values[consts + carries :]), length=params["length"], reverse=params["reverse"]
    )
    return [*last, *stacked]


def _while(walk: Walk, params: dict[str, Any], values: list[Any]) -> list[Any]:
    """A while loop around the walks of its condition and its body."""
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    condition = params["cond_jaxpr"]
    inside = getattr(condition, "jaxpr", condition)
    atoms = [atom for equation in inside.eqns for atom in equation.invars]
    walk.searching |= any(is_float(atom.aval.dtype) for atom in atoms if hasattr(atom.aval, "dtype"))
    ends = dataclasses.replace(walk, ending=walk.further)

    def goes_on(carry: list[Any]) -> Any:
        more = evaluate(ends, condition, [*values[:first], *carry[1:]])[0]
        return more & (carry[0] < _MOST_STEPS) if walk.further else more

    def step(carry: list[Any]) -> list[Any]:
        results = evaluate(walk, params["body_jaxpr"], [*values[first:second], *carry[1:]])
        return [carry[0] + 1, *map(_strong, results)]

    return lax.while_loop(goes_on, step, [jnp.int32(0), *map(_strong, values[second:])])[1:]


def _wide_parameters(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters that ask for float64 wherever they named a float."""
    changed = dict(params)
    for key in ("new_dtype", "preferred_element_type", "dtype"):
        if changed.get(key) is not None and is_float(changed[key]):
            changed[key] = double(changed[key])
    if "precision" in changed and not isinstance(changed["precision"], tuple | lax.Precision | None):
        changed["precision"] = None  # an algorithm of one dtype
    return changed


def _holds_jaxpr(value: Any) -> bool:
    """True for a parameter that is typed code of its own."""
    if isinstance(value, tuple | list):
        return any(map(_holds_jaxpr, value))
    return isinstance(value, ClosedJaxpr | OpenJaxpr)


def _as_it_is(walk: Walk, equation: Any, values: list[Any]) -> Sequence[Any]:
    """An equation in its own dtypes, and noted."""
    return _narrow(walk, equation, values, True)


def _narrow(walk: Walk, equation: Any, values: list[Any], noted: bool) -> Sequence[Any]:
    """An equation in its own dtypes."""
    if noted and walk.wide:
        walk.kept.add(equation.primitive.name)

    def own(value: Any, atom: Any) -> Any:
        dtype = getattr(atom.aval, "dtype", None)
        return value.astype(dtype) if dtype is not None and is_float(dtype) and value.dtype != dtype else value

    values = [own(value, atom) for value, atom in zip(values, equation.invars, strict=True)]
    return _bind(equation, values, equation.params)


def _bind(equation: Any, values: list[Any], params: dict[str, Any]) -> Sequence[Any]:
    """The primitive called with values."""
    primitive = equation.primitive
    bound = primitive.get_bind_params(params)
    functions, keywords = bound if isinstance(bound, tuple) else ((), bound)
    results = primitive.bind(*functions, *values, **keywords)
    return results if primitive.multiple_results else [results]


def without_rules(function: Callable[..., Any], walk: Walk | None = None) -> Callable[..., Any]:
    """`function` with every custom rule in it replaced by the code that the rule is for."""
    walk = Walk() if walk is None else walk

    @functools.wraps(function)
    def plain(*args: Any, **keywords: Any) -> Any:
        leaves, treedef = jax.tree.flatten((args, keywords))
        at = [place for place, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray | np.generic)]

        def flat(*arrays: Any) -> Any:
            filled = list(leaves)
            for place, array in zip(at, arrays, strict=True):
                filled[place] = array
            inner_args, inner_keywords = jax.tree.unflatten(treedef, filled)
            return function(*inner_args, **inner_keywords)

        arrays = [leaves[place] for place in at]
        jaxpr, shape = jax.make_jaxpr(flat, return_shape=True)(*arrays)
        return jax.tree.unflatten(jax.tree.structure(shape), evaluate(walk, jaxpr, map(jnp.asarray, arrays)))

    return plain


class Wide:
    """A program in float64: traced in its operands' own dtypes, evaluated in float64, compiled once.

    Calling it gives a list of NumPy arrays; a result that was a float is float64. `kept` names what is not. `further`
    lets loops that search run further.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *operands: Any,
        replace: dict[float, float] | None = None,
        further: bool = False,
    ) -> None:
        self.walk = Walk(wide=True, replace=replace or {}, further=further)
        self.jaxpr = jax.make_jaxpr(program)(*operands)
        self._compiled = jax.jit(lambda *leaves: evaluate(self.walk, self.jaxpr, leaves))
        self._many = jax.jit(jax.vmap(lambda *leaves: evaluate(self.walk, self.jaxpr, leaves)))

    @property
    def kept(self) -> tuple[str, ...]:
        """The primitives that were evaluated in their own dtypes."""
        return tuple(sorted(self.walk.kept))

    def __call__(self, *operands: Any) -> list[np.ndarray]:
        with jax.enable_x64(True):
            return [np.asarray(leaf) for leaf in self._compiled(*map(_operand, jax.tree.leaves(operands)))]

    def many(self, *operands: Any) -> list[np.ndarray]:
        """The same at several points at once: every operand has one more axis in front."""
        with jax.enable_x64(True):
            return [np.asarray(leaf) for leaf in self._many(*map(_operand, jax.tree.leaves(operands)))]


def _operand(leaf: Any) -> Any:
    """A float as float64; keys and integers as they are."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not is_float(dtype):
        return jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf
    return jnp.asarray(np.asarray(leaf).astype(double(dtype)))
