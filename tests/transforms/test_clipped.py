"""`clipped_grad` against `vmap(grad)` of the automatic ops, for models of every kind that its norms can and cannot count."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import jaxbp
from cases import integers, normal
from jaxbp import automatic

CLIP = 2.0
N = 6
X, Y = normal(100, (N, 6, 5, 4)), jnp.arange(N) % 3


def parameters(**shapes):
    """Random parameters of these shapes."""
    return {name: 0.3 * normal(i, shape) for i, (name, shape) in enumerate(shapes.items())}


def head(ops, h, p, y):
    """The mean over positions, a dense layer and the loss."""
    return ops.softmax_cross_entropy(ops.dense(jnp.mean(h, (0, 1)), p["w"], p["b"]), y)


HEAD = dict(w=(4, 3), b=(3,))
CONVOLUTION = dict(k=(3, 3, 4, 4))


def plain(ops, p, x, y):
    return head(ops, jnp.tanh(ops.conv(jnp.tanh(ops.conv(x, p["k"], p["c"], strides=2)), p["k2"])), p, y)


def grouped_and_depthwise(ops, p, x, y):
    h = jnp.tanh(ops.conv(x, p["k"], feature_group_count=2, kernel_dilation=2))
    return head(ops, jnp.tanh(ops.conv(h, p["k2"], feature_group_count=4, strides=(1, 2))), p, y)


def in_jit_and_checkpoint(ops, p, x, y):
    h = jax.jit(lambda x, k: jnp.tanh(ops.conv(x, k)))(x, p["k"])
    h = jax.checkpoint(lambda h, k: jnp.tanh(ops.conv(h, k)))(h, p["k2"])
    return head(ops, h, p, y)


def tied(ops, p, x, y):
    return head(ops, jnp.tanh(ops.conv(jnp.tanh(ops.conv(x, p["k"])), p["k"])), p, y)


def transformed(ops, p, x, y):
    standard = p["k"] / jnp.sqrt(jnp.sum(p["k"] ** 2))
    return head(ops, jnp.tanh(ops.conv(x, standard)), p, y)


def called_twice(ops, p, x, y):
    layer = jax.jit(lambda h: jnp.tanh(ops.conv(h, p["k"], p["c"])))
    return head(ops, layer(layer(x)), p, y)


def in_a_loop(ops, p, x, y):
    h, _ = lax.scan(lambda h, k: (jnp.tanh(ops.conv(h, k)), None), x, p["stack"])
    h = lax.fori_loop(0, 2, lambda _, h: jnp.tanh(ops.conv(h, p["k"])), h)
    return head(ops, h, p, y)


def weight_decay(ops, p, x, y):
    return head(ops, jnp.tanh(ops.conv(x, p["k"], p["c"])), p, y) + 0.1 * sum(jnp.sum(a**2) for a in p.values())


def scales_of_a_normalisation(ops, p, x, y):
    h = ops.conv(x, p["k"])
    h = (h - jnp.mean(h, -1, keepdims=True)) * lax.rsqrt(jnp.var(h, -1, keepdims=True) + 1e-5)
    return head(ops, jnp.tanh(h * p["scale"][None, None] + p["shift"][None, None]), p, y)


def other_packages_layers(ops, p, x, y):
    h = jnp.tanh(jnp.einsum("hwc,cd->hwd", x, p["e"]) + p["table"][y][None, None])
    h = lax.conv_general_dilated(h[None], p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]
    return head(ops, h, p, y)


def stopped_and_unused(ops, p, x, y):
    h = lax.stop_gradient(jnp.tanh(ops.conv(x, p["k"])))
    return head(ops, jnp.tanh(ops.conv(h, p["k2"])), p, y)


def rule_of_its_own(ops, p, x, y):
    @jax.custom_vjp
    def halved(x, k):
        return ops.conv(x, k)

    halved.defvjp(
        lambda x, k: (ops.conv(x, k), (x, k)),
        lambda kept, delta: tuple(0.5 * g for g in jax.vjp(ops.conv, *kept)[1](delta)),
    )
    return head(ops, halved(x, p["k"]), p, y)


def kernel_counted_bias_not(ops, p, x, y):
    h = jnp.tanh(ops.conv(x, p["k"], p["c"]))
    return head(ops, jnp.tanh(ops.conv(h, p["k2"], p["c"])), p, y)


def a_kernel_as_input(ops, p, x, y):
    return head(ops, ops.conv(x, ops.conv(p["k"].reshape(1, 9, 4, 4), p["k2"]).reshape(3, 3, 4, 4)), p, y)


def in_lax_words(ops, p, x, y):
    x = jnp.moveaxis(x, -1, 0)[None]
    h = jnp.tanh(ops.conv_general_dilated(x, p["k"], (2, 1), "SAME", feature_group_count=2))
    h = jnp.tanh(ops.conv_general_dilated(h, p["k2"], (1, 1), "SAME", batch_group_count=1))
    h = ops.conv_transpose(jnp.moveaxis(h[0], 0, -1)[None], p["t"], (2, 1), "SAME")[0]
    return head(ops, h, p, y)


# Loss, parameters, and those that are differentiated for each example.
LOSSES = {
    "plain": (plain, dict(**CONVOLUTION, c=(4,), k2=(3, 3, 4, 4)), ()),
    "groups": (grouped_and_depthwise, dict(k=(3, 3, 2, 4), k2=(3, 3, 1, 4)), ()),
    "jit, checkpoint": (in_jit_and_checkpoint, dict(**CONVOLUTION, k2=(3, 3, 4, 4)), ()),
    "lax": (in_lax_words, dict(k=(4, 2, 3, 3), k2=(4, 4, 3, 3), t=(3, 3, 4, 4)), ()),
    "tied": (tied, CONVOLUTION, ("k",)),
    "transformed": (transformed, CONVOLUTION, ("k",)),
    "called twice": (called_twice, dict(**CONVOLUTION, c=(4,)), ("c", "k")),
    "loops": (in_a_loop, dict(**CONVOLUTION, stack=(2, 3, 3, 4, 4)), ("k", "stack")),
    "weight decay": (weight_decay, dict(**CONVOLUTION, c=(4,)), ("b", "c", "k", "w")),
    "normalisation": (scales_of_a_normalisation, dict(**CONVOLUTION, scale=(4,), shift=(4,)), ("scale", "shift")),
    "other layers": (other_packages_layers, dict(**CONVOLUTION, e=(4, 4), table=(3, 4)), ("e", "k", "table")),
    "stopped": (stopped_and_unused, dict(**CONVOLUTION, k2=(3, 3, 4, 4), unused=(2,)), ()),
    "custom rule": (rule_of_its_own, CONVOLUTION, ("k",)),
    "bias used twice": (kernel_counted_bias_not, dict(**CONVOLUTION, k2=(3, 3, 4, 4), c=(4,)), ("c",)),
    "kernel as input": (a_kernel_as_input, dict(**CONVOLUTION, k2=(3, 3, 4, 4)), ("k",)),
}  # fmt: skip


def case(name):
    """The losses by jaxbp and by the automatic ops, and parameters."""
    loss, shapes, _ = LOSSES[name]
    return functools.partial(loss, jaxbp), functools.partial(loss, automatic), parameters(**shapes, **HEAD)


def expected(loss, params, *batch, clip=CLIP):
    """The clipped sum and norms by `vmap(grad)`, in float64 after the gradients."""
    each = jax.jit(jax.vmap(jax.grad(loss), (None, *(0 for _ in batch))))(params, *batch)
    wide = jax.tree.map(lambda g: np.asarray(g, np.float64), each)
    norms = np.sqrt(sum(np.sum(g.reshape(len(g), -1) ** 2, axis=1) for g in jax.tree.leaves(wide)))
    weights = np.minimum(1, clip / np.where(norms > 0, norms, 1))
    return jax.tree.map(lambda g: np.tensordot(weights, g, 1), wide), norms


def assert_close(ours, right):
    """To 1e-5 of the largest entry."""
    assert jax.tree.structure(ours) == jax.tree.structure(right)
    largest = max(float(np.abs(a).max()) for a in jax.tree.leaves(right[0]))
    for a, b in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(right[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest)
    np.testing.assert_allclose(ours[1], right[1], rtol=0, atol=1e-5 * np.max(right[1]))


DAILY = ("plain", "groups", "tied", "loops", "weight decay", "normalisation", "other layers")
SOME = [name if name in DAILY else pytest.param(name, marks=pytest.mark.exhaustive) for name in LOSSES]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SOME)
def test_equals_vmap_of_grad(name):
    loss, reference, params = case(name)
    clipped = jaxbp.clipped_grad(loss, l2_clip_norm=CLIP)
    assert_close(jax.jit(clipped)(params, X, Y), expected(reference, params, X, Y))
    how = {e.path: (e.how, e.why) for e in clipped.explain(params, X, Y)}
    assert set(how) == {f"['{name}']" for name in params}
    assert sorted(path[2:-2] for path, (kind, _) in how.items() if kind == "vmap") == sorted(LOSSES[name][2])


def test_explain_says_why():
    reasons = {}
    for name in ("tied", "loops", "normalisation", "kernel as input"):
        loss, _, params = case(name)
        found = jaxbp.clipped_grad(loss, l2_clip_norm=1.0).explain(params, X, Y)
        reasons |= {(name, e.path): (e.how, e.why) for e in found}
    assert reasons["tied", "['k']"] == ("vmap", "it is used 2 times")
    assert reasons["tied", "['w']"] == ("norm", "it is the kernel or bias of one layer, or not used")
    assert reasons["loops", "['stack']"] == ("vmap", "it is used inside of scan, which may run any number of times")
    how, why = reasons["normalisation", "['scale']"]
    assert how == "vmap" and "it is an operand of" in why


def test_no_gradient_of_each_example_is_held():
    loss, _, params = case("plain")
    params |= parameters(k2=(3, 3, 4, 4))
    for run, held in (
        (jaxbp.clipped_grad(loss, l2_clip_norm=CLIP), False),
        (jax.vmap(jax.grad(loss), (None, 0, 0)), True),
    ):
        program = jax.jit(run).lower(params, X[:, :2, :2], Y).compile().as_text()
        assert bool(re.search(r"f32\[6,3,3,4,4\]", program)) is held


def test_the_norm_pass_computes_no_parameter_gradient():
    loss, _, params = case("plain")
    norms = jax.jit(lambda *a: jaxbp.clipped_grad(loss, l2_clip_norm=CLIP)(*a)[1])
    whole = jax.jit(jaxbp.clipped_grad(loss, l2_clip_norm=CLIP))
    costs = [f.lower(params, X, Y).compile().cost_analysis()["flops"] for f in (norms, whole)]
    assert costs[0] < 0.8 * costs[1]


@pytest.mark.exhaustive
def test_eagerly_and_in_microbatches():
    loss, reference, params = case("normalisation")
    right = expected(reference, params, X, Y)
    assert_close(jaxbp.clipped_grad(loss, l2_clip_norm=CLIP)(params, X, Y), right)
    for some in (4, 6):
        ours = jax.jit(jaxbp.clipped_grad(loss, l2_clip_norm=CLIP, microbatch=some))(params, X, Y)
        assert_close(ours, right)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("microbatch", [None, 4])
def test_aux(microbatch):
    loss, _, params = case("plain")
    with_aux = lambda p, x, y: (loss(p, x, y), {"label": y, "largest": x.max()})  # noqa: E731
    both, aux = jax.jit(jaxbp.clipped_grad(with_aux, l2_clip_norm=CLIP, has_aux=True, microbatch=microbatch))(
        params, X, Y
    )
    assert_close(both, expected(loss, params, X, Y))
    np.testing.assert_array_equal(aux["label"], Y)
    np.testing.assert_array_equal(aux["largest"], X.max((1, 2, 3)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plain", np.inf),
        ("normalisation", np.nan),
        pytest.param("plain", np.nan, marks=pytest.mark.exhaustive),
        pytest.param("weight decay", np.inf, marks=pytest.mark.exhaustive),
    ],
)
def test_an_example_that_is_not_finite_adds_nothing(name, value):
    loss, reference, params = case(name)
    x = X.at[2, 1, 1, 0].set(value)
    total, norms = jax.jit(jaxbp.clipped_grad(loss, l2_clip_norm=CLIP))(params, x, Y)
    others = np.array([0, 1, 3, 4, 5])
    assert not np.isfinite(norms[2])
    assert_close((total, norms[others]), expected(reference, params, X[others], Y[others]))


def test_zero_gradients_stay_zero():
    loss = lambda p, x: 0.0 * jnp.sum(jaxbp.dense(x, p["k"]))  # noqa: E731
    total, norms = jaxbp.clipped_grad(loss, l2_clip_norm=1.0)({"k": jnp.ones((3, 2))}, jnp.ones((4, 3)))
    np.testing.assert_array_equal(norms, np.zeros(4))
    np.testing.assert_array_equal(total["k"], np.zeros((3, 2)))


def test_every_clipped_gradient_has_the_norm():
    loss, _, params = case("plain")
    for n in range(2):
        total, norms = jaxbp.clipped_grad(loss, l2_clip_norm=1e-3)(params, X[n : n + 1], Y[n : n + 1])
        assert norms[0] > 1e-3
        length = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(total)))
        np.testing.assert_allclose(length, 1e-3, rtol=1e-5)


@pytest.mark.parametrize("check_vma", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", ["plain", "normalisation"])
def test_under_shard_map_the_sum_is_the_devices_own(name, check_vma):
    loss, reference, params = case(name)
    x, y = jnp.concatenate([X, X[:2]]), jnp.concatenate([Y, Y[:2]])
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(params, x, y):
        total, norms = jaxbp.clipped_grad(loss, l2_clip_norm=CLIP, microbatch=None if name == "plain" else 1)(
            params, x, y
        )
        return jax.lax.psum(total, "i"), norms

    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("i"), P("i")), out_specs=(P(), P("i")), check_vma=check_vma
    )
    assert_close(jax.jit(sharded)(params, x, y), expected(reference, params, x, y))


def test_bfloat16_and_keys():
    """Low precision parameters, and an example that brings a random key for its dropout."""
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), parameters(**CONVOLUTION, **HEAD))

    def loss(p, x, y, key):
        h = jaxbp.conv(x.astype(jnp.bfloat16), p["k"])
        return head(jaxbp, jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h, 0), p, y)

    keys = jax.random.split(jax.random.key(0), N)
    total, norms = jax.jit(jaxbp.clipped_grad(loss, l2_clip_norm=CLIP))(params, X, Y, keys)
    right, right_norms = expected(loss, params, X, Y, keys)
    assert total["k"].dtype == jnp.bfloat16 and norms.dtype == jnp.float32
    np.testing.assert_allclose(norms, right_norms, rtol=3e-2)
    np.testing.assert_allclose(total["k"].astype(jnp.float32), right["k"], atol=3e-2 * np.abs(right["k"]).max())


def test_in_flax_and_inside_swap_lax():
    flax = pytest.importorskip("flax")
    from jaxbp.flax import linen

    class Net(flax.linen.Module):
        conv: type

        @flax.linen.compact
        def __call__(self, x):
            return flax.linen.Dense(3)(jnp.tanh(self.conv(4, (3, 3))(x[None]))[0].mean((0, 1)))

    x = X[..., :3]
    params = Net(flax.linen.Conv).init(jax.random.key(0), x[0])
    loss = lambda conv: lambda p, x, y: -jax.nn.log_softmax(Net(conv).apply(p, x))[y]  # noqa: E731
    right = expected(loss(flax.linen.Conv), params, x, Y)
    ours = jaxbp.clipped_grad(loss(linen.Conv), l2_clip_norm=CLIP)
    assert_close(jax.jit(ours)(params, x, Y), right)
    kinds = {e.path.split("'")[-4] + "/" + e.path.split("'")[-2]: e.how for e in ours.explain(params, x, Y)}
    assert kinds["Conv_0/kernel"] == "norm"
    swapped = jaxbp.clipped_grad(loss(flax.linen.Conv), l2_clip_norm=CLIP)
    with jaxbp.swap_lax("flax"):
        assert_close(jax.jit(lambda *a: swapped(*a))(params, x, Y), right)
        assert any(e.how == "norm" for e in swapped.explain(params, x, Y))


def test_in_equinox():
    eqx = pytest.importorskip("equinox")
    from jaxbp import equinox as ours

    layer = ours.nn.Conv2d(4, 3, 3, key=jax.random.key(0))
    params, static = eqx.partition(layer, eqx.is_inexact_array)
    loss = lambda p, x, y: -jax.nn.log_softmax(eqx.combine(p, static)(jnp.moveaxis(x, -1, 0)).mean((1, 2)))[y]  # noqa: E731
    clipped = jaxbp.clipped_grad(loss, l2_clip_norm=0.1)
    total, norms = jax.jit(clipped)(params, X, Y)
    right, right_norms = expected(loss, params, X, Y, clip=0.1)
    np.testing.assert_allclose(norms, right_norms, rtol=1e-5)
    np.testing.assert_allclose(total.weight, right.weight, rtol=0, atol=1e-5 * np.abs(right.weight).max())
    assert {e.path: e.how for e in clipped.explain(params, X, Y)} == {".weight": "norm", ".bias": "vmap"}


SCALAR = lambda p, x: jnp.sum(jaxbp.dense(x, p))  # noqa: E731
ONES = jnp.ones((3, 2))
ROWS = (jnp.ones((4, 3)),)


def called(loss=SCALAR, params=ONES, batch=ROWS, **settings):
    return lambda: jaxbp.clipped_grad(loss, **{"l2_clip_norm": 1.0, **settings})(params, *batch)


ERRORS = {
    "loss": (called(loss=3), TypeError, "clipped_grad: loss=3 must be a function of (params, *example)"),
    "clip": (called(l2_clip_norm=0), ValueError, "clipped_grad: l2_clip_norm=0 must be a positive number"),
    "clip is nan": (called(l2_clip_norm=float("nan")), ValueError, "clipped_grad: l2_clip_norm=nan must be"),
    "microbatch": (called(microbatch=0), ValueError, "clipped_grad: microbatch=0 must be a number of examples"),
    "integers": (called(params={"a": jnp.arange(3)}), TypeError, "clipped_grad: params['a'] has dtype int32"),
    "no array": (called(params={"a": 1.0}), TypeError, "clipped_grad: params['a'] must be an array"),
    "no parameters": (called(params={}), ValueError, "clipped_grad: params={} holds no arrays"),
    "no batch": (called(batch=()), ValueError, "clipped_grad: the batch has arrays of shapes none at all"),
    "batch sizes": (called(batch=(jnp.ones((4, 3)), jnp.ones(5))), ValueError, "arrays of shapes (4, 3), (5,)"),
    "batch of a number": (called(batch=(jnp.ones(()),)), ValueError, "arrays of shapes ()"),
    "not a scalar": (
        called(lambda p, x: jaxbp.dense(x, p)), TypeError,
        "the loss of one example must be a scalar of a floating-point dtype, but it has shape (2,) and dtype float32",
    ),
    "no pair": (called(has_aux=True), TypeError, "clipped_grad: with has_aux=True the loss must return a pair"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_error(name):
    call, exception, message = ERRORS[name]
    with pytest.raises(exception, match=re.escape(message)):
        call()


def test_on_an_explicit_mesh():
    """Layers stand inside of a mesh's own operations there, so that all parameters are differentiated per example."""
    loss, reference, params = case("plain")
    x, y = jnp.concatenate([X, X[:2]]), jnp.concatenate([Y, Y[:2]])
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    clipped = jaxbp.clipped_grad(loss, l2_clip_norm=CLIP)
    with jax.set_mesh(mesh):
        data = [jax.device_put(a, jax.NamedSharding(mesh, P("i"))) for a in (x, y)]
        assert {e.how for e in clipped.explain(params, *data)} == {"vmap"}
        ours = jax.jit(clipped)(params, *data)
    assert_close(ours, expected(reference, params, x, y))


