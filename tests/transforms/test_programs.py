"""Layers in programs: used twice, shared, frozen, jitted, checkpointed, looped, mapped; gradients equal the twin's.

A test of a layer alone cannot see what one use of it does to another. JAX traces a jitted or checkpointed layer once
and differentiates it several times, each time with respect to other arguments.
"""

import functools
import itertools

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import jaxbp
from cases import OPS, normal


def scanned(layer):
    """The layer inside of a loop of one step."""
    return lambda *arrays: jax.lax.scan(lambda _, __: (None, layer(*arrays)), None, None, length=1)[1][0]


def mapped(layer):
    """The jitted layer under a vmap over one more axis of its first array."""
    inner = jax.jit(layer)
    return lambda x, *rest: jax.vmap(lambda x: inner(x, *rest))(x[None])[0]


WRAPPERS = {
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "scan": scanned,
    "checkpoint of scan": lambda layer: jax.checkpoint(scanned(layer)),
    "vmap of jit": mapped,
}

# ------------------------------------------------------------------------------- one layer, used twice

USED_TWICE = tuple(OPS)


def subsets(op):
    """Every non-empty choice of the arrays that have a gradient."""
    return [c for n in range(1, len(op.differentiable) + 1) for c in itertools.combinations(op.differentiable, n)]


def used_twice(op, ops, wrap, first, second):
    """The gradient of two scales: the first call depends on one through `first`, the second on the other."""
    arrays = op.arrays()
    layer = wrap(functools.partial(op.call, ops))

    def loss(scales):
        def call(chosen, scale):
            return layer(*(scale * a if i in chosen else a for i, a in enumerate(arrays)))

        return jnp.sum(jnp.sin(call(first, scales[0]))) + jnp.sum(jnp.cos(call(second, scales[1])))

    return jax.grad(loss)(jnp.array([1.25, 0.75]))


@pytest.mark.sampled(9)
@pytest.mark.parametrize(
    ("name", "wrapper"),
    [
        # 49 pairs are slow to compile.
        pytest.param(name, wrapper, marks=[pytest.mark.exhaustive] * (len(OPS[name].shapes) == 3 and wrapper != "jit"))
        for name in USED_TWICE
        for wrapper in WRAPPERS
    ],
)
def test_a_layer_used_twice(name, wrapper):
    """Every pair of differentiated arguments, in one program; each pair has a layer of its own."""
    op = OPS[name]
    pairs = list(itertools.product(subsets(op), subsets(op)))
    ours = jax.jit(lambda: [used_twice(op, jaxbp, WRAPPERS[wrapper], *pair) for pair in pairs])()
    for chosen, gradient in zip(pairs, ours, strict=True):
        chex.assert_trees_all_close(gradient, twin(name, *chosen), rtol=1e-4, atol=1e-4)


@functools.cache
def twins(name):
    """The twin's gradients for every pair of choices, each choice once: a scale's gradient is of its own call."""
    op = OPS[name]
    chosen = subsets(op)
    values = jax.jit(lambda: [used_twice(op, jaxbp.automatic, lambda f: f, one, one) for one in chosen])()
    return dict(zip(chosen, values, strict=True))


def twin(name, first, second):
    """The gradient of the twin: of the first scale by the first choice, of the second by the second."""
    return jnp.stack([twins(name)[first][0], twins(name)[second][1]])


@pytest.mark.parametrize("wrapper", ["jit", "checkpoint"])
def test_pairs_called_eagerly(wrapper):
    """The image is data for the first layer, the features are not for the second; then a loop of one layer."""
    x, w, v = normal(0, (2, 5, 5, 3)), 0.3 * normal(1, (3, 3, 3, 3)), 0.2 * normal(2, (3, 3, 3, 3))

    def loss(ops, wrap):
        layer = wrap(lambda x, w: jnp.tanh(ops.conv(x, w)))

        def value(w, v):
            z = layer(layer(x, w), v)
            for _ in range(3):
                z = layer(z, w)
            return jnp.sum(z * z)

        return value

    for argnums in (0, 1, (0, 1)):
        ours = jax.grad(loss(jaxbp, WRAPPERS[wrapper]), argnums)(w, v)
        chex.assert_trees_all_close(
            ours, jax.grad(loss(jaxbp.automatic, lambda f: f), argnums)(w, v), rtol=1e-4, atol=1e-4
        )


def test_a_bias_and_an_image_of_one_jitted_layer():
    """Small integers: the gradients are exact."""
    w = jnp.ones((1, 1, 2, 1))
    layer = jax.jit(lambda x, b: jaxbp.conv(x, w, b))
    x, b = jnp.ones((1, 2, 2, 2)), jnp.ones(1)
    dx, db = jax.grad(lambda x, b: 2 * layer(x, jnp.zeros(1)).sum() + 3 * layer(jnp.ones_like(x), b).sum(), (0, 1))(
        x, b
    )
    np.testing.assert_array_equal(dx, np.full(x.shape, 2))
    np.testing.assert_array_equal(db, [12])


