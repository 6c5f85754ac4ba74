"""The plans: short tables, few constants, one decision for each sum."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxbp
from jaxbp import _plan, _sums
from jaxbp._algorithms import _pools as pool_algorithms
from jaxbp._bench._plan import problems
from jaxbp._bench._random import random_cases
from jaxbp._bench._suite import CASES, conv_case
from jaxbp._geometry import PoolProblem, make_window
from jaxbp._plan import _cpu, _gpu, _pools

PACKAGE = Path(jaxbp.__file__).parent
TABLES = {(platform, out): table for platform, tables in _plan.TABLES.items() for out, table in tables.items()}
# A window that is larger than its input is not among them.
LARGE_WINDOW = conv_case("last layer", "dense", (8, 4, 4, 64), (7, 7, 64, 64))
LAYERS = [
    *(case for case in CASES if not case.pools),
    *(case for seed in range(40) for case in random_cases(110, seed) if not case.pools),
    LARGE_WINDOW,
]


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_a_table_is_short_and_ends_with_the_definition(table):
    rows = TABLES[table]
    assert len(rows) <= 15
    assert rows[-1].algorithm == "direct" and rows[-1].when(None)
    for row in rows:
        assert set(row.algorithm.split(_plan.INSIDE)) <= set(_plan.ALGORITHMS) and row.why


@pytest.mark.parametrize("name", _pools.TABLES)
def test_a_table_of_pools_is_short_and_ends_with_what_always_applies(name):
    known, rows = pool_algorithms.ALGORITHMS[name], _pools.TABLES[name]
    assert len(rows) <= 15 and {row.algorithm for row in rows} <= set(known) and all(row.why for row in rows)
    p = PoolProblem(name, make_window("max_pool", (2**12,), (2**11,), 1, "SAME"), 1, 1, "float32", "cpu")
    assert rows[-1].when(None) and known[rows[-1].algorithm].applies(p)


def numbers(module):
    """The numbers that a module writes down, but for 0, 1 and 2 and indices."""
    tree = ast.parse(Path(module.__file__).read_text())
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [value for value in constants if type(value) in (int, float) and value not in (0, 1, 2)]


def test_few_constants_choose():
    assert len(numbers(_cpu)) + len(numbers(_gpu)) + len(numbers(_pools)) <= 40


def test_algorithms_plans_and_sums_are_short():
    """Measured plans, which are a file format, are counted apart."""
    files = [*(PACKAGE / "_algorithms").glob("*.py"), *(PACKAGE / "_plan").glob("*.py"), PACKAGE / "_sums.py"]
    files = [file for file in files if file.name not in ("_measured.py", "_machine.py")]
    assert sum(len(file.read_text().splitlines()) for file in files) <= 3090


@pytest.mark.parametrize(("platform", "out"), TABLES, ids=str)
def test_layers_reach_every_row(platform, out):
    """A row that no layer reaches decides nothing."""
    reached = set()
    for case in LAYERS:
        p = problems(case, "float32", platform)[out]
        rows = TABLES[platform, out]
        reached.add(
            next(
                i
                for i, row in enumerate(rows)
                if _plan.ALGORITHMS[row.algorithm.partition(_plan.INSIDE)[0]].applies(p) and row.when(p)
            )
        )
    assert not {i: rows[i].why for i in range(len(rows)) if i not in reached}


def test_each_sum_is_planned_once(monkeypatch):
    asked = []
    plan = _plan.plan
    monkeypatch.setattr(_plan, "plan", lambda p: (asked.append(p), plan(p))[1])
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 8))
    jax.jit(jax.grad(lambda *a: jaxbp.conv(*a).sum(), (0, 1))).lower(x, kernel)
    assert [p.out for p in asked if p.geometry.window.rank == 2] == ["kernel", "x"]


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
def test_numbers_without_a_table_take_the_definition(dtype):
    p = _plan.problem_of(
        "z", problems(LAYERS[0], "float32", "cpu")["z"].geometry, (2, 9, 9, 3), (3, 3, 3, 4), dtype, "cpu"
    )
    assert _plan.plan(p).algorithm == "direct"


def test_other_platforms_take_the_definition():
    assert {_plan.plan(p).algorithm for p in problems(LAYERS[0], "float32", "tpu").values()} == {"direct"}


def test_a_precision_takes_no_algorithm_that_mixes_outputs():
    """An infinity would spread to neighbouring outputs."""
    for case in LAYERS[:300]:
        for p in problems(case, "float32", "cpu").values():
            exact = p.inside(out=p.out, geometry=p.geometry._replace(precision=jax.lax.Precision.HIGHEST))
            assert not {"winograd", "width_tiling"} & set(str(_plan.plan(exact)).split(" > "))


def test_the_sum_is_one_equation():
    jaxpr = jax.make_jaxpr(lambda x, k: _sums.forward(x, k, problems(CASES[0], "float32", "cpu")["z"].geometry))
    x, kernel, *_ = CASES[0].shapes
    assert [str(e.primitive) for e in jaxpr(jnp.ones(x), jnp.ones(kernel)).eqns] == ["conv_sum"]
