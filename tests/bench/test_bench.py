"""The benchmark: valid cases, right arithmetic, a command line that does what it says. No speed is asserted."""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp
from jaxbp import __main__ as command_line
from jaxbp import _bench
from jaxbp._bench import (
    _algorithms,
    _cases,
    _devices,
    _measure,
    _models,
    _per_example,
    _plan,
    _populations,
    _programs,
    _result,
    _suite,
    _table,
)
from jaxbp._bench._random import NUMBERS, OPERATIONS, random_cases
from jaxbp._bench._suite import CASES, Case, operations, traffic
from jaxbp._plan import ONE_BY_ONE, algorithms, candidates, plan
from jaxbp._plan._machine import machine
from jaxbp._plan._measured import Measured, describe, key
from jaxbp._tune._file import merge

ONE = "^average pool: global average pool 7x7/1 1x7x7x2048$"
TWO = "^average pool: global"
NAMES = [case.name for case in CASES]


@pytest.fixture
def quick(monkeypatch):
    """Leave out what measures the machine."""
    monkeypatch.setattr(_bench, "machine_limits", lambda dtype: _measure.Limits(1e11, 1e10))
    monkeypatch.setattr(_bench, "warm_up", lambda: None)
    monkeypatch.setattr(_measure, "SHORTEST_SAMPLE", 0.0)


def bench(*arguments: str) -> int:
    """Run the command as a user does, with as little timing as it can do."""
    return command_line.main(["bench", "--seconds", "0", *arguments])


def times(*seconds: float) -> _measure.Times:
    """Times of one program from its samples."""
    return _measure.summarize(list(seconds))


def result(name="a case", family="dense", manual=1.0, automatic=2.0, **rest) -> _result.Result:
    """A result with the same time in every round."""
    programs = {"manual": times(manual, manual), "automatic": times(automatic, automatic)}
    return _result.Result(name, family, {_programs.WHOLE: programs}, **rest)


# ------------------------------------------------------------------------------------------------ the suite


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES)


DRAWN = random_cases(44, seed=5)


@pytest.mark.sampled(40)
@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=case.name) for case in CASES),
        *(pytest.param(case, id=case.name, marks=pytest.mark.exhaustive) for case in DRAWN),
    ],
)
def test_every_case_is_an_op_with_all_its_gradients_in_both_rules(case):
    shapes = []
    for module in (jaxbp, jaxbp.automatic):
        function = _programs.function_of(case, module)
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in case.shapes]
        output = jax.eval_shape(function, *arrays)
        gradients = jax.eval_shape(lambda delta, *a, f=function: jax.vjp(f, *a)[1](delta), output, *arrays)
        assert tuple(gradient.shape for gradient in gradients) == case.shapes
        shapes.append(output.shape)
    assert shapes[0] == shapes[1]


def test_the_suite_has_what_users_ask_for():
    families = {case.family for case in CASES}
    assert families >= {"dense", "1x1", "depthwise", "grouped", "dilated", "patch", "transposed", "1-D", "3-D"}
    for kind in ("conv", "conv_transpose", "max_pool", "avg_pool"):
        assert {len(case.shapes[0]) - 2 for case in CASES if case.op == kind} == {1, 2, 3}, kind
    for family in ("dense", "depthwise", "grouped", "max pool", "average pool"):
        assert {1, 64} <= {case.shapes[0][0] for case in CASES if case.family == family}, family


def test_random_layers_are_the_same_for_a_seed_and_of_every_family():
    assert random_cases(44, seed=5) == DRAWN != random_cases(44, seed=6)
    assert random_cases(20, seed=5) == DRAWN[:20]
    families = [case.family for case in CASES]
    assert {case.family for case in DRAWN} == {*families} - {"few channels"}
    for case in DRAWN:
        size = math.prod(case.shapes[0])
        assert NUMBERS[0] <= size <= NUMBERS[1]
        if not case.pools:
            function = _programs.function_of(case, jaxbp)
            arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in case.shapes]
            assert operations(case, jax.eval_shape(function, *arrays).shape) <= 2 * OPERATIONS[1]


