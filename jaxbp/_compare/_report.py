"""What a comparison found, as a table for the terminal, for a notebook, as JSON and as a picture."""

from __future__ import annotations

import html
import math
import textwrap
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._adapter import not_installed
from ._cost import Cost

WIDTH = 100


class Row(NamedTuple):
    """One line of a report: the forward value, one argument's gradient, one transformation, probe or case.

    `manual_error` and `automatic_error` are in eps of the dtype times the largest entry of the float64
    reference; `limit` is what `manual_error` may be. A transformation's row has no `automatic_error` where the verdict
    does not depend on it. `finite_difference` is the distance between the
    reference's and the measured slope relative to the slope's natural size, None where it was not measured.
    `verdict` is "ok", "WRONG", "not checked" (nothing could judge it), "not supported" (a transformation that JAX or
    the function refuses) or "differs" (two runs of the rule).
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    dtype: str | None
    verdict: str
    manual_error: float | None = None
    automatic_error: float | None = None
    limit: float | None = None
    finite_difference: float | None = None
    kink: bool = False
    index: tuple[int, ...] | None = None
    manual_value: complex | float | None = None
    automatic_value: complex | float | None = None
    reference_value: complex | float | None = None
    hint: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """False for a wrong row and one that nothing could check; what is not supported is no failure."""
        return self.verdict not in ("WRONG", "not checked")


@dataclass(frozen=True)
class Comparison:
    """The result of `jaxbp.compare`: print it, ask `.ok`, or call `.check()`.

    `rows` holds one `Row` per line, `cost` the memory and times, `gradients` the arrays behind the rows:
    name -> (manual, automatic, reference), where a missing one is None.

    Example:
        >>> import jax, jax.numpy as jnp, jaxbp
        >>> @jax.custom_vjp
        ... def square(x):
        ...     return x * x
        >>> square.defvjp(lambda x: (x * x, x), lambda x, delta: (2 * x * delta,))
        >>> report = jaxbp.compare(square, jnp.arange(4.0), transforms=["vmap"], time=False)
        >>> report.ok, [row.name for row in report.rows]
        (True, ['forward', 'x', 'vmap'])
    """

    manual: str
    automatic: str
    rows: tuple[Row, ...]
    cost: Cost = field(default_factory=Cost)
    notes: tuple[str, ...] = ()
    gradients: dict[str, tuple[Any, ...]] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> bool:
        """True when no row is wrong, and none is "not checked". Time and memory never count."""
        return all(row.ok for row in self.rows)

    def check(self) -> Comparison:
        """Raise an AssertionError whose text is the table, unless every row is right; return the report."""
        if not self.ok:
            raise AssertionError("\n" + str(self))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, as dicts, lists, strings and finite numbers (JSON-safe)."""
        rows = [{**row._asdict(), "ok": row.ok} for row in self.rows]
        timings = {name: {**t._asdict(), "verdict": t.verdict} for name, t in self.cost.timings.items()}
        cost = {**self.cost._asdict(), "timings": timings}
        return _json_safe(
            {
                "manual": self.manual,
                "automatic": self.automatic,
                "ok": self.ok,
                "rows": rows,
                "cost": cost,
                "notes": self.notes,
            }
        )

    def __str__(self) -> str:
        lines = [f"{self.manual} (manual) against {self.automatic} (automatic)"]
        lines += [
            "",
            _line("", "", "manual", "automatic", "finite", ""),
            _line("", "", "error/eps", "error/eps", "difference", "verdict"),
        ]
        for row in self.rows:
            lines.append(_line(*_cells(row)))
            for remark in _remarks(row):
                lines += textwrap.wrap(remark, WIDTH, initial_indent="    ", subsequent_indent="      ")
        cost = _cost_rows(self.cost)
        if cost:
            lines += ["", _line("", "", "manual", "automatic", "ratio", "")]
            lines += [_line(name, "", *values) for name, *values in cost]
        for note in (*self.notes, *([f"cost not measured: {self.cost.note}"] if self.cost.note else [])):
            lines += textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="      ")
        return "\n".join([*lines, "", _summary(self)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same table for a notebook."""
        head = ("row", "shape", "manual error/eps", "automatic error/eps", "finite difference", "verdict")
        body = []
        for row in self.rows:
            style = "" if row.ok else ' style="background:#fdd;color:#000"'
            body.append(f"<tr{style}>{_tags(_cells(row))}</tr>")
            if remarks := _remarks(row):
                text = "<br>".join(html.escape(remark) for remark in remarks)
                body.append(f'<tr{style}><td></td><td colspan="5" style="text-align:left">{text}</td></tr>')
        rows = "".join(body)
        cost = "".join(f"<tr>{_tags((name, '', *values))}</tr>" for name, *values in _cost_rows(self.cost))
        if cost:
            cost = f"<tr>{_tags(('', '', 'manual', 'automatic', 'ratio', ''), 'th')}</tr>{cost}"
        title = html.escape(f"{self.manual} (manual) against {self.automatic} (automatic)")
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return (
            f"<p><b>{title}</b></p><table><tr>{_tags(head, 'th')}</tr>{rows}{cost}</table>{notes}"
            f"<p>{html.escape(_summary(self))}</p>"
        )

    def plot(self, argument: str | int = 0, axes: tuple[int, int] | None = None) -> Any:
        """Draw one argument's gradient by both rules and their difference in eps, with matplotlib.

        Args:
            argument: a gradient row's name, or its number.
            axes: the two axes to draw, by default the two longest. The other axes are cut where the
                difference is largest.

        Returns:
            The matplotlib figure: manual | automatic | (manual - automatic) in eps of the largest entry.

        Raises:
            ValueError: if there is no such argument, or one of the two rules gave no gradient for it.
        """
        try:
            import matplotlib.pyplot as plt
        except ModuleNotFoundError as error:
            raise not_installed("plot", "matplotlib", "plot", error) from None

        names = list(self.gradients)
        name = names[argument] if isinstance(argument, int) and argument < len(names) else argument
        if name not in self.gradients:
            raise ValueError(f"plot: argument={argument!r}, but the gradients are {names}")
        manual, automatic, _ = self.gradients[name]
        if manual is None or automatic is None or manual.shape != automatic.shape:
            raise ValueError(f"plot: {name} has no manual and automatic gradient of one shape to draw")
        eps = _eps(automatic.dtype)
        manual, automatic = (np.real(array).astype(np.float64) for array in (manual, automatic))
        size = np.abs(automatic[np.isfinite(automatic)]).max(initial=0.0) or 1.0
        difference = (manual - automatic) / (eps * size)
        panels, labels = _cut((manual, automatic, difference), axes)
        figure, parts = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
        bound = max(np.abs(panel[np.isfinite(panel)]).max(initial=0.0) for panel in panels[:2]) or 1.0
        spread = np.abs(panels[2][np.isfinite(panels[2])]).max(initial=0.0) or 1.0
        titles = (f"{self.manual}", f"{self.automatic}", "difference / eps")
        for part, panel, title, limit in zip(parts, panels, titles, (bound, bound, spread), strict=True):
            image = part.imshow(panel, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            part.set_title(title)
            part.set_xlabel(labels[1])
            part.set_ylabel(labels[0])
            figure.colorbar(image, ax=part, shrink=0.8)
        figure.suptitle(f"gradient of {name}{labels[2]}")
        return figure


def _eps(dtype: Any) -> float:
    """The spacing of a dtype's numbers at 1."""
    return float(jnp.finfo(dtype).eps)


def _cut(arrays: tuple, axes: tuple[int, int] | None) -> tuple[list[np.ndarray], tuple[str, str, str]]:
    """Two axes of each array, the others cut at the largest difference; labels for both and for the cut."""
    rank = arrays[2].ndim
    if rank < 2:
        return [array.reshape(1, -1) for array in arrays], ("", "axis 0", "")
    drawn = sorted(axes or sorted(range(rank), key=lambda axis: -arrays[2].shape[axis])[:2])
    worst = np.unravel_index(np.nan_to_num(np.abs(arrays[2])).argmax(), arrays[2].shape)
    where = tuple(slice(None) if axis in drawn else int(worst[axis]) for axis in range(rank))
    place = ", ".join(":" if axis in drawn else str(where[axis]) for axis in range(rank))
    return [array[where] for array in arrays], (f"axis {drawn[0]}", f"axis {drawn[1]}", f" at [{place}]")


def _line(name: str, shape: str, manual: str, automatic: str, third: str, verdict: str) -> str:
    """One line of the table, at most 100 columns."""
    name = name if len(name) <= 18 else name[:17] + "…"
    shape = shape if len(shape) <= 22 else shape[:21] + "…"
    return f"{name:<18} {shape:<22} {manual:>10} {automatic:>10} {third:>12}  {verdict}".rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    """The six cells of a row."""
    shape = "" if row.shape is None else f"{row.dtype}[{','.join(map(str, row.shape))}]"
    difference = "kink" if row.kink else "" if row.finite_difference is None else _number(row.finite_difference)
    verdict = row.verdict
    return row.name, shape, _number(row.manual_error), _number(row.automatic_error), difference, verdict


def _remarks(row: Row) -> list[str]:
    """What stands below a row: the hint, the worst entry, notes."""
    remarks = [f"-> {row.hint}"] if row.hint else []
    if not row.ok and row.index is not None and not row.hint.endswith("as above"):
        values = [
            ("manual", row.manual_value),
            ("automatic", row.automatic_value),
            ("reference", row.reference_value),
        ]
        text = ", ".join(f"{name} {value:.7g}" for name, value in values if value is not None)
        remarks.append(f"worst at {list(row.index)}: {text}")
    return remarks + list(row.notes)


def _number(value: float | None) -> str:
    """A short number."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return str(value).replace(".0", "")
    return f"{value:.2g}" if 0.01 <= value < 1e4 else f"{value:.0e}"


def _cost_rows(cost: Cost) -> list[tuple[str, ...]]:
    """name, manual, automatic, ratio, verdict of each measured cost."""
    rows = []
    for name, pair, unit in (
        ("kept for backward", cost.residual_bytes, _bytes),
        ("temporary", cost.temporary_bytes, _bytes),
        ("compile", cost.compile_seconds, _seconds),
    ):
        if pair:
            ratio = f"{pair[0] / pair[1]:.2f}" if pair[1] else ""
            rows.append((name, unit(pair[0]), unit(pair[1]), ratio, ""))
    for name, timing in cost.timings.items():
        interval = f"{timing.verdict}, {timing.low:.2f} to {timing.high:.2f}"
        rows.append((name, _seconds(timing.manual), _seconds(timing.automatic), f"{timing.ratio:.2f}", interval))
    return rows


def _bytes(number: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def _seconds(number: float) -> str:
    """Seconds with a unit."""
    return (
        f"{number:.2f} s" if number >= 1 else f"{number * 1e3:.2f} ms" if number >= 1e-3 else f"{number * 1e6:.1f} us"
    )


def _summary(report: Comparison) -> str:
    """The last line."""
    # With several cases each has a row of its own that counts.
    cases = [row for row in report.rows if row.kind == "case"]
    rows, kind = cases or report.rows, "cases" if cases else "rows"
    wrong = [row.name for row in rows if row.verdict == "WRONG"]
    unknown = [row.name for row in rows if row.verdict == "not checked"]
    parts = [f"{word}: {', '.join(names)}" for word, names in (("WRONG", wrong), ("not checked", unknown)) if names]
    if not parts:
        return f"ok: all {len(rows)} {kind}"
    return f"{'; '.join(parts)} ({len(wrong) + len(unknown)} of {len(rows)} {kind})"


def _tags(cells: tuple[str, ...], tag: str = "td") -> str:
    """Cells as HTML."""
    return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)


def _json_safe(value: Any) -> Any:
    """The value with tuples as lists, and NaN, infinities and complex numbers as text."""
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value
