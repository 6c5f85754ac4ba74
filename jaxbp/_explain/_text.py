"""A case as text: the matrices as the article prints them, and the arithmetic of one pixel."""

import numpy as np

from jaxbp._geometry import Window

from ._case import Case, Pixel, Use, uses, window_of


def text(case: Case, pixel: Pixel) -> str:
    """The whole case: forward, each gradient, one pixel worked out, and whether JAX agrees."""
    lines = {"conv": _conv, "max_pool": _max_pool, "avg_pool": _avg_pool, "dense": _dense}[case.op](case, pixel)
    return "\n".join([*lines, "", *_agreement(case)])


def number(value: float) -> str:
    """A number as a person writes it: integers without a point, others to four digits."""
    if float(value) == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{float(value):.4g}"


def name(letter: str, pixel: Pixel) -> str:
    """A pixel's name counted from 1, as in the article: w12, or w1,12 where an index has two digits."""
    row, column = pixel[0] + 1, pixel[1] + 1
    return f"{letter}{row},{column}" if max(row, column) > 9 else f"{letter}{row}{column}"


def factor(value: float) -> str:
    """A number inside a product or a sum: in parentheses if it is negative."""
    return f"({number(value)})" if value < 0 else number(value)


def weights_in_reading_order(used: list[Use]) -> str:
    """The weights that join an input pixel to the outputs that used it, as those outputs are read."""
    return " ".join(name("w", use.place) for use in used)


def _conv(case: Case, pixel: Pixel) -> list[str]:
    """The convolution's text."""
    given, manual = case.given, case.manual
    x, kernel, delta, bias = given["x"], given["kernel"], given["delta"], given["bias"]
    window = window_of(case)
    used = uses(window, pixel)
    products = [delta[use.output] * kernel[use.place] for use in used]
    lines = [
        f"conv: input {_size(x)}, kernel {_size(kernel)}, strides {window.strides}, "
        f"padding {window.padding}, dilation {window.dilation}",
        "",
        *_side_by_side(
            ("input x", x), ("kernel W", kernel),
            (f"output z = x * W + {factor(bias[0])}", manual["output"]),
        ),
        "",
        *_delta_line(case),
        "",
        "Gradient of the input: slide the rotated kernel over padded delta.",
        *_side_by_side(
            ("padded delta", manual["padded_delta"]), ("rot180(W)", manual["rotated_kernel"]),
            ("dJ/dx", manual["input_grad"]),
        ),
        "",
        f"One pixel, {name('x', pixel)} = {number(x[pixel])}: the outputs that used it, in reading order, "
        "and the weight that joined them",
    ]  # fmt: skip
    for use, product in zip(used, products, strict=True):
        d, w = name("d", use.output), name("w", use.place)
        arithmetic = f"{factor(delta[use.output])} * {factor(kernel[use.place])} = {number(product)}"
        lines.append(f"  {name('z', use.output)} used it through {w}: {d} {w} = {arithmetic}")
    if len(used) < window.taps:
        lines += ["  (the other weights met no output with this pixel: padded delta has zeros there)"]
    if used:
        lines += [
            f"  dJ/d{name('x', pixel)} = {' + '.join(map(factor, products))} = {number(manual['input_grad'][pixel])}",
            f"The weights read {weights_in_reading_order(used)}: the kernel from its last entry to its first."
            + (" That is the rotation." if len(used) == window.taps else ""),
        ]
    else:
        lines += ["  No output used it: its gradient is 0."]
    lines += [
        "",
        "Gradient of the kernel, as a valid correlation: lay delta over x, multiply, add.",
        *_side_by_side(
            ("padded x" if any(map(any, window.padding)) else "x", manual["padded_x"]),
            (_delta_title(window), delta), ("dJ/dW", manual["kernel_grad"]),
        ),
        "",
        "The same as the article writes it: slide x over padded delta, rotate the result.",
        *_side_by_side(
            ("padded delta", manual["kernel_padded_delta"]),
            ("before the rotation", manual["before_rotation"]), ("dJ/dW", manual["kernel_grad"]),
        ),
        "",
        f"Gradient of the bias: the sum of delta = {number(manual['bias_grad'][0])}",
    ]  # fmt: skip
    return lines


def _max_pool(case: Case, pixel: Pixel) -> list[str]:
    """Max pooling's text."""
    given, manual = case.given, case.manual
    x, delta, window = given["x"], given["delta"], window_of(case)
    lines = [
        *_pool_forward(case, ("winner (place in its window)", manual["winners"])),
        "",
        "Upsample: delta goes to the place that won, zero everywhere else; the first of equal maxima wins.",
        *_side_by_side(("delta", delta), ("dJ/dx", manual["input_grad"])),
        "",
        f"One pixel, {name('x', pixel)} = {number(x[pixel])}: the windows that saw it",
    ]
    for use in uses(window, pixel):
        place = use.place[0] * window.window_shape[1] + use.place[1]
        maximum = manual["output"][use.output]
        if place == manual["winners"][use.output]:
            verdict = f"it won, and receives {name('d', use.output)} = {number(delta[use.output])}"
        elif x[pixel] == maximum:
            verdict = "it equals the maximum, but an earlier pixel won"
        else:
            verdict = "it lost, and receives nothing"
        lines.append(f"  {name('z', use.output)} = {number(maximum)}: {verdict}")
    lines.append(f"  dJ/d{name('x', pixel)} = {number(manual['input_grad'][pixel])}")
    return lines


