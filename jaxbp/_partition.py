"""How an op is split over several devices.

XLA's partitioner sees an algorithm, not the sum that it computes: where an algorithm joins images and rows to one axis,
XLA gathers all of them on every device. So an op that is lowered for several devices stands under JAX's
`custom_partitioning`, with a rule in the way of an einsum. The rule names each axis of an operand or result by its
*factors*. Where a factor of operands and results is split, each device computes its own part. Where a factor of
operands alone is split, each device sums its part, and a `psum` adds the parts up. What else is sharded is gathered.

A *window factor* is a spatial axis: its parts read some pixels of their neighbours, the *halo*, which they send
each other.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from ._geometry import Window, dilated_size

# So much work takes as long as sending a byte: few for any device, so that work is repeated only where there is little.
WORK_PER_BYTE = 8

Names = tuple[str, ...]
# The factors of every axis of an array, the outermost first.
Axes = tuple[Names, ...]


class Rule(NamedTuple):
    """An op's operands and results by their factors, the factors' sizes (what divides one may split it), and its work.

    Work is counted in products, or in pixels that are read. `untied`: factors along which XLA splits a result as its
    consumers are split, whatever the operands are.
    """

    operands: tuple[Axes, ...]
    results: tuple[Axes, ...]
    sizes: Mapping[str, int]
    work: int
    untied: tuple[str, ...] = ()

    @property
    def summed(self) -> tuple[str, ...]:
        """The factors that no result has, in the order in which they occur."""
        kept = _all(self.results)
        return tuple(factor for factor in _all(self.operands) if factor not in kept)


class Split(NamedTuple):
    """The axes of a mesh over which each factor is split."""

    mesh: Mesh
    over: Mapping[str, Names]

    def count(self, factor: str) -> int:
        """Into how many parts a factor is split."""
        return _size(self.mesh, self.over.get(factor, ()))

    def names(self, axis: Names) -> Names:
        """Over which axes of the mesh an axis of these factors is split."""
        return sum((self.over.get(factor, ()) for factor in axis), ())

    def spec(self, axes: Axes) -> PartitionSpec:
        """How an array of these factors is sharded."""
        return PartitionSpec(*(self.names(axis) or None for axis in axes))


def on_devices(
    whole: Callable[..., Any], part: Callable[..., Any], rule: Callable[..., Rule | None],
    remainder: Callable[..., Any], results: int | None = None,
) -> Callable[..., Any]:  # fmt: skip
    """The lowering of a primitive: `whole` on one device; on several, each computes its part.

    `rule(*avals, **parameters)` is the op's rule, and `part(**parameters)(split, *operands)` computes a device's part.
    `part` is called when the program is lowered; what it gives is called when XLA compiles, in a thread of its own.
    `remainder` is for XLA to partition: where there is no rule, in programs to export, where some axes of a mesh are
    manual and others are not, and where the devices are not here. `results`: how many, if the primitive has several.
    """

    def lower(ctx: Any, *operands: Any, **parameters: Any) -> Any:
        devices = _devices(ctx)
        sharding_rule = None if devices is None or len(devices) == 1 else rule(*ctx.avals_in, **parameters)
        if devices is None or sharding_rule is None:
            function = whole if devices is not None and len(devices) == 1 else remainder
            return mlir.lower_fun(function, multiple_results=results is not None)(ctx, *operands, **parameters)
        context = dataclasses.replace(ctx.module_context.axis_context, device_assignment=devices)
        ctx = ctx.replace(module_context=ctx.module_context.replace(axis_context=context))
        # An operand that is only waited for would delay what is sent.
        count = len(sharding_rule.operands)
        ctx = ctx.replace(avals_in=ctx.avals_in[:count])
        # JAX asks it for the shapes of its results alone.
        same = jax.jit(functools.partial(ctx.primitive.bind, **parameters))
        function = _partitioned(same, part(**parameters), sharding_rule, results is not None, devices)
        return mlir.lower_fun(function, multiple_results=results is not None)(ctx, *operands[:count])

    return lower


def joined(**sizes: int) -> Names:
    """The factors of an axis, the outermost first, without those of size 1 beside others."""
    return tuple(name for name, size in sizes.items() if size > 1) or tuple(sizes)[-1:]


def window_factors(w: Window) -> tuple[Axes, Axes]:
    """The factors of a window's input axes and of its output axes: the same where parts of both belong together."""
    sizes = window_sizes(w)
    inputs = tuple((factor,) for factor in sizes)
    return inputs, tuple((factor if size else f"out_{factor}",) for factor, size in sizes.items())


