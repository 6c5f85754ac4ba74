"""Every algorithm of every sum, called by itself on random geometries that it is made for: equal to the loops, bit for bit.

The direct sums are among them: they are the definition, and equal the loops as well.
"""

import ast
import importlib
import inspect
import pkgutil
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
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_random import convolutions, lower_cased

import jaxbp
import loops
from cases import CONVS, POOLS, Conv, assert_exact, integers, lax_is_right, normal
from jaxbp import _algorithms, _plan
from jaxbp._algorithms import (
    _direct,
    _fold_axis,
    _gemm,
    _im2col,
    _kn2row,
    _pack_batch,
    _pad_row,
    _per_group,
    _pools,
    _row_im2col,
    _shift_add,
    _space_to_batch,
    _subpixel,
    _swap_operands,
    _tiles,
    _toeplitz,
    _upsample,
    _valid_taps,
    _width_tiling,
    _windows,
    _winograd,
)
from jaxbp._algorithms._memory import materialize
from jaxbp._bench._programs import function_of
from jaxbp._bench._suite import CASES
from jaxbp._geometry import ConvGeometry, conv_window, transposed
from jaxbp._plan import _cpu, _cpu_kernel_grad, _cpu_winograd, _gpu, _limits, _run_on_cpu, _run_on_gpu

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


def large_window(case: Conv) -> Conv:
    """A window that may be larger than its input."""
    window = (2 * k + 1 for k in case.kernel[:-2])
    case = ungrouped(case._replace(kernel=(*window, *case.kernel[-2:])))
    return case._replace(arguments=case.arguments | dict(padding="SAME"))


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


def dilated(case: Conv) -> Conv:
    """One group, stride 1, perhaps dilated."""
    case = one_group(case)
    return case._replace(arguments=case.arguments | dict(strides=1))


def backward(form: Callable) -> Callable:
    """A forward algorithm that evaluates the input's gradient by itself."""
    return lambda delta, kernel, g: form(delta, kernel, g._replace(window=transposed(g.window)), back=True)


class Form(NamedTuple):
    """An algorithm, the map that it evaluates, the geometries it takes, and how it is called on (a, b, g)."""

    function: Callable
    map: str
    fit: Callable[[Conv], Conv]
    call: Callable | None = None


