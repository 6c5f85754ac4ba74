"""One small case of an op, in numbers: computed by jaxbp and, beside it, by JAX's automatic VJP.

Everything that `explain` shows comes from here; the text, the page and the figures only lay it out.
One image and one channel, so that every array is a matrix that a person can read.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxbp
from jaxbp._geometry import CONV_WORDS, Pairs, Window, full_padding, make_window

OPS = ("conv", "max_pool", "avg_pool", "dense")
LARGEST = 8
KEYWORDS = {
    "conv": ("strides", "padding", "kernel_dilation"),
    "max_pool": ("window_shape", "strides", "padding", "window_dilation"),
    "avg_pool": ("window_shape", "strides", "padding", "window_dilation", "count_include_pad"),
    "dense": (),
}
Arrays = dict[str, np.ndarray]
Pixel = tuple[int, int]


class Case(NamedTuple):
    """What was given and what jaxbp (`manual`) and JAX (`automatic`) made of it, all matrices of numbers.

    `refusal` is what JAX said where it has no automatic VJP; `automatic` then holds the output alone.
    """

    op: str
    window: Window | None
    given: Arrays
    manual: Arrays
    automatic: Arrays
    count_include_pad: bool = True
    delta_is_output: bool = True
    refusal: str = ""


class Use(NamedTuple):
    """One use of an input pixel in the forward pass: by which output pixel, at which place in the window."""

    output: Pixel
    place: Pixel


def make_case(op: str, arrays: Sequence[Any], delta: Any = None, keywords: Mapping[str, Any] | None = None) -> Case:
    """The case of `op` on a person's own arrays and keywords; `delta=None` pulls the output back itself."""
    keywords = dict(keywords or {})
    for name in keywords:
        if name not in KEYWORDS[op]:
            known = ", ".join(KEYWORDS[op]) or "none"
            raise TypeError(f"explain: {op} cannot be drawn with {name}={keywords[name]!r}; its keywords here: {known}")
    if op == "conv":
        return _conv_case(arrays, delta, **keywords)
    if op == "dense":
        return _dense_case(arrays, delta)
    return _pool_case(op, arrays, delta, **keywords)


def window_of(case: Case) -> Window:
    """The window of a case that has one: all but dense."""
    assert case.window is not None
    return case.window


def uses(window: Window, pixel: Pixel) -> list[Use]:
    """Every output that used an input pixel, in reading order, with the place in the window that met it."""
    return [
        Use((o0, o1), (t0, t1))
        for o0, t0 in _meetings(window, 0, pixel[0])
        for o1, t1 in _meetings(window, 1, pixel[1])
    ]


def pad(x: Any, pads: Pairs) -> np.ndarray:
    """A matrix with zeros added around it (or, where a count is negative, pixels taken away)."""
    padded = np.pad(x, [(max(low, 0), max(high, 0)) for low, high in pads])
    return padded[
        tuple(slice(max(-low, 0), n - max(-high, 0)) for n, (low, high) in zip(padded.shape, pads, strict=True))
    ]


def kernel_padding(window: Window) -> Pairs:
    """Zeros around the strided delta for the article's kernel gradient, which slides x over padded delta."""
    pairs = []
    for axis in range(2):
        low = (window.window_shape[axis] - 1) * window.dilation[axis]
        strided = (window.output_shape[axis] - 1) * window.strides[axis] + 1
        padded_x = sum(window.padding[axis]) + window.input_shape[axis]
        pairs.append((low, padded_x - strided))
    return tuple(pairs)


def window_over_padded_delta(window: Window, pixel: Pixel) -> list[Pixel]:
    """The places of padded delta that the rotated kernel covers to compute one input pixel's gradient."""
    return [
        (pixel[0] + t0 * window.dilation[0], pixel[1] + t1 * window.dilation[1])
        for t0 in range(window.window_shape[0])
        for t1 in range(window.window_shape[1])
    ]


def _meetings(window: Window, axis: int, position: int) -> list[tuple[int, int]]:
    """Along one axis: (output, place in its window) for every window that covers an input position."""
    found = []
    for output in range(window.output_shape[axis]):
        offset = position + window.padding[axis][0] - output * window.strides[axis]
        place, rest = divmod(offset, window.dilation[axis])
        if rest == 0 and 0 <= place < window.window_shape[axis]:
            found.append((output, place))
    return found


