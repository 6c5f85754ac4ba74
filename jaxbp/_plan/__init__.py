"""Which algorithm evaluates a sum, or a map of a pool: `plan` decides once, and `evaluate` runs a sum's plan.

What was measured on this machine decides where it is in use (`_measured`), otherwise a table: a list of rows, of which
the first that fits counts. `_cpu` and `_gpu` hold the tables of the sums, `_pools` those of pools. `_algorithms` says
where an algorithm is correct, and how it runs. On other platforms every sum is direct.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._algorithms import (
    _batch_group_count,
    _direct,
    _fold_axis,
    _gemm,
    _im2col,
    _kn2row,
    _per_group,
    _shift_add,
    _space_to_batch,
    _subpixel,
    _swap_operands,
    _valid_taps,
    _width_tiling,
    _winograd,
)
from .._algorithms import _pools as pool_algorithms
from .._algorithms._memory import after as after
from .._arguments import sum_dtype, wider
from .._geometry import ConvGeometry, PoolProblem, Problem, problem
from . import _cpu, _gpu, _measured, _pools
from ._row import INSIDE as INSIDE
from ._row import ONE_BY_ONE as ONE_BY_ONE
from ._row import Row, always

ALGORITHMS = {
    module.__name__.rsplit("._", 1)[-1]: module
    for module in (
        *(_direct, _gemm, _im2col, _kn2row, _valid_taps, _width_tiling, _space_to_batch, _subpixel),
        *(_winograd, _shift_add, _per_group, _fold_axis, _swap_operands, _batch_group_count),
    )
}
KNOWN = {ONE_BY_ONE, *ALGORITHMS, *(name for known in pool_algorithms.ALGORITHMS.values() for name in known)}
TABLES = {"cpu": _cpu.TABLES, "cuda": _gpu.TABLES}
LOOPS = {"cpu": _cpu.LOOP}
# Algorithms of a kernel's gradient that gather several times as many elements as x has, in total.
GATHERING = {"im2col", "width_tiling", "fold_axis", "valid_taps", "winograd"}


class Plan(NamedTuple):
    """An algorithm for a problem, why it was chosen, how it runs, and the plan of the sum that it leaves to another."""

    problem: Any
    algorithm: str
    why: str
    run: Callable[..., Any]
    inner: "Plan | None" = None
    by: str = "table"

    def __str__(self) -> str:
        """The names, from the outermost to the innermost."""
        return self.algorithm if self.inner is None else f"{self.algorithm}{INSIDE}{self.inner}"


def problem_of(
    out: str, g: ConvGeometry, a: Sequence[int], b: Sequence[int], dtype: Any, platform: str, members: int = 1
) -> Problem:
    """The sum of operands of these shapes."""
    features = b[-2] * g.feature_group_count if out == "x" else b[-1]
    return problem(out, g, a[0], a[-1], features, np.dtype(dtype), platform, members)


def as_now(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the measured plans and the default precision of now, in whichever thread it is called."""
    plans, precision = _measured.in_use(), jax.config.jax_default_matmul_precision  # pyright: ignore

    def inner(*args: Any) -> Any:
        with _measured.using(plans), jax.default_matmul_precision(precision):
            return function(*args)

    return inner


def plan(p: Problem | PoolProblem) -> Plan:
    """How a problem is evaluated: as it was measured, where it was, otherwise by the table."""
    plans = _measured.in_use()
    found = None if plans is None or _without_choice(p) else plans.find(p, KNOWN)
    if found is not None and applies(p, found.plan):
        why = f"measured: {found.plan_ms:.3g} ms; {found.table}, by the table: {found.table_ms:.3g} ms"
        return with_algorithm(p, found.plan, why, by="measured")
    return by_table(p)


@lru_cache(maxsize=4096)
def by_table(p: Problem | PoolProblem) -> Plan:
    """The plan of the first row that fits; the definition where the table is not for the sum."""
    row = _row(p)
    loop = LOOPS.get(p.platform) if isinstance(p, Problem) and p.members > 1 else None
    if loop is not None and (row.algorithm == "direct" or loop.when(p)):
        inner = by_table(alone(p))
        return Plan(p, ONE_BY_ONE, loop.why, inner.run, inner)
    return with_algorithm(p, row.algorithm, row.why)


def _row(p: Problem | PoolProblem) -> Row:
    """The first row that fits."""
    if isinstance(p, PoolProblem):
        table = _pools.TABLES[p.out]
    elif reason := _without_choice(p):
        return Row(always, "direct", reason)
    else:
        table = TABLES[p.platform][p.out]
    known = algorithms(p)
    return next(row for row in table if known[row.algorithm.partition(INSIDE)[0]].applies(p) and row.when(p))


