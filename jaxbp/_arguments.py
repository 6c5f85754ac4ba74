"""Array arguments, checked once at the door of every public op."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])
DTYPES_OF_64_BITS = frozenset(map(np.dtype, ("float64", "int64", "uint64", "complex128")))

# Of each array argument of a rule, whether it is differentiated.
Asked = tuple[bool, ...]


def full_width(values: Any) -> AbstractContextManager[Any]:
    """A block at full width, where arrays of 64 bits come from a block that enabled them and was left.

    lax keeps the width of such arrays, while jax.numpy cuts them to 32 bits. A rule's passes run after its op has
    returned, so they are at full width as well as the op.
    """
    if any(isinstance(a, jax.Array) and a.dtype in DTYPES_OF_64_BITS for a in jax.tree.leaves(values)):
        return jax.enable_x64(True)
    return nullcontext()


def keeping_64_bits(function: F) -> F:
    """`function` at the full width of its arguments."""

    @functools.wraps(function)
    def inner(*args: Any, **keywords: Any) -> Any:
        # JAX refuses to look for arrays in iterators.
        given = [value for value in (*args, *keywords.values()) if not isinstance(value, Iterator)]
        with full_width(given):
            return function(*args, **keywords)

    return cast(F, inner)


def as_array(op: str, argument: str, value: Any) -> jax.Array:
    """`value` as a JAX array; anything that is not an array is refused by name."""
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise TypeError(
            f"{op}: {argument} must be an array, but got {type(value).__name__} {value!r}; wrap it in jax.numpy.asarray"
        )
    try:
        # asarray would put an array that lies on no mesh on that of jax.set_mesh, and its transpose fails below a vmap.
        array = value if isinstance(value, jax.Array) else jnp.asarray(value)
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
            common = str(_common_dtype(reference.dtype, array.dtype))
            raise TypeError(
                f"{op}: {first} has dtype {reference.dtype}, but {name} has dtype {array.dtype}; "
                f"both must have the same, for example {first}.astype({common!r}) and {name}.astype({common!r})"
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


def sum_dtype(dtype: Any) -> Any:
    """The dtype in which sums are accumulated: float32 for all shorter floating-point numbers, otherwise their own."""
    short = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4
    return jnp.float32 if short else dtype


def wider(a: Any, b: Any) -> Any:
    """The dtype with more bytes, where the two operands of a gradient differ (strict promotion has no answer)."""
    return a if jnp.dtype(a).itemsize >= jnp.dtype(b).itemsize else b


def _common_dtype(a: Any, b: Any) -> Any:
    """The dtype that JAX promotes both to; where it has none (numbers of 8 bits or less), one that holds both."""
    try:
        with jax.numpy_dtype_promotion("standard"):
            return jnp.promote_types(a, b)
    except jax.dtypes.TypePromotionError:
        inexact = [dtype for dtype in (a, b) if jnp.issubdtype(dtype, jnp.inexact)]
        smallest = jnp.dtype(jnp.float32 if inexact else jnp.int32)
        return reduce(wider, inexact or [a, b], smallest)
