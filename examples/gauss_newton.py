"""Train a CNN on handwritten digits by a second-order method: both modes of jaxbp's rules in one step.

    python examples/gauss_newton.py

A step of gradient descent needs the gradient `J^T dl/dz` alone, where J is the derivative of the logits z by the
parameters. The generalized Gauss-Newton matrix `G = J^T H J`, H the second derivative of the loss by the logits, also
knows the curvature. It is never written down: conjugate gradients solve `(G + damping I) d = -gradient` with products
`G v`, one after the other:

    J v        a tangent goes forward      jax.linearize, which needs jaxbp.forward_mode
    H (J v)    of the loss alone           jax.jvp of jax.grad
    J^T (...)  delta goes back             the hand-written rules, by jax.linear_transpose

The damping grows where the loss falls less than G predicts, and shrinks where it falls as predicted. At the end the
products through jaxbp and through jaxbp.automatic are compared at the trained parameters. The exit status is 1 if they
differ by more than 256 eps.

Source: Martens, "Deep learning via Hessian-free optimization" (2010); Schraudolph (2002).
"""

from __future__ import annotations

import ctrl_c  # noqa: F401  # isort: skip
import argparse
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType

import digits_cnn
import jax
import jax.numpy as jnp
import numpy as np
from digits_cnn import Data, Params

import jaxbp
from jaxbp import automatic

BATCH = 256
# Conjugate gradients stop after so many products.
PRODUCTS = 8
FIRST_DAMPING = 4.0
TOLERANCE = 256.0


def curvature(
    params: Params, images: jax.Array, labels: jax.Array, ops: ModuleType
) -> tuple[jax.Array, Params, Callable[[Params], Params]]:
    """The mean loss of a batch, its gradient, and the map from v to G v."""
    logits, push = jax.linearize(lambda params: digits_cnn.apply(params, images, ops), params)
    pull = jax.linear_transpose(push, params)

    def mean_loss(logits: jax.Array) -> jax.Array:
        return jnp.mean(ops.softmax_cross_entropy(logits, labels))

    def product(v: Params) -> Params:
        _, bent = jax.jvp(jax.grad(mean_loss), (logits,), (push(v),))
        return pull(bent)[0]

    loss, delta = jax.value_and_grad(mean_loss)(logits)
    return loss, pull(delta)[0], product


@partial(jax.jit, static_argnames="ops")
def step(params: Params, damping: jax.Array, images: jax.Array, labels: jax.Array, ops: ModuleType) -> tuple:
    """The next parameters and damping, and the loss before."""
    loss, gradient, product = curvature(params, images, labels, ops)

    def damped(v: Params) -> Params:
        return jax.tree.map(lambda g, v: g + damping * v, product(v), v)

    minus = jax.tree.map(jnp.negative, gradient)
    direction, _ = jax.scipy.sparse.linalg.cg(damped, minus, maxiter=PRODUCTS)
    after = jax.tree.map(jnp.add, params, direction)
    predicted = inner(gradient, direction) + inner(direction, product(direction)) / 2
    ratio = (digits_cnn.loss(after, images, labels, ops) - loss) / predicted
    damping = jnp.where(ratio > 0.75, damping / 2, jnp.where(ratio < 0.25, damping * 2, damping))
    # A step that climbs is not taken.
    params = jax.tree.map(lambda old, new: jnp.where(ratio > 0, new, old), params, after)
    return params, damping, loss


def inner(a: Params, b: Params) -> jax.Array:
    """The inner product of two trees."""
    return jnp.sum(jnp.stack(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b))))


def train(data: Data, steps: int) -> Params:
    """The parameters after some steps on batches of the training digits, always the same ones; a row for each step."""
    measure = jax.jit(digits_cnn.loss_and_accuracy, static_argnames="ops")
    print("step        loss    damping    test accuracy")
    params = digits_cnn.init(jax.random.key(0), data.train_images.shape[1:])
    order, damping = np.random.default_rng(0), jnp.asarray(FIRST_DAMPING)
    for number in range(1, steps + 1):
        rows = order.permutation(len(data.train_labels))[:BATCH]
        used = damping
        params, damping, loss = step(params, damping, data.train_images[rows], data.train_labels[rows], jaxbp)
        right = measure(params, data.test_images, data.test_labels, jaxbp)[1]
        print(f"{number:4}{loss:12.5f}{used:11.4f}{100 * right:15.2f} %", flush=True)
    return params


def in_eps(ours: jax.Array, theirs: jax.Array) -> float:
    """The largest difference, in units of eps times the largest entry."""
    unit = float(jnp.finfo(theirs.dtype).eps) * np.abs(np.float64(theirs)).max()
    return float(np.abs(np.float64(ours) - np.float64(theirs)).max() / unit)


def main() -> int:
    """The exit status: 0 where both agree, 1 where they do not."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--steps", type=int, default=15, metavar="N", help="training steps (default: 15)")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be 1 or more, but got {args.steps}")

    data = digits_cnn.load_digits()
    print(f"{args.steps} steps on batches of {BATCH} digits, at most {PRODUCTS} products G v in each\n")
    with jaxbp.forward_mode():
        params = train(data, args.steps)
        images, labels = jnp.asarray(data.train_images[:BATCH]), jnp.asarray(data.train_labels[:BATCH])

        @partial(jax.jit, static_argnames="ops")
        def products(params: Params, ops: ModuleType) -> Params:
            _, gradient, product = curvature(params, images, labels, ops)
            return product(gradient)

        by_hand, by_jax = products(params, jaxbp), products(params, automatic)

    print("\nG times the gradient, through jaxbp and through jaxbp.automatic:\n")
    print(f"{'':16}{'shape':>18}{'largest |.|':>14}{'largest difference':>22}")
    agree = True
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(by_hand), jax.tree.leaves_with_path(by_jax), strict=True):
        apart = in_eps(a, b)
        agree = agree and apart <= TOLERANCE
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        print(f"{name:16}{a.shape!s:>18}{np.abs(b).max():>14.3e}{apart:>18.2f} eps")
    print("\nevery product agrees to" if agree else "\nSOME DIFFER by more than", f"{TOLERANCE:g} eps")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
