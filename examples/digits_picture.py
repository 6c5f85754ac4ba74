"""The picture that train_digits.py writes: loss curves, test digits, and one gradient computed twice."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

INK, GREY, ORANGE, BLUE, RED = "#22262b", "#5d656e", "#e8a33d", "#1f5fa8", "#c23b3b"


def draw(
    *,
    title: str,
    losses: dict[str, list[float]],
    steps_per_epoch: int,
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    by_hand: np.ndarray,
    by_jax: np.ndarray,
    difference: np.ndarray,
) -> Figure:
    """The whole figure: twelve test images, the hardest four of them first, and the gradients (height, width)
    of the loss of the very first; `difference` is in eps.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.07)
    figure = Figure(figsize=(11, 7.8), dpi=150, facecolor="white", layout=layout)
    figure.suptitle(title, fontsize=15, fontweight="bold", color=INK)
    rows = figure.add_gridspec(2, 1, height_ratios=(1.15, 1))
    top, bottom = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    columns = top.add_gridspec(1, 2, width_ratios=(1.25, 1))
    curves, digits = top.add_subfigure(columns[0]), top.add_subfigure(columns[1])
    _draw_losses(curves.subplots(), losses, steps_per_epoch)

    digits.suptitle("Test digits as they were read; first row: the hardest", fontsize=12, color=INK)
    grid = digits.subplots(3, 4).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, label, prediction in zip(grid, images, labels, predictions, strict=False):
        right = prediction == label
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(
            f"{prediction}" if right else f"{prediction} (is {label})",
            fontsize=12,
            color=BLUE if right else RED,
            fontweight="bold",
            pad=3,
        )

    bottom.suptitle(
        "The gradient of the loss with respect to the hardest test image, by two rules",
        fontsize=12,
        color=INK,
    )
    panels = bottom.subplots(1, 4)
    reading = f"the image: {labels[0]}, read as {predictions[0]}"
    _draw_image(panels[0], images[0], reading, "gray_r", (0.0, 1.0), "ink")
    scale = float(np.abs(by_jax).max()) or 1.0
    _draw_image(panels[1], by_hand, "by hand (jaxbp)", "RdBu_r", (-scale, scale), "dJ / d pixel")
    _draw_image(panels[2], by_jax, "automatic (JAX)", "RdBu_r", (-scale, scale), "dJ / d pixel")
    apart = float(np.abs(difference).max())
    _draw_image(
        panels[3],
        difference,
        f"difference: at most {apart:.2g} eps" if apart else "difference: none, bit for bit",
        "PuOr_r",
        (-(apart or 1.0), apart or 1.0),
        "eps of float32 x largest |gradient|",
    )
    return figure


def _draw_losses(axes: Axes, losses: dict[str, list[float]], steps_per_epoch: int) -> None:
    """Each run's loss per step, faint, and its mean over the epoch around it; the second run lies on top."""
    styles = {0: {"color": ORANGE, "linewidth": 5}, 1: {"color": BLUE, "linewidth": 1.6}}
    window = min(steps_per_epoch, len(next(iter(losses.values()))))
    for index, (name, values) in enumerate(reversed(losses.items())):
        epochs = (np.arange(len(values)) + 1) / steps_per_epoch
        axes.plot(epochs, values, color=styles[index]["color"], linewidth=0.5, alpha=0.25)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(epochs[window - 1 :], smooth, label=name, solid_capstyle="round", **styles[index])
    axes.set_yscale("log")
    axes.set_title("Training loss: every step, and its mean over the last epoch", fontsize=12, color=INK)
    axes.set_xlabel("epochs", color=INK)
    axes.set_ylabel("softmax cross entropy", color=INK)
    axes.grid(True, which="major", color="#e4e7ea", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], frameon=False, fontsize=11)


def _draw_image(
    axes: Axes, image: np.ndarray, title: str, colours: str, limits: tuple[float, float], unit: str
) -> None:
    """One small image with its colour bar."""
    shown: ScalarMappable = axes.imshow(image, cmap=colours, vmin=limits[0], vmax=limits[1])
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d0d4d8")
    bar = axes.figure.colorbar(shown, ax=axes, orientation="horizontal", shrink=0.8, pad=0.04)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    bar.set_label(unit, fontsize=9, color=GREY)
