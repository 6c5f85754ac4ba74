"""Which algorithms evaluate each sum of a case, and why."""

from collections.abc import Iterable, Iterator

import jax.numpy as jnp

from .. import _plan
from .._algorithms import _upsample, _windows
from .._geometry import ConvGeometry, Problem, Window, conv_window, dilated_size, make_window, transposed_padding
from ._suite import Case

SUMS = {"z": "forward", "x": "input gradient", "kernel": "kernel gradient"}
PLATFORMS = {"cpu": "CPU", "cuda": "GPU"}


def problems(case: Case, dtype: str, platform: str) -> dict[str, Problem]:
    """The three sums of a convolution: "z", "x" and "kernel"."""
    g = geometry(case)
    x, kernel, *_ = case.shapes
    z = (x[0], *g.window.output_shape, kernel[-1])
    operands = {"z": (x, kernel), "x": (z, kernel), "kernel": (x, z)}
    return {out: _plan.problem_of(out, g, a, b, jnp.dtype(dtype), platform) for out, (a, b) in operands.items()}


def plan_text(cases: Iterable[Case], dtype: str) -> str:
    """The plans of some cases: each algorithm, with those inside it below it."""
    lines = ["algorithms on a CPU and on an NVIDIA GPU; on other platforms convolutions are direct"]
    for case in cases:
        lines.append(case.name)
        if case.pools:
            lines += [
                f"  {name:15}  any  {'table':8}  {algorithm:24}  {why}" for name, algorithm, why in _pool_plan(case)
            ]
            continue
        by_platform = {platform: problems(case, dtype, platform) for platform in PLATFORMS}
        for out, name in SUMS.items():
            for platform, shown in PLATFORMS.items():
                plan = _plan.plan(by_platform[platform][out])
                (algorithm, why), *inner = _tree(plan)
                lines.append(f"  {name:15}  {shown:3}  {plan.by:8}  {algorithm:24}  {why}")
                lines += [f"  {'':15}  {'':3}  {'':8}  {algorithm:24}  {why}" for algorithm, why in inner]
    return "\n".join(lines)


def _tree(plan: _plan.Plan, depth: int = 0) -> Iterator[tuple[str, str]]:
    """The names, each indented below the one that it is inside of, and the reasons."""
    yield "  " * depth + plan.algorithm, plan.why
    if plan.inner is not None:
        yield from _tree(plan.inner, depth + 1)


def _pool_plan(case: Case) -> list[tuple[str, str, str]]:
    """The algorithms of a pool's two sums, and why."""
    size, strides, padding = case.arguments
    w: Window = make_window(case.op, case.shapes[0][1:-1], size, strides, padding)
    if case.op == "max_pool":
        forward, back = _windows.max_form(w), _upsample.winners_form(w, chosen=True)
    else:
        forward, back = _windows.sum_form(w), _upsample.even_form(w)
    return [("forward", *forward), ("input gradient", *back)]


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
