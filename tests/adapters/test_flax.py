"""The Flax adapters against Flax itself: parameters, values, gradients, and checkpoints in both directions."""

import re
import subprocess
import sys
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

import jaxbp
from cases import runs_jaxbp
from jaxbp.flax import linen, nnx


@pytest.fixture(autouse=True)
def promotion_as_by_default():
    """Flax's own average pool divides float32 by a NumPy integer, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def integers(seed, shape, dtype=np.float32):
    """Small integers: sums of their products are exact, so that two right results are equal bit for bit."""
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, shape), dtype)


def with_integers(tree):
    """The same tree with small integers in place of its parameters."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [integers(i, leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)])


def value_and_gradients(function, *args):
    """The function's value, and the gradients that pull small integers back from it."""

    @jax.jit
    def run(*args):
        value, pullback = jax.vjp(function, *args)
        return value, pullback(integers(99, value.shape, value.dtype))

    return run(*args)


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


CONVS = {
    "defaults": ((2, 7, 6, 4), dict(kernel_size=(3, 3))),
    "strided": ((2, 7, 6, 4), dict(kernel_size=(3, 2), strides=(2, 3), padding="VALID")),
    "dilated": ((2, 9, 8, 4), dict(kernel_size=(3, 3), kernel_dilation=2, input_dilation=(2, 1), padding=1)),
    "pairs": ((2, 7, 6, 4), dict(kernel_size=(3, 3), padding=[(0, 2), (1, 0)])),
    "circular": ((2, 7, 6, 4), dict(kernel_size=(3, 3), padding="CIRCULAR")),
    "reflect": ((2, 7, 6, 4), dict(kernel_size=(3, 3), padding="REFLECT", strides=2)),
    "causal": ((2, 7, 4), dict(kernel_size=(3,), padding="CAUSAL", kernel_dilation=2)),
    "groups": ((2, 7, 6, 4), dict(kernel_size=(3, 3), feature_group_count=2)),
    "depthwise": ((2, 7, 6, 4), dict(kernel_size=(3, 3), feature_group_count=4)),
    "no bias": ((2, 7, 6, 4), dict(kernel_size=(1, 1), use_bias=False)),
    "no batch": ((7, 6, 4), dict(kernel_size=(3, 3))),
    "two batch axes": ((2, 3, 7, 6, 4), dict(kernel_size=(3, 3))),
    "masked": ((2, 7, 6, 4), dict(kernel_size=(3, 3), mask=integers(5, (3, 3, 4, 8)))),
    "1-D": ((2, 9, 4), dict(kernel_size=3)),
    "3-D": ((2, 5, 4, 5, 4), dict(kernel_size=(2, 3, 2))),
    "bfloat16": ((2, 7, 6, 4), dict(kernel_size=(3, 3), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)),
}

TRANSPOSED = {
    "defaults": ((2, 5, 4, 4), dict(kernel_size=(3, 3))),
    "strided": ((2, 5, 4, 4), dict(kernel_size=(3, 2), strides=(2, 3))),
    "valid": ((2, 5, 4, 4), dict(kernel_size=(3, 3), strides=(2, 2), padding="VALID")),
    "pairs": ((2, 5, 4, 4), dict(kernel_size=(3, 3), strides=(2, 2), padding=[(1, 2), (0, 1)])),
    "circular": ((2, 5, 4, 4), dict(kernel_size=(4, 4), strides=(2, 2), padding="CIRCULAR")),
    "transposed kernel": ((2, 5, 4, 4), dict(kernel_size=(3, 3), strides=(2, 2), transpose_kernel=True)),
    "dilated": ((2, 5, 4, 4), dict(kernel_size=(3, 3), kernel_dilation=(2, 1))),
    "no batch, no bias": ((5, 4), dict(kernel_size=(3,), strides=(2,), use_bias=False)),
    "masked": ((2, 5, 4, 4), dict(kernel_size=(3, 3), mask=integers(5, (3, 3, 4, 8)))),
}


def check_linen(ours, theirs, shape):
    x = integers(0, shape)
    variables = theirs.init(jax.random.key(0), x)
    assert_equal(ours.init(jax.random.key(0), x), variables)
    variables = with_integers(variables)
    assert runs_jaxbp(ours.apply, variables, x) and not runs_jaxbp(theirs.apply, variables, x)
    assert_equal(value_and_gradients(ours.apply, variables, x), value_and_gradients(theirs.apply, variables, x))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("shape", "arguments"), CONVS.values(), ids=CONVS)
