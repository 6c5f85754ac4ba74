"""Tuning: which sums a program has, who wins, what is kept. Clocks are made up: no test depends on a real one."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxbp
from jaxbp import __main__ as command_line
from jaxbp import _plan
from jaxbp import _tune as tune_package
from jaxbp._bench import _measure
from jaxbp._bench._plan import problems
from jaxbp._bench._suite import conv_case, pool_case
from jaxbp._geometry import PoolProblem
from jaxbp._plan import _measured
from jaxbp._plan._measured import Measured
from jaxbp._tune import _fastest
from jaxbp._tune._collect import sums_of
from jaxbp._tune._report import Report, Row, name_of

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
X, KERNEL = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 4))
LAYER = conv_case("a", "dense", X.shape, KERNEL.shape)


@pytest.fixture(autouse=True)
def nothing_in_use():
    """Each test begins and ends without plans."""
    _measured.use(None)
    yield
    _measured.use(_measured.UNSAID)


def loss(kernel, x):
    return (jaxbp.conv(x, kernel) ** 2).sum()


def outs(function, *args) -> Counter:
    """Which sums a program has: (out, batch) and how often."""
    return Counter({(p.out, p.batch): n for p, n in sums_of(function, args, "cpu").items()})


# ------------------------------------------------------------------------------------------- the sums of a program


def test_forward_alone():
    assert outs(jaxbp.conv, X, KERNEL) == {("z", 2): 1}


def test_layouts_of_lax():
    assert outs(
        lambda x, k: jaxbp.conv_general_dilated(x, k, (1, 1), "SAME"), jnp.ones((2, 3, 6, 6)), jnp.ones((4, 3, 3, 3))
    ) == {("z", 2): 1}


def test_forward_and_backward():
    assert outs(jax.grad(loss), KERNEL, X) == {("z", 2): 1, ("kernel", 2): 1}
    assert outs(jax.grad(loss, (0, 1)), KERNEL, X) == {("z", 2): 1, ("kernel", 2): 1, ("x", 2): 1}


def test_jit_remat_and_rules_of_ones_own():
    @jax.custom_vjp
    def mine(kernel, x):
        return loss(kernel, x)

    mine.defvjp(lambda kernel, x: (loss(kernel, x), (kernel, x)), lambda kept, d: jax.grad(loss, (0, 1))(*kept))
    expected = {("z", 2): 1, ("kernel", 2): 1}
    assert outs(jax.jit(jax.grad(jax.jit(loss))), KERNEL, X) == expected
    assert outs(jax.grad(jax.checkpoint(loss)), KERNEL, X) in (expected, {**expected, ("z", 2): 2})
    assert outs(mine, KERNEL, X) == {("z", 2): 1}
    assert outs(jax.grad(mine), KERNEL, X) == {("z", 2): 2, ("kernel", 2): 1, ("x", 2): 1}


def test_custom_jvp():
    @jax.custom_jvp
    def mine(x):
        return jaxbp.conv(x, KERNEL)

    mine.defjvp(lambda primals, tangents: (mine(*primals), mine(*tangents)))
    assert outs(mine, X) == {("z", 2): 1}


def test_loops_and_branches():
    def steps(kernel, x):
        return jax.lax.scan(lambda kernel, _: (kernel - jax.grad(loss)(kernel, x), None), kernel, None, 5)[0]

    assert outs(steps, KERNEL, X) == {("z", 2): 5, ("kernel", 2): 5}
    assert outs(
        lambda x: jax.lax.while_loop(lambda x: x[0, 0, 0, 0] < 9, lambda x: jaxbp.conv(x, KERNEL)[..., :3], x), X
    ) == {("z", 2): 1}
    assert outs(
        lambda yes, x: jax.lax.cond(yes, lambda x: jaxbp.conv(x, KERNEL).sum(), lambda x: x.sum(), x), True, X
    ) == {("z", 2): 1}


def test_mapped_examples_join_and_mapped_kernels_are_members():
    assert outs(jax.vmap(jaxbp.conv, (0, None)), jnp.ones((5, *X.shape)), KERNEL) == {("z", 10): 1}
    found = sums_of(jax.vmap(jaxbp.conv), (jnp.ones((5, *X.shape)), jnp.ones((5, *KERNEL.shape))), "cpu")
    assert [(p.batch, p.members) for p in found] == [(2, 5)]


def test_shard_map_has_local_shapes():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    mapped = jax.shard_map(jaxbp.conv, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
    assert outs(mapped, X, KERNEL) == {("z", 1): 1}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_arrays_on_several_devices_have_local_shapes(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    images = jax.device_put(jnp.ones((8, 6, 6, 3)), NamedSharding(mesh, PartitionSpec("data")))
    kernel = jax.device_put(KERNEL, NamedSharding(mesh, PartitionSpec()))
    pooled_loss = jax.jit(lambda kernel, x: jaxbp.max_pool(jaxbp.conv(x, kernel), (2, 2), (2, 2)).sum())
    step = jax.grad(pooled_loss)
    expected = {("z", 2): 1, ("max_pool", 2): 1, ("upsample_chosen", 2): 1, ("kernel", 2): 1}
    assert outs(step, kernel, images) == expected
    assert jax.jit(step)(kernel, images).shape == KERNEL.shape and outs(step, kernel, images) == expected


def test_what_xla_partitions_itself_has_no_plan():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    images = jax.device_put(jnp.ones((8, 6, 6, 3)), NamedSharding(mesh, PartitionSpec("data")))
    assert outs(lambda k, x: jaxbp.conv(x, k, precision="highest"), KERNEL, images) == {}


def test_forward_mode():
    with jaxbp.forward_mode():
        found = outs(lambda k, x: jax.jvp(lambda k: jaxbp.max_pool(jaxbp.conv(x, k), (2, 2)), (k,), (k,)), KERNEL, X)
    assert found == {("z", 2): 2, ("max_pool", 2): 1, ("take_winners", 2): 1}


def test_only_arrays_are_traced_and_shapes_will_do():
    def call(options, x):
        return {"z": jaxbp.conv(x["image"], options["kernel"], strides=options["strides"]), "text": options["name"]}

    shapes = {"image": jax.ShapeDtypeStruct(X.shape, X.dtype)}
    (p,) = sums_of(call, ({"kernel": KERNEL, "strides": 2, "name": "a"}, shapes), "cpu")
    assert p.geometry.window.strides == (2, 2)


def test_empty_sums_are_no_sums():
    assert outs(jaxbp.conv, X[:0], KERNEL) == {}


def pooled(x):
    return jaxbp.avg_pool(jaxbp.max_pool(x, (3, 3), (2, 2), "SAME"), (2, 2)).sum()


def test_pools_and_their_gradients():
    forward = {("max_pool", 2): 1, ("window_sum", 2): 1}
    assert outs(pooled, X) == forward
    gradient = {("upsample_chosen", 2): 1, ("upsample_evenly", 2): 1}
    assert outs(jax.jit(jax.grad(pooled)), X) == forward | gradient
    assert outs(jax.vmap(jax.grad(pooled)), jnp.ones((5, 2, 6, 6, 3)))["max_pool", 10] == 1
    assert outs(lambda x: jax.lax.scan(lambda c, _: (jax.grad(pooled)(c), None), x, length=3), X)["max_pool", 2] == 3
    assert outs(pooled, X[:0]) == {}


# --------------------------------------------------------------------------------------------------- who wins


def clock(monkeypatch, **seconds: float) -> list[str]:
    """Made-up times: of algorithms by name, 1 s for all others. Returns the names that were timed."""
    timed = []

    def interleave(programs, _):
        timed.extend(programs)
        return {name: _measure.summarize([seconds.get(name.replace(" > ", "_"), 1.0)] * 4) for name in programs}

    monkeypatch.setattr(_fastest, "interleave", interleave)
    monkeypatch.setattr(_fastest, "sample", lambda call, calls: 1.0)
    return timed


def problem(out="z", dtype="float32", case=LAYER):
    return problems(case, dtype, "cpu")[out]


def found(p) -> Measured:
    measured = _fastest.fastest(p, lambda: False)
    assert measured is not None
    return measured


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_fastest_wins(monkeypatch, dtype):
    timed = clock(monkeypatch, gemm=0.1, im2col=0.5)
    p = problem(dtype=dtype)
    table = str(_plan.by_table(p))
    assert found(p) == Measured("im2col", table, 500.0, 1000.0)
    assert {table, "direct", "im2col", "winograd"} <= set(timed) and "gemm" not in timed


def test_the_tables_choice_stays_within_the_margin(monkeypatch):
    clock(monkeypatch, im2col=1 / 1.04)
    assert found(problem()).plan == str(_plan.by_table(problem()))
    clock(monkeypatch, im2col=1 / 1.06)
    assert found(problem()).plan == "im2col"


def test_one_lucky_sample_does_not_win(monkeypatch):
    clock(monkeypatch)
    monkeypatch.setattr(
        _fastest,
        "interleave",
        lambda programs, _: {n: _measure.summarize([0.1 if n == "im2col" else 1.0, *[1.0] * 7]) for n in programs},
    )
    assert found(problem()).plan == str(_plan.by_table(problem()))


def test_a_lucky_sample_hides_no_other(monkeypatch):
    clock(monkeypatch)
    rounds = {"im2col": [0.1, *[1.0] * 7], "winograd": [0.5] * 8}
    monkeypatch.setattr(
        _fastest,
        "interleave",
        lambda programs, _: {n: _measure.summarize(rounds.get(n, [1.0] * 8)) for n in programs},
    )
    assert found(problem()).plan == "winograd"


def test_what_takes_too_much_memory_does_not_win(monkeypatch):
    clock(monkeypatch, im2col=0.5, winograd=0.6)
    compile_ = _fastest._compile

    def hungry(plan, *args):
        program = compile_(plan, *args)
        return program._replace(temporary_bytes=2**30) if str(plan) == "im2col" else program

    monkeypatch.setattr(_fastest, "_compile", hungry)
    assert found(problem()).plan == "winograd"


def damaged(monkeypatch, name, damage):
    """An algorithm whose results are damaged."""
    compile_, evaluate = _fastest._compile, _plan.evaluate

    def compile_damaged(plan, *args):
        program = compile_(plan, *args)
        return program._replace(call=lambda: damage(program.call())) if str(plan) == name else program

    monkeypatch.setattr(_fastest, "_compile", compile_damaged)
    monkeypatch.setattr(
        _plan,
        "evaluate",
        lambda plan, *args, **words: (damage if str(plan) == name else lambda z: z)(evaluate(plan, *args, **words)),
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("dtype", "out"), [("float32", "z"), ("float32", "kernel"), ("float64", "x")])
def test_what_is_inexact_does_not_win(monkeypatch, dtype, out):
    case = conv_case("a", "grouped", (2, 6, 6, 4), (3, 3, 2, 4), 1, feature_group_count=2)
    clock(monkeypatch, shift_add=0.5)
    p = problem(out, dtype, case)
    if str(_plan.by_table(p)) == "shift_add":
        monkeypatch.setattr(_plan, "by_table", lambda p: _plan.with_algorithm(p, "direct", "here"))
    assert found(p).plan == "shift_add" or out == "kernel"
    damaged(monkeypatch, "shift_add", lambda z: z * (1 + 1e-4))
    assert found(p).plan != "shift_add"


def test_an_algorithm_that_does_not_compile_is_left_out(monkeypatch):
    timed = clock(monkeypatch, winograd=0.5)
    compile_ = _fastest._compile

    def refuse(plan, *args):
        if str(plan) == "winograd":
            raise RuntimeError("out of memory")
        return compile_(plan, *args)

    monkeypatch.setattr(_fastest, "_compile", refuse)
    assert found(problem()).plan == str(_plan.by_table(problem()))
    assert "winograd" not in timed
    monkeypatch.setattr(_fastest, "_compile", lambda plan, *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        found(problem())


def test_far_ones_are_not_timed_again_and_inner_sums_have_other_algorithms(monkeypatch):
    timed = clock(monkeypatch)
    compile_ = _fastest._compile
    case = conv_case("a", "transposed", (2, 9, 9, 4), (3, 3, 4, 6), 2)
    p = problem("x", case=case)
    near = {"subpixel", str(_plan.by_table(p)).split(" > ")[0]}

    def far(plan, *args):
        return compile_(plan, *args)._replace(first=1.0 if plan.algorithm in near else 9.0)

    monkeypatch.setattr(_fastest, "_compile", far)
    found(p)
    assert {name.split(" > ")[0] for name in timed} == near
    assert len([name for name in timed if name.startswith("subpixel > ")]) >= 3


NESTED = (
    conv_case("a", "transposed", (2, 9, 9, 4), (3, 3, 4, 6), 2),
    conv_case("b", "grouped", (2, 8, 8, 4), (3, 3, 2, 6), 1, feature_group_count=2),
    conv_case("c", "dilated", (2, 9, 9, 4), (3, 3, 4, 2), 1, kernel_dilation=2),
    conv_case("d", "3-D", (1, 4, 5, 6, 2), (3, 3, 3, 2, 3)),
)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", NESTED, ids=lambda case: case.family)
def test_plans_with_other_algorithms_inside_compute_the_same(case):
    for p in problems(case, "float32", "cpu").values():
        a, b = (jnp.round(3 * x) for x in _fastest.operands(p))
        expected = _plan.evaluate(_plan.with_algorithm(p, "direct", "the definition"), a, b, p.dtype)
        for plan in _plan.candidates(p):
            for inside in _plan.candidates_inside(plan):
                found = jax.jit(lambda a, b, inside=inside, p=p: _plan.evaluate(inside, a, b, p.dtype))(a, b)
                np.testing.assert_array_equal(found, expected, err_msg=str(inside))


def test_members_are_taken_one_by_one_or_together(monkeypatch):
    timed = clock(monkeypatch, one_by_one_im2col=0.5)
    p = problem().inside(out="z", geometry=problem().geometry, members=3)
    assert found(p).plan == "one_by_one > im2col"
    assert {"im2col", "one_by_one > im2col"} <= set(timed)


POOL = pool_case("max_pool", "a", (2, 9, 9, 3), (3, 3), 2, "SAME")
AVERAGE = pool_case("avg_pool", "a", (2, 9, 9, 3), (3, 3), 1, "SAME")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "int32"])
@pytest.mark.parametrize(
    ("out", "case", "other"),
    [
        ("max_pool", POOL, "separable"),
        ("upsample_chosen", POOL, "gather"),
        ("window_sum", AVERAGE, "separable"),
        ("upsample_evenly", AVERAGE, "gather"),
    ],
)
def test_the_fastest_map_of_a_pool_wins_unless_it_is_inexact(monkeypatch, out, case, other, dtype):
    timed = clock(monkeypatch, **{other: 0.5})
    p = problem(out, dtype, case)
    table = str(_plan.by_table(p))
    assert table != other
    assert found(p) == Measured(other, table, 500.0, 1000.0)
    assert {table, other} <= set(timed)
    damaged(monkeypatch, other, lambda y: jax.tree.map(lambda a: a.at[0, 1, 1, 0].add(1).astype(a.dtype), y))
    assert found(p).plan == table


def test_a_sum_without_a_choice_is_not_measured():
    window = problem("max_pool", case=POOL).window
    assert (
        _fastest.fastest(PoolProblem("take_winners", window, 2, 3, np.dtype("float32"), "cpu"), lambda: False) is None
    )

    assert _fastest.fastest(problem(dtype="int32"), lambda: False) is None


# ------------------------------------------------------------------------------------------- files and reports


@pytest.fixture
def made_up(monkeypatch):
    """Instead of measuring: im2col wins wherever it applies, twice as fast. Returns what was measured."""
    measured = []

    def fastest(p, expired):
        if expired():
            raise _fastest.OutOfTime
        measured.append(p)
        return Measured("im2col" if _plan.applies(p, "im2col") else "direct", "direct", 1.0, 2.0)

    monkeypatch.setattr(tune_package, "fastest", fastest)
    return measured


def test_tune_writes_takes_and_knows_again(tmp_path, made_up):
    file = tmp_path / "plans.json"
    report = jaxbp.tune(jax.grad(loss), KERNEL, X, file=file)
    assert [row.winner for row in report.rows] == ["im2col"] * 2 and report.gain == 2.0
    assert (report.measured, report.left, len(made_up)) == (2, 0, 2)
    assert all(str(_plan.plan(p)) == "im2col" for p in made_up)
    again = jaxbp.tune(jax.grad(loss, (0, 1)), KERNEL, X, file=str(file))
    assert again.measured == 1 and len(again.rows) == 3
    assert os.listdir(tmp_path) == ["plans.json"]


def test_the_report_is_a_table(tmp_path, made_up):
    text = str(jaxbp.tune(jax.grad(loss), KERNEL, X, file=tmp_path / "plans.json"))
    lines = text.splitlines()
    assert lines[0].split() == ["sum", "times", "by", "the", "table", "ms", "fastest", "ms", "gain"]
    assert "forward 3x3 2x6x6x3->4" in text and "kernel gradient 3x3 2x6x6x3->4" in text
    assert lines[-3] == "2 of 2 sums are faster than by the table; 2 were measured now"
    assert (
        lines[-2]
        == "estimate for the whole function: 4 ms of convolutions and pools by the tables, 2 ms as measured: 2.00 times as fast"
    )
    assert lines[-1] == f"plans: {tmp_path / 'plans.json'}"


def test_rows_count_how_often_a_sum_runs():
    rows = (Row("a", 3, "direct", "gemm", 4.0, 2.0), Row("b", 1, "direct", "direct", 1.0, 1.0))
    report = Report(rows, "plans.json", 2, left=4)
    assert report.gain == 13 / 7 and rows[0].gain == 2.0
    assert "4 sums were not measured, as time was up" in str(report)
    assert (
        Report((), "plans.json", 0).gain == 1.0
        and str(Report((), "plans.json", 0)) == "no convolution or pool was measured"
    )


def test_names_of_sums():
    assert name_of(problem("upsample_chosen", case=POOL)) == "max pool gradient 3x3/2 2x9x9x3"
    case = conv_case("a", "dilated", (2, 9, 9, 4), (3, 3, 2, 6), 2, kernel_dilation=2, feature_group_count=2)
    p = problem("x", "bfloat16", case)
    assert name_of(p) == "input gradient 3x3/2 dilated 2 2 groups 2x9x9x4->6 bfloat16"
    assert name_of(p.inside(out="x", geometry=p.geometry, members=4)).endswith(" of 4 members")


def test_seconds_bound_the_run_and_the_largest_come_first(tmp_path, made_up, monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(tune_package, "time", types.SimpleNamespace(monotonic=lambda: next(now)))

    def both(small, large, x):
        return jaxbp.conv(x, small).sum() + jaxbp.conv(x, large).sum()

    report = jaxbp.tune(both, jnp.ones((1, 1, 3, 4)), KERNEL, X, file=tmp_path / "plans.json", seconds=2)
    assert [p.taps for p in made_up] == [9] and report.left == 1


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_wrong_seconds(seconds, tmp_path):
    with pytest.raises(ValueError, match=r"seconds=.* must be a number of seconds, 0 or more"):
        jaxbp.tune(loss, KERNEL, X, file=tmp_path / "plans.json", seconds=seconds)


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_traced(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        jaxbp.tune(lambda: 1 / 0, file=tmp_path / "none" / "plans.json")
    with pytest.raises(ValueError, match="give the name of a file, not of a folder"):
        jaxbp.tune(lambda: 1 / 0, file=tmp_path)


def test_what_is_no_function(tmp_path):
    with pytest.raises(TypeError, match="tune: function must be a function, but got int 3"):
        jaxbp.tune(3, X, file=tmp_path / "plans.json")


def test_other_platforms_have_nothing_to_tune(tmp_path, monkeypatch):
    monkeypatch.setattr(tune_package, "platform", lambda: "tpu")
    with pytest.raises(
        ValueError, match="JAX runs on tpu, where every sum is direct; there are algorithms for cpu and cuda"
    ):
        jaxbp.tune(loss, KERNEL, X, file=tmp_path / "plans.json")


def test_an_interruption_keeps_what_is_measured(tmp_path, monkeypatch):
    calls = []

    def fastest(p, expired):
        calls.append(p)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return Measured("im2col", "direct", 1.0, 2.0)

    monkeypatch.setattr(tune_package, "fastest", fastest)
    with pytest.raises(KeyboardInterrupt):
        jaxbp.tune(jax.grad(loss), KERNEL, X, file=tmp_path / "plans.json")
    assert str(_plan.plan(calls[0])) == "im2col"
    (machine,) = json.loads((tmp_path / "plans.json").read_text())["machines"]
    assert len(machine["plans"]) == 1


def test_a_plan_that_is_not_known_is_measured_again(tmp_path, made_up, monkeypatch):
    jaxbp.tune(loss, KERNEL, X, file=tmp_path / "plans.json")
    text = (tmp_path / "plans.json").read_text()
    (tmp_path / "plans.json").write_text(text.replace('"plan": "im2col"', '"plan": "strassen"'))
    assert jaxbp.tune(loss, KERNEL, X, file=tmp_path / "plans.json").measured == 1
    assert (tmp_path / "plans.json").read_text() == text


def test_a_real_clock(tmp_path, monkeypatch):
    """Whatever wins, the gradients stay the same."""
    monkeypatch.setattr(_measure, "SHORTEST_SAMPLE", 0.0)
    monkeypatch.setattr(_fastest, "SECONDS", 0.0)
    x, kernel = (np.random.default_rng(0).integers(-3, 4, a.shape).astype(np.float32) for a in (X, KERNEL))
    step = jax.jit(jax.grad(loss))
    before = step(kernel, x)
    report = jaxbp.tune(step, kernel, x, file=tmp_path / "plans.json")
    assert (
        len(report.rows) == 2 and report.left == 0 and all(row.winner_ms > 0 and row.gain >= 1 for row in report.rows)
    )
    np.testing.assert_array_equal(step(kernel, x), before)


def test_measured_plans_of_pools_are_taken(tmp_path, monkeypatch):
    """Whatever wins, in the program itself; values stay the same."""
    clock(monkeypatch, gather=0.5, separable=0.5)
    x = jnp.asarray(np.random.default_rng(0).integers(-3, 4, (2, 9, 9, 3)), jnp.float32)
    step = jax.jit(jax.value_and_grad(lambda x: jaxbp.max_pool(x, (3, 3), (2, 2), "SAME").sum()))
    before = step(x)
    report = jaxbp.tune(step, x, file=tmp_path / "plans.json")
    assert {(row.sum, row.winner) for row in report.rows} == {
        ("max pool 3x3/2 2x9x9x3", "separable"), ("max pool gradient 3x3/2 2x9x9x3", "gather")
    }  # fmt: skip
    scopes = step.lower(x).as_text(debug_info=True)
    assert "separable" in scopes and "gather" in scopes and "per_phase" not in scopes
    jax.tree.map(np.testing.assert_array_equal, step(x), before)
    text = (tmp_path / "plans.json").read_text()
    assert '"sum": "max pool gradient"' in text and '"plan": "gather"' in text


# ------------------------------------------------------------------------------------------------ the command

MINE = """
import jax, jax.numpy as jnp, jaxbp

