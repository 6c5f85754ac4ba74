"""What two programs cost: bytes kept for the backward pass, temporary bytes, compile time, time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

# Two compiled copies of one program can differ by this much through the placement of their buffers.
_RESOLUTION = 0.02


class Timing(NamedTuple):
    """Seconds of two programs, and the ratio first / second with its interval."""

    manual: float
    automatic: float
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """ "same", "faster" or "slower"."""
        return "same" if self.low <= 1 <= self.high else "faster" if self.high < 1 else "slower"


class Cost(NamedTuple):
    """Everything measured; None where it was not asked for or cannot be measured."""

    residual_bytes: tuple[int, int] | None = None
    temporary_bytes: tuple[int, int] | None = None
    compile_seconds: tuple[float, float] | None = None
    timings: dict[str, Timing] = {}  # noqa: RUF012  (never written to)
    note: str = ""


def measure(
    functions: Sequence[Callable],
    variables: tuple,
    fixed: tuple,
    cotangents: list,
    *,
    timed: bool,
    memory: bool,
    seconds: float = 0.5,
) -> Cost:
    """The cost of two functions `(variables, fixed) -> outputs`, the manual one first."""
    residual = temporary = compiled = None
    timings = {}
    try:
        if memory:
            residual = _both([_residual_bytes(function, variables, fixed) for function in functions])
        parts = ("forward", "backward", "both") if timed else ("both",)
        programs = [_programs(function, variables, fixed, cotangents, parts) for function in functions]
        if memory:
            temporary = _both([program["both"][1] for program in programs])
        compiled = _both([program["both"][2] for program in programs])
        if timed:
            for name in parts:
                timings[name] = compare_times(programs[0][name][0], programs[1][name][0], seconds)
    except Exception as error:  # a cost that cannot be measured is not a wrong gradient
        return Cost(residual, temporary, compiled, timings, f"{type(error).__name__}: {in_one_line(error)}")
    return Cost(residual, temporary, compiled, timings)


def in_one_line(error: BaseException) -> str:
    """An exception's text in one line, shortened: what was expected often stands at its end."""
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else text[:397] + "..."


def compare_times(first: Callable[[], Any], second: Callable[[], Any], seconds: float = 0.5) -> Timing:
    """Time two functions without arguments in ABBA order: median of the pair ratios and its 99 % interval."""
    for function in (first, second, first, second):
        jax.block_until_ready(function())
    once = max(min(_sample(first, 1) for _ in range(3)), min(_sample(second, 1) for _ in range(3)), 1e-7)
    calls = max(1, math.ceil(2e-3 / once))
    ratios, manual, automatic = [], [], []
    start = time.perf_counter()
    while len(ratios) < 15 or (time.perf_counter() - start < seconds and len(ratios) < 101):
        # A drift of the machine's speed that is linear in time cancels within A B B A.
        a, b, c, d = (_sample(function, calls) for function in (first, second, second, first))
        ratios.append((a + d) / (b + c))
        manual += [a / calls, d / calls]
        automatic += [b / calls, c / calls]
    low, high = _median_interval(ratios)
    return Timing(
        statistics.median(manual),
        statistics.median(automatic),
        statistics.median(ratios),
        low * (1 - _RESOLUTION),
        high * (1 + _RESOLUTION),
    )


def _sample(function: Callable[[], Any], calls: int) -> float:
    """Seconds that some calls in a row take."""
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(function())
    return time.perf_counter() - start


def _median_interval(values: Sequence[float], confidence: float = 0.99) -> tuple[float, float]:
    """The interval of two order statistics that holds the median, whatever the distribution."""
    number, ordered = len(values), sorted(values)
    tail, rank = 0.5**number, 0
    while tail + math.comb(number, rank + 1) * 0.5**number <= (1 - confidence) / 2:
        rank += 1
        tail += math.comb(number, rank) * 0.5**number
    return ordered[rank], ordered[number - 1 - rank]


def _both(values: list) -> Any:
    """The two values as a pair, or None if one is missing."""
    return None if any(value is None for value in values) else tuple(values)


def _residual_bytes(function: Callable, variables: tuple, fixed: tuple) -> int:
    """Bytes of the arrays that the pulled-back function holds and that are not arguments."""
    _, pull = jax.vjp(lambda *v: function(v, fixed), *variables)
    own = {id(leaf) for leaf in jax.tree.leaves((variables, fixed))}
    kept = {id(leaf): leaf for leaf in jax.tree.leaves(pull) if isinstance(leaf, jax.Array)}
    return sum(leaf.nbytes for key, leaf in kept.items() if key not in own)


def _programs(
    function: Callable, variables: tuple, fixed: tuple, cotangents: list, parts: Sequence[str]
) -> dict[str, tuple]:
    """Compiled forward, backward and both: (callable, temporary bytes, compile seconds) each."""

    def pull(variables, fixed):
        return jax.vjp(lambda *v: function(v, fixed), *variables)

    def both(variables, fixed, cotangents):
        outputs, pulled = pull(variables, fixed)
        return outputs, pulled(cotangents)

    programs = {"both": _compile(both, variables, fixed, cotangents)}
    if "forward" in parts:
        programs["forward"] = _compile(function, variables, fixed)
    if "backward" in parts:
        _, pulled = jax.jit(pull)(variables, fixed)
        programs["backward"] = _compile(lambda pulled, delta: pulled(delta), pulled, cotangents)
    return programs


def _compile(program: Callable, *operands: Any) -> tuple[Callable[[], Any], int | None, float]:
    """A compiled program bound to its operands, its temporary bytes and the seconds its compilation took."""
    start = time.perf_counter()
    compiled = jax.jit(program).lower(*operands).compile()
    seconds = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    temporary = None if analysis is None else int(analysis.temp_size_in_bytes)
    return lambda: compiled(*operands), temporary, seconds
