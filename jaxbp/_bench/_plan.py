"""Which algorithms evaluate each sum of a case, and why."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _plan
from .._geometry import (
    ConvGeometry,
    PoolProblem,
    Problem,
    conv_window,
    dilated_size,
    make_window,
    operand_shapes,
    transposed_padding,
)
from .._pool_maps import max_and_winners
from ._programs import normal
from ._suite import Case

# Of a convolution its sums, of a pool its maps.
PARTS = {
    "z": "forward",
    "x": "input gradient",
    "kernel": "kernel gradient",
    "max_pool": "forward",
    "upsample_chosen": "input gradient",
    "window_sum": "forward",
    "upsample_evenly": "input gradient",
}
MAPS = {"max_pool": ("max_pool", "upsample_chosen"), "avg_pool": ("window_sum", "upsample_evenly")}
PLATFORMS = {"cpu": "CPU", "cuda": "GPU"}


def problems(case: Case, dtype: str, platform: str) -> dict[str, Problem | PoolProblem]:
    """The three sums of a convolution, "z", "x" and "kernel", or the two maps of a pool."""
    if case.pools:
        batch, *spatial, channels = case.shapes[0]
        window = make_window(case.op, spatial, *case.arguments)
        return {name: PoolProblem(name, window, batch, channels, jnp.dtype(dtype), platform) for name in MAPS[case.op]}
    g = geometry(case)
    x, kernel, *_ = case.shapes
    z = (x[0], *g.window.output_shape, kernel[-1])
    operands = {"z": (x, kernel), "x": (z, kernel), "kernel": (x, z)}
    return {out: _plan.problem_of(out, g, a, b, jnp.dtype(dtype), platform) for out, (a, b) in operands.items()}


def operands(p: Problem | PoolProblem) -> list[jax.Array]:
    """Random arrays of a problem's shapes, of as many members as there are; winners are those of a maximum."""
    rng = np.random.default_rng(0)
    if isinstance(p, PoolProblem):
        w = p.window
        shape = w.input_shape if p.out in ("max_pool", "take_winners", "window_sum") else w.output_shape
        arrays = [normal(rng, (p.batch, *shape, p.channels), p.dtype)]
        if "winners" in p.out or p.out == "upsample_chosen":
            x = normal(rng, (p.batch, *w.input_shape, p.channels), p.dtype)
            arrays.append(jax.jit(max_and_winners, static_argnums=1)(x, w)[1])
        return arrays
    members = (p.members,) if p.members > 1 else ()
    return [normal(rng, (*members, *shape), p.dtype) for shape in operand_shapes(p)]


def function_of(plan: _plan.Plan, dtype: Any) -> Callable[..., Any]:
    """A plan as a function of its operands; a sum is given in this dtype."""
    return plan.run if isinstance(plan.problem, PoolProblem) else partial(_plan.evaluate, plan, dtype=dtype)


def plan_text(cases: Iterable[Case], dtype: str) -> str:
    """The plans of some cases: each algorithm, with those inside it below it."""
    lines = ["algorithms on a CPU and on an NVIDIA GPU; on other platforms convolutions are direct"]
    for case in cases:
        lines.append(case.name)
        by_platform = {platform: problems(case, dtype, platform) for platform in PLATFORMS}
        for out in by_platform["cpu"]:
            for platform, shown in PLATFORMS.items():
                plan, name = _plan.plan(by_platform[platform][out]), PARTS[out]
                (algorithm, why), *inner = _tree(plan)
                lines.append(f"  {name:15}  {shown:3}  {plan.by:8}  {algorithm:24}  {why}")
                lines += [f"  {'':15}  {'':3}  {'':8}  {algorithm:24}  {why}" for algorithm, why in inner]
    return "\n".join(lines)


def _tree(plan: _plan.Plan, depth: int = 0) -> Iterator[tuple[str, str]]:
    """The names, each indented below the one that it is inside of, and the reasons."""
    yield "  " * depth + plan.algorithm, plan.why
    if plan.inner is not None:
        yield from _tree(plan.inner, depth + 1)


def geometry(case: Case) -> ConvGeometry:
    """What the op makes of a convolution's arguments."""
    x, kernel, *_ = case.shapes
    if case.op == "conv_transpose":
        strides, word = case.arguments
        spans = map(dilated_size, kernel, (1,) * len(strides))
        pads = tuple(transposed_padding(span, s, word) for span, s in zip(spans, strides, strict=True))
        return ConvGeometry(conv_window(case.op, x, kernel, 1, pads, strides, 1, 1))
    words = case.keywords
    groups = words.get("feature_group_count", 1)
    padding, dilation = words.get("padding", "SAME"), words.get("kernel_dilation", 1)
    return ConvGeometry(conv_window(case.op, x, kernel, words["strides"], padding, 1, dilation, groups), groups)