def test_operations_and_traffic_are_counted_by_hand():
    conv = Case("", "", "conv", ((1, 4, 4, 2), (3, 3, 2, 5)))
    output = (1, 2, 2, 5)
    assert operations(conv, output) == 3 * 2 * 20 * 18
    assert traffic(conv, output, 4) == 2 * 4 * (32 + 90 + 20)
    transposed = Case("", "", "conv_transpose", ((1, 4, 4, 3), (2, 2, 3, 5)))
    back = Case("", "", "conv", ((1, 8, 8, 5), (2, 2, 5, 3)))
    assert operations(transposed, (1, 8, 8, 5)) == operations(back, (1, 4, 4, 3)) == 3 * 2 * 48 * 20


# ----------------------------------------------------------------------------------------------- measuring


def test_programs_take_turns_and_drift_cancels(monkeypatch):
    order = []
    programs = {name: lambda name=name: order.append(name) for name in "ABC"}
    clock = iter(range(1000))
    speeds = {"A": 1.0, "B": 2.0, "C": 4.0}

    def drifting(call, calls):
        call()
        return speeds[order[-1]] * (1 + 0.01 * next(clock))

    monkeypatch.setattr(_measure, "sample", drifting)
    measured = _measure.interleave(programs, seconds=0)
    assert "".join(order[6:24]) == "ABCCBABCAACBCABBAC" and len(order) == 6 + 6 * _measure.FEWEST_ROUNDS
    assert _measure.ratio(measured["B"], measured["A"]) == pytest.approx(2)
    assert _measure.ratio(measured["A"], measured["C"]) == pytest.approx(0.25)


def test_ratios_are_medians_of_rounds_and_ratios_of_the_fastest():
    slow, fast = times(4, 6, 3, 3, 100, 100), times(1, 3, 3, 3, 10, 10)
    assert slow == _measure.Times(3, 5, (5, 3, 100))
    assert _measure.ratio(slow, fast) == 2.5
    assert _measure.best_ratio(slow, fast) == 3
    assert _measure.geometric_mean([2, 8]) == pytest.approx(4)


def test_the_machine_has_limits(monkeypatch):
    def two_seconds(call, calls):
        call()
        return 2.0

    monkeypatch.setattr(_measure, "sample", two_seconds)
    limits = _measure.machine_limits(jnp.float32)
    assert limits == _measure.Limits(2 * 1536**3 / 2.0, 2 * 4 * 2**26 / 2.0)


def test_warming_up_compiles_both_rules(monkeypatch):
    compiled = []
    monkeypatch.setattr(_cases, "compile_case", lambda f, arrays, delta, parts: compiled.append(delta.shape) or {})
    _cases.warm_up()
    assert compiled == [(2, 4, 4, 2), (2, 4, 4, 2), (2, 3, 3, 2), (2, 3, 3, 2)]


def test_residuals_are_what_is_kept_besides_the_arguments():
    x = jnp.ones((1, 8, 8, 3))

    def pool(inputs):
        return jaxbp.max_pool(inputs, (2, 2), (2, 2))

    assert _programs.residual_bytes(pool, [x]) == 4 * 4 * 3
    assert _programs.residual_bytes(lambda x, k: jaxbp.conv(x, k), [x, jnp.ones((3, 3, 3, 2))]) == 0
    assert _programs.residual_bytes(lambda x: jnp.sin(x), [x]) == x.nbytes
    assert _programs.residual_bytes(lambda x: 2 * x, [x]) == 0


def test_errors_are_in_eps_of_the_largest_entry():
    eps = float(jnp.finfo(jnp.float32).eps)
    found = [jnp.array([4.0, 1.0 + 8 * eps]), jnp.array([0.5])]
    program = _programs.Program(lambda: (None, found), None, 0.0)
    assert _programs.largest_error(program, [np.array([4.0, 1.0]), np.array([0.5])], jnp.float32) == 2