FORMS = [
    Form(_direct.forward, "forward", anything),
    Form(_direct.input_grad, "input", anything),
    Form(_direct.kernel_grad, "kernel", anything),
    Form(_direct.kernel_grad_by_dimension_numbers, "kernel", anything),
    Form(_gemm.forward, "forward", non_overlapping),
    Form(_gemm.transposed, "input", non_overlapping),
    Form(_gemm.kernel_grad, "kernel", non_overlapping),
    Form(_shift_add.forward, "forward", without_zeros),
    Form(_shift_add.kernel_grad, "kernel", without_zeros),
    Form(_shift_add.reductions, "kernel", depthwise),
    Form(_kn2row.forward, "forward", along_axes),
    Form(_kn2row.forward, "input", along_axes, backward(_kn2row.forward)),
    Form(_run_on_cpu._kn2row_in_tiles, "forward", along_axes),
    Form(_run_on_cpu._kn2row_in_tiles, "input", along_axes, backward(_run_on_cpu._kn2row_in_tiles)),
    Form(_im2col.forward, "forward", one_group),
    Form(_im2col.kernel_grad, "kernel", one_group),
    Form(_row_im2col.kernel_grad, "kernel", one_group),
    Form(
        _per_group.grouped_kernel_grad,
        "kernel",
        without_zeros,
        lambda x, d, g: _per_group.grouped_kernel_grad(x, d, g, 1),
    ),
    Form(
        _per_group.grouped_kernel_grad,
        "kernel",
        without_zeros,
        lambda x, d, g: _per_group.grouped_kernel_grad(x, d, g, g.feature_group_count),
    ),
    Form(_winograd.forward, "forward", threes),
    Form(_winograd.forward, "input", threes, backward(_winograd.forward)),
    Form(_winograd.kernel_grad, "kernel", threes),
    Form(_swap_operands.forward, "forward", ungrouped),
    Form(_swap_operands.forward, "input", ungrouped, backward(_swap_operands.forward)),
    Form(_pad_row.forward, "forward", along_axes),
    Form(_valid_taps.forward, "forward", one_group),
    Form(_valid_taps.forward, "input", dilated, backward(_valid_taps.forward)),
    Form(_valid_taps.kernel_grad, "kernel", one_group),
    Form(
        _space_to_batch.forward,
        "forward",
        dilated,
        lambda x, k, g: _space_to_batch.forward(x, k, g, _direct.forward),
    ),
    Form(
        _space_to_batch.kernel_grad,
        "kernel",
        dilated,
        lambda x, d, g: _space_to_batch.kernel_grad(x, d, g, _direct.kernel_grad),
    ),
    Form(_pack_batch.forward, "forward", more_axes),
    Form(_toeplitz.forward, "forward", one_group),
    Form(
        _width_tiling.forward,
        "forward",
        one_group,
        lambda x, k, g: _width_tiling.forward(x, k, g, _im2col.forward),
    ),
    Form(
        _width_tiling.kernel_grad,
        "kernel",
        one_group,
        lambda x, d, g: _width_tiling.kernel_grad(x, d, g, _row_im2col.kernel_grad),
    ),
    Form(
        _width_tiling.kernel_grad,
        "kernel",
        one_group,
        lambda x, d, g: _width_tiling.kernel_grad(x, d, g, _im2col.kernel_grad),
    ),
    Form(
        _subpixel.forward,
        "forward",
        without_wide_steps,
        lambda x, k, g: _subpixel.forward(x, k, g, _direct.forward, _tiles.map_images),
    ),
    Form(
        _fold_axis.forward,
        "forward",
        more_axes,
        lambda x, k, g: _fold_axis.forward(x, k, g, _direct.forward, _windows.concat_views),
    ),
    Form(
        _fold_axis.kernel_grad,
        "kernel",
        more_axes,
        lambda x, d, g: _fold_axis.kernel_grad(x, d, g, _direct.kernel_grad, _windows.concat_views_by_axis),
    ),
    Form(
        _per_group.per_group,
        "forward",
        anything,
        lambda x, k, g: _per_group.per_group(_direct.forward, x, k, g),
    ),
    Form(
        _per_group.per_group,
        "kernel",
        anything,
        lambda x, d, g: _per_group.per_group(_direct.kernel_grad, x, d, g),
    ),
    Form(_run_on_cpu._per_image, "forward", anything),
    Form(_run_on_cpu.forward, "forward", anything),
    Form(_run_on_cpu.input_grad, "input", anything),
    Form(_run_on_cpu.kernel_grad, "kernel", anything),
    Form(_run_on_gpu.forward, "forward", anything),
    Form(_run_on_gpu.input_grad, "input", anything),
    Form(_run_on_gpu.kernel_grad, "kernel", anything),
]


# The algorithms that work tile by tile.
TILED = (
    _run_on_cpu._kn2row_in_tiles,
    _im2col.kernel_grad,
    _row_im2col.kernel_grad,
    _winograd.forward,
    _winograd.kernel_grad,
    _valid_taps.forward,
    _valid_taps.kernel_grad,
    _pack_batch.forward,
    _subpixel.forward,
    _run_on_cpu._per_image,
)


def name_of(form: Form) -> str:
    return f"{form.function.__module__.rsplit('.', 1)[-1]}.{form.function.__name__}"


def check(form: Form, case: Conv) -> None:
    """The algorithm's result equals that of the loops."""
    arguments = lower_cased(dict(padding="SAME", strides=1, input_dilation=1, kernel_dilation=1) | case.arguments)
    x, kernel = integers(1, case.x), integers(2, case.kernel)
    window = conv_window(
        "test", x.shape, kernel.shape, arguments["strides"], arguments["padding"], arguments["input_dilation"],
        arguments["kernel_dilation"], arguments.get("feature_group_count", 1),
    )  # fmt: skip
    g = ConvGeometry(window, arguments.get("feature_group_count", 1))
    z = loops.conv(x, kernel, **arguments)
    delta = integers(3, z.shape)
    dx, dkernel, _ = loops.conv(x, kernel, delta=delta, **arguments)
    operands, expected = {
        "forward": ((x, kernel), z),
        "input": ((delta, kernel), dx),
        "kernel": ((x, delta), dkernel),
    }[form.map]
    call = form.call or form.function
    assert_exact(jax.jit(lambda a, b: call(a, b, g))(*operands), expected)


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


