"""An existing Flax model, moved to jaxbp by changing one line.

    - from flax import linen as nn
    + from jaxbp.flax import linen as nn

    python examples/flax_cnn.py

`make_model` below holds the model, written as for Flax; this program builds it before and after the change,
trains both from the same parameters on scikit-learn's digits, and compares parameters, outputs, gradients,
the time of a step, and a checkpoint written before the change and read after it.
"""

import ctrl_c  # noqa: F401  # isort: skip
import argparse
import statistics
import sys
import time
from functools import partial
from typing import Any

import digits_cnn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as before
from flax import serialization

from jaxbp.flax import linen as after

BATCH = 128
# The largest difference of two gradients, relative to the largest entry, that counts as rounding in float32.
TOLERANCE = 1e-5


def make_model(nn: Any) -> Any:
    """The user's model; `nn` is what the one line imports."""

    class CNN(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(features=32, kernel_size=(3, 3))(x))
            x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
            x = nn.relu(nn.Conv(features=64, kernel_size=(3, 3))(x))
            x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
            x = x.reshape((x.shape[0], -1))
            x = nn.relu(nn.Dense(features=64)(x))
            return nn.Dense(features=10)(x)

    return CNN()


def main() -> int:
    """The exit status: 0 where both models agree, 1 where they do not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=150, metavar="N", help="training steps (default: 150)")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be 1 or more, but got {args.steps}")

    data = digits_cnn.load_digits()
    models = {"before": make_model(before), "after": make_model(after)}
    images, labels = data.train_images[:BATCH], data.train_labels[:BATCH]
    start = {name: model.init(jax.random.key(0), images) for name, model in models.items()}
    same_start = same_parameters(start["before"], start["after"])
    print(f"parameters   {', '.join(start['after']['params'])}: {'the same' if same_start else 'DIFFERENT'}")

    gradient = jax.jit(jax.grad(loss), static_argnums=3)
    gradients = {name: gradient(start["before"], images, labels, model) for name, model in models.items()}
    difference = relative_difference(gradients["after"], gradients["before"])
    agree = difference <= TOLERANCE
    print(f"gradients    largest difference {difference:.1e} of the largest: {'rounding' if agree else 'TOO LARGE'}")

    trained, seconds = {}, {}
    for name, model in models.items():
        trained[name], seconds[name] = train(model, start["before"], data, args.steps)
    print(f"one step     {seconds['before'] * 1e3:.1f} ms before, {seconds['after'] * 1e3:.1f} ms after")
    scores = {name: accuracy(model, trained[name], data) for name, model in models.items()}
    print(f"accuracy     {scores['before']:.1%} before, {scores['after']:.1%} after {args.steps} steps each")

    checkpoint = serialization.to_bytes(trained["before"])
    loaded = serialization.from_bytes(start["after"], checkpoint)
    kept = accuracy(models["after"], loaded, data) == scores["before"]
    print(f"checkpoint   written before, read after: accuracy {'kept' if kept else 'LOST'}")
    return 0 if same_start and agree and kept else 1


def loss(variables: Any, images: jax.Array, labels: jax.Array, model: Any) -> jax.Array:
    """The mean softmax cross entropy of a batch."""
    logits = model.apply(variables, images)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def train(model: Any, variables: Any, data: digits_cnn.Data, steps: int) -> tuple[Any, float]:
    """Variables after that many steps, and the median seconds of a step."""
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(variables, state, images, labels):
        updates, state = optimizer.update(jax.grad(loss)(variables, images, labels, model), state)
        return optax.apply_updates(variables, updates), state

    state = optimizer.init(variables)
    random = np.random.default_rng(0)
    seconds = []
    for _ in range(steps):
        chosen = random.choice(len(data.train_labels), BATCH, replace=False)
        begin = time.perf_counter()
        variables, state = jax.block_until_ready(
            step(variables, state, data.train_images[chosen], data.train_labels[chosen])
        )
        seconds.append(time.perf_counter() - begin)
    return variables, statistics.median(seconds)


@partial(jax.jit, static_argnums=0)
def predict(model: Any, variables: Any, images: jax.Array) -> jax.Array:
    """The most probable class of every image."""
    return jnp.argmax(model.apply(variables, images), axis=-1)


def accuracy(model: Any, variables: Any, data: digits_cnn.Data) -> float:
    """The part of the test images that the model classifies correctly."""
    return float(np.mean(predict(model, variables, data.test_images) == data.test_labels))


def same_parameters(ours: Any, theirs: Any) -> bool:
    """Whether two trees have the same names, shapes and values."""
    same = jax.tree.structure(ours) == jax.tree.structure(theirs)
    return same and all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True))


def relative_difference(ours: Any, theirs: Any) -> float:
    """The largest difference of any two entries of a leaf, as a part of that leaf's largest entry."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)


if __name__ == "__main__":
    sys.exit(main())
