"""Every algorithm of every sum, called by itself on random geometries that it is made for: equal to the loops, bit for bit.

The direct sums are among them: they are the definition, and equal the loops as well.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import test_pool
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st
from test_random import convolutions, lower_cased

import jaxbp
import loops
from cases import CONVS, POOLS, Conv, assert_exact, integers, lax_is_right, normal
from jaxbp import _plan, _sums
from jaxbp._algorithms import (
    _direct,
    _gemm,
    _kn2row,
    _pools,
    _shift_add,
    _tiles,
    _upsample,
    _windows,
)
from jaxbp._algorithms._memory import materialize
from jaxbp._bench._programs import function_of
from jaxbp._bench._suite import CASES
from jaxbp._geometry import ConvGeometry, conv_window
from jaxbp._plan._row import Row, always

# ------------------------------------------------------------------ geometries that an algorithm is made for


def anything(case: Conv) -> Conv:
    return case


def without_zeros(case: Conv) -> Conv:
    """At least one spatial axis, and no zeros between the input's pixels."""
    assume(len(case.kernel) > 2)
    return case._replace(arguments=case.arguments | dict(input_dilation=1))


def ungrouped(case: Conv) -> Conv:
    """A single group."""
    kernel = (*case.kernel[:-2], case.x[-1], case.kernel[-1])
    return case._replace(kernel=kernel, arguments=case.arguments | dict(feature_group_count=1))


def along_axes(case: Conv) -> Conv:
    """A single group, at least one spatial axis."""
    assume(len(case.kernel) > 2)
    return ungrouped(case)


def one_group(case: Conv) -> Conv:
    """A single group, and no zeros."""
    return ungrouped(without_zeros(case))


def depthwise(case: Conv) -> Conv:
    """A group for every channel, and no zeros."""
    channels = case.x[-1]
    kernel = (*case.kernel[:-2], 1, channels * (1 + case.kernel[-1] % 2))
    return without_zeros(case)._replace(
        kernel=kernel, arguments=case.arguments | dict(input_dilation=1, feature_group_count=channels)
    )


def non_overlapping(case: Conv) -> Conv:
    """Windows that do not overlap: blocks, or single pixels."""
    case = one_group(case)
    rank = len(case.kernel) - 2
    if sum(case.x) % 2:
        return case._replace(kernel=(*(1,) * rank, *case.kernel[-2:]))
    return case._replace(arguments=case.arguments | dict(strides=case.kernel[:rank], kernel_dilation=1))


def without_wide_steps(case: Conv) -> Conv:
    """No strides where there are zeros between the input's pixels."""
    rank = len(case.kernel) - 2
    pairs = zip(
        loops.per_axis(case.arguments["strides"], rank),
        loops.per_axis(case.arguments["input_dilation"], rank),
        strict=True,
    )
    return case._replace(arguments=case.arguments | dict(strides=tuple(s if d == 1 else 1 for s, d in pairs)))


def more_axes(case: Conv) -> Conv:
    """One group and a first axis to fold."""
    assume(len(case.kernel) >= 4)
    return one_group(case)


def threes(case: Conv) -> Conv:
    """One axis or two, windows of 3 at stride 1, one group, no zeros."""
    rank = len(case.kernel) - 2
    assume(rank in (1, 2))
    case = one_group(case)
    kernel = (*(3,) * rank, *case.kernel[-2:])
    return case._replace(kernel=kernel, arguments=case.arguments | dict(strides=1, kernel_dilation=1))


def without_strides(case: Conv) -> Conv:
    """Windows that step over no pixels."""
    assume(len(case.kernel) > 2)
    return case._replace(arguments=case.arguments | dict(strides=1))


def dilated(case: Conv) -> Conv:
    """One group, stride 1, perhaps dilated."""
    case = one_group(case)
    return case._replace(arguments=case.arguments | dict(strides=1))


class Form(NamedTuple):
    """An algorithm, the sum that it evaluates, and the geometries it takes."""

    algorithm: str
    out: str
    fit: Callable[[Conv], Conv]
    platform: str = "cpu"


