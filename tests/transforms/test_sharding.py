"""Eight devices: every sharding gives the single device's values and gradients."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxbp
from cases import distinct, integers


class Layer(NamedTuple):
    """A function of x, sharded in every way, and of parameters, replicated or sharded along their outputs."""

    call: object
    x: tuple[int, ...]
    parameters: tuple[tuple[int, ...], ...] = ()
    spatial: int | None = 1
    channels: int = -1
    numbers: object = integers


def winners(y):
    return (jnp.arange(y.size, dtype=jnp.int32).reshape(y.shape) * 7) % 4


LAYERS = {
    "conv": Layer(lambda x, k, b: jaxbp.conv(x, k, b), (8, 8, 6, 8), ((3, 3, 8, 8), (8,))),
    "conv, strided": Layer(lambda x, k: jaxbp.conv(x, k, strides=2, padding="VALID"), (8, 8, 6, 8), ((2, 2, 8, 8),)),
    "conv, depthwise": Layer(lambda x, k: jaxbp.conv(x, k, feature_group_count=8), (8, 8, 6, 8), ((3, 3, 1, 16),)),
    "conv, grouped": Layer(lambda x, k: jaxbp.conv(x, k, feature_group_count=2), (16, 8, 6, 8), ((3, 3, 4, 8),)),
    "conv_general_dilated": Layer(
        lambda x, k: jaxbp.conv_general_dilated(x, k, (1, 1), "SAME", rhs_dilation=(2, 1)),
        (8, 8, 8, 6),
        ((8, 8, 3, 3),),
        spatial=2,
        channels=1,
    ),
    "conv_transpose": Layer(lambda x, k: jaxbp.conv_transpose(x, k, (2, 2), "SAME"), (8, 8, 6, 8), ((3, 3, 8, 8),)),
    "dense": Layer(lambda x, k, b: jaxbp.dense(x, k, b), (8, 16), ((16, 8), (8,)), spatial=None),
    "max_pool, large window": Layer(lambda x: jaxbp.max_pool(x, (6, 6)), (8, 16, 8, 8), numbers=distinct),
    "max_pool": Layer(lambda x: jaxbp.max_pool(x, (3, 3), (2, 2), "SAME"), (8, 8, 6, 8), numbers=distinct),
    "max_pool_with_winners": Layer(
        lambda x: jaxbp.max_pool_with_winners(x, (2, 2), (2, 2))[0], (8, 8, 6, 8), numbers=distinct
    ),
    "min_pool": Layer(lambda x: jaxbp.min_pool(x, (2, 2)), (8, 8, 6, 8), numbers=distinct),
    "avg_pool": Layer(lambda x: jaxbp.avg_pool(x, (3, 3), (2, 2), "SAME", False), (8, 8, 6, 8)),
    "sum_pool": Layer(lambda x: jaxbp.sum_pool(x, (2, 2)), (8, 8, 6, 8)),
    "lp_pool": Layer(lambda x: jaxbp.lp_pool(x, (2, 2), (2, 2)), (8, 8, 6, 8), numbers=distinct),
    "max_unpool": Layer(lambda y: jaxbp.max_unpool(y, winners(y), (2, 2), (2, 2)), (8, 8, 3, 8)),
    "adaptive_avg_pool": Layer(lambda x: jaxbp.adaptive_avg_pool(x, (2, 4)), (8, 8, 6, 8)),
    "adaptive_max_pool": Layer(lambda x: jaxbp.adaptive_max_pool(x, (3, 4)), (8, 8, 6, 8), numbers=distinct),
    "relu": Layer(lambda x: jaxbp.relu(x), (8, 8, 8)),
    "sigmoid": Layer(lambda x: jaxbp.sigmoid(x), (8, 8, 8)),
    "tanh": Layer(lambda x: jaxbp.tanh(x), (8, 8, 8)),
    "softmax_cross_entropy": Layer(
        lambda z: jaxbp.softmax_cross_entropy(z, jnp.arange(8, dtype=jnp.int32) % 8), (8, 8), spatial=None
    ),
    "softmax_cross_entropy, distributions": Layer(
        lambda z: jaxbp.softmax_cross_entropy(z, jax.nn.softmax(z * 2)), (8, 8), spatial=None
    ),
}
# Each op for every day in one way, the ways in turn; the others are a long walk.
DAILY = {
    "conv": "spatial",
    "conv, grouped": "channels",
    "conv_general_dilated": "batch",
    "conv_transpose": "spatial",
    "dense": "channels",
    "max_pool_with_winners": "spatial",
    "avg_pool": "batch",
    "max_unpool": "spatial",
    "adaptive_avg_pool": "channels",
    "softmax_cross_entropy": "batch",
}
WAYS = [
    pytest.param(name, way, marks=() if DAILY.get(name) == way else pytest.mark.exhaustive)
    for name, layer in LAYERS.items()
    for way in ("batch", "spatial", "channels")
    if way != "spatial" or layer.spatial is not None
]


def value_and_gradients(layer):
    """The loss and its gradients, as a function of all arrays."""

    def loss(*arrays):
        y = layer.call(*arrays)
        return jnp.sum(y * y) / 16

    return jax.value_and_grad(loss, tuple(range(1 + len(layer.parameters))))


def arrays_of(layer):
    return [layer.numbers(1, layer.x), *(integers(2 + i, s) for i, s in enumerate(layer.parameters))]


def specs_of(layer, way):
    """How each array is sharded over the mesh axis "d"."""

    def along(ndim, axis):
        entries = [None] * ndim
        entries[axis] = "d"
        return P(*entries)

    axis = {"batch": 0, "spatial": layer.spatial, "channels": layer.channels}[way]
    return [along(len(layer.x), axis), *(P() for _ in layer.parameters)]


def mesh_of(axis_type):
    return jax.make_mesh((8,), ("d",), axis_types=(axis_type,), devices=jax.devices("cpu"))


@functools.cache
def single(name):
    """The value and gradients on one device."""
    layer = LAYERS[name]
    return jax.jit(value_and_gradients(layer))(*arrays_of(layer))


def assert_same(sharded, expected):
    assert jax.tree.structure(sharded) == jax.tree.structure(expected)
    chex.assert_trees_all_close(jax.device_get(sharded), jax.device_get(expected), rtol=1e-5, atol=1e-4)


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("name", "way"), WAYS)
def test_jit(name, way):
    """The compiler partitions the program."""
    layer, mesh = LAYERS[name], mesh_of(AxisType.Auto)
    specs = specs_of(layer, way)
    sharded = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays_of(layer), specs, strict=True)]
    assert_same(jax.jit(value_and_gradients(layer))(*sharded), single(name))


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("name", "way"), WAYS)
def test_explicit_mesh(name, way):
    """Shardings are part of the types, and a gradient has its array's."""
    layer, mesh = LAYERS[name], mesh_of(AxisType.Explicit)
    arrays, expected = arrays_of(layer), single(name)
    with jax.set_mesh(mesh):
        specs = specs_of(layer, way)
        sharded = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)]
        value, gradients = jax.jit(value_and_gradients(layer))(*sharded)
        assert_same((value, gradients), expected)
        assert gradients[0].sharding.spec[specs[0].index("d")] == "d"


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "name", [name if name in DAILY else pytest.param(name, marks=pytest.mark.exhaustive) for name in LAYERS]
)
def test_shard_map(name):
    """The batch split by hand, everything else replicated: gradients of the replicated are summed over devices."""
    layer, mesh = LAYERS[name], mesh_of(AxisType.Auto)
    if name == "softmax_cross_entropy":
        # The labels are split with the logits.
        layer = layer._replace(call=lambda z: jaxbp.softmax_cross_entropy(z, jnp.zeros(z.shape[:1], jnp.int32)))
    arrays = arrays_of(layer)
    if name == "max_unpool":
        # Every device numbers its own winners, so each image gets the same ones.
        layer = layer._replace(
            call=lambda y: jaxbp.max_unpool(
                y, jnp.broadcast_to(winners(jnp.zeros(y.shape[1:])), y.shape), (2, 2), (2, 2)
            )
        )

    def device(*arrays):
        value, gradients = value_and_gradients(layer)(*arrays)
        return jax.lax.psum(value, "d"), gradients

    specs = tuple(specs_of(layer, "batch"))
    run = jax.jit(jax.shard_map(device, mesh=mesh, in_specs=specs, out_specs=(P(), specs), check_vma=True))
    expected = single(name) if layer is LAYERS[name] else jax.jit(value_and_gradients(layer))(*arrays)
    assert_same(run(*arrays), expected)


