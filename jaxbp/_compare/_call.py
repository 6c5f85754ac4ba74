"""The call under test: what of it is differentiated, what is held fixed, and the programs that are run for it."""

from __future__ import annotations

import functools
import inspect
import operator
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._cost import in_one_line


class Call(NamedTuple):
    """How the function under test is called.

    `leaves` are the leaves of (args, kwargs) with None where an array is put in: at `variable_at` the differentiated
    ones, whose names are `names` and whose arguments are called `arguments`, and at `fixed_at` the others.
    """

    treedef: Any
    leaves: tuple
    variable_at: tuple[int, ...]
    fixed_at: tuple[int, ...]
    names: tuple[str, ...]
    arguments: tuple[str, ...]
    numbers: tuple[int, ...] = ()


def is_inexact(array: Any) -> bool:
    """True for floating and complex arrays, PRNG keys and plain Python numbers excluded."""
    return hasattr(array, "dtype") and jnp.issubdtype(array.dtype, jnp.inexact)


def outputs(call: Call, function: Callable, variables: Sequence, fixed: Sequence) -> tuple[list, list]:
    """The function's output leaves: those that have a gradient, and the others."""
    leaves = list(call.leaves)
    for at, leaf in zip(call.variable_at + call.fixed_at, (*variables, *fixed), strict=True):
        leaves[at] = leaf
    args, kwargs = jax.tree.unflatten(call.treedef, leaves)
    results = [jnp.asarray(leaf) for leaf in jax.tree.leaves(function(*args, **kwargs))]
    return [leaf for leaf in results if is_inexact(leaf)], [leaf for leaf in results if not is_inexact(leaf)]


def pull_back(call: Call, function: Callable, variables: tuple, fixed: tuple, cotangents: Sequence):
    """(values under differentiation, gradients of the variables)."""
    values, pull, others = jax.vjp(lambda *v: outputs(call, function, v, fixed), *variables, has_aux=True)
    gradients = pull([c.astype(value.dtype) for c, value in zip(cotangents, values, strict=True)])
    return values + others, list(gradients)


def push_forward(call: Call, function: Callable, variables: tuple, fixed: tuple, cotangents, tangents) -> Any:
    """The slope of sum(cotangents * outputs) along the tangents, by forward mode."""
    tangents = tuple(t.astype(v.dtype) for t, v in zip(tangents, variables, strict=True))
    rises = jax.jvp(lambda *v: outputs(call, function, v, fixed)[0], variables, tangents)[1]
    return sum((jnp.sum(c.astype(r.dtype) * r).real for c, r in zip(cotangents, rises, strict=True)))


def second_order(call: Call, function: Callable, variables: tuple, fixed: tuple, cotangents, tangents) -> list:
    """How the gradients change along the tangents: forward over reverse."""
    tangents = tuple(t.astype(v.dtype) for t, v in zip(tangents, variables, strict=True))
    return jax.jvp(lambda *v: pull_back(call, function, v, fixed, cotangents)[1], variables, tangents)[1]


def second_order_reverse(call: Call, function: Callable, variables, fixed, cotangents, tangents) -> list:
    """The same by reverse over reverse: a matrix of second derivatives is symmetric."""
    tangents = [t.astype(v.dtype) for t, v in zip(tangents, variables, strict=True)]
    _, pull = jax.vjp(lambda *v: pull_back(call, function, v, fixed, cotangents)[1], *variables)
    return list(pull(tangents))


# Reading the call


