"""Measured plans: the file, what is in use, and that a program is compiled again for it. Nothing is timed here."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxbp
from jaxbp import _plan
from jaxbp._bench._plan import problems
from jaxbp._bench._suite import conv_case
from jaxbp._plan import _measured
from jaxbp._plan._machine import Machine, extensions, machine, processor
from jaxbp._plan._measured import Measured, describe, key
from jaxbp._tune import _file
from jaxbp._tune._file import merge

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
LAYER = conv_case("a", "dense", (2, 9, 8, 4), (3, 3, 4, 6), 2)
SUMS = problems(LAYER, "float32", "cpu")
HERE = machine("cpu")
ELSEWHERE = HERE._replace(processor="another processor")


@pytest.fixture(autouse=True)
def nothing_in_use(monkeypatch):
    """Each test begins and ends without plans, and with an environment that was not read."""
    monkeypatch.delenv(_measured.VARIABLE, raising=False)
    _measured._of_environment.cache_clear()
    _measured.use(_measured.UNSAID)
    yield
    _measured._of_environment.cache_clear()
    _measured.use(_measured.UNSAID)


def write(file: Path, plan: str, out: str = "z", of: Machine = HERE) -> Path:
    """A file with one plan more."""
    merge(file, of, {key(describe(SUMS[out])): Measured(plan, "direct", 1.0, 2.0)})
    return file


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "plans.json", "im2col")


def planned(out: str = "z") -> str:
    """What the sum is evaluated by now."""
    return str(_plan.plan(SUMS[out]))


BY_TABLE = str(_plan.by_table(SUMS["z"]))


# ------------------------------------------------------------------------------------------------- what is in use


def test_a_measured_plan_wins_over_the_table_and_says_so(file):
    assert planned() == BY_TABLE != "im2col" and _plan.plan(SUMS["z"]).by == "table"
    jaxbp.use_plans(file)
    chosen = _plan.plan(SUMS["z"])
    assert (str(chosen), chosen.by) == ("im2col", "measured")
    assert chosen.why == "measured: 1 ms; direct, by the table: 2 ms"
    assert planned("x") == str(_plan.by_table(SUMS["x"]))
    jaxbp.use_plans(None)
    assert planned() == BY_TABLE


def test_the_block_wins_over_the_call_and_the_call_over_the_environment(tmp_path, monkeypatch):
    by = {name: write(tmp_path / name, name) for name in ("im2col", "valid_taps", "kn2row")}
    monkeypatch.setenv(_measured.VARIABLE, str(by["kn2row"]))
    assert planned() == "kn2row"
    jaxbp.use_plans(by["valid_taps"])
    assert planned() == "valid_taps"
    with jaxbp.plans(by["im2col"]):
        assert planned() == "im2col"
        with jaxbp.plans(None):
            assert planned() == BY_TABLE
        assert planned() == "im2col"
    assert planned() == "valid_taps"
    jaxbp.use_plans(None)
    assert planned() == BY_TABLE


def test_an_empty_variable_names_no_file(monkeypatch):
    monkeypatch.setenv(_measured.VARIABLE, "")
    assert planned() == BY_TABLE


def test_a_missing_file_of_the_environment_is_an_error_at_first_use(monkeypatch, tmp_path):
    monkeypatch.setenv(_measured.VARIABLE, str(tmp_path / "none.json"))
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match=r"JAXBP_PLANS=.*none\.json: there is no such file"):
            jaxbp.conv(jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 1)))


@pytest.mark.parametrize("take", [jaxbp.use_plans, jaxbp.plans])
def test_a_missing_file_is_an_error(take, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json: there is no such file of plans"):
        take(tmp_path / "none.json")


BROKEN = {
    "no JSON": ("{", "Expecting property name"),
    "a list": ("[]", "it has no version"),
    "no version": ('{"machines": []}', "it has no version"),
    "newer": ('{"version": 2, "shapes": []}', "has version 2, but this jaxbp reads files of plans up to version 1"),
    "no machines": ('{"version": 1}', "KeyError 'machines'"),
    "no facts": ('{"version": 1, "machines": [{"plans": []}]}', "KeyError 'platform'"),
    "no sum": ('{"version": 1, "machines": [{"plans": [{"plan": "gemm", "table": "direct"}]}]}', "KeyError 'sum'"),
    "a number": ('{"version": 1, "machines": [{"plans": [{"sum": {}, "plan": 1, "table": "direct"}]}]}', "TypeError"),
    "no time": (
        '{"version": 1, "machines": [{"plans": [{"sum": {}, "plan": "gemm", "table": "direct", "plan_ms": "x"}]}]}',
        "ValueError could not convert string to float",
    ),
    "an array": ('{"version": 1, "machines": 5}', "TypeError"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_an_error_and_stays_as_it_is(kind, tmp_path):
    text, message = BROKEN[kind]
    file = tmp_path / "plans.json"
    file.write_text(text)
    for take in (jaxbp.use_plans, jaxbp.plans, lambda file: write(file, "gemm")):
        with pytest.raises(ValueError, match=message) as error:
            take(file)
        assert str(file) in str(error.value)
    with pytest.raises(ValueError, match=message):
        jaxbp.tune(jaxbp.conv, jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 1)), file=file)
    assert file.read_text() == text and os.listdir(tmp_path) == ["plans.json"]


def test_a_binary_file_is_an_error(tmp_path):
    (tmp_path / "plans.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no file of plans"):
        jaxbp.use_plans(tmp_path / "plans.json")


def test_plans_of_another_machine_are_not_used_and_said_once(tmp_path):
    jaxbp.use_plans(write(tmp_path / "plans.json", "im2col", of=ELSEWHERE))
    with pytest.warns(UserWarning, match="none of its plans is for this machine .*another processor"):
        assert planned() == BY_TABLE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert planned() == BY_TABLE and planned("x")


def test_plans_of_unknown_algorithms_are_not_used(tmp_path):
    jaxbp.use_plans(write(tmp_path / "plans.json", "subpixel > strassen"))
    with pytest.warns(UserWarning, match="none of its plans is for this machine"):
        assert planned() == BY_TABLE


def test_no_warning_where_some_plan_fits(tmp_path):
    for plan, out, of in (("strassen", "z", HERE), ("im2col", "kernel", HERE), ("gemm", "z", ELSEWHERE)):
        write(tmp_path / "plans.json", plan, out, of)
    jaxbp.use_plans(tmp_path / "plans.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (planned(), planned("kernel")) == (BY_TABLE, "im2col")


@pytest.mark.parametrize(
    "plan", ["winograd", "subpixel > im2col", "im2col > direct", "per_group", "one_by_one > direct"]
)
def test_a_plan_that_does_not_apply_is_not_used(plan, tmp_path):
    """Somebody edited the file."""
    jaxbp.use_plans(write(tmp_path / "plans.json", plan))
    assert planned() == BY_TABLE


def test_a_machine_has_a_name_and_vector_extensions():
    assert processor() and HERE.threads >= 1
    if "flags" in Path("/proc/cpuinfo").read_text():
        assert "sse4_2" in extensions().split() or "asimd" in extensions().split()
    assert machine("cuda") is None or machine("cuda").processor


# --------------------------------------------------------------------------------------------- compiled programs


@pytest.fixture
def lowered(monkeypatch):
    """The sums that are planned, in order."""
    asked = []
    plan = _plan.plan
    monkeypatch.setattr(_plan, "plan", lambda p: (asked.append(str(plan(p))), plan(p))[1])
    return asked


@pytest.mark.parametrize("compiled", [True, False])
def test_programs_are_compiled_again_for_other_plans_and_give_the_same(compiled, file, lowered):
    x, kernel = (np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32) for shape in LAYER.shapes)

    def layer(x, kernel):
        return jaxbp.conv(x, kernel, strides=2)

    call = jax.jit(layer) if compiled else layer
    results = [call(x, kernel), call(x, kernel)]
    assert lowered == [BY_TABLE]
    jaxbp.use_plans(file)
    results += [call(x, kernel), call(x, kernel)]
    assert lowered == [BY_TABLE, "im2col"]
    # Read again, the same plans are no other ones.
    jaxbp.use_plans(file)
    with jaxbp.plans(None):
        results.append(call(x, kernel))
    results.append(call(x, kernel))
    assert lowered == [BY_TABLE, "im2col", BY_TABLE]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_gradient_maps_called_eagerly_are_compiled_again(file, lowered, tmp_path):
    write(file, "im2col", "kernel")
    x, delta = jnp.ones(LAYER.shapes[0]), jnp.ones((2, 5, 4, 6))
    for plans in (None, file, None):
        with jaxbp.plans(plans):
            jaxbp.conv_kernel_grad(x, delta, LAYER.shapes[1], strides=2)
    assert lowered == [str(_plan.by_table(SUMS["kernel"])), "im2col"]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_block_holds_for_each_device_s_part(file, lowered, kind):
    """XLA asks for the parts while it compiles, in a thread of its own."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    x, kernel = (jnp.ones(shape) for shape in LAYER.shapes)
    images = jax.device_put(jnp.concatenate([x, x]), NamedSharding(mesh, PartitionSpec("data")))
    kernel = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
    call = jax.jit(lambda x, kernel: jaxbp.conv(x, kernel, strides=2))
    for plans in (None, file, None):
        with jaxbp.plans(plans):
            call(images, kernel)
    assert lowered == [BY_TABLE, "im2col"]


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_sums_and_maps_are_planned_for_the_platform_of_the_lowering(monkeypatch, platform):
    asked, plan = [], _plan.plan
    monkeypatch.setattr(_plan, "plan", lambda p: (asked.append(p.platform), plan(p))[1])
    function = jax.jit(jax.grad(lambda k, x: jaxbp.max_pool(jaxbp.conv(x, k), (2, 2), (2, 2)).sum()))
    function.trace(jnp.ones((3, 3, 1, 2)), jnp.ones((1, 8, 8, 1))).lower(lowering_platforms=(platform,))
    assert asked == ["" if platform == "tpu" else platform] * 4