def test_linen_conv(shape, arguments):
    check_linen(linen.Conv(8, **arguments), flax_linen.Conv(8, **arguments), shape)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("shape", "arguments"), TRANSPOSED.values(), ids=TRANSPOSED)
def test_linen_conv_transpose(shape, arguments):
    check_linen(linen.ConvTranspose(8, **arguments), flax_linen.ConvTranspose(8, **arguments), shape)


def check_nnx(our_class, their_class, shape, arguments):
    x = integers(0, shape)
    ours = our_class(4, 8, rngs=nnx.Rngs(0), **arguments)
    theirs = their_class(4, 8, rngs=nnx.Rngs(0), **arguments)
    assert_equal(nnx.to_pure_dict(nnx.state(ours)), nnx.to_pure_dict(nnx.state(theirs)))

    def function_of(layer):
        graph, state = nnx.split(layer)
        return (lambda state, x: nnx.merge(graph, state)(x)), with_integers(state)

    (our_function, state), (their_function, their_state) = function_of(ours), function_of(theirs)
    assert runs_jaxbp(our_function, state, x) and not runs_jaxbp(their_function, their_state, x)
    our_value, our_gradients = value_and_gradients(our_function, state, x)
    their_value, their_gradients = value_and_gradients(their_function, their_state, x)
    assert_equal(our_value, their_value)
    assert_equal(jax.tree.leaves(our_gradients), jax.tree.leaves(their_gradients))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("shape", "arguments"), CONVS.values(), ids=CONVS)
def test_nnx_conv(shape, arguments):
    check_nnx(nnx.Conv, flax_nnx.Conv, shape, arguments)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("shape", "arguments"), TRANSPOSED.values(), ids=TRANSPOSED)
def test_nnx_conv_transpose(shape, arguments):
    check_nnx(nnx.ConvTranspose, flax_nnx.ConvTranspose, shape, arguments)


def test_nnx_conv_keeps_a_convolution_of_the_users_own():
    layer = nnx.Conv(4, 8, (3, 3), conv_general_dilated=jax.lax.conv_general_dilated, rngs=nnx.Rngs(0))
    assert not runs_jaxbp(layer, integers(0, (2, 7, 6, 4)))


