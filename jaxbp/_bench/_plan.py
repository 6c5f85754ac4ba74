"""Which form evaluates each sum of a case, and why."""

from collections.abc import Iterable

from .._formulations import _choice, _upsample, _windows
from .._geometry import ConvGeometry, Window, conv_window, dilated_size, make_window, transposed_padding
from ._suite import Case


def plan(case: Case) -> list[tuple[str, str, str]]:
    """(map, form, reason) for each map of a convolution or a pool, on a CPU."""
    if case.pools:
        window, strides, padding = case.arguments
        return _pool_plan(case.op, make_window(case.op, case.shapes[0][1:-1], window, strides, padding))
    g = geometry(case)
    batch, channels, features = case.shapes[0][0], case.shapes[0][-1], case.shapes[1][-1]
    return [
        ("forward", *_choice.forward_form(g, batch, channels, features)),
        ("input gradient", *_choice.input_grad_form(g, batch, channels, features)),
        ("kernel gradient", *_choice.kernel_grad_form(g, batch, channels, features)),
    ]


def _pool_plan(op: str, w: Window) -> list[tuple[str, str, str]]:
    """The forms of a pool's two sums."""
    if op == "max_pool":
        return [("forward", *_windows.max_form(w)), ("input gradient", *_upsample.winners_form(w, chosen=True))]
    return [("forward", *_windows.sum_form(w)), ("input gradient", *_upsample.even_form(w))]


def plan_text(cases: Iterable[Case]) -> str:
    """The plans of some cases, as a table."""
    lines = ["forms on a CPU; on other platforms convolutions take the textbook form, and pools the form below"]
    for case in cases:
        lines.append(case.name)
        lines += [f"  {name:15}  {form:20}  {reason}" for name, form, reason in plan(case)]
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