@pytest.mark.parametrize(
    "name",
    [
        "conv",
        *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("conv_general_dilated", "conv_transpose", "dense")),
    ],
)
def test_batch_and_channels_over_two_mesh_axes(name):
    """Data and tensor parallel at once: 4 parts of the batch, 2 of the kernel's outputs."""
    layer = LAYERS[name]
    mesh = jax.make_mesh((4, 2), ("batch", "model"), devices=jax.devices("cpu"), axis_types=(AxisType.Auto,) * 2)
    arrays = arrays_of(layer)
    outputs = 0 if name == "conv_general_dilated" else -1
    sharded = [jax.device_put(arrays[0], NamedSharding(mesh, P("batch")))]
    for a in arrays[1:]:
        entries = [None] * a.ndim
        entries[outputs] = "model"
        sharded.append(jax.device_put(a, NamedSharding(mesh, P(*entries))))
    assert_same(jax.jit(value_and_gradients(layer))(*sharded), single(name))


def test_out_sharding():
    """lax's out_sharding on an explicit mesh, in the layout of the call."""
    mesh = mesh_of(AxisType.Explicit)
    lhs, rhs = integers(1, (8, 3, 6, 6)), integers(2, (8, 3, 3, 3))
    expected = jaxbp.conv_general_dilated(lhs, rhs, (1, 1), "SAME")
    with jax.set_mesh(mesh):
        sharded = jax.device_put(lhs, NamedSharding(mesh, P("d")))
        kernel = jax.device_put(rhs, NamedSharding(mesh, P()))
        for spec in (P("d", None, None, None), P(None, "d", None, None)):
            z = jax.jit(lambda a, b, spec=spec: jaxbp.conv_general_dilated(a, b, (1, 1), "SAME", out_sharding=spec))(
                sharded, kernel
            )
            assert z.sharding.spec == spec
            np.testing.assert_array_equal(z, expected)
    # The mesh is the arrays' own outside the block.
    for spec in (P(), P("d", None, None, None)):
        z = jaxbp.conv_general_dilated(sharded, kernel, (1, 1), "SAME", out_sharding=spec)
        assert z.sharding.is_equivalent_to(NamedSharding(mesh, spec), z.ndim)
        np.testing.assert_array_equal(z, expected)