POOLS = {
    "2x2": ((2, 6, 6, 3), dict(window_shape=(2, 2), strides=(2, 2))),
    "overlapping": ((2, 7, 6, 3), dict(window_shape=(3, 2), strides=(2, 1), padding="SAME")),
    "pairs": ((2, 7, 6, 3), dict(window_shape=(3, 3), strides=(2, 2), padding=((1, 0), (0, 2)))),
    "default strides": ((2, 7, 3), dict(window_shape=(3,))),
    "no batch": ((7, 6, 3), dict(window_shape=(2, 2))),
    "two batch axes": ((2, 2, 6, 6, 3), dict(window_shape=(2, 2), strides=(2, 2))),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.parametrize("name", ["max_pool", "avg_pool", "min_pool"])
@pytest.mark.parametrize(("shape", "arguments"), POOLS.values(), ids=POOLS)
def test_pools(library, name, shape, arguments):
    x = integers(0, shape)
    ours = getattr({"linen": linen, "nnx": nnx}[library], name)
    theirs = getattr(flax_linen.pooling, name)
    assert runs_jaxbp(lambda x: ours(x, **arguments), x)
    our_value, our_gradients = value_and_gradients(lambda x: ours(x, **arguments), x)
    their_value, their_gradients = value_and_gradients(lambda x: theirs(x, **arguments), x)
    np.testing.assert_allclose(our_value, their_value, rtol=1e-6)
    np.testing.assert_allclose(our_gradients[0], their_gradients[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("library", [linen, nnx])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_average_of_what_has_no_gradient_is_flax_own(library, dtype):
    x = integers(0, (1, 4, 4, 2)).astype(dtype)
    try:
        expected = flax_linen.avg_pool(x, (2, 2), (2, 2))
    except TypeError as error:
        with pytest.raises(TypeError, match=re.escape(str(error))):
            library.avg_pool(x, (2, 2), (2, 2))
    else:
        ours = library.avg_pool(x, (2, 2), (2, 2))
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)


def test_average_without_padding_takes_flax_fifth_argument():
    x = integers(0, (1, 5, 5, 2))
    arguments = ((3, 3), (2, 2), "SAME", False)
    np.testing.assert_allclose(linen.avg_pool(x, *arguments), flax_linen.avg_pool(x, *arguments), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pool", [linen.pool, nnx.pool])
def test_pool_with_any_reduction(pool):
    x = integers(0, (2, 6, 6, 3))
    arguments = ((2, 2), (2, 2), "VALID")
    assert runs_jaxbp(lambda x: pool(x, -jnp.inf, jax.lax.max, *arguments), x)
    products = lambda pool: pool(x, 1.0, jax.lax.mul, *arguments)  # noqa: E731
    np.testing.assert_array_equal(products(pool), products(flax_linen.pool))


def make_cnn(nn):
    """The same model written with Flax's linen or with jaxbp's."""

    class CNN(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = nn.relu(nn.Conv(6, (3, 3))(x))
            x = nn.ConvTranspose(6, (2, 2), strides=(2, 2))(x)
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
            return nn.Dense(10)(x.reshape(len(x), -1))

    return CNN()


def test_linen_checkpoints_go_both_ways():
    x = integers(0, (2, 8, 8, 1))
    ours, theirs = make_cnn(linen), make_cnn(flax_linen)
    variables = theirs.init(jax.random.key(0), x)
    assert sorted(variables["params"]) == ["ConvTranspose_0", "Conv_0", "Conv_1", "Dense_0"]
    other = jax.tree.map(jnp.zeros_like, variables)
    from_theirs = flax.serialization.from_bytes(ours.init(jax.random.key(1), x), flax.serialization.to_bytes(variables))
    np.testing.assert_allclose(ours.apply(from_theirs, x), theirs.apply(variables, x), rtol=1e-5, atol=1e-5)
    from_ours = flax.serialization.from_bytes(other, flax.serialization.to_bytes(ours.init(jax.random.key(0), x)))
    assert_equal(from_ours, variables)


class OursNnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.up = nnx.ConvTranspose(4, 2, (2, 2), strides=(2, 2), rngs=rngs)

    def __call__(self, x):
        return self.up(nnx.max_pool(nnx.relu(self.conv(x)), (2, 2), strides=(2, 2)))


class TheirsNnx(flax_nnx.Module):
    def __init__(self, rngs):
        self.conv = flax_nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.up = flax_nnx.ConvTranspose(4, 2, (2, 2), strides=(2, 2), rngs=rngs)

    def __call__(self, x):
        return self.up(flax_nnx.max_pool(flax_nnx.relu(self.conv(x)), (2, 2), strides=(2, 2)))


def test_nnx_state_goes_both_ways_and_flax_transforms_work():
    x = integers(0, (2, 8, 8, 1))
    ours, theirs = OursNnx(nnx.Rngs(1)), TheirsNnx(nnx.Rngs(2))
    nnx.update(ours, nnx.state(theirs))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    third = TheirsNnx(nnx.Rngs(3))
    nnx.update(third, nnx.state(ours))
    np.testing.assert_array_equal(third(x), theirs(x))

    @nnx.jit
    def gradients(model, x):
        return nnx.grad(lambda model: jnp.sum(model(x) ** 2))(model)

    our_leaves, their_leaves = jax.tree.leaves(gradients(ours, x)), jax.tree.leaves(gradients(theirs, x))
    for a, b in zip(our_leaves, their_leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_everything_else_is_flax_own():
    assert linen.Dense is flax_linen.Dense and nnx.Linear is flax_nnx.Linear
    assert issubclass(linen.Conv, flax_linen.Conv) and issubclass(nnx.ConvTranspose, flax_nnx.ConvTranspose)
    assert jaxbp.flax.serialization is flax.serialization
    for module in (linen, nnx, jaxbp.flax):
        with pytest.raises(AttributeError, match="no_such_name"):
            _ = module.no_such_name
        with pytest.raises(AttributeError, match="__no_such_name__"):
            _ = module.__no_such_name__


@pytest.mark.exhaustive
def test_the_example_agrees_before_and_after():
    script = Path(__file__).parents[2] / "examples" / "flax_cnn.py"
    result = subprocess.run([sys.executable, str(script), "--steps", "20"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "checkpoint   written before, read after: accuracy kept" in result.stdout
    (difference,) = re.findall(r"largest difference (\S+) of the largest: rounding", result.stdout)
    assert float(difference) < 1e-5
