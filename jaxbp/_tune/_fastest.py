"""The fastest plan of a sum or of a pool's map: all that apply, timed in turns, within limits on memory and errors."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _plan
from .._batching import mapped_over
from .._bench._measure import SHORTEST_SAMPLE, Times, best_ratio, interleave, ratio, sample
from .._bench._plan import function_of, operands
from .._bench._result import Pair, exceeds_errors, exceeds_memory
from .._geometry import PoolProblem, Problem, problem
from .._plan import Plan
from .._plan._measured import Measured

# The table's choice stays unless another is so much faster.
MARGIN = 1.05
# Plans that take so many times as long as the fastest are not timed again.
NEAR = 2.0
# About how long the near ones of a sum take turns.
SECONDS = 0.5
# Features of the first group whose sums are computed in float64.
FEATURES = 2


class OutOfTime(Exception):
    """The time that was given for everything has passed."""


class Program(NamedTuple):
    """A plan that is compiled for a sum's operands, its temporary memory, and seconds of one call."""

    plan: Plan
    call: Callable[[], Any]
    temporary_bytes: int | None
    first: float


def fastest(p: Problem | PoolProblem, expired: Callable[[], bool]) -> Measured | None:
    """What is measured of a problem; None where there is no choice. `OutOfTime` where time ends before it is known."""
    table = _plan.by_table(p)
    plans = {str(plan): plan for plan in (table, *_plan.candidates(p))}
    if len(plans) < 2:
        return None
    programs: dict[str, Program] = {}
    with jax.enable_x64(True) if p.dtype.itemsize == 8 else nullcontext():
        arrays = operands(p)
        _compile_all(programs, p, plans.values(), arrays, expired)
        more = [plan for one in _near(programs, str(table)) for plan in _plan.candidates_inside(one.plan)]
        _compile_all(programs, p, more, arrays, expired)
        near = {str(program.plan): program.call for program in _near(programs, str(table))}
        times = interleave(near, SECONDS) if len(near) > 1 else {}
        winner = _winner(p, str(table), times, programs, arrays)
        ms = {name: 1e3 * (times[name].best if times else programs[name].first) for name in (winner, str(table))}
    return Measured(winner, str(table), ms[winner], ms[str(table)])


def _compile_all(
    programs: dict[str, Program],
    p: Problem | PoolProblem,
    plans: Iterable[Plan],
    arrays: list[jax.Array],
    expired: Callable[[], bool],
) -> None:
    """Add the plans that run, of which the first, the table's, must."""
    for plan in plans:
        if expired():
            raise OutOfTime
        if str(plan) in programs:
            continue
        try:
            programs[str(plan)] = _compile(plan, p, arrays, min((one.first for one in programs.values()), default=0.0))
        except Exception:  # whatever a compiler cannot do, or has no memory for
            if not programs:
                raise


def _compile(plan: Plan, p: Problem | PoolProblem, arrays: list[jax.Array], best: float) -> Program:
    """A plan as a program, and seconds of its second call, or of the first where that is long and far from the best."""
    run = function_of(plan, None if isinstance(p, PoolProblem) else _result_dtype(p))
    levels = ((True, True),) if p.members > 1 else ()
    mapped = mapped_over(run, levels, one_by_one=plan.algorithm == _plan.ONE_BY_ONE)
    compiled = jax.jit(mapped).lower(*arrays).compile()
    analysis = compiled.memory_analysis()

    def call() -> jax.Array:
        return jax.block_until_ready(compiled(*arrays))

    first = sample(call, 1)
    if not best or first < max(2 * NEAR * best, SHORTEST_SAMPLE):
        first = sample(call, 1)
    return Program(plan, call, None if analysis is None else int(analysis.temp_size_in_bytes), first)


def _near(programs: dict[str, Program], table: str) -> list[Program]:
    """The programs that may be the fastest, and the table's choice."""
    best = min(program.first for program in programs.values())
    return [one for name, one in programs.items() if one.first <= NEAR * best or name == table]


def _winner(
    p: Problem | PoolProblem, table: str, times: dict[str, Times], programs: dict[str, Program], arrays: list[jax.Array]
) -> str:
    """The fastest that beats the table's choice by the margin and keeps the limits; otherwise the table's choice."""
    for name in sorted(times, key=lambda name: times[name].best):
        if name == table:
            break
        if _gain(times[table], times[name]) < MARGIN:
            continue
        program = programs[name]
        if isinstance(p, PoolProblem):
            kept = _map_keeps_limits(p, program, programs[table], arrays)
        else:
            kept = _sum_keeps_limits(p, program, programs.get("direct"), *arrays)
        if kept:
            return name
    return table


