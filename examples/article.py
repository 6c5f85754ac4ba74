"""Every worked example of the article, next to what jaxbp computes.

    python examples/article.py

In the formulas a is the 3x3 input of a convolution, w its 2x2 kernel and d (delta) the gradient of the loss
with respect to its 2x2 output; a11 is the upper left corner. The numbers are float32 and have to be equal,
not close. The exit status is 1 if any example disagrees.
"""

from __future__ import annotations

import ctrl_c  # noqa: F401  # isort: skip
import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import product, zip_longest

import jax
import jax.numpy as jnp
import numpy as np

import jaxbp

WINDOW = (2, 2)
# Slide a 2x2 kernel over the image with a rim of one zero, and every pixel meets every weight.
FULL = ((1, 1), (1, 1))


def counting(rows: int, columns: int) -> jax.Array:
    """0, 1, 2, ... as a matrix."""
    return jnp.arange(rows * columns, dtype=jnp.float32).reshape(rows, columns)


def image(matrix: jax.Array) -> jax.Array:
    """A matrix as an image of one channel: (height, width, 1)."""
    return matrix[:, :, None]


def kernel(matrix: jax.Array) -> jax.Array:
    """A matrix as a kernel from one channel to one: (height, width, 1, 1)."""
    return matrix[:, :, None, None]


def pooling() -> list[tuple[str, object, jax.Array]]:
    """What the article says about pooling, and what jaxbp computes: title, expected, computed."""
    a = image(counting(4, 4))
    maxima, max_pullback = jax.vjp(lambda a: jaxbp.max_pool(a, WINDOW, strides=WINDOW), a)
    means, mean_pullback = jax.vjp(lambda a: jaxbp.avg_pool(a, WINDOW, strides=WINDOW), a)
    delta = jnp.array([[1, 2], [3, 4]], jnp.float32)
    top_left = jnp.zeros((2, 2), jnp.uint8)
    return [
        ("max pool 2x2 of 0 .. 15", [[5, 7], [13, 15]], maxima[..., 0]),
        (
            "... pulled back with itself",
            [[0, 0, 0, 0], [0, 5, 0, 7], [0, 0, 0, 0], [0, 13, 0, 15]],
            max_pullback(maxima)[0][..., 0],
        ),
        ("average pool 2x2 of 0 .. 15", [[2.5, 4.5], [10.5, 12.5]], means[..., 0]),
        (
            "... pulled back with itself",
            np.kron([[0.625, 1.125], [2.625, 3.125]], np.ones(WINDOW)),
            mean_pullback(means)[0][..., 0],
        ),
        (
            "upsample 1 2 3 4 to the winners, all at the top left",
            [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]],
            jaxbp.upsample(delta, WINDOW, winners=top_left),
        ),
        (
            "upsample 1 2 3 4 as means",
            [[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 1, 1], [0.75, 0.75, 1, 1]],
            jaxbp.upsample(delta, WINDOW),
        ),
    ]


def convolution() -> list[tuple[str, object, jax.Array]]:
    """What the article says about convolution; by jaxbp's rule, and in the article's words."""
    a, w, bias = counting(3, 3), counting(2, 2), jnp.zeros(1, jnp.float32)
    output, pullback = jax.vjp(lambda a, w, b: jaxbp.conv(a, w, b, padding="VALID"), image(a), kernel(w), bias)
    da, dw, db = pullback(output)
    delta = output[..., 0]
    slid_over_delta = jaxbp.conv(image(delta), kernel(jaxbp.rot180(w)), padding=FULL)
    before_rotation = jaxbp.conv(image(delta), kernel(a), padding=FULL)
    input_gradient = [[0, 19, 25], [38, 144, 118], [74, 197, 129]]
    kernel_gradient = [[308, 432], [680, 804]]
    return [
        ("conv of 0 .. 8 with 0 .. 3", [[19, 25], [37, 43]], delta),
        ("... pulled back with itself: input", input_gradient, da[..., 0]),
        ("the same as delta (full) rot180(w)", input_gradient, slid_over_delta[..., 0]),
        ("... pulled back with itself: kernel", kernel_gradient, dw[..., 0, 0]),
        ("delta (full) a, before the last rotation", [[804, 680], [432, 308]], before_rotation[..., 0]),
        ("... and after it", kernel_gradient, jaxbp.rot180(before_rotation[..., 0])),
        ("... pulled back with itself: bias", [124], db),
    ]