def test_a_symbolic_batch():
    loss, reference, params = case("normalisation")
    (n,) = jax.export.symbolic_shape("n")
    specs = (jax.ShapeDtypeStruct((n, *X.shape[1:]), X.dtype), jax.ShapeDtypeStruct((n,), Y.dtype))
    clipped = jaxbp.clipped_grad(loss, l2_clip_norm=CLIP)
    exported = jax.export.export(jax.jit(functools.partial(clipped, params)))(*specs)
    assert_close(tuple(exported.call(X, Y)), expected(reference, params, X, Y))


def test_a_dense_layer_of_several_positions_is_counted_by_its_norm():
    """Every axis of an example but the last one is a position."""

    def loss(parameters, x):
        return (jaxbp.dense(x, *parameters) ** 2).sum()

    parameters = integers(1, (4, 3)), integers(2, (3,))
    x = integers(3, (5, 2, 6, 4))
    clipped = jaxbp.clipped_grad(loss, l2_clip_norm=1e9)
    assert {how for _, how, _ in clipped.explain(parameters, x)} == {"norm"}
    found, norms = clipped(parameters, x)
    gradients = jax.vmap(jax.grad(loss), (None, 0))(parameters, x)
    squares = sum((g.reshape(5, -1) ** 2).sum(1) for g in gradients)
    np.testing.assert_allclose(norms, np.sqrt(squares), rtol=1e-5)
    for actual, each in zip(found, gradients, strict=True):
        np.testing.assert_allclose(actual, each.sum(0), rtol=1e-5)