def _avg_pool(case: Case, pixel: Pixel) -> list[str]:
    """Average pooling's text."""
    given, manual = case.given, case.manual
    x, delta, window = given["x"], given["delta"], window_of(case)
    counts = pixels_averaged(case)
    lines = [
        *_pool_forward(case, ("pixels averaged", counts)),
        "",
        "Upsample: every pixel of a window receives delta / pixels averaged.",
        *_side_by_side(("delta", delta), ("dJ/dx", manual["input_grad"])),
        "",
        f"One pixel, {name('x', pixel)} = {number(x[pixel])}: the windows that averaged it",
    ]
    for use in uses(window, pixel):
        share = delta[use.output] / counts[use.output]
        lines.append(
            f"  {name('z', use.output)}: {name('d', use.output)} / {number(counts[use.output])} = "
            f"{number(delta[use.output])} / {number(counts[use.output])} = {number(share)}"
        )
    lines.append(f"  dJ/d{name('x', pixel)} = {number(manual['input_grad'][pixel])}")
    return lines


def _dense(case: Case, pixel: Pixel) -> list[str]:
    """The dense layer's text."""
    given, manual = case.given, case.manual
    x, kernel, delta = given["x"], given["kernel"], given["delta"]
    row, column = pixel
    terms = " + ".join(f"{factor(d)}*{factor(w)}" for d, w in zip(delta[row], kernel[column], strict=True))
    kernel_terms = " + ".join(f"{factor(a)}*{factor(d)}" for a, d in zip(x[:, column], delta[:, 0], strict=True))
    return [
        f"dense: x {_size(x)} (batch, inputs), kernel {_size(kernel)} (inputs, outputs)",
        "",
        *_side_by_side(("x", x), ("W", kernel), ("b", given["bias"]), ("z = x W + b", manual["output"])),
        "",
        *_delta_line(case),
        "",
        "Chain rule: each layer needs only delta, the gradient above it.",
        *_side_by_side(("delta", delta), ("W^T", kernel.T), ("dJ/dx = delta W^T", manual["input_grad"])),
        f"  dJ/d{name('x', pixel)} = {terms} = {number(manual['input_grad'][pixel])}",
        "",
        *_side_by_side(("x^T", x.T), ("delta", delta), ("dJ/dW = x^T delta", manual["kernel_grad"])),
        f"  dJ/d{name('w', (column, 0))} = {kernel_terms} = {number(manual['kernel_grad'][column, 0])}",
        "",
        *_side_by_side(("dJ/db = column sums of delta", manual["bias_grad"])),
        "",
        "If x came out of a relu, the layer below receives dJ/dx where x > 0:",
        *_side_by_side(("delta of the layer below", manual["delta_below"])),
    ]


def pixels_averaged(case: Case) -> np.ndarray:
    """By how many pixels each window of an average pool divides."""
    window = window_of(case)
    counts = np.full(window.output_shape, window.taps, np.float32)
    if not case.count_include_pad:
        counts[:] = 0
        for row in range(window.input_shape[0]):
            for column in range(window.input_shape[1]):
                for use in uses(window, (row, column)):
                    counts[use.output] += 1
    return counts


def _pool_forward(case: Case, extra: tuple[str, np.ndarray]) -> list[str]:
    """The heading and the forward matrices of a pool."""
    window = window_of(case)
    return [
        f"{case.op}: input {_size(case.given['x'])}, "
        f"window {window.window_shape[0]} x {window.window_shape[1]}, strides {window.strides}, "
        f"padding {window.padding}, dilation {window.dilation}",
        "",
        *_side_by_side(("input x", case.given["x"]), ("output z", case.manual["output"]), extra),
        "",
        *_delta_line(case),
    ]


def _delta_title(window: Window) -> str:
    """How delta lies over x: its pixels a stride apart."""
    if window.strides == (1, 1):
        return "delta"
    return f"delta, pixels {window.strides[0]} x {window.strides[1]} apart"


def _delta_line(case: Case) -> list[str]:
    """Where delta comes from, and what it is."""
    if case.delta_is_output:
        return ["delta = dJ/dz is z itself here (J = half the sum of z squared)."]
    return ["delta = dJ/dz, handed down by the layer above:", *_matrix_lines(case.given["delta"])]


def _agreement(case: Case) -> list[str]:
    """How far jaxbp's numbers and those of JAX's automatic VJP are apart."""
    apart = {key: float(np.abs(case.manual[key] - value).max()) for key, value in case.automatic.items()}
    if case.refusal:
        return [f"JAX has no automatic VJP for this case ({case.refusal}); its output is the same as jaxbp's."]
    if not any(apart.values()):
        return ["jaxbp's rule and JAX's automatic VJP give the same numbers, bit for bit."]
    worst = ", ".join(f"{key} {value:.1e}" for key, value in apart.items() if value)
    return [f"jaxbp's rule and JAX's automatic VJP differ by at most: {worst}."]


def _side_by_side(*named: tuple[str, np.ndarray]) -> list[str]:
    """Matrices next to each other under their names."""
    blocks = [[title, *_matrix_lines(matrix)] for title, matrix in named]
    height = max(map(len, blocks))
    widths = [max(map(len, block)) for block in blocks]
    rows = []
    for line in range(height):
        entries = [
            (block[line] if line < len(block) else "").ljust(width) for block, width in zip(blocks, widths, strict=True)
        ]
        rows.append("   ".join(entries).rstrip())
    return rows


def _matrix_lines(matrix: np.ndarray) -> list[str]:
    """A matrix, one line a row, right-aligned."""
    shown = [[number(value) for value in row] for row in matrix]
    width = max(len(value) for row in shown for value in row)
    return [" ".join(value.rjust(width) for value in row) for row in shown]


def _size(matrix: np.ndarray) -> str:
    """A matrix's size in words."""
    return f"{matrix.shape[0]} x {matrix.shape[1]}"
