"""Measure one case of the suite, or one step of a model: times, memory, compile time, errors."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxbp

from ._measure import Limits, Times, interleave
from ._models import Model, initial_parameters, jax_step, training_data
from ._programs import (
    WHOLE,
    Program,
    compile_case,
    compile_program,
    function_of,
    gradients_in_float64,
    largest_error,
    random_arrays,
    residual_bytes,
    wait_on_cpu,
)
from ._result import BESIDE_TORCH, Pair, Result
from ._suite import Case, operations, traffic

# After a parallel region PyTorch's threads spin for some milliseconds before they sleep.
PAUSE_AFTER_TORCH = 1e-2


def warm_up() -> None:
    """Compile tiny programs, so that no case pays for what the compiler does only once."""
    conv = Case("", "", "conv", ((2, 4, 4, 2), (3, 3, 2, 2)))
    pool = Case("", "", "max_pool", ((2, 4, 4, 2),), ((2, 2),))
    for case in (conv, pool):
        for module in (jaxbp, jaxbp.automatic):
            function = function_of(case, module)
            _ready_programs(function, *random_arrays(case, function, jnp.float32), parts=False)


def measure_case(
    case: Case, dtype: str, seconds: float, limits: Limits, *, parts: bool, torch: bool, errors: bool
) -> Result:
    """Everything about one case. A program that does not run has no times, and a note that says why."""
    notes: list[str] = []
    functions = {"manual": function_of(case, jaxbp), "automatic": function_of(case, jaxbp.automatic)}
    arrays, delta = random_arrays(case, functions["automatic"], jnp.dtype(dtype))
    programs: dict[str, dict[str, Program]] = {}
    for name, function in functions.items():
        attempt = _attempt(partial(_ready_programs, function, arrays, delta, parts), name, notes)
        if attempt:
            programs[name] = attempt
    calls = {name: {part: program.call for part, program in each.items()} for name, each in programs.items()}
    if torch:
        from ._torch import torch_programs

        attempt = _attempt(lambda: torch_programs(case, arrays, delta, parts), "PyTorch", notes)
        if attempt:
            calls["torch"] = attempt
    times = {WHOLE: {}} | {
        part: _times({name: each[part] for name, each in calls.items()}, seconds)
        for part in next(iter(calls.values()), {})
    }
    whole = {name: each[WHOLE] for name, each in programs.items()}
    return Result(
        case.name,
        case.family,
        times,
        case.pools,
        _pair(whole, lambda program: program.temporary_bytes),
        Pair(**{name: residual_bytes(functions[name], arrays) for name in whole}),
        _pair(whole, lambda program: program.compile_seconds),
        _errors(functions["automatic"], whole, arrays, delta, notes) if errors else Pair(),
        _limit_seconds(case, delta.shape, np.dtype(delta.dtype).itemsize, limits),
        tuple(notes),
    )


def measure_model(model: Model, dtype: str, seconds: float, *, torch: bool) -> Result:
    """Everything about one training step; each rule trains its own copy of the same parameters."""
    notes: list[str] = []
    parameters = initial_parameters(model, jaxbp, jnp.dtype(dtype))
    images, labels = training_data(model, jnp.dtype(dtype))
    programs: dict[str, Program] = {}
    for name, ops in (("manual", jaxbp), ("automatic", jaxbp.automatic)):
        attempt = _attempt(partial(_training, model, ops, parameters, images, labels), name, notes)
        if attempt:
            programs[name] = attempt
    calls = {name: program.call for name, program in programs.items()}
    if torch:
        from ._torch import torch_step

        attempt = _attempt(lambda: torch_step(model, parameters, images, labels), "PyTorch", notes)
        if attempt:
            calls["torch"] = attempt
    return Result(
        model.name,
        model.family,
        {WHOLE: _times(calls, seconds)},
        temporary_bytes=_pair(programs, lambda program: program.temporary_bytes),
        compile_seconds=_pair(programs, lambda program: program.compile_seconds),
        notes=tuple(notes),
    )


def _times(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, Times]:
    """Both rules in turns; then manual and PyTorch, whose threads would disturb one rule more than the other."""
    times = interleave({name: call for name, call in calls.items() if name != "torch"}, seconds)
    if "torch" in calls:
        pair = {name: calls[own] for name, own in ((BESIDE_TORCH, "manual"), ("torch", "torch")) if own in calls}
        times |= interleave(pair, seconds, PAUSE_AFTER_TORCH)
    return times


def _training(model: Model, ops: Any, parameters: list[jax.Array], images: jax.Array, labels: jax.Array) -> Program:
    """A compiled training step that goes on from where its last call ended."""
    state = [jnp.copy(parameter) for parameter in parameters]
    program = compile_program(jax_step(model, ops), state, images, labels, donate=[0])

    def call() -> jax.Array:
        nonlocal state
        state, loss = program.call(state, images, labels)
        return wait_on_cpu(loss)

    jax.block_until_ready(call())
    return program._replace(call=call)


def _pair(programs: dict[str, Program], quantity: Callable[[Program], Any]) -> Pair:
    """One quantity of both rules, as far as they ran."""
    return Pair(**{name: quantity(program) for name, program in programs.items()})


def _ready_programs(function: Callable, arrays: list[jax.Array], delta: jax.Array, parts: bool) -> dict[str, Program]:
    """The case's programs, each of them run once: some fail only then."""
    programs = compile_case(function, arrays, delta, parts)
    for program in programs.values():
        jax.block_until_ready(program.call())
    return programs


def _attempt(action: Callable[[], Any], name: str, notes: list[str]) -> Any:
    """The action's result, or None and a note on why there is none."""
    try:
        return action()
    except Exception as error:  # whatever another library raises is a finding, and the suite goes on
        line = (str(error).strip().splitlines() or [""])[0]
        notes.append(f"{name} does not run: {type(error).__name__}: {line[:160]}")
        return None


def _errors(
    automatic: Callable, programs: dict[str, Program], arrays: list[jax.Array], delta: jax.Array, notes: list[str]
) -> Pair:
    """The largest error of each rule's gradients."""
    reference = _attempt(lambda: gradients_in_float64(automatic, arrays, delta), "automatic in float64", notes)
    if reference is None:
        return Pair()
    return _pair(programs, lambda program: largest_error(program, reference, delta.dtype))


def _limit_seconds(case: Case, output: tuple[int, ...], itemsize: int, limits: Limits) -> float:
    """The time that no program can beat: arithmetic or memory, whichever takes longer."""
    return max(operations(case, output) / limits.operations, traffic(case, output, itemsize) / limits.traffic)
