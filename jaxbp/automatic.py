"""The same forward ops on plain lax, differentiated by JAX: the twin that the hand-written rules are compared with.

Every function has the signature and the meaning of its namesake in `jaxbp`, and no rule of its own. So these have
forward mode (`jax.jvp`, `jax.jacfwd`, `jax.linearize`) outside of `jaxbp.forward_mode`, too; and they have JAX's own
answers at ties and NaN, and its refusals: no gradient of max pooling with a window dilation or negative padding.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import conv_general_dilated as conv_general_dilated
from jax.lax import conv_transpose as conv_transpose

from ._arguments import keeping_64_bits
from ._geometry import Window, conv_window, make_window


@keeping_64_bits
def conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Any = "SAME",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`jaxbp.conv` on plain lax."""
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    w = conv_window(
        "automatic.conv", x.shape, kernel.shape, strides, padding, input_dilation, kernel_dilation, feature_group_count
    )
    batch = x.shape[: x.ndim - w.rank - 1]
    spatial = tuple(range(1, w.rank + 1))
    channels_last = (0, w.rank + 1, *spatial)
    z = lax.conv_general_dilated(
        x.reshape(math.prod(batch), *x.shape[len(batch) :]),
        kernel,
        w.strides,
        w.padding,
        w.input_dilation,
        w.dilation,
        lax.ConvDimensionNumbers(channels_last, (w.rank + 1, w.rank, *range(w.rank)), channels_last),
        feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    z = z.reshape(*batch, *z.shape[1:])
    return z if bias is None else z + jnp.broadcast_to(bias.astype(z.dtype), z.shape)


@keeping_64_bits
def max_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """`jaxbp.max_pool` on plain lax."""
    w = _window("max_pool", inputs, window_shape, strides, padding, window_dilation, ceil_mode)
    return _reduce_window(inputs, lax.max, _lowest(inputs.dtype), w)


@keeping_64_bits
def min_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """`jaxbp.min_pool` on plain lax."""
    w = _window("min_pool", inputs, window_shape, strides, padding, window_dilation, ceil_mode)
    return _reduce_window(inputs, lax.min, _highest(inputs.dtype), w)


@keeping_64_bits
def sum_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """`jaxbp.sum_pool` on plain lax."""
    w = _window("sum_pool", inputs, window_shape, strides, padding, window_dilation, ceil_mode)
    return _reduce_window(_widened(inputs), lax.add, 0, w).astype(inputs.dtype)


@keeping_64_bits
def avg_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    count_include_pad: bool = True,
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
    divisor_override: int | None = None,
) -> jax.Array:
    """`jaxbp.avg_pool` on plain lax."""
    w = _window("avg_pool", inputs, window_shape, strides, padding, window_dilation, ceil_mode)
    divisor = divisor_override
    if divisor is None:
        counted = make_window(
            "avg_pool", w.input_shape, w.window_shape, w.strides, padding, w.dilation, allow_empty=True
        )
        ones = jnp.ones((*w.input_shape, 1))
        inner = counted.padding if count_include_pad else ((0, 0),) * w.rank
        ones = jnp.pad(ones, (*((max(low, 0), max(high, 0)) for low, high in inner), (0, 0)), constant_values=1)
        rest = tuple((p - max(q, 0), r - max(s, 0)) for (p, r), (q, s) in zip(w.padding, inner, strict=True))
        divisor = _reduce_window(ones, lax.add, 0, w._replace(padding=rest))
        divisor = divisor.reshape((1,) * (inputs.ndim - divisor.ndim) + divisor.shape)
    return (_reduce_window(_widened(inputs), lax.add, 0, w) / divisor).astype(inputs.dtype)


@keeping_64_bits
def lp_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    p: float = 2.0,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """`jaxbp.lp_pool` on plain lax."""
    w = _window("lp_pool", inputs, window_shape, strides, padding, window_dilation, ceil_mode)
    magnitudes = jnp.abs(_widened(inputs))
    if math.isinf(p):
        magnitudes = jnp.where(inputs == 0, 0, magnitudes)
        keywords: dict[str, Any] = dict(window_dilation=window_dilation, ceil_mode=ceil_mode)
        largest, _ = max_pool_with_winners(magnitudes, window_shape, strides, padding, **keywords)
        return jnp.maximum(largest, 0).astype(inputs.dtype)
    return (_reduce_window(magnitudes**p, lax.add, 0, w) ** (1 / p)).astype(inputs.dtype)