# ------------------------------------------------------------------------------- what is kept, and when


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_no_more_is_kept_than_by_lax(name, dtype):
    """Bytes that a jitted forward pass hands over, for each choice of arguments; the op reads another op's output."""
    op = OPS[name]
    arrays = op.arrays(dtype)

    def kept(ops, chosen):
        def pulled(*some):
            given = dict(zip(chosen, some, strict=True))

            def function(*some):
                given = dict(zip(chosen, some, strict=True))
                return op.call(ops, *(jnp.exp(given[i]) if i in given else a for i, a in enumerate(arrays)))

            return jax.vjp(function, *given.values())

        compiled = jax.jit(pulled).lower(*(arrays[i] for i in chosen)).compile()
        return compiled.memory_analysis().output_size_in_bytes

    for chosen in subsets(op):
        # Winners of a pool are a byte for each output, and its input is not kept.
        assert kept(jaxbp, chosen) <= kept(jaxbp.automatic, chosen) + 64


@pytest.mark.parametrize("layout", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("HWCN", "OHWI", "CNHW")])
def test_a_layout_keeps_its_operands_as_they_are(layout):
    """What an op before the layer keeps is not kept a second time, transposed."""
    shape = dict(zip("NHWC", (4, 16, 16, 8), strict=True))
    x, k = jnp.ones([shape[a] for a in layout[0]]), jnp.ones([dict(H=3, W=3, I=8, O=8)[a] for a in layout[1]])

    def kept(ops):
        def function(x, k):
            return ops.conv_general_dilated(jnp.exp(x), jnp.exp(k), (1, 1), "SAME", dimension_numbers=layout).sum()

        return (
            jax.jit(lambda x, k: jax.vjp(function, x, k)).lower(x, k).compile().memory_analysis().output_size_in_bytes
        )

    assert kept(jaxbp) <= kept(jaxbp.automatic) + 64


@pytest.mark.sampled(1)
@pytest.mark.parametrize("shape", [(16, 16, 32), (64, 16, 16), (128, 8, 8)], ids=str)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_memory_does_not_grow_with_depth(shape, checkpointed):
    """A deep network's step holds one layer's temporaries at a time: each layer more costs what it costs lax."""
    channels, batch, size = shape

    def temporary(ops, depth):
        kernels, x = [jnp.ones((3, 3, channels, channels))] * depth, jnp.ones((batch, size, size, channels))
        layer = lambda k, x: ops.relu(ops.conv(x, k))  # noqa: E731
        layer = jax.checkpoint(layer) if checkpointed else layer

        def loss(kernels, x):
            return (functools.reduce(lambda x, k: layer(k, x), kernels, x) ** 2).mean()

        return jax.jit(jax.grad(loss)).lower(kernels, x).compile().memory_analysis().temp_size_in_bytes

    (shallow, deep), (lax_shallow, lax_deep) = (
        [temporary(ops, n) for n in (4, 12)] for ops in (jaxbp, jaxbp.automatic)
    )
    assert deep - shallow <= 1.25 * (lax_deep - lax_shallow) + 2**20
    assert deep <= 1.5 * lax_deep + 2**22


# ------------------------------------------------------------------------------- random compositions

