"""Meshes as `jax.make_mesh` makes them by default: their axes are Explicit, so that shardings are part of the types.

Most users never enter `jax.set_mesh`; both ways are tested, and every value is a single device's.
"""

import contextlib
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_sharding import LAYERS, Layer, winners

import jaxbp
from cases import distinct, integers

NHWC = ("NHWC", "HWIO", "NHWC")
IMAGES, DELTA, KERNEL, BIAS = (
    integers(1, (8, 8, 8, 4)),
    integers(2, (8, 4, 4, 4)),
    integers(3, (3, 3, 4, 8)),
    integers(4, (8,)),
)

OPS = {
    **LAYERS,
    "conv_general_dilated, NHWC": Layer(
        lambda x, k: jaxbp.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=NHWC), (8, 8, 8, 4), ((3, 3, 4, 8),)
    ),
    "conv_general_dilated, groups of the batch": Layer(
        lambda x, k: jaxbp.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC, batch_group_count=4),
        (8, 8, 8, 4),
        ((3, 3, 4, 8),),
    ),
    "conv, two batch axes": Layer(lambda x, k, b: jaxbp.conv(x, k, b), (4, 4, 4, 4, 4), ((3, 3, 4, 8), (8,)), spatial=1),
    "conv, no batch axis": Layer(lambda x, k, b: jaxbp.conv(x, k, b), (8, 4, 4), ((3, 3, 4, 8), (8,))),
    "dense, two batch axes": Layer(lambda x, k, b: jaxbp.dense(x, k, b), (8, 4, 8), ((8, 4), (4,))),
    "max_pool, no batch axis": Layer(lambda x: jaxbp.max_pool(x, (2, 2)), (8, 8, 4), numbers=distinct),
    "lp_pool, infinity": Layer(lambda x: jaxbp.lp_pool(x, (2, 2), (2, 2), p=np.inf), (8, 8, 8, 4), numbers=distinct),
    "softmax_cross_entropy, two batch axes": Layer(
        lambda z: jaxbp.softmax_cross_entropy(z, jnp.zeros(z.shape[:-1], jnp.int32)), (8, 4, 8)
    ),
    "conv_input_grad": Layer(
        lambda d, k: jaxbp.conv_input_grad(d, k, (8, 8, 8, 8), strides=2), (8, 4, 4, 4), ((3, 3, 8, 4),)
    ),
    "conv_kernel_grad": Layer(
        lambda d: jaxbp.conv_kernel_grad(IMAGES, d, (3, 3, 4, 4), strides=2), (8, 4, 4, 4)
    ),
    "conv_bias_grad": Layer(lambda d: jaxbp.conv_bias_grad(d), (8, 4, 4, 4)),
    "max_pool_grad": Layer(
        lambda d: jaxbp.max_pool_grad(d, winners(d), (len(d), 8, 8, 4), (2, 2), (2, 2)), (8, 4, 4, 4)
    ),
    "avg_pool_grad": Layer(lambda d: jaxbp.avg_pool_grad(d, (len(d), 8, 8, 4), (2, 2), (2, 2)), (8, 4, 4, 4)),
    "upsample": Layer(lambda d: jaxbp.upsample(d, (2, 2)), (8, 4, 4, 4)),
    "upsample, winners": Layer(lambda d: jaxbp.upsample(d, (2, 2), winners=winners(d)), (8, 4, 4, 4)),
    "rot180": Layer(lambda x: jaxbp.rot180(x), (8, 4, 4, 4)),
    "dilate": Layer(lambda x: jaxbp.dilate(x, (2, 2)), (8, 4, 4, 4)),
}  # fmt: skip
# Ops that read labels or images of the whole batch beside x; and the maps that JAX itself differentiates into grouped
# convolutions below a vmap, which XLA partitions wrongly (for plain lax on Auto axes, too).
NOT_MAPPED = (
    "softmax_cross_entropy", "softmax_cross_entropy, distributions", "conv_kernel_grad", "conv_input_grad",
    "conv_general_dilated, groups of the batch", "max_pool, no batch axis",
)  # fmt: skip
MESHES = {
    "one axis": (((4,), ("d",)), ["batch", "spatial", "channels"]),
    "two axes": (((2, 2), ("d", "m")), ["batch, outputs", "batch, spatial"]),
}
WHERE = {"no block": contextlib.nullcontext, "set_mesh": jax.set_mesh}