def test_float64_gradients_have_float64_digits():
    x, kernel, delta = (
        jnp.asarray(np.random.default_rng(0).standard_normal(s, np.float32)) for s in ((5,), (5,), (5,))
    )
    first, second = _programs.gradients_in_float64(lambda x, k: x * k, [x, kernel], delta)
    np.testing.assert_array_equal(first, np.asarray(kernel, np.float64) * np.asarray(delta, np.float64))
    np.testing.assert_array_equal(second, np.asarray(x, np.float64) * np.asarray(delta, np.float64))


# ---------------------------------------------------------------------------------------------- the report


def test_means_are_geometric_and_name_who_breaks_a_rule():
    mib = 2**20
    results = [
        result("fast", manual=1, automatic=8, errors=_result.Pair(9.0, 2.0)),
        result("slow", manual=2, automatic=1, temporary_bytes=_result.Pair(41 * mib, 8 * mib)),
        result("pool", "max pool", 1, 3, pools=True, compile_seconds=_result.Pair(2.1, 1.0)),
        result(
            "fine", "max pool", 1, 3, pools=True, errors=_result.Pair(6.5, 2.0), compile_seconds=_result.Pair(0.6, 0.2)
        ),
    ]
    text = _table.means(results, torch=False)
    rows = {line.rsplit(maxsplit=3)[0]: line.split()[-3:] for line in text.splitlines()[1:6]}
    assert rows["dense"] == rows["convolutions"] == ["2", "2.00", "0.50"]
    assert rows["max pool"] == rows["pools"] == ["2", "3.00", "3.00"]
    assert rows["all"] == ["4", "2.45", "0.50"]
    assert text.splitlines()[6:] == [
        "slower than automatic (below 0.95):",
        "  slow",
        "temporary memory above 1.25 x automatic's and 32 MiB more:",
        "  slow",
        "compile time above 2 x automatic's and 0.5 s more:",
        "  pool",
        "error above 4 x automatic's and 4 eps more:",
        "  fast",
    ]


def test_numbers_have_three_digits_and_missing_ones_a_dash():
    table = _table.Table(["a case"], torch=True, layers=True, errors=True)
    measured = result(manual=1.2345e-3, automatic=0.12345, limit_seconds=0.61725e-3)
    measured = measured._replace(temporary_bytes=_result.Pair(3 * 2**19, None), notes=("a note",))
    first, note = table.lines(measured).splitlines()
    assert first.split() == ["a", "case", "1.23", "123", "100", "100", "-", "-", "50.0", "-/-", "1.50/-", "-/-", "-/-"]
    assert note == "  a note"
    assert len(table.heading().splitlines()) == 2


# -------------------------------------------------------------------------------------------- command line


