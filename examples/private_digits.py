"""Differentially private training (DP-SGD) on handwritten digits, by clipped sums of per-example gradients.

    python examples/private_digits.py [--epochs 12] [--noise 1.1] [--clip 1.0] [--seed 0] [--out private_digits.png]

Each step takes a random sample of the digits, clips the gradient of each to a norm of at most C, adds the clipped
gradients up, adds noise of `noise * C` to every entry of the sum, and takes a step. So no single digit can change the
parameters by more than the noise hides. `jaxbp.clipped_grad` gives the clipped sum without a gradient of each digit; it
is compared with `vmap(grad)` of plain lax: the same numbers, the memory and the time.

With the package dp-accounting (`pip install dp-accounting`) the privacy that was spent is printed as epsilon. Without
it, noise multiplier, the share of the digits in a sample and the number of steps say the same to another accountant.

Source: Abadi et al., "Deep learning with differential privacy" (2016).
"""

from __future__ import annotations

import ctrl_c  # noqa: F401  # isort: skip
import argparse
import importlib
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import digits_cnn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits_cnn import Params
from matplotlib.figure import Figure

import jaxbp
from jaxbp import automatic
from jaxbp._output import picture_file, require_picture, write_whole

# On average, and at most: a sample takes each digit by itself, so that its size varies by about 11.
SAMPLE, LARGEST = 128, 224
DELTA = 1e-4


def loss_of(ops: ModuleType) -> Callable[..., jax.Array]:
    """The loss of one example. `taken` is 0 for what only fills a sample up: its gradient is zero, and stays zero."""

    def loss(params: Params, image: jax.Array, label: jax.Array, taken: jax.Array) -> jax.Array:
        logits = digits_cnn.apply(params, image[None], ops)
        return taken * ops.softmax_cross_entropy(logits, label[None])[0]

    return loss


def by_vmap(clip: float) -> Callable[..., Any]:
    """What `jaxbp.clipped_grad` computes, as one writes it in plain JAX: a gradient of each example is held."""
    each_gradient = jax.vmap(jax.grad(loss_of(automatic)), (None, 0, 0, 0))

    def clipped(params: Params, *sample: jax.Array) -> tuple[Params, jax.Array]:
        each = each_gradient(params, *sample)
        norms = jnp.sqrt(sum(jnp.sum(g**2, axis=range(1, g.ndim)) for g in jax.tree.leaves(each)))
        weights = jnp.minimum(1, clip / jnp.maximum(norms, 1e-12))
        return jax.tree.map(lambda g: jnp.tensordot(weights, g, 1), each), norms

    return clipped


def draw_sample(rng: np.random.Generator, data: digits_cnn.Data) -> tuple[np.ndarray, ...]:
    """Each digit with the same probability, filled up to a fixed size: images, labels, and which were taken."""
    rows = np.flatnonzero(rng.random(len(data.train_images)) < SAMPLE / len(data.train_images))
    if len(rows) > LARGEST:
        raise ValueError(f"a sample of {len(rows)} digits is larger than {LARGEST}, nine deviations above the mean")
    filled = np.pad(rows, (0, LARGEST - len(rows)))
    return data.train_images[filled], data.train_labels[filled], (np.arange(LARGEST) < len(rows)).astype(np.float32)


def train(
    data: digits_cnn.Data, epochs: int, clip: float, noise: float, seed: int
) -> tuple[Params, list[float], list[np.ndarray]]:
    """Parameters, the accuracy after each epoch, and the norms of each epoch's first sample."""
    clipped_grad = jaxbp.clipped_grad(loss_of(jaxbp), l2_clip_norm=clip)
    optimizer = optax.sgd(0.25, momentum=0.9)

    @jax.jit
    def step(params: Params, state: Any, key: jax.Array, *sample: jax.Array) -> tuple[Params, Any, jax.Array]:
        total, norms = clipped_grad(params, *sample)
        keys = jax.tree.unflatten(jax.tree.structure(total), jax.random.split(key, len(jax.tree.leaves(total))))
        noisy = jax.tree.map(lambda g, key: g + noise * clip * jax.random.normal(key, g.shape), total, keys)
        updates, state = optimizer.update(jax.tree.map(lambda g: g / SAMPLE, noisy), state)
        return optax.apply_updates(params, updates), state, norms  # pyright: ignore[reportReturnType]

    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    params = digits_cnn.init(jax.random.key(seed), data.train_images.shape[1:])
    state = optimizer.init(params)
    accuracies, all_norms = [], []
    for epoch in range(epochs):
        for number in range(steps_per_epoch(data)):
            sample = draw_sample(rng, data)
            key, noise_key = jax.random.split(key)
            params, state, norms = step(params, state, noise_key, *sample)
            if number == 0:
                all_norms.append(np.asarray(norms)[sample[2] > 0])
        accuracies.append(accuracy(params, data))
        print(f"  epoch {epoch + 1:2}: {accuracies[-1]:5.1f} % of the test digits")
    return params, accuracies, all_norms