def mesh_of(shape, names, **keywords):
    return jax.make_mesh(shape, names, devices=jax.devices("cpu")[: int(np.prod(shape))], **keywords)


def place(mesh, spec, array):
    """An array on a mesh."""
    return jax.device_put(array, NamedSharding(mesh, spec))


def arrays_of(name):
    op = OPS[name]
    return [op.numbers(1, op.x), *(integers(2 + i, shape) for i, shape in enumerate(op.parameters))]


def specs_of(name, way):
    """How each array is sharded: x along one or two axes, the parameters replicated or along their outputs."""
    op = OPS[name]

    def along(ndim, entries):
        spec = [None] * ndim
        for axis, entry in entries.items():
            spec[axis] = entry
        return P(*spec)

    x = {
        "batch": {0: "d"},
        "spatial": {op.spatial: "d"},
        "channels": {op.channels: "d"},
        "batch, outputs": {0: "d"},
        "batch, spatial": {0: "d", op.spatial: "m"},
        "both": {0: ("d", "m")},
    }[way]
    outputs = 0 if name == "conv_general_dilated" else -1
    parameter = {outputs: "m"} if way == "batch, outputs" else {}
    return [along(len(op.x), x), *(along(len(shape), parameter) for shape in op.parameters)]


def loss_of(name):
    def loss(*arrays):
        y = OPS[name].call(*arrays)
        return jnp.sum(y * y) / 16

    return loss


def value_and_gradients(name):
    return jax.value_and_grad(loss_of(name), tuple(range(1 + len(OPS[name].parameters))))


def transformed(name):
    """The results of every transformation of one op, in one program; x keeps an axis of one image where it is mapped."""
    loss, call = loss_of(name), OPS[name].call
    numbers = tuple(range(1 + len(OPS[name].parameters)))
    gradients = jax.grad(loss, numbers)

    def image_loss(image, *parameters):
        return loss(image[None], *parameters)

    def mapped(function):
        return lambda x, *parameters: jnp.sum(jax.vmap(lambda image: function(image, *parameters))(x))

    def scanned(*arrays):
        return lax.scan(lambda total, _: (total + loss(*arrays), None), 0 * loss(*arrays), None, length=2)[0]

    def every(x, *parameters):
        results = {
            "checkpoint": jax.grad(jax.checkpoint(loss), numbers)(x, *parameters),
            "scan": jax.grad(scanned, numbers)(x, *parameters),
            "second order": jax.grad(lambda *a: sum(jnp.sum(g * g) for g in gradients(*a)) / 64, numbers)(
                x, *parameters
            ),
        }
        if name not in NOT_MAPPED:
            unmapped = (None,) * len(parameters)
            results |= {
                "vmap": jax.vmap(lambda image: call(image[None], *parameters))(x),
                "vmap(grad)": jax.vmap(jax.grad(image_loss, numbers), (0, *unmapped))(x, *parameters),
                "grad(vmap)": jax.grad(mapped(image_loss), numbers)(x, *parameters),
                "grad(vmap(jit))": jax.grad(mapped(jax.jit(image_loss)), numbers)(x, *parameters),
            }
        return results

    return every


def assert_same(sharded, expected):
    assert jax.tree.structure(sharded) == jax.tree.structure(expected)
    chex.assert_trees_all_close(jax.device_get(sharded), jax.device_get(expected), rtol=1e-5, atol=1e-3)


def check(function, name, mesh, way, where):
    """The function's results on a mesh are a single device's; gradients are sharded as their arrays."""
    arrays = arrays_of(name)
    expected = jax.jit(function(name))(*arrays)
    with WHERE[where](*[mesh] * (where == "set_mesh")):
        specs = specs_of(name, way)
        results = jax.jit(function(name))(*(place(mesh, s, a) for s, a in zip(specs, arrays, strict=True)))
    assert_same(results, expected)
    if function is value_and_gradients:
        assert [g.sharding.spec for g in results[1]] == specs


