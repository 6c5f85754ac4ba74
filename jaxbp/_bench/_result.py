"""What was measured of one case, and the numbers that are drawn from it."""

import math
from typing import Any, NamedTuple

from ._measure import Times, best_ratio, geometric_mean, ratio
from ._programs import WHOLE

# A hand-written rule must not buy its speed with memory, compile time or digits.
MEMORY_FACTOR, MEMORY_BYTES = 1.25, 32 * 2**20
COMPILE_FACTOR, COMPILE_SECONDS = 2.0, 0.5
ERROR_FACTOR, ERROR_EPS = 4.0, 4.0
# Manual's times in turns with PyTorch, whose ratio is to these.
BESIDE_TORCH = "manual_beside_torch"


class Pair(NamedTuple):
    """One quantity of both rules; None where it could not be had."""

    manual: float | None = None
    automatic: float | None = None


class Result(NamedTuple):
    """One case. `times` has for each part the times of "manual", "automatic" and "torch", as far as they ran.

    PyTorch takes turns with manual alone, whose times are then those of `BESIDE_TORCH`.
    """

    name: str
    family: str
    times: dict[str, dict[str, Times]]
    pools: bool = False
    temporary_bytes: Pair = Pair()
    residual_bytes: Pair = Pair()
    compile_seconds: Pair = Pair()
    errors: Pair = Pair()
    limit_seconds: float | None = None
    notes: tuple[str, ...] = ()

    def speedup(self, other: str = "automatic", part: str = WHOLE) -> float | None:
        """The other's time over manual's: the median of the rounds' ratios."""
        return self._compare(ratio, other, part)

    def best_speedup(self, other: str = "automatic", part: str = WHOLE) -> float | None:
        """The other's time over manual's, of the fastest samples."""
        return self._compare(best_ratio, other, part)

    @property
    def fraction(self) -> float | None:
        """How close manual comes to what the machine can do."""
        times = self.times[WHOLE].get("manual")
        return self.limit_seconds / times.best if self.limit_seconds and times else None

    def _compare(self, compare: Any, other: str, part: str) -> float | None:
        times, manual = self.times[part], BESIDE_TORCH if other == "torch" else "manual"
        return compare(times[other], times[manual]) if {other, manual} <= times.keys() else None


def mean_speedup(results: list[Result], other: str) -> float | None:
    """The geometric mean of the speedups that are known."""
    known = [speedup for result in results if (speedup := result.speedup(other)) is not None]
    return geometric_mean(known) if known else None


def too_much_memory(result: Result) -> bool:
    """Whether manual's temporary memory exceeds what automatic's allows for."""
    return exceeds_memory(result.temporary_bytes)


def too_long_to_compile(result: Result) -> bool:
    """Whether manual's compile time exceeds what automatic's allows for."""
    return _exceeds(result.compile_seconds, COMPILE_FACTOR, COMPILE_SECONDS)


def too_inexact(result: Result) -> bool:
    """Whether manual's error exceeds what automatic's allows for."""
    return exceeds_errors(result.errors)


def exceeds_memory(temporary_bytes: Pair) -> bool:
    """Whether manual is beyond the limit on memory."""
    return _exceeds(temporary_bytes, MEMORY_FACTOR, MEMORY_BYTES)


def exceeds_errors(errors: Pair) -> bool:
    """Whether manual is beyond the limit on errors."""
    return _exceeds(errors, ERROR_FACTOR, ERROR_EPS)


def _exceeds(pair: Pair, factor: float, excess: float) -> bool:
    """Whether manual is beyond both a multiple of automatic and a constant more."""
    if pair.manual is None or pair.automatic is None:
        return False
    return pair.manual > max(factor * pair.automatic, pair.automatic + excess)


def _finite(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinities: they become text."""
    return value if value is None or math.isfinite(value) else str(value)


def to_dict(result: Result) -> dict[str, Any]:
    """A result as JSON has it."""
    return {
        "name": result.name,
        "family": result.family,
        "parts": {
            part: {
                **{program: {"best_seconds": t.best, "median_seconds": t.median} for program, t in times.items()},
                **{
                    f"{other}_over_manual": {
                        "median": median,
                        "best": result.best_speedup(other, part),
                        "rounds": len(times[other].rounds),
                    }
                    for other in ("automatic", "torch")
                    if (median := result.speedup(other, part)) is not None
                },
            }
            for part, times in result.times.items()
        },
        "temporary_bytes": result.temporary_bytes._asdict(),
        "residual_bytes": result.residual_bytes._asdict(),
        "compile_seconds": result.compile_seconds._asdict(),
        "errors_in_eps": {name: _finite(error) for name, error in result.errors._asdict().items()},
        "limit_seconds": result.limit_seconds,
        "fraction_of_limit": result.fraction,
        "notes": list(result.notes),
    }