@pytest.mark.parametrize("form", FORMS, ids=name_of)
@settings(max_examples=max(6, settings.default.max_examples // 3))
@given(case=convolutions())
def test_algorithm_equals_loops(form, case):
    case = form.fit(case)
    assume(fits(case))
    check(form, case)


@pytest.mark.parametrize(
    "form",
    [f for f in FORMS if f.function in TILED],
    ids=name_of,
)
@pytest.mark.parametrize("elements", [1, 1 << 10])
@settings(max_examples=8)
@given(case=convolutions())
def test_tiles_of_every_size(form, elements, case):
    """One row of one image at a time, some rows, some images."""
    case = form.fit(case)
    assume(fits(case))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tiles, "TILE_ELEMENTS", elements)
        for module in (_cpu, _cpu_kernel_grad, _limits):
            patch.setattr(module, "MOST_OUTPUTS", elements)
        check(form, case)


@pytest.mark.parametrize(
    ("function", "map"),
    [(_run_on_cpu.forward, "forward"), (_run_on_cpu.input_grad, "input"), (_run_on_cpu.kernel_grad, "kernel")],
    ids=["forward", "input", "kernel"],
)
@settings(max_examples=12)
@given(case=convolutions())
def test_products_of_one_image_at_a_time(function, map, case):
    case = non_overlapping(case)
    assume(fits(case))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tiles, "TILE_ELEMENTS", 1)
        patch.setattr(_run_on_cpu, "MOST_MATERIALIZED", 1)
        check(Form(function, map, non_overlapping), case)


@pytest.mark.parametrize("form", [f for f in FORMS if f.function.__module__.endswith("_shift_add")], ids=name_of)
@pytest.mark.parametrize(("terms", "elements"), [(1, 1), (4, 1 << 20)], ids=["one by one", "some"])
@settings(max_examples=10)
@given(case=convolutions())
def test_some_rows_of_a_window(form, terms, elements, case):
    """Random windows are small: the loops over the rows of a large one, and over images, for windows of any size."""
    case = form.fit(case)
    assume(fits(case))
    with pytest.MonkeyPatch.context() as patch:
        for module in (_tiles, _shift_add):
            patch.setattr(module, "TILE_ELEMENTS", elements)
        for limit in ("TERMS_AT_ONCE", "TERMS_IN_PASS", "TAPS_AT_ONCE"):
            patch.setattr(_shift_add, limit, terms)
        check(form, case)


@pytest.mark.parametrize("name", ["windows wholly in padding", "many channels, windows wholly in padding"])
@pytest.mark.parametrize("form", FORMS[:3], ids=name_of)
def test_direct_where_the_compiler_would_read_outside(form, name):
    """Cropping and padding at once is cropped first: see `lax_is_right`."""
    check(form, CONVS[name])


def test_every_algorithm_is_tested():
    """The public functions of all modules that hold algorithms, or choose between them."""
    helpers = {
        "_cpu": {"forward_form", "input_grad_form", "steps_over_zeros", "tile_factor"},
        "_cpu_kernel_grad": {"kernel_grad_form"},
        "_limits": {
            *("non_overlapping", "as_patches", "is_short_sum", "kernel_grad_over_zeros"),
            *("gathers_much", "has_few_positions", "valid_taps_or_winograd", "suits_shift_add"),
        },
        "_cpu_winograd": {"forward_winograd", "kernel_grad_winograd", "features_in_chunk"},
        "_gpu": {"forward_form", "input_grad_form", "kernel_grad_form"},
        "_direct": {"rot180", "swap_channels", "backward_kernel"},
        "_tiles": {
            *("chunk", "tile", "images_at_once", "largest_divisor"),
            *("map_tiles", "map_images", "map_concat", "some_images", "sum_tiles", "sum_images"),
        },
        "_gemm": {"over_positions", "read_across"},
        "_valid_taps": {"valid_share"},
        "_winograd": {"cache_tiles", "tile_counts"},
        "_space_to_batch": {"phase_geometry"},
        "_subpixel": {"block_window"},
        "_width_tiling": {"tile_width", "tiled"},
        "_pack_batch": {"packed_images", "tasks"},
    }
    tested = {name_of(form) for form in FORMS}
    for package in (_algorithms, _plan):
        for module in pkgutil.iter_modules(package.__path__):
            if module.name in ("_windows", "_upsample", "_pools", "_memory"):
                continue
            whole_name = f"{package.__name__}.{module.name}"
            for name, value in vars(importlib.import_module(whole_name)).items():
                own = inspect.isfunction(value) and value.__module__ == whole_name
                if own and not name.startswith("_") and name not in helpers.get(module.name, ()):
                    assert f"{module.name}.{name}" in tested


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
        return _run_on_cpu.kernel_grad(x, delta, ConvGeometry(window, 1))

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