DAILY = (
    "conv", "conv, grouped", "conv_general_dilated, groups of the batch", "conv, two batch axes", "conv_transpose",
    "dense, two batch axes", "max_pool_with_winners", "lp_pool, infinity", "adaptive_avg_pool", "conv_kernel_grad",
    "max_pool_grad", "upsample, winners", "dilate",
)  # fmt: skip


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    "name", [name if name in DAILY else pytest.param(name, marks=pytest.mark.exhaustive) for name in OPS]
)
def test_every_op_outside_set_mesh(name):
    """Images sharded over the default mesh, replicated weights, and nothing else."""
    check(value_and_gradients, name, mesh_of((4,), ("d",)), "batch", "no block")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "shape", "way", "where"),
    [
        (name, shape, way, where)
        for name, (shape, ways) in itertools.product(OPS, MESHES.values())
        for way in ways
        for where in (WHERE if way == "channels" and len(shape[0]) == 1 else ["no block"])
        if (shape, way) != (MESHES["one axis"][0], "batch") and (OPS[name].spatial is not None or "spatial" not in way)
    ],
)
def test_every_way_to_shard(name, shape, way, where):
    check(value_and_gradients, name, mesh_of(*shape), way, where)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("conv", "set_mesh"),
        ("max_pool_with_winners", "no block"),
        pytest.param("conv", "no block", marks=pytest.mark.exhaustive),
        pytest.param("max_pool_with_winners", "set_mesh", marks=pytest.mark.exhaustive),
    ],
)
def test_transformations(name, where):
    check(transformed, name, mesh_of((4,), ("d",)), "batch", where)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in OPS if name not in ("conv", "max_pool_with_winners")])
@pytest.mark.parametrize("where", WHERE)
def test_every_transformation(name, where):
    check(transformed, name, mesh_of((4,), ("d",)), "batch", where)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["conv", "avg_pool", "max_pool"])
def test_explicit_beside_auto(name):
    """A mesh of which one axis is in the types and the other one is not."""
    mesh = mesh_of((2, 2), ("d", "m"), axis_types=(AxisType.Explicit, AxisType.Auto))
    check(value_and_gradients, name, mesh, "batch", "no block")


@pytest.mark.parametrize(
    ("x", "kernel"),
    [
        pytest.param(P(None, "d"), P(), marks=pytest.mark.exhaustive),
        pytest.param(P(None, "d"), P(None, None, None, "m"), marks=pytest.mark.exhaustive),
        (P(None, "d", None, "m"), P(None, None, None, "d")),
    ],
)
def test_spatial_axes_beside_copies(x, kernel):
    """XLA's partitioner adds the copies of the other mesh axis up, for plain lax, too."""
    mesh = mesh_of((2, 2), ("d", "m"))
    function = jax.jit(
        lambda x, k: (
            jax.grad(lambda x, k: jnp.sum(jaxbp.conv(x, k) ** 2), (0, 1))(x, k),
            jaxbp.conv_kernel_grad(x, jaxbp.conv(x, k), k.shape),
            jaxbp.conv_input_grad(jaxbp.conv(x, k), k, x.shape),
        )
    )
    np.testing.assert_equal(
        jax.device_get(function(place(mesh, x, IMAGES), place(mesh, kernel, KERNEL))),
        jax.device_get(function(IMAGES, KERNEL)),
    )


def test_kernel_and_batch_over_the_same_mesh_axis():
    """An axis of the mesh shards one axis of the output: the batch has taken it."""
    mesh = mesh_of((2, 2), ("d", "m"))
    x, kernel = place(mesh, P(("d", "m")), IMAGES), place(mesh, P(None, None, None, "m"), KERNEL)
    z = jax.jit(jaxbp.conv)(x, kernel)
    assert z.sharding.spec == P(("d", "m"), None, None, None)
    np.testing.assert_array_equal(z, jaxbp.conv(IMAGES, KERNEL))


def test_output_that_the_mesh_does_not_divide():
    mesh = mesh_of((4,), ("d",))
    y = jaxbp.max_pool(place(mesh, P(None, "d"), IMAGES), (3, 3))
    assert y.sharding.spec == P(None, None, None, None)
    np.testing.assert_array_equal(y, jaxbp.max_pool(IMAGES, (3, 3)))