@pytest.mark.parametrize("grad", ["conv_input_grad", "conv_kernel_grad", "max_pool_grad", "avg_pool_grad"])
def test_gradient_maps_in_shard_map(grad):
    """The plain functions, one device's share at a time."""
    x, kernel = integers(1, (8, 6, 4, 2)), integers(2, (3, 3, 2, 4))
    z, y = integers(3, (8, 6, 4, 4)), integers(4, (8, 3, 2, 2))
    calls = {
        "conv_input_grad": (lambda n, d, k: jaxbp.conv_input_grad(d, k, (n, 6, 4, 2)), (z, kernel), P("d")),
        "conv_kernel_grad": (
            lambda n, x, d: (
                jax.lax.psum(jaxbp.conv_kernel_grad(x, d, kernel.shape), "d")
                if n == 1
                else jaxbp.conv_kernel_grad(x, d, kernel.shape)
            ),
            (x, z),
            P(),
        ),
        "max_pool_grad": (
            lambda n, d, w: jaxbp.max_pool_grad(d, w, (n, 6, 4, 2), (2, 2), (2, 2)),
            (y, jnp.abs(integers(5, y.shape, np.int32))),
            P("d"),
        ),
        "avg_pool_grad": (lambda n, d: jaxbp.avg_pool_grad(d, (n, 6, 4, 2), (2, 2), (2, 2)), (y,), P("d")),
    }
    call, arrays, out = calls[grad]
    specs = tuple(P() if a is kernel else P("d") for a in arrays)
    run = jax.shard_map(
        lambda *a: call(1, *a), mesh=mesh_of(AxisType.Auto), in_specs=specs, out_specs=out, check_vma=True
    )
    assert_same(jax.jit(run)(*arrays), call(8, *arrays))