def strings(node, kind):
    """The names in `return "name", reason` (also under a condition), or in `case "name":`."""
    if kind == "returned":
        values = [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and isinstance(n.value, ast.Tuple)]
        return {v.elts[0].value for v in values if isinstance(v.elts[0], ast.Constant)}
    return {
        n.pattern.value.value for n in ast.walk(node) if isinstance(n, ast.match_case) and hasattr(n.pattern, "value")
    }


def functions_of(module):
    """A module's functions, as they are written."""
    return {n.name: n for n in ast.parse(Path(module.__file__).read_text()).body if isinstance(n, ast.FunctionDef)}


def names_of(choice, module=_cpu):
    """The names that a choice returns, by itself or by the functions that choose for it."""
    functions = functions_of(module) | functions_of(_cpu_winograd) | functions_of(_limits)
    if module is _cpu:
        functions |= functions_of(_cpu_kernel_grad)
    names, ahead, seen = set(), [choice], set()
    while ahead:
        function = functions[ahead.pop()]
        seen.add(function.name)
        names |= strings(function, "returned")
        called = {n.func.id for n in ast.walk(function) if isinstance(n, ast.Call) and hasattr(n.func, "id")}
        ahead += [f for f in (called & functions.keys()) - seen if "Choice" in ast.unparse(functions[f].returns)]
    return names


@pytest.mark.parametrize(("choices", "evaluations"), [(_cpu, _run_on_cpu), (_gpu, _run_on_gpu)], ids=["cpu", "gpu"])
@pytest.mark.parametrize(("choice", "evaluation"), [("forward_form", "forward"), ("kernel_grad_form", "kernel_grad")])
def test_every_name_that_is_chosen_is_evaluated(choices, evaluations, choice, evaluation):
    """A misspelt name would quietly be the direct sum."""
    evaluated = strings(functions_of(evaluations)[evaluation], "evaluated")
    assert names_of(choice, choices) - {"direct"} == evaluated


@pytest.mark.parametrize("features", [257, 300, 512, 514, 521, 1000, 1024])
def test_large_weights_are_taken_in_few_chunks(features):
    """Features that do not divide are not taken one by one, in as many passes over the input."""
    g = ConvGeometry(conv_window("test", (2, 28, 28, 512), (3, 3, 512, features), 1, "SAME", 1, 1, 1), 1)
    for choice in (_cpu.forward_form, _cpu.input_grad_form, _cpu_kernel_grad.kernel_grad_form):
        name, _ = choice(g, 2, 512, features)
        inputs, outputs = (features, 512) if choice is _cpu.input_grad_form else (512, features)
        if name == "winograd in chunks":
            count = outputs // _cpu_winograd.features_in_chunk(inputs, outputs)
            assert count * _cpu_winograd.MOST_WEIGHTS <= 4 * inputs * outputs


def geometry_of(case):
    """The geometry of a random convolution."""
    arguments = lower_cased(case.arguments)
    window = conv_window(
        "test", case.x, case.kernel, arguments["strides"], arguments["padding"], arguments["input_dilation"],
        arguments["kernel_dilation"], arguments["feature_group_count"],
    )  # fmt: skip
    return ConvGeometry(window, arguments["feature_group_count"])


