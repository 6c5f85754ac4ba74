"""See one small case of an op, forward and backward: as text, as a page, as a figure or a film."""

import argparse
import html
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import jaxbp

from .._adapter import not_installed
from .._output import require_picture, require_writable, write_whole
from ._case import OPS, Case, make_case, uses
from ._examples import article_case, drawn_case
from ._page import page
from ._text import text


class Explanation(NamedTuple):
    """One small case of an op, ready to be read: `print` it, `save` it, or let a notebook show it."""

    case: Case
    pixel: tuple[int, int]
    companions: tuple[Case, ...]

    def __str__(self) -> str:
        """The matrices as the article prints them, with the arithmetic of one pixel."""
        return text(self.case, self.pixel)

    def _repr_html_(self) -> str:
        """The page, in a frame of its own inside a notebook."""
        frame = '<iframe title="jaxbp explain" style="width:100%;height:900px;border:0" srcdoc="{}"></iframe>'
        return frame.format(html.escape(self.html(), quote=True))

    def html(self) -> str:
        """The interactive page: one self-contained HTML document."""
        pixels = [(self.case, self.pixel), *((other, _chosen_pixel(other, None)) for other in self.companions)]
        return page(pixels)

    def figure(self) -> Any:
        """A matplotlib Figure of the case; needs matplotlib."""
        return _drawing().figure(self.case, self.pixel)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the case to a file, whole or not at all; its suffix (.html, .png, .gif, .txt) says how."""
        path = Path(path)
        if path.suffix == ".html":
            return _write(path, lambda file: file.write_text(self.html(), encoding="utf-8"))
        if path.suffix == ".txt":
            return _write(path, lambda file: file.write_text(f"{self}\n", encoding="utf-8"))
        if path.suffix == ".png":
            return _write(path, lambda file: self.figure().savefig(file, format="png"))
        if path.suffix == ".gif":
            return _write(path, lambda file: _drawing().film(self.case, file))
        raise ValueError(f"explain: cannot save to {str(path)!r}; the name must end in .html, .png, .gif or .txt")


def explain(
    op: str | Callable[..., Any],
    *arrays: Any,
    delta: Any = None,
    pixel: tuple[int, int] | None = None,
    **keywords: Any,
) -> Explanation:
    """Show what an op's hand-written backward rule does, on your own numbers, pixel by pixel.

    For a convolution `z = x * W + b` with `delta = dJ/dz` it shows why

        dJ/dx = delta (full) rot180(W)        dJ/dW = x (corr) delta        dJ/db = sum of delta

    and for a pool how delta is sent back ("upsampled") to the input. Every number is computed by the op
    itself under `jax.vjp` and, beside it, by JAX's automatic VJP of `jaxbp.automatic`.

    Args:
      op: `jaxbp.conv`, `jaxbp.max_pool`, `jaxbp.avg_pool` or `jaxbp.dense`, or its name.
      *arrays: the op's own arrays, one image of one channel and at most 8 x 8: `x` of shape (height, width)
        and `kernel` (height, width) for conv, with an optional `bias` of one number; `inputs` for a pool;
        `x` of shape (batch, inputs), `kernel` (inputs, outputs) and an optional `bias` (outputs,) for dense.
        Batch and channel axes of length 1 are dropped. Numbers of any real dtype; they are shown as float32.
      delta: the gradient that arrives from above, of the output's shape. By default the output itself, which
        is the gradient of J = sum(z ** 2) / 2.
      pixel: (row, column), from 0, of the input pixel that is worked out; by default one in the middle.
        (`cell` is the same argument.)
      **keywords: the op's own: `strides`, `padding`, `kernel_dilation` for conv; `window_shape`, `strides`,
        `padding`, `window_dilation` for the pools; `count_include_pad` for avg_pool.

    Returns:
      An `Explanation`: `print` it for the text; `.save("case.html")` writes the interactive page, `.png` a
      figure, `.gif` a film, `.txt` the text; `.html()` and `.figure()` return them. Notebooks show the page.

    Raises:
      TypeError: an op or keyword that cannot be drawn, or a wrong number of arrays.
      ValueError: arrays that are too large, have several channels, or do not fit each other.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxbp
      >>> x, kernel = jnp.arange(9.0).reshape(3, 3), jnp.arange(4.0).reshape(2, 2)
      >>> case = jaxbp.explain(jaxbp.conv, x, kernel, padding="VALID")
      >>> print(str(case).splitlines()[0])
      conv: input 3 x 3, kernel 2 x 2, strides (1, 1), padding ((0, 0), (0, 0)), dilation (1, 1)
      >>> case.case.manual["input_grad"].tolist()
      [[0.0, 19.0, 25.0], [38.0, 144.0, 118.0], [74.0, 197.0, 129.0]]

    Source: backpropagation through cross-correlation, as derived in docs/derivation.md.
    """
    pixel = keywords.pop("cell", pixel)
    name = _op_name(op)
    case = make_case(name, arrays, delta, keywords)
    companions = tuple(drawn_case(other) for other in OPS if other != name)
    if name in ("max_pool", "avg_pool"):
        twin = "avg_pool" if name == "max_pool" else "max_pool"
        shared = {key: value for key, value in keywords.items() if key != "count_include_pad"}
        companions = tuple(
            make_case(twin, arrays, delta, shared) if other.op == twin else other for other in companions
        )
    return Explanation(case, _chosen_pixel(case, pixel), companions)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `python -m jaxbp explain` takes."""
    parser.add_argument("op", choices=OPS, help="the op to show")
    parser.add_argument(
        "--input", type=int, metavar="N", help="input of N x N pixels; default 5, pools 4 (dense: 3 inputs)"
    )
    parser.add_argument("--kernel", type=int, metavar="K", help="kernel or window of K x K pixels; default 3, pools 2")
    parser.add_argument("--stride", type=int, metavar="S", help="default 1; pools: the window's size")
    parser.add_argument("--padding", metavar="P", help="VALID (default), SAME, SAME_LOWER or a number of pixels")
    parser.add_argument("--dilation", type=int, metavar="D", help="step between the window's pixels; default 1")
    parser.add_argument("--seed", type=int, metavar="SEED", help="which random small integers; default 0")
    parser.add_argument(
        "--article", action="store_true", help="the worked example of docs/derivation.md instead of random numbers"
    )
    parser.add_argument(
        "--pixel",
        "--cell",
        type=int,
        nargs=2,
        metavar=("ROW", "COLUMN"),
        help="input pixel to work out, counted from 0; default one in the middle",
    )
    parser.add_argument("--text", action="store_true", help="print the text (the default when no file is asked for)")
    parser.add_argument("--html", metavar="FILE", help="write the interactive page")
    parser.add_argument("--png", metavar="FILE", help="write a figure (needs matplotlib)")
    parser.add_argument("--gif", metavar="FILE", help="write a film (needs matplotlib and pillow)")


