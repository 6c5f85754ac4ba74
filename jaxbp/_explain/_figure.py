"""A case as a figure for slides and as a film of the rule at work. The only file that needs matplotlib."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxbp._geometry import Window, full_padding

from ._case import Case, Pixel, Use, uses, window_of, window_over_padded_delta
from ._text import name, number, pixels_averaged, weights_in_reading_order

GAP = 1.0
STEPS_PER_SECOND = 1
MOST_STEPS = 16
INCHES_PER_ELEMENT = 0.52
LIT_EDGE, EDGE, PAPER, FAINT = "black", "#9aa0a8", "#f4f5f7", "#6b7078"


class Panel(NamedTuple):
    """A matrix to draw: lit pixels have a place in the colour map (0 to 1), hidden ones show no number."""

    title: str
    values: np.ndarray
    lit: Mapping[Pixel, float] = MappingProxyType({})
    labels: Mapping[Pixel, str] = MappingProxyType({})
    marked: frozenset[Pixel] = frozenset()
    hidden: frozenset[Pixel] = frozenset()
    faint: frozenset[Pixel] = frozenset()


Rows = list[list[Panel]]


def figure(case: Case, pixel: Pixel) -> Figure:
    """One pixel's gradient: who used it, through what, and the sum that comes back."""
    rows = {"conv": _conv_rows, "max_pool": _pool_rows, "avg_pool": _pool_rows, "dense": _dense_rows}[case.op](
        case, pixel
    )
    drawn, axes = _canvas(rows)
    _draw(axes, rows, _headline(case, pixel))
    return drawn


