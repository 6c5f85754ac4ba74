"""`jaxbp.forward_mode`: every op in both modes, against its automatic twin; outside of the block nothing changes."""

import functools
import re
import subprocess
import sys
import threading
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_programs
import test_sharding
from jax import lax
from jax.experimental import jet
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_compilations import compiled  # noqa: F401
from test_sharding import LAYERS, arrays_of, mesh_of, specs_of
from test_transformations import TRANSFORMATIONS, of_differentiable

import jaxbp
from cases import OPS, assert_equal, integers, normal

ROOT = Path(__file__).parents[2]


# One op for each way in which a rule is written; the others belong to the long walk.
KINDS = [
    pytest.param(
        name, marks=[] if name in ("conv", "dense", "max_pool", "lp_pool", "relu") else [pytest.mark.exhaustive]
    )
    for name in OPS
]


def close(ours, twin, tolerance=2e-5):
    chex.assert_trees_all_close(ours, twin, rtol=tolerance, atol=tolerance)


def function_of(op, ops):
    """The op of its differentiable arrays alone."""
    return of_differentiable(op, functools.partial(op.call, ops))


def some_of(op, dtype=np.float32):
    """The differentiable arrays, and a tangent for each."""
    arrays = op.arrays(dtype)
    some = tuple(arrays[i] for i in op.differentiable)
    return some, tuple(jnp.cos(7 * a) for a in some)


# ---------------------------------------------------------------------------------- every op, every mode


def modes(f, some, dx):
    """What forward mode is asked for, alone and around and inside of reverse mode."""
    numbers = tuple(range(len(some)))

    def loss(*some):
        z = f(*some)
        return jnp.sum(z * z * jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape))

    several = tuple(jnp.stack([a, a[::-1]]) for a in some)
    scanned = lambda *some: lax.scan(lambda c, _: (c, f(*some)), None, None, length=1)[1][0]  # noqa: E731
    z = jax.eval_shape(f, *some)
    return {
        "jvp": jax.jvp(f, some, dx),
        "jvp of one": [jax.jvp(lambda a, i=i: f(*some[:i], a, *some[i + 1 :]), (some[i],), (dx[i],)) for i in numbers],
        "jvp of jit": jax.jvp(jax.jit(jax.checkpoint(scanned)), some, dx),
        "jvp of vmap": jax.jvp(jax.vmap(f), several, several),
        "vmap of jvp": jax.vmap(lambda *some: jax.jvp(f, some, dx))(*several),
        "vmap of tangents": jax.vmap(lambda *dx: jax.jvp(f, some, dx))(*several),
        "jacfwd": jax.jacfwd(f, numbers)(*some),
        "linearize": jax.linearize(f, *some)[1](*dx),
        "grad": jax.grad(loss, numbers)(*some),
        "jvp of grad": jax.jvp(jax.grad(loss, numbers), some, dx)[1],
        "grad of jvp": jax.grad(lambda *some: jax.jvp(loss, some, dx)[1], numbers)(*some),
        "jvp of jvp": jax.jvp(lambda *some: jax.jvp(f, some, dx), some, dx),
        "grad of scan": jax.grad(lambda *some: jnp.sum(jnp.sin(scanned(*some))), numbers)(*some),
        "transposed tangents": jax.linear_transpose(jax.linearize(f, *some)[1], *some)(normal(5, z.shape)),
    }


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", OPS)
def test_modes(name):
    """In one compiled program; the twin's outside of the block."""
    op = OPS[name]
    twin = jax.jit(lambda some, dx: modes(function_of(op, jaxbp.automatic), some, dx))(*some_of(op))
    with jaxbp.forward_mode(True):
        ours = jax.jit(lambda some, dx: modes(function_of(op, jaxbp), some, dx))(*some_of(op))
    for mode in twin:
        close(ours[mode], twin[mode], 1e-4)
    assert all(np.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(ours["jvp"]))


