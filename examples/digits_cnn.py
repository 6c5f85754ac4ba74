"""The model and the data that the examples share: a small CNN and pictures of handwritten digits.

`apply` and `loss` take the operations as an argument: `jaxbp`, whose backward rules are written by
hand, or `jaxbp.automatic`, the same functions with the gradients that JAX derives.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.model_selection import train_test_split

CLASSES = 10
CHANNELS = (32, 64)
WINDOW = (2, 2)

IDX_FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}

Params = dict[str, dict[str, jax.Array]]


class Data(NamedTuple):
    """Images as (count, height, width, 1) float32 in 0 to 1, labels as (count,) int32 in 0 to 9."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def init(key: jax.Array, image_shape: tuple[int, ...]) -> Params:
    """Random parameters for images of shape (height, width, channels): He's initialisation, zero biases."""
    height, width, channels = image_shape
    pooled_cells = (height // 2 // 2) * (width // 2 // 2)
    kernel_shapes = {
        "conv1": (3, 3, channels, CHANNELS[0]),
        "conv2": (3, 3, CHANNELS[0], CHANNELS[1]),
        "dense": (pooled_cells * CHANNELS[1], CLASSES),
    }
    return {
        layer: {
            "kernel": jax.random.normal(layer_key, shape, jnp.float32) * math.sqrt(2 / math.prod(shape[:-1])),
            "bias": jnp.zeros(shape[-1:], jnp.float32),
        }
        for (layer, shape), layer_key in zip(
            kernel_shapes.items(), jax.random.split(key, len(kernel_shapes)), strict=True
        )
    }


def apply(params: Params, images: jax.Array, ops: ModuleType) -> jax.Array:
    """Logits (batch, 10) of images (batch, height, width, channels)."""
    x = ops.conv(images, params["conv1"]["kernel"], params["conv1"]["bias"])
    x = ops.relu(x)
    x = ops.max_pool(x, WINDOW, strides=WINDOW)
    x = ops.conv(x, params["conv2"]["kernel"], params["conv2"]["bias"])
    x = ops.relu(x)
    x = ops.avg_pool(x, WINDOW, strides=WINDOW)
    x = x.reshape(len(x), -1)
    return ops.dense(x, params["dense"]["kernel"], params["dense"]["bias"])


def loss_and_accuracy(
    params: Params, images: jax.Array, labels: jax.Array, ops: ModuleType
) -> tuple[jax.Array, jax.Array]:
    """The mean softmax cross entropy of a batch and its share of right answers, two scalars."""
    logits = apply(params, images, ops)
    return jnp.mean(ops.softmax_cross_entropy(logits, labels)), jnp.mean(jnp.argmax(logits, -1) == labels)


def loss(params: Params, images: jax.Array, labels: jax.Array, ops: ModuleType) -> jax.Array:
    """The mean softmax cross entropy of a batch, a scalar."""
    return loss_and_accuracy(params, images, labels, ops)[0]


def load_digits() -> Data:
    """scikit-learn's 1,797 real 8x8 digits, one in five kept for the test, always the same ones."""
    images, labels = sklearn_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    rows = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    train, test = map(np.asarray, rows)
    return Data("scikit-learn digits", images[train], labels[train], images[test], labels[test])


def load_idx(folder: Path) -> Data:
    """The four MNIST or Fashion-MNIST files in `folder`; ValueError says in one line what is wrong."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    missing = [name for name in IDX_FILES.values() if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: missing {', '.join(missing)}")
    arrays = {
        part: _read_idx(folder / name, dimensions=3 if part.endswith("images") else 1)
        for part, name in IDX_FILES.items()
    }
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if len(images) != len(labels):
            raise ValueError(
                f"{folder}: {IDX_FILES[f'{split}_images']} holds {len(images)} images "
                f"but {IDX_FILES[f'{split}_labels']} holds {len(labels)} labels"
            )
        if len(labels) == 0:
            raise ValueError(f"{folder / IDX_FILES[f'{split}_labels']}: holds no labels")
        if labels.max() >= CLASSES:
            where = f"{folder / IDX_FILES[f'{split}_labels']}: label {labels.max()} at position {labels.argmax()}"
            raise ValueError(f"{where}, expected 0 to {CLASSES - 1}")
    train_size, test_size = (arrays[f"{split}_images"].shape[1:] for split in ("train", "test"))
    if train_size != test_size:
        raise ValueError(f"{folder}: the training images are {train_size}, the test images {test_size}")
    if min(train_size) < 4:
        raise ValueError(f"{folder}: the images are {train_size}, the two pools need 4x4 or larger")
    return Data(
        folder.resolve().name,
        _scaled(arrays["train_images"]),
        arrays["train_labels"].astype(np.int32),
        _scaled(arrays["test_images"]),
        arrays["test_labels"].astype(np.int32),
    )


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The unsigned bytes of a gzipped idx file: magic number, one big-endian size per dimension, data."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged gzip file") from error
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    header_size = 4 + 4 * dimensions
    if len(content) < header_size:
        raise ValueError(f"{path}: {len(content)} bytes, too short for the {header_size}-byte idx header")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", content[:header_size])
    # 0x08 is idx's code for unsigned bytes; the last byte of the magic number counts the dimensions.
    expected_magic = 0x0800 + dimensions
    if magic != expected_magic:
        raise ValueError(f"{path}: magic number {magic:#010x}, expected {expected_magic:#010x}")
    if len(content) - header_size != math.prod(shape):
        raise ValueError(
            f"{path}: the header promises {' x '.join(map(str, shape))} bytes, "
            f"the file holds {len(content) - header_size}"
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def _scaled(images: np.ndarray) -> np.ndarray:
    """Bytes (count, height, width) as float32 (count, height, width, 1) in 0 to 1."""
    return (images.astype(np.float32) / 255)[..., None]
