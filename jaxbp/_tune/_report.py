"""What a tuning found, and its table."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .._geometry import PoolProblem, Problem
from .._plan._measured import TITLES, Measured

FLOAT32 = np.dtype("float32")


class Row(NamedTuple):
    """One sum: how often it runs, the table's choice and the fastest plan, milliseconds of both, and their ratio."""

    sum: str
    times: int
    table: str
    winner: str
    table_ms: float
    winner_ms: float

    @property
    def gain(self) -> float:
        """How many times as fast the winner is."""
        return self.table_ms / self.winner_ms


class Report(NamedTuple):
    """The rows of all sums that have several algorithms, where the plans are, and what was not measured."""

    rows: tuple[Row, ...]
    file: str
    measured: int
    left: int = 0

    @property
    def gain(self) -> float:
        """An estimate: how many times as fast all sums of the function are as by the tables."""
        return self._table_ms / self._winner_ms if self.rows else 1.0

    @property
    def _table_ms(self) -> float:
        return sum(row.times * row.table_ms for row in self.rows)

    @property
    def _winner_ms(self) -> float:
        return sum(row.times * row.winner_ms for row in self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return "\n".join(["no convolution or pool was measured", *self._left()])
        heading = ("sum", "times", "by the table", "ms", "fastest", "ms", "gain")
        ordered = sorted(self.rows, key=lambda row: row.times * (row.winner_ms - row.table_ms))
        lines = _aligned([heading, *map(_cells, ordered)])
        better = sum(row.winner != row.table for row in self.rows)
        return "\n".join(
            [
                *lines,
                "",
                f"{better} of {len(self.rows)} sums are faster than by the table; {self.measured} were measured now",
                *self._left(),
                f"estimate for the whole function: {self._table_ms:.4g} ms of convolutions and pools by the tables, "
                f"{self._winner_ms:.4g} ms as measured: {self.gain:.2f} times as fast",
                f"plans: {self.file}",
            ]
        )

    def _left(self) -> list[str]:
        return [f"{self.left} sums were not measured, as time was up; the tables choose for them"] if self.left else []


def row_of(p: Problem | PoolProblem, times: int, found: Measured) -> Row:
    """The row of a sum."""
    return Row(name_of(p), times, found.table, found.plan, found.table_ms, found.plan_ms)


def name_of(p: Problem | PoolProblem) -> str:
    """A problem in a few words: "kernel gradient 3x3/2 8x28x28x64->128"."""
    w = p.window if isinstance(p, PoolProblem) else p.geometry.window
    words = [TITLES[p.out], _x(w.window_shape) + (f"/{_x(_alike(w.strides))}" if max(w.strides, default=1) > 1 else "")]
    for name, steps in (("dilated", w.dilation), ("input dilated", w.input_dilation)):
        words += [f"{name} {_x(_alike(steps))}"] if max(steps, default=1) > 1 else []
    if isinstance(p, PoolProblem):
        words.append(_x((p.batch, *w.input_shape, p.channels)))
    else:
        groups = p.geometry.feature_group_count
        channels, features = (p.features, p.channels) if p.out == "x" else (p.channels, p.features)
        words += [f"{groups} groups"] if groups > 1 else []
        words.append(f"{_x((p.batch, *w.input_shape, channels))}->{features}")
    words += [p.dtype.name] if p.dtype != FLOAT32 else []
    words += [f"of {p.members} members"] if p.members > 1 else []
    return " ".join(words)


def _alike(steps: tuple[int, ...]) -> tuple[int, ...]:
    """One number where all are the same."""
    return steps[:1] if len(set(steps)) == 1 else steps


def _x(sizes: tuple[int, ...]) -> str:
    """(3, 3) as 3x3."""
    return "x".join(map(str, sizes)) or "1"


def _cells(row: Row) -> tuple[str, ...]:
    """A row's texts."""
    winner, ms = ("", "") if row.winner == row.table else (row.winner, f"{row.winner_ms:.3g}")
    return row.sum, str(row.times), row.table, f"{row.table_ms:.3g}", winner, ms, f"{row.gain:.2f}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = "<><><>>"
    cells = ([f"{text:{side}{width}}" for text, side, width in zip(row, sides, widths, strict=True)] for row in rows)
    return ["  ".join(each).rstrip() for each in cells]
