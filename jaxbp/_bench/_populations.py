"""`bench --loops` and `bench --populations`: steps inside `lax.scan`, and many small networks at once under `vmap`.

Each program is one jitted function, timed beside the same of the automatic rules, and beside what it stands for: a scan
of steps beside a Python loop over the compiled step, a `vmap` over members beside `lax.map` over them.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxbp

from ._measure import geometric_mean, interleave, ratio
from ._models import (
    CLASSES,
    LEARNING_RATE,
    Layers,
    Model,
    Take,
    from_list,
    initial_parameters,
    jax_layers,
    lenet,
    training_data,
)
from ._programs import bound, wait_on_cpu

STEPS = 4
MEMBERS = (4, 16)
MANUAL, AUTOMATIC, LOOP, MAP = "manual", "automatic", "Python loop", "lax.map"


def actor_critic(layers: Layers, take: Take, x: Any) -> Any:
    """MinAtar's network (Young and Tian, 2019); its last layer holds both heads, the policy's logits and a value."""
    x = layers.relu(layers.conv(x, take(3, 3, 10, 16), take(16), padding=0))
    x = layers.relu(layers.dense(layers.flatten(x), take(1024, 128), take(128)))
    return layers.dense(x, take(128, CLASSES + 1), take(CLASSES + 1))


def small_resnet(layers: Layers, take: Take, x: Any) -> Any:
    """A stem and two residual blocks, of 16 and 32 channels."""
    x = layers.relu(layers.conv(x, take(3, 3, 3, 16), take(16), padding=1))
    channels = 16
    for out, strides in ((16, 1), (32, 2)):
        inner = layers.relu(layers.conv(x, take(3, 3, channels, out), take(out), strides=strides, padding=1))
        inner = layers.conv(inner, take(3, 3, out, out), take(out), padding=1)
        shortcut = layers.conv(x, take(1, 1, channels, out), strides=strides, padding=0) if strides > 1 else x
        x, channels = layers.relu(inner + shortcut), out
    return layers.dense(layers.mean_over_positions(x), take(32, CLASSES), take(CLASSES))


NETWORKS = (
    Model("lenet 28x28 batch 32", lenet, (32, 28, 28, 1)),
    Model("actor-critic 10x10 batch 32", actor_critic, (32, 10, 10, 10)),
    Model("small resnet 16x16 batch 32", small_resnet, (32, 16, 16, 3)),
)


class Setup(NamedTuple):
    """What is timed: training steps of a network, alone or in a scan, of some members or (None) of no `vmap`."""

    network: Model
    members: int | None
    scanned: bool

    @property
    def name(self) -> str:
        """The network and the transformations."""
        what = f"scan of {STEPS} steps" if self.scanned else "step"
        return f"{self.network.name}, {what if self.members is None else f'vmap({what}) of {self.members}'}"

    @property
    def family(self) -> str:
        """The transformations."""
        inner = "scan" if self.scanned else "step"
        return inner if self.members is None else f"vmap({inner})"

    def enlarged(self, times: int) -> "Setup":
        """The same network, trained on so many times as many images."""
        return self._replace(network=self.network.enlarged(times))


LOOPS = tuple(Setup(network, None, scanned) for network in NETWORKS for scanned in (False, True))
POPULATIONS = tuple(
    Setup(network, members, scanned) for network in NETWORKS for scanned in (False, True) for members in MEMBERS
)


class Timed(NamedTuple):
    """Milliseconds of each program, and times over jaxbp's: of the automatic rules, and of what it stands for."""

    name: str
    family: str
    ms: dict[str, float]
    ratios: dict[str, float]

    def __str__(self) -> str:
        """A line."""
        times = "  ".join(f"{name} {value:9.3f} ms" for name, value in self.ms.items())
        ratios = "  ".join(f"{name}/{MANUAL} {value:6.2f}" for name, value in self.ratios.items())
        return f"{self.name}\n  {times}\n  {ratios}"


