"""The Equinox adapter against Equinox itself: parameters, values, gradients, and files in both directions."""

import io
import re
import subprocess
import sys
from pathlib import Path

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import runs_jaxbp
from jaxbp import equinox as eqx


def integers(seed, shape):
    """Small integers: sums of their products are exact, so that two right results are equal bit for bit."""
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, shape), np.float32)


def with_integers(layer):
    """The same layer with small integers in place of its parameters."""
    arrays, rest = equinox.partition(layer, equinox.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    arrays = jax.tree.unflatten(structure, [integers(i, leaf.shape) for i, leaf in enumerate(leaves)])
    return equinox.combine(arrays, rest)


def value_and_gradients(layer, x):
    """The layer's value, and the gradients of its parameters and its input, as leaves."""
    arrays, rest = equinox.partition(layer, equinox.is_array)

    @jax.jit
    def run(arrays, x):
        value, pullback = jax.vjp(lambda arrays, x: equinox.combine(arrays, rest)(x), arrays, x)
        return value, jax.tree.leaves(pullback(integers(99, value.shape)))

    return run(arrays, x)


LAYERS = {
    "Conv": ((4, 7, 6), dict(num_spatial_dims=2, in_channels=4, out_channels=6, kernel_size=3)),
    "Conv1d": ((4, 9), dict(in_channels=4, out_channels=6, kernel_size=3, stride=2, padding="SAME")),
    "Conv2d": ((4, 7, 6), dict(in_channels=4, out_channels=6, kernel_size=(3, 2))),
    "Conv2d dilated": ((4, 9, 8), dict(in_channels=4, out_channels=6, kernel_size=3, dilation=2, padding=1)),
    "Conv2d pairs": ((4, 7, 6), dict(in_channels=4, out_channels=6, kernel_size=3, padding=((0, 2), (1, 0)))),
    "Conv2d lower": ((4, 7, 6), dict(in_channels=4, out_channels=6, kernel_size=4, padding="SAME_LOWER")),
    "Conv2d groups": ((4, 7, 6), dict(in_channels=4, out_channels=6, kernel_size=3, groups=2)),
    "Conv2d depthwise": ((4, 7, 6), dict(in_channels=4, out_channels=8, kernel_size=3, groups=4)),
    "Conv2d no bias": ((4, 7, 6), dict(in_channels=4, out_channels=6, kernel_size=1, use_bias=False)),
    "Conv2d circular": (
        (4, 7, 6),
        dict(in_channels=4, out_channels=6, kernel_size=3, padding=1, padding_mode="CIRCULAR"),
    ),
    "Conv2d replicate": (
        (4, 7, 6),
        dict(in_channels=4, out_channels=6, kernel_size=3, padding="SAME", padding_mode="REPLICATE"),
    ),
    "Conv3d": ((4, 5, 4, 5), dict(in_channels=4, out_channels=6, kernel_size=2)),
    "ConvTranspose": ((4, 5, 4), dict(num_spatial_dims=2, in_channels=4, out_channels=6, kernel_size=3)),
    "ConvTranspose1d": ((4, 5), dict(in_channels=4, out_channels=6, kernel_size=3, stride=2)),
    "ConvTranspose2d": (
        (4, 5, 4),
        dict(in_channels=4, out_channels=6, kernel_size=3, stride=2, padding=1, output_padding=1),
    ),
    "ConvTranspose2d same": (
        (4, 5, 4),
        dict(in_channels=4, out_channels=6, kernel_size=3, stride=2, padding="SAME", dilation=2),
    ),
    "ConvTranspose2d groups": ((4, 5, 4), dict(in_channels=4, out_channels=6, kernel_size=3, groups=2)),
    "ConvTranspose2d circular": (
        (4, 5, 4),
        dict(in_channels=4, out_channels=6, kernel_size=3, padding="SAME", padding_mode="CIRCULAR"),
    ),
    "ConvTranspose3d": ((4, 3, 4, 3), dict(in_channels=4, out_channels=6, kernel_size=2, stride=2)),
}

POOLS = {
    "AvgPool1d": ((3, 9), dict(kernel_size=2)),
    "AvgPool2d": ((3, 8, 6), dict(kernel_size=2, stride=2)),
    "AvgPool2d ceil": ((3, 7, 6), dict(kernel_size=2, stride=2, use_ceil=True)),
    "AvgPool3d": ((3, 4, 5, 4), dict(kernel_size=2, stride=2)),
    "MaxPool1d": ((3, 9), dict(kernel_size=3, stride=2, padding=1)),
    "MaxPool2d": ((3, 8, 6), dict(kernel_size=2, stride=2)),
    "MaxPool2d overlapping": ((3, 7, 6), dict(kernel_size=(3, 2), stride=(2, 1), padding=((1, 0), (0, 1)))),
    "MaxPool2d ceil": ((3, 8, 7), dict(kernel_size=3, stride=2, use_ceil=True)),
    "MaxPool3d": ((3, 4, 5, 4), dict(kernel_size=2, stride=2)),
    "Pool": (
        (3, 8, 6),
        dict(init=jnp.inf, operation=jax.lax.min, num_spatial_dims=2, kernel_size=2, stride=2),
    ),
}


def check(name, shape, arguments):
    name = name.partition(" ")[0]
    ours, theirs = (with_integers(getattr(library.nn, name)(**arguments)) for library in (eqx, equinox))
    x = integers(7, shape)
    assert isinstance(ours, getattr(equinox.nn, name))
    assert runs_jaxbp(ours, x) and not runs_jaxbp(theirs, x)
    (our_value, our_gradients), (their_value, their_gradients) = (
        value_and_gradients(layer, x) for layer in (ours, theirs)
    )
    np.testing.assert_array_equal(our_value, their_value)
    assert [g.dtype for g in our_gradients] == [g.dtype for g in their_gradients]
    for a, b in zip(our_gradients, their_gradients, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", LAYERS)
def test_convolutions(name):
    shape, arguments = LAYERS[name]
    check(name, shape, dict(arguments, key=jax.random.key(0)))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", POOLS)
def test_pools(name):
    check(name, *POOLS[name])


def test_same_random_parameters_from_the_same_key():
    ours, theirs = (jax.tree.leaves(library.nn.Conv2d(3, 4, 3, key=jax.random.key(5))) for library in (eqx, equinox))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def make_cnn(eqx, key):
    """The same model written with Equinox or with jaxbp's adapter."""
    keys = jax.random.split(key, 3)
    return eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(1, 4, 3, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.ConvTranspose2d(4, 2, 2, stride=2, key=keys[1]),
            eqx.nn.AvgPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(32, 10, key=keys[2]),
        ]
    )


def test_files_go_both_ways_and_equinox_transforms_work():
    x = integers(0, (5, 1, 8, 8))
    ours, theirs = make_cnn(eqx, jax.random.key(0)), make_cnn(equinox, jax.random.key(1))
    for source, target in ((ours, theirs), (theirs, ours)):
        file = io.BytesIO()
        equinox.tree_serialise_leaves(file, source)
        file.seek(0)
        loaded = equinox.tree_deserialise_leaves(file, target)
        np.testing.assert_allclose(jax.vmap(loaded)(x), jax.vmap(source)(x), rtol=1e-5, atol=1e-5)

    @equinox.filter_jit
    @equinox.filter_grad
    def gradients(model):
        return jnp.sum(jax.vmap(model)(x) ** 2)

    theirs = make_cnn(equinox, jax.random.key(0))
    for a, b in zip(jax.tree.leaves(gradients(ours)), jax.tree.leaves(gradients(theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_everything_else_is_equinox_own():
    assert eqx.nn.Linear is equinox.nn.Linear and eqx.filter_jit is equinox.filter_jit
    assert eqx.nn.AdaptiveAvgPool2d is equinox.nn.AdaptiveAvgPool2d
    for module in (eqx, eqx.nn):
        with pytest.raises(AttributeError, match="no_such_name"):
            _ = module.no_such_name
        with pytest.raises(AttributeError, match="__no_such_name__"):
            _ = module.__no_such_name__


@pytest.mark.exhaustive
def test_the_example_agrees_before_and_after():
    script = Path(__file__).parents[2] / "examples" / "equinox_cnn.py"
    result = subprocess.run([sys.executable, str(script), "--steps", "20"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "file         written before, read after: accuracy kept" in result.stdout
    (difference,) = re.findall(r"largest difference (\S+) of the largest: rounding", result.stdout)
    assert float(difference) < 1e-5
