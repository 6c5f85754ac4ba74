"""A user's file that changed nothing but its imports: type checkers see what the original libraries show.

pyright and mypy read it (`.ci/run`); nothing runs it.
"""

from typing import Any, assert_type

import equinox as plain_eqx
import jax
import jax.numpy as jnp
from flax import linen as plain_linen
from flax import nnx as plain_nnx

import jaxbp
from jaxbp import equinox as eqx
from jaxbp import flax
from jaxbp import haiku as hk
from jaxbp.flax import linen, nnx

x = jnp.ones((1, 8, 8, 3))
kernel = jnp.ones((3, 3, 3, 4))

# Equinox: layers, models, transforms.
layer = eqx.nn.Conv2d(3, 4, 3, padding="SAME", key=jax.random.key(0))
as_original: plain_eqx.nn.Conv2d = layer
assert_type(layer, plain_eqx.nn.Conv2d)
assert_type(layer(x[0]), jax.Array)
assert_type(eqx.nn.ConvTranspose1d(3, 4, kernel_size=3, stride=2, key=jax.random.key(0))(x[0, 0]), jax.Array)
assert_type(eqx.nn.MaxPool2d(2, 2)(x[0]), jax.Array)
assert_type(eqx.nn.AvgPool3d((2, 2, 2), use_ceil=True)(x), jax.Array)
assert_type(eqx.nn.Linear(4, 2, key=jax.random.key(1)), plain_eqx.nn.Linear)
assert_type(eqx.nn.Sequential([layer, eqx.nn.Lambda(jax.nn.relu)]), plain_eqx.nn.Sequential)


class Model(eqx.Module):
    conv: eqx.nn.Conv2d
    linear: eqx.nn.Linear

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(self.conv(x).mean((1, 2)))


@eqx.filter_jit
def loss(model: Model, x: jax.Array) -> jax.Array:
    return jax.vmap(model)(x).sum()


model = Model(layer, eqx.nn.Linear(4, 2, key=jax.random.key(1)))
is_module: plain_eqx.Module = model
assert_type(loss(model, x), jax.Array)

# Flax nnx.
conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=nnx.Rngs(0))
assert_type(conv, plain_nnx.Conv)
assert_type(conv(x), jax.Array)
assert_type(nnx.ConvTranspose(3, 4, kernel_size=(3, 3), rngs=nnx.Rngs(0))(x), jax.Array)
assert_type(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), plain_nnx.Linear)
pooled: jax.Array = nnx.avg_pool(nnx.max_pool(conv(x), (2, 2), strides=(2, 2)), (2, 2))


class NnxModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.conv(x))


# Flax linen.
class Net(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Conv(8, (3, 3))(x)
        x = linen.ConvTranspose(8, (3, 3), strides=(2, 2))(x)
        x = linen.avg_pool(linen.max_pool(linen.relu(x), (2, 2), (2, 2)), (2, 2))
        return linen.Dense(10)(x.reshape(x.shape[0], -1))


original: plain_linen.Module = Net()
assert_type(linen.Dense(10), plain_linen.Dense)
assert_type(flax.linen.Conv(8, (3, 3)), plain_linen.Conv)
assert_type(flax.serialization.to_bytes({}), bytes)
smallest: jax.Array = linen.min_pool(x, (2, 2))


# Haiku.
def forward(x: jax.Array) -> jax.Array:
    x = hk.Conv2D(4, 3)(x)
    x = hk.Conv2DTranspose(4, kernel_shape=3, stride=2)(x)
    x = hk.SeparableDepthwiseConv2D(1, 3)(x)
    x = hk.AvgPool((2, 2, 1), (2, 2, 1), "SAME")(x)
    return hk.Linear(10)(hk.max_pool(x, 2, 2, "SAME"))


haiku_model = hk.without_apply_rng(hk.transform(forward))
assert_type(hk.avg_pool(x, 2, 2, "SAME"), jax.Array)

# jaxbp's own ops and their twins.
assert_type(jaxbp.conv(x, kernel, strides=(1, 1), padding=((0, 0), (0, 0))), jax.Array)
assert_type(jaxbp.automatic.conv(x, kernel, strides=(1, 1), padding=((0, 0), (0, 0))), jax.Array)
assert_type(jaxbp.automatic.max_pool(x, (2, 2), (2, 2), padding="SAME"), jax.Array)
assert_type(jaxbp.automatic.avg_pool(x, [2, 2], 2, 1, divisor_override=3), jax.Array)
assert_type(jaxbp.automatic.max_pool_with_winners(x, (2, 2)), tuple[jax.Array, jax.Array])
twin: jax.Array = jaxbp.automatic.conv_general_dilated(x, kernel, (1, 1), [(0, 0), (1, 1)])

report = jaxbp.compare(jnp.sin, x)
assert_type(report.ok, bool)
assert_type(report.to_dict(), dict[str, Any])