def run(args: argparse.Namespace) -> int:
    """Print or write what was asked for; exit status 0, or 2 with one line that says what was wrong."""
    try:
        files = {kind: name for kind in ("html", "png", "gif") if (name := getattr(args, kind)) is not None}
        for kind, name in files.items():
            if Path(name).suffix != f".{kind}":
                raise ValueError(f"explain: --{kind} {name!r} must be a file name that ends in .{kind}")
            _require_folder(Path(name))
            require = require_writable if kind == "html" else require_picture
            require(f"explain: --{kind}", name)
        explanation = asked_for(args)
        for name in files.values():
            print(f"wrote {explanation.save(name)}", flush=True)
        if args.text or not files:
            print(explanation)
    except BrokenPipeError:
        raise
    except (TypeError, ValueError, OSError, ImportError, MemoryError) as error:
        message = " ".join(str(error).split()).removeprefix("explain: ")
        print(f"jaxbp explain: {message}", file=sys.stderr)
        return 2
    return 0


def asked_for(args: argparse.Namespace) -> Explanation:
    """The explanation that the command line describes."""
    pixel = None if args.pixel is None else tuple(args.pixel)
    names = ("input", "kernel", "stride", "padding", "dilation", "seed")
    drawn = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.article:
        if drawn:
            raise ValueError(f"explain: --article has numbers of its own; leave out --{next(iter(drawn))}")
        case, companions = article_case(args.op), tuple(article_case(op) for op in OPS if op != args.op)
        return Explanation(case, _chosen_pixel(case, pixel), companions)
    for name in ("input", "kernel", "stride", "dilation"):
        if drawn.get(name, 1) < 1:
            raise ValueError(f"explain: --{name} {drawn[name]} must be at least 1")
    if drawn.get("seed", 0) < 0:
        raise ValueError(f"explain: --seed {drawn['seed']} must be at least 0")
    if args.op == "dense":
        for name in ("kernel", "stride", "padding", "dilation"):
            if name in drawn:
                raise ValueError(f"explain: --{name} means nothing for dense; it takes --input and --seed")
    padding = drawn.get("padding", "VALID")
    if padding.lstrip("-").isdigit():
        padding = int(padding)
    seed = drawn.get("seed", 0)
    case = drawn_case(
        args.op,
        drawn.get("input"),
        drawn.get("kernel"),
        drawn.get("stride"),
        padding,
        drawn.get("dilation", 1),
        seed,
    )
    companions = tuple(drawn_case(op, seed=seed) for op in OPS if op != args.op)
    return Explanation(case, _chosen_pixel(case, pixel), companions)