OFF_MESH = {
    "conv": (lambda x, k, b: jaxbp.conv(x, k, b), (IMAGES, KERNEL, BIAS)),
    "dense": (lambda x, k, b: jaxbp.dense(x, k[0, 0], b), (IMAGES, KERNEL, BIAS)),
    "softmax_cross_entropy": (
        lambda x, k, b: jaxbp.softmax_cross_entropy(x, jnp.broadcast_to(b[:4], x.shape)) * jnp.sum(k),
        (IMAGES[:, 0, 0], KERNEL, BIAS),
    ),
    "max_unpool": (
        lambda x, k, b: jaxbp.max_unpool(x, winners(x), (2, 2), (2, 2)) * (jnp.sum(k) + jnp.sum(b)),
        (IMAGES, KERNEL, BIAS),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "where"),
    [
        pytest.param(*way, marks=() if way in (("conv", "no block"), ("dense", "set_mesh")) else pytest.mark.exhaustive)
        for way in itertools.product(OFF_MESH, WHERE)
    ],
)
def test_parameters_that_were_never_put_on_the_mesh(name, where):
    """Their gradients lie on the mesh, those of each image with its image; eagerly and compiled."""
    call, (images, *parameters) = OFF_MESH[name]
    mesh = mesh_of((4,), ("d",))

    def pull_back(x, *parameters):
        y, pullback = jax.vjp(call, x, *parameters)
        return pullback(y)

    def of_each_image(x, *parameters):
        return jax.vmap(lambda x: pull_back(x[None], *parameters))(x)

    expected = jax.jit(pull_back)(images, *parameters), jax.jit(of_each_image)(images, *parameters)
    x = place(mesh, P("d"), images)
    with WHERE[where](*[mesh] * (where == "set_mesh")):
        for function, value in zip((pull_back, of_each_image), expected, strict=True):
            eager, compiled = function(x, *parameters), jax.jit(function)(x, *parameters)
            assert_same(eager, value)
            assert_same(compiled, value)
            entry = None if function is pull_back else "d"
            assert all(g.sharding.spec[0] == entry for g in (*eager[1:], *compiled[1:]))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, k: jax.jvp(jax.grad(lambda k: jnp.sum(jaxbp.conv(x, k) ** 2)), (k,), (k,))[1],
        lambda x, k: jax.jvp(lambda x: jaxbp.conv_input_grad(x, k.swapaxes(2, 3), (8, 8, 8, 8)), (x,), (x,))[1],
    ],
    ids=["forward over reverse", "gradient map"],
)
def test_forward_mode(function):
    """Beside a kernel that was never put on the mesh."""
    sharded = place(mesh_of((4,), ("d",)), P("d"), IMAGES)
    np.testing.assert_array_equal(jax.jit(function)(sharded, KERNEL), jax.jit(function)(IMAGES, KERNEL))


@pytest.mark.parametrize("where", WHERE)
def test_no_kernel_gradient_of_each_example(where):
    """A model of one example, mapped, below grad: the examples join the batch on a mesh, too."""
    mesh = mesh_of((4,), ("d",))
    x, kernel = place(mesh, P("d"), IMAGES), place(mesh, P(), KERNEL)

    def loss(kernel, x):
        return jnp.sum(jax.vmap(lambda image: jaxbp.conv(image, kernel))(x) ** 2)

    with WHERE[where](*[mesh] * (where == "set_mesh")):
        program = str(jax.make_jaxpr(jax.grad(loss))(kernel, x))
    assert "[8@d,8,8,4]" in program
    assert "8@d,3,3,4,8]" not in program


@pytest.mark.parametrize("where", WHERE)
def test_shard_map_over_one_of_two_axes(where):
    """Inside, one axis of the mesh is in the device's own hands, and the other one still in the types."""
    mesh = mesh_of((2, 2), ("d", "m"))

    def device(x, kernel):
        return jax.grad(lambda kernel: jnp.sum(jaxbp.conv(x, kernel) ** 2))(kernel)

    x, kernel = place(mesh, P("d", "m"), IMAGES), place(mesh, P(), KERNEL)
    with WHERE[where](*[mesh] * (where == "set_mesh")):
        run = jax.shard_map(device, mesh=mesh, in_specs=(P("d"), P()), out_specs=P(), axis_names={"d"})
        np.testing.assert_array_equal(jax.jit(run)(x, kernel), device(IMAGES, KERNEL))


# ------------------------------------------------------------------------------------- models of the libraries


