"""A Pallas kernel as plain JAX: its blocks one after the other, its references as values.

The same as JAX's own interpret mode (jax/_src/pallas/hlo_interpreter.py), but for three things: the body is walked, so
that it can run in float64; the grid is a scan, so that JAX can differentiate it; and what lies outside of an array
repeats its edge and is not NaN, so that a derivative of 0 there stays 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from inspect import signature
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ._wide import Walk, _strong, double, evaluate, is_float, widened


def run_kernel(walk: Walk, equation: Any, values: list[Any]) -> Sequence[Any]:
    """The results of a pallas_call equation."""
    grid_mapping = equation.params["grid_mapping"]
    grid = tuple(int(size) for size in grid_mapping.grid)
    body = _without_references(equation.params["jaxpr"], grid_mapping)
    scalars = values[: grid_mapping.num_index_operands]
    arrays = list(values[grid_mapping.num_index_operands :])
    aliases = {result: operand for operand, result in equation.params["input_output_aliases"]}
    mappings, inputs = grid_mapping.block_mappings, len(arrays)
    for at, mapping in enumerate(grid_mapping.block_mappings_output):
        arrays.append(values[aliases[at]] if at in aliases else _zeros(walk, mapping.array_aval))
    if any(getattr(size, "padding", (0, 0)) != (0, 0) for mapping in mappings for size in mapping.block_shape):
        raise NotImplementedError("blocks with padding")
    blocks = [tuple(getattr(size, "block_size", 1) for size in mapping.block_shape) for mapping in mappings]
    squeezed = [tuple(at for at, size in enumerate(m.block_shape) if not hasattr(size, "block_size")) for m in mappings]
    scratch = [
        _zeros(walk, variable.aval) for variable in getattr(body, "jaxpr", body).invars[len(scalars) + len(arrays) :]
    ]
    carry = [_padded(array, block) for array, block in zip(arrays, blocks, strict=True)]

    def step(carry: list[Any], place: Any) -> tuple[list[Any], None]:
        place = [place[axis] for axis in range(len(grid))]
        whole, kept = carry[: len(arrays)], carry[len(arrays) :]
        outer, walk.grid = (
            walk.grid,
            tuple((place[a], size) for a, size in enumerate(grid) if a not in grid_mapping.vmapped_dims),
        )
        try:
            starts = [mapping.compute_start_indices_interpret(tuple(place), *scalars) for mapping in mappings]
            starts = [tuple(jnp.asarray(s, jnp.int32) for s in start) for start in starts]
            parts = [
                lax.squeeze(lax.dynamic_slice(array, start, block), dropped)
                for array, start, block, dropped in zip(whole, starts, blocks, squeezed, strict=True)
            ]
            results = evaluate(walk, body, [*scalars, *parts, *kept])[len(scalars) :]
        finally:
            walk.grid = outer
        for at in range(inputs, len(arrays)):
            part = lax.expand_dims(results[at], squeezed[at])
            whole[at] = lax.dynamic_update_slice(whole[at], part.astype(whole[at].dtype), starts[at])
        return [_strong(value) for value in (*whole, *results[len(arrays) :])], None

    places = np.array(list(itertools.product(*map(range, grid))), np.int32).reshape(math.prod(grid), len(grid))
    carry, _ = lax.scan(step, [_strong(value) for value in (*carry, *scratch)], jnp.asarray(places))
    shapes = [mapping.array_aval.shape for mapping in grid_mapping.block_mappings_output]
    return [
        lax.slice(array, (0,) * array.ndim, shape)
        for array, shape in zip(carry[inputs : len(arrays)], shapes, strict=True)
    ]


def _without_references(jaxpr: Any, grid_mapping: Any) -> Any:
    """The kernel's jaxpr as a function of values that returns the values its references have in the end."""
    from jax._src.state.discharge import discharge_state
    from jax.extend.core import ClosedJaxpr

    with grid_mapping.trace_env():
        closed = ClosedJaxpr(jaxpr, ())
        more = {"strip_memory_space": True} if "strip_memory_space" in signature(discharge_state).parameters else {}
        without = discharge_state(closed, **more)
    return without


def _zeros(walk: Walk, aval: Any) -> Any:
    """What memory holds that nobody wrote to."""
    aval = getattr(aval, "inner_aval", aval)
    dtype = double(aval.dtype) if walk.wide and is_float(aval.dtype) else aval.dtype
    return widened(walk, jnp.zeros(aval.shape, dtype))


def _padded(array: Any, block: tuple[int, ...]) -> Any:
    """The array, its edge repeated up to whole blocks."""
    more = [(0, -size % part) for size, part in zip(array.shape, block, strict=True)]
    return jnp.pad(array, more, mode="edge") if any(high for _, high in more) else array