def algorithms(p: Problem | PoolProblem) -> Mapping[str, Any]:
    """The algorithms for a problem, by name: each with `applies(p)` and `run(*arrays, p)`."""
    return pool_algorithms.ALGORITHMS[p.out] if isinstance(p, PoolProblem) else ALGORITHMS


def _without_choice(p: Problem | PoolProblem) -> str:
    """Why nothing can be measured, and why only the definition of a sum will do; or nothing."""
    if p.platform not in TABLES:
        return "no algorithm was measured on this platform"
    if p.symbolic:
        return "sizes are symbolic"
    if isinstance(p, PoolProblem):
        return ""
    if not jnp.issubdtype(p.dtype, jnp.floating):
        return "the numbers are no floating-point ones"
    if p.platform == "cuda" and p.geometry.preferred_element_type is not None:
        return "cuDNN accumulates in the dtype that is asked for"
    return ""


def candidates(p: Problem | PoolProblem) -> Iterator[Plan]:
    """A plan for every algorithm that applies, and what it may leave its inner sum to."""
    if _without_choice(p):
        return
    for name, module in algorithms(p).items():
        if module.applies(p):
            names = [name + INSIDE + other for other in module.inside(p)] if hasattr(module, "inside") else [name]
            names += [ONE_BY_ONE + INSIDE + each for each in names] if p.members > 1 else []
            yield from (with_algorithm(p, each, "it applies") for each in names)


def candidates_inside(chosen: Plan) -> Iterator[Plan]:
    """The plan with every other algorithm that applies to the innermost sum that is left to one."""
    name, inner = chosen.algorithm, chosen.inner
    if inner is None or hasattr(ALGORITHMS.get(name), "inside"):
        return
    deeper = name == ONE_BY_ONE or inner.inner is not None
    for other in candidates_inside(inner) if deeper else candidates(inner.problem):
        yield with_algorithm(chosen.problem, name + INSIDE + str(other), "it applies")


def applies(p: Problem | PoolProblem, plan: str) -> bool:
    """Whether the algorithms that a plan names apply, each to the sum that the one before leaves to it."""
    name, _, inside = plan.partition(INSIDE)
    if name == ONE_BY_ONE:
        return isinstance(p, Problem) and p.members > 1 and applies(alone(p), inside)
    module = algorithms(p).get(name)
    if module is None or not module.applies(p) or hasattr(module, "inner") != bool(inside):
        return False
    return not inside or applies(module.inner(_as_run(name, p)), inside)


def alone(p: Any) -> Problem:
    """The sum of one member."""
    return p.inside(out=p.out, geometry=p.geometry, members=1)


def _as_run(name: str, p: Any) -> Any:
    """The problem as an algorithm runs it: only a sum's definition accumulates in a dtype that is asked for."""
    if name == "direct" or isinstance(p, PoolProblem):
        return p
    return p.inside(out=p.out, geometry=p.geometry._replace(preferred_element_type=None))


def with_algorithm(p: Problem | PoolProblem, algorithm: str, why: str, by: str = "table") -> Plan:
    """The plan of an algorithm: a name, perhaps with those inside it; otherwise the inner sum has a plan of its own."""
    name, _, inside = algorithm.partition(INSIDE)
    if name == ONE_BY_ONE and isinstance(p, Problem):
        inner = with_algorithm(alone(p), inside, why, by)
        return Plan(p, name, why, inner.run, inner, by)
    module, p = algorithms(p)[name], _as_run(name, p)
    inner = None
    if hasattr(module, "inner"):
        left = module.inner(p)
        inner = with_algorithm(left, inside, why, by) if inside else by_table(left)
    run = partial(module.run, p=p) if inner is None else partial(module.run, p=p, of=inner.run)
    # In profiles and compiled programs an algorithm stands under its name.
    return Plan(p, name, why, jax.named_scope(name)(run), inner, by)


def evaluate(chosen: Plan, a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    """One member's sum by its plan, in this dtype.

    Except on CUDA, every algorithm but the definition, and the definition of a kernel's gradient, accumulates in a wide
    one.
    """
    if chosen.algorithm == ONE_BY_ONE and chosen.inner is not None:
        chosen = chosen.inner
    p = chosen.problem
    wide = wider(a.dtype, b.dtype)
    if p.platform != "cuda" and (chosen.algorithm != "direct" or p.out == "kernel"):
        wide = wider(sum_dtype(wide), dtype) if jnp.issubdtype(dtype, jnp.inexact) else sum_dtype(wide)
    a, b = a.astype(wide), b.astype(wide)
    if p.platform == "cpu" and p.out == "kernel" and not GATHERING.isdisjoint(str(chosen).split(INSIDE)):
        # Otherwise it would be gathered in the forward pass, for all layers, and kept.
        a = after(a, b)
    return chosen.run(a, b).astype(dtype)
