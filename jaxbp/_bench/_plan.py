"""Which algorithm evaluates each sum of a case, and why."""

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp

from .._algorithms import _upsample, _windows
from .._geometry import ConvGeometry, Window, conv_window, dilated_size, make_window, transposed_padding
from .._plan import _cpu, _cpu_kernel_grad, _gpu
from ._suite import Case


class Step(NamedTuple):
    """The algorithm of a map on a platform, and why."""

    map: str
    platform: str
    algorithm: str
    reason: str


def plan(case: Case, dtype: str) -> list[Step]:
    """The algorithm of each map of a convolution or a pool, on a CPU and on an NVIDIA GPU."""
    if case.pools:
        window, strides, padding = case.arguments
        return _pool_plan(case.op, make_window(case.op, case.shapes[0][1:-1], window, strides, padding))
    g = geometry(case)
    sizes = case.shapes[0][0], case.shapes[0][-1], case.shapes[1][-1]
    itemsize = jnp.dtype(dtype).itemsize
    return [
        Step("forward", "CPU", *_cpu.forward_form(g, *sizes)),
        Step("forward", "GPU", *_gpu.forward_form(g, *sizes)),
        Step("input gradient", "CPU", *_cpu.input_grad_form(g, *sizes)),
        Step("input gradient", "GPU", *_gpu.input_grad_form(g, *sizes)),
        Step("kernel gradient", "CPU", *_cpu_kernel_grad.kernel_grad_form(g, *sizes)),
        Step("kernel gradient", "GPU", *_gpu.kernel_grad_form(g, *sizes, itemsize)),
    ]


def _pool_plan(op: str, w: Window) -> list[Step]:
    """The algorithms of a pool's two sums."""
    if op == "max_pool":
        forward, back = _windows.max_form(w), _upsample.winners_form(w, chosen=True)
    else:
        forward, back = _windows.sum_form(w), _upsample.even_form(w)
    return [Step("forward", "any", *forward), Step("input gradient", "any", *back)]


def plan_text(cases: Iterable[Case], dtype: str) -> str:
    """The plans of some cases, as a table."""
    lines = ["algorithms on a CPU and on an NVIDIA GPU; on other platforms convolutions are direct"]
    for case in cases:
        lines.append(case.name)
        for step in plan(case, dtype):
            lines.append(f"  {step.map:15}  {step.platform:3}  {step.algorithm:24}  {step.reason}")
    return "\n".join(lines)


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