SLIDING = {
    "direct": anything,
    "gemm": non_overlapping,
    "im2col": one_group,
    "kn2row": along_axes,
    "valid_taps": one_group,
    "width_tiling > im2col": one_group,
    "width_tiling > direct": one_group,
    "subpixel": without_wide_steps,
    "winograd": threes,
    "shift_add": without_zeros,
    "per_group": anything,
    "fold_axis": more_axes,
}
KERNEL_GRADIENTS = {
    "direct": anything,
    "batch_group_count": anything,
    "gemm": non_overlapping,
    "im2col": one_group,
    "valid_taps": one_group,
    "width_tiling > im2col": one_group,
    "width_tiling > direct": one_group,
    "space_to_batch": dilated,
    "winograd": threes,
    "shift_add": depthwise,
    "per_group": anything,
    "fold_axis": more_axes,
    "swap_operands": without_strides,
}
FORMS = [
    *(Form(name, out, fit) for name, fit in SLIDING.items() for out in ("z", "x")),
    *(Form(name, "kernel", fit) for name, fit in KERNEL_GRADIENTS.items()),
    Form("shift_add", "kernel", depthwise, "cuda"),
    Form("fold_axis", "z", more_axes, "cuda"),
    Form("subpixel", "z", without_wide_steps, "cuda"),
]
# The algorithms that a precision leaves out of sums in which a kernel slides.
WITHOUT_PRECISION = {"winograd", "width_tiling"}
# The algorithms that work tile by tile.
TILED = ("kn2row", "im2col", "winograd", "valid_taps", "subpixel", "gemm")


def left_out(form: Form) -> bool:
    """Whether a precision leaves the algorithm out."""
    return not WITHOUT_PRECISION.isdisjoint(form.algorithm.split(_plan.INSIDE))


def name_of(form: Form) -> str:
    return f"{form.algorithm}-{form.out}-{form.platform}"


def transposed_case(case: Conv) -> Conv:
    """Strides and input dilation exchanged, as the gradient of x slides."""
    arguments = case.arguments
    exchanged = dict(strides=arguments.get("input_dilation", 1), input_dilation=arguments.get("strides", 1))
    return case._replace(arguments=arguments | exchanged)


def check(form: Form, case: Conv) -> None:
    """The algorithm's result equals that of the loops."""
    arguments = lower_cased(dict(padding="SAME", strides=1, input_dilation=1, kernel_dilation=1) | case.arguments)
    x, kernel = integers(1, case.x), integers(2, case.kernel)
    g = geometry_of(case)
    z = loops.conv(x, kernel, **arguments)
    delta = integers(3, z.shape)
    dx, dkernel, _ = loops.conv(x, kernel, delta=delta, **arguments)
    operands, expected = {"z": ((x, kernel), z), "x": ((delta, kernel), dx), "kernel": ((x, delta), dkernel)}[form.out]
    p = _plan.problem_of(form.out, g, operands[0].shape, operands[1].shape, np.float32, form.platform)
    if not _plan.ALGORITHMS[form.algorithm.partition(_plan.INSIDE)[0]].applies(p):
        reject()
    plan = _plan.with_algorithm(p, form.algorithm, "tested")
    assert_exact(jax.jit(plan.run)(*map(jnp.asarray, operands)), expected)


def fits(case: Conv) -> bool:
    """Whether a window fits, and XLA has no known error there (the algorithms are built on its convolutions)."""
    arguments = lower_cased(case.arguments)
    try:
        conv_window(
            "test", case.x, case.kernel, arguments["strides"], arguments["padding"], arguments["input_dilation"],
            arguments["kernel_dilation"], arguments["feature_group_count"],
        )  # fmt: skip
    except ValueError:
        return False
    return lax_is_right(case.x, case.kernel, arguments)


def fitted(form: Form, case: Conv) -> Conv:
    """A geometry that the algorithm is made for; the gradient of x slides over the transposed one."""
    backwards = form.out == "x" and form.algorithm not in ("gemm", "winograd")
    case = transposed_case(form.fit(transposed_case(case))) if backwards else form.fit(case)
    assume(fits(case))
    return case