def steps_per_epoch(data: digits_cnn.Data) -> int:
    """So many samples have as many digits as there are."""
    return round(len(data.train_images) / SAMPLE)


def accuracy(params: Params, data: digits_cnn.Data) -> float:
    """Percent of right answers on the test digits."""
    logits = digits_cnn.apply(params, jnp.asarray(data.test_images), jaxbp)
    return 100 * float(np.mean(np.argmax(logits, -1) == data.test_labels))


def spent(noise: float, steps: int, data: digits_cnn.Data) -> str:
    """The privacy that training cost, as far as it can be said here."""
    share = SAMPLE / len(data.train_images)
    known = f"noise multiplier {noise:g}, {steps} steps, {100 * share:.1f} % of the digits in a sample"
    if noise == 0 or importlib.util.find_spec("dp_accounting") is None:
        return f"{known}; epsilon: " + ("infinite" if noise == 0 else "install dp-accounting")
    accounting = importlib.import_module("dp_accounting")
    event = accounting.PoissonSampledDpEvent(share, accounting.GaussianDpEvent(noise))
    accountant = importlib.import_module("dp_accounting.rdp").RdpAccountant(orders=range(2, 65))
    epsilon = accountant.compose(event, steps).get_epsilon(DELTA)
    return f"{known}: epsilon {epsilon:.2f} at delta {DELTA:g}"


def compare(params: Params, sample: tuple[np.ndarray, ...], clip: float) -> bool:
    """Print values, memory and time of both ways to the same sum; True if they agree."""
    ways = {"clipped_grad": jaxbp.clipped_grad(loss_of(jaxbp), l2_clip_norm=clip), "vmap(grad)": by_vmap(clip)}
    results = {}
    print(f"\nThe clipped sum of {LARGEST} gradients, in two ways:\n\n  {'':14}{'ms':>8}{'MiB temporary':>16}")
    for name, way in ways.items():
        program = jax.jit(way).lower(params, *sample).compile()
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            results[name] = jax.block_until_ready(program(params, *sample))
            seconds.append(time.perf_counter() - start)
        analysis = program.memory_analysis()
        memory = "unknown" if analysis is None else f"{analysis.temp_size_in_bytes / 2**20:.1f}"
        print(f"  {name:14}{1e3 * min(seconds):8.1f}{memory:>16}")
    (ours, _), (theirs, _) = results.values()
    apart = max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True))
    largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(theirs))
    print(f"\n  largest difference: {apart / largest:.1e} of the largest entry")
    return apart <= 1e-5 * largest


def draw(runs: dict[str, list[float]], norms: list[np.ndarray], clip: float) -> Figure:
    """Accuracy after each epoch, and the norms before clipping at the beginning and at the end."""
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, accuracies in runs.items():
        left.plot(range(1, len(accuracies) + 1), accuracies, marker="o", markersize=3, label=name)
    left.set(title="right answers on test digits", xlabel="epochs", ylabel="%", ylim=(0, 100))
    left.legend(frameon=False, loc="lower right")
    bins = np.linspace(0, max(float(n.max()) for n in norms), 40).tolist()
    for name, each in (("first step", norms[0]), ("last epoch", norms[-1])):
        right.hist(each, bins=bins, alpha=0.6, label=name)
    right.axvline(clip, color="black", linewidth=1, label="clipped to")
    right.set(title="norms of the digits' gradients, private run", xlabel="norm before clipping", ylabel="digits")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> int:
    """The exit status: 0, 1 where the two ways to the sum disagree, 2 for arguments that cannot work."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--epochs", type=int, default=12, help="how often each digit is learnt from (default: 12)")
    parser.add_argument("--noise", type=float, default=1.1, help="noise multiplier (default: 1.1)")
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of a digit's gradient (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    parser.add_argument("--out", metavar="FILE.png", default="private_digits.png", help="where the picture is written")
    args = parser.parse_args()
    try:
        require_picture("--out", args.out)
        for name, value, least in (("epochs", args.epochs, 1), ("noise", args.noise, 0), ("seed", args.seed, 0)):
            if not (value >= least and math.isfinite(value)):
                raise ValueError(f"--{name} {value} must be {least} or more")
        if not (args.clip > 0 and math.isfinite(args.clip)):
            raise ValueError(f"--clip {args.clip} must be more than 0")
    except ValueError as error:
        print(f"private_digits: {error}", file=sys.stderr)
        return 2
    data = digits_cnn.load_digits()
    print(f"Clipped to {args.clip:g}, with noise:")
    params, private, norms = train(data, args.epochs, args.clip, args.noise, args.seed)
    print(spent(args.noise, args.epochs * steps_per_epoch(data), data))
    print("\nClipped, without noise:")
    _, open_, _ = train(data, args.epochs, args.clip, 0.0, args.seed)
    agree = compare(params, draw_sample(np.random.default_rng(args.seed), data), args.clip)
    file = picture_file(args.out)
    write_whole(file, draw({"without noise": open_, "private": private}, norms, args.clip).savefig)
    print(f"\nwrote {file}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