def _op_name(op: str | Callable[..., Any]) -> str:
    """The name of an op given by name or as jaxbp's function."""
    for name in OPS:
        if op == name or op is getattr(jaxbp, name):
            return name
    shown = op if isinstance(op, str) else getattr(op, "__name__", op)
    raise TypeError(f"explain: op={shown!r} cannot be drawn; use {', '.join(OPS)} or jaxbp's function of that name")


def _chosen_pixel(case: Case, pixel: tuple[int, int] | None) -> tuple[int, int]:
    """The pixel that is worked out: the one asked for, or one that many outputs used, near the middle."""
    rows, columns = case.given["x"].shape
    if pixel is not None:
        if len(pixel) != 2 or not (0 <= pixel[0] < rows and 0 <= pixel[1] < columns):
            raise ValueError(
                f"explain: pixel={pixel} lies outside the input of shape {(rows, columns)}; rows and columns count "
                f"from 0"
            )
        return pixel[0], pixel[1]
    middle = ((rows - 1) / 2, (columns - 1) / 2)
    pixels = [(r, c) for r in range(rows) for c in range(columns)]
    if case.window is None:
        return min(pixels, key=lambda at: (abs(at[0] - middle[0]) + abs(at[1] - middle[1]), at))
    window = case.window
    winners = case.manual["input_grad"] != 0 if case.op == "max_pool" else np.ones((rows, columns), bool)
    return min(
        pixels,
        key=lambda at: (
            not winners[at],
            -len(uses(window, at)),
            abs(at[0] - middle[0]) + abs(at[1] - middle[1]),
            at,
        ),
    )


def _drawing() -> ModuleType:
    """The module that draws, which needs matplotlib."""
    try:
        from . import _figure
    except ModuleNotFoundError as error:
        raise not_installed("a picture", "matplotlib", "plot", error) from None
    return _figure


def _write(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file, whole or not at all."""
    _require_folder(path)
    write_whole(path, write)
    return path


def _require_folder(path: Path) -> None:
    """Refuse a file in a folder that is not there."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"explain: cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")