def test_a_default_precision_holds_for_each_device_s_part(monkeypatch):
    asked, plan = [], _plan.plan
    monkeypatch.setattr(_plan, "plan", lambda p: (asked.append(jax.config.jax_default_matmul_precision), plan(p))[1])
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    images = jax.device_put(jnp.ones((4, 5, 5, 3)), NamedSharding(mesh, PartitionSpec("data")))
    kernel = jax.device_put(jnp.ones((2, 2, 3, 4)), NamedSharding(mesh, PartitionSpec()))
    for precision in ("highest", None):
        with jax.default_matmul_precision(precision):
            jax.jit(lambda x, kernel: jaxbp.max_pool(jaxbp.conv(x, kernel), (2, 2)))(images, kernel)
    assert asked == ["highest", "highest", None, None]


def test_a_plan_is_for_its_own_sum_alone(file):
    jaxbp.use_plans(file)
    for other in (conv_case("a", "dense", (3, 9, 8, 4), (3, 3, 4, 6), 2), LAYER._replace(keywords={"strides": 1})):
        assert _plan.plan(problems(other, "float32", "cpu")["z"]).by == "table"
    assert _plan.plan(problems(LAYER, "bfloat16", "cpu")["z"]).by == "table"
    assert _plan.plan(problems(LAYER, "float32", "cuda")["z"]).by == "table"
    exact = SUMS["z"].geometry._replace(precision=jax.lax.Precision.HIGHEST)
    assert _plan.plan(SUMS["z"].inside(out="z", geometry=exact)).by == "table"
    assert _plan.plan(SUMS["z"].inside(out="z", geometry=SUMS["z"].geometry, members=4)).by == "table"


