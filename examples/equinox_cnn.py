"""An existing Equinox model, moved to jaxbp by changing one line.

    - import equinox as eqx
    + from jaxbp import equinox as eqx

    python examples/equinox_cnn.py

`make_model` below holds the model, written as for Equinox; this program builds it before and after the change,
trains both from the same parameters on scikit-learn's digits, and compares parameters, gradients, the time of
a step, and a file written before the change and read after it.
"""

import ctrl_c  # noqa: F401  # isort: skip
import argparse
import io
import statistics
import sys
import time
from typing import Any

import digits_cnn
import equinox as before
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbp import equinox as after

BATCH = 128
# The largest difference of two gradients, relative to the largest entry, that counts as rounding in float32.
TOLERANCE = 1e-5


def make_model(eqx: Any, key: jax.Array) -> Any:
    """The user's model; `eqx` is what the one line imports."""
    keys = jax.random.split(key, 3)
    return eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(1, 32, kernel_size=3, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.AvgPool2d(kernel_size=2, stride=2),
            eqx.nn.Conv2d(32, 64, kernel_size=3, padding=1, key=keys[1]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(kernel_size=2, stride=2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(2 * 2 * 64, 10, key=keys[2]),
        ]
    )


def main() -> int:
    """The exit status: 0 where both models agree, 1 where they do not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=150, metavar="N", help="training steps (default: 150)")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be 1 or more, but got {args.steps}")

    data = digits_cnn.load_digits()
    models = {name: make_model(eqx, jax.random.key(0)) for name, eqx in (("before", before), ("after", after))}
    same_start = same_parameters(models["before"], models["after"])
    print(f"parameters   {'the same' if same_start else 'DIFFERENT'}")

    images, labels = channels_first(data.train_images[:BATCH]), jnp.asarray(data.train_labels[:BATCH])
    gradient = before.filter_jit(before.filter_grad(loss))
    gradients = {name: gradient(model, images, labels) for name, model in models.items()}
    difference = relative_difference(gradients["after"], gradients["before"])
    agree = difference <= TOLERANCE
    print(f"gradients    largest difference {difference:.1e} of the largest: {'rounding' if agree else 'TOO LARGE'}")

    trained, seconds = {}, {}
    for name, model in models.items():
        trained[name], seconds[name] = train(model, data, args.steps)
    print(f"one step     {seconds['before'] * 1e3:.1f} ms before, {seconds['after'] * 1e3:.1f} ms after")
    scores = {name: accuracy(model, data) for name, model in trained.items()}
    print(f"accuracy     {scores['before']:.1%} before, {scores['after']:.1%} after {args.steps} steps each")

    file = io.BytesIO()
    before.tree_serialise_leaves(file, trained["before"])
    file.seek(0)
    loaded = before.tree_deserialise_leaves(file, models["after"])
    kept = accuracy(loaded, data) == scores["before"]
    print(f"file         written before, read after: accuracy {'kept' if kept else 'LOST'}")
    return 0 if same_start and agree and kept else 1


def loss(model: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean softmax cross entropy of a batch."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(images), labels))


def train(model: Any, data: digits_cnn.Data, steps: int) -> tuple[Any, float]:
    """The model after that many steps, and the median seconds of a step."""
    optimizer = optax.adam(3e-3)

    @before.filter_jit
    def step(model, state, images, labels):
        updates, state = optimizer.update(before.filter_grad(loss)(model, images, labels), state)
        return before.apply_updates(model, updates), state

    state = optimizer.init(before.filter(model, before.is_array))
    random = np.random.default_rng(0)
    seconds = []
    for _ in range(steps):
        chosen = random.choice(len(data.train_labels), BATCH, replace=False)
        begin = time.perf_counter()
        model, state = jax.block_until_ready(
            step(model, state, channels_first(data.train_images[chosen]), data.train_labels[chosen])
        )
        seconds.append(time.perf_counter() - begin)
    return model, statistics.median(seconds)


def channels_first(images: np.ndarray) -> jax.Array:
    """(count, height, width, channels) as (count, channels, height, width), Equinox's layout."""
    return jnp.moveaxis(images, -1, 1)


@before.filter_jit
def predict(model: Any, images: jax.Array) -> jax.Array:
    """The most probable class of every image."""
    return jnp.argmax(jax.vmap(model)(images), axis=-1)


def accuracy(model: Any, data: digits_cnn.Data) -> float:
    """The part of the test images that the model classifies correctly."""
    return float(np.mean(predict(model, channels_first(data.test_images)) == data.test_labels))


def arrays_of(model: Any) -> list[jax.Array]:
    """The model's parameters, in order."""
    return jax.tree.leaves(before.filter(model, before.is_array))


def same_parameters(ours: Any, theirs: Any) -> bool:
    """Whether two models have parameters of the same shapes and values, in the same order."""
    return all(np.array_equal(a, b) for a, b in zip(arrays_of(ours), arrays_of(theirs), strict=True))


def relative_difference(ours: Any, theirs: Any) -> float:
    """The largest difference of any two entries of an array, as a part of that array's largest entry."""
    pairs = zip(arrays_of(ours), arrays_of(theirs), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)


if __name__ == "__main__":
    sys.exit(main())