@pytest.mark.exhaustive
def test_a_case_with_json_and_plot(quick, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    record, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    assert bench("--filter", TWO, "--parts", "--errors", "--json", str(record), "--plot", str(picture)) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert f"jax {jax.__version__}" in lines[0] and "float32" in lines[0] and "cores" in lines[0]
    assert lines[1].startswith("load:") and lines[2].startswith("limits:")
    assert any(line.startswith("  input gradient") for line in lines) and err == ""
    assert picture.read_bytes().startswith(b"\x89PNG")
    entries = json.loads(record.read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", entries["date"])
    assert (
        entries["command"].startswith("python -m jaxbp bench --seconds 0 ") and "--parts --errors" in entries["command"]
    )
    assert entries["limits"] == {"operations": 1e11, "traffic": 1e10}
    assert [entry["name"] for entry in entries["cases"]] == [name for name in NAMES if "global" in name]
    for entry in entries["cases"]:
        assert set(entry["parts"]) == {"forward + gradients", "forward", "input gradient"}
        for part in entry["parts"].values():
            assert part["manual"]["best_seconds"] > 0 and part["automatic_over_manual"]["median"] > 0
            assert part["automatic_over_manual"]["rounds"] == _measure.FEWEST_ROUNDS
        assert 0 <= entry["errors_in_eps"]["manual"] < 16
        assert entry["residual_bytes"]["manual"] == 0 and entry["temporary_bytes"]["automatic"] >= 0


@pytest.mark.exhaustive
def test_more_images(quick, capsys):
    assert bench("--filter", "global average pool 7x7", "--batch", "3") == 0
    assert "global average pool 7x7/1 3x7x7x2048 " in capsys.readouterr().out
    assert {case.enlarged(5).shapes[0][0] / case.shapes[0][0] for case in CASES} == {5.0}
    assert len({case.enlarged(5).name for case in CASES} - set(NAMES)) == len(CASES)
    assert _models.MODELS[0].enlarged(2).name == "lenet 28x28 batch 128"


@pytest.mark.exhaustive
def test_random_layers(quick, capsys):
    assert bench("--random", "33", "--seed", "5", "--filter", "^average pool: ") == 0
    out = capsys.readouterr().out
    pools = [case for case in random_cases(33, 5) if case.family == "average pool"]
    assert len(pools) == 3 and all(f"\n{case.name} " in out for case in pools)
    assert bench("--random", "33", "--seed", "5", "--plan") == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("random")] == [
        case.name for case in random_cases(33, 5)
    ]


def test_low_precision(quick, capsys):
    assert bench("--filter", ONE, "--dtype", "bfloat16") == 0
    assert "| bfloat16 |" in capsys.readouterr().out


def test_what_does_not_run_is_a_note(quick, capsys, monkeypatch):
    def refuse(*args, **keywords):
        raise NotImplementedError("no such thing\nand more")

    forward = jaxbp.automatic.avg_pool
    monkeypatch.setattr(jaxbp, "avg_pool", refuse)
    assert bench("--filter", ONE) == 1
    assert "manual does not run: NotImplementedError: no such thing\n" in capsys.readouterr().out
    monkeypatch.setattr(jaxbp, "avg_pool", forward)
    pull_back = jax.custom_vjp(lambda x: forward(x, (7, 7)))
    pull_back.defvjp(lambda x: (forward(x, (7, 7)), None), refuse)
    monkeypatch.setattr(jaxbp.automatic, "avg_pool", lambda x, *args, **keywords: pull_back(x))
    assert bench("--filter", ONE) == 0
    assert "automatic does not run: NotImplementedError: no such thing\n" in capsys.readouterr().out


def test_plan_names_an_algorithm_and_a_reason_for_every_map(capsys):
    assert bench("--plan") == 0
    lines = capsys.readouterr().out.splitlines()
    maps = sum(4 if case.pools else 6 for case in CASES)
    assert len([line for line in lines if re.match("  [a-z]", line)]) == maps
    assert all(len(line.split("  ")) >= 4 for line in lines if line.startswith("  "))


LAYERS = [*CASES, *random_cases(100, 5)]


@pytest.mark.sampled(30)
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[pytest.mark.exhaustive] * (case not in CASES)) for case in LAYERS],
)
def test_the_plan_is_what_runs(case):
    """The names in the lowered program are those of the plans."""
    function = _programs.function_of(case, jaxbp)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in case.shapes]
    delta = jax.eval_shape(function, *arrays)
    program = jax.jit(lambda delta, *arrays: jax.vjp(function, *arrays)[1](delta))
    forward, back = jax.jit(function).lower(*arrays), program.lower(delta, *arrays)
    first, *gradients = _plan.problems(case, "float32", "cpu").values()
    # A max pool's gradient needs the winners.
    known = {ONE_BY_ONE, *algorithms(first), *algorithms(gradients[0])}
    for lowered, problems in ((forward, [first]), (back, [first, *gradients] if case.op == "max_pool" else gradients)):
        scopes = re.findall(r'loc\("([^"]*)"', lowered.as_text(debug_info=True))
        found = {" > ".join(part for part in scope.split("/") if part in known) for scope in scopes} - {""}
        expected = {str(plan(p)) for p in problems}
        assert found
        # A loop's body begins a path of its own.
        assert all(any(names in whole for whole in expected) for names in found), (expected, found)
        assert {name for whole in expected for name in whole.split(" > ")} == {
            name for names in found for name in names.split(" > ")
        }


