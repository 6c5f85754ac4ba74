"""A picture of the ratios: one bar for each case. matplotlib is imported only here."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ._result import Result, mean_speedup

BAR_INCHES = 0.21
SLOWER, AUTOMATIC, PYTORCH = "#c44e52", "#4c72b0", "#222222"


def plot(results: Sequence[Result], file: Path, machine: str) -> None:
    """Draw how many times faster than the automatic rule each case is, family by family, on a logarithmic scale.

    Where PyTorch was measured, a diamond marks its ratio.
    """
    families = dict.fromkeys(result.family for result in results)
    rows: list[Result | None] = []
    for family in families:
        rows += [*(result for result in results if result.family == family), None]
    rows.pop()
    figure = Figure(figsize=(9, 1.6 + BAR_INCHES * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    highest = 1.0
    diamonds = []
    for y, result in enumerate(rows):
        speedup = None if result is None else result.speedup()
        if speedup is not None:
            axes.barh(y, speedup - 1, left=1, height=0.75, color=AUTOMATIC if speedup >= 1 else SLOWER)
            axes.text(max(speedup, 1) * 1.03, y, f"{speedup:.3g}", va="center", fontsize=7)
            highest = max(highest, speedup)
        theirs = None if result is None else result.speedup("torch")
        if theirs is not None:
            diamonds.append((theirs, y))
    axes.axvline(1, color="black", linewidth=0.8)
    if diamonds:
        x, y = zip(*diamonds, strict=True)
        axes.plot(x, y, "D", color=PYTORCH, markeredgecolor="white", markersize=5, label="PyTorch's time / jaxbp's")
        highest = max(highest, *x)
        figure.legend(loc="outside lower right", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(right=highest * 1.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(axis="x", which="major", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(rows)), ["" if result is None else result.name for result in rows], fontsize=7)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("automatic rule's time / jaxbp's, forward and all gradients (right of 1: jaxbp is faster)")
    means = [("automatic", mean_speedup(list(results), "automatic")), ("PyTorch", mean_speedup(list(results), "torch"))]
    title = ", ".join(f"{mean:.2f} x {name}'s speed" for name, mean in means if mean is not None)
    axes.set_title(f"geometric mean: {title}\n{machine}" if title else machine, fontsize=8)
    figure.savefig(file, dpi=150)
