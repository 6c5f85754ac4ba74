"""The backward pass of a CNN without jax.grad, one layer at a time.

    python examples/by_hand.py

The lesson of backpropagation fits in two sentences. Going forward, each layer keeps what its own gradient
will need. Going back, each layer receives delta, the gradient of the loss J with respect to its output, turns
it into the gradients of its parameters, and hands the gradient with respect to its input to the layer below.

Read `forward` and `backward` next to each other: the second is the first, read from the bottom up. At the
end every gradient is compared with what jax.grad finds. The exit status is 1 if one of them differs by more
than 16 eps.
"""

from __future__ import annotations

import ctrl_c  # noqa: F401  # isort: skip
import argparse
import sys

import digits_cnn
import jax
import jax.numpy as jnp
import numpy as np
from digits_cnn import WINDOW, Params

import jaxbp
from jaxbp import automatic

BATCH = 64
TOLERANCE = 16.0


def forward(params: Params, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The logits, and what the way back will need. z is a layer's sum, a its activation."""
    z1 = jaxbp.conv(images, params["conv1"]["kernel"], params["conv1"]["bias"])
    a1 = jaxbp.relu(z1)
    pooled1, winners = jaxbp.max_pool_with_winners(a1, WINDOW, strides=WINDOW)

    z2 = jaxbp.conv(pooled1, params["conv2"]["kernel"], params["conv2"]["bias"])
    a2 = jaxbp.relu(z2)
    pooled2 = jaxbp.avg_pool(a2, WINDOW, strides=WINDOW)

    features = pooled2.reshape(len(pooled2), -1)
    logits = features @ params["dense"]["kernel"] + params["dense"]["bias"][None]

    kept = {
        # A conv's kernel gradient needs its input; a relu needs to know which sums were positive.
        "images": images,
        "z1": z1,
        # A max pool needs only the position that won in each window, an average pool nothing but shapes.
        "winners": winners,
        "pooled1": pooled1,
        "z2": z2,
        # A dense layer's kernel gradient needs its input, just as a conv's does.
        "pooled2": pooled2,
    }
    return logits, kept


def backward(
    params: Params, logits: jax.Array, labels: jax.Array, kept: dict[str, jax.Array]
) -> tuple[Params, jax.Array]:
    """The gradients of J, the mean cross entropy, with respect to every parameter and to the images."""
    # Softmax cross entropy: dJ/dlogits = softmax(logits) - one_hot(labels), over the batch that J averages.
    exponentials = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    truth = jnp.arange(digits_cnn.CLASSES)[None] == labels[:, None]
    delta = (probabilities - truth.astype(logits.dtype)) / len(labels)

    # Dense layer, the chain rule: dJ/dW = a^T delta, dJ/db = sum of delta, dJ/da = delta W^T.
    features = kept["pooled2"].reshape(len(labels), -1)
    dense = {"kernel": features.T @ delta, "bias": delta.sum(axis=0)}
    delta = delta @ params["dense"]["kernel"].T
    delta = delta.reshape(kept["pooled2"].shape)

    # Average pool: every position of a window gets delta / window size.
    delta = jaxbp.avg_pool_grad(delta, kept["z2"].shape, WINDOW, strides=WINDOW)

    # Relu: delta passes where the sum was positive.
    delta = jnp.where(kept["z2"] > 0, delta, 0.0)

    # Conv: the kernel gradient correlates the input with delta, the bias gradient adds delta up,
    # and the input gradient slides rot180(W) over delta.
    conv2 = {
        "kernel": jaxbp.conv_kernel_grad(kept["pooled1"], delta, params["conv2"]["kernel"].shape),
        "bias": jaxbp.conv_bias_grad(delta),
    }
    delta = jaxbp.conv_input_grad(delta, params["conv2"]["kernel"], kept["pooled1"].shape)

    # Max pool: delta goes to the position that won, zero elsewhere.
    delta = jaxbp.max_pool_grad(delta, kept["winners"], kept["z1"].shape, WINDOW, strides=WINDOW)

    # Relu and conv once more. The last delta shows which pixels would change the loss.
    delta = jnp.where(kept["z1"] > 0, delta, 0.0)
    conv1 = {
        "kernel": jaxbp.conv_kernel_grad(kept["images"], delta, params["conv1"]["kernel"].shape),
        "bias": jaxbp.conv_bias_grad(delta),
    }
    delta = jaxbp.conv_input_grad(delta, params["conv1"]["kernel"], kept["images"].shape)

    return {"conv1": conv1, "conv2": conv2, "dense": dense}, delta


def in_eps(ours: jax.Array, theirs: jax.Array) -> float:
    """The largest difference, in units of eps times the largest |gradient|."""
    unit = float(jnp.finfo(theirs.dtype).eps) * np.abs(np.float64(theirs)).max()
    return float(np.abs(np.float64(ours) - np.float64(theirs)).max() / unit)


def main() -> int:
    """The exit status: 0 where everything agrees, 1 where something does not."""
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args()
    data = digits_cnn.load_digits()
    images, labels = jnp.asarray(data.train_images[:BATCH]), jnp.asarray(data.train_labels[:BATCH])
    params = digits_cnn.init(jax.random.key(0), images.shape[1:])

    logits, kept = jax.jit(forward)(params, images)
    by_hand = jax.jit(backward)(params, logits, labels, kept)
    gradient = jax.jit(jax.grad(digits_cnn.loss, argnums=(0, 1)), static_argnames="ops")
    through_jaxbp = gradient(params, images, labels, jaxbp)
    through_lax = gradient(params, images, labels, automatic)

    print(f"One backward pass over {BATCH} digits, by hand, against jax.grad of the same loss.\n")
    print("Kept on the way forward:")
    for name, value in kept.items():
        print(f"  {name:10} {value.dtype!s:8} {value.shape}")
    print("\nLargest difference from jax.grad, in eps of float32 times the largest |gradient|:\n")
    print(f"{'gradient of J':16}{'shape':>18}{'largest |.|':>14}{'through jaxbp':>16}{'through lax':>14}")
    agree = True
    rows = zip(*(jax.tree.leaves_with_path(g) for g in (by_hand, through_jaxbp, through_lax)), strict=True)
    for (path, ours), (_, rule), (_, lax) in rows:
        name = jax.tree_util.keystr(path[1:], simple=True, separator=".") or "images"
        apart = in_eps(ours, rule), in_eps(ours, lax)
        agree = agree and max(apart) <= TOLERANCE
        print(f"{name:16}{ours.shape!s:>18}{np.abs(lax).max():>14.3e}{apart[0]:>16.2f}{apart[1]:>14.2f}")
    print("\nevery gradient agrees to" if agree else "\nSOME DIFFER by more than", f"{TOLERANCE:g} eps")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
