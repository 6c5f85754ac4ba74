"""`bench --algorithms`: every algorithm that applies to a sum, timed in turns, and what the chosen one loses.

The best algorithm is found on every other round, and both it and the chosen one are timed on the others: so noise does
not choose. Sums that only one algorithm applies to do not count.
"""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .. import _plan
from .._geometry import PoolProblem, Problem
from ._measure import Times, geometric_mean, interleave, sample
from ._plan import PARTS, function_of, operands, problems
from ._programs import bound
from ._suite import Case

# Slower algorithms than so many times the fastest first call are timed by that call alone.
FAR = 4.0
WORST = 10


class Choice(NamedTuple):
    """One sum of a layer: the algorithms that were chosen and that are best, and milliseconds of each."""

    layer: str
    sum: str
    chosen: str
    best: str
    ms: dict[str, float]
    ratio: float

    def __str__(self) -> str:
        """A line."""
        best = "" if self.best == self.chosen else f"   best: {self.best} {self.ms[self.best]:.3f} ms"
        return f"{self.ratio:5.2f}  {self.sum:15}  {self.chosen} {self.ms[self.chosen]:.3f} ms{best}   {self.layer}"


def measure_choices(case: Case, dtype: str, seconds: float) -> list[Choice]:
    """The sums, or maps, of a case for which there is a choice."""
    found = (measure_choice(case.name, p, seconds) for p in problems(case, dtype, platform()).values())
    return [choice for choice in found if choice is not None]


def platform() -> str:
    """The platform as lowering names it; JAX's backends call those of both makers "gpu"."""
    backend = jax.default_backend()
    if backend != "gpu":
        return backend
    return "rocm" if "rocm" in jax.devices()[0].client.platform_version.lower() else "cuda"


def measure_choice(layer: str, p: Problem | PoolProblem, seconds: float) -> Choice | None:
    """One sum, if several algorithms apply to it."""
    plan, plans = _plan.plan(p), {str(plan): plan for plan in _plan.candidates(p)}
    chosen = str(plan)
    plans.setdefault(chosen, plan)
    if len(plans) < 2:
        return None
    arrays = operands(p)
    programs = {name: bound(function_of(plan, p.dtype), *arrays) for name, plan in plans.items()}
    first = {name: _seconds_of(program) for name, program in programs.items()}
    near = {name: program for name, program in programs.items() if first[name] < FAR * min(first.values())}
    near[chosen] = programs[chosen]
    times = interleave(near, seconds)
    best = min(times, key=lambda name: _median(times[name], 0))
    ms = {name: 1e3 * (times[name].best if name in times else first[name]) for name in programs}
    return Choice(layer, PARTS[p.out], chosen, best, ms, _median(times[chosen], 1) / _median(times[best], 1))


def _seconds_of(program: Callable[[], Any]) -> float:
    """Seconds of the faster of two calls after the first."""
    jax.block_until_ready(program())
    return min(sample(program, 1), sample(program, 1))


def _median(times: Times, first: int) -> float:
    """The median of every other round."""
    return statistics.median(times.rounds[first::2])


def summary(choices: list[Choice]) -> str:
    """Chosen over best, and the sums that lose most."""
    if not choices:
        return "nothing was measured"
    mean = chosen_over_best(choices)
    worst = sorted(choices, key=lambda choice: -choice.ratio)[:WORST]
    return "\n".join(
        [f"chosen over best: {mean:.3f} (geometric mean of {len(choices)} sums); the worst:", *map(str, worst)]
    )


def chosen_over_best(choices: list[Choice]) -> float:
    """The geometric mean."""
    return geometric_mean([choice.ratio for choice in choices])


def to_record(choices: list[Choice]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What --json writes: the mean, and the cases."""
    cases = [{name: value for name, value in choice._asdict().items() if name != "ratio"} for choice in choices]
    return {"chosen_over_best": chosen_over_best(choices)}, cases
