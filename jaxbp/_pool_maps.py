"""The maps of pools as JAX primitives: maxima, sums, and what upsamples.

All but the maximum are linear in their first array. Two pairs are each the transpose of the other:

    sum of every window                        |  each delta at every pixel of its window
    the pixel that won each window             |  each delta at the pixel that won its window

Unpooling, where the last window to write wins, has a transpose that is made of these. The derivative of the maximum is
the pixel that won. So derivatives of any order are maps of this file again, which know how they are split over several
devices. `_plan` chooses the algorithms. Arrays are (*batch, *spatial, C).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from . import _plan as plan
from ._algorithms._windows import lowest, winner_dtype
from ._arguments import full_width, sum_dtype
from ._geometry import PoolProblem, Window
from ._partition import Rule, Split, on_devices, part_of_window, window_factors, window_sizes, with_halos

# What the primitives read and give: arrays over the input's pixels, or over the windows, by the `Window`'s attribute.
PIXELS, WINDOWS = "input_shape", "output_shape"
# The primitives, of which each is planned as a `PoolProblem` of its name.
MAPS: list[Primitive] = []


def max_and_winners(x: jax.Array, w: Window) -> tuple[jax.Array, jax.Array]:
    """The maximum of every window of x, and the tap that won it."""
    pooled, winners = max_p.bind(x, window=w)
    return pooled, winners


def take_winners(x: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """The input pixel that won each window."""
    return take_p.bind(x, winners, window=w)[0]


def upsample_winners(delta: jax.Array, winners: jax.Array, w: Window, chosen: bool = False) -> jax.Array:
    """Each delta at the input pixel that won its window, added where one pixel won several, 0 elsewhere.

    `chosen`: a maximum chose the winners, so that windows that chose in the same row chose the same pixel of it.
    """
    return (upsample_chosen_p if chosen else upsample_p).bind(delta, winners, window=w)[0]


def unpool_winners(values: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """Each value at the input pixel that won its window, the last one where a pixel won several, 0 elsewhere."""
    return unpool_p.bind(values, winners, window=w)[0]


def window_sum(x: jax.Array, w: Window) -> jax.Array:
    """The sum of every window, in the dtype in which sums are accumulated."""
    return sum_p.bind(x, window=w)[0]


def upsample_evenly(delta: jax.Array, w: Window) -> jax.Array:
    """Each delta at every input pixel of its window, added where windows overlap."""
    return evenly_p.bind(delta, window=w)[0]


def problem_of(name: str, a: Any, window: Window, platform: str) -> PoolProblem:
    """What there is to choose an algorithm for, given a map's first array or its shape and dtype."""
    batch = math.prod(a.shape[: len(a.shape) - window.rank - 1])
    return PoolProblem(name, window, batch, a.shape[-1], np.dtype(a.dtype), platform)


