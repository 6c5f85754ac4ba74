"""Every public function and layer, and what holds one, goes through pickle and cloudpickle and to a new process."""

import functools
import pickle
import subprocess
import sys
import types
from pathlib import Path

import cloudpickle
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen

import jaxbp
from jaxbp import equinox as eqx
from jaxbp import haiku as hk
from jaxbp.flax import linen, nnx

PICKLERS = {"pickle": pickle, "cloudpickle": cloudpickle}
POOL = dict(window_shape=(2, 2), strides=(2, 2))
X = np.arange(16.0, dtype=np.float32).reshape(1, 4, 4, 1)


def public_names():
    """All of jaxbp's own and of `automatic`, and what the adapters have in the place of the libraries' own."""
    own = [(m, n) for m in (jaxbp, jaxbp.automatic) for n in dir(m) if n[0] != "_" and callable(getattr(m, n))]
    adapters = [(m, n) for m in (linen, nnx, eqx.nn, hk) for n in m.__all__ if n in vars(m)]
    return {f"{module.__name__}.{name}": getattr(module, name) for module, name in own + adapters}


PUBLIC = public_names()


def test_the_walk_sees_every_kind():
    assert {"jaxbp.swap_lax", "jaxbp.automatic.conv_transpose", "jaxbp.flax.nnx.pool", "jaxbp.haiku.AvgPool"} < set(
        PUBLIC
    )


@pytest.mark.parametrize("pickler", PICKLERS)
@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(pickler, name):
    dumps, loads = PICKLERS[pickler].dumps, PICKLERS[pickler].loads
    assert loads(dumps(PUBLIC[name])) is PUBLIC[name]
    partial = loads(dumps(functools.partial(PUBLIC[name], (2, 2), padding="SAME")))
    assert partial.func is PUBLIC[name] and partial.args == ((2, 2),) and partial.keywords == {"padding": "SAME"}


class NnxCNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
        self.up = nnx.ConvTranspose(2, 1, (2, 2), strides=(2, 2), rngs=rngs)
        self.pool = functools.partial(nnx.avg_pool, **POOL)
        self.reduce = functools.partial(nnx.pool, init=-np.inf, reduce_fn=jax.lax.max, padding="VALID", **POOL)

    def __call__(self, x):
        return self.reduce(self.up(self.pool(self.conv(x))))


class HoldsPools:
    def __init__(self):
        self.pools = [linen.avg_pool, linen.max_pool, nnx.min_pool, jaxbp.max_pool, jaxbp.automatic.avg_pool]
        self.layers = [eqx.nn.MaxPool2d(2, 2), eqx.nn.AvgPool2d(2, 2), eqx.nn.Conv2d(1, 2, 3, key=jax.random.key(0))]

    def __call__(self, x):
        pooled = [pool(x, **POOL) for pool in self.pools]
        return sum(z.sum() for z in (*pooled, *(layer(x[0].transpose(2, 0, 1)) for layer in self.layers)))


MODELS = {"nnx": lambda: NnxCNN(nnx.Rngs(0)), "holds pools": HoldsPools}


def local_models():
    """What only cloudpickle takes: classes and functions of no module; linen's initial values, as in Flax itself."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.ConvTranspose(2, (2, 2))(linen.Conv(2, (3, 3))(x))
            return linen.avg_pool(linen.max_pool(x, **POOL), (2, 2))

    def forward(x):
        x = hk.avg_pool(hk.max_pool(x, (2, 2, 1), (2, 2, 1), "SAME"), (2, 2, 1), (1, 1, 1), "SAME")
        return hk.DepthwiseConv2D(1, 2)(hk.Conv2D(2, 3)(x))

    with jax.numpy_dtype_promotion("standard"):  # Haiku divides by an integer of NumPy
        transformed = haiku.without_apply_rng(haiku.transform(forward))
        params = transformed.init(jax.random.key(0), X)
        haiku_value = functools.partial(transformed.apply, params)
        return {
            "linen": functools.partial(Net().apply, Net().init(jax.random.key(0), X)),
            "haiku": haiku_value,
            "jitted": lambda x: linen.avg_pool(jaxbp.relu(x), **POOL),
        }


@pytest.mark.exhaustive
def test_in_a_new_process(tmp_path):
    by_name = {name: make() for name, make in MODELS.items()}
    made = {"pickle": by_name, "cloudpickle": by_name | local_models()}
    for pickler, models in made.items():
        with jax.numpy_dtype_promotion("standard"):
            expected = {name: np.asarray(model(X)) for name, model in models.items()}
        content = PICKLERS[pickler].dumps((list(PUBLIC.values()), models, X, expected))
        (tmp_path / pickler).write_bytes(content)
    program = """
import cloudpickle, pickle, sys, numpy as np
for pickler in (pickle, cloudpickle):
    public, models, x, expected = pickler.loads(open(f"{sys.argv[1]}/{pickler.__name__}", "rb").read())
    for name, model in models.items():
        np.testing.assert_allclose(model(x), expected[name], rtol=1e-5, atol=1e-6)
    print(len(public), *models)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )  # fmt: skip
    assert result.stdout.splitlines() == [" ".join([str(len(PUBLIC)), *models]) for models in made.values()], (
        result.stderr
    )


def test_linen_layers_are_pickled_as_flax_own():
    """Flax's default initial values are local functions: plain pickle takes neither, cloudpickle both."""
    for library in (flax_linen, linen):
        with pytest.raises(AttributeError, match="local object 'variance_scaling"):
            pickle.dumps(library.Conv(2, (3, 3)))
        layer = cloudpickle.loads(cloudpickle.dumps(library.Conv(2, (3, 3))))
        assert type(layer) is library.Conv and layer.features == 2


@pytest.mark.parametrize("pickler", PICKLERS)
def test_what_is_taken_from_a_swapped_library_is_lax_own_when_read(pickler):
    module = types.ModuleType("a_library_to_pickle_from")
    module.lax, module.jax, module.pool = jax.lax, jax, jax.lax.reduce_window
    sys.modules[module.__name__] = module
    try:
        with jaxbp.swap_lax(module):
            kept = functools.partial(module.pool, window_dimensions=(2,)), module.lax, module.jax, module.lax.conv
            assert kept[0].func is not jax.lax.reduce_window and kept[1] is not jax.lax
        partial, *rest = PICKLERS[pickler].loads(PICKLERS[pickler].dumps(kept))
    finally:
        del sys.modules[module.__name__]
    assert partial.func is jax.lax.reduce_window and rest == [jax.lax, jax, jax.lax.conv]


def test_a_report_is_pickled():
    report = jaxbp.compare(
        jaxbp.relu, jnp.ones(3), automatic=jaxbp.automatic.relu, transforms=[], time=False, memory=False
    )
    assert str(pickle.loads(pickle.dumps(report))) == str(report)
