"""What a user does with an installed wheel and nothing else: import, train, explain. Also checked by pyright."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxbp


def loss(params: dict[str, jax.Array], images: jax.Array, labels: jax.Array) -> jax.Array:
    """A small CNN's."""
    features = jaxbp.max_pool(jaxbp.relu(jaxbp.conv(images, params["kernel"])), (2, 2), (2, 2))
    logits = jaxbp.dense(features.reshape(len(images), -1), params["weights"])
    return jaxbp.softmax_cross_entropy(logits, labels).mean()


@jax.jit
def step(params: dict[str, jax.Array], images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """One step of gradient descent."""
    gradients = jax.grad(loss)(params, images, labels)
    return {name: params[name] - 0.1 * gradients[name] for name in params}


def main(version: str) -> None:
    """Run everything in an empty folder."""
    assert "site-packages" in jaxbp.__file__, jaxbp.__file__
    assert jaxbp.__version__ == version, jaxbp.__version__
    description = metadata.distribution("jaxbp").read_text("METADATA") or ""
    assert "## Is it fast?" in description and not re.search(r"\]\((?!https?:)", description)
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "kernel": jax.random.normal(keys[0], (3, 3, 1, 4)) * 0.3,
        "weights": jax.random.normal(keys[1], (64, 10)) * 0.1,
    }
    images, labels = jax.random.normal(keys[2], (16, 8, 8, 1)), jnp.arange(16) % 10
    before = loss(params, images, labels)
    for _ in range(5):
        params = step(params, images, labels)
    assert loss(params, images, labels) < before
    subprocess.run([sys.executable, "-m", "jaxbp", "explain", "conv", "--article", "--html", "page.html"], check=True)
    assert "rot180" in Path("page.html").read_text()
    for adapter in ("flax", "equinox", "haiku"):
        try:
            __import__(f"jaxbp.{adapter}")
        except ModuleNotFoundError as error:
            assert f"jaxbp[{adapter}]" in str(error), error
        else:
            raise AssertionError(f"{adapter} is installed in what should be an empty environment")
    print("the release works")


if __name__ == "__main__":
    main(sys.argv[1])