@pytest.mark.sampled(6)
@pytest.mark.parametrize("form", FORMS, ids=name_of)
@settings(max_examples=max(6, settings.default.max_examples // 3), suppress_health_check=[HealthCheck.filter_too_much])
@given(case=convolutions())
def test_algorithm_equals_loops(form, case):
    check(form, fitted(form, case))


@pytest.mark.sampled(6)
@pytest.mark.parametrize("form", [f for f in FORMS if f.out != "kernel" and not left_out(f)], ids=name_of)
@settings(max_examples=max(6, settings.default.max_examples // 3), suppress_health_check=[HealthCheck.filter_too_much])
@given(case=convolutions(), at=st.integers(0))
def test_a_precision_keeps_an_infinity_to_its_windows(form, case, at):
    """No algorithm that applies multiplies what slides by a zero of its own, or subtracts it from itself."""
    case = fitted(form, case)
    arguments = lower_cased(dict(padding="SAME", strides=1, input_dilation=1, kernel_dilation=1) | case.arguments)
    x, kernel = np.ones(case.x, np.float32), np.ones(case.kernel, np.float32)
    z = loops.conv(x, kernel, **arguments)
    delta = np.ones(z.shape, np.float32)
    slid = delta if form.out == "x" else x
    assume(slid.size)
    slid.ravel()[at % slid.size] = np.inf
    if form.out == "z":
        operands, expected = (x, kernel), loops.conv(x, kernel, **arguments)
    else:
        dx, dkernel, _ = loops.conv(x, kernel, delta=delta, **arguments)
        operands, expected = ((delta, kernel), dx) if form.out == "x" else ((x, delta), dkernel)
    g = geometry_of(case)._replace(precision=jax.lax.Precision.HIGHEST)
    p = _plan.problem_of(form.out, g, operands[0].shape, operands[1].shape, np.float32, form.platform)
    assume(_plan.ALGORITHMS[form.algorithm].applies(p))
    plan = _plan.with_algorithm(p, form.algorithm, "tested")
    assert_exact(jax.jit(plan.run)(*map(jnp.asarray, operands)), expected)


@pytest.mark.parametrize("name", sorted(WITHOUT_PRECISION))
def test_a_precision_leaves_an_algorithm_out(name):
    case = Conv((1, 4, 4, 8), (3, 3, 8, 8) if name == "winograd" else (5, 5, 8, 8), dict(padding="SAME"))
    g = geometry_of(case)
    known = [
        _plan.problem_of("z", each, case.x, case.kernel, np.float32, "cpu")
        for each in (g, g._replace(precision="highest"))
    ]
    assert [_plan.ALGORITHMS[name].applies(p) for p in known] == [True, False]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("form", [f for f in FORMS if f.algorithm in TILED], ids=name_of)
@pytest.mark.parametrize("elements", [1, pytest.param(1 << 10, marks=pytest.mark.exhaustive)])
@settings(max_examples=8, suppress_health_check=[HealthCheck.filter_too_much])
@given(case=convolutions())
def test_tiles_of_every_size(form, elements, case):
    """One row of one image at a time, some rows, some images."""
    case = fitted(form, case)
    with pytest.MonkeyPatch.context() as patch:
        for module in (_tiles, _kn2row):
            patch.setattr(module, "TILE_ELEMENTS", elements)
        patch.setattr(_gemm, "MOST_MATERIALIZED", elements)
        check(form, case)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("form", [f for f in FORMS if f.algorithm == "shift_add"], ids=name_of)
@pytest.mark.parametrize(
    ("terms", "elements"),
    [pytest.param(1, 1, id="one by one"), pytest.param(4, 1 << 20, id="some", marks=pytest.mark.exhaustive)],
)
@settings(max_examples=10, suppress_health_check=[HealthCheck.filter_too_much])
@given(case=convolutions())
def test_some_rows_of_a_window(form, terms, elements, case):
    """Random windows are small: the loops over the rows of a large one, and over images, for windows of any size."""
    case = fitted(form, case)
    with pytest.MonkeyPatch.context() as patch:
        for module in (_tiles, _shift_add):
            patch.setattr(module, "TILE_ELEMENTS", elements)
        for limit in ("TERMS_AT_ONCE", "TERMS_IN_PASS", "TAPS_AT_ONCE"):
            patch.setattr(_shift_add, limit, terms)
        check(form, case)


@pytest.mark.parametrize("name", ["windows wholly in padding", "many channels, windows wholly in padding"])
@pytest.mark.parametrize("form", [f for f in FORMS if f.algorithm == "direct"], ids=name_of)
def test_direct_where_the_compiler_would_read_outside(form, name):
    """Cropping and padding at once is cropped first: see `lax_is_right`."""
    check(form, CONVS[name])


def test_every_algorithm_is_tested():
    tested = {form.algorithm.partition(_plan.INSIDE)[0] for form in FORMS}
    assert tested == set(_plan.ALGORITHMS)
    files = {file.stem.lstrip("_") for file in Path(_direct.__file__).parent.glob("*.py")}
    assert files - tested == {"init__", "compiler_faults", "memory", "pools", "tiles", "upsample", "windows"}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("channels, features", [(3, 256), (256, 3), (64, 64), (300, 256), (1, 1)])
@pytest.mark.parametrize("positions", [0, 1, 700, 768, 3072, 3073])
def test_sum_over_positions(positions, channels, features):
    """In either order, in halves or not."""
    x, delta = integers(1, (positions, channels)), integers(2, (positions, features))
    for product in (_gemm.over_positions, _gemm.read_across):
        assert_exact(product(jnp.asarray(x), jnp.asarray(delta), None), x.T @ delta)


@pytest.mark.parametrize("channels, features", [(64, 256), (256, 64), (256, 256)])
def test_a_kernel_gradient_reads_both_factors_along_memory(channels, features):
    """Of one that is read across, XLA:CPU makes a slower product; and it would undo an exchange if it saw one."""

    def gradient(x, delta):
        window = conv_window("test", x.shape, (1, 1, channels, features), 1, "VALID", 1, 1, 1)
        return _sums.kernel_grad(x, delta, ConvGeometry(window, 1))

    x, delta = integers(1, (3, 2, 14, 14, channels)), integers(2, (3, 2, 14, 14, features))
    products = jax.jit(gradient).lower(x[0], delta[0]).compile().as_text().split(" dot(")[1:]
    assert len(products) == 1
    assert "lhs_contracting_dims={1}, rhs_contracting_dims={0}" in products[0]
    expected = np.einsum("bnhwc,bnhwo->bco", x, delta)
    assert_exact(jax.vmap(jax.jit(gradient))(x, delta).reshape(expected.shape), expected)
    slope = jax.jit(jax.grad(lambda x: gradient(x, delta[0]).sum()))(x[0])
    assert_exact(slope, np.broadcast_to(delta[0].sum(-1, keepdims=True), x[0].shape))


def test_many_features_along_one_axis_are_not_copied():
    """For a kernel's gradient of several images: the compiler would exchange the axes of all of delta."""
    x, delta = integers(1, (16, 1024, 16)), integers(2, (16, 1024, 512))
    pull = jax.vjp(lambda kernel: jaxbp.conv(x, kernel), jnp.zeros((3, 16, 512)))[1]
    compiled = jax.jit(pull).lower(delta).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < delta.nbytes / 2
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    expected = np.stack([np.einsum("npc,npo->co", padded[:, tap : tap + 1024], delta) for tap in range(3)])
    assert_exact(compiled(delta)[0], expected)


def test_transformed_weights_are_not_kept_for_the_way_back():
    """For tiles: the compiler would find the second transform equal to the first, and keep the weights of all layers."""

    def both(x, kernel, delta):
        z, pull = jax.vjp(lambda x: jaxbp.conv(x, kernel), x)
        return z, pull(delta)

    x = integers(1, (4, 16, 16, 64))
    program = jax.jit(both).lower(x, integers(2, (3, 3, 64, 64)), x).compile().as_text()
    assert program.count(f"f32[16,{64 * 64}]{{1,0}} dot(") == 2


def geometry_of(case: Conv) -> ConvGeometry:
    """The geometry of a random convolution."""
    arguments = lower_cased(dict(padding="SAME", strides=1, input_dilation=1, kernel_dilation=1) | case.arguments)
    groups = arguments.get("feature_group_count", 1)
    window = conv_window(
        "test", case.x, case.kernel, arguments["strides"], arguments["padding"], arguments["input_dilation"],
        arguments["kernel_dilation"], groups,
    )  # fmt: skip
    return ConvGeometry(window, groups)


EXAMPLES = {
    "dense": ((9, 9, 32), (3, 3, 32, 32)),
    "dense, large": ((24, 24, 32), (3, 3, 32, 32)),
    "few inputs": ((9, 9, 3), (5, 5, 3, 32)),
    "few outputs": ((9, 9, 32), (3, 3, 32, 2)),
    "1x1": ((9, 9, 32), (1, 1, 32, 32)),
    "depthwise": ((9, 9, 32), (3, 3, 1, 32)),
    "1-D": ((60, 16), (3, 16, 16)),
    "3-D": ((6, 6, 6, 4), (3, 3, 3, 4, 4)),
}


@pytest.mark.parametrize(("x", "kernel"), EXAMPLES.values(), ids=EXAMPLES)
def test_gradients_of_examples_are_no_grouped_convolution(x, kernel):
    """What vmap makes of lax's own kernel gradient: one group for each example, which runs as if dense."""
    groups = x[-1] // kernel[-2]

    def program(convolution):
        gradient = jax.grad(lambda k, x: (convolution(x[None], k, feature_group_count=groups) ** 2).sum(), (0, 1))
        return jax.jit(jax.vmap(gradient, (None, 0))).lower(normal(1, kernel), normal(2, (4, *x)))

    assert f"group_count = {4 * groups}" in program(jaxbp.automatic.conv).as_text()
    assert "group_count=" not in program(jaxbp.conv).compile().as_text()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("x", "kernel"), EXAMPLES.values(), ids=EXAMPLES)
def test_examples_have_gradients_of_their_own(x, kernel):
    """Under one vmap and under two, jitted inside of them or not, and in a derivative of the whole."""
    groups = x[-1] // kernel[-2]
    x, kernel = integers(1, (2, 3, *x)), integers(2, kernel)

    def gradient(k, x):
        return jax.grad(lambda k: (jaxbp.conv(x[None], k, feature_group_count=groups) ** 2).sum())(k)

    alone = [[gradient(kernel, example) for example in row] for row in x]
    for mapped in (gradient, jax.jit(gradient)):
        twice = jax.vmap(jax.vmap(mapped, (None, 0)), (None, 0))
        assert_exact(jax.jit(twice)(kernel, x), np.asarray(alone))
    once = jax.vmap(gradient, (None, 0))
    slope = jax.grad(lambda k: jnp.vdot(once(k, x[0]).sum(0), kernel))(kernel)
    assert_exact(
        slope, np.asarray(sum(jax.grad(lambda k, e=e: jnp.vdot(gradient(k, e), kernel))(kernel) for e in x[0]))
    )


@pytest.mark.parametrize(
    ("x", "kernel"), [((8, 9, 9, 16), (3, 3, 16, 32)), ((4, 60, 16), (3, 16, 16))], ids=["2-D", "1-D"]
)
def test_kernel_gradients_in_a_loop_keep_the_fast_layout(x, kernel):
    """XLA:CPU changes a convolution's layout to that of its fast one only outside of loops: 9 to 46 times as slow."""

    def program(convolution):
        gradient = jax.grad(lambda k, x: (convolution(x, k) ** 2).sum())
        steps = jax.jit(lambda k, xs: jax.lax.scan(lambda k, x: (k - gradient(k, x), None), k, xs)[0])
        return steps.lower(normal(1, kernel), normal(2, (3, *x))).compile().as_text()

    fast = {2: "b01f_01io->b01f", 1: "b0f_0io->b0f"}[len(kernel) - 2]
    layouts = {text.split(",")[0].split("\n")[0] for text in program(jaxbp.conv).split("dim_labels=")[1:]}
    assert layouts == {fast}
    automatic = program(jaxbp.automatic.conv)
    assert automatic.count("dim_labels=") > automatic.count(f"dim_labels={fast}")


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "int32", "uint8"])
def test_materialize_changes_nothing(dtype):
    """Not a bit of it: zeros of both signs, infinities, NaN, the smallest and the largest numbers."""
    with jax.enable_x64(dtype == "float64"):
        finite = jnp.finfo(dtype) if "float" in dtype else jnp.iinfo(dtype)
        odd = [0.0, -0.0, 1.5, -2.5, jnp.inf, -jnp.inf, jnp.nan, finite.tiny] if "float" in dtype else [0, 1, 7, 127]
        numbers = jnp.asarray([*odd, finite.max, finite.min], dtype)
        result = jax.jit(materialize)(numbers)
        assert result.dtype == numbers.dtype
        assert np.asarray(result).tobytes() == np.asarray(numbers).tobytes()


def test_the_compiler_does_not_see_through_materialize():
    """As soon as it finds the divisor to be 1 it will repeat what should be materialized."""
    program = jax.jit(lambda x: materialize(x * 2)).lower(normal(1, (8,))).compile()
    assert "divide(" in program.as_text()


# ----------------------------------------------------------------------------------------------- windows


# Algorithms of the maps of pools, and limits: of what they do at once, and of what they unroll.
POOL_ALGORITHMS = sorted({name for known in _pools.ALGORITHMS.values() for name in known})
POOL_LIMITS = [
    ("separable", 0),
    ("gather", 0),
    ("views", 10**6),
    ("per_phase", 10**6),
    *((n, 16) for n in POOL_ALGORITHMS),
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "name",
    ["overlap, same", "windows wholly in padding", "window dilation, padding", "3-D", "ceil_mode", "large window"],
)
@pytest.mark.parametrize(("algorithm", "limit"), POOL_LIMITS)
def test_pools_by_every_algorithm(monkeypatch, algorithm, limit, name):
    """Every map for which it is an algorithm: small windows axis by axis and in loops, large ones unrolled, too."""
    for out, table in _plan._pools.TABLES.items():
        if algorithm in _pools.ALGORITHMS[out]:
            monkeypatch.setitem(_plan._pools.TABLES, out, [Row(always, algorithm, "asked for"), *table])
    monkeypatch.setattr(_windows, "MAX_TAPS", max(limit, 64))
    monkeypatch.setattr(_windows, "TAPS_AT_ONCE", limit)
    monkeypatch.setattr(_upsample, "WINDOWS_AT_ONCE", limit)
    monkeypatch.setattr(_upsample, "PHASES_AT_ONCE", max(limit, 32))
    check_pools_anew(POOLS[name])


def check_pools_anew(case):
    """All pools equal loops, with no program from before, and none left behind."""
    jax.clear_caches()
    _plan.by_table.cache_clear()
    inputs = integers(1, case.inputs)
    try:
        test_pool.check_all_against_loops(
            case, inputs, jax.jit(lambda x: test_pool.all_pools(test_pool.jaxbp, case, x))(inputs)
        )
        test_pool.test_winners(case)
    finally:
        jax.clear_caches()
        _plan.by_table.cache_clear()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", ["overlap, same", "window dilation, padding", "3-D", "large window", "ceil_mode"])
def test_pools_of_some_images_at_a_time(monkeypatch, name, images):
    parts = []

    def some_images(form, arrays, most):
        parts.append(arrays[0].shape[0] // most)
        return _tiles.some_images(form, arrays, most)

    monkeypatch.setattr(_pools, "MOST_MATERIALIZED", 1)
    monkeypatch.setattr(_pools, "images_at_once", lambda batch, pixels, times: images)
    monkeypatch.setattr(_pools, "some_images", some_images)
    case = POOLS[name]
    check_pools_anew(case._replace(inputs=(4, *case.inputs[1:])))
    assert {*parts} == {4 // images}


# ------------------------------------------------------------------------------------------ lowered for a GPU


def lowered_for_a_gpu(case, dtype):
    """Forward and all gradients of a case of the suite, as a GPU's compiler is given them."""

    def whole(arrays, delta):
        output, pull = jax.vjp(function_of(case, jaxbp), *arrays)
        return output, pull(delta)

    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in case.shapes]
    delta = jax.eval_shape(function_of(case, jaxbp), *arrays)
    return jax.export.export(jax.jit(whole), platforms=["cuda"])(arrays, delta).mlir_module()


@pytest.mark.parametrize("family", dict.fromkeys(case.family for case in CASES))
def test_a_gpu_gets_no_scatter_no_loop_and_short_numbers(family):
    """Sums of bfloat16 in cuDNN's own convolutions are float32 inside; a cast before them would double their time."""
    case = next(case for case in CASES if case.family == family)
    text = lowered_for_a_gpu(case, jnp.bfloat16)
    assert not re.search(r"stablehlo\.(\w*scatter|while)", text)
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert all("f32" not in line.split(" : ")[-1] for line in convolutions), convolutions


def test_a_gpu_gets_no_loop_over_images():
    large = next(case for case in CASES if case.name == "inception max pool 3x3/1 SAME 16x28x28x64").enlarged(64)
    assert not re.search(r"stablehlo\.(\w*scatter|while)", lowered_for_a_gpu(large, jnp.float32))


@pytest.mark.parametrize("name", ["resnet 3x3/2 8x56x56x64->128", "mobilenet depthwise 3x3/2 8x56x56x64->64"])
def test_a_gpu_recognizes_the_gradient_of_an_input(name):
    """XLA knows cuDNN's own sum by a window that is reversed last."""
    text = lowered_for_a_gpu(next(case for case in CASES if case.name == name), jnp.float32)
    reversed_kernels = re.findall(r"(%\w+) = stablehlo.reverse", text)
    dilated = [line for line in text.splitlines() if "stablehlo.convolution" in line and "lhs_dilate = [2, 2]" in line]
    operands = [re.search(r"convolution\(%\w+, (%\w+)\)", line) for line in dilated]
    assert operands and all(found and found[1] in reversed_kernels for found in operands)