def _conv_case(
    arrays: Sequence[Any], delta: Any, strides: Any = 1, padding: Any = "SAME", kernel_dilation: Any = 1
) -> Case:
    """A convolution, its three gradients, and the two padded deltas that they slide over."""
    _require_count("conv", arrays, ("x", "kernel", "bias"), at_least=2)
    x, kernel = _matrix("conv", "x", arrays[0]), _matrix("conv", "kernel", arrays[1], channels=2)
    bias = _number("conv", arrays[2]) if len(arrays) == 3 else np.zeros((1,), np.float32)
    window = make_window(
        "conv", x.shape, kernel.shape, strides, padding, kernel_dilation, names=("kernel", *CONV_WORDS[3:])
    )
    options = {
        "strides": window.strides, "padding": window.padding, "kernel_dilation": window.dilation,
        "precision": lax.Precision.HIGHEST,
    }  # fmt: skip

    def apply(conv: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda x, w, b: conv(x[..., None], w[..., None, None], b, **options)[..., 0]

    names = ("input_grad", "kernel_grad", "bias_grad")
    manual, automatic, delta, delta_is_output, refusal = _pull_back(
        "conv", apply(jaxbp.conv), apply(jaxbp.automatic.conv), (x, kernel, bias), names, delta
    )
    strided = np.asarray(jaxbp.dilate(jnp.asarray(delta), window.strides))
    kernel_padded, padded_x = pad(strided, kernel_padding(window)), pad(x, window.padding)
    before_rotation = jaxbp.conv(
        jnp.asarray(kernel_padded)[..., None], jnp.asarray(padded_x)[..., None, None],
        strides=window.dilation, padding="VALID", precision=lax.Precision.HIGHEST,
    )  # fmt: skip
    manual |= {
        "rotated_kernel": np.asarray(jaxbp.rot180(jnp.asarray(kernel))),
        "padded_delta": pad(strided, full_padding(window)),
        "padded_x": padded_x,
        "kernel_padded_delta": kernel_padded,
        "before_rotation": np.asarray(before_rotation)[..., 0],
    }
    given = {"x": x, "kernel": kernel, "bias": bias, "delta": delta}
    return Case("conv", window, given, manual, automatic, True, delta_is_output, refusal)


def _pool_case(
    op: str, arrays: Sequence[Any], delta: Any, window_shape: Any = None, strides: Any = None,
    padding: Any = "VALID", window_dilation: Any = None, count_include_pad: bool = True,
) -> Case:  # fmt: skip
    """A pool, its gradient, and for max pooling the winners."""
    _require_count(op, arrays, ("inputs",), at_least=1)
    if window_shape is None:
        raise TypeError(f"explain: {op} needs window_shape, for example window_shape=(2, 2)")
    x = _matrix(op, "inputs", arrays[0])
    shape = (window_shape,) * 2 if isinstance(window_shape, int) else tuple(window_shape)
    if len(shape) != 2:
        raise ValueError(f"explain: {op}: window_shape={shape} has {len(shape)} entries; a matrix has 2 spatial axes")
    window = make_window(op, x.shape, shape, strides, padding, window_dilation)
    options: dict[str, Any] = {
        "strides": window.strides, "padding": window.padding, "window_dilation": window.dilation,
    }  # fmt: skip
    if op == "avg_pool":
        options["count_include_pad"] = count_include_pad

    def apply(module: Any) -> Callable[..., jax.Array]:
        return lambda x: getattr(module, op)(x[..., None], shape, **options)[..., 0]

    manual, automatic, delta, delta_is_output, refusal = _pull_back(
        op, apply(jaxbp), apply(jaxbp.automatic), (x,), ("input_grad",), delta
    )
    if op == "max_pool":
        winners = jaxbp.max_pool_with_winners(jnp.asarray(x)[..., None], shape, **options)[1]
        manual["winners"] = np.asarray(winners)[..., 0].astype(np.float32)
    return Case(op, window, {"x": x, "delta": delta}, manual, automatic, count_include_pad, delta_is_output, refusal)


def _dense_case(arrays: Sequence[Any], delta: Any) -> Case:
    """A dense layer, the chain rule through it, and through a relu below it."""
    _require_count("dense", arrays, ("x", "kernel", "bias"), at_least=2)
    x, kernel = _matrix("dense", "x", arrays[0]), _matrix("dense", "kernel", arrays[1])
    if x.shape[1] != kernel.shape[0]:
        raise ValueError(
            f"explain: dense: x has shape {x.shape} and kernel {kernel.shape}; "
            f"a kernel of shape ({x.shape[1]}, outputs) would fit"
        )
    bias = np.zeros(kernel.shape[1], np.float32)
    if len(arrays) == 3:
        bias = np.asarray(arrays[2], np.float32)
        if bias.shape != kernel.shape[1:]:
            raise ValueError(
                f"explain: dense: bias has shape {bias.shape}, but a kernel of shape {kernel.shape} "
                f"needs {kernel.shape[1:]}"
            )

    def apply(module: Any) -> Callable[..., jax.Array]:
        return lambda x, w, b: module.dense(x, w, b, precision=lax.Precision.HIGHEST)

    names = ("input_grad", "kernel_grad", "bias_grad")
    manual, automatic, delta, delta_is_output, refusal = _pull_back(
        "dense", apply(jaxbp), apply(jaxbp.automatic), (x, kernel, bias), names, delta
    )
    for module, values in ((jaxbp, manual), (jaxbp.automatic, automatic)):
        values["delta_below"] = np.asarray(
            jax.vjp(module.relu, jnp.asarray(x))[1](jnp.asarray(values["input_grad"]))[0]
        )
    given = {"x": x, "kernel": kernel, "bias": bias[None], "delta": delta}
    for values in (manual, automatic):
        values["bias_grad"] = values["bias_grad"][None]
    return Case("dense", None, given, manual, automatic, True, delta_is_output, refusal)


def _pull_back(
    op: str,
    manual: Callable[..., jax.Array],
    automatic: Callable[..., jax.Array],
    arrays: Sequence[np.ndarray],
    names: Sequence[str],
    delta: Any,
) -> tuple[Arrays, Arrays, np.ndarray, bool, str]:
    """Output and gradients of both rules, delta, whether it is the output itself, and what JAX refused."""
    shape = jax.eval_shape(manual, *arrays).shape
    if max(shape) > LARGEST:
        raise ValueError(
            f"explain: {op}: the output has shape {shape}; explain draws at most {LARGEST} x {LARGEST} "
            f"pixels, so use less padding"
        )
    delta_is_output = delta is None
    if not delta_is_output:
        delta = _matrix(op, "delta", delta)
        if delta.shape != shape:
            raise ValueError(f"explain: {op}: delta has shape {delta.shape}, but the output has shape {shape}")

    def evaluate(function: Callable[..., jax.Array]) -> tuple[np.ndarray, ...]:
        """The output and the gradients that delta pulls back, as one program."""

        def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            output, pull = jax.vjp(function, *arrays)
            return output, *pull(output if delta_is_output else jnp.asarray(delta))

        return tuple(map(np.asarray, jax.jit(run)(*arrays)))

    results = dict(zip(("output", *names), evaluate(manual), strict=True))
    if not np.isfinite(results["output"]).all():
        raise ValueError(f"explain: {op}: a window lies wholly in the padding, so its result is not a finite number")
    refusal = ""
    try:
        witness = dict(zip(("output", *names), evaluate(automatic), strict=True))
    except (NotImplementedError, TypeError) as error:
        witness, refusal = {"output": np.asarray(automatic(*arrays))}, str(error).splitlines()[0]
    return results, witness, results["output"] if delta_is_output else delta, delta_is_output, refusal


def _matrix(op: str, argument: str, value: Any, channels: int = 1) -> np.ndarray:
    """A person's array as a small float32 matrix, without its batch and channel axes of length 1."""
    if np.iscomplexobj(value):
        raise TypeError(f"explain: {op}: {argument} is complex; explain draws real numbers only")
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise TypeError(
            f"explain: {op}: {argument} must be an array of real numbers, but got {type(value).__name__}"
        ) from None
    shape = array.shape
    while array.ndim > 2 and channels and array.shape[-1] == 1:
        array, channels = array[..., 0], channels - 1
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2 or not array.size:
        raise ValueError(
            f"explain: {op}: {argument} has shape {shape}; explain draws one image of one channel, "
            f"a matrix (height, width) with at least one pixel"
        )
    if max(array.shape) > LARGEST:
        raise ValueError(
            f"explain: {op}: {argument} has shape {shape}; explain draws at most {LARGEST} x {LARGEST} pixels, "
            f"for example {argument}[:{LARGEST}, :{LARGEST}]"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"explain: {op}: {argument} must hold finite numbers only")
    return array


def _number(op: str, value: Any) -> np.ndarray:
    """The one bias of a single-channel convolution, as a vector of length 1."""
    array = np.asarray(value, np.float32)
    if array.size != 1 or not np.isfinite(array).all():
        raise ValueError(f"explain: {op}: bias has shape {array.shape}; one output channel has one finite bias")
    return array.reshape(1)


def _require_count(op: str, arrays: Sequence[Any], names: tuple[str, ...], at_least: int) -> None:
    """Refuse a wrong number of arrays by naming those that the op takes."""
    if not at_least <= len(arrays) <= len(names):
        raise TypeError(f"explain: {op} takes {', '.join(names)}, but got {len(arrays)} arrays")
