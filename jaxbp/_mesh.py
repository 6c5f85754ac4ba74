"""Rules called so that they are right on every mesh: inside of `shard_map`, and where shardings are in the types."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes, reshard

from ._forward_mode import custom_vjp


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