def formulas() -> list[tuple[str, str, str]]:
    """The article's symbolic gradients, and those read off jaxbp's gradient maps."""

    def input_gradient(d: jax.Array, w: jax.Array) -> jax.Array:
        return jaxbp.conv_input_grad(image(d), kernel(w), (3, 3, 1), padding="VALID")[..., 0]

    def kernel_gradient(d: jax.Array, a: jax.Array) -> jax.Array:
        return jaxbp.conv_kernel_grad(image(a), image(d), (2, 2, 1, 1), padding="VALID")[..., 0, 0]

    da, dw = read_off(input_gradient, "w", (2, 2)), read_off(kernel_gradient, "a", (3, 3))
    # The article misprints the last term of dw12 and two of dw22; its derivation and numbers give these.
    return [
        ("da11", "d11 w11", da["11"]),
        ("da22", "d11 w22 + d12 w21 + d21 w12 + d22 w11", da["22"]),
        ("dw11", "d11 a11 + d12 a12 + d21 a21 + d22 a22", dw["11"]),
        ("dw12", "d11 a12 + d12 a13 + d21 a22 + d22 a23", dw["12"]),
        ("dw21", "d11 a21 + d12 a22 + d21 a31 + d22 a32", dw["21"]),
        ("dw22", "d11 a22 + d12 a23 + d21 a32 + d22 a33", dw["22"]),
    ]


def read_off(
    gradient_map: Callable[[jax.Array, jax.Array], jax.Array], name: str, shape: tuple[int, int]
) -> defaultdict[str, str]:
    """The formula of every pixel of a gradient that is linear in delta and linear in one matrix more.

    Set one pixel of each to 1 and all others to 0: the pixels of the gradient in which their product
    occurs become 1, the others stay 0.
    """
    terms = defaultdict(list)
    for (i, j), (k, m) in product(np.ndindex(WINDOW), np.ndindex(shape)):
        one_delta = jnp.zeros(WINDOW, jnp.float32).at[i, j].set(1)
        one_other = jnp.zeros(shape, jnp.float32).at[k, m].set(1)
        for (row, column), value in np.ndenumerate(gradient_map(one_delta, one_other)):
            if value:
                factor = "" if value == 1 else f"{value:g} "
                terms[f"{row + 1}{column + 1}"].append(f"{factor}d{i + 1}{j + 1} {name}{k + 1}{m + 1}")
    return defaultdict(str, {pixel: " + ".join(products) for pixel, products in terms.items()})


def verdict(agrees: bool) -> str:
    """How agreement is printed."""
    return "agrees" if agrees else "DISAGREES"


def show_numbers(title: str, expected: object, computed: jax.Array) -> bool:
    """Print one worked example as two matrices side by side; True if they are equal."""
    article, ours = np.asarray(expected, np.float32), np.asarray(computed)
    agrees = ours.dtype == np.float32 and np.array_equal(article, ours)
    print(f"\n{title}: {verdict(agrees)}\n  {'article':>27}    {'jaxbp':>27}")
    lines = ([" ".join(f"{value:>6g}" for value in row) for row in np.atleast_2d(m)] for m in (article, ours))
    for left, right in zip_longest(*lines, fillvalue=""):
        print(f"  {left:>27}    {right:>27}")
    return agrees


def show_formula(name: str, expected: str, computed: str) -> bool:
    """Print one symbolic example; True if both formulas are the same."""
    agrees = expected == computed
    print(f"\n{name}: {verdict(agrees)}\n  article  {expected}\n  jaxbp    {computed}")
    return agrees


def main() -> int:
    """The exit status: 0 where everything agrees, 1 where something does not."""
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args()
    print("POOLING")
    results = [show_numbers(*example) for example in pooling()]
    print("\n\nCONVOLUTION")
    results += [show_numbers(*example) for example in convolution()]
    print("\n\nTHE GRADIENTS OF A 3x3 INPUT AND A 2x2 KERNEL, IN SYMBOLS")
    results += [show_formula(*example) for example in formulas()]
    print(f"\n{sum(results)} of {len(results)} examples agree")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
