"""Train a small CNN on handwritten digits twice in step: with jaxbp's rules and with JAX's automatic ones.

    python examples/train_digits.py                      # scikit-learn's 8x8 digits, offline, under a minute
    python examples/train_digits.py --data ~/fashion     # the four MNIST or Fashion-MNIST .gz files

Both runs start from the same parameters and see the same batches. The accuracy, the time and the gradients
of both are printed side by side, and a picture of them is written to digits.png. Ctrl-C stops early and
reports what was learnt so far.
"""

from __future__ import annotations

import ctrl_c  # noqa: F401  # isort: skip
import argparse
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import digits_cnn
import digits_picture
import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits_cnn import Data, Params
from matplotlib.figure import Figure
from tqdm import tqdm

import jaxbp
from jaxbp import automatic
from jaxbp._interrupt import end, on_ctrl_c
from jaxbp._output import require_writable, write_whole

LEARNING_RATE = 0.01
COMPARED_IMAGES = 256


class Plan(NamedTuple):
    """How long and in which order to train."""

    epochs: int
    steps_per_epoch: int
    batch_size: int
    seed: int

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


@dataclass
class Run:
    """One training run: what it computes with, where it stands, and what its steps measured."""

    name: str
    ops: ModuleType
    step: Callable[..., Any]
    compile_seconds: float
    state: tuple[Params, optax.OptState]
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def params(self) -> Params:
        return self.state[0]


def main() -> int:
    """The exit status: 2 for what cannot work."""
    with on_ctrl_c(nothing_written):
        return train_and_report(parse_arguments())


def nothing_written() -> None:
    """End the program."""
    end("stopped, nothing written")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train a CNN on handwritten digits with jaxbp's gradients and with JAX's automatic ones.",
        epilog="Ctrl-C stops the training and reports what was learnt so far.",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="a folder with the four MNIST or Fashion-MNIST .gz files"
    )
    parser.add_argument("--epochs", type=int, help="passes over the data (40; with 10,000 images or more: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters and the batches (0)")
    parser.add_argument(
        "--out", type=Path, default=Path("digits.png"), help="the picture, or a folder for it (digits.png)"
    )
    return parser.parse_args()