@keeping_64_bits
def max_pool_with_winners(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """`jaxbp.max_pool_with_winners` on plain lax: all taps side by side, and the best one taken."""
    w = _window("max_pool_with_winners", inputs, window_shape, strides, padding, window_dilation, ceil_mode)
    values = _taps(inputs, w, _lowest(inputs.dtype))
    inside = _taps(jnp.ones_like(inputs, dtype=bool), w, False)
    best = jnp.max(values, axis=0)
    nan = jnp.isnan(best) if jnp.issubdtype(inputs.dtype, jnp.floating) else jnp.zeros(best.shape, bool)
    candidates = inside & ((values == best[None]) | (nan[None] & (values != values)))
    first, last = jnp.argmax(candidates, axis=0), w.taps - 1 - jnp.argmax(candidates[::-1], axis=0)
    winners = jnp.where(nan, last, first)
    pooled = jnp.take_along_axis(values, winners[None], axis=0)[0]
    dtype = next(d for d in (jnp.uint8, jnp.uint16, jnp.uint32) if w.taps <= jnp.iinfo(d).max)
    return pooled, jnp.where(candidates.any(axis=0), winners, w.taps).astype(dtype)


@keeping_64_bits
def max_unpool(
    pooled: jax.Array,
    winners: jax.Array,
    window_shape: Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    input_shape: Sequence[int] | None = None,
    window_dilation: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """`jaxbp.max_unpool` on plain lax: one scatter. Where windows share a winner, which one writes is up to XLA."""
    rank = len(window_shape)
    if input_shape is None:
        one = make_window("max_unpool", (1,) * rank, (1,) * rank, strides, 0, window_dilation)
        pads: Any = ((0, 0),) * rank if padding == "VALID" else padding
        spatial = [
            (out - 1) * s + (k - 1) * d + 1 - sum(pad)
            for out, s, k, d, pad in zip(
                pooled.shape[-rank - 1 : -1], one.strides, window_shape, one.dilation, pads, strict=True
            )
        ]
        input_shape = (*pooled.shape[: -rank - 1], *spatial, pooled.shape[-1])
    zeros = jnp.zeros(input_shape, pooled.dtype)
    w = _window("max_unpool", zeros, window_shape, strides, padding, window_dilation, ceil_mode)
    index = list(jnp.indices(winners.shape, jnp.int32, sparse=True))
    taps = jnp.unravel_index(winners.astype(jnp.int32), w.window_shape)
    for i, (tap, axis) in enumerate(zip(taps, range(pooled.ndim - 1 - rank, pooled.ndim - 1), strict=True)):
        index[axis] = index[axis] * w.strides[i] + tap * w.dilation[i] - w.padding[i][0]
    nowhere = winners == w.taps
    index[-2] = jnp.where(nowhere, zeros.shape[-2], index[-2])
    return zeros.at[tuple(index)].set(pooled, mode="drop")


@keeping_64_bits
def adaptive_avg_pool(
    inputs: jax.Array,
    output_shape: Sequence[int],
) -> jax.Array:
    """`jaxbp.adaptive_avg_pool` on plain lax: one mean per window of each axis."""
    return _adaptive(jnp.mean, _widened(inputs), output_shape).astype(inputs.dtype)


@keeping_64_bits
def adaptive_max_pool(
    inputs: jax.Array,
    output_shape: Sequence[int],
) -> jax.Array:
    """`jaxbp.adaptive_max_pool` on plain lax: one maximum per window of each axis."""
    return _adaptive(jnp.max, inputs, output_shape)


@keeping_64_bits
def dense(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    precision: Any = None,
) -> jax.Array:
    """`jaxbp.dense` on plain lax."""
    z = jnp.matmul(x, kernel, precision=precision)
    return z if bias is None else z + jnp.broadcast_to(bias, z.shape)


@keeping_64_bits
def relu(
    x: jax.Array,
) -> jax.Array:
    """`jaxbp.relu` on plain lax."""
    return jnp.where(x <= 0, jnp.zeros((), x.dtype), x)


@keeping_64_bits
def sigmoid(
    x: jax.Array,
) -> jax.Array:
    """`jaxbp.sigmoid` on plain lax."""
    return lax.logistic(x)


@keeping_64_bits
def tanh(
    x: jax.Array,
) -> jax.Array:
    """`jaxbp.tanh` on plain lax."""
    return lax.tanh(x)


@keeping_64_bits
def softmax_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """`jaxbp.softmax_cross_entropy` on plain lax."""
    log_softmax = jax.nn.log_softmax(_widened(logits))
    if jnp.issubdtype(labels.dtype, jnp.integer):
        picked = jnp.take_along_axis(log_softmax, labels[..., None], axis=-1, mode="fill")[..., 0]
        return jnp.where(labels < 0, jnp.nan, -picked).astype(logits.dtype)
    return -jnp.sum(jnp.where(labels == 0, 0, labels * log_softmax), axis=-1).astype(logits.dtype)


def _window(
    op: str, inputs: Any, window_shape: Any, strides: Any, padding: Any, window_dilation: Any, ceil_mode: bool
) -> Window:
    """The window of a pool over the spatial axes of the inputs."""
    sizes = tuple(window_shape)
    spatial = inputs.shape[inputs.ndim - len(sizes) - 1 : -1]
    if len(spatial) != len(sizes):
        raise ValueError(f"automatic.{op}: inputs has shape {inputs.shape}, too few axes for window_shape={sizes}")
    return make_window(f"automatic.{op}", spatial, sizes, strides, padding, window_dilation, ceil_mode=ceil_mode)


def _reduce_window(x: jax.Array, reducer: Any, initial: Any, w: Window) -> jax.Array:
    """lax.reduce_window over the spatial axes."""
    before = x.ndim - w.rank - 1
    # XLA aborts the process where a window of one pixel crops a constant, so what crops is padded beforehand.
    if any(min(pair) < 0 for pair in w.padding):
        pads = ((0, 0),) * before + w.padding + ((0, 0),)
        x = lax.pad(x, np.array(initial, x.dtype), [(low, high, 0) for low, high in pads])
        w = w._replace(padding=((0, 0),) * w.rank)
    return lax.reduce_window(
        x,
        np.array(initial, x.dtype),
        reducer,
        window_dimensions=(1,) * before + w.window_shape + (1,),
        window_strides=(1,) * before + w.strides + (1,),
        padding=((0, 0),) * before + w.padding + ((0, 0),),
        window_dilation=(1,) * before + w.dilation + (1,),
    )


def _taps(x: jax.Array, w: Window, fill: Any) -> jax.Array:
    """(taps, *batch, *output, C): what each tap of every window reads."""
    before = x.ndim - w.rank - 1
    padded = lax.pad(x, jnp.array(fill, x.dtype), [(0, 0, 0)] * before + [(*p, 0) for p in w.padding] + [(0, 0, 0)])
    views = []
    for taps in np.ndindex(*w.window_shape):
        slices = [
            slice(t * d, t * d + (out - 1) * s + 1 if out else t * d, s)
            for t, d, out, s in zip(taps, w.dilation, w.output_shape, w.strides, strict=True)
        ]
        views.append(padded[(slice(None),) * before + tuple(slices)])
    return jnp.stack(views)


def _adaptive(reduce: Any, x: jax.Array, output_shape: Sequence[int]) -> jax.Array:
    """Divide each spatial axis into `output_shape` windows and reduce every one."""
    first = x.ndim - len(output_shape) - 1
    for axis, windows in enumerate(output_shape, start=first):
        n = x.shape[axis]
        bounds = [(o * n // windows, -(-(o + 1) * n // windows)) for o in range(windows)]
        x = jnp.stack([reduce(lax.slice_in_dim(x, a, b, axis=axis), axis=axis) for a, b in bounds], axis=axis)
    return x


def _widened(x: jax.Array) -> jax.Array:
    """Low-precision numbers as float32, for sums."""
    return x.astype(jnp.float32) if x.dtype in (jnp.bfloat16, jnp.float16) else x


def _lowest(dtype: Any) -> Any:
    """What no value of the dtype is below."""
    if dtype == jnp.bool_:
        return False
    if not jnp.issubdtype(dtype, jnp.floating):
        return jnp.iinfo(dtype).min
    return -np.inf if _has_infinity(dtype) else float(jnp.finfo(dtype).min)


def _highest(dtype: Any) -> Any:
    """What no value of the dtype is above."""
    if dtype == jnp.bool_:
        return True
    if not jnp.issubdtype(dtype, jnp.floating):
        return jnp.iinfo(dtype).max
    return np.inf if _has_infinity(dtype) else float(jnp.finfo(dtype).max)


def _has_infinity(dtype: Any) -> bool:
    """Some floating-point dtypes of eight bits and less have none."""
    return bool(np.isinf(np.array(np.inf, dtype)))
