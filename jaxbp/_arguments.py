"""Array arguments, checked once at the door of every public op."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, PartitionSpec, auto_axes

F = TypeVar("F", bound=Callable[..., Any])
DTYPES_OF_64_BITS = frozenset(map(np.dtype, ("float64", "int64", "uint64", "complex128")))

# Of each array argument of a rule, whether it is differentiated.
Asked = tuple[bool, ...]


def keeping_64_bits(function: F) -> F:
    """`function`, at full width where arrays of 64 bits come from a block that enabled them and was left.

    lax keeps the width of such arrays, while jax.numpy cuts them to 32 bits. A rule's passes run after its op has
    returned, so they are decorated as well as the op.
    """

    @functools.wraps(function)
    def inner(*args: Any, **keywords: Any) -> Any:
        if any(map(_has_64_bits, jax.tree.leaves((args, keywords)))):
            with jax.enable_x64(True):
                return function(*args, **keywords)
        return function(*args, **keywords)

    return cast(F, inner)


def as_array(op: str, argument: str, value: Any) -> jax.Array:
    """`value` as a JAX array; anything that is not an array is refused by name."""
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise TypeError(
            f"{op}: {argument} must be an array, but got {type(value).__name__} {value!r}; wrap it in jax.numpy.asarray"
        )
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        array = None
    if array is None or jnp.issubdtype(array.dtype, jax.dtypes.extended):
        raise TypeError(
            f"{op}: {argument} is a {type(value).__name__} of dtype {value.dtype}, which holds no numbers that JAX can "
            "compute with; use an array of numbers, for example jax.numpy.zeros(shape)"
        )
    return array


def require_same_dtype(op: str, **arrays: jax.Array) -> None:
    """Refuse arguments of different dtypes, as lax does, instead of promoting them silently."""
    (first, reference), *others = arrays.items()
    for name, array in others:
        if array.dtype != reference.dtype:
            raise TypeError(
                f"{op}: {first} has dtype {reference.dtype}, but {name} has dtype {array.dtype}; "
                f"both must have the same, for example {name}.astype({first}.dtype)"
            )


def require_inexact(op: str, argument: str, array: jax.Array) -> None:
    """Refuse integers where the op or its gradient divides."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise TypeError(
            f"{op}: {argument} has dtype {array.dtype}, but a floating-point (or complex) dtype is needed; "
            f"for example {argument}.astype(jax.numpy.float32)"
        )


def refuse_complex(op: str, argument: str, array: jax.Array) -> None:
    """Refuse numbers without an order."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{op}: {argument} has dtype {array.dtype}, but complex numbers have no order; use real ones")


def call_rule(
    rule: Callable[..., Any],
    *arrays: jax.Array | None,
    output_shape: Sequence[int],
    like: Sequence[tuple[jax.Array, int]],
    out_sharding: Any = None,
) -> Any:
    """Call a custom_vjp rule so that it is right on every mesh.

    Under `shard_map` the rule hides its inside, so that a replicated argument's gradient would not be summed over
    the devices: all arrays are cast to the union of the mesh axes over which any of them varies, and the transpose
    of that cast is the sum. Where shardings are part of the types (`AxisType.Explicit`) the compiler partitions the
    inside, and each axis of the output is sharded as the input's axis that `like` names for it, if it divides.
    """
    arrays = _vary_alike(*arrays)
    shardings = [jax.typeof(a).sharding for a in arrays if a is not None]
    mesh = next((s.mesh for s in shardings if AxisType.Explicit in s.mesh.axis_types), None)
    if mesh is None:
        return rule(*arrays)
    if out_sharding is None:
        entries: list[Any] = []
        for size, (array, axis) in zip(output_shape, like, strict=True):
            entry = jax.typeof(array).sharding.spec[axis]
            names = () if entry is None else entry if isinstance(entry, tuple) else (entry,)
            fits = size % math.prod(mesh.shape[name] for name in names) == 0
            entries.append(entry if fits and entry not in entries else None)
        out_sharding = PartitionSpec(*entries)
    return auto_axes(rule, out_sharding=out_sharding)(*arrays)


def sum_dtype(dtype: Any) -> Any:
    """The dtype in which sums are accumulated: float32 for all shorter floating-point numbers, otherwise their own."""
    short = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4
    return jnp.float32 if short else dtype


def wider(a: Any, b: Any) -> Any:
    """The dtype with more bytes, where the two operands of a gradient differ (strict promotion has no answer)."""
    return max(a, b, key=lambda dtype: jnp.dtype(dtype).itemsize)


def _has_64_bits(value: Any) -> bool:
    """Whether a value is an array of JAX's (NumPy's become arrays of 32 bits) whose numbers have 64 bits."""
    value = getattr(value, "value", value)  # what a rule with symbolic zeros is given
    return isinstance(value, jax.Array) and value.dtype in DTYPES_OF_64_BITS


def _vary_alike(*arrays: jax.Array | None) -> tuple[Any, ...]:
    """Cast all arrays to the union of the mesh axes over which any of them varies inside `shard_map`."""
    varying = [frozenset() if a is None else jax.typeof(a).manual_axis_type.varying for a in arrays]
    union = frozenset().union(*varying)
    return tuple(
        a if a is None or axes == union else lax.pcast(a, tuple(sorted(union - axes)), to="varying")
        for a, axes in zip(arrays, varying, strict=True)
    )