LAYERS = {
    "conv": lambda ops, p, x: ops.conv(x, p["kernel"], p["bias"]),
    "depthwise": lambda ops, p, x: ops.conv(x, p["depthwise"], feature_group_count=3),
    "transposed": lambda ops, p, x: ops.conv_transpose(x, p["kernel"], (1, 1), "SAME"),
    "channels first": lambda ops, p, x: ops.conv_general_dilated(
        x.transpose(0, 3, 1, 2), p["kernel"].transpose(3, 2, 0, 1), (1, 1), "SAME"
    ).transpose(0, 2, 3, 1),
    "dense": lambda ops, p, x: ops.dense(x, p["dense"], p["bias"]),
    "max_pool": lambda ops, p, x: ops.max_pool(x, (2, 2), (1, 1), "SAME"),
    "avg_pool": lambda ops, p, x: ops.avg_pool(x, (3, 3), (1, 1), "SAME"),
    "tanh": lambda ops, p, x: ops.tanh(x),
    "sigmoid": lambda ops, p, x: ops.sigmoid(x),
}
AROUND = {
    "nothing": lambda layer: layer,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "vmap": lambda layer: lambda p, x: jax.vmap(lambda x: layer(p, x[None])[0])(x),
    "map": lambda layer: lambda p, x: jax.lax.map(lambda x: layer(p, x[None])[0], x),
    "scan": lambda layer: lambda p, x: jax.lax.scan(lambda x, _: (layer(p, x), None), x, None, length=2)[0],
    "cond": lambda layer: lambda p, x: jax.lax.cond(x[0, 0, 0, 0] > -9, layer, lambda p, x: x, p, x),
    "jitted checkpoint": lambda layer: jax.jit(jax.checkpoint(layer)),
    "vmap of jit": lambda layer: lambda p, x: jax.vmap(jax.jit(lambda x: layer(p, x[None])[0]))(x),
}
OUTER = {
    "grad": lambda loss, p, x: jax.grad(loss)(p, x),
    "jit of grad": lambda loss, p, x: jax.jit(jax.grad(loss))(p, x),
    "grad of both": lambda loss, p, x: jax.jit(jax.grad(loss, (0, 1)))(p, x),
    "of the image": lambda loss, p, x: jax.jit(jax.grad(loss, 1))(p, x),
    "per example": lambda loss, p, x: jax.jit(jax.vmap(jax.grad(lambda p, x: loss(p, x[None])), (None, 0)))(p, x),
    "mapped, then grad": lambda loss, p, x: jax.jit(jax.grad(lambda p: jax.vmap(lambda x: loss(p, x[None]))(x).sum()))(
        p
    ),
    "of several models": lambda loss, p, x: jax.jit(jax.vmap(jax.grad(loss), (0, None)))(
        jax.tree.map(lambda a: jnp.stack([a, -a]), p), x
    ),
    "hvp": lambda loss, p, x: jax.jit(lambda p: jax.jvp(lambda p: jax.grad(loss)(p, x), (p,), (p,))[1])(p),
}


def parameters(seed):
    shapes = {"kernel": (3, 3, 3, 3), "bias": (3,), "depthwise": (3, 3, 1, 3), "dense": (3, 3)}
    return {name: 0.3 * normal(seed + i, shape) for i, (name, shape) in enumerate(shapes.items())}


@st.composite
def programs(draw):
    """Steps of a network: which layer object, around what, and whose parameters; layer objects are shared."""
    kinds = draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=3))
    around = [draw(st.sampled_from(sorted(AROUND))) for _ in kinds]
    steps = draw(
        st.lists(st.tuples(st.integers(0, len(kinds) - 1), st.integers(0, 1), st.booleans()), min_size=2, max_size=4)
    )
    return kinds, around, steps, draw(st.sampled_from(sorted(OUTER)))


@given(programs())
def test_random_compositions(program):
    kinds, around, steps, outer = program

    def gradients(ops):
        layers = [AROUND[a](functools.partial(LAYERS[kind], ops)) for kind, a in zip(kinds, around, strict=True)]

        def loss(p, x):
            for layer, which, frozen in steps:
                own = jax.tree.map(jax.lax.stop_gradient, p[which]) if frozen else p[which]
                x = layers[layer](own, x)
            return jnp.sum(x * x)

        return OUTER[outer](loss, [parameters(1), parameters(11)], normal(5, (2, 4, 5, 3)))

    chex.assert_trees_all_close(gradients(jaxbp), gradients(jaxbp.automatic), rtol=2e-3, atol=2e-3)


# ------------------------------------------------------------------------------- loops of other packages


def test_a_neural_cellular_automaton_in_flax():
    nnx = pytest.importorskip("flax.nnx")
    from jaxbp.flax import nnx as ours

    class Automaton(nnx.Module):
        def __init__(self, library):
            self.perceive = library.Conv(4, 12, (3, 3), feature_group_count=4, rngs=nnx.Rngs(0))
            self.update = library.Conv(12, 4, (1, 1), rngs=nnx.Rngs(1))

        def __call__(self, x):
            return x + self.update(nnx.relu(self.perceive(x)))

    x = normal(0, (2, 6, 6, 4))

    def gradient(library):
        @nnx.jit
        def step(model, x):
            return model(x)

        def loss(model):
            z = x
            for _ in range(3):
                z = step(model, z)
            return jnp.mean(z**2)

        return nnx.to_pure_dict(nnx.state(nnx.grad(loss)(Automaton(library))))

    chex.assert_trees_all_close(gradient(ours), gradient(nnx), rtol=1e-4, atol=1e-5)


