"""Tuning: the sums and pools of a program, each timed by every algorithm that applies, and the winners in a file."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from .._bench._algorithms import platform
from .._geometry import PoolProblem, Problem
from .._interrupt import undisturbed
from .._plan import TABLES, _measured, applies
from .._plan._machine import machine
from .._plan._measured import File, describe, key
from ._collect import Problems, sums_of
from ._fastest import OutOfTime, fastest
from ._file import merge, plans_of, require_plans
from ._report import Report, Row, name_of, row_of


def tune(function: Callable[..., Any], *args: Any, file: File, seconds: float | None = None) -> Report:
    """`jaxbp.tune`."""
    if not callable(function):
        raise TypeError(f"tune: function must be a function, but got {type(function).__name__} {function!r}")
    check(file, seconds)
    return measure(sums_of(function, args, platform()), file, seconds, [])


def check(file: File, seconds: float | None) -> None:
    """Refuse what would fail only after something was measured."""
    if seconds is not None and not (seconds >= 0 and math.isfinite(seconds)):
        raise ValueError(f"tune: seconds={seconds} must be a number of seconds, 0 or more, or None for all the time")
    if platform() not in TABLES:
        known = " and ".join(TABLES)
        raise ValueError(f"tune: JAX runs on {platform()}, where every sum is direct; there are algorithms for {known}")
    require_plans(file)


def measure(problems: Problems, file: File, seconds: float | None, rows: list[Row]) -> Report:
    """Measure the sums that the file does not have, those with most operations first, and take its plans.

    Each is written as soon as it is known, and its row appended to `rows`, so that an interruption loses none.
    """
    end = math.inf if seconds is None else time.monotonic() + seconds
    here = machine(platform())
    assert here is not None
    known = plans_of(file, here)
    ordered = sorted(problems, key=lambda p: -problems[p] * _operations(p))
    measured = left = 0
    try:
        for number, p in enumerate(ordered, start=1):
            name = key(describe(p))
            found = known.get(name)
            if found is None or not applies(p, found.plan):
                _say(f"[{number}/{len(ordered)}] {name_of(p)}")
                try:
                    found = fastest(p, lambda: time.monotonic() >= end)
                except OutOfTime:
                    left += 1
                    continue
                if found is None:
                    continue
                measured += 1
                with undisturbed:
                    merge(file, here, {name: found})
            rows.append(row_of(p, problems[p], found))
    finally:
        _say("")
        if rows:
            _measured.use(_measured.load(file))
    return Report(tuple(rows), str(file), measured, left)


def _operations(p: Problem | PoolProblem) -> int:
    """Products of a sum, or pixels that the windows of a map read."""
    if isinstance(p, PoolProblem):
        return p.batch * math.prod(p.window.output_shape) * p.window.taps * p.channels
    return p.members * p.positions * p.columns * p.group_features * p.groups


def _say(text: str) -> None:
    """On a terminal, the line that says what is being measured; nothing takes it away again."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