# ------------------------------------------------------------------------------------------- several devices


@pytest.mark.exhaustive
def test_devices_are_sent_what_a_kernel_s_gradient_has(quick, capsys, monkeypatch, tmp_path):
    """Every layout with both rules; where lax aborts, one is named. With real devices, times, too."""
    monkeypatch.setattr(_devices, "_real", lambda: True)
    case = _suite.conv_case("a", "grouped", (2, 16, 8, 8), (3, 3, 2, 8), feature_group_count=4)
    monkeypatch.setattr(_bench, "CASES", (case,))
    file = tmp_path / "sent.json"
    assert bench("--devices", "8", "--json", str(file)) == 0
    printed = capsys.readouterr().out
    rows = {row["layout"]: row for row in json.loads(file.read_text())["cases"]}
    assert set(rows) == {layout.name for layout in _devices.LAYOUTS}
    assert rows["data parallel"]["manual"]["bytes"] == 4 * 3 * 3 * 2 * 8
    assert rows["data parallel"]["manual"]["collectives"] == 1
    assert rows["data parallel"]["manual"]["ms"] > 0
    assert rows["tensor parallel"]["automatic"] is None
    assert "XLA aborts" in printed and "MiB sent in all" in printed


def test_devices_train_models(quick, capsys, monkeypatch):
    monkeypatch.setattr(_bench, "MODELS", [small(_models.MODELS[0])])
    monkeypatch.setattr(_devices, "LAYOUTS", _devices.LAYOUTS[:1])
    assert bench("--devices", "8", "--models") == 0
    assert "data parallel" in capsys.readouterr().out


def test_collectives_are_read_from_a_program():
    text = """
      %a = (f32[8,3]{1,0}, bf16[4]{0}) all-reduce(%x, %y), channel_id=1
      %b = f32[16]{0} all-gather-done(%c)
      %d = (f32[2]{0}, f32[16]{0}) all-gather-start(%e)
      %f = pred[7]{0} collective-permute(%g)
    """
    found = [("all-reduce", 8 * 3 * 4 + 4 * 2), ("all-gather", 64), ("collective-permute", 7)]
    assert _devices.collectives(text) == found


def test_plan_says_what_is_measured(tmp_path, capsys):
    p = _plan.problems(CASES[0], "float32", "cpu")["z"]
    merge(tmp_path / "plans.json", machine("cpu"), {key(describe(p)): Measured("im2col", "direct", 1.0, 2.0)})
    assert bench("--plan", "--filter", re.escape(CASES[0].name), "--plans", str(tmp_path / "plans.json")) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["forward", "CPU", "measured", "im2col", "measured:", "1", "ms;"] in [line[:7] for line in lines]
    assert {line[3] for line in lines if line[2:3] == ["CPU"]} == {"table"}
    assert bench("--plan", "--filter", re.escape(CASES[0].name)) == 0
    assert "measured" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------- loops and populations


