"""Backward rules other than the gradient: learning by feedback alignment, and what a network saw.

    python examples/backward_rules.py [--epochs 8] [--seed 0] [--out backward_rules.png]

A convolution's backward pass is three maps, and a rule says what goes into them. `RULES` and `relu` below are all that
differs between backpropagation, feedback alignment, guided backpropagation, the deconvolutional network and layer-wise
relevance propagation (LRP): each is one to four lines. The same network is trained twice on handwritten digits, by
backpropagation and by feedback alignment, which sends delta back through fixed random weights. Then the picture shows,
for a few test digits, what each rule sends back from the answer to the pixels.

Feedback alignment: Lillicrap et al. (2016). Guided backpropagation: Springenberg et al. (2015). Deconvnet: Zeiler and
Fergus (2014). LRP: Bach et al. (2015).
"""

from __future__ import annotations

import ctrl_c  # noqa: F401  # isort: skip
import argparse
import functools
import sys
from typing import Any, NamedTuple

import digits_cnn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits_cnn import WINDOW, Params
from matplotlib.figure import Figure

import jaxbp
from jaxbp._output import picture_file, require_picture, write_whole

BATCH = 64
DIGITS = 6
EPSILON = 1e-6


# ------------------------------------------------------------------------------------------------- the backward rules


def gradient(maps, delta, z, x, kernel):
    """dJ/dx = delta (full) rot180(W), dJ/dW = x (corr) delta."""
    return maps.input_grad(delta, kernel), maps.kernel_grad(x, delta)


def feedback_alignment(maps, delta, z, x, kernel, fixed):
    """The same, but delta goes back through fixed random weights: no neuron has to know another one's weights."""
    return maps.input_grad(delta, fixed), maps.kernel_grad(x, delta), None


def lrp_epsilon(maps, relevance, z, x, kernel):
    """Each input has the share of an output's relevance that it has in the output: R_i = x_i sum_j w_ij R_j / z_j."""
    return x * maps.input_grad(relevance / away_from_zero(z), kernel), None


def lrp_z_plus(maps, relevance, z, x, kernel):
    """The same, where only positive weights count (inputs are positive: pixels, and what a rectifier left)."""
    positive = jnp.maximum(kernel, 0)
    share = relevance / away_from_zero(maps.forward(x, positive))
    return x * maps.input_grad(share, positive), None


def away_from_zero(z: jax.Array) -> jax.Array:
    """z, fit to divide by."""
    return z + EPSILON * jnp.where(z < 0, -1.0, 1.0)


class Rules(NamedTuple):
    """What the network is made of: layers with rules of their own."""

    conv: Any
    dense: Any
    relu: Any


def rules(rule: Any, relu: Any) -> Rules:
    """Layers with one rule for kernels and one for rectifiers."""
    return Rules(jaxbp.conv_with(rule), jaxbp.dense_with(rule), jaxbp.relu_with(relu))


def through_positive(delta, z, x):
    """The rectifier's own gradient."""
    return jnp.where(x > 0, delta, 0)


BACKPROPAGATION = rules(gradient, through_positive)
ALIGNMENT = rules(feedback_alignment, through_positive)
PICTURES = {
    "gradient": BACKPROPAGATION,
    "guided backpropagation": rules(gradient, lambda delta, z, x: jnp.where((x > 0) & (delta > 0), delta, 0)),
    "deconvnet": rules(gradient, lambda delta, z, x: jnp.maximum(delta, 0)),
    "LRP, epsilon": rules(lrp_epsilon, lambda relevance, z, x: relevance),
    "LRP, z+": rules(lrp_z_plus, lambda relevance, z, x: relevance),
}


# --------------------------------------------------------------------------------------------------------- the network


def apply(params: Params, images: jax.Array, of: Rules, fixed: Params | None = None) -> jax.Array:
    """Logits (batch, 10); `fixed` are the weights that feedback alignment sends delta back through."""

    def parameters(name: str) -> tuple[jax.Array, ...]:
        return (params[name]["kernel"],) if fixed is None else (params[name]["kernel"], fixed[name]["kernel"])

    x = of.relu(of.conv(images, *parameters("conv1"), bias=params["conv1"]["bias"]))
    x = jaxbp.max_pool(x, WINDOW, strides=WINDOW)
    x = of.relu(of.conv(x, *parameters("conv2"), bias=params["conv2"]["bias"]))
    x = jaxbp.max_pool(x, WINDOW, strides=WINDOW)
    return of.dense(x.reshape(len(x), -1), *parameters("dense"), bias=params["dense"]["bias"])