def read_call(
    functions: tuple[Any, Any], args: tuple, kwargs: dict, argnums: Any, names: Any, plain_numbers: bool = False
) -> tuple[Call, tuple, tuple]:
    """Take the arguments apart: what is differentiated, what is held fixed, what is static.

    With `plain_numbers` a Python float stays what it is, unless argnums asks for it.
    """
    manual, automatic = functions
    asked = _asked(args, argnums)
    static, static_names = _nondiff(manual)
    wanted = set(range(len(args))) - static if asked is None else asked
    if names is not None and len(names) != len(args):
        raise ValueError(f"compare: names={tuple(names)} has {len(names)} entries for {len(args)} arguments")
    labels = _argument_names((manual, automatic), args) if names is None else list(names)
    paths, treedef = jax.tree.flatten_with_path((args, kwargs))
    leaves: list[Any] = [leaf for _, leaf in paths]
    variables, fixed, titles, arguments, numbers, differentiated = {}, {}, [], [], [], set()
    for place, (path, leaf) in enumerate(paths):
        number, name = (path[1].idx, None) if path[0].idx == 0 else (None, path[1].key)
        if isinstance(leaf, Tracer):
            raise TypeError("compare: an argument is a tracer; call compare outside of jit, grad and vmap")
        chosen = asked is None if number is None else number in wanted
        if number in static or name in static_names:
            continue
        plain = isinstance(leaf, float | complex) and not isinstance(leaf, np.generic)
        if plain and chosen and (not plain_numbers or asked is not None):
            numbers.append(len(variables))
            leaf = jnp.asarray(leaf)
        floating = isinstance(leaf, jax.Array | np.ndarray | np.generic) and is_inexact(leaf)
        if not (floating or isinstance(leaf, jax.Array)):
            continue
        leaves[place] = None
        if floating and chosen:
            variables[place] = jnp.asarray(leaf)
            arguments.append(name if number is None else labels[number])
            titles.append(arguments[-1] + jax.tree_util.keystr(path[2:]))
            differentiated.add(number)
        else:
            fixed[place] = jnp.asarray(leaf)
    for at in sorted((asked or set()) - differentiated):
        kind = f"{type(args[at]).__name__} {getattr(args[at], 'dtype', '')}".strip()
        raise TypeError(f"compare: argnums asks for argument {at} ({labels[at]}), a {kind} without a floating array")
    if not variables:
        raise TypeError("compare: no argument holds a floating array, so there is no gradient to compare")
    call = Call(treedef, tuple(leaves), tuple(variables), tuple(fixed), tuple(titles), tuple(arguments), tuple(numbers))
    return call, tuple(variables.values()), tuple(fixed.values())


def _asked(args: tuple, argnums: Any) -> set[int] | None:
    """argnums as a set of positions."""
    if argnums is None:
        return None
    try:
        asked = list(map(operator.index, argnums if isinstance(argnums, Iterable) else [argnums]))
    except TypeError:
        raise TypeError(f"compare: argnums={argnums!r} must be an integer or a sequence of integers") from None
    if bad := [at for at in asked if not -len(args) <= at < len(args)]:
        raise ValueError(f"compare: argnums={argnums} asks for {bad}, but there are {len(args)} arguments")
    return {at % len(args) for at in asked}


def _argument_names(functions: Sequence[Callable[..., Any]], args: tuple[Any, ...]) -> list[str]:
    """The positional arguments' names, from the first signature that has them."""
    names = [f"args[{at}]" for at in range(len(args))]
    for function in reversed(functions):
        plain = _parameters(function)
        names[: len(plain)] = plain[: len(names)]
    return names


def _parameters(function: Callable[..., Any]) -> list[str]:
    """The names of the parameters that can be given by position; none where the signature is not known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def require_known(function: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    """Refuse keywords that neither compare nor the function takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if unknown := [name for name in kwargs if name not in known]:
        takes = ", ".join(known) or "none by keyword"
        raise TypeError(f"compare: {unknown[0]}= is no argument of compare, and {title(function)} takes {takes}")


def _nondiff(manual: Any) -> tuple[set[int], set[str]]:
    """The positions and names of the arguments that the rule takes as they are, whichever way they are given."""
    function, bound = manual, 0
    if isinstance(manual, functools.partial):
        function, bound = manual.func, len(manual.args)
    names, places = _parameters(function), getattr(function, "nondiff_argnums", ())
    return {at - bound for at in places}, {names[at] for at in places if at < len(names)}


def titles(manual: Any, automatic: Any, surrogate: bool) -> tuple[str, str]:
    """Both functions' names, told apart."""
    one, other = title(manual), "" if automatic is None else title(automatic)
    if automatic is None:
        other = f"{one} without its rule"
    elif one == other:
        one, other = (f"{getattr(f, '__module__', '')}.{one}".lstrip(".") for f in (manual, automatic))
    return one, f"{other}, the surrogate" if surrogate else other


def title(function: Any) -> str:
    """The function's name, for people."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", None) or type(function).__name__


# What was raised


def words(error: BaseException) -> str:
    """An exception in one line, with the user's own line that raised it."""
    text = in_one_line(error)
    place = own_place(error)
    return type(error).__name__ + (f": {text}" if text else "") + (f" (in {place})" if place else "")


def own_place(error: BaseException) -> str:
    """function, file and line of the last frame of a traceback that is neither a library's nor compare's."""
    paths = sysconfig.get_paths()
    others = (paths["stdlib"], paths["purelib"], paths["platlib"], str(Path(__file__).parents[1]), "<")
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    return f"{own[-1].name}, {own[-1].filename}:{own[-1].lineno}" if own else ""