def test_what_names_no_file(tmp_path):
    for call in (jaxbp.use_plans, jaxbp.plans, lambda file: jaxbp.tune(len, [], file=file)):
        with pytest.raises(TypeError, match="file must be the path of a file, but got int 3"):
            call(3)
    for call in (jaxbp.use_plans, jaxbp.plans):
        with pytest.raises(IsADirectoryError, match="is a folder; give the path of a file of plans"):
            call(tmp_path)


def test_keys_of_different_sums_differ():
    g = SUMS["z"].geometry
    others = [
        *SUMS.values(),
        SUMS["z"].inside(out="z", geometry=g, members=2),
        SUMS["z"].inside(out="z", geometry=g._replace(preferred_element_type=np.float64)),
        SUMS["z"].inside(out="z", geometry=g._replace(precision=jax.lax.Precision.HIGHEST)),
        SUMS["z"].inside(out="z", geometry=g._replace(precision=(jax.lax.Precision.HIGHEST, None))),
        *problems(LAYER, "float16", "cpu").values(),
    ]
    assert len({key(describe(p)) for p in others}) == len(others)


def test_plans_reach_mapped_sums(tmp_path, lowered):
    x, kernel = jnp.ones((3, *LAYER.shapes[0])), jnp.ones((3, *LAYER.shapes[1]))
    p = SUMS["z"].inside(out="z", geometry=SUMS["z"].geometry, members=3)
    names = ["im2col", "one_by_one > im2col"]
    for name in names:
        merge(tmp_path / name, HERE, {key(describe(p)): Measured(name, "direct", 1.0, 2.0)})
        with jaxbp.plans(tmp_path / name):
            result = jax.vmap(lambda x, kernel: jaxbp.conv(x, kernel, strides=2))(x, kernel)
        expected = jax.vmap(lambda x, kernel: jaxbp.automatic.conv(x, kernel, strides=2))(x, kernel)
        np.testing.assert_array_equal(result, expected)
    assert lowered == names