def train(of: Rules, params: Params, fixed: Params | None, data: digits_cnn.Data, epochs: int, seed: int) -> Params:
    """Adam on random batches."""
    optimizer = optax.adam(1e-3)

    def loss(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.mean(jaxbp.softmax_cross_entropy(apply(params, images, of, fixed), labels))

    @jax.jit
    def step(params: Params, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Params, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, images, labels), state)
        return optax.apply_updates(params, updates), state  # pyright: ignore[reportReturnType]

    state, rng = optimizer.init(params), np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(data.train_images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            params, state = step(params, state, data.train_images[rows], data.train_labels[rows])
    return params


def angle(a: jax.Array, b: jax.Array) -> float:
    """Degrees between two kernels."""
    return float(jnp.degrees(jnp.arccos(jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b)))))


@functools.partial(jax.jit, static_argnums=2)
def sent_back(params: Params, images: jax.Array, of: Rules) -> tuple[jax.Array, jax.Array]:
    """What a rule sends from the largest logit of each image to its pixels, and that logit without its bias."""
    logits, pull = jax.vjp(lambda images: apply(params, images, of), images)
    largest = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1])
    value = jnp.sum(largest * (logits - params["dense"]["bias"][None]), -1)
    # A gradient begins with 1, relevance with what is to be explained.
    begin = largest * value[:, None] if of in (PICTURES["LRP, epsilon"], PICTURES["LRP, z+"]) else largest
    return pull(begin)[0], value


def draw(images: np.ndarray, columns: dict[str, np.ndarray], titles: list[str]) -> Figure:
    """A row for each digit, a column for each rule: red speaks for the answer, blue against it."""
    figure = Figure(figsize=(1.75 * (1 + len(columns)), 1.75 * len(images) + 0.5), dpi=150, layout="constrained")
    grid = figure.subplots(len(images), 1 + len(columns))
    for axes in grid.ravel():
        axes.set_xticks([])
        axes.set_yticks([])
    for row, (image, title) in enumerate(zip(images, titles, strict=True)):
        grid[row, 0].imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=1)
        grid[row, 0].set_ylabel(title, fontsize=10)
        for column, (name, sent) in enumerate(columns.items(), start=1):
            largest = float(np.abs(sent[row]).max()) or 1.0
            grid[row, column].imshow(sent[row, ..., 0], cmap="RdBu_r", vmin=-largest, vmax=largest)
            if row == 0:
                grid[row, column].set_title(name, fontsize=10)
    grid[0, 0].set_title("digit", fontsize=10)
    return figure


def main() -> int:
    """The exit status: 0, or 2 for arguments that cannot work."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--epochs", type=int, default=8, help="how often each digit is learnt from (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    parser.add_argument("--out", metavar="FILE.png", default="backward_rules.png", help="where the picture is written")
    args = parser.parse_args()
    try:
        require_picture("--out", args.out)
        if args.epochs < 1 or args.seed < 0:
            raise ValueError(f"--epochs {args.epochs} must be 1 or more, --seed {args.seed} 0 or more")
    except ValueError as error:
        print(f"backward_rules: {error}", file=sys.stderr)
        return 2
    data = digits_cnn.load_digits()
    start = digits_cnn.init(jax.random.key(args.seed), data.train_images.shape[1:])
    fixed = digits_cnn.init(jax.random.key(args.seed + 1), data.train_images.shape[1:])

    def accuracy(params: Params) -> float:
        logits = apply(params, jnp.asarray(data.test_images), BACKPROPAGATION)
        return 100 * float(np.mean(np.argmax(logits, -1) == data.test_labels))

    print(f"Right answers on {len(data.test_labels)} test digits after {args.epochs} epochs:\n")
    print(f"  untrained             {accuracy(start):5.1f} %")
    learnt = train(BACKPROPAGATION, start, None, data, args.epochs, args.seed)
    print(f"  backpropagation       {accuracy(learnt):5.1f} %")
    aligned = train(ALIGNMENT, start, fixed, data, args.epochs, args.seed)
    print(f"  feedback alignment    {accuracy(aligned):5.1f} %\n")
    print("Its weights turn towards the fixed ones, so that what is sent back comes to resemble the gradient:\n")
    for name in ("conv2", "dense"):
        before, after = (angle(params[name]["kernel"], fixed[name]["kernel"]) for params in (start, aligned))
        print(f"  {name:6} {before:5.1f} degrees before, {after:5.1f} after")

    rows = [int(np.flatnonzero(data.test_labels == digit)[0]) for digit in range(DIGITS)]
    images = data.test_images[rows]
    columns = {}
    print("\nLRP shares out what it explains: the sum over the pixels, and the answer's logit (without its bias)\n")
    for name, of in PICTURES.items():
        sent, value = sent_back(learnt, jnp.asarray(images), of)
        columns[name] = np.asarray(sent)
        if name.startswith("LRP"):
            print(f"  {name:13} {float(sent[0].sum()):8.4f} of {float(value[0]):8.4f}")
    answers = np.argmax(apply(learnt, jnp.asarray(images), BACKPROPAGATION), -1)
    file = picture_file(args.out)
    write_whole(file, draw(images, columns, [f"read as {answer}" for answer in answers]).savefig)
    print(f"\nwrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