def _gain(table: Times, other: Times) -> float:
    """How many times as fast, in the fastest samples and in the rounds: a lucky sample does not win."""
    return min(best_ratio(table, other), ratio(table, other))


def _map_keeps_limits(p: PoolProblem, program: Program, table: Program, arrays: list[jax.Array]) -> bool:
    """Whether a map takes little more memory than by the table, chooses the same winners, and is as exact.

    The reference is the table's plan in float64; for arrays of 64 bits in their own dtype.
    """
    if exceeds_memory(Pair(program.temporary_bytes, table.temporary_bytes)):
        return False
    results, right = (jax.tree.leaves(one.call()) for one in (program, table))
    if p.out == "max_pool" or not jnp.issubdtype(p.dtype, jnp.floating):
        return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(results, right, strict=True))
    if p.dtype.itemsize < 8:
        with jax.enable_x64(True):
            first, *winners = arrays
            wide = _plan.with_algorithm(p._replace(dtype=np.dtype("float64")), str(table.plan), "in float64")
            right_wide = np.asarray(jax.jit(wide.run)(first.astype(jnp.float64), *winners))
    else:
        right_wide = np.asarray(right[0])
    found, expected = (_units(one[0], right_wide, p.dtype) for one in (results, right))
    return not exceeds_errors(Pair(found, expected))


def _sum_keeps_limits(p: Problem, program: Program, definition: Program | None, a: jax.Array, b: jax.Array) -> bool:
    """Whether a plan takes little more memory than the definition, and is as exact."""
    direct = None if definition is None else definition.temporary_bytes
    if exceeds_memory(Pair(program.temporary_bytes, direct)):
        return False
    result, plan = program.call(), program.plan
    if p.members > 1:
        result, a, b = result[0], a[0], b[0]
        plan = plan.inner if plan.algorithm == _plan.ONE_BY_ONE and plan.inner is not None else plan
    if p.dtype.itemsize == 8:
        # No dtype is wider. An algorithm rounds as often in float32.
        p = p.inside(out=p.out, geometry=p.geometry, dtype=np.dtype("float32"), members=1)
        a, b = a.astype(p.dtype), b.astype(p.dtype)
        plan = _plan.with_algorithm(p, str(plan), "in float32")
        result = jax.jit(partial(_plan.evaluate, plan, dtype=p.dtype))(a, b)
    with jax.enable_x64(True):
        right = _first_features(p, a, b, jnp.float64)
    found, expected = (_error(p, part, right) for part in (result, _first_features(p, a, b, p.dtype)))
    return not exceeds_errors(Pair(found, expected))


def _first_features(p: Problem, a: jax.Array, b: jax.Array, dtype: Any) -> np.ndarray:
    """The first features of the first group by definition, in this dtype."""
    count = _features(p)
    a = a[..., : p.group_channels]
    b = b[..., :count, : p.group_channels] if p.out == "x" else b[..., :count]
    g = p.geometry._replace(feature_group_count=1, preferred_element_type=None)
    alone = problem(p.out, g, p.batch, p.group_channels, count, np.dtype(dtype), p.platform)
    plan = _plan.with_algorithm(alone, "direct", "the definition")
    return np.asarray(jax.jit(partial(_plan.evaluate, plan, dtype=dtype))(a.astype(dtype), b.astype(dtype)))


def _features(p: Problem) -> int:
    """How many of the first group's features are checked."""
    return min(FEATURES, p.group_features)


def _error(p: Problem, result: Any, right: np.ndarray) -> float:
    """The largest error, in units of eps times the largest entry of what is right."""
    return _units(result[..., : _features(p)], right, p.dtype)


def _units(result: Any, right: np.ndarray, dtype: Any) -> float:
    """The largest error of an array, in units of eps times the largest entry of what is right."""
    eps = float(jnp.finfo(dtype).eps)
    found = np.asarray(result).astype(np.float64)
    return float(np.abs(found - right).max() / (eps * max(np.abs(right).max(), 1e-300)))


def _result_dtype(p: Problem) -> Any:
    """The dtype of the sum."""
    wide = p.geometry.preferred_element_type if p.out == "z" else None
    return p.dtype if wide is None else np.dtype(wide)
