"""The sums and the maps of pools of a program, and how often each of them runs.

They are found in its jaxpr; of a program for several devices each device's part is, in what XLA asks for.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from .._conv import conv_p
from .._conv_lax import conv_in_layout_p
from .._forward_mode import linear_map_p
from .._geometry import PoolProblem, Problem
from .._plan import _measured
from .._pool_maps import MAPS
from .._pool_maps import problem_of as map_problem_of
from .._sums import conv_sum_p, problem_of

# Ops that are one equation around their sums.
OPS = (conv_p, conv_in_layout_p)
Problems = Counter[Problem | PoolProblem]


def sums_of(function: Callable[..., Any], args: tuple, platform: str) -> Problems:
    """The distinct sums and maps that `function(*args)` computes on a platform, and how often."""
    leaves, tree = jax.tree.flatten(args)
    at = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]

    def of_arrays(*arrays: Any) -> Any:
        given = dict(zip(at, arrays, strict=True))
        results = function(*tree.unflatten(given.get(i, leaf) for i, leaf in enumerate(leaves)))
        return [result for result in jax.tree.leaves(results) if hasattr(result, "dtype")]

    if len({device for leaf in leaves for device in _devices(leaf)}) > 1:
        return _of_parts(of_arrays, [leaves[i] for i in at])
    found: Problems = Counter()
    for problem, times in _walk(jax.make_jaxpr(of_arrays)(*(leaves[i] for i in at)).jaxpr, platform):
        found[problem] += times
    return found


class Asked:
    """In place of measured plans: counts what a plan is asked for, and has none."""

    def __init__(self) -> None:
        self.problems: Problems = Counter()

    def find(self, p: Problem | PoolProblem, known: Any) -> None:
        """Nothing is known."""
        self.problems[p] += 1


def _of_parts(function: Callable[..., Any], arrays: Sequence[Any]) -> Problems:
    """What each device computes of a program for several: XLA says which parts while it compiles. Loops count once."""
    asked = Asked()
    with _measured.using(asked):
        jax.jit(function).lower(*arrays).compile()
    return asked.problems


def _devices(leaf: Any) -> Any:
    """The devices on which an array lies."""
    return getattr(getattr(leaf, "sharding", None), "device_set", ())


def _walk(jaxpr: Any, platform: str, times: int = 1) -> Iterator[tuple[Problem | PoolProblem, int]]:
    """The sums and maps of a jaxpr and of all jaxprs inside it."""
    for equation in jaxpr.eqns:
        primitive, avals = equation.primitive, [variable.aval for variable in equation.invars]
        if primitive is conv_sum_p or primitive in MAPS:
            if all(0 not in aval.shape for aval in (*avals, equation.outvars[0].aval)):
                yield _problem_of(primitive, avals, equation.params, platform), times
            continue
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inside in _inside(equation):
            yield from _walk(inside, platform, times * repeats)


def _problem_of(primitive: Any, avals: Sequence[Any], params: dict[str, Any], platform: str) -> Problem | PoolProblem:
    """What an equation computes."""
    if primitive is conv_sum_p:
        return problem_of(avals[0], avals[1], params["of"], platform)
    return map_problem_of(primitive.name, avals[0], params["window"], platform)


def _inside(equation: Any) -> Iterator[Any]:
    """The jaxprs that an equation evaluates."""
    if equation.primitive in OPS or equation.primitive is linear_map_p:
        shapes = [jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in equation.invars]
        yield jax.make_jaxpr(partial(equation.primitive.impl, **equation.params))(*shapes).jaxpr
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(value):
            yield value.jaxpr if isinstance(value, ClosedJaxpr) else value


def _is_jaxpr(value: Any) -> bool:
    """Whether a parameter is a program."""
    return isinstance(value, ClosedJaxpr | Jaxpr)