def film(case: Case, path: Path) -> None:
    """A GIF in which the rule computes the gradient of every input pixel in turn; of many pixels, some at a time."""
    pixels = [(r, c) for r in range(case.given["x"].shape[0]) for c in range(case.given["x"].shape[1])]
    step = -(-len(pixels) // MOST_STEPS)
    last = len(pixels) - 1
    frames = [*range(0, last, step), last, last]
    drawn, axes = _canvas(_film_rows(case, pixels, 0))

    def show(at: int) -> list[Axes]:
        axes.clear()
        _draw(axes, _film_rows(case, pixels, at), _headline(case, pixels[at]))
        return [axes]

    animation = FuncAnimation(drawn, show, frames=frames, init_func=lambda: [axes])
    animation.save(str(path), writer=PillowWriter(fps=STEPS_PER_SECOND), dpi=80)


def _film_rows(case: Case, pixels: list[Pixel], at: int) -> Rows:
    """The picture of one pixel, with the gradients that have not been computed yet left blank."""
    pixel, later = pixels[at], frozenset(pixels[at + 1 :])
    if case.op == "conv":
        return [_conv_rows(case, pixel, later)[1]]
    return (_dense_rows if case.op == "dense" else _pool_rows)(case, pixel, later)


def _conv_rows(case: Case, pixel: Pixel, later: frozenset[Pixel] = frozenset()) -> Rows:
    """Above: forward, the outputs that used the pixel. Below: one window of rot180(W) over padded delta."""
    window = window_of(case)
    weights = [(r, c) for r in range(window.window_shape[0]) for c in range(window.window_shape[1])]
    hue = {weight: index / max(1, len(weights) - 1) for index, weight in enumerate(weights)}
    weight_names = {weight: name("w", weight) for weight in weights}
    used = uses(window, pixel)
    turned = dict(zip(weights, reversed(weights), strict=True))
    covered = dict(zip(window_over_padded_delta(window, pixel), reversed(weights), strict=True))
    forward = [
        Panel("input x", case.given["x"], marked=frozenset({pixel})),
        Panel("kernel W", case.given["kernel"], hue, weight_names),
        Panel(
            f"outputs that used {name('x', pixel)}", case.manual["output"],
            {use.output: hue[use.place] for use in used}, {use.output: weight_names[use.place] for use in used},
        ),
    ]  # fmt: skip
    backward = [
        Panel(
            "padded δ", case.manual["padded_delta"],
            {at: hue[weight] for at, weight in covered.items()},
            {at: weight_names[weight] for at, weight in covered.items()},
            faint=_zeros_of_padding(window, case.manual["padded_delta"].shape),
        ),
        Panel(
            "rot180(W)", case.manual["rotated_kernel"],
            {at: hue[weight] for at, weight in turned.items()},
            {at: weight_names[weight] for at, weight in turned.items()},
        ),
        Panel("gradient dJ/dx", case.manual["input_grad"], marked=frozenset({pixel}), hidden=later),
    ]  # fmt: skip
    return [forward, backward]


def _pool_rows(case: Case, pixel: Pixel, later: frozenset[Pixel] = frozenset()) -> Rows:
    """Above: forward. Below: what delta sends back, each winner in the colour of its window."""
    window, x = window_of(case), case.given["x"]
    received: dict[Pixel, float] = {}
    won: dict[Pixel, str] = {}
    if case.op == "max_pool":
        outputs = [(r, c) for r, c in np.ndindex(*window.output_shape)]
        sent = {at: index / max(1, len(outputs) - 1) for index, at in enumerate(outputs)}
        labels = {at: name("z", at) for at in outputs}
        windows: dict[Pixel, list[str]] = {}
        for r, c in np.ndindex(*x.shape):
            for use in uses(window, (r, c)):
                if _won(case, use):
                    received[r, c] = sent[use.output]
                    windows.setdefault((r, c), []).append(labels[use.output])
        won = {at: _windows_won(names) for at, names in windows.items()}
        titles = "input x, winners lit", "output z"
    else:
        counts, sent = pixels_averaged(case), {use.output: 0.7 for use in uses(window, pixel)}
        labels = {at: f"÷{number(counts[at])}" for at in sent}
        titles = "input x", f"outputs that averaged {name('x', pixel)}"
    here = frozenset({pixel})
    arrived = {at: hue for at, hue in received.items() if at not in later}
    return [
        [Panel(titles[0], x, received, won, here), Panel(titles[1], case.manual["output"], sent, labels)],
        [
            Panel("gradient dJ/dx", case.manual["input_grad"], arrived, won, here, later),
            Panel("δ = dJ/dz", case.given["delta"], sent, labels),
        ],
    ]


def _dense_rows(case: Case, pixel: Pixel, later: frozenset[Pixel] = frozenset()) -> Rows:
    """Above: forward. Below: one row of delta times one column of the transposed kernel."""
    (row, column), (_, outputs) = pixel, case.given["kernel"].shape
    place = {output: output / max(1, outputs - 1) for output in range(outputs)}
    return [
        [
            Panel("input x", case.given["x"], marked=frozenset({pixel})),
            Panel("kernel W", case.given["kernel"]),
            Panel("output z", case.manual["output"]),
        ],
        [
            Panel(
                "δ = dJ/dz", case.given["delta"], {(row, o): place[o] for o in place},
                {(row, o): name("w", (column, o)) for o in place},
            ),
            Panel(
                "W transposed", case.given["kernel"].T, {(o, column): place[o] for o in place},
                {(o, column): name("δ", (row, o)) for o in place},
            ),
            Panel("gradient dJ/dx", case.manual["input_grad"], marked=frozenset({pixel}), hidden=later),
        ],
    ]  # fmt: skip


def _zeros_of_padding(window: Window, shape: tuple[int, ...]) -> frozenset[Pixel]:
    """The pixels of padded delta that hold no output's delta: the border, and those that the stride skips."""
    lows = [low for low, _ in full_padding(window)]
    held = {
        (lows[0] + r * window.strides[0], lows[1] + c * window.strides[1]) for r, c in np.ndindex(*window.output_shape)
    }
    return frozenset((r, c) for r, c in np.ndindex(*shape) if (r, c) not in held)


def _won(case: Case, use: Use) -> bool:
    """Whether a pixel at this place of this window was the maximum."""
    place = use.place[0] * window_of(case).window_shape[1] + use.place[1]
    return bool(case.manual["winners"][use.output] == place)


def _windows_won(names: list[str]) -> str:
    """The windows that a pixel won, three in a line; only their number where a pixel has no room for them."""
    if len(names) > 9:
        return f"{len(names)} windows"
    return "\n".join(" ".join(names[at : at + 3]) for at in range(0, len(names), 3))


def _headline(case: Case, pixel: Pixel) -> str:
    """What the picture says, in one line, and for a convolution why."""
    result = number(case.manual["input_grad"][pixel]).replace("-", "\N{MINUS SIGN}")
    left = f"dJ/d{name('x', pixel)} = {result}"
    if case.op == "conv":
        order = weights_in_reading_order(uses(window_of(case), pixel))
        return f"{left}:  one window of rot180(W) over padded δ\nweights met, in reading order:  {order}"
    if case.op == "dense":
        return f"{left}:  a row of δ times a column of W transposed"
    return f"{left}:  " + ("δ goes to the winner" if case.op == "max_pool" else "δ is shared out evenly")


def _canvas(rows: Rows) -> tuple[Figure, Axes]:
    """An empty figure in which these rows fit, one unit per element."""
    width, height = _extent(rows)
    drawn = Figure(figsize=(width * INCHES_PER_ELEMENT, height * INCHES_PER_ELEMENT), dpi=150, facecolor="white")
    FigureCanvasAgg(drawn)
    return drawn, drawn.add_axes((0.0, 0.0, 1.0, 1.0))


def _extent(rows: Rows) -> tuple[float, float]:
    """Width and height of the rows in elements, with titles and margins; wide enough for the headline."""
    widths = [sum(_width(panel) for panel in row) + GAP * (len(row) - 1) for row in rows]
    heights = [max(panel.values.shape[0] for panel in row) + 1.3 for row in rows]
    return max(*widths, 12.0) + 1.0, sum(heights) + 1.2


def _width(panel: Panel) -> float:
    """A panel's width in elements: its matrix's or its title's, whichever is wider."""
    return max(panel.values.shape[1], 0.19 * len(panel.title) + 0.3)


def _draw(axes: Axes, rows: Rows, headline: str) -> None:
    """Draw the rows, top to bottom, in units of elements."""
    width, height = _extent(rows)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    first, *others = headline.split("\n")
    axes.text(0.5, 0.6, first, fontsize=13, fontweight="bold", va="center")
    for line in others:
        axes.text(0.5, 1.15, line, fontsize=10, va="center")
    top = 2.3
    for row in rows:
        left = 0.5
        for panel in row:
            _draw_panel(axes, panel, left, top)
            left += _width(panel) + GAP
        top += max(panel.values.shape[0] for panel in row) + 1.3


def _draw_panel(axes: Axes, panel: Panel, left: float, top: float) -> None:
    """One matrix with its title."""
    colours = matplotlib.colormaps["viridis"]
    axes.text(left, top - 0.28, panel.title, fontsize=11, va="center")
    for pixel, value in np.ndenumerate(panel.values):
        at = (pixel[0], pixel[1])
        x, y = left + at[1], top + at[0]
        fill = colours(panel.lit[at]) if at in panel.lit else to_rgba(PAPER)
        ink = "black" if _luminance(fill) > 0.18 else "white"
        if at in panel.faint and at not in panel.lit:
            fill, ink = to_rgba("white"), FAINT
        edge, wide = (LIT_EDGE, 1.6) if at in panel.lit else (EDGE, 0.8)
        # Zeros that padding or the stride put there are dotted, as on the page.
        line = "dotted" if at in panel.faint else "solid"
        axes.add_patch(Rectangle((x + 0.04, y + 0.04), 0.92, 0.92, fc=fill, ec=edge, linewidth=wide, linestyle=line))
        if at in panel.marked:
            axes.add_patch(Rectangle((x + 0.02, y + 0.02), 0.96, 0.96, fill=False, edgecolor="#0b57a4", linewidth=3))
        if at in panel.hidden:
            continue
        label = panel.labels.get(at)
        lines = label.split("\n") if label else []
        text = number(round(float(value), 3)).replace("-", "\N{MINUS SIGN}")
        weight = "bold" if at in panel.lit or at in panel.marked else "normal"
        axes.text(
            x + 0.5, y + (0.52, 0.38, 0.33, 0.22)[len(lines)], text, ha="center", va="center", color=ink,
            fontweight=weight, fontsize=11 if len(text) < 4 else 8.5,
        )  # fmt: skip
        if label:
            size = 8 if max(map(len, lines)) <= 7 else 5
            axes.text(x + 0.5, y + 0.84 - 0.06 * len(lines), label, ha="center", va="center", color=ink, fontsize=size)


def _luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of an sRGB colour, as WCAG defines contrast by."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