def train_and_report(args: argparse.Namespace) -> int:
    """The whole program; returns its exit status."""
    try:
        check_numbers(args)
        picture = writable_picture(args.out)
        data = digits_cnn.load_idx(args.data) if args.data else digits_cnn.load_digits()
    except (OSError, ValueError) as error:
        print(f"train_digits: {error}", file=sys.stderr)
        return 2

    count, test_count = len(data.train_labels), len(data.test_labels)
    plan = plan_for(count, args.epochs, args.seed)
    print(f"data      {data.name}: {count:,} images to learn from, {test_count:,} to test")
    print(f"training  epochs: {plan.epochs}, batch size: {plan.batch_size}, seed: {plan.seed}")

    print(f"device    {jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)
    params = digits_cnn.init(jax.random.key(args.seed), data.train_images.shape[1:])
    runs = [start(name, ops, params, data, plan) for name, ops in (("by hand", jaxbp), ("automatic", automatic))]
    stop = threading.Event()
    with on_ctrl_c(stop.set):
        train(runs, data, plan, stop)

    steps_done = len(runs[0].losses)
    if steps_done == 0:
        nothing_written()
    if steps_done < plan.steps:
        print(f"stopped after step {steps_done:,} of {plan.steps:,}: the results so far")
    report(runs, data, plan)
    try:
        write_whole(picture, draw(runs, data, plan).savefig)
    except OSError as error:
        print(f"train_digits: {error}", file=sys.stderr)
        return 2
    print(f"\nwrote {picture}")
    return 0


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers that argparse lets through."""
    if args.epochs is not None and args.epochs < 1:
        raise ValueError(f"--epochs {args.epochs}: expected 1 or more")
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"--seed {args.seed}: expected 0 to {2**32 - 1}")


def writable_picture(out: Path) -> Path:
    """The file that --out means, once it is certain that it can be written: training is not in vain."""
    picture = out / "digits.png" if out.is_dir() else out
    formats = Figure().canvas.get_supported_filetypes()
    if picture.suffix[1:].lower() not in formats:
        accepted = ", ".join(f".{suffix}" for suffix in sorted(formats))
        raise ValueError(f"--out {out}: neither an existing folder nor a picture ({accepted})")
    if not picture.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {picture.parent}")
    require_writable("--out", picture)
    return picture


def plan_for(count: int, epochs: int | None, seed: int) -> Plan:
    """Small batches for few images, fewer passes over many; `epochs` where it was given."""
    large = count >= 10_000
    batch_size = min(count, 128 if large else 32)
    return Plan(epochs or (1 if large else 40), count // batch_size, batch_size, seed)


def start(name: str, ops: ModuleType, params: Params, data: Data, plan: Plan) -> Run:
    """A run before its first step, its step compiled."""
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, plan.steps))

    def step(state, images, labels):
        params, optimizer_state = state
        (loss, accuracy), gradients = jax.value_and_grad(digits_cnn.loss_and_accuracy, has_aux=True)(
            params, images, labels, ops
        )
        updates, optimizer_state = optimizer.update(gradients, optimizer_state)
        return (optax.apply_updates(params, updates), optimizer_state), loss, accuracy

    state = (params, optimizer.init(params))
    images, labels = data.train_images[: plan.batch_size], data.train_labels[: plan.batch_size]
    began = time.perf_counter()
    compiled = jax.jit(step).lower(state, images, labels).compile()
    return Run(name, ops, compiled, time.perf_counter() - began, state)


def train(runs: list[Run], data: Data, plan: Plan, stop: threading.Event) -> None:
    """Take every step with each run in turn, so that a busy machine slows them alike, until told to stop."""
    rng = np.random.default_rng(plan.seed)
    bar_format = "{desc} |{bar}| {percentage:3.0f} %{postfix}"
    with tqdm(total=plan.steps, bar_format=bar_format, dynamic_ncols=True, mininterval=0.2) as bar:
        for epoch in range(plan.epochs):
            shuffled = rng.permutation(len(data.train_labels))[: plan.steps_per_epoch * plan.batch_size]
            for index, rows in enumerate(shuffled.reshape(-1, plan.batch_size)):
                if stop.is_set():
                    return
                # Whoever goes second finds the batch in the cache: they take turns at it.
                for run in runs if index % 2 else runs[::-1]:
                    take_step(run, data.train_images[rows], data.train_labels[rows])
                manual, so_far = runs[0], slice(-index - 1, None)
                bar.set_description_str(f"epoch {epoch + 1:{len(str(plan.epochs))}}/{plan.epochs}", refresh=False)
                bar.set_postfix_str(
                    f"loss {np.mean(manual.losses[so_far]):.4f}, "
                    f"accuracy {100 * np.mean(manual.accuracies[so_far]):6.2f} %, "
                    f"{len(manual.losses) * plan.batch_size / manual.seconds:,.0f} images/s",
                    refresh=False,
                )
                bar.update()


def take_step(run: Run, images: np.ndarray, labels: np.ndarray) -> None:
    """Move the run one step on; its time includes waiting for the result."""
    began = time.perf_counter()
    run.state, loss, accuracy = run.step(run.state, images, labels)
    run.losses.append(float(loss))
    run.accuracies.append(float(accuracy))
    run.seconds += time.perf_counter() - began


@partial(jax.jit, static_argnames="ops")
def gradients(params: Params, images: Any, labels: Any, ops: ModuleType) -> tuple[Params, jax.Array]:
    """The gradients of the mean loss with respect to every parameter and to the images."""
    return jax.grad(digits_cnn.loss, argnums=(0, 1))(params, images, labels, ops)


def logits_of(params: Params, images: np.ndarray, ops: ModuleType) -> np.ndarray:
    """The logits of any number of images, a thousand at a time."""
    forward = jax.jit(digits_cnn.apply, static_argnames="ops")
    return np.concatenate([forward(params, images[at : at + 1000], ops) for at in range(0, len(images), 1000)])


def test_accuracy(run: Run, data: Data) -> float:
    """The share of the test images that the run's parameters read correctly."""
    return float(np.mean(logits_of(run.params, data.test_images, run.ops).argmax(-1) == data.test_labels))


def difference_in_eps(manual: Any, automatic: Any) -> np.ndarray:
    """manual - automatic in units of the dtype's eps times the largest |automatic|."""
    scale = float(jnp.finfo(automatic.dtype).eps) * np.abs(automatic).max()
    return (np.asarray(manual, np.float64) - np.asarray(automatic, np.float64)) / (scale or 1.0)


def report(runs: list[Run], data: Data, plan: Plan) -> None:
    """Print both runs side by side, and how far their gradients lie apart at the same parameters."""
    rows = {
        "test accuracy": [f"{100 * test_accuracy(run, data):.2f} %" for run in runs],
        "last epoch's loss": [f"{np.mean(run.losses[-plan.steps_per_epoch :]):.5f}" for run in runs],
        "seconds per epoch": [f"{run.seconds / len(run.losses) * plan.steps_per_epoch:.3f}" for run in runs],
        "seconds to compile": [f"{run.compile_seconds:.2f}" for run in runs],
    }
    print(f"\n{'':20}" + "".join(f"{run.name:>12}" for run in runs))
    for title, values in rows.items():
        print(f"{title:20}" + "".join(f"{value:>12}" for value in values))

    manual = runs[0]
    images, labels = data.test_images[:COMPARED_IMAGES], data.test_labels[:COMPARED_IMAGES]
    by_hand, by_jax = (gradients(manual.params, images, labels, run.ops) for run in runs)
    print(f"\nboth rules' gradients of the loss of {len(labels)} test images, at the same parameters")
    print(f"{'':14}{'shape':>18}{'largest |gradient|':>22}{'largest difference':>22}")
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(by_hand), jax.tree.leaves(by_jax), strict=True):
        name = jax.tree_util.keystr(path[1:], simple=True, separator=".") or "images"
        apart = np.abs(difference_in_eps(ours, theirs)).max()
        print(f"{name:14}{theirs.shape!s:>18}{np.abs(theirs).max():>22.3e}{apart:>18.2f} eps")
    eps = float(jnp.finfo(jnp.float32).eps)
    print(f"(1 eps is {eps:.3g}, float32's, times the largest |gradient| of the row. The surer the network, the closer")
    print("softmax comes to the truth, and the more of its rounding is left in their difference, by either rule.)")


