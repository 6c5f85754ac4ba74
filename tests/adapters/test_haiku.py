"""The Haiku adapter against Haiku itself: parameters, values and gradients, with parameters exchanged both ways."""

import chex
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import runs_jaxbp
from jaxbp import haiku as hk


@pytest.fixture(autouse=True)
def promotion_as_by_default():
    """Haiku's own average pool divides float32 by a NumPy integer, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def integers(seed, shape):
    """Small integers: sums of their products are exact, so that two right results are equal bit for bit."""
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, shape), np.float32)


def value_and_gradients(function, *args):
    """The function's value, and the gradients that pull small integers back from it."""

    @jax.jit
    def run(*args):
        value, pullback = jax.vjp(function, *args)
        return value, pullback(integers(99, value.shape))

    return run(*args)


def transformed(library, name, arguments):
    """A Haiku layer as a pair of functions."""
    return haiku.without_apply_rng(haiku.transform(lambda x: getattr(library, name)(**arguments)(x)))


LAYERS = {
    "ConvND": ((2, 7, 6, 4), dict(num_spatial_dims=2, output_channels=8, kernel_shape=3)),
    "Conv1D": ((2, 9, 4), dict(output_channels=8, kernel_shape=3, stride=2, padding="VALID")),
    "Conv2D": ((2, 7, 6, 4), dict(output_channels=8, kernel_shape=(3, 2), padding=[(1, 0), (0, 2)])),
    "Conv2D rate": ((2, 9, 8, 4), dict(output_channels=8, kernel_shape=3, rate=2)),
    "Conv2D padding function": ((2, 7, 6, 4), dict(output_channels=8, kernel_shape=3, padding=haiku.pad.full)),
    "Conv2D channels first": ((2, 4, 7, 6), dict(output_channels=8, kernel_shape=3, data_format="NCHW")),
    "Conv2D groups": ((2, 7, 6, 4), dict(output_channels=8, kernel_shape=3, feature_group_count=2)),
    "Conv2D no bias": ((2, 7, 6, 4), dict(output_channels=8, kernel_shape=1, with_bias=False)),
    "Conv2D no batch": ((7, 6, 4), dict(output_channels=8, kernel_shape=3)),
    "Conv2D masked": ((2, 7, 6, 4), dict(output_channels=8, kernel_shape=3, mask=integers(5, (3, 3, 4, 8)))),
    "Conv3D": ((2, 5, 4, 5, 4), dict(output_channels=8, kernel_shape=2)),
    "ConvNDTranspose": ((2, 5, 4, 4), dict(num_spatial_dims=2, output_channels=8, kernel_shape=3)),
    "Conv1DTranspose": ((2, 5, 4), dict(output_channels=8, kernel_shape=3, stride=2, padding="VALID")),
    "Conv2DTranspose": ((2, 5, 4, 4), dict(output_channels=8, kernel_shape=3, stride=(2, 3))),
    "Conv2DTranspose shape": ((2, 5, 4, 4), dict(output_channels=8, kernel_shape=3, stride=2, output_shape=(9, 8))),
    "Conv2DTranspose channels first": (
        (2, 4, 5, 4),
        dict(output_channels=8, kernel_shape=3, stride=2, data_format="NCHW"),
    ),
    "Conv3DTranspose": ((2, 3, 4, 3, 4), dict(output_channels=8, kernel_shape=2, stride=2)),
    "DepthwiseConv1D": ((2, 9, 4), dict(channel_multiplier=2, kernel_shape=3)),
    "DepthwiseConv2D": ((2, 7, 6, 4), dict(channel_multiplier=2, kernel_shape=3, stride=2)),
    "DepthwiseConv2D channels first": (
        (2, 4, 7, 6),
        dict(channel_multiplier=1, kernel_shape=3, data_format="NCHW"),
    ),
    "DepthwiseConv3D": ((2, 5, 4, 5, 4), dict(channel_multiplier=1, kernel_shape=2)),
    "SeparableDepthwiseConv2D": ((2, 7, 6, 4), dict(channel_multiplier=2, kernel_shape=3)),
    "MaxPool": ((2, 7, 6, 4), dict(window_shape=(3, 2, 1), strides=(2, 2, 1), padding="SAME")),
    "MaxPool valid": ((2, 8, 6, 4), dict(window_shape=(2, 2, 1), strides=(2, 2, 1), padding="VALID")),
    "MaxPool channels first": ((2, 4, 8, 6), dict(window_shape=(1, 2, 2), strides=(1, 2, 2), padding="VALID")),
    "MaxPool channels too": ((2, 8, 6, 4), dict(window_shape=(2, 1, 2), strides=(2, 1, 2), padding="VALID")),
    "AvgPool": ((2, 8, 6, 4), dict(window_shape=(2, 2, 1), strides=(2, 2, 1), padding="VALID")),
    "AvgPool same": ((2, 7, 6, 4), dict(window_shape=(3, 2, 1), strides=(2, 1, 1), padding="SAME")),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    shape, arguments = LAYERS[name]
    name = name.partition(" ")[0]
    ours, theirs = transformed(hk, name, arguments), transformed(haiku, name, arguments)
    x = integers(0, shape)
    params, their_params = (jax.eval_shape(layer.init, jax.random.key(0), x) for layer in (ours, theirs))
    assert params == their_params
    params = jax.tree.map(lambda leaf: integers(leaf.size, leaf.shape), params)
    assert runs_jaxbp(ours.apply, params, x) and not runs_jaxbp(theirs.apply, params, x)
    our_value, our_gradients = value_and_gradients(ours.apply, params, x)
    their_value, their_gradients = value_and_gradients(theirs.apply, params, x)
    np.testing.assert_allclose(our_value, their_value, rtol=1e-6)
    assert jax.tree.structure(our_gradients) == jax.tree.structure(their_gradients)
    for a, b in zip(jax.tree.leaves(our_gradients), jax.tree.leaves(their_gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["Conv1D", "Conv2DTranspose", "DepthwiseConv2D", "SeparableDepthwiseConv2D"])
def test_initial_values(name):
    shape, arguments = LAYERS[name]
    ours, theirs = (
        jax.jit(transformed(library, name, arguments).init)(jax.random.key(0), integers(0, shape))
        for library in (hk, haiku)
    )
    chex.assert_trees_all_equal(ours, theirs)


def make_cnn(hk):
    """The same model written with Haiku or with jaxbp's adapter."""

    class CNN(hk.Module):
        def __call__(self, x):
            x = jax.nn.relu(hk.Conv2D(4, 3)(x))
            x = hk.max_pool(x, (2, 2, 1), (2, 2, 1), "VALID")
            x = jax.nn.relu(hk.DepthwiseConv2D(2, 3)(x))
            x = hk.Conv2DTranspose(4, 2, stride=2)(x)
            x = hk.avg_pool(x, (2, 2, 1), (2, 2, 1), "SAME")
            return hk.Linear(10)(hk.Flatten()(x))

    return hk.without_apply_rng(hk.transform(lambda x: CNN()(x)))


def test_parameters_go_both_ways():
    x = integers(0, (2, 8, 8, 1))
    ours, theirs = make_cnn(hk), make_cnn(haiku)
    for source, target in ((ours, theirs), (theirs, ours)):
        params = source.init(jax.random.key(0), x)
        assert jax.tree.structure(params) == jax.tree.structure(target.init(jax.random.key(1), x))
        np.testing.assert_allclose(target.apply(params, x), source.apply(params, x), rtol=1e-5, atol=1e-5)


def test_everything_else_is_haiku_own():
    assert hk.Linear is haiku.Linear and issubclass(hk.Conv2D, haiku.Conv2D)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = hk.no_such_name
    with pytest.raises(AttributeError, match="__no_such_name__"):
        _ = hk.__no_such_name__
