"""Which algorithm evaluates a sum: `plan` decides once, by the table of its platform, and `evaluate` runs the plan.

A table is a list of rows, of which the first that fits counts. `_cpu` and `_gpu` hold the tables, `_algorithms` says
where an algorithm is correct, and how it runs. On other platforms every sum is direct.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._algorithms import (
    _batch_group_count,
    _direct,
    _fold_axis,
    _gemm,
    _im2col,
    _kn2row,
    _per_group,
    _row_im2col,
    _shift_add,
    _space_to_batch,
    _subpixel,
    _swap_operands,
    _valid_taps,
    _width_tiling,
    _winograd,
)
from .._algorithms._memory import after as after
from .._arguments import sum_dtype, wider
from .._geometry import ConvGeometry, Problem, problem
from . import _cpu, _gpu
from ._row import Row, always

ALGORITHMS = {
    module.__name__.rsplit("._", 1)[-1]: module
    for module in (
        *(_direct, _gemm, _im2col, _row_im2col, _kn2row, _valid_taps, _width_tiling, _space_to_batch, _subpixel),
        *(_winograd, _shift_add, _per_group, _fold_axis, _swap_operands, _batch_group_count),
    )
}
TABLES = {"cpu": _cpu.TABLES, "cuda": _gpu.TABLES}
DIRECT = [Row(always, "direct", "no other algorithm was measured on this platform")]
# Algorithms of a kernel's gradient that gather several times as many elements as x has.
GATHERING = {"im2col", "row_im2col", "width_tiling", "fold_axis", "valid_taps", "winograd"}


class Plan(NamedTuple):
    """An algorithm for a problem, why it was chosen, how it runs, and the plan of the sum that it leaves to another."""

    problem: Problem
    algorithm: str
    why: str
    run: Callable[[jax.Array, jax.Array], jax.Array]
    inner: "Plan | None" = None

    def __str__(self) -> str:
        """The names, from the outermost to the innermost."""
        return self.algorithm if self.inner is None else f"{self.algorithm} > {self.inner}"


def problem_of(
    out: str, g: ConvGeometry, a: Sequence[int], b: Sequence[int], dtype: Any, platform: str, members: int = 1
) -> Problem:
    """The sum of operands of these shapes."""
    features = b[-2] * g.feature_group_count if out == "x" else b[-1]
    return problem(out, g, a[0], a[-1], features, np.dtype(dtype), platform, members)


def plan(p: Problem) -> Plan:
    """How a sum is evaluated: the definition where the table is not for it, otherwise the first row that fits."""
    if p.symbolic:
        return with_algorithm(p, "direct", "sizes are symbolic")
    if not jnp.issubdtype(p.dtype, jnp.floating):
        return with_algorithm(p, "direct", "the numbers are no floating-point ones")
    if p.platform == "cuda" and p.geometry.preferred_element_type is not None:
        return with_algorithm(p, "direct", "cuDNN accumulates in the dtype that is asked for")
    return _by_table(p)


@lru_cache(maxsize=4096)
def _by_table(p: Problem) -> Plan:
    """The plan of the first row that fits."""
    table = TABLES.get(p.platform, {}).get(p.out, DIRECT)
    row = next(row for row in table if ALGORITHMS[row.algorithm.split()[0]].applies(p) and row.when(p))
    return with_algorithm(p, row.algorithm, row.why)


def candidates(p: Problem) -> Iterator[Plan]:
    """A plan for every algorithm that applies, and what it may leave its inner sum to."""
    for name, module in ALGORITHMS.items():
        if module.applies(p):
            inside = module.inside(p) if hasattr(module, "inside") else ("",)
            yield from (with_algorithm(p, f"{name} {other}".strip(), "it applies") for other in inside)


def with_algorithm(p: Problem, algorithm: str, why: str) -> Plan:
    """The plan of an algorithm: a name, perhaps with those inside it; otherwise the inner sum has a plan of its own."""
    name, _, inside = algorithm.partition(" ")
    module = ALGORITHMS[name]
    if name != "direct":
        p = p.inside(out=p.out, geometry=p.geometry._replace(preferred_element_type=None))
    inner = None
    if hasattr(module, "inner"):
        left = module.inner(p)
        inner = with_algorithm(left, inside, why) if inside else plan(left)
    run = partial(module.run, p=p) if inner is None else partial(module.run, p=p, of=inner.run)
    # In profiles and compiled programs an algorithm stands under its name.
    return Plan(p, name, why, jax.named_scope(name)(run), inner)


def evaluate(chosen: Plan, a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    """The sum by its plan, in this dtype; a CPU and the definition of a kernel's gradient accumulate in a wide one."""
    p = chosen.problem
    wide = wider(a.dtype, b.dtype)
    if p.platform != "cuda" and (chosen.algorithm != "direct" or p.out == "kernel"):
        wide = wider(sum_dtype(wide), dtype) if jnp.issubdtype(dtype, jnp.inexact) else sum_dtype(wide)
    a, b = a.astype(wide), b.astype(wide)
    if p.platform == "cpu" and p.out == "kernel" and not GATHERING.isdisjoint(str(chosen).split(" > ")):
        # Otherwise it would be gathered in the forward pass, for all layers, and kept.
        a = after(a, b)
    return chosen.run(a, b).astype(dtype)


def one_by_one(chosen: Plan) -> bool:
    """Whether examples with kernel gradients of their own are taken one after the other.

    Mapped, the direct sum would be a convolution of as many groups, which XLA:CPU runs as if it were dense.
    """
    p = chosen.problem
    large = p.batch * p.pixels * p.channels >= _cpu.LARGE_EXAMPLE
    return p.platform == "cpu" and p.out == "kernel" and p.members > 1 and (large or chosen.algorithm == "direct")
