"""Results as text: a line for each case as soon as it is measured, the means at the end."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ._measure import Times
from ._programs import WHOLE
from ._result import (
    Pair,
    Result,
    mean_speedup,
    too_inexact,
    too_long_to_compile,
    too_much_memory,
)

SLOWER = 0.95


class Column(NamedTuple):
    """A heading of two lines, and what stands below it."""

    top: str
    bottom: str
    width: int
    text: Callable[[Result], str]


class Table:
    """Lines of one table: columns are left out where nobody asked for what they show."""

    def __init__(self, names: Iterable[str], *, torch: bool, layers: bool, errors: bool):
        self.name_width = max(map(len, (*names, "  kernel gradient")))
        self.torch = torch
        self.columns = _time_columns(WHOLE, torch)
        if layers:
            self.columns += [
                Column("% of", "limit", 6, lambda r: _number(r.fraction, 100)),
                Column("MiB kept", "man/auto", 11, lambda r: _pair(r.residual_bytes, 2**-20)),
            ]
        self.columns += [
            Column("MiB temporary", "man/auto", 13, lambda r: _pair(r.temporary_bytes, 2**-20)),
            Column("s to compile", "man/auto", 12, lambda r: _pair(r.compile_seconds)),
        ]
        if errors:
            self.columns.append(Column("error in eps", "man/auto", 13, lambda r: _pair(r.errors)))

    def heading(self) -> str:
        """Two lines."""
        tops = "".join(f"  {column.top:>{column.width}}" for column in self.columns)
        bottoms = "".join(f"  {column.bottom:>{column.width}}" for column in self.columns)
        return f"{'':{self.name_width}}{tops}\n{'':{self.name_width}}{bottoms}"

    def lines(self, result: Result) -> str:
        """The whole, and below it each part and each note."""
        lines = [self._line(result.name, self.columns, result)]
        for part in result.times:
            if part != WHOLE:
                lines.append(self._line(f"  {part}", _time_columns(part, self.torch), result))
        return "\n".join([*lines, *(f"  {note}" for note in result.notes)])

    def _line(self, name: str, columns: Sequence[Column], result: Result) -> str:
        cells = "".join(f"  {column.text(result):>{column.width}}" for column in columns)
        return f"{name:{self.name_width}}{cells}".rstrip()


def means(results: list[Result], torch: bool) -> str:
    """Geometric means for every family, for convolutions, for pools and for all; and who breaks a rule."""
    groups = {family: [r for r in results if r.family == family] for family in dict.fromkeys(r.family for r in results)}
    both_kinds = {r.pools for r in results} == {True, False}
    if both_kinds:
        groups["convolutions"] = [r for r in results if not r.pools]
        groups["pools"] = [r for r in results if r.pools]
    if len(groups) > 1:
        groups["all"] = results
    width = max(map(len, groups))
    heading = f"{'geometric means':{width}}  cases  automatic/manual  slowest"
    lines = [heading + ("  PyTorch/manual  slowest" if torch else "")]
    for name, members in groups.items():
        line = f"{name:{width}}  {len(members):5}  {_number(mean_speedup(members, 'automatic')):>16}"
        line += f"  {_number(_slowest(members, 'automatic')):>7}"
        if torch:
            line += f"  {_number(mean_speedup(members, 'torch')):>14}  {_number(_slowest(members, 'torch')):>7}"
        lines.append(line)
    for rule, offenders in (
        (f"slower than automatic (below {SLOWER})", [r for r in results if (r.speedup() or 1) < SLOWER]),
        ("temporary memory above 1.25 x automatic's and 32 MiB more", [r for r in results if too_much_memory(r)]),
        ("compile time above 2 x automatic's and 0.5 s more", [r for r in results if too_long_to_compile(r)]),
        ("error above 4 x automatic's and 4 eps more", [r for r in results if too_inexact(r)]),
    ):
        if offenders:
            lines += [f"{rule}:", *(f"  {r.name}" for r in offenders)]
    return "\n".join(lines)


def _time_columns(part: str, torch: bool) -> list[Column]:
    """Times of one part, in milliseconds, and their ratios."""

    def best(program: str) -> Callable[[Result], str]:
        return lambda r: _milliseconds(r.times[part].get(program))

    columns = [
        Column("manual", "ms", 8, best("manual")),
        Column("automatic", "ms", 9, best("automatic")),
        Column("auto/man", "median", 8, lambda r: _number(r.speedup("automatic", part))),
        Column("", "best", 6, lambda r: _number(r.best_speedup("automatic", part))),
    ]
    if torch:
        columns += [
            Column("PyTorch", "ms", 8, best("torch")),
            Column("PyT/man", "median", 7, lambda r: _number(r.speedup("torch", part))),
        ]
    return columns


def _slowest(results: list[Result], other: str) -> float | None:
    """The smallest speedup."""
    return min((speedup for r in results if (speedup := r.speedup(other)) is not None), default=None)


def _milliseconds(times: Times | None) -> str:
    """The fastest sample."""
    return "-" if times is None else _number(times.best, 1e3)


def _number(value: float | None, factor: float = 1.0) -> str:
    """Three digits, and never an exponent."""
    if value is None:
        return "-"
    value *= factor
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _pair(pair: Pair, factor: float = 1.0) -> str:
    """manual/automatic."""
    return f"{_number(pair.manual, factor)}/{_number(pair.automatic, factor)}"
