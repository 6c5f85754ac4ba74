"""Array arguments, checked once at the door of every public op."""

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, reduce
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes, reshard

from ._forward_mode import custom_vjp

F = TypeVar("F", bound=Callable[..., Any])
DTYPES_OF_64_BITS = frozenset(map(np.dtype, ("float64", "int64", "uint64", "complex128")))

# Of each array argument of a rule, whether it is differentiated.
Asked = tuple[bool, ...]


def full_width(values: Any) -> AbstractContextManager[Any]:
    """A block at full width where arrays of 64 bits come from a block that enabled them and was left.

    lax keeps the width of such arrays, while jax.numpy cuts them to 32 bits. A rule's passes run after its op has
    returned, so they have such blocks as well as the op.
    """
    if any(isinstance(a, jax.Array) and a.dtype in DTYPES_OF_64_BITS for a in jax.tree.leaves(values)):
        return jax.enable_x64(True)
    return nullcontext()


def keeping_64_bits(function: F) -> F:
    """`function` inside of `full_width` of its arguments."""

    @functools.wraps(function)
    def inner(*args: Any, **keywords: Any) -> Any:
        with full_width((args, keywords)):
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


def whole_along(array: jax.Array, axes: Sequence[int], channels: int) -> jax.Array:
    """The array, gathered along these axes where XLA would sum wrongly over them.

    XLA (jaxlib 0.10.2 to 0.12.0.1) partitions a convolution along a spatial axis that is sharded over some axes of a
    mesh while others hold copies, and adds the copies up, too; without shardings in the types nobody can tell.
    """
    sharding = jax.typeof(array).sharding
    mesh, spec = sharding.mesh, sharding.spec
    if AxisType.Explicit not in mesh.axis_types or all(spec[axis] is None for axis in axes):
        return array
    used = {name for axis, entry in enumerate(spec) if axis != channels for name in _names(entry)}
    if all(name in used or mesh.shape[name] == 1 for name in mesh.axis_names):
        return array
    kept = PartitionSpec(*(None if axis in axes else entry for axis, entry in enumerate(spec)))
    return reshard(array, NamedSharding(mesh, kept))


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


def _spec_like(mesh: Any, shape: Sequence[int], like: Sequence[tuple[jax.Array, int] | None]) -> PartitionSpec:
    """Each axis sharded as the axis named for it, if its size divides and no other axis has taken the mesh axes."""
    entries: list[Any] = []
    taken: set[str] = set()
    for size, pair in zip(shape, like, strict=True):
        entry = None if pair is None else jax.typeof(pair[0]).sharding.spec[pair[1]]
        names = _names(entry)
        fits = size % math.prod(mesh.shape[name] for name in names) == 0 and taken.isdisjoint(names)
        entries.append(entry if fits else None)
        taken.update(names if fits else ())
    return PartitionSpec(*entries)


def _names(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _replicated(mesh: Any, beside: jax.Array, array: jax.Array) -> jax.Array:
    """An array of this mesh as it is; one that lies on no mesh replicated on this one, which `beside` lies on."""
    return _replicate(mesh, beside, array) if jax.typeof(array).sharding.mesh.empty else array


@partial(jax.jit, static_argnums=0, keep_unused=True, inline=True)
def _replicate(mesh: Any, beside: jax.Array, array: jax.Array) -> jax.Array:
    """A program of its own: outside `jax.set_mesh` only its other argument knows the mesh's devices."""
    return reshard(array, NamedSharding(mesh, PartitionSpec()))


@partial(custom_vjp, nondiff_argnums=(0,))
def _put_on(mesh: Any, beside: jax.Array, array: jax.Array) -> jax.Array:
    """`_replicated`, whose delta stays on the mesh, as lax leaves it.

    JAX would take delta back to where the array was: on no mesh, where it cannot be sharded (below a vmap it is), or
    where an eager program says wrongly that it was.
    """
    return _replicated(mesh, beside, array)


def _put_on_fwd(mesh: Any, beside: jax.Array, array: jax.Array) -> tuple[jax.Array, None]:
    """Keep nothing."""
    return _replicated(mesh, beside, array), None


def _put_on_bwd(mesh: Any, _: None, delta: jax.Array) -> tuple[None, jax.Array]:
    """Leave delta as it is."""
    return None, delta


_put_on.defvjp(_put_on_fwd, _put_on_bwd)


def call_rule(
    rule: Callable[..., Any],
    *arrays: jax.Array | None,
    output_shape: Sequence[Any],
    like: Sequence[tuple[jax.Array, int] | None],
    out_sharding: Any = None,
    put: Callable[..., jax.Array] = _put_on,
) -> Any:
    """Call a custom_vjp rule so that it is right on every mesh.

    Under `shard_map` the rule hides its inside, so that a replicated argument's gradient would not be summed over
    the devices: all arrays are cast to the union of the mesh axes over which any of them varies, and the transpose
    of that cast is the sum. Where shardings are part of the types (`AxisType.Explicit`) the compiler partitions the
    inside, with all arrays put on the mesh, and each axis of the output is sharded as the input's axis that `like`
    names for it, if it divides.
    """
    arrays = vary_alike(*arrays)
    known = [a for a in arrays if a is not None and AxisType.Explicit in jax.typeof(a).sharding.mesh.axis_types]
    if not known:
        return rule(*arrays)
    mesh = jax.typeof(known[0]).sharding.mesh
    if not isinstance(out_sharding, NamedSharding):
        # A bare PartitionSpec means the mesh of jax.set_mesh, which most programs never enter.
        spec = _spec_like(mesh, output_shape, like) if out_sharding is None else out_sharding
        out_sharding = NamedSharding(mesh, spec)
    beside = lax.stop_gradient(known[0])
    on_mesh = [None if a is None else put(mesh, beside, a) for a in arrays]
    explicit = tuple(n for n, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
    return auto_axes(rule, axes=explicit, out_sharding=out_sharding)(*on_mesh)


# The same for a function that JAX itself differentiates, in both modes.
call_map = partial(call_rule, put=_replicated)


def vary_alike(*arrays: jax.Array | None) -> tuple[Any, ...]:
    """Cast all arrays to the union of the mesh axes over which any of them varies inside `shard_map`."""
    varying = [frozenset() if a is None else jax.typeof(a).manual_axis_type.varying for a in arrays]
    union = frozenset().union(*varying)
    return tuple(
        a if a is None or axes == union else lax.pcast(a, tuple(sorted(union - axes)), to="varying")
        for a, axes in zip(arrays, varying, strict=True)
    )
