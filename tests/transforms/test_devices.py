"""Programs for several devices: what is sent is no more than what plain lax sends, and values are one device's."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxbp
from cases import POOLS, integers
from jaxbp import automatic
from jaxbp._bench import _devices
from jaxbp._bench._devices import collectives
from jaxbp._bench._suite import CASES
from jaxbp._partition import _mesh_of

PARTITIONED = "CustomSPMDPartitioning"


def mesh_of(kind=AxisType.Auto, **shape):
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(kind,) * len(shape))


def sent(compiled):
    """Bytes that a compiled program sends, by collective."""
    found = {}
    for name, size in collectives(compiled.as_text()):
        found[name] = found.get(name, 0) + size
    return found


def assert_same(results, expected):
    for actual, right in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(actual), np.asarray(right), strict=True)


def daily(names, *every_day):
    """One example of each kind for every day, and the others as a long walk."""
    return [name if name in every_day else pytest.param(name, marks=pytest.mark.exhaustive) for name in names]


# ------------------------------------------------------------------------------------------------ single layers

LAYERS = {
    "mid": (32, 64, 3, 1, 1, 32),
    "wide": (64, 64, 3, 1, 1, 56),
    "deep": (256, 256, 3, 1, 1, 8),
    "convnext": (96, 96, 7, 1, 96, 32),
    "strided": (64, 128, 3, 2, 1, 32),
    "stem": (3, 64, 7, 2, 1, 64),
    "rgb": (3, 32, 3, 1, 1, 64),
    "grouped": (32, 64, 3, 1, 4, 16),
}


@pytest.mark.parametrize("name", daily(LAYERS, "strided", "grouped"))
def test_a_sharded_batch_stays_where_it_is(name):
    """Nothing is sent in the forward pass and the gradient of the input; the kernel's gradient is summed."""
    channels, features, window, strides, groups, size = LAYERS[name]
    layer = functools.partial(jaxbp.conv, strides=strides, feature_group_count=groups)
    x = jax.ShapeDtypeStruct((16, size, size, channels), jnp.float32)
    kernel = jax.ShapeDtypeStruct((window, window, channels // groups, features), jnp.float32)
    z = jax.eval_shape(layer, x, kernel)
    mesh = mesh_of(d=8)
    batch, everywhere = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())

    def back(kernel, delta, x):
        return jax.vjp(layer, x, kernel)[1](delta)

    forward = jax.jit(layer, in_shardings=(batch, everywhere), out_shardings=batch)
    assert sent(forward.lower(x, kernel).compile()) == {}
    pull = jax.jit(back, in_shardings=(everywhere, batch, batch), out_shardings=(batch, everywhere))
    assert sent(pull.lower(kernel, z, x).compile()) == {"all-reduce": 4 * kernel.size}


@pytest.mark.parametrize("channels, features, window, size", [(64, 128, 1, 32), (3, 64, 4, 64)])
def test_a_sharded_height_is_not_gathered_for_products(channels, features, window, size):
    """The kernel's gradient of 1x1 and patch layers is a sum over devices."""
    mesh = mesh_of(d=8)
    height, everywhere = NamedSharding(mesh, P(None, "d")), NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((16, size, size, channels), jnp.float32)
    delta = jax.ShapeDtypeStruct((16, size // window, size // window, features), jnp.float32)
    kernel = (window, window, channels, features)
    gradient = functools.partial(jaxbp.conv_kernel_grad, kernel_shape=kernel, strides=window, padding="VALID")
    program = jax.jit(gradient, in_shardings=(height, height), out_shardings=everywhere).lower(x, delta).compile()
    assert sent(program) == {"all-reduce": 4 * np.prod(kernel)}


GEOMETRIES = {
    "3x3": ((2, 16, 16, 4), (3, 3, 4, 4), {}),
    "halo of several devices": ((2, 16, 4, 4), (15, 1, 4, 4), {"padding": ((7, 7), (0, 0))}),
    "asymmetric": ((2, 16, 8, 4), (4, 2, 4, 4), {"padding": ((0, 3), (1, 0))}),
    "cropped": ((2, 16, 8, 4), (3, 3, 4, 4), {"padding": ((-2, 4), (1, 1))}),
    "strided": ((2, 32, 8, 4), (3, 3, 4, 4), {"strides": 2}),
    "strided, halo before": ((2, 32, 8, 4), (5, 3, 4, 4), {"strides": 2, "padding": ((4, 0), (1, 0))}),
    "stride > window": ((2, 32, 8, 4), (1, 2, 4, 4), {"strides": 2, "padding": ((0, 0), (0, 0))}),
    "dilated": ((2, 16, 8, 4), (3, 3, 4, 4), {"kernel_dilation": (2, 1)}),
    "over zeros": ((2, 8, 8, 4), (3, 3, 4, 4), {"input_dilation": 2, "padding": ((2, 1), (1, 2))}),
    "over zeros, strided": ((2, 16, 8, 4), (3, 3, 4, 4), {"input_dilation": 2, "strides": 2, "padding": ((1, 2),) * 2}),
    "uneven parts": ((8, 14, 8, 4), (3, 3, 4, 4), {"strides": 2}),
    "no part fits": ((2, 7, 5, 3), (3, 3, 3, 5), {"padding": "VALID"}),
    "depthwise": ((2, 16, 8, 8), (3, 3, 1, 16), {"feature_group_count": 8}),
    "groups": ((2, 16, 8, 16), (3, 3, 2, 24), {"feature_group_count": 8}),
    "fewer groups than devices": ((8, 16, 8, 8), (3, 3, 4, 16), {"feature_group_count": 2}),
    "1-D": ((2, 64, 8), (9, 8, 8), {}),
    "3-D": ((2, 8, 8, 4, 3), (3, 3, 3, 3, 8), {}),
}
SHARDED = {
    "height": ({"d": 8}, P(None, "d"), P()),
    "height x width": ({"d": 4, "m": 2}, P(None, "d", "m"), P()),
    "batch x height": ({"d": 2, "m": 4}, P("d", "m"), P()),
    "channels": ({"d": 8}, P(), "outputs"),
    "height, in parts and copies": ({"d": 4, "m": 2}, P(None, "d"), P()),
    "height over both": ({"d": 2, "m": 4}, P(None, ("m", "d")), P()),
    "six devices": ({"d": 3, "m": 2}, P(("m", "d")), P()),
}


def spec_for(spec, shape, mesh):
    """The entries that divide the sizes."""
    entries = []
    for entry, size in zip(spec, shape, strict=False):
        names = entry if isinstance(entry, tuple) else (entry,) if entry else ()
        entries.append(entry if size % np.prod([mesh.shape[name] for name in names], dtype=int) == 0 else None)
    return P(*entries)


def check_conv_on_devices(geometry, sharded):
    """Output and gradients equal one device's, bit for bit."""
    x_shape, kernel_shape, words = GEOMETRIES[geometry]
    axes, spec, kernel_spec = SHARDED[sharded]
    devices = np.array(jax.devices()[: np.prod(list(axes.values()))]).reshape(list(axes.values()))
    mesh = Mesh(devices, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
    x, kernel = integers(1, x_shape), integers(2, kernel_shape)
    layer = functools.partial(jaxbp.conv, **words)
    delta = integers(3, jax.eval_shape(layer, x, kernel).shape)

    def step(x, kernel, delta):
        z, pull = jax.vjp(layer, x, kernel)
        return z, pull(delta)

    expected = step(x, kernel, delta)
    if kernel_spec == "outputs":
        kernel_spec = spec_for(P(*[None] * (kernel.ndim - 1), "d"), kernel.shape, mesh)
    puts = [NamedSharding(mesh, spec_for(spec, a.shape, mesh)) for a in (x, delta)]
    on_mesh = jax.device_put(x, puts[0]), jax.device_put(kernel, NamedSharding(mesh, kernel_spec))
    assert_same(jax.jit(step)(*on_mesh, jax.device_put(delta, puts[1])), expected)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "geometry", ["strided, halo before", "over zeros, strided", "uneven parts", "fewer groups than devices"]
)
def test_conv_by_height(geometry):
    check_conv_on_devices(geometry, "height")


@pytest.mark.parametrize("sharded", daily(SHARDED, "channels", "height over both", "six devices"))
def test_conv_in_every_sharding(sharded):
    check_conv_on_devices("strided", sharded)


@pytest.mark.exhaustive
@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_conv_in_three_shardings(geometry, at):
    """By height, and in two others, in turn."""
    number = list(GEOMETRIES).index(geometry)
    check_conv_on_devices(geometry, list(SHARDED)[0 if at == 0 else 1 + (2 * number + at) % (len(SHARDED) - 1)])


def test_halos_are_as_large_as_what_windows_cross():
    """One row from either side of 3x3, nothing for windows that keep to a device's rows."""
    mesh = mesh_of(d=8)
    height, everywhere = NamedSharding(mesh, P(None, "d")), NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((16, 64, 64, 8), jnp.float32)
    for window, strides, rows in ((3, 1, 2), (2, 2, 0), (1, 1, 0), (5, 1, 4)):
        kernel = jax.ShapeDtypeStruct((window, window, 8, 8), jnp.float32)
        layer = jax.jit(
            functools.partial(jaxbp.conv, strides=strides), in_shardings=(height, everywhere), out_shardings=height
        )
        found = sent(layer.lower(x, kernel).compile())
        assert found == ({"collective-permute": rows * 16 * 64 * 8 * 4} if rows else {})


# -------------------------------------------------------------------------------------------------------- pools

POOLED = {
    "2x2": ((2, 32, 8, 3), (2, 2), {"strides": 2}),
    "overlap": ((2, 32, 8, 3), (3, 3), {"strides": 2, "padding": "SAME"}),
    "stride 1": ((2, 16, 8, 3), (3, 3), {"padding": "SAME"}),
    "windows wholly in padding": ((2, 16, 8, 3), (2, 2), {"padding": ((3, -2), (1, 0))}),
    "dilated": ((2, 16, 8, 3), (3, 2), {"padding": "SAME", "window_dilation": (2, 1)}),
    "ceil_mode": ((2, 16, 9, 3), (2, 2), {"strides": 2, "ceil_mode": True}),
    "uneven": ((2, 14, 8, 3), (3, 3), {"strides": 2, "padding": "SAME"}),
    "large window": ((2, 16, 8, 3), (9, 1), {"padding": "SAME"}),
    "1-D": ((2, 32, 3), (4,), {"padding": "SAME"}),
}


def all_of_pool(case, x):
    """Values, winners and gradients of every pool."""
    shape, words = case[1:]
    found = []
    for name in ("max_pool", "min_pool", "avg_pool", "sum_pool"):
        y, pull = jax.vjp(lambda x, name=name: getattr(jaxbp, name)(x, shape, **words), x)
        found += [y, pull(jnp.round(y) + 1)]
    pooled, winners = jaxbp.max_pool_with_winners(x, shape, **words)
    unpool = functools.partial(jaxbp.max_unpool, winners=winners, window_shape=shape, input_shape=x.shape, **words)
    y, pull = jax.vjp(unpool, pooled)
    return [*found, winners, y, pull(y + 1)]


@pytest.mark.parametrize("name", daily(POOLED, "overlap"))
def test_pools_by_height(name):
    """Small integers have ties, the lowest value ties with what is beyond the ends."""
    case = POOLED[name]
    x = integers(1, case[0])
    x = x.at[:, :3].set(-jnp.inf).at[:, -2:].set(-jnp.inf)
    mesh = mesh_of(d=8)
    pools = jax.jit(lambda x: all_of_pool(case, x))
    expected = pools(jnp.where(jnp.isinf(x), -9, x)), pools(x)
    put = NamedSharding(mesh, spec_for(P(None, "d"), x.shape, mesh))
    sharded = [jax.device_put(a, put) for a in (jnp.where(jnp.isinf(x), -9, x), x)]
    assert_same(pools(sharded[0]), expected[0])
    # Sums of infinities are left out.
    assert_same(pools(sharded[1])[:4] + pools(sharded[1])[8:9], expected[1][:4] + expected[1][8:9])


def test_pools_of_two_sharded_axes():
    case = POOLED["stride 1"]
    x = integers(1, (2, 16, 8, 3)).at[:, :3, :3].set(-jnp.inf)
    mesh = mesh_of(d=4, m=2)
    put = NamedSharding(mesh, P(None, "d", "m"))
    pools = jax.jit(lambda x: jaxbp.max_pool_with_winners(x, case[1], **case[2]))
    assert_same(pools(jax.device_put(x, put)), pools(x))
    # The mesh axes of one array axis, the minor one first.
    put = NamedSharding(mesh, P(None, ("m", "d")))
    assert_same(pools(jax.device_put(x, put)), pools(x))


def test_winners_whose_dtype_does_not_hold_nobody():
    """A part's neighbours end somewhere, and there nobody won: 256, one more than uint8 holds."""
    winners = jnp.arange(3 * 32, dtype=jnp.uint8).reshape(1, 3, 32, 1)
    delta = integers(1, winners.shape)
    gradient = jax.jit(lambda d, w: jaxbp.max_pool_grad(d, w, (1, 18, 32, 1), (16, 16), (1, 1), [(0, 0), (7, 8)]))
    put = NamedSharding(mesh_of(d=8), P(None, None, "d"))
    assert_same(gradient(jax.device_put(delta, put), jax.device_put(winners, put)), gradient(delta, winners))


@pytest.mark.parametrize("name", daily(["overlap, same", "stride 1, same", "ceil_mode", "3-D"], "overlap, same"))
def test_a_pool_s_batch_stays_where_it_is(name):
    """Also where temporaries are so large that a single device takes some images at a time."""
    case = POOLS[name]
    shape = (128, *(8 * size for size in case.inputs[1:-1]), 64)
    mesh = mesh_of(d=8)
    batch = NamedSharding(mesh, P("d"))
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    for op in (jaxbp.max_pool, jaxbp.avg_pool):
        pool = functools.partial(op, window_shape=case.window, **case.arguments)

        def step(x, delta, pool=pool):
            y, pull = jax.vjp(pool, x)
            return y, pull(delta)

        program = jax.jit(step, in_shardings=(batch, batch), out_shardings=batch)
        assert sent(program.lower(x, jax.eval_shape(pool, x)).compile()) == {}


def test_dense_layers_keep_each_batch_axis():
    """A sequence that is split over devices is not gathered."""
    mesh = mesh_of(d=8)
    sequence, everywhere = NamedSharding(mesh, P(None, "d")), NamedSharding(mesh, P())
    x, kernel = integers(1, (4, 16, 8)), integers(2, (8, 24))

    def step(x, kernel):
        z, pull = jax.vjp(jaxbp.dense, x, kernel)
        return z, pull(z)

    program = jax.jit(step, in_shardings=(sequence, everywhere), out_shardings=(sequence, (sequence, everywhere)))
    assert sent(program.lower(x, kernel).compile()) == {"all-reduce": 4 * kernel.size}
    assert_same(program(x, kernel), step(x, kernel))


# ----------------------------------------------------------------------------------------------------- programs

SHAPES = ((3, 3, 8, 32), (3, 3, 1, 32), (3, 3, 32, 32), (32, 16))
LAYOUTS = {
    "data parallel": ({"d": 8}, P("d"), (P(),) * 4),
    "FSDP, outputs": ({"d": 8}, P("d"), (*(P(None, None, None, "d"),) * 3, P(None, "d"))),
    "FSDP, inputs": ({"d": 8}, P("d"), (P(None, None, "d"), P(), P(None, None, "d"), P("d"))),
    "tensor parallel": ({"d": 8}, P(), (*(P(None, None, None, "d"),) * 3, P(None, "d"))),
    "batch x features": ({"d": 4, "m": 2}, P("d"), (*(P(None, None, None, "m"),) * 3, P(None, "m"))),
    "spatial": ({"d": 8}, P(None, "d"), (P(),) * 4),
}


def network(ops, parameters, images):
    h = jax.nn.relu(ops.conv(images, parameters[0], strides=2))
    h = ops.max_pool(ops.conv(h, parameters[1], feature_group_count=32), (3, 3), padding="SAME")
    return ops.dense(jax.nn.relu(ops.conv(h, parameters[2])).mean((1, 2)), parameters[3])


def step_of(ops):
    def loss(parameters, images, labels):
        return ops.softmax_cross_entropy(network(ops, parameters, images), labels).mean()

    return jax.value_and_grad(loss)


def operands():
    parameters = [0.1 * jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(SHAPES)]
    return parameters, jax.random.normal(jax.random.key(9), (16, 32, 32, 8)), jnp.arange(16) % 10


@functools.cache
def on_one_device():
    return jax.jit(step_of(jaxbp))(*operands())


@pytest.mark.parametrize("layout", daily(LAYOUTS, "batch x features", "spatial"))
def test_a_training_step_sends_what_lax_sends(layout):
    shape, images, kernels = LAYOUTS[layout]
    mesh = mesh_of(**shape)
    put = [NamedSharding(mesh, spec) for spec in kernels]
    given = (put, NamedSharding(mesh, images), NamedSharding(mesh, P(*images[:1])))
    programs = {
        ops.__name__: jax.jit(step_of(ops), in_shardings=given, out_shardings=(NamedSharding(mesh, P()), put))
        .lower(*operands())
        .compile()
        for ops in (automatic, jaxbp)
    }
    ours, theirs = (sum(sent(programs[name]).values()) for name in ("jaxbp", "jaxbp.automatic"))
    assert ours <= (2 if layout == "spatial" else 1.1) * theirs + (64 << 10)
    memory = [programs[name].memory_analysis().temp_size_in_bytes for name in ("jaxbp", "jaxbp.automatic")]
    assert memory[0] <= max(1.25 * memory[1], memory[1] + (32 << 20))
    results = programs["jaxbp"](*jax.device_put(operands(), given))
    for actual, right in zip(jax.tree.leaves(results), jax.tree.leaves(on_one_device()), strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-4, atol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("inside", [True, False], ids=["set_mesh", "no set_mesh"])
def test_explicit_meshes_send_what_auto_sends(inside):
    """Shardings are in the types: results carry the right ones."""
    shape, images, _ = LAYOUTS["data parallel"]
    found = {}
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = mesh_of(kind, **shape)
        batch, everywhere = NamedSharding(mesh, images), NamedSharding(mesh, P())
        parameters, x, labels = operands()
        given = jax.device_put(parameters, everywhere), jax.device_put(x, batch), jax.device_put(labels, batch)
        step = jax.jit(step_of(jaxbp))
        with jax.set_mesh(mesh) if inside else contextlib.nullcontext():
            compiled = step.lower(*given).compile()
            loss, gradients = step(*given)
        found[kind] = sent(compiled)
        assert all(g.sharding.is_equivalent_to(everywhere, g.ndim) for g in gradients)
        np.testing.assert_allclose(loss, on_one_device()[0], rtol=1e-5)
    assert found[AxisType.Explicit] == found[AxisType.Auto]


EXPLICIT = {
    "depthwise, FSDP": (functools.partial(jaxbp.conv, feature_group_count=8), P("d"), [(3, 3, 1, 8)], P(*[None] * 3, "d")),
    "groups": (functools.partial(jaxbp.conv, feature_group_count=2), P("d"), [(3, 3, 4, 8)], P()),
    "transposed, spatial": (
        lambda x, k: jaxbp.conv_transpose(x, k, (2, 2), "SAME"), P(None, "d"), [(4, 4, 8, 4)], P(),
    ),
    "max pool, spatial": (lambda x: jaxbp.max_pool(x, (3, 3), (2, 2), "SAME"), P(None, "d"), [], P()),
}  # fmt: skip


@pytest.mark.parametrize("inside", [True, False], ids=["set_mesh", "no set_mesh"])
@pytest.mark.parametrize("name", daily(EXPLICIT, "depthwise, FSDP"))
def test_layers_on_explicit_meshes_send_what_auto_sends(name, inside):
    """Also where XLA, given lax's own op, would gather a batch or a height."""
    layer, images, kernels, kernel = EXPLICIT[name]
    arrays = [integers(i, shape) for i, shape in enumerate([(8, 16, 4, 8), *kernels])]

    def step(*arrays):
        z, pull = jax.vjp(layer, *arrays)
        return z, pull(z)

    mesh = mesh_of(AxisType.Explicit, d=8)
    with jax.set_mesh(mesh) if inside else contextlib.nullcontext():
        specs = [images, *(kernel for _ in kernels)]
        given = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arrays, specs, strict=True)]
        explicit = jax.jit(step).lower(*given).compile()
        results = explicit(*given)
    assert_same(results, step(*arrays))
    mesh = mesh_of(d=8)
    given = tuple(NamedSharding(mesh, spec) for spec in specs)
    out = jax.tree.map(lambda a: NamedSharding(mesh, a.sharding.spec), results)
    auto = jax.jit(step, in_shardings=given, out_shardings=out).lower(*arrays).compile()
    assert sent(explicit) == sent(auto)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("wrap", [jax.checkpoint, jax.jit, lambda f: f], ids=["checkpoint", "jit", "plain"])
def test_steps_in_a_loop(wrap):
    """The sums inside of a scan are split, too."""
    mesh = mesh_of(d=8)
    batch, everywhere = NamedSharding(mesh, P(None, "d")), NamedSharding(mesh, P())
    images, kernel = integers(1, (3, 8, 6, 6, 4)), integers(2, (3, 3, 4, 4))

    def loss(kernel, images):
        def one(total, x):
            return total + wrap(jaxbp.conv)(x, kernel).sum(), None

        return jax.lax.scan(one, jnp.float32(0), images)[0]

    step = jax.jit(jax.grad(loss), in_shardings=(everywhere, batch), out_shardings=everywhere)
    assert "all-gather" not in sent(step.lower(kernel, images).compile())
    assert_same(step(kernel, images), jax.grad(loss)(kernel, images))


def test_per_example_gradients_of_a_sharded_batch():
    """vmap(grad): every device has the gradients of its own examples."""
    mesh = mesh_of(d=8)
    batch, everywhere = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    x, kernel = integers(1, (16, 8, 8, 4)), integers(2, (3, 3, 4, 8))

    def loss(kernel, x):
        return (jaxbp.conv(x, kernel) ** 2).sum()

    per_example = jax.vmap(jax.grad(loss), (None, 0))
    program = jax.jit(per_example, in_shardings=(everywhere, batch), out_shardings=batch)
    assert sent(program.lower(kernel, x).compile()) == {}
    assert_same(program(kernel, x), per_example(kernel, x))


def test_second_derivatives_on_devices():
    mesh = mesh_of(d=8)
    batch, everywhere = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    x, kernel = integers(1, (8, 6, 6, 2)), integers(2, (3, 3, 2, 2))

    def loss(kernel, x):
        return (jaxbp.avg_pool(jaxbp.conv(x, kernel), (2, 2), (2, 2)) ** 2).sum()

    product = jax.jit(lambda k, x: jax.grad(lambda k: jax.grad(loss)(k, x).sum())(k), in_shardings=(everywhere, batch))
    assert_same(product(kernel, x), product(jax.device_put(kernel, jax.devices()[0]), x))


@pytest.mark.parametrize("dtype", daily([jnp.bfloat16, jnp.float16, jnp.int32, jnp.complex64], jnp.bfloat16, jnp.int32))
def test_dtypes_on_devices(dtype):
    mesh = mesh_of(d=8)
    batch, everywhere = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    x, kernel = integers(1, (8, 6, 6, 2)).astype(dtype), integers(2, (3, 3, 2, 2)).astype(dtype)
    layer = jax.jit(jaxbp.conv)
    assert_same(layer(jax.device_put(x, batch), jax.device_put(kernel, everywhere)), layer(x, kernel))


def test_64_bits_on_devices():
    """Arrays that keep their width outside of the block that enabled it."""
    mesh = mesh_of(d=8)
    batch, everywhere = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    with jax.enable_x64(True):
        x, kernel = (
            jnp.asarray(integers(i, shape), jnp.float64) for i, shape in ((1, (8, 6, 6, 2)), (2, (3, 3, 2, 2)))
        )

        def step(x, kernel):
            z, pull = jax.vjp(lambda x, k: jaxbp.max_pool(jaxbp.conv(x, k), (2, 2)), x, kernel)
            return z, pull(z)

        expected = jax.jit(step)(x, kernel)
        on_mesh = jax.device_put(x, batch), jax.device_put(kernel, everywhere)
        assert_same(jax.jit(step)(*on_mesh), expected)
    assert_same(jaxbp.conv(*on_mesh), jaxbp.conv(x, kernel))


# ------------------------------------------------------------------------------------ programs that do not see it


def test_single_devices_shard_map_and_pmap_do_not_see_it():
    x, kernel = integers(1, (8, 6, 6, 4)), integers(2, (3, 3, 4, 4))

    def step(x, kernel):
        z, pull = jax.vjp(lambda x, k: jaxbp.max_pool(jaxbp.conv(x, k), (2, 2)), x, kernel)
        return z, pull(z)

    mesh = mesh_of(d=8)
    by_hand = jax.shard_map(step, mesh=mesh, in_specs=(P("d"), P()), out_specs=(P("d"), (P("d"), P())))
    for program, given in ((jax.jit(step), (x, kernel)), (jax.jit(by_hand), (x, kernel))):
        assert PARTITIONED not in program.lower(*given).as_text()
    assert_same(jax.jit(by_hand)(x, kernel), step(x, kernel))
    both = jax.pmap(step, in_axes=(0, None))(x.reshape(8, 1, 6, 6, 4), kernel)
    assert_same(both[0].reshape(8, *both[0].shape[2:]), step(x, kernel)[0])


def test_manual_and_automatic_axes_at_once():
    """Some axes by shard_map, others by XLA, which then partitions the definition."""
    x, kernel = integers(1, (8, 6, 6, 4)), integers(2, (3, 3, 4, 4))
    mesh = mesh_of(d=4, m=2)

    def step(x, kernel):
        z, pull = jax.vjp(jaxbp.conv, x, kernel)
        return z, pull(z)

    some = jax.shard_map(step, mesh=mesh, in_specs=(P("d"), P()), out_specs=(P("d"), (P("d"), P())), axis_names={"d"})
    assert_same(jax.jit(some)(x, kernel), step(x, kernel))


def test_exported_programs_hold_no_callback():
    mesh = mesh_of(d=8)
    batch, everywhere = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    x, kernel = integers(1, (8, 6, 6, 4)), integers(2, (3, 3, 4, 4))

    def step(x, kernel):
        z, pull = jax.vjp(lambda x, k: jaxbp.max_pool(jaxbp.conv(x, k), (2, 2)), x, kernel)
        return z, pull(z)

    exported = jax.export.export(jax.jit(step, in_shardings=(batch, everywhere)))(x, kernel)
    assert PARTITIONED not in exported.mlir_module()
    assert_same(jax.jit(exported.call)(jax.device_put(x, batch), jax.device_put(kernel, everywhere)), step(x, kernel))


def test_a_precision_leaves_the_definition_to_xla():
    mesh = mesh_of(d=8)
    batch, everywhere = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    x, kernel = integers(1, (8, 6, 6, 4)), integers(2, (3, 3, 4, 4))
    layer = jax.jit(functools.partial(jaxbp.conv, precision="highest"), in_shardings=(batch, everywhere))
    assert PARTITIONED not in layer.lower(x, kernel).as_text()
    assert_same(layer(x, kernel), jaxbp.conv(x, kernel))


def test_little_work_is_repeated_where_a_result_would_be_sent():
    """One channel into 8 features: the input is gathered, not eight times as much output."""
    mesh = mesh_of(d=8)
    along, everywhere = NamedSharding(mesh, P(None, "d")), NamedSharding(mesh, P())
    x, kernel = integers(1, (4, 64, 1)), integers(2, (10, 1, 8))
    layer = functools.partial(jaxbp.conv, strides=5, padding="VALID")
    program = jax.jit(layer, in_shardings=(along, everywhere), out_shardings=everywhere)
    assert sent(program.lower(x, kernel).compile()) == {"all-gather": x.nbytes}
    assert_same(program(x, kernel), layer(x, kernel))


@pytest.mark.parametrize("images", [P(), P(*[None] * 3, "d")], ids=["x on each device", "x split along channels"])
def test_a_gradient_of_x_is_split_as_x_is(images):
    """Groups are split over devices. Where x is whole, delta is gathered, not the gradient, which is larger."""
    x, kernel = integers(1, (2, 16, 16, 128)), integers(2, (3, 3, 4, 128))
    delta, kernels = integers(3, (2, 8, 8, 128)), P(*[None] * 3, "d")
    mesh = mesh_of(d=8)
    given = [NamedSharding(mesh, spec) for spec in (kernels, kernels, images)]

    def gradient(ops):
        def function(kernel, delta, x):
            return jax.vjp(lambda x: ops.conv(x, kernel, strides=2, feature_group_count=32), x)[1](delta)[0]

        return jax.jit(function, in_shardings=given, out_shardings=given[-1]).lower(kernel, delta, x).compile()

    ours, theirs = (sum(sent(gradient(ops)).values()) for ops in (jaxbp, automatic))
    assert ours == (delta.nbytes + kernel.nbytes if images == P() else 0) <= theirs
    alone = jax.vjp(lambda x: jaxbp.conv(x, kernel, strides=2, feature_group_count=32), x)[1](delta)[0]
    assert_same(gradient(jaxbp)(*jax.device_put((kernel, delta, x), tuple(given))), alone)


CHANNELS = P(*[None] * 3, "d")
FREELY = {
    "depthwise": (64, CHANNELS, CHANNELS, CHANNELS, (3, 3, 1, 64)),
    "groups": (16, CHANNELS, CHANNELS, CHANNELS, (3, 3, 4, 64)),
    "groups, x whole": (16, P(), CHANNELS, CHANNELS, (3, 3, 4, 64)),
    "kernel split along inputs": (1, CHANNELS, P(None, None, "d"), P(), (3, 3, 64, 64)),
    "kernel split along outputs": (1, P(), CHANNELS, CHANNELS, (3, 3, 64, 64)),
}


@pytest.mark.parametrize("name", FREELY)
def test_gradients_whose_sharding_nobody_names(name):
    """No `out_shardings`: XLA says how the results are split, and no more is sent than for lax."""
    groups, images, kernels, outputs, shape = FREELY[name]
    mesh = mesh_of(d=8)
    arrays = integers(1, (2, 16, 16, 64)), integers(2, shape), integers(3, (2, 16, 16, 64))
    given = tuple(NamedSharding(mesh, spec) for spec in (images, kernels, outputs))

    def step(ops, x, kernel, delta):
        z, pull = jax.vjp(functools.partial(ops.conv, feature_group_count=groups), x, kernel)
        return z, pull(delta)

    ours, theirs = (
        jax.jit(functools.partial(step, ops), in_shardings=given).lower(*arrays).compile() for ops in (jaxbp, automatic)
    )
    assert sum(sent(ours).values()) <= 1.1 * sum(sent(theirs).values())
    assert_same(ours(*jax.device_put(arrays, given)), step(jaxbp, *arrays))


# ------------------------------------------------------------------------------------------------------ shardings


@pytest.mark.parametrize("shape", [(8,), (4, 2), (2, 2, 2), (2, 3), (3, 2), (6,)])
def test_shardings_are_understood(shape):
    """Each part of an array lies on the device that JAX puts it on."""
    devices = jax.devices()[: np.prod(shape)]
    names = tuple("abc"[: len(shape)])
    mesh = Mesh(np.array(devices).reshape(shape), names)
    for spec in (P(), P(names), P(*names), P(*reversed(names)), P(None, tuple(reversed(names))), P(names[-1])):
        sharding = NamedSharding(mesh, spec)
        hlo = [sharding._to_xla_hlo_sharding(3), NamedSharding(mesh, P(names))._to_xla_hlo_sharding(1)]
        ours, (axes, _) = _mesh_of(hlo, [3, 1], devices)
        found = NamedSharding(ours, P(*(one or None for one in axes)))
        assert found.devices_indices_map((24, 24, 48)) == sharding.devices_indices_map((24, 24, 48))


# ------------------------------------------------------------------------------------------- the benchmark's layers

FAMILIES = {case.family: case for case in reversed(CASES) if not case.pools}


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_the_suite_send_what_lax_sends(family):
    """One layer of each family in every layout: bytes, and temporary memory."""
    for row in _devices.measure_item(FAMILIES[family], "float32", 0.0, 8):
        if row.automatic is None:
            continue
        times = 2 if row.layout == "spatial" else 1.1
        assert row.manual.bytes <= times * row.automatic.bytes + (64 << 10), row
        memory = row.automatic.temporary_bytes
        assert row.manual.temporary_bytes <= max(1.25 * memory, memory + (32 << 20)), row