@settings(max_examples=2500, derandomize=True)
@given(st.data())
def draw_names(seen, data):
    """Collect the algorithms that the choices name for a random geometry."""
    case = data.draw(convolutions(common_only=data.draw(st.sampled_from([False, False, True]))))
    case = data.draw(st.sampled_from([anything, anything, large_window]))(case)
    assume(fits(case))
    g = geometry_of(case)
    sizes = data.draw(st.sampled_from([case.x[0], 64, 1 << 12])), case.x[-1], case.kernel[-1]
    with pytest.MonkeyPatch.context() as patch:
        # What is too large for the cache is too large for a test.
        most_outputs = data.draw(st.sampled_from([_cpu.MOST_OUTPUTS, 64]))
        for module in (_cpu, _cpu_kernel_grad, _limits):
            patch.setattr(module, "MOST_OUTPUTS", most_outputs)
            patch.setattr(module, "OLD_COMPILER", True)
        patch.setattr(_limits, "MOST_GATHERED", data.draw(st.sampled_from([_limits.MOST_GATHERED, 64])))
        patch.setattr(_cpu_winograd, "FEWEST_WEIGHTS", 32 * 32)
        patch.setattr(_cpu, "MOST_PADDED", data.draw(st.sampled_from([_cpu.MOST_PADDED, 0])))
        patch.setattr(_cpu_winograd, "MOST_WEIGHTS", data.draw(st.sampled_from([_cpu_winograd.MOST_WEIGHTS, 1 << 10])))
        patch.setattr(_cpu_kernel_grad, "MORE_COLUMNS", data.draw(st.sampled_from([_cpu_kernel_grad.MORE_COLUMNS, 8])))
        for choice in (_cpu.forward_form, _cpu.input_grad_form):
            seen[_cpu, "forward_form"].add(choice(g, *sizes)[0])
        seen[_cpu, "kernel_grad_form"].add(_cpu_kernel_grad.kernel_grad_form(g, *sizes)[0])


@settings(max_examples=1500, derandomize=True)
@given(st.data())
def draw_gpu_names(seen, data):
    """The same for a GPU."""
    case = data.draw(convolutions(common_only=data.draw(st.booleans())))
    assume(fits(case))
    g, sizes = geometry_of(case), (case.x[0], case.x[-1], case.kernel[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_gpu, "FEW_CHANNELS", data.draw(st.sampled_from([_gpu.FEW_CHANNELS, 0])))
        patch.setattr(_gpu, "NARROW", data.draw(st.sampled_from([_gpu.NARROW, 0])))
        seen[_gpu, "forward_form"].add(_gpu.forward_form(g, *sizes)[0])
        seen[_gpu, "forward_form"].add(_gpu.input_grad_form(g, *sizes)[0])
        itemsize = data.draw(st.sampled_from([2, 4, 8]))
        seen[_gpu, "kernel_grad_form"].add(_gpu.kernel_grad_form(g, *sizes, itemsize)[0])


def test_random_geometries_reach_every_choice():
    """So that the choices are run through, here and in test_random; some need more images, or smaller limits."""
    seen = {(module, choice): set() for module in (_cpu, _gpu) for choice in ("forward_form", "kernel_grad_form")}
    draw_names(seen)
    draw_gpu_names(seen)
    for (module, choice), names in seen.items():
        assert names == names_of(choice, module) | ({"direct"} & names), choice


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


@pytest.mark.parametrize(
    ("limit", "phases", "name"),
    [
        (0, 0, "overlap, same"),
        (16, 0, "overlap, same"),
        (0, 0, "windows wholly in padding"),
        (0, 0, "window dilation, padding"),
        (16, 0, "window dilation, padding"),
        (0, 0, "3-D"),
        (16, 0, "3-D"),
        (0, 0, "ceil_mode"),
        (10**6, 0, "large window"),
        (10**6, 10**6, "large window"),
    ],
)
def test_pools_on_the_other_side_of_every_limit(monkeypatch, limit, phases, name):
    """Small windows pooled axis by axis and upsampled in a loop, large ones tap by tap and unrolled."""
    monkeypatch.setattr(_windows, "TAPS_AT_ONCE", limit)
    monkeypatch.setattr(_upsample, "WINDOWS_AT_ONCE", limit)
    monkeypatch.setattr(_upsample, "PHASES_AT_ONCE", phases)
    check_pools_anew(monkeypatch, POOLS[name])


def check_pools_anew(monkeypatch, case):
    """All pools equal loops, without their `jit`, which may remember a program from before."""
    for map_name in [name for name, value in vars(_plan).items() if hasattr(value, "__wrapped__")]:
        monkeypatch.setattr(_plan, map_name, getattr(_plan, map_name).__wrapped__)
    inputs = integers(1, case.inputs)
    test_pool.check_all_against_loops(
        case, inputs, jax.jit(lambda x: test_pool.all_pools(test_pool.jaxbp, case, x))(inputs)
    )
    test_pool.test_winners(case)


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
    check_pools_anew(monkeypatch, case._replace(inputs=(4, *case.inputs[1:])))
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