# ------------------------------------------------------------------------------------------------------ the file


def test_the_file_can_be_read_and_is_merged(file):
    write(file, "gemm", "x", ELSEWHERE)
    write(file, "direct", "kernel")
    write(file, "kn2row")
    content = json.loads(file.read_text())
    assert content["version"] == 1
    first, second = content["machines"]
    assert [entry["plan"] for entry in first["plans"]] == ["kn2row", "direct"]
    assert second["processor"] == "another processor" and [entry["plan"] for entry in second["plans"]] == ["gemm"]
    assert first["plans"][0]["sum"] == {
        "sum": "forward", "batch": 2, "input": [9, 8], "channels": 4, "window": [3, 3], "features": 6,
        "strides": [2, 2], "padding": [[1, 1], [0, 1]], "output": [5, 4], "dtype": "float32",
    }  # fmt: skip
    assert file.read_text().count("\n") < 30


MERGING = """
import sys
from jaxbp._plan._machine import machine
from jaxbp._plan._measured import Measured
from jaxbp._tune._file import merge

for number in range(40):
    merge(sys.argv[1], machine("cpu"), {f'{{"sum": "{sys.argv[2]} {number}"}}': Measured("gemm", "direct", 1.0, 2.0)})
"""


def test_two_processes_that_write_at_once_lose_nothing(tmp_path):
    file = tmp_path / "plans.json"
    workers = [subprocess.Popen([sys.executable, "-c", MERGING, str(file), name], env=ENVIRONMENT) for name in "ab"]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    (machine,) = json.loads(file.read_text())["machines"]
    assert {entry["sum"]["sum"] for entry in machine["plans"]} == {f"{name} {i}" for name in "ab" for i in range(40)}
    assert os.listdir(tmp_path) == ["plans.json"]


