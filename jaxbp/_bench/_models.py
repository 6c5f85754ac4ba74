"""Small networks whose layers come from outside, so that one text is a jaxbp, an automatic and a PyTorch network.

A network is a function `(layers, take, images) -> logits`: `layers` has the ops, and `take(shape)` hands out the
parameters one after the other, as new random arrays the first time and from a list afterwards.
"""

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CLASSES = 10
LEARNING_RATE = 1e-3
Take = Callable[..., Any]


class Layers(NamedTuple):
    """The ops that the networks are made of. Kernels are (*window, I / groups, O), dense weights (I, O)."""

    conv: Callable[..., Any]
    max_pool: Callable[..., Any]
    batch_norm: Callable[..., Any]
    layer_norm: Callable[..., Any]
    relu: Callable[..., Any]
    gelu: Callable[..., Any]
    dense: Callable[..., Any]
    mean_over_positions: Callable[..., Any]
    flatten: Callable[..., Any]


class Model(NamedTuple):
    """A network and what it is trained on."""

    name: str
    network: Callable[[Layers, Take, Any], Any]
    images: tuple[int, ...]
    family: str = "training step"

    def enlarged(self, times: int) -> "Model":
        """The same network, trained on so many times as many images."""
        batch, *sizes = self.images
        name = self.name.replace(f"batch {batch}", f"batch {times * batch}")
        return self._replace(name=name, images=(times * batch, *sizes))


def lenet(layers: Layers, take: Take, x: Any) -> Any:
    """LeNet-5 (LeCun et al., 1998), with rectifiers and maxima."""
    x = layers.max_pool(layers.relu(layers.conv(x, take(5, 5, 1, 6), take(6), padding=2)), 2, 2, 0)
    x = layers.max_pool(layers.relu(layers.conv(x, take(5, 5, 6, 16), take(16), padding=0)), 2, 2, 0)
    x = layers.flatten(x)
    x = layers.relu(layers.dense(x, take(400, 120), take(120)))
    x = layers.relu(layers.dense(x, take(120, 84), take(84)))
    return layers.dense(x, take(84, CLASSES), take(CLASSES))