def test_a_neural_cellular_automaton_in_equinox():
    eqx = pytest.importorskip("equinox")
    from jaxbp import equinox as ours

    x = normal(0, (4, 6, 6))

    def gradient(library):
        keys = jax.random.split(jax.random.key(0))
        model = [library.nn.Conv2d(4, 8, 3, padding=1, key=keys[0]), library.nn.Conv2d(8, 4, 1, key=keys[1])]

        @eqx.filter_checkpoint
        def step(model, x):
            return x + model[1](jax.nn.relu(model[0](x)))

        def loss(model):
            return jnp.mean(jax.lax.scan(lambda z, _: (step(model, z), None), x, None, length=3)[0] ** 2)

        return jax.tree.leaves(eqx.filter_grad(loss)(model))

    chex.assert_trees_all_close(gradient(ours), gradient(eqx), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["lax", "checkpointed"])
def test_a_checkpointed_solve(kind):
    """Explicit Euler steps of dx/dt = tanh(conv(x)), as diffrax's default adjoint differentiates them."""
    internal = pytest.importorskip("equinox.internal")
    x, w = normal(0, (2, 5, 5, 3)), 0.3 * normal(1, (3, 3, 3, 3))

    def gradient(ops):
        def loss(w, x):
            def step(z, _):
                return z + 0.1 * jnp.tanh(ops.conv(z, w)), None

            return jnp.sum(internal.scan(step, x, None, length=5, kind=kind)[0] ** 2)

        return jax.grad(loss, (0, 1))(w, x)

    chex.assert_trees_all_close(gradient(jaxbp), gradient(jaxbp.automatic), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------- pullbacks


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", OPS)
def test_pullbacks_are_linear_and_can_be_transposed(name):
    """Implicit differentiation, and jvp by two transpositions, transpose a pullback."""
    op = OPS[name]
    arrays = op.arrays()

    def forward(*some):
        given = dict(zip(op.differentiable, some, strict=True))
        return op.call(jaxbp, *(given.get(i, a) for i, a in enumerate(arrays)))

    some = tuple(arrays[i] for i in op.differentiable)
    tangents = tuple(jnp.cos(7 * a) for a in some)
    y, pullback = jax.vjp(forward, *some)
    (ours,) = jax.linear_transpose(pullback, y)(tangents)

    def plain(*some):
        given = dict(zip(op.differentiable, some, strict=True))
        return op.call(jaxbp.automatic, *(given.get(i, a) for i, a in enumerate(arrays)))

    chex.assert_trees_all_close(ours, jax.jvp(plain, some, tangents)[1], rtol=1e-4, atol=1e-4)


def test_what_is_computed_first_has_no_part_in_the_sum():
    """Of a linear loss: the input's gradient waits for the kernel's, which depends on x, and does not itself."""
    x, w = normal(0, (2, 5, 5, 3)), normal(1, (3, 3, 3, 4))

    def mixed(ops):
        def squares(x):
            return sum(jnp.sum(g * g) for g in jax.grad(lambda x, w: ops.conv(x, w).sum(), (0, 1))(x, w)[:1])

        return jax.grad(squares)(x), jax.jvp(squares, (x,), (x,))[1]

    chex.assert_trees_all_equal(mixed(jaxbp), (jnp.zeros_like(x), jnp.float32(0)))
    chex.assert_trees_all_close(mixed(jaxbp), mixed(jaxbp.automatic), atol=1e-3)


# ------------------------------------------------------------------------------- long windows


@given(
    st.sampled_from([(1, 1), (2, 2), (1, 3)]),
    st.sampled_from([65, 256, 1024, 2048]),
    st.sampled_from([1, 2, "quarter", "whole"]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.sampled_from([(1, 64), (64, 1), (16, 16)]),
)
def test_programs_do_not_grow_with_the_window(rank_and_width, taps, strides, dilation, input_dilation, channels):
    """Along one axis or two; lax's programs have about 40 lines."""
    rank, width = rank_and_width
    steps = {"quarter": taps // 4, "whole": taps}.get(strides, strides)
    window, ones = (taps, *(width,) * (rank - 1)), (1,) * (rank - 1)
    sizes = ((taps - 1) * dilation + 1 + 20 * min(steps, 512), *(8,) * (rank - 1))
    words = dict(
        strides=(steps, *ones),
        kernel_dilation=(dilation, *ones),
        input_dilation=(input_dilation, *ones),
        padding=0,
    )
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, *sizes, channels[0]), (*window, *channels)))
    z = jax.eval_shape(lambda x, k: jaxbp.conv(x, k, **words), x, kernel)
    maps = {
        "forward": (lambda x, k: jaxbp.conv(x, k, **words), x, kernel),
        "input": (lambda z, k: jaxbp.conv_input_grad(z, k, x.shape, **words), z, kernel),
        "kernel": (lambda x, z: jaxbp.conv_kernel_grad(x, z, kernel.shape, **words), x, z),
    }
    for name, (function, *arrays) in maps.items():
        assert len(jax.jit(function).lower(*arrays).as_text().splitlines()) < 600, name