@pytest.mark.parametrize("option", ["--loops", "--populations"])
def test_whole_programs_are_timed_beside_others(option, quick, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(_measure, "FEWEST_ROUNDS", 1)
    small = _populations.NETWORKS[1]._replace(images=(1, 10, 10, 10))
    setups = [_populations.Setup(small, members, True) for members in (None, 2)]
    monkeypatch.setattr(_populations, "LOOPS", tuple(setups[:1]))
    monkeypatch.setattr(_populations, "POPULATIONS", tuple(setups[1:]))
    assert bench(option, "--json", str(tmp_path / "some.json")) == 0
    out = capsys.readouterr().out
    other = "Python loop" if option == "--loops" else "lax.map"
    assert f"{other}/manual" in out and "automatic/manual" in out and "geometric means" in out
    record = json.loads((tmp_path / "some.json").read_text())
    assert record[f"{other}_over_manual"] > 0 and set(record["cases"][0]["ms"]) == {"manual", "automatic", other}


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(n, id=n.name, marks=[pytest.mark.exhaustive] * ("actor" not in n.name))
        for n in _populations.NETWORKS
    ],
)
def test_all_programs_of_a_population_compute_the_same(network):
    setup = _populations.Setup(network._replace(images=(2, *network.images[1:])), 2, False)
    (manual, loss), *others = (program() for program in _populations.programs_of(setup, "float32").values())
    for parameters, other in others:
        np.testing.assert_allclose(other, loss, rtol=1e-4)
        for found, expected in zip(parameters, manual, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_programs_of_loops_and_populations():
    assert len(_populations.LOOPS) == 6 and len(_populations.POPULATIONS) == 12
    names = [setup.name for setup in (*_populations.LOOPS, *_populations.POPULATIONS)]
    assert len(set(names)) == 18 and "lenet 28x28 batch 32, vmap(scan of 4 steps) of 16" in names
    assert _populations.LOOPS[0].enlarged(2).network.images[0] == 64
    assert _populations.summary([]) == "nothing was measured"


# ------------------------------------------------------------------------------------------- all algorithms


def test_algorithms_are_timed_and_the_chosen_one_compared(quick, capsys, tmp_path):
    file = tmp_path / "choices.json"
    assert bench("--algorithms", "--filter", "lenet 5x5 1x28x28x1->6", "--json", str(file)) == 0
    out = capsys.readouterr().out
    record = json.loads(file.read_text())
    assert f"chosen over best: {record['chosen_over_best']:.3f} (geometric mean of 3 sums)" in out
    case = next(case for case in CASES if case.name == "lenet 5x5 1x28x28x1->6")
    for each, p in zip(record["cases"], _plan.problems(case, "float32", "cpu").values(), strict=True):
        assert set(each) == {"layer", "sum", "chosen", "best", "ms"}
        assert each["layer"] == case.name and each["chosen"] == str(plan(p)) and each["best"] in each["ms"]
        assert set(each["ms"]) >= {str(candidate) for candidate in candidates(p)}


def test_the_best_algorithm_is_found_and_timed_on_different_rounds(monkeypatch):
    """Noise in the rounds that choose does not count."""
    p = _plan.problems(CASES[0], "float32", "cpu")["z"]
    chosen = str(plan(p))

    def interleave(programs, seconds):
        # Every other program has a lucky first round; in the second all are equal.
        return {name: _measure.Times(1.0, 1.0, (2.0 if name == chosen else 1.0, 3.0) * 2) for name in programs}

    monkeypatch.setattr(_algorithms, "interleave", interleave)
    monkeypatch.setattr(_algorithms, "sample", lambda call, calls: 1.0)
    monkeypatch.setattr(_algorithms, "bound", lambda run, *operands: lambda: None)
    choice = _algorithms.measure_choice("a layer", p, 0.0)
    assert choice.best != chosen and choice.ratio == 1.0


@pytest.mark.parametrize(
    ("backend", "version", "platform"),
    [("cpu", "", "cpu"), ("gpu", "PJRT C API cuda 12090", "cuda"), ("gpu", "rocm 60200", "rocm"), ("tpu", "", "tpu")],
)
def test_backends_have_the_tables_of_their_platforms(monkeypatch, backend, version, platform):
    device = types.SimpleNamespace(client=types.SimpleNamespace(platform_version=version))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert _algorithms.platform() == platform


def test_sums_without_a_choice_do_not_count(monkeypatch):
    monkeypatch.setattr(_algorithms._plan, "candidates", lambda p: iter([]))
    assert _algorithms.measure_choices(CASES[0], "float32", 0.0) == []
    assert _algorithms.summary([]) == "nothing was measured"


def test_interrupted_algorithms_keep_what_is_measured(quick, capsys, monkeypatch, tmp_path):
    choice = _algorithms.Choice("a layer", "forward", "gemm", "direct", {"gemm": 2.0, "direct": 1.0}, 2.0)
    measured = iter([[choice]])

    def measure(*_):
        try:
            return next(measured)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(_algorithms, "measure_choices", measure)
    file = tmp_path / "choices.json"
    assert bench("--algorithms", "--filter", "lenet", "--json", str(file)) == 130
    out, err = capsys.readouterr()
    assert "chosen over best: 2.000" in out and err.startswith("interrupted after 1 of ")
    assert json.loads(file.read_text())["chosen_over_best"] == 2.0


def test_interrupted_it_prints_what_it_has(quick, capsys, monkeypatch, tmp_path):
    measured = iter([result("the first")])

    def measure(case, **options):
        try:
            return next(measured)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(_bench, "measure_case", measure)
    assert bench("--filter", TWO, "--json", str(tmp_path / "some.json")) == 130
    out, err = capsys.readouterr()
    assert "the first" in out and "geometric means" in out
    assert err == "interrupted after 1 of 2\n"
    assert len(json.loads((tmp_path / "some.json").read_text())["cases"]) == 1


def test_interrupted_before_the_first_case(quick, capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(_bench, "warm_up", interrupt)
    assert bench("--filter", ONE) == 130
    assert capsys.readouterr().err == "jaxbp bench: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "no such layer"], "--filter 'no such layer' finds none of .* cases; families are dense, "),
        (["--models", "--filter", "no such"], "--filter 'no such' finds none of 4 models lenet "),
        (["--filter", "("], r"--filter '\(' is not a regular expression: "),
        (["--dtype", "float12"], "--dtype 'float12' is not known; use one of float32, bfloat16, float16"),
        (["--seconds", "-1"], "--seconds -1.0 must be a number of seconds, 0 or more"),
        (["--seconds", "nan"], "--seconds nan must be a number of seconds, 0 or more"),
        (["--batch", "0"], "--batch 0 must be a number of times, 1 or more"),
        (["--random", "0"], "--random 0 must be a number of layers, 1 or more"),
        (["--random", "5", "--models"], "--random draws single layers; leave out --models"),
        (
            ["--random", "5", "--filter", "lenet"],
            "--filter 'lenet' finds none of 5 cases; families are dense, 1x1, dep",
        ),
        (["--seed", "3"], "--seed chooses random layers; say how many with --random"),
        (["--json", "no/such/folder/a.json"], "--json no/such/folder/a.json: there is no folder /"),
        (["--plot", "ratios.xyz"], "--plot ratios.xyz: pictures of .xyz cannot be drawn; use one of .*png"),
        (["--plan", "--models"], "--plan is about single layers; leave out --models"),
        (["--devices", "7"], "--devices 7 must be an even number of devices, 2 or more"),
        (["--devices", "64"], "--devices 64 needs as many devices, but JAX has 8"),
        (["--devices", "8", "--plan"], "--devices reads compiled steps: leave out"),
        (["--algorithms", "--models"], "--algorithms times single sums: leave out --models"),
        (["--algorithms", "--plan"], "--algorithms measures what --plan only names: leave out one of them"),
        (
            ["--loops", "--models"],
            "--loops, --populations and --per-example time programs of their own: leave out --models",
        ),
        (
            ["--populations", "--torch"],
            "--loops, --populations and --per-example time programs of their own: leave out --models",
        ),
        (["--populations", "--filter", "vgg"], "--filter 'vgg' finds none of 12 programs lenet 28x28 batch 32, vmap"),
        (["--plans", "no/such.json", "--plan"], "no/such.json: there is no such file of plans"),
        (["--plan", "--json", "plan.json"], "--plan measures nothing that --json or --plot could write"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(arguments, message, capsys):
    assert bench(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert re.match(f"jaxbp bench: {message}", err), err


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(_bench.importlib.util, "find_spec", lambda name: None)
    assert bench("--torch") == 2
    assert (
        capsys.readouterr().err
        == "jaxbp bench: --torch needs torch, which is not installed: pip install 'jaxbp[torch]'\n"
    )


def test_nothing_heavy_is_imported_before_it_is_asked_for():
    code = "import sys, jaxbp._bench as b; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_help_explains_the_columns(capsys):
    parser = argparse.ArgumentParser()
    _bench.add_arguments(parser)
    text = parser.format_help()
    for word in ("auto/man", "PyT/man", "% of limit", "MiB temporary", "MiB kept", "error in eps"):
        assert word in text


# --------------------------------------------------------------------------------------------------- models


def small(model: _models.Model) -> _models.Model:
    """The same network on two images."""
    return model._replace(images=(2, *model.images[1:]))


@pytest.mark.parametrize("model", _models.MODELS, ids=lambda model: model.name)
def test_a_step_keeps_the_parameters_shapes(model):
    parameters = jax.eval_shape(lambda: _models.initial_parameters(model, jaxbp, jnp.float32))
    images, labels = jax.eval_shape(lambda: _models.training_data(model, jnp.float32))
    for ops in (jaxbp, jaxbp.automatic):
        updated, loss = jax.eval_shape(_models.jax_step(model, ops), parameters, images, labels)
        assert updated == parameters and loss.shape == ()


@pytest.mark.parametrize("model", _models.MODELS[:1], ids=lambda model: model.name)
def test_the_rules_train_alike(model):
    model = small(model)
    data = _models.training_data(model, jnp.float32)
    parameters = _models.initial_parameters(model, jaxbp, jnp.float32)
    manual, automatic = (jax.jit(_models.jax_step(model, ops))(parameters, *data) for ops in (jaxbp, jaxbp.automatic))
    for ours, theirs in zip(jax.tree.leaves(manual), jax.tree.leaves(automatic), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(manual[0][0], parameters[0])


def test_training_steps_on_the_command_line(quick, capsys, monkeypatch):
    monkeypatch.setattr(_bench, "MODELS", tuple(map(small, _models.MODELS)))
    assert bench("--models", "--filter", "^training step: lenet") == 0
    out = capsys.readouterr().out
    assert "\nlenet 28x28 batch 64 " in out and "% of" not in out
    assert math.isfinite(float(out.splitlines()[4].split()[-5]))


@pytest.mark.exhaustive
def test_per_example_programs_are_timed_and_agree(quick, capsys, monkeypatch, tmp_path):
    model = _per_example.Model("small batch 4", _per_example.block(3), (4, 5, 5, 3), "per example")
    parameters = _models.initial_parameters(model, jaxbp, "float32")
    data = _models.training_data(model, "float32")
    programs = _per_example.programs_of(model)
    results = {name: jax.jit(run)(parameters, *data) for name, run in programs.items()}
    norms = results.pop(_per_example.NORMS)
    for sums, each in results.values():
        np.testing.assert_allclose(each, norms, rtol=1e-5)
        for a, b in zip(sums, results[_per_example.LAX][0], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    monkeypatch.setattr(_per_example, "MODELS", (model,))
    file = tmp_path / "per_example.json"
    assert bench("--per-example", "--json", str(file)) == 0
    (record,) = json.loads(file.read_text())["cases"]
    assert record["model"] == "small batch 4" and set(record["ms"]) == set(record["mib"]) == set(programs)
    out = capsys.readouterr().out
    assert re.search(r"vmap\(grad\) of lax over clipped_grad: [\d.]+ x time \(geometric mean of 1 models\)", out)


def test_per_example_refuses_what_it_does_not_time(capsys):
    assert bench("--per-example", "--models") == 2
    assert (
        "--loops, --populations and --per-example time programs of their own: leave out --models"
        in capsys.readouterr().err
    )
    assert bench("--per-example", "--filter", "vgg") == 2
    assert "finds none of 4 models lenet 28x28 batch 64" in capsys.readouterr().err
    assert _per_example.summary([]) == "nothing was measured"