def step(kernel, x, strides=1):
    return jax.grad(lambda kernel: (jaxbp.conv(x, kernel, strides=strides) ** 2).sum())(kernel)
"""


def tune(*words: str) -> int:
    """Run the command."""
    return command_line.main(["tune", *words])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_function_from_the_command_line(folder, made_up, capsys):
    target = ["mine.py:step", "--shape", "3,3,2,4", "--shape", "1,5,5,2", "--keyword", "strides=2"]
    assert tune(*target) == 0
    assert {(p.out, p.geometry.window.strides) for p in made_up} == {("z", (2, 2)), ("kernel", (2, 2))}
    assert capsys.readouterr().out.splitlines()[-1] == "plans: plans.json"
    assert sorted(os.listdir(folder)) in (["mine.py", "plans.json"], ["__pycache__", "mine.py", "plans.json"])


def test_layers_from_the_command_line(folder, made_up, capsys):
    assert tune("--random", "2", "--seed", "3", "--dtype", "bfloat16", "--file", "mine.json") == 0
    assert len(made_up) >= 4 and {p.dtype.name for p in made_up} == {"bfloat16"}
    assert tune("--random", "2", "--seed", "3", "--dtype", "bfloat16", "--file", "mine.json") == 0
    assert "0 were measured now" in capsys.readouterr().out
    assert tune("--suite", "--seconds", "0") == 0
    assert "no convolution or pool was measured" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_models_from_the_command_line(folder, made_up, capsys):
    assert tune("--models") == 0
    assert {p.batch for p in made_up} == {64, 32} and {"z", "x", "kernel", "max_pool"} <= {p.out for p in made_up}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of MODULE:FUNCTION, --suite, --random and --models, not none of them"),
        (["--suite", "--models"], "not --suite and --models"),
        (["mine.py:step", "--suite"], "not mine.py:step and --suite"),
        (["mine.py:step"], "mine.py:step needs arguments: give --shape"),
        (["mine.py:none", "--shape", "3"], "mine.py has no none"),
        (["mine.py:step", "--shape", "3"], "but the command line gives 1 array"),
        (["--random", "0"], "--random 0 must be a number of layers, 1 or more"),
        (["--suite", "--seed", "1"], "--seed chooses random layers or arrays"),
        (["--suite", "--shape", "3"], "--shape, --value and --keyword go with a module:function"),
        (["--suite", "--dtype", "int8"], "--dtype 'int8' is not known; use one of float32"),
        (["--suite", "--seconds", "-1"], "seconds=-1.0 must be a number of seconds, 0 or more"),
        (["--suite", "--file", "none/plans.json"], "there is no folder"),
        (["--suite", "--file", "mine.py"], "mine.py is no file of plans"),
    ],
)
def test_command_lines_that_make_no_sense(folder, words, message, capsys):
    assert tune(*words) == 2
    assert message in capsys.readouterr().err
    assert (folder / "mine.py").read_text() == MINE


SLOW = """
import sys, time
from jaxbp import _tune
from jaxbp.__main__ import main
from jaxbp._interrupt import watch
from jaxbp._plan._measured import Measured

def fastest(p, expired):
    time.sleep(0.2)
    return Measured("direct", "direct", 1.0, 1.0)

_tune.fastest = fastest
watch("jaxbp")
sys.exit(main(["tune", "--suite"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_keeps_what_is_measured(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", SLOW], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        while not (tmp_path / "plans.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (130, "jaxbp: interrupted\n")
    rows = json.loads((tmp_path / "plans.json").read_text())["machines"][0]["plans"]
    assert f"{len(rows)} were measured now" in out