def test_a_lock_that_a_killed_process_left_is_taken_away(tmp_path):
    lock = tmp_path / "plans.json.lock"
    lock.touch()
    os.utime(lock, (time.time() - 60, time.time() - 60))
    write(tmp_path / "plans.json", "gemm")
    assert os.listdir(tmp_path) == ["plans.json"]


def test_a_lock_that_is_held_is_an_error_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(_file, "WAIT_SECONDS", 0.05)
    (tmp_path / "plans.json.lock").touch()
    with pytest.raises(TimeoutError, match=r"plans\.json\.lock: another process has held it"):
        write(tmp_path / "plans.json", "gemm")
    assert not (tmp_path / "plans.json").exists()


WATCHED = """
import os, sys
import jax, jax.numpy as jnp
import jaxbp

assert not [name for name in sys.modules if name.startswith(("jaxbp._tune", "jaxbp._bench"))]
step = jax.jit(jax.grad(lambda k, x: jaxbp.max_pool(jaxbp.conv(x, k), (2, 2)).sum()))
automatic = jax.jit(jax.grad(lambda k, x: jaxbp.automatic.max_pool(jaxbp.automatic.conv(x, k), (2, 2)).sum()))
arguments = jnp.ones((3, 3, 2, 4)), jnp.ones((2, 8, 8, 2))
automatic(*arguments)
opened = []
sys.addaudithook(lambda event, args: opened.append(args) if event in ("open", "os.listdir", "os.scandir") else None)
step(*arguments)
jaxbp.conv(arguments[1], arguments[0])
# JAX itself looks up lines of code.
print([str(args[0]) for args in opened if not str(args[0]).endswith((".py", ".pyc"))])
assert not [name for name in sys.modules if name.startswith(("jaxbp._tune", "jaxbp._bench"))]
"""


def test_without_a_file_nothing_is_measured_read_or_written(tmp_path):
    environment = {name: value for name, value in ENVIRONMENT.items() if name != _measured.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
    assert os.listdir(tmp_path) == []


# ----------------------------------------------------------------------------------------------- names of plans


@pytest.mark.parametrize("members", [1, 3])
def test_every_candidate_is_found_again_by_its_name(members):
    cases = (
        LAYER,
        conv_case("b", "grouped", (2, 8, 8, 8), (3, 3, 4, 8), 2, feature_group_count=2),
        conv_case("c", "dilated", (2, 9, 8, 4), (3, 3, 4, 6), kernel_dilation=2),
        conv_case("d", "3-D", (1, 4, 5, 6, 2), (3, 3, 3, 2, 3)),
    )
    for case in cases:
        for platform in ("cpu", "cuda"):
            for p in problems(case, "float32", platform).values():
                p = p.inside(out=p.out, geometry=p.geometry, members=members)
                found = list(_plan.candidates(p))
                found += [inside for plan in found for inside in _plan.candidates_inside(plan)]
                for plan in found:
                    assert _plan.applies(p, str(plan)), plan
                    assert str(_plan.with_algorithm(p, str(plan), "again")) == str(plan)
                assert {str(_plan.by_table(p)), "direct"} <= {str(plan) for plan in found}


def test_a_precision_takes_no_candidate_that_mixes_outputs():
    for p in SUMS.values():
        exact = p.inside(out=p.out, geometry=p.geometry._replace(precision=jax.lax.Precision.HIGHEST))
        assert not [
            plan
            for plan in _plan.candidates(exact)
            if {"winograd", "width_tiling"} & set(str(plan).split(_plan.INSIDE))
        ]


def test_sums_without_a_choice_have_no_candidates():
    assert not list(_plan.candidates(SUMS["z"].inside(out="z", geometry=SUMS["z"].geometry, dtype=np.dtype("int32"))))
    assert tuple(_plan.TABLES) == ("cpu", "cuda")
