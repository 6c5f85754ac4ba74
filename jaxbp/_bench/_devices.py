"""`bench --devices`: what each device is sent in one step, for several ways of laying the arrays out over devices.

A collective sends what it results in: the sizes are read from the compiled program, where a loop's body counts once.
"""

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxbp
from jaxbp import automatic

from ._measure import interleave
from ._models import Model, initial_parameters, jax_step, training_data
from ._programs import function_of
from ._suite import Case

COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
OPS: dict[str, ModuleType] = {"automatic": automatic, "manual": jaxbp}
# Of parameters, the axis that is split over the mesh axis "data" or "model".
OUTPUTS, INPUTS = -1, -2


class Layout(NamedTuple):
    """How arrays lie on the devices: along which axis images are split, and along which one kernels are."""

    name: str
    images: PartitionSpec
    split: int | None = None
    over: str = "data"

    def mesh(self, count: int) -> Mesh:
        """All devices in a row, or in pairs where images and kernels are split over different ones."""
        pairs = 2 if self.over == "model" else 1
        shape = {"data": count // pairs, "model": pairs}
        return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * 2)

    def parameter(self, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
        """How a kernel, matrix or bias is split: not at all where the number of devices does not divide it."""
        entries: list[str | None] = [None] * len(shape)
        if self.split is not None and len(shape) >= -self.split and shape[self.split] % mesh.shape[self.over] == 0:
            entries[self.split] = self.over
        return PartitionSpec(*entries)

    def output(self, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
        """How a layer's output is split: as the images are, or along the features that the kernel is split along."""
        if self.split == OUTPUTS and (self.over == "model" or self.images == PartitionSpec()):
            features = self.parameter(shape, mesh)
            return PartitionSpec(
                *(image or feature for image, feature in zip(_filled(self.images, shape), features, strict=True))
            )
        fits = all(name is None or size % mesh.shape[name] == 0 for name, size in zip(self.images, shape, strict=False))
        return self.images if fits else PartitionSpec()


LAYOUTS = (
    Layout("data parallel", PartitionSpec("data")),
    Layout("FSDP, outputs", PartitionSpec("data"), OUTPUTS),
    Layout("FSDP, inputs", PartitionSpec("data"), INPUTS),
    Layout("tensor parallel", PartitionSpec(), OUTPUTS),
    Layout("batch x features", PartitionSpec("data"), OUTPUTS, "model"),
    Layout("spatial", PartitionSpec(None, "data")),
)


class Sent(NamedTuple):
    """What one device is sent in a step, in how many collectives, and what it allocates besides arguments."""

    bytes: int
    collectives: int
    temporary_bytes: int
    ms: float | None = None


class Row(NamedTuple):
    """One program in one layout, with both rules."""

    name: str
    layout: str
    automatic: Sent | None
    manual: Sent

    def __str__(self) -> str:
        """A line."""
        return f"{self.layout:17} {_text(self.automatic):32} {_text(self.manual):32} {self.name}"

    @property
    def excess(self) -> float:
        """How many times the bytes of the automatic rule the hand-written one sends, above 64 KiB."""
        if self.automatic is None:
            return 0.0
        return max(0, self.manual.bytes - (64 << 10)) / max(self.automatic.bytes, 1)


HEADING = f"{'layout':17} {'automatic: KiB sent, temporary':32} {'manual: KiB sent, temporary':32} step"


def require_devices(count: int) -> None:
    """So many devices, virtual ones on a CPU; ValueError where there are fewer."""
    if count < 2 or count % 2:
        raise ValueError(f"--devices {count} must be an even number of devices, 2 or more")
    with contextlib.suppress(RuntimeError):  # where JAX has started already
        jax.config.update("jax_num_cpu_devices", count)
    if jax.device_count() < count:
        raise ValueError(f"--devices {count} needs as many devices, but JAX has {jax.device_count()}")


def measure_item(item: Case | Model, dtype: str, seconds: float, count: int) -> list[Row]:
    """One layer or training step in every layout in which its images can be split."""
    item, rows = _split_evenly(item, count), []
    for layout in LAYOUTS:
        mesh = layout.mesh(count)
        shape = item.images if isinstance(item, Model) else item.shapes[0]
        if any(n and size % mesh.shape[n] for n, size in zip(layout.images, shape, strict=False)) or len(shape) < len(
            layout.images
        ):
            continue
        programs = {
            name: _compiled(item, ops, layout, mesh, jnp.dtype(dtype))
            for name, ops in OPS.items()
            if name == "manual" or not _aborts(item, layout, mesh)
        }
        sent = {name: _sent(compiled) for name, (compiled, _) in programs.items()}
        if _real():
            calls = {name: partial(_call, compiled, arrays()) for name, (compiled, arrays) in programs.items()}
            times = interleave(calls, seconds)
            sent = {name: one._replace(ms=1e3 * times[name].best) for name, one in sent.items()}
        rows.append(Row(item.name, layout.name, sent.get("automatic"), sent["manual"]))
    return rows


def _split_evenly(item: Case | Model, count: int) -> Case | Model:
    """The same with so many times as many images that the devices can share them."""
    batch = item.images[0] if isinstance(item, Model) else item.shapes[0][0]
    return item.enlarged(count // math.gcd(batch, count))


def summary(rows: Sequence[Row]) -> str:
    """What is sent in all, by layout."""
    if not rows:
        return "nothing was measured"
    lines = ["MiB sent in all, automatic and manual, and the largest part of the automatic rule's beyond 64 KiB:"]
    for layout in dict.fromkeys(row.layout for row in rows):
        found = [row for row in rows if row.layout == layout]
        both = [(row.automatic.bytes, row.manual.bytes) for row in found if row.automatic is not None]
        sums = [sum(one) / (1 << 20) for one in zip(*both, strict=True)] or [0.0, 0.0]
        lines.append(f"{layout:17} {sums[0]:9.1f} {sums[1]:9.1f} {max(row.excess for row in found):6.2f}")
    return "\n".join(lines)


def to_record(rows: Sequence[Row]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What --json writes."""
    return {}, [_row_record(row) for row in rows]


def _row_record(row: Row) -> dict[str, Any]:
    """A row as --json writes it."""
    sent = {"automatic": row.automatic, "manual": row.manual}
    return row._asdict() | {name: None if one is None else one._asdict() for name, one in sent.items()}


def collectives(text: str) -> list[tuple[str, int]]:
    """The collectives of a compiled program, and the bytes that each results in."""
    found = re.findall(rf"= (.+?) ({COLLECTIVES})(?:-done)?\(", text)
    return [(kind, sum(map(_array_bytes, re.findall(r"\b([a-z]+\d*)\w*\[([\d,]*)\]", shape)))) for shape, kind in found]


def _array_bytes(found: tuple[str, str]) -> int:
    """Bytes of an array such as ("f32", "8,3")."""
    kind, sizes = found
    bits = re.sub(r"\D", "", kind)
    return math.prod(int(size) for size in sizes.split(",") if size) * (max(int(bits) // 8, 1) if bits else 1)


def _sent(compiled: Any) -> Sent:
    """What a compiled program sends."""
    found = collectives(compiled.as_text())
    analysis = compiled.memory_analysis()
    temporary = 0 if analysis is None else int(analysis.temp_size_in_bytes)
    return Sent(sum(size for _, size in found), len(found), temporary)


def _aborts(item: Case | Model, layout: Layout, mesh: Mesh) -> bool:
    """Whether XLA (jaxlib 0.10.2 to 0.12.0.1) ends the process: it splits lax's groups between devices."""
    groups = 1 if isinstance(item, Model) else item.keywords.get("feature_group_count", 1)
    splits_features = layout.split == OUTPUTS and (layout.over == "model" or layout.images == PartitionSpec())
    return splits_features and groups > 1 and groups % mesh.shape[layout.over] != 0


def _compiled(item: Case | Model, ops: ModuleType, layout: Layout, mesh: Mesh, dtype: Any) -> tuple[Any, Callable]:
    """A compiled step, and a function that makes its arrays."""
    if isinstance(item, Model):
        return _training_step(item, ops, layout, mesh, dtype)
    return _layer(item, ops, layout, mesh, dtype)


def _layer(case: Case, ops: ModuleType, layout: Layout, mesh: Mesh, dtype: Any) -> tuple[Any, Callable]:
    """Forward pass and all gradients of a layer, compiled, and its arrays."""
    function = function_of(case, ops)

    def step(arrays: list[jax.Array], delta: jax.Array) -> Any:
        z, pull = jax.vjp(function, *arrays)
        return z, list(pull(delta))

    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in case.shapes]
    z = jax.eval_shape(function, *arrays)
    specs = [layout.images, *(layout.parameter(shape, mesh) for shape in case.shapes[1:])]
    put, out = [NamedSharding(mesh, spec) for spec in specs], NamedSharding(mesh, layout.output(z.shape, mesh))
    compiled = jax.jit(step, in_shardings=(put, out), out_shardings=(out, put)).lower(arrays, z).compile()
    return compiled, lambda: jax.device_put(
        ([jnp.zeros(a.shape, dtype) for a in arrays], jnp.zeros(z.shape, dtype)), (put, out)
    )


def _training_step(model: Model, ops: ModuleType, layout: Layout, mesh: Mesh, dtype: Any) -> tuple[Any, Callable]:
    """A training step, compiled, and its arrays."""
    parameters, (images, labels) = initial_parameters(model, ops, dtype), training_data(model, dtype)
    everywhere = NamedSharding(mesh, PartitionSpec())
    put = [NamedSharding(mesh, layout.parameter(p.shape, mesh)) for p in parameters]
    batch = NamedSharding(mesh, PartitionSpec(*layout.images[:1]))
    given = (put, NamedSharding(mesh, layout.images), batch)
    step = jax.jit(jax_step(model, ops), in_shardings=given, out_shardings=(put, everywhere))
    arrays = (parameters, images, labels)
    return step.lower(*arrays).compile(), lambda: jax.device_put(arrays, given)


def _call(compiled: Any, arrays: Any) -> Any:
    """One step."""
    return compiled(*arrays)


def _real() -> bool:
    """Whether devices are devices, so that a step's time says something."""
    return jax.default_backend() != "cpu"


def _filled(spec: PartitionSpec, shape: Sequence[int]) -> list[Any]:
    """An entry for each axis."""
    return [*spec, *[None] * (len(shape) - len(spec))]


def _text(sent: Sent | None) -> str:
    """Bytes, collectives, memory, and milliseconds where they are known."""
    if sent is None:
        return "XLA aborts"
    ms = "" if sent.ms is None else f" {sent.ms:8.3f} ms"
    return f"{sent.bytes >> 10:8d} in {sent.collectives:3d}, {sent.temporary_bytes >> 10:8d}{ms}"
