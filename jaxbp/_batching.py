"""Ops with a hand-written backward rule, as JAX primitives around their `custom_vjp`.

A bare `custom_vjp` knows too little of the program around it. Mapped, its backward pass is mapped: a model written for
one example, and mapped over many (as Equinox models are), would compute a kernel gradient for each example and add them
up afterwards. And JAX keeps one record of the residuals for all traces of a rule, so that a rule that keeps only what
is asked for gives wrong gradients where one jitted or checkpointed layer is used twice.

A primitive around the rule sees both. Its batching joins the examples to the batch, as long as they share everything
else. Its derivative is that of the `custom_vjp`, told trace by trace which arguments are differentiated.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ._arguments import full_width, keeping_64_bits
from ._forward_mode import custom_vjp

Levels = tuple[tuple[bool, ...], ...]


def op_primitive(
    name: str, op: Callable[..., jax.Array], forward: Callable[..., Any], backward: Callable[..., Any]
) -> Primitive:
    """A primitive that evaluates `op(static, *arrays)` and whose derivative is a `custom_vjp`.

    `forward(static, asked, *arrays)` gives the result and what is kept, `backward(static, asked, kept, delta)` a
    gradient for every array that is asked for; `asked` says which. The primitive's parameters: `static`, hashable;
    `batch`, the axes of the first arrays (of one or more) and of the result along which examples may join, or None;
    `levels`, for each mapped axis which of the arrays have it; `both_modes`, whether it was bound inside of
    `forward_mode`, where the op has forward mode and, if it is linear, a transpose.
    """
    primitive = Primitive(name)

    @keeping_64_bits
    def evaluate(*arrays: jax.Array, static: Any, batch: Any, levels: Levels, both_modes: bool = False) -> jax.Array:
        return mapped_over(functools.partial(op, static), levels)(*arrays)

    @functools.lru_cache(maxsize=4096)
    def compiled(**parameters: Any) -> Callable[..., jax.Array]:
        return jax.jit(functools.partial(evaluate, **parameters))

    def derivative(
        primals: Sequence[Any], tangents: Sequence[Any], *, static: Any, batch: Any, levels: Levels, both_modes=False
    ) -> Any:
        asked = tuple(type(tangent) is not ad.Zero for tangent in tangents)

        def rule(*arrays: jax.Array) -> jax.Array:
            """A `custom_vjp` of the arrays that are differentiated; the others, constants, keep nothing."""
            call = custom_vjp(lambda *some: op(static, *_replaced(arrays, asked, some)))
            call.defvjp(
                lambda *some: forward(static, asked, *_replaced(arrays, asked, some)),
                lambda kept, delta: tuple(compress(backward(static, asked, kept, delta), asked)),
            )
            return (call.inside if both_modes else call.outside)(*compress(arrays, asked))

        mapped = mapped_over(rule, levels)
        # Constants count, too, which are no arguments of the rule's passes.
        with full_width(primals):
            return jax.jvp(
                lambda *some: mapped(*_replaced(primals, asked, some)),
                tuple(compress(primals, asked)),
                tuple(compress(tangents, asked)),
            )

    def transposed(delta: Any, *arrays: Any, both_modes: bool = False, **parameters: Any) -> list[Any]:
        """As the plain op is transposed, whose sums have transposes of their own."""
        if not both_modes:
            raise NotImplementedError(
                f"{name}: jax.linear_transpose needs forward mode; trace it inside of `with jaxbp.forward_mode():`"
            )
        unknown = [ad.is_undefined_primal(a) for a in arrays]
        avals = [a.aval for a in compress(arrays, unknown)]
        if type(delta) is ad.Zero:
            return _replaced([None] * len(arrays), unknown, map(ad.Zero, avals))
        transpose = jax.linear_transpose(
            lambda *some: evaluate(*_replaced(arrays, unknown, some), **parameters), *avals
        )
        return _replaced([None] * len(arrays), unknown, transpose(delta))

    def series(primals: Sequence[Any], series: Sequence[Any], **parameters: Any) -> Any:
        """The Taylor coefficients of the plain op."""
        return jet.jet(functools.partial(evaluate, **parameters), primals, series, factorial_scaled=False)

    def batched(
        arrays: Sequence[Any], axes: Sequence[Any], *, static: Any, batch: Any, levels: Levels, **mode: bool
    ) -> Any:
        arrays = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True)]
        level = tuple(axis is not None for axis in axes)
        rows = 0 if batch is None else len(batch) - 1
        if batch is None or levels or any(level[rows:]):
            return primitive.bind(*arrays, static=static, batch=batch, levels=(level, *levels), **mode), 0
        count = next(a.shape[0] for a, mapped in zip(arrays, level, strict=True) if mapped)
        rowed = [a if m else jnp.broadcast_to(a, (count, *a.shape)) for a, m in zip(arrays[:rows], level, strict=False)]
        joined = [_join(a, axis) for a, axis in zip(rowed, batch, strict=False)]
        z = primitive.bind(*(a for a, _ in joined), *arrays[rows:], static=static, batch=batch, levels=(), **mode)
        _, examples = joined[0]
        return _part(z, batch[-1], examples), 0

    primitive.def_impl(lambda *arrays, **parameters: compiled(**parameters)(*arrays))
    primitive.def_abstract_eval(
        lambda *avals, **p: jax.make_jaxpr(functools.partial(evaluate, **p))(*avals).out_avals[0]
    )
    ad.primitive_jvps[primitive] = derivative
    ad.primitive_transposes[primitive] = transposed
    jet.jet_rules[primitive] = series
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(evaluate, multiple_results=False))
    return primitive


def mapped_over(
    function: Callable[..., jax.Array], levels: Levels, one_by_one: bool = False
) -> Callable[..., jax.Array]:
    """The function mapped over each level; with `one_by_one` in a loop, where all arguments are mapped."""
    for level in reversed(levels):
        if one_by_one and all(level):
            function = functools.partial(_in_a_loop, function)
        else:
            function = jax.vmap(function, tuple(0 if mapped else None for mapped in level))
    return function


def _in_a_loop(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """The function of one example after the other."""
    return jax.lax.map(lambda some: function(*some), arrays)


def _replaced(arrays: Sequence[Any], chosen: Sequence[bool], some: Iterable[Any]) -> list[Any]:
    """The arrays, with others in place of those that are chosen."""
    others = iter(some)
    return [next(others) if one else a for a, one in zip(arrays, chosen, strict=True)]


def _join(a: jax.Array, axis: int) -> tuple[jax.Array, tuple[int, ...]]:
    """The first axis joined to the examples along `axis` of what is behind it, and how many they were."""
    a = jnp.moveaxis(a, 0, axis)
    examples = a.shape[axis : axis + 2]
    return a.reshape(*a.shape[:axis], math.prod(examples), *a.shape[axis + 2 :]), examples


def _part(a: jax.Array, axis: int, examples: tuple[int, ...]) -> jax.Array:
    """What `_join` joined."""
    return jnp.moveaxis(a.reshape(*a.shape[:axis], *examples, *a.shape[axis + 1 :]), axis, 0)
