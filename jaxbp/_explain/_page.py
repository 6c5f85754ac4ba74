"""Cases as one self-contained HTML page: the template, its style and scripts, with the numbers put in."""

import html
import importlib.metadata
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jax
import numpy as np

from ._case import LARGEST, Case, Pixel

SCRIPTS = ("numbers.js", "page.js", "views.js", "controls.js")


def page(cases: Sequence[tuple[Case, Pixel]]) -> str:
    """The page: a tab for each case, starting on the first, each with a chosen pixel."""
    version = importlib.metadata.version("jaxbp")
    data = {
        "start": cases[0][0].op,
        "pixels": {case.op: pixel for case, pixel in cases},
        "largest": LARGEST,
        "jaxbp": version,
        "jax": jax.__version__,
        "cases": {case.op: _numbers(case) for case, _ in cases},
    }
    parts = {
        "/*STYLE*/": _read("page.css"),
        "/*SCRIPT*/": "\n".join(map(_read, SCRIPTS)),
        "/*DATA*/": json.dumps(data, separators=(",", ":"), allow_nan=False),
        "<!--VERSION-->": html.escape(version),
    }
    document = _read("page.html")
    for place, content in parts.items():
        document = document.replace(place, content)
    return document


def _numbers(case: Case) -> dict[str, Any]:
    """A case as the page's script reads it."""
    window = case.window
    axes = [] if window is None else [
        {"n": n, "k": k, "s": s, "d": d, "lo": low, "hi": high, "out": out}
        for n, k, s, d, (low, high), out in zip(
            window.input_shape, window.window_shape, window.strides, window.dilation, window.padding,
            window.output_shape, strict=True,
        )
    ]  # fmt: skip
    given = {name: _list(value) for name, value in case.given.items()}
    return {
        "axes": axes,
        "given": given,
        "manual": {name: _list(np.atleast_2d(value)) for name, value in case.manual.items()},
        "automatic": {name: _list(np.atleast_2d(value)) for name, value in case.automatic.items()},
        "deltaIsOutput": case.delta_is_output,
        "refusal": case.refusal,
        "countPad": case.count_include_pad,
    }


def _list(array: np.ndarray) -> list[Any]:
    """Nested lists of numbers to the seven digits that float32 holds, so that the page stays small."""
    if array.ndim > 1:
        return [_list(part) for part in array]
    return [int(value) if float(value).is_integer() else float(f"{value:.7g}") for value in array]


def _read(name: str) -> str:
    """One of the files that the page is made of, without what only its authors read."""
    text = files("jaxbp._explain").joinpath(name).read_text(encoding="utf-8")
    if name.endswith(".css"):
        return re.sub(r"\s*([{};,])\s*", r"\1", text)
    lines = [line.strip() for line in text.splitlines()]
    return "\n".join(line for line in lines if line and not line.startswith("//"))