def window_sizes(w: Window) -> dict[str, int]:
    """What a number of devices must divide to split each spatial axis; 0 where input and output do not divide alike."""
    facts = zip(w.input_shape, w.input_dilation, w.output_shape, w.strides, strict=True)
    return {
        f"s{axis}": math.gcd(size, out) if size * between == out * stride else 0
        for axis, (size, between, out, stride) in enumerate(facts)
    }


def part_of_window(w: Window, split: Split, of_output: bool = False) -> tuple[Window, list[tuple[int, int]]]:
    """A device's part of a window, and how many pixels it reads of its neighbours along each axis, before and behind.

    Of the input, or `of_output` of delta, where pixel i asks for all outputs that met it: `i = s o + d t - p`.
    """
    halos, facts = [], []
    for axis in range(w.rank):
        count = split.count(f"s{axis}")
        size, out = w.input_shape[axis] // count, w.output_shape[axis] // count
        stride, between, (low, high) = w.strides[axis], w.input_dilation[axis], w.padding[axis]
        span = dilated_size(w.window_shape[axis], w.dilation[axis])
        before = behind = 0
        if count > 1 and of_output:
            before = max(0, (span - 1 - low) // stride)
            behind = max(0, ((size - 1) * between + low) // stride - (out - 1))
            out, low = before + out + behind, low + before * stride
        elif count > 1:
            before = max(0, low // between)
            behind = max(0, ((out - 1) * stride + span - 1 - low) // between - (size - 1))
            size, low = before + size + behind, low - before * between
        if count > 1:
            high = (out - 1) * stride + span - low - dilated_size(size, between)
        halos.append((before, behind))
        facts.append((size, out, (low, high)))
    sizes, outs, padding = zip(*facts, strict=True) if facts else ((), (), ())
    return w._replace(input_shape=sizes, output_shape=outs, padding=padding), halos


def with_halos(a: jax.Array, first: int, halos: Sequence[tuple[int, int]], split: Split, fill: Any = 0) -> jax.Array:
    """A device's part of an array with the pixels of its neighbours, and `fill` where there is none.

    `first`: the first spatial axis.
    """
    for axis, (before, behind) in enumerate(halos):
        if before or behind:
            a = _with_halo(a, first + axis, before, behind, split, f"s{axis}", fill)
    return a


def _devices(ctx: Any) -> tuple[Any, ...] | None:
    """As many devices as XLA partitions the program for, or None where it must partition the op's inside."""
    context = ctx.module_context.axis_context
    if hasattr(context, "manual_axes"):
        return (None,) if len(context.manual_axes) == len(context.mesh.axis_names) else None
    count = getattr(context, "num_devices", 1)
    if count == 1:
        return (None,)
    if ctx.module_context.lowering_parameters.for_export or not getattr(jax.config, "jax_use_shardy_partitioner", True):
        return None
    try:
        # Which ones does not matter: shardings count them. JAX tells only primitives of its own.
        devices = context.device_assignment or jax.devices(ctx.module_context.platforms[0])
    except RuntimeError:
        return None  # lowered for a platform that is not here
    return tuple(devices[:count]) if len(devices) >= count else None


def _partitioned(
    function: Callable[..., Any], part: Callable[..., Any], rule: Rule, several: bool, devices: Sequence[Any]
) -> Callable[..., Any]:
    """The function, for XLA to split by its rule."""

    def partition(_: Mesh, operands: Any, result: Any) -> Any:
        arrays = [*operands, *(result if several else [result])]
        ranks = [len(a.shape) for a in arrays]
        shardings = [a.sharding._to_xla_hlo_sharding(rank) for a, rank in zip(arrays, ranks, strict=True)]
        mesh, sharded = _mesh_of(shardings, ranks, devices)
        split = _choose(rule, mesh, arrays, sharded)
        named = [NamedSharding(mesh, split.spec(axes)) for axes in (*rule.operands, *rule.results)]
        puts, out = named[: len(operands)], named[len(operands) :]
        over = tuple(name for factor in rule.summed for name in split.over.get(factor, ()))

        def local(*parts: jax.Array) -> Any:
            # JAX would write the mesh of `jax.set_mesh` into each device's part, which XLA then cannot run.
            with use_abstract_mesh(AbstractMesh((), ())):
                y = part(split, *parts)
                return lax.psum(y, over) if over else y

        return mesh, local, out if several else out[0], tuple(puts)

    # For XLA an untied factor of a result is one of its own.
    own = {factor: f"result_{factor}" for factor in rule.untied}
    results = tuple(tuple(tuple(own.get(f, f) for f in axis) for axis in axes) for axes in rule.results)
    sizes = {**rule.sizes, **{name: rule.sizes[factor] for factor, name in own.items()}}
    every = [axis for axes in (*rule.operands, *results) for axis in axes]
    inner = {factor for axis in every if len(axis) > 1 for factor in axis} - {
        axis[0] for axis in every if len(axis) == 1
    }
    wrapped = custom_partitioning(function)
    wrapped.def_partition(
        partition, decode_shardings=False, reduction_factors=rule.summed,
        sharding_rule=" -> ".join(", ".join(map(_letters, arrays)) for arrays in (rule.operands, results)),
        **{factor: sizes[factor] for factor in sorted(inner)},
    )  # fmt: skip
    return wrapped


def _letters(axes: Axes) -> str:
    """The factors of an array, as an einsum has them."""
    return " ".join(axis[0] if len(axis) == 1 else f"({' '.join(axis)})" for axis in axes)


def _choose(rule: Rule, mesh: Mesh, arrays: Sequence[Any], sharded: Sequence[Sequence[Names]]) -> Split:
    """The split that takes the least time."""
    mappings = (*rule.operands, *rule.results)
    # Where each axis of the mesh occurs. Those that occur in the same places are split together.
    places: dict[str, set[tuple[int, int]]] = {}
    for i, entries in enumerate(sharded):
        for k, names in enumerate(entries):
            for name in names:
                places.setdefault(name, set()).add((i, k))
    groups: dict[frozenset[tuple[int, int]], Names] = {}
    for name, found in places.items():
        groups[frozenset(found)] = (*groups.get(frozenset(found), ()), name)
    # Parts of an inner factor would be no blocks of their axis.
    outer = dict.fromkeys(axis[0] for axes in mappings for axis in axes if rule.sizes.get(axis[0], 0) > 1)
    inner = {factor for axes in mappings for axis in axes for factor in axis[1:]}
    options = [None, *(factor for factor in outer if factor not in inner)]
    splits = []
    for choice in itertools.product(options, repeat=len(groups)):
        over: dict[str, Names] = {}
        for names, factor in zip(groups.values(), choice, strict=True):
            if factor is not None:
                over[factor] = (*over.get(factor, ()), *names)
        split = Split(mesh, over)
        if all(rule.sizes[factor] % split.count(factor) == 0 for factor in over):
            splits.append(split)
    return min(splits, key=lambda split: _cost(split, rule, arrays, sharded))


def _cost(split: Split, rule: Rule, arrays: Sequence[Any], sharded: Sequence[Sequence[Names]]) -> tuple[int, int]:
    """A device's work and what it is sent as one number, and how many devices do what another does, too."""
    sent = 0
    for i, (axes, entries, a) in enumerate(zip((*rule.operands, *rule.results), sharded, arrays, strict=True)):
        is_result = i >= len(rule.operands)
        wanted = [split.names(axis) for axis in axes]
        before, after = (wanted, entries) if is_result else (entries, wanted)
        # Slices of what a device has are free.
        if any(set(b) - set(c) for b, c in zip(before, after, strict=True)):
            sent += _bytes(a) // _size(split.mesh, sum(after, ()))
        if is_result and any(factor in split.over for factor in rule.summed):
            sent += _bytes(a) // _size(split.mesh, sum(wanted, ()))
    parts = _size(split.mesh, sum(split.over.values(), ()))
    return rule.work // parts + WORK_PER_BYTE * sent, split.mesh.size // parts


def _mesh_of(shardings: Sequence[Any], ranks: Sequence[int], devices: Sequence[Any]) -> tuple[Mesh, list[list[Names]]]:
    """A mesh of axes of prime size, and over which of them each axis of each array is split.

    JAX does not tell the program's own mesh. All axes of such a mesh are products of axes of this one.
    """
    decoded = []
    for sizes in _orders(_primes(len(devices))):
        decoded.append((sizes, [_axes_of(s, rank, sizes) for s, rank in zip(shardings, ranks, strict=True)]))
    sizes, axes = min(decoded, key=lambda one: one[1].count(None))
    mesh = Mesh(np.reshape(devices, sizes), [f"axis{i}" for i in range(len(sizes))])
    # What cannot be said is gathered.
    return mesh, [[()] * rank if a is None else a for a, rank in zip(axes, ranks, strict=True)]


def _axes_of(sharding: Any, rank: int, sizes: Sequence[int]) -> list[Names] | None:
    """Over which axes of a mesh each axis of an array is split; None where that cannot be said."""
    if not sharding.is_tiled():
        return [()] * rank
    tiles = sharding.tile_assignment_dimensions()
    if sharding.subgroup_types() or math.prod(tiles) != math.prod(sizes):
        return None
    indices = np.unravel_index(np.argsort(sharding.tile_assignment_devices()), tiles)
    coordinates = dict(enumerate(np.unravel_index(np.arange(math.prod(sizes)), sizes)))
    found: list[Names] = []
    for index, left in zip(indices[:rank], tiles[:rank], strict=True):
        names: Names = ()
        while left > 1:
            fitting = (
                k for k, at in coordinates.items() if left % sizes[k] == 0 and np.all(index // (left // sizes[k]) == at)
            )
            k = next(fitting, None)
            if k is None:
                return None
            left //= sizes[k]
            index = index % left
            names += (f"axis{k}",)
            del coordinates[k]
        found.append(names)
    return found


def _primes(number: int) -> list[int]:
    """The prime factors of a number."""
    smallest = next((n for n in range(2, math.isqrt(number) + 1) if number % n == 0), number)
    return [] if number == 1 else [smallest, *_primes(number // smallest)]


def _orders(values: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All distinct orders of some values."""
    if not values:
        yield ()
    for value in sorted(set(values)):
        rest = list(values)
        rest.remove(value)
        yield from ((value, *others) for others in _orders(rest))


def _size(mesh: Mesh, names: Names) -> int:
    """How many devices lie along axes of a mesh."""
    return math.prod(mesh.shape[name] for name in names)


def _bytes(a: Any) -> int:
    """Those of an array."""
    return math.prod(a.shape) * a.dtype.itemsize


def _all(arrays: Sequence[Axes]) -> dict[str, None]:
    """All factors of some arrays, in order."""
    return dict.fromkeys(factor for axes in arrays for axis in axes for factor in axis)


def _with_halo(a: jax.Array, axis: int, before: int, behind: int, split: Split, factor: str, fill: Any) -> jax.Array:
    """A device's part of an axis with so many pixels of the devices before and behind it, and `fill` at the ends."""
    size, count, names = a.shape[axis], split.count(factor), split.over[factor]
    # Parts are counted in the order of the names, but ppermute counts devices in the mesh's order.
    ordered = tuple(sorted(names, key=split.mesh.axis_names.index))
    numbers = np.arange(count).reshape([split.mesh.shape[name] for name in ordered])
    devices = numbers.transpose([ordered.index(name) for name in names]).ravel().tolist()

    def of_neighbour(distance: int, pixels: int) -> jax.Array:
        """The nearest pixels of the device so many places behind, or before if negative."""
        start = 0 if distance > 0 else size - pixels
        pairs = [(devices[i + distance], devices[i]) for i in range(count) if 0 <= i + distance < count]
        received = lax.ppermute(lax.slice_in_dim(a, start, start + pixels, axis=axis), ordered, pairs)
        if fill == 0:
            return received
        place = lax.axis_index(names) + distance
        return jnp.where((place >= 0) & (place < count), received, jnp.asarray(fill, a.dtype))

    def places(pixels: int) -> list[tuple[int, int]]:
        return [(place, min(size, pixels - (place - 1) * size)) for place in range(1, -(-pixels // size) + 1)]

    parts_before = [of_neighbour(-place, pixels) for place, pixels in reversed(places(before))]
    parts_behind = [of_neighbour(place, pixels) for place, pixels in places(behind)]
    return lax.concatenate([*parts_before, a, *parts_behind], axis)
