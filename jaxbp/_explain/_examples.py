"""The cases that need no arrays of one's own: the article's numbers, and small integers drawn from a seed."""

import functools

import numpy as np

from jaxbp._geometry import CONV_WORDS, POOL_WORDS, make_window

from ._case import Case, make_case


# Remembered: every page has the other ops' cases beside its own.
@functools.cache
def article_case(op: str) -> Case:
    """The article's worked example of an op: counting numbers, pulled back with the output itself."""
    if op == "conv":
        return make_case("conv", [_counting(3, 3), _counting(2, 2)], keywords={"padding": "VALID"})
    if op == "dense":
        return make_case("dense", [_counting(2, 3), _counting(3, 2)])
    return make_case(op, [_counting(4, 4)], keywords={"window_shape": (2, 2), "strides": (2, 2)})


@functools.cache
def drawn_case(
    op: str,
    size: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    padding: str | int = "VALID",
    dilation: int = 1,
    seed: int = 0,
) -> Case:
    """Small integers drawn from a seed; by default a 3 x 3 kernel, or a 2 x 2 pool that does not overlap."""
    size = size or {"conv": 5, "dense": 3}.get(op, 4)
    rng = np.random.default_rng(seed)
    if op == "dense":
        x = rng.integers(0, 4, (2, size))
        kernel, bias, delta = (
            rng.integers(-2, 3, (size, 2)),
            rng.integers(-1, 2, 2),
            rng.integers(-3, 5, (2, 2)),
        )
        return make_case("dense", [x, kernel, bias], delta)
    window = window or (3 if op == "conv" else 2)
    stride = stride or (1 if op == "conv" else window)
    x = rng.integers(0, 6, (size, size))
    if op == "conv":
        keywords = {"strides": stride, "padding": padding, "kernel_dilation": dilation}
        arrays = [x, (rng.permutation(window * window) - 2).reshape(window, window), [1]]
    else:
        keywords = {
            "window_shape": (window, window),
            "strides": stride,
            "padding": padding,
            "window_dilation": dilation,
        }
        arrays = [x]
    names = ("kernel", *CONV_WORDS[3:]) if op == "conv" else POOL_WORDS
    shape = make_window(op, x.shape, (window, window), stride, padding, dilation, names=names).output_shape
    return make_case(op, arrays, rng.integers(1, 10, shape), keywords)


def _counting(rows: int, columns: int) -> np.ndarray:
    """0, 1, 2, ... in reading order."""
    return np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