def linen_model(linen):
    class CNN(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.avg_pool(linen.relu(linen.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
            x = linen.max_pool(linen.relu(linen.ConvTranspose(4, (2, 2), (2, 2))(x)), (2, 2), (2, 2))
            return linen.Dense(4)(x.reshape(x.shape[0], -1))

    return CNN().init(jax.random.key(0), IMAGES), CNN().apply


def nnx_model(nnx):
    class CNN(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
            self.transposed = nnx.ConvTranspose(4, 4, (2, 2), (2, 2), rngs=rngs)
            self.dense = nnx.Linear(64, 4, rngs=rngs)

        def __call__(self, x):
            x = nnx.avg_pool(nnx.relu(self.conv(x)), (2, 2), (2, 2))
            x = nnx.max_pool(nnx.relu(self.transposed(x)), (2, 2), (2, 2))
            return self.dense(x.reshape(x.shape[0], -1))

    graph, parameters = nnx.split(CNN(nnx.Rngs(0)))
    return parameters, lambda parameters, x: nnx.merge(graph, parameters)(x)


def equinox_model(eqx):
    keys = jax.random.split(jax.random.key(0), 3)
    layers = [
        eqx.nn.Conv2d(4, 4, 3, padding=1, key=keys[0]),
        eqx.nn.AvgPool2d(2, 2),
        eqx.nn.ConvTranspose2d(4, 4, 2, 2, key=keys[1]),
        eqx.nn.MaxPool2d(2, 2),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(64, 4, key=keys[2]),
    ]
    parameters, rest = eqx.partition(eqx.nn.Sequential(layers), eqx.is_array)
    return parameters, lambda parameters, x: jax.vmap(eqx.combine(parameters, rest))(jnp.moveaxis(x, -1, 1))


def haiku_model(haiku):
    def model(x):
        x = haiku.avg_pool(jax.nn.relu(haiku.Conv2D(4, 3)(x)), (2, 2, 1), (2, 2, 1), "VALID")
        x = haiku.max_pool(jax.nn.relu(haiku.Conv2DTranspose(4, 2, 2)(x)), (2, 2, 1), (2, 2, 1), "VALID")
        return haiku.Linear(4)(x.reshape(x.shape[0], -1))

    transformed = haiku.without_apply_rng(haiku.transform(model))
    return transformed.init(jax.random.key(0), IMAGES), transformed.apply


def losses(model, library, mesh=None):
    """The loss of three steps on one device, or data parallel."""
    parameters, apply = model(library)
    optimizer = optax.sgd(0.05, momentum=0.9)
    data = IMAGES, jnp.eye(4)[np.arange(8) % 4]
    if mesh is not None:
        parameters, data = place(mesh, P(), parameters), place(mesh, P("d"), data)
    state = optimizer.init(parameters)

    def loss(parameters, x, labels):
        return jnp.mean(jaxbp.softmax_cross_entropy(apply(parameters, x), labels))

    @jax.jit
    def step(parameters, state, x, labels):
        value, gradients = jax.value_and_grad(loss)(parameters, x, labels)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    values = []
    for _ in range(3):
        parameters, state, value = step(parameters, state, *data)
        values.append(float(value))
    return values


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("model", "theirs", "ours"),
    [
        pytest.param(linen_model, "flax.linen", "jaxbp.flax.linen", marks=pytest.mark.exhaustive),
        (nnx_model, "flax.nnx", "jaxbp.flax.nnx"),
        pytest.param(equinox_model, "equinox", "jaxbp.equinox", marks=pytest.mark.exhaustive),
        pytest.param(haiku_model, "haiku", "jaxbp.haiku", marks=pytest.mark.exhaustive),
    ],
    ids=["linen", "nnx", "equinox", "haiku"],
)
def test_models_train_with_nothing_but_the_import_changed(model, theirs, ours):
    """Data parallel on the default mesh, as the library's own layers on one device."""
    mesh = mesh_of((4,), ("d",))
    # The libraries' own average pools divide float32 by a NumPy integer.
    with jax.numpy_dtype_promotion("standard"):
        expected = losses(model, pytest.importorskip(theirs))
        assert expected[-1] < expected[0]
        # set_mesh takes effect when it is called.
        for where in (contextlib.nullcontext, lambda: jax.set_mesh(mesh)):
            with where():
                np.testing.assert_allclose(losses(model, pytest.importorskip(ours), mesh), expected, rtol=1e-5)