def _primitive(
    name: str, reads: Sequence[str], gives: Sequence[str], dtypes: Callable[[Any, Window], Sequence[Any]]
) -> Primitive:
    """A primitive of the map of this name in `_plan`, with a list of results."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    MAPS.append(primitive)
    is_max = name == "max_pool"

    def evaluate(*arrays: jax.Array, window: Window, platform: str = "") -> list[jax.Array]:
        first, p = arrays[0], problem_of(name, arrays[0], window, platform)
        batch = first.shape[: first.ndim - window.rank - 1]
        with full_width(arrays):
            if 0 in (*first.shape, *window.input_shape, *window.output_shape):
                nothing = (lowest(first.dtype), window.taps) if is_max else (0,)
                avals = abstract(*map(jax.typeof, arrays), window=window)
                return [jnp.full(aval.shape, fill, aval.dtype) for aval, fill in zip(avals, nothing, strict=True)]
            results = plan.plan(p).run(*(a.reshape(p.batch, *a.shape[len(batch) :]) for a in arrays))
            return [y.reshape(*batch, *y.shape[1:]) for y in (results if is_max else [results])]

    @functools.lru_cache(maxsize=4096)
    def compiled(window: Window) -> Callable[..., Any]:
        return jax.jit(functools.partial(primitive.bind, window=window))

    def abstract(*avals: Any, window: Window) -> list[Any]:
        batch = avals[0].shape[: avals[0].ndim - window.rank - 1]
        shapes = [(*batch, *getattr(window, one), avals[0].shape[-1]) for one in gives]
        sharding = NamedSharding(avals[0].sharding.mesh, PartitionSpec(*[None] * len(shapes[0])))
        kinds = dtypes(avals[0].dtype, window)
        return [
            avals[0].update(shape=shape, dtype=jnp.dtype(dtype), weak_type=False, sharding=sharding)
            for shape, dtype in zip(shapes, kinds, strict=True)
        ]

    def batched(arrays: Sequence[Any], axes: Sequence[Any], *, window: Window) -> Any:
        size = next(a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None)
        moved = [
            jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
            for a, axis in zip(arrays, axes, strict=True)
        ]
        return primitive.bind(*moved, window=window), [0] * len(gives)

    def rule(*avals: Any, window: Window) -> Rule:
        before = avals[0].ndim - window.rank - 1
        batch = tuple((f"n{axis}",) for axis in range(before))
        inputs, outputs = window_factors(window)
        axes = {PIXELS: (*batch, *inputs, ("c",)), WINDOWS: (*batch, *outputs, ("c",))}
        sizes = {f"n{axis}": avals[0].shape[axis] for axis in range(before)} | {"c": avals[0].shape[-1]}
        work = math.prod((*sizes.values(), *window.output_shape, window.taps))
        operands, results = (tuple(axes[one] for one in ones) for ones in (reads, gives))
        return Rule(operands, results, sizes | window_sizes(window), work)

    def part(window: Window, platform: str) -> Callable[..., list[jax.Array]]:
        return plan.as_now(functools.partial(evaluate_part, window, platform))

    def evaluate_part(window: Window, platform: str, split: Split, *arrays: jax.Array) -> list[jax.Array]:
        upsamples = reads[0] == WINDOWS
        own, halos = part_of_window(window, split, of_output=upsamples)
        first = arrays[0].ndim - window.rank - 1
        # Beyond the ends there is nothing to win, and nobody wins.
        fills = [lowest(arrays[0].dtype) if is_max else 0, window.taps]
        if upsamples and len(arrays) > 1 and jnp.iinfo(arrays[1].dtype).max < window.taps:
            # The caller's own winners, whose dtype does not hold "nobody".
            arrays = (arrays[0], arrays[1].astype(jnp.int32))
        arrays = tuple(
            with_halos(a, first, halos, split, fill) if (one == WINDOWS) == upsamples else a
            for a, one, fill in zip(arrays, reads, fills, strict=False)
        )
        results = evaluate(*arrays, window=own, platform=platform)
        if is_max:
            results[1] = _on_the_input(results[1], window, split, first)
        return results

    primitive.def_impl(lambda *arrays, window: compiled(window)(*arrays))
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batched
    for platform in (None, *plan.TABLES):
        whole, of_device = (functools.partial(f, platform=platform or "") for f in (evaluate, part))
        lowering = on_devices(whole, of_device, rule, remainder=evaluate, results=len(gives))
        mlir.register_lowering(primitive, lowering, platform=platform)
    return primitive


def _linear(primitive: Primitive, transpose: Callable[..., jax.Array]) -> None:
    """The derivative of a map that is linear in its first array; `transpose(delta, *others, w)` is its transpose."""

    def derivative(primals: Sequence[Any], tangents: Sequence[Any], *, window: Window) -> Any:
        y = primitive.bind(*primals, window=window)
        if type(tangents[0]) is ad.Zero:
            return y, [ad.Zero(jax.typeof(one).to_tangent_aval()) for one in y]
        return y, primitive.bind(tangents[0], *primals[1:], window=window)

    def transposed(deltas: Sequence[Any], a: Any, *others: Any, window: Window) -> list[Any]:
        zero = type(deltas[0]) is ad.Zero
        gradient = ad.Zero(a.aval) if zero else transpose(deltas[0], *others, window).astype(a.aval.dtype)
        return [gradient, *(None for _ in others)]

    def series(primals: Sequence[Any], series: Sequence[Any], *, window: Window) -> Any:
        y = primitive.bind(*primals, window=window)
        terms = [primitive.bind(term, *primals[1:], window=window)[0] for term in series[0]]
        return y, [terms]

    ad.primitive_jvps[primitive] = derivative
    ad.primitive_transposes[primitive] = transposed
    jet.jet_rules[primitive] = series


def _derivative_of_max(primals: Sequence[Any], tangents: Sequence[Any], *, window: Window) -> Any:
    """The tangent of the pixel that won."""
    y, winners = max_p.bind(*primals, window=window)
    nothing = ad.Zero(jax.typeof(winners).to_tangent_aval())
    if type(tangents[0]) is ad.Zero:
        return [y, winners], [ad.Zero(jax.typeof(y).to_tangent_aval()), nothing]
    return [y, winners], [take_winners(tangents[0], winners, window), nothing]


def _series_of_max(primals: Sequence[Any], series: Sequence[Any], *, window: Window) -> Any:
    """The Taylor coefficients of the pixel that won; winners do not change."""
    y, winners = max_p.bind(*primals, window=window)
    terms = [take_winners(term, winners, window) for term in series[0]]
    return [y, winners], [terms, [jnp.zeros_like(winners) for _ in terms]]


def _on_the_input(winners: jax.Array, w: Window, split: Split, first: int) -> jax.Array:
    """Winners of a device's part, where a pixel beyond the input's ends won: the first tap on the input instead.

    Beyond its ends there is the lowest value, so all of such a window's pixels are equal.
    """
    taps = winners.astype(jnp.int32)
    nobody = taps == w.taps
    for axis in range(w.rank):
        count = split.count(f"s{axis}")
        if count == 1:
            continue
        inner, size = math.prod(w.window_shape[axis + 1 :]), w.window_shape[axis]
        outputs = winners.shape[first + axis]
        window = lax.axis_index(split.over[f"s{axis}"]) * outputs + jnp.arange(outputs, dtype=jnp.int32)
        start = (window * w.strides[axis] - w.padding[axis][0]).reshape(
            [-1 if one == first + axis else 1 for one in range(winners.ndim)]
        )
        tap = taps // inner % size
        pixel = start + tap * w.dilation[axis]
        first_tap = jnp.maximum(0, -(start // w.dilation[axis]))
        beyond = (pixel < 0) | (pixel >= w.input_shape[axis])
        taps = jnp.where(beyond, taps + (first_tap - tap) * inner, taps)
        nobody |= (first_tap >= size) | (start + first_tap * w.dilation[axis] >= w.input_shape[axis])
    return jnp.where(nobody, w.taps, taps).astype(winners.dtype)


def transpose_of_unpool(delta: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """Each window reads delta where it wrote, unless a later window wrote over it."""
    window = jnp.arange(1, winners.size + 1, dtype=jnp.int32).reshape(winners.shape)
    wrote = take_winners(unpool_winners(window, winners, w), winners, w) == window
    return jnp.where(wrote, take_winners(delta, winners, w), 0)


def _alike(dtype: Any, w: Window) -> Sequence[Any]:
    """The dtype of the first array."""
    return (dtype,)


def _of_sums(dtype: Any, w: Window) -> Sequence[Any]:
    """The dtype in which sums are accumulated."""
    return (sum_dtype(dtype),)


def _of_max(dtype: Any, w: Window) -> Sequence[Any]:
    """The dtype of the maxima, and that of the winners."""
    return (dtype, winner_dtype(w.taps))


max_p = _primitive("max_pool", [PIXELS], [WINDOWS, WINDOWS], _of_max)
take_p = _primitive("take_winners", [PIXELS, WINDOWS], [WINDOWS], _alike)
upsample_p = _primitive("upsample_winners", [WINDOWS, WINDOWS], [PIXELS], _alike)
upsample_chosen_p = _primitive("upsample_chosen", [WINDOWS, WINDOWS], [PIXELS], _alike)
unpool_p = _primitive("unpool_winners", [WINDOWS, WINDOWS], [PIXELS], _alike)
sum_p = _primitive("window_sum", [PIXELS], [WINDOWS], _of_sums)
evenly_p = _primitive("upsample_evenly", [WINDOWS], [PIXELS], _alike)

ad.primitive_jvps[max_p] = _derivative_of_max
jet.jet_rules[max_p] = _series_of_max
_linear(take_p, upsample_winners)
_linear(upsample_p, take_winners)
_linear(upsample_chosen_p, take_winners)
_linear(unpool_p, transpose_of_unpool)
_linear(sum_p, upsample_evenly)
_linear(evenly_p, window_sum)
