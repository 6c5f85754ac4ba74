"""A case as compiled programs: forward and all gradients in one, and each map for itself. What they cost, but time."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var

from ._suite import Case

WHOLE = "forward + gradients"
# Of an array; larger ones repeat them.
MOST_RANDOM = 1 << 22
GRADIENTS = ("input gradient", "kernel gradient", "bias gradient")


class Program(NamedTuple):
    """A compiled program bound to its arrays, with what the compiler says about it."""

    call: Callable[..., Any]
    temporary_bytes: int | None
    compile_seconds: float


def random_arrays(case: Case, function: Callable, dtype: Any, seed: int = 0) -> tuple[list[jax.Array], jax.Array]:
    """The case's arrays, and a cotangent of its output."""
    rng = np.random.default_rng(seed)
    arrays = [normal(rng, shape, dtype) for shape in case.shapes]
    return arrays, normal(rng, jax.eval_shape(function, *arrays).shape, dtype)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Random numbers; those of a large array repeat."""
    numbers = rng.standard_normal(min(math.prod(shape), MOST_RANDOM), np.float32)
    return jnp.asarray(np.resize(numbers, shape)).astype(dtype)


def function_of(case: Case, module: ModuleType) -> Callable[..., jax.Array]:
    """The case's op, from `jaxbp` or from `jaxbp.automatic`, as a function of arrays alone."""
    op = getattr(module, case.op)
    return lambda *arrays: op(*arrays, *case.arguments, **case.keywords)


def compile_case(function: Callable, arrays: list[jax.Array], delta: jax.Array, parts: bool) -> dict[str, Program]:
    """Forward and all gradients; with `parts` also the forward pass, and each gradient from what it left."""

    def whole(arrays, delta):
        output, pull = jax.vjp(function, *arrays)
        return output, pull(delta)

    programs = {WHOLE: compile_program(whole, arrays, delta)}
    if not parts:
        return programs
    programs["forward"] = compile_program(function, *arrays)
    for at, name in enumerate(GRADIENTS[: len(arrays)]):

        def pull_one(arrays, at=at):
            return jax.vjp(lambda one: function(*arrays[:at], one, *arrays[at + 1 :]), arrays[at])[1]

        pull = jax.jit(pull_one)(arrays)
        programs[name] = compile_program(lambda pull, delta: pull(delta), pull, delta)
    return programs


def compile_program(program: Callable, *operands: Any, donate: Sequence[int] = ()) -> Program:
    """Trace, lower and compile; the seconds are of all three. Without donated operands it can be called again."""
    compiled, lowering, compiling = _compile(program, operands, donate)
    # The compiler's threads share the cores with whatever runs; tracing again would find what it had found before.
    *_, again = _compile(program, operands, donate)
    seconds = lowering + min(compiling, again)
    analysis = compiled.memory_analysis()
    temporary = None if analysis is None else int(analysis.temp_size_in_bytes)
    if donate:
        return Program(compiled, temporary, seconds)
    return Program(lambda: wait_on_cpu(compiled(*operands)), temporary, seconds)


def bound(program: Callable, *operands: Any) -> Callable[[], Any]:
    """The compiled program of these operands."""
    compiled = jax.jit(program).lower(*operands).compile()
    return lambda: wait_on_cpu(compiled(*operands))


def _compile(program: Callable, operands: Sequence[Any], donate: Sequence[int]) -> tuple[Any, float, float]:
    """The compiled program, the seconds to trace and lower it, and those of the compiler."""
    # What earlier programs left behind would else be collected while this one is traced.
    gc.collect()
    start = time.perf_counter()
    lowered = jax.jit(lambda *operands: program(*operands), donate_argnums=donate).lower(*operands)
    middle = time.perf_counter()
    compiled = lowered.compile()
    return compiled, middle - start, time.perf_counter() - middle


def wait_on_cpu(results: Any) -> Any:
    """Let a CPU finish one call before the next, as they would share its cores; others queue calls by themselves."""
    return jax.block_until_ready(results) if jax.default_backend() == "cpu" else results


def residual_bytes(function: Callable, arrays: list[jax.Array]) -> int:
    """Bytes that the forward pass keeps for the backward pass, the arguments themselves not counted."""
    traced = jax.make_jaxpr(lambda *arrays: jax.vjp(function, *arrays)[1])(*arrays)
    results = zip(traced.jaxpr.outvars, traced.out_avals, strict=True)
    kept = {var: aval for var, aval in results if isinstance(var, Var) and var not in traced.jaxpr.invars}
    return sum(aval.size * aval.dtype.itemsize for aval in kept.values())


def gradients_in_float64(automatic: Callable, arrays: list[jax.Array], delta: jax.Array) -> list[np.ndarray]:
    """What the gradients of exactly these numbers are."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(array).astype(np.float64)) for array in (*arrays, delta)]
        gradients = jax.jit(lambda delta, *arrays: jax.vjp(automatic, *arrays)[1](delta))(wide[-1], *wide[:-1])
        return [np.asarray(gradient) for gradient in gradients]


def largest_error(program: Program, reference: list[np.ndarray], dtype: Any) -> float:
    """The largest error of all gradients, in units of eps times the largest entry of the right one."""
    _, gradients = program.call()
    eps = float(jnp.finfo(dtype).eps)
    return max(
        float(np.abs(np.asarray(found).astype(np.float64) - right).max() / (eps * max(np.abs(right).max(), 1e-300)))
        for found, right in zip(gradients, reference, strict=True)
    )