def draw(runs: list[Run], data: Data, plan: Plan) -> Figure:
    """The picture, its gradients those of the test image that the network finds hardest."""
    manual = runs[0]
    logits = logits_of(manual.params, data.test_images, manual.ops)
    losses = np.asarray(manual.ops.softmax_cross_entropy(logits, data.test_labels))
    by_difficulty = losses.argsort()[::-1]
    hardest, shown = by_difficulty[:1], np.concatenate([by_difficulty[:4], np.arange(min(8, len(losses)))])
    by_hand, by_jax = (
        gradients(manual.params, data.test_images[hardest], data.test_labels[hardest], run.ops)[1] for run in runs
    )
    return digits_picture.draw(
        title=f"{data.name}: {100 * test_accuracy(manual, data):.2f} % of the test images read correctly",
        losses={run.name: run.losses for run in runs},
        steps_per_epoch=plan.steps_per_epoch,
        images=data.test_images[shown, :, :, 0],
        labels=data.test_labels[shown],
        predictions=logits[shown].argmax(-1),
        by_hand=np.asarray(by_hand)[0, :, :, 0],
        by_jax=np.asarray(by_jax)[0, :, :, 0],
        difference=difference_in_eps(by_hand, by_jax)[0, :, :, 0],
    )


if __name__ == "__main__":
    sys.exit(main())