@pytest.mark.exhaustive
@pytest.mark.parametrize("transformation", [t for t in TRANSFORMATIONS if t != "forward mode"])
@pytest.mark.parametrize("name", OPS)
def test_every_transformation_of_the_table(name, transformation):
    with jaxbp.forward_mode(True):
        TRANSFORMATIONS[transformation](OPS[name])


@pytest.mark.exhaustive
@pytest.mark.parametrize("wrapper", ["jit", "checkpoint"])
@pytest.mark.parametrize("name", [name for name in OPS if len(OPS[name].shapes) < 3])
def test_a_layer_used_twice(name, wrapper):
    with jaxbp.forward_mode(True):
        test_programs.test_a_layer_used_twice(name, wrapper)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_on_meshes(name):
    with jaxbp.forward_mode(True):
        test_sharding.test_jit(name, "batch")
        test_sharding.test_explicit_mesh(name, "batch")
        test_sharding.test_shard_map(name)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["conv", "dense", "max_pool", "lp_pool", "adaptive_max_pool", "softmax_cross_entropy"])
def test_called_eagerly(compiled, name):  # noqa: F811
    """Without jit, and a second time without compiling."""
    op = OPS[name]
    some, dx = some_of(op)
    with jaxbp.forward_mode(True):
        z, dz = jax.jvp(function_of(op, jaxbp), some, dx)
        before = compiled()
        jax.jvp(function_of(op, jaxbp), some, dx)
        assert compiled() == before
    assert_equal(z, function_of(op, jaxbp)(*some))
    close(dz, jax.jvp(function_of(op, jaxbp.automatic), some, dx)[1])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_short_dtypes(name, dtype):
    """Tangents and gradients have their arrays' dtypes."""
    op = OPS[name]
    some, dx = some_of(op, dtype)
    f, numbers = function_of(op, jaxbp), tuple(range(len(some)))
    with jaxbp.forward_mode(True):
        z, dz = jax.jvp(f, some, dx)
        gradients = jax.grad(lambda *some: jnp.sum(f(*some)), numbers)(*some)
    assert z.dtype == dz.dtype == dtype
    assert_equal(gradients, jax.grad(lambda *some: jnp.sum(f(*some)), numbers)(*some))
    twin = jax.jvp(
        function_of(op, jaxbp.automatic), *(tuple(a.astype(jnp.float32) for a in given) for given in (some, dx))
    )
    largest = float(jnp.abs(twin[1]).max())
    np.testing.assert_allclose(
        np.asarray(dz, np.float32), twin[1], rtol=0, atol=8 * float(jnp.finfo(dtype).eps) * largest
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", KINDS)
def test_64_bits_from_a_block_that_was_left(name):
    op = OPS[name]
    with jax.enable_x64(True):
        some, dx = some_of(op, np.float64)
        twin = jax.jvp(function_of(op, jaxbp.automatic), some, dx)
        pulled = jax.vjp(function_of(op, jaxbp.automatic), *some)[1](twin[0])
    with jaxbp.forward_mode(True):
        ours = jax.jvp(function_of(op, jaxbp), some, dx)
        gradients = jax.vjp(function_of(op, jaxbp), *some)[1](ours[0])
    assert {a.dtype for a in (*ours, *gradients)} == {np.dtype(np.float64)}
    close(ours, twin, 1e-12)
    close(gradients, pulled, 1e-12)


@pytest.mark.parametrize("op", ["conv", "dense", "max_pool", "sum_pool", "max_unpool", "adaptive_max_pool", "relu"])
def test_integers(op):
    """They have values, and no tangents."""
    x = jnp.arange(-8, 8, dtype=jnp.int32).reshape(1, 4, 4, 1)
    function = {
        "conv": lambda x: jaxbp.conv(x, x[0, :2, :2, :, None]),
        "dense": lambda x: jaxbp.dense(x[0, :, :, 0], x[0, :, :, 0]),
        "max_pool": lambda x: jaxbp.max_pool(x, (2, 2)),
        "sum_pool": lambda x: jaxbp.sum_pool(x, (2, 2)),
        "max_unpool": lambda x: jaxbp.max_unpool(x, abs(x) % 4, (2, 2), (2, 2)),
        "adaptive_max_pool": lambda x: jaxbp.adaptive_max_pool(x, (2, 3)),
        "relu": jaxbp.relu,
    }[op]
    with jaxbp.forward_mode():
        z, dz = jax.jvp(function, (x,), (np.zeros(x.shape, jax.dtypes.float0),))
        jitted = jax.jit(function)(x)
    assert_equal((z, jitted), (function(x),) * 2)
    assert dz.dtype == jax.dtypes.float0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("op", ["conv", "dense", "sum_pool", "avg_pool", "adaptive_avg_pool", "max_unpool", "tanh"])
def test_complex_numbers(op):
    x = normal(0, (2, 3, 3, 2), np.complex64) + 1j * normal(1, (2, 3, 3, 2), np.complex64)
    function = {
        "conv": lambda ops: lambda x: ops.conv(x, x[0, :2, :2, :, None]),
        "dense": lambda ops: lambda x: ops.dense(x, x[0, :2, 0]),
        "sum_pool": lambda ops: lambda x: ops.sum_pool(x, (2, 2)),
        "avg_pool": lambda ops: lambda x: ops.avg_pool(x, (2, 2), (1, 1), "SAME", False),
        "adaptive_avg_pool": lambda ops: lambda x: ops.adaptive_avg_pool(x, (2, 1)),
        "max_unpool": lambda ops: lambda x: ops.max_unpool(x, jnp.zeros(x.shape, jnp.int32), (2, 2), (2, 2)),
        "tanh": lambda ops: ops.tanh,
    }[op]
    # Complex sums are divided by real numbers.
    with jax.numpy_dtype_promotion("standard"):
        with jaxbp.forward_mode():
            ours = jax.jvp(function(jaxbp), (x,), (1j * x,))
        close(ours, jax.jvp(function(jaxbp.automatic), (x,), (1j * x,)), 1e-5)


LINEAR = {
    "conv": lambda x: jaxbp.conv(x, normal(1, (3, 2, 2, 3)), strides=2),
    "conv, of the kernel": lambda k: jaxbp.conv(normal(1, (2, 5, 4, 2)), k[0, :2, :2], kernel_dilation=2),
    "conv_general_dilated": lambda x: jaxbp.conv_general_dilated(x, normal(1, (2, 5, 2, 1)), (1, 2), "SAME"),
    "conv_transpose": lambda x: jaxbp.conv_transpose(x, normal(1, (3, 3, 2, 4)), (2, 2), "SAME"),
    "dense": lambda x: jaxbp.dense(x, normal(1, (2, 3))),
    "avg_pool": lambda x: jaxbp.avg_pool(x, (3, 2), (2, 1), "SAME", False),
    "sum_pool": lambda x: jaxbp.sum_pool(x, (2, 2)),
    "max_unpool": lambda x: jaxbp.max_unpool(x, jnp.arange(80, dtype=jnp.int32).reshape(x.shape) % 4, (2, 2), (1, 1)),
    "adaptive_avg_pool": lambda x: jaxbp.adaptive_avg_pool(x, (2, 3)),
    "vmap of conv": jax.vmap(lambda x: jaxbp.conv(x[None], normal(1, (3, 2, 2, 3)))),
    "vmap of kernels": lambda x: jax.vmap(lambda x, k: jaxbp.conv(x, k))(x, normal(1, (2, 3, 2, 2))),
    "jit of sum_pool": jax.jit(lambda x: jaxbp.sum_pool(x, (2, 2))),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_transpose(name):
    """By the backward rule: the very numbers of a pullback outside of the block."""
    function, x = LINEAR[name], normal(0, (2, 5, 4, 2))
    z, pullback = jax.vjp(function, x)
    with jaxbp.forward_mode(True):
        (transposed,) = jax.linear_transpose(function, x)(jnp.sin(z))
    close(transposed, pullback(jnp.sin(z))[0], 1e-5)


def test_linear_transpose_of_a_convolution_outside_says_what_to_do():
    with pytest.raises(NotImplementedError, match=r"conv: jax.linear_transpose needs forward mode.*jaxbp.forward_mode"):
        jax.linear_transpose(LINEAR["conv"], normal(0, (2, 5, 4, 2)))(normal(0, (2, 3, 2, 3)))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", KINDS)
def test_jet(name):
    """Taylor coefficients up to the third; JAX's own where it has them for the twin, else nested jvp."""
    op = OPS[name]
    some, dx = some_of(op)
    f, twin = function_of(op, jaxbp), function_of(op, jaxbp.automatic)
    along = lambda f: lambda t: f(*(a + t * b for a, b in zip(some, dx, strict=True)))  # noqa: E731
    derivatives = [along(twin)]
    for _ in range(3):
        derivatives.append(lambda t, g=derivatives[-1]: jax.jvp(g, (t,), (jnp.ones_like(t),))[1])
    with jaxbp.forward_mode(True):
        z, terms = jet.jet(f, some, [[b, jnp.zeros_like(b), jnp.zeros_like(b)] for b in dx])
    close([z, *terms], [g(jnp.zeros(())) for g in derivatives], 2e-4)


def test_jet_under_jit():
    x, k = normal(0, (1, 5, 5, 2)), normal(1, (3, 3, 2, 2))

    def layers(ops):
        return jax.jit(lambda k: ops.sum_pool(ops.dense(ops.conv(x, k), k[0, 0]), (2, 2)))

    series = [[k, jnp.cos(k), k * k]]
    with jaxbp.forward_mode():
        close(jet.jet(layers(jaxbp), (k,), series), jet.jet(layers(jaxbp.automatic), (k,), series), 1e-4)


# -------------------------------------------------------------------------------------------- meshes


def tangents(layer):
    """The loss, its tangent along the arrays, the gradient, and its tangent."""
    numbers = tuple(range(1 + len(layer.parameters)))

    def loss(*arrays):
        return jnp.sum(layer.call(*arrays) ** 2) / 16

    def run(*arrays):
        dx = tuple(jnp.cos(a) for a in arrays)
        return *jax.jvp(loss, arrays, dx), *jax.jvp(jax.grad(loss, numbers), arrays, dx)

    return run


@functools.cache
def on_one_device(name):
    layer = LAYERS[name]
    with jaxbp.forward_mode(True):
        return jax.jit(tangents(layer))(*arrays_of(layer))


MESHED = [
    pytest.param(name, marks=[] if name in ("conv", "max_pool", "avg_pool") else [pytest.mark.exhaustive])
    for name in LAYERS
    if name not in ("softmax_cross_entropy", "max_unpool")  # their integers are numbered for one device
]


@pytest.mark.parametrize("name", MESHED)
def test_shard_map(name):
    """The batch split by hand: the tangent and the replicated arrays' gradients are sums over the devices."""
    layer = LAYERS[name]

    def device(*arrays):
        value, moved, gradients, changes = tangents(layer)(*arrays)
        return lax.psum(value, "d"), lax.psum(moved, "d"), gradients, changes

    specs = tuple(specs_of(layer, "batch"))
    mesh = mesh_of(AxisType.Auto)
    run = jax.shard_map(device, mesh=mesh, in_specs=specs, out_specs=(P(), P(), specs, specs), check_vma=True)
    with jaxbp.forward_mode(True):
        ours = jax.jit(run)(*arrays_of(layer))
    chex.assert_trees_all_close(jax.device_get(ours), jax.device_get(on_one_device(name)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", MESHED)
def test_explicit_mesh(name):
    layer, mesh = LAYERS[name], mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh), jaxbp.forward_mode(True):
        sharded = [
            jax.device_put(a, NamedSharding(mesh, s))
            for a, s in zip(arrays_of(layer), specs_of(layer, "batch"), strict=True)
        ]
        ours = jax.jit(tangents(layer))(*sharded)
        assert ours[2][0].sharding.spec[0] == "d"
    chex.assert_trees_all_close(jax.device_get(ours), jax.device_get(on_one_device(name)), rtol=1e-4, atol=1e-3)


def test_an_array_that_lies_on_no_mesh():
    """The kernel is put on the image's mesh, in both modes."""
    x, k = integers(1, (8, 6, 4, 2)), integers(2, (3, 3, 2, 2))
    sharded = jax.device_put(x, NamedSharding(mesh_of(AxisType.Explicit), P("d")))

    def run(x):
        f = lambda k: jaxbp.conv(x, k)  # noqa: E731
        return jax.jvp(f, (k,), (k,)), jax.grad(lambda k: jnp.sum(f(k) ** 2))(k)

    with jaxbp.forward_mode(True):
        chex.assert_trees_all_equal(jax.device_get(jax.jit(run)(sharded)), jax.device_get(run(x)))


# ------------------------------------------------------------------------------ the block, and outside of it


def network(p, x):
    """Every kind of rule, under jit, checkpoint and scan."""
    layer = jax.jit(lambda x: jaxbp.relu(jaxbp.conv(x, p)))
    x = jax.checkpoint(layer)(x)
    x = lax.scan(lambda x, _: (jaxbp.tanh(layer(x)), None), x, None, length=2)[0]
    x = lax.cond(x.sum() > -1e9, layer, lambda x: x, x)
    return jaxbp.avg_pool(jaxbp.max_pool(x, (2, 2)), (2, 2)).sum()


NETWORK = normal(0, (3, 3, 2, 2)), normal(1, (2, 5, 6, 2))


def model(p, x):
    """Of one example."""
    return network(p, x[None])


AROUND = {
    "jit": lambda f: jax.jit(jax.vmap(f, (None, 0))),
    "checkpoint": lambda f: jax.vmap(jax.checkpoint(f), (None, 0)),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("around", AROUND)
def test_what_was_traced_before_is_traced_again(around):
    """With the block and without, in turn; the twin of a difference quotient, as layers inside were traced, too."""
    p, x = NETWORK
    f = AROUND[around](model)
    before = f(p, x)
    along = lambda: jax.jvp(lambda p: f(p, x), (p,), (p,))  # noqa: E731
    quotient = (f(p * 1.001, x) - f(p * 0.999, x)) / 0.002
    for _ in range(2):
        with pytest.raises(TypeError, match="custom_vjp"):
            along()
        with jaxbp.forward_mode(True):
            z, dz = along()
        np.testing.assert_allclose(z, before, rtol=1e-6)
        np.testing.assert_allclose(dz, quotient, rtol=1e-2, atol=1e-2)


def test_traced_before_the_first_block_of_the_process(tmp_path):
    """The context of the block is made when the first one is entered."""
    program = """
import jax, jaxbp, jax.numpy as jnp
f = jax.jit(jaxbp.relu)
x = jnp.array([1.0, -2.0])
f(x), jax.grad(lambda x: f(x).sum())(x)
with jaxbp.forward_mode():
    print(jax.jvp(f, (x,), (x,))[1])
try:
    jax.jvp(f, (x,), (x,))
except TypeError:
    print("refused")
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.stdout.split("\n") == ["[1. 0.]", "refused", ""], ran.stderr


def jaxprs():
    """All ops and their gradients, traced anew."""
    texts = []
    for op in OPS.values():
        some, _ = some_of(op)
        f, numbers = function_of(op, jaxbp), tuple(range(len(some)))
        gradient = jax.grad(lambda *some, f=f: jnp.sum(f(*some)), numbers)
        # New functions, so that no trace is reused.
        texts += [str(jax.make_jaxpr(lambda *some, g=g: g(*some))(*some)) for g in (f, gradient)]
    return [re.sub("0x[0-9a-f]+", "", text) for text in texts]


def test_outside_nothing_changes():
    """The very equations, before a block, after it, and where one was turned off again."""
    before = jaxprs()
    with jaxbp.forward_mode(True):
        inside = jaxprs()
        with jaxbp.forward_mode(False):
            off = jaxprs()
    assert before == off == jaxprs()
    assert not any(word in text for text in before for word in ("both_modes", "linear_map", "custom_jvp"))
    # Of each op and of its gradient.
    assert all(a != b for a, b in zip(before[::2], inside[::2], strict=True))
    assert not any("custom_vjp" in text for text in inside)


def test_a_block_inside_of_a_jitted_function():
    """What was traced inside has forward mode wherever it is differentiated."""
    x, k = normal(0, (1, 5, 5, 2)), normal(1, (3, 3, 2, 2))

    @jax.jit
    @jaxbp.forward_mode()
    def layers(k):
        return jaxbp.avg_pool(jaxbp.relu(jaxbp.conv(x, k)), (2, 2))

    twin = lambda k: jaxbp.automatic.avg_pool(jaxbp.automatic.relu(jaxbp.automatic.conv(x, k)), (2, 2))  # noqa: E731
    close(jax.jvp(layers, (k,), (k,)), jax.jvp(twin, (k,), (k,)), 1e-5)


def test_nested_blocks_and_other_threads():
    x = jnp.ones(3)
    refused = []

    def moves():
        try:
            return jax.jvp(jaxbp.relu, (x,), (x,))[1].sum() == 3
        except TypeError:
            return False

    with jaxbp.forward_mode():
        assert moves()
        with jaxbp.forward_mode(False):
            assert not moves()
        with pytest.raises(ZeroDivisionError), jaxbp.forward_mode(True):
            raise ZeroDivisionError
        assert moves()
        thread = threading.Thread(target=lambda: refused.append(not moves()))
        thread.start()
        thread.join()
    assert refused == [True]
    assert not moves()


@pytest.mark.parametrize("enabled", [None, 1, "yes", jaxbp.relu], ids=["None", "1", "yes", "a function"])
def test_what_is_neither_true_nor_false(enabled):
    with pytest.raises(TypeError, match=r"forward_mode: enabled=.* must be True or False; .*@forward_mode\(\)"):
        jaxbp.forward_mode(enabled)


# ---------------------------------------------------------------------------------- adapters and swap_lax


def linen_model(nn, x):
    class CNN(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(nn.tanh(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
            return nn.avg_pool(nn.ConvTranspose(2, (2, 2), (2, 2))(x), (2, 2), (1, 1))

    module = CNN()
    return module.apply, module.init(jax.random.key(0), x)


def nnx_model(nnx, x):
    conv = nnx.Conv(2, 4, (3, 3), rngs=nnx.Rngs(0))
    graph, state = nnx.split(conv)
    return lambda state, x: nnx.max_pool(nnx.merge(graph, state)(x), (2, 2)), state


def equinox_model(eqx, x):
    import equinox

    layers = [eqx.nn.Conv2d(2, 4, 3, key=jax.random.key(0)), eqx.nn.MaxPool2d(2), eqx.nn.AvgPool2d(2)]
    arrays, rest = equinox.partition(layers, equinox.is_inexact_array)

    def apply(arrays, x):
        for layer in equinox.combine(arrays, rest):
            x = layer(x)
        return x

    return lambda arrays, x: jax.vmap(lambda x: apply(arrays, x.transpose(2, 0, 1)))(x), arrays


def haiku_model(hk, x):
    model = hk.without_apply_rng(
        hk.transform(
            lambda x: hk.avg_pool(
                hk.max_pool(hk.Conv2D(4, 3)(x), (2, 2, 1), (2, 2, 1), "SAME"), (2, 2, 1), (1, 1, 1), "VALID"
            )
        )
    )
    return model.apply, model.init(jax.random.key(0), x)


def adapters():
    import equinox
    import flax
    import haiku

    from jaxbp import equinox as our_equinox
    from jaxbp import haiku as our_haiku
    from jaxbp.flax import linen, nnx

    return {
        "linen": (linen_model, linen, flax.linen),
        "nnx": (nnx_model, nnx, flax.nnx),
        "equinox": (equinox_model, our_equinox, equinox),
        "haiku": (haiku_model, our_haiku, haiku),
    }


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["linen", "nnx", "equinox", "haiku"])
def test_adapters(name):
    model, ours, theirs = adapters()[name]
    x = normal(3, (2, 6, 6, 2))

    def tangents(library):
        apply, parameters = model(library, x)
        return jax.jvp(jax.jit(lambda p: apply(p, x)), (parameters,), (jax.tree.map(jnp.cos, parameters),))

    # Libraries divide sums by integers.
    with jax.numpy_dtype_promotion("standard"):
        with pytest.raises(TypeError, match="custom_vjp"):
            tangents(ours)
        with jaxbp.forward_mode():
            close(tangents(ours), tangents(theirs), 1e-4)


@jax.jit
def lax_layers(x, k):
    x = lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 1, 1), (1, 1, 1, 1), "VALID")


def test_swap_lax():
    """The blocks in either order, of a function that was traced before."""
    x, k = normal(0, (2, 6, 6, 2)), normal(1, (3, 3, 2, 4))
    theirs = jax.jvp(lax_layers, (x, k), (x, k))
    for outer, inner in ((jaxbp.forward_mode, jaxbp.swap_lax), (jaxbp.swap_lax, jaxbp.forward_mode)):
        with outer(), inner():
            assert "linear_map" in str(jax.make_jaxpr(lambda: jax.jvp(lax_layers, (x, k), (x, k)))())
            close(jax.jvp(lax_layers, (x, k), (x, k)), theirs, 1e-5)
    with jaxbp.swap_lax(), pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lax_layers, (x, k), (x, k))


@pytest.mark.parametrize("op", ["conv_with", "conv_general_dilated_with", "dense_with", "relu_with", "conv", "dense"])
def test_rules_of_one_s_own_and_norms_have_no_forward_mode(op):
    """The error names both; outside of the block, and in a block that turns it off, they work."""
    x, kernel = integers(1, (2, 4, 4, 2)), integers(2, (3, 3, 2, 2))
    calls = {
        "conv_with": lambda: jaxbp.conv_with(lambda maps, delta, z, x, k: (delta, k))(x, kernel),
        "conv_general_dilated_with": lambda: jaxbp.conv_general_dilated_with(lambda maps, delta, z, x, k: (x, k))(
            x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), (1, 1), "SAME"
        ),
        "dense_with": lambda: jaxbp.dense_with(lambda maps, delta, z, x, k: (x, k))(x, kernel[0, 0]),
        "relu_with": lambda: jaxbp.relu_with(lambda delta, z, x: delta)(x),
        "conv": lambda: jaxbp.conv(x, kernel, norms=jnp.zeros(2)),
        "dense": lambda: jaxbp.dense(x, kernel[0, 0], norms=jnp.zeros(2)),
    }
    with jaxbp.forward_mode():
        with pytest.raises(TypeError, match=rf"^{op}: .*no forward mode, but .* jaxbp.forward_mode"):
            calls[op]()
        with jaxbp.forward_mode(False):
            calls[op]()
    calls[op]()