def step_of(model: Model, ops: ModuleType) -> Callable[..., Any]:
    """One step of gradient descent: (parameters, images, labels) to new parameters and the loss."""
    layers = jax_layers(ops)

    def loss(parameters: Any, images: Any, labels: Any) -> Any:
        outputs = model.network(layers, from_list(parameters), images)
        value = outputs[:, CLASSES:]
        return jnp.mean(ops.softmax_cross_entropy(outputs[:, :CLASSES], labels)) + jnp.sum(value * value)

    def step(parameters: Any, images: Any, labels: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(parameters, images, labels)
        return [p - LEARNING_RATE * g for p, g in zip(parameters, gradients, strict=True)], value

    return step


def scan_of(step: Callable[..., Any]) -> Callable[..., Any]:
    """Some steps in one `lax.scan`."""

    def steps(parameters: Any, images: Any, labels: Any) -> Any:
        return jax.lax.scan(lambda parameters, _: step(parameters, images, labels), parameters, None, STEPS)

    return steps


def programs_of(setup: Setup, dtype: str) -> dict[str, Callable[[], Any]]:
    """What takes turns, each compiled, bound to its arrays, and run once."""
    arrays = initial_parameters(setup.network, jaxbp, jnp.dtype(dtype)), *training_data(setup.network, jnp.dtype(dtype))
    own, automatic = (step_of(setup.network, ops) for ops in (jaxbp, jaxbp.automatic))
    functions = {MANUAL: own, AUTOMATIC: automatic}
    if setup.scanned:
        functions = {name: scan_of(step) for name, step in functions.items()}
    if setup.members is not None:
        arrays = jax.tree.map(partial(_of_members, count=setup.members), arrays)
        functions[MAP] = lambda *arrays, one=functions[MANUAL]: jax.lax.map(lambda some: one(*some), arrays)
        functions |= {name: jax.vmap(functions[name]) for name in (MANUAL, AUTOMATIC)}
    programs = {name: bound(function, *arrays) for name, function in functions.items()}
    if setup.scanned and setup.members is None:
        programs[LOOP] = _looped(own, arrays)
    return programs


def _of_members(a: jax.Array, count: int) -> jax.Array:
    """An array for each member; members differ, as those of a population do."""
    members = jnp.repeat(a[None], count, 0)
    if not jnp.issubdtype(a.dtype, jnp.floating):
        return members
    factors = (1 + jnp.arange(count, dtype=jnp.float32) / count).astype(a.dtype)
    return members * factors.reshape(-1, *(1,) * a.ndim)


def _looped(step: Callable[..., Any], arrays: tuple) -> Callable[[], Any]:
    """The compiled step in a Python loop."""
    parameters, *data = arrays
    compiled = jax.jit(step).lower(parameters, *data).compile()

    def loop() -> Any:
        state, loss = parameters, None
        for _ in range(STEPS):
            state, loss = compiled(state, *data)
        return wait_on_cpu((state, loss))

    return loop


def measure_setup(setup: Setup, dtype: str, seconds: float) -> list[Timed]:
    """One setup's programs in turns."""
    times = interleave(programs_of(setup, dtype), seconds)
    ms = {name: 1e3 * time.best for name, time in times.items()}
    ratios = {name: ratio(time, times[MANUAL]) for name, time in times.items() if name != MANUAL}
    return [Timed(setup.name, setup.family, ms, ratios)]


def summary(timed: list[Timed]) -> str:
    """For each other program the geometric mean of its times over jaxbp's, and the smallest."""
    if not timed:
        return "nothing was measured"
    lines = [f"{'geometric means':24}  programs  {'mean':>6}  {'smallest':>8}"]
    for other, ratios in _by_other(timed).items():
        lines.append(f"{f'{other}/{MANUAL}':24}  {len(ratios):8}  {geometric_mean(ratios):6.2f}  {min(ratios):8.2f}")
    return "\n".join(lines)


def _by_other(timed: list[Timed]) -> dict[str, list[float]]:
    """All ratios to each other program."""
    names = dict.fromkeys(name for one in timed for name in one.ratios)
    return {name: [one.ratios[name] for one in timed if name in one.ratios] for name in names}


def to_record(timed: list[Timed]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What --json writes: the means, and the cases."""
    means = {f"{name}_over_manual": geometric_mean(ratios) for name, ratios in _by_other(timed).items()}
    return means, [one._asdict() for one in timed]