def resnet18(layers: Layers, take: Take, x: Any) -> Any:
    """ResNet-18 (He et al., 2016) with a 3x3 stem, as it is used on images of 32x32."""

    def conv_norm(x: Any, window: int, into: int, out: int, strides: int = 1) -> Any:
        x = layers.conv(x, take(window, window, into, out), strides=strides, padding=window // 2)
        return layers.batch_norm(x, take(out), take(out))

    x = layers.relu(conv_norm(x, 3, 3, 64))
    channels = 64
    for out, strides in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        inner = conv_norm(layers.relu(conv_norm(x, 3, channels, out, strides)), 3, out, out)
        shortcut = conv_norm(x, 1, channels, out, strides) if strides > 1 else x
        x, channels = layers.relu(inner + shortcut), out
    return layers.dense(layers.mean_over_positions(x), take(512, CLASSES), take(CLASSES))


def mobilenet(layers: Layers, take: Take, x: Any) -> Any:
    """MobileNet (Howard et al., 2017) for images of 32x32: depthwise 3x3, then 1x1."""

    def norm_relu(x: Any, channels: int) -> Any:
        return layers.relu(layers.batch_norm(x, take(channels), take(channels)))

    x = norm_relu(layers.conv(x, take(3, 3, 3, 32), padding=1), 32)
    channels = 32
    for out, strides in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        x = layers.conv(x, take(3, 3, 1, channels), strides=strides, padding=1, groups=channels)
        x = norm_relu(x, channels)
        x = norm_relu(layers.conv(x, take(1, 1, channels, out), padding=0), out)
        channels = out
    return layers.dense(layers.mean_over_positions(x), take(512, CLASSES), take(CLASSES))


def convnext(layers: Layers, take: Take, x: Any) -> Any:
    """A stack of ConvNeXt's blocks (Liu et al., 2022): depthwise 7x7, then two 1x1, at two sizes."""
    x = layers.conv(x, take(2, 2, 3, 64), take(64), strides=2, padding=0)
    for channels in (64, 128):
        if channels == 128:
            x = layers.layer_norm(x, take(64), take(64))
            x = layers.conv(x, take(2, 2, 64, 128), take(128), strides=2, padding=0)
        for _ in range(2):
            inner = layers.conv(x, take(7, 7, 1, channels), take(channels), padding=3, groups=channels)
            inner = layers.layer_norm(inner, take(channels), take(channels))
            inner = layers.gelu(layers.conv(inner, take(1, 1, channels, 4 * channels), take(4 * channels), padding=0))
            x = x + layers.conv(inner, take(1, 1, 4 * channels, channels), take(channels), padding=0)
    return layers.dense(layers.mean_over_positions(x), take(128, CLASSES), take(CLASSES))


MODELS = (
    Model("lenet 28x28 batch 64", lenet, (64, 28, 28, 1)),
    Model("resnet-18 32x32 batch 32", resnet18, (32, 32, 32, 3)),
    Model("mobilenet 32x32 batch 32", mobilenet, (32, 32, 32, 3)),
    Model("convnext blocks 32x32 batch 32", convnext, (32, 32, 32, 3)),
)


def jax_layers(ops: ModuleType) -> Layers:
    """The layers with the ops of `jaxbp` or of `jaxbp.automatic`; what neither has is the same in both."""

    def conv(x, kernel, bias=None, *, strides=1, padding, groups=1):
        return ops.conv(x, kernel, bias, strides=strides, padding=padding, feature_group_count=groups)

    def max_pool(x, window, strides, padding):
        return ops.max_pool(x, (window, window), strides, padding)

    def moments(x, axes):
        mean = jnp.mean(x, axes, keepdims=True)
        return mean, jax.lax.rsqrt(jnp.mean(jnp.square(x - mean), axes, keepdims=True) + 1e-5)

    def batch_norm(x, scale, offset):
        # A factor and a term for each channel, as PyTorch has them: nothing else of the input's size is kept.
        mean, factor = moments(x, (0, 1, 2))
        factor = factor * _last(1 + scale, x)
        return x * factor + (_last(offset, x) - mean * factor)

    def layer_norm(x, scale, offset):
        mean, factor = moments(x, (3,))
        return (x - mean) * (factor * _last(1 + scale, x)) + _last(offset, x)

    return Layers(
        conv,
        max_pool,
        batch_norm,
        layer_norm,
        ops.relu,
        jax.nn.gelu,
        ops.dense,
        lambda x: jnp.mean(x, (1, 2)),
        lambda x: x.reshape(x.shape[0], -1),
    )


def _last(a: jax.Array, x: jax.Array) -> jax.Array:
    """One number for each channel, with as many axes as x."""
    return jnp.expand_dims(a, range(x.ndim - 1))


def initial_parameters(model: Model, ops: ModuleType, dtype: Any, seed: int = 0) -> list[jax.Array]:
    """Random kernels that keep the size of what passes through them, zeros for everything else."""
    rng = np.random.default_rng(seed)
    parameters: list[np.ndarray] = []

    def create(*shape: int) -> jax.Array:
        spread = math.sqrt(2 / math.prod(shape[:-1])) if len(shape) > 1 else 0.0
        parameters.append(spread * rng.standard_normal(shape))
        return jnp.asarray(parameters[-1], dtype)

    jax.eval_shape(lambda x: model.network(jax_layers(ops), create, x), jax.ShapeDtypeStruct(model.images, dtype))
    return [jnp.asarray(parameter, dtype) for parameter in parameters]


def from_list(parameters: Sequence[Any]) -> Take:
    """`take` for parameters that exist."""
    remaining = iter(parameters)
    return lambda *_: next(remaining)


def training_data(model: Model, dtype: Any, seed: int = 1) -> tuple[jax.Array, jax.Array]:
    """Random images and labels."""
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.standard_normal(model.images, np.float32)).astype(dtype)
    return images, jnp.asarray(rng.integers(0, CLASSES, model.images[0]), jnp.int32)


def jax_step(model: Model, ops: ModuleType) -> Callable[..., tuple[list[jax.Array], jax.Array]]:
    """One step of gradient descent: (parameters, images, labels) to new parameters and the loss."""
    layers = jax_layers(ops)

    def loss(parameters, images, labels):
        logits = model.network(layers, from_list(parameters), images)
        return jnp.mean(ops.softmax_cross_entropy(logits, labels))

    def step(parameters, images, labels):
        value, gradients = jax.value_and_grad(loss)(parameters, images, labels)
        return [p - LEARNING_RATE * g for p, g in zip(parameters, gradients, strict=True)], value

    return step
