"""`bench --per-example`: norms and clipped sums of per-example gradients, against a gradient of each example.

Three programs of one loss: `jaxbp.clipped_grad`; `vmap(grad)` of the automatic ops, then clipped and summed; and the
same of jaxbp's ops, which join the examples forward and hold a gradient of each, as Opacus does. A fourth takes norms
alone.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import jaxbp

from .. import automatic
from ._measure import Times, geometric_mean, interleave, ratio, sample
from ._models import Layers, Model, Take, from_list, initial_parameters, jax_layers, lenet, training_data
from ._programs import compile_program

CLIPPED, NORMS, LAX, EACH = "clipped_grad", "norms alone", "vmap(grad) of lax", "a gradient of each"
CLIP = 1.0
# Programs slower than so many times `clipped_grad` are timed by one call alone.
FAR = 10.0
MIB = 2**20


def block(channels: int) -> Callable[[Layers, Take, Any], Any]:
    """A residual block (He et al., 2016) without normalisation, which would mix examples, and a dense layer."""

    def network(layers: Layers, take: Take, x: Any) -> Any:
        inner = layers.relu(layers.conv(x, take(3, 3, channels, channels), take(channels), padding=1))
        x = layers.relu(x + layers.conv(inner, take(3, 3, channels, channels), take(channels), padding=1))
        return layers.dense(layers.mean_over_positions(x), take(channels, 10), take(10))

    return network


def depthwise_block(layers: Layers, take: Take, x: Any) -> Any:
    """A depthwise 3x3 and a 1x1 convolution (Howard et al., 2017), and a dense layer."""
    x = layers.relu(layers.conv(x, take(3, 3, 1, 64), take(64), padding=1, groups=64))
    x = layers.relu(layers.conv(x, take(1, 1, 64, 128), take(128), padding=0))
    return layers.dense(layers.mean_over_positions(x), take(128, 10), take(10))


MODELS = (
    Model("lenet 28x28 batch 64", lenet, (64, 28, 28, 1), "per example"),
    Model("residual block, 64 channels 16x16 batch 64", block(64), (64, 16, 16, 64), "per example"),
    Model("residual block, 512 channels 4x4 batch 64", block(512), (64, 4, 4, 512), "per example"),
    Model("depthwise block, 64 channels 16x16 batch 64", depthwise_block, (64, 16, 16, 64), "per example"),
)


class Comparison(NamedTuple):
    """One model: milliseconds and MiB of each program, and time and memory relative to `clipped_grad`'s."""

    model: str
    ms: dict[str, float]
    mib: dict[str, float]
    ratio: float
    memory_ratio: float

    def __str__(self) -> str:
        """A line."""
        parts = [f"{name} {self.ms[name]:.2f} ms {self.mib[name]:.0f} MiB" for name in self.ms]
        return f"{self.ratio:5.2f} x time  {self.memory_ratio:5.2f} x memory  {self.model}: {', '.join(parts)}"


def measure(model: Model, dtype: str, seconds: float) -> list[Comparison]:
    """Time the programs in turns."""
    parameters = initial_parameters(model, jaxbp, dtype)
    images, labels = training_data(model, dtype)
    programs = {name: compile_program(run, parameters, images, labels) for name, run in programs_of(model).items()}
    first = {name: _seconds_of(program.call) for name, program in programs.items()}
    near = {name: program.call for name, program in programs.items() if first[name] < FAR * first[CLIPPED]}
    times = {name: Times(s, s, (s,)) for name, s in first.items()} | interleave(near, seconds)
    mib = {name: (program.temporary_bytes or 0) / MIB for name, program in programs.items()}
    ms = {name: 1e3 * time.best for name, time in times.items()}
    slower = ratio(times[LAX], times[CLIPPED]) if LAX in near else ms[LAX] / ms[CLIPPED]
    return [Comparison(model.name, ms, mib, slower, mib[LAX] / max(mib[CLIPPED], 1 / MIB))]


def _seconds_of(program: Callable[[], Any]) -> float:
    """Seconds of the second call."""
    jax.block_until_ready(program())
    return sample(program, 1)


def programs_of(model: Model) -> dict[str, Callable[..., Any]]:
    """By name, functions of (parameters, images, labels)."""
    clipped = jaxbp.clipped_grad(loss_of(model, jaxbp), l2_clip_norm=CLIP)
    return {
        CLIPPED: clipped,
        NORMS: lambda *arguments: clipped(*arguments)[1],
        LAX: gradient_of_each(loss_of(model, automatic)),
        EACH: gradient_of_each(loss_of(model, jaxbp)),
    }


def loss_of(model: Model, ops: ModuleType) -> Callable[..., jax.Array]:
    """The loss of one example."""
    layers = jax_layers(ops)

    def loss(parameters: list[jax.Array], image: jax.Array, label: jax.Array) -> jax.Array:
        logits = model.network(layers, from_list(parameters), image[None])
        return ops.softmax_cross_entropy(logits, label[None])[0]

    return loss


def gradient_of_each(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The clipped sum and the norms as one writes them with `vmap(grad)`."""

    def clipped(parameters: list[jax.Array], images: jax.Array, labels: jax.Array) -> Any:
        each = jax.vmap(jax.grad(loss), (None, 0, 0))(parameters, images, labels)
        squares = sum(jnp.sum(jnp.square(g.astype(jnp.float32)), range(1, g.ndim)) for g in each)
        norms = jnp.sqrt(squares)
        weights = jnp.minimum(1, CLIP / norms)
        highest = lax.Precision.HIGHEST
        return [jnp.tensordot(weights.astype(g.dtype), g, 1, precision=highest) for g in each], norms

    return clipped


def summary(comparisons: list[Comparison]) -> str:
    """The mean."""
    if not comparisons:
        return "nothing was measured"
    mean = geometric_mean([comparison.ratio for comparison in comparisons])
    return f"{LAX} over {CLIPPED}: {mean:.2f} x time (geometric mean of {len(comparisons)} models)"


def to_record(comparisons: list[Comparison]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What --json writes: the mean, and the cases."""
    mean = geometric_mean([comparison.ratio for comparison in comparisons])
    return {"vmap_over_clipped": mean}, [comparison._asdict() for comparison in comparisons]
