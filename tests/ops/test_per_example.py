"""Per-example gradients and norms: against `vmap(grad)` of the automatic op, and the sums that no program may hold."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxbp
import loops
from cases import CONVS, assert_equal, assert_exact, integers, normal
from jaxbp import _norms

# Deep, so that Gram matrices are the shorter way; the others of the table mostly take the direct sum.
DEEP = {
    "3x3": ((3, 3, 2, 24), (3, 3, 24, 32), {}),
    "strided, dilated": ((3, 7, 6, 20), (3, 2, 20, 24), dict(strides=3, kernel_dilation=2)),
    "groups": ((3, 4, 3, 48), (3, 3, 24, 64), dict(feature_group_count=2, strides=2)),
    "input dilation": ((3, 2, 2, 20), (3, 3, 20, 24), dict(input_dilation=2, padding=1)),
    "1-D": ((3, 6, 16), (4, 16, 24), dict(padding=((2, 1),))),
    "3-D": ((3, 2, 2, 2, 16), (2, 2, 2, 16, 24), {}),
    "0-D": ((3, 16), (16, 8), {}),
}
BATCHED = {name: case for name, case in CONVS.items() if len(case.x) == len(case.kernel)}
DAILY = ("groups, strided", "depthwise with multiplier", "both dilations, negative padding", "empty batch")
SOME = [n if n in DAILY else pytest.param(n, marks=pytest.mark.exhaustive) for n in BATCHED]


def arrays(x_shape, kernel_shape, arguments, numbers=normal):
    """x, a kernel and a delta."""
    x, kernel = numbers(0, x_shape), numbers(1, kernel_shape)
    z = jax.eval_shape(lambda x, k: jaxbp.conv(x, k, **arguments), x, kernel)
    return x, kernel, numbers(2, z.shape)


def squares(gradients):
    """Their squared norms, in float64."""
    gradients = np.asarray(gradients, np.float64)
    return np.sum(gradients.reshape(len(gradients), -1) ** 2, axis=1) if gradients.size else np.zeros(len(gradients))


@pytest.mark.sampled(14)
@pytest.mark.parametrize("name", SOME)
def test_gradients_and_norms_over_the_table(name):
    case = BATCHED[name]
    x, _, delta = arrays(case.x, case.kernel, case.arguments, integers)
    each = jaxbp.conv_kernel_grad_per_example(x, delta, case.kernel, **case.arguments)
    pairs = zip(np.asarray(x), np.asarray(delta), strict=True)
    right = [loops.conv(a[None], np.zeros(case.kernel), delta=d[None], **case.arguments)[1] for a, d in pairs]
    assert_exact(each, np.reshape(right, each.shape))
    for exact in (False, True):
        norms = jaxbp.conv_kernel_grad_sqnorms(x, delta, case.kernel, **case.arguments, exact=exact)
        assert norms.dtype == jnp.float32
        np.testing.assert_array_equal(norms, squares(each))


@pytest.mark.parametrize(
    "name",
    [n if n in ("3x3", "groups", "input dilation") else pytest.param(n, marks=pytest.mark.exhaustive) for n in DEEP],
)
def test_gram_matrices(name):
    x_shape, kernel_shape, arguments = DEEP[name]
    x, _, delta = arrays(x_shape, kernel_shape, arguments)
    norms = jax.jit(lambda x, d: jaxbp.conv_kernel_grad_sqnorms(x, d, kernel_shape, **arguments))
    held = f"3x{'x'.join(map(str, kernel_shape))}xf32"
    assert held not in norms.lower(x, delta).as_text()
    each = jaxbp.conv_kernel_grad_per_example(x, delta, kernel_shape, **arguments)
    np.testing.assert_allclose(norms(x, delta), squares(each), rtol=1e-5)
    direct = jaxbp.conv_kernel_grad_sqnorms(x, delta, kernel_shape, **arguments, exact=True)
    np.testing.assert_allclose(direct, squares(each), rtol=1e-5)


def test_where_terms_cancel():
    """Equal patches, and a delta that sums to zero: the gradient is zero. Bounded, and never negative."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.broadcast_to(rng.normal(size=(20, 1, 64)), (20, 40, 64)), jnp.float32)
    delta = rng.normal(size=(20, 40, 64))
    delta = jnp.asarray(delta - delta.mean(1, keepdims=True), jnp.float32)
    kernel_shape, arguments = (1, 64, 512), dict(padding="VALID")
    delta = jnp.tile(delta, (1, 1, 8))
    norms = jaxbp.conv_kernel_grad_sqnorms(x, delta, kernel_shape, **arguments)
    bound = 1e-6 * np.sum(np.linalg.norm(x, axis=-1) * np.linalg.norm(delta, axis=-1), axis=1) ** 2
    exact = jaxbp.conv_kernel_grad_sqnorms(x, delta, kernel_shape, **arguments, exact=True)
    assert np.all(norms >= 0) and np.all(np.abs(norms - exact) <= bound)
    assert np.all(exact <= 1e-3 * bound)


@pytest.mark.parametrize(("exact", "most"), [(False, 0), (False, 600), (True, 60_000)])
def test_some_after_the_others_where_memory_is_short(monkeypatch, exact, most):
    x_shape, kernel_shape, arguments = DEEP["3x3"]
    x, _, delta = arrays((5, *x_shape[1:]), kernel_shape, arguments)
    call = lambda: jaxbp.conv_kernel_grad_sqnorms(x, delta, kernel_shape, **arguments, exact=exact)  # noqa: E731
    expected = call()
    monkeypatch.setattr(_norms, "MOST_BYTES", most)
    _norms._compiled.cache_clear()
    assert "while" in jax.jit(lambda: call()).lower().as_text()
    np.testing.assert_allclose(call(), expected, rtol=1e-5)
    _norms._compiled.cache_clear()


@pytest.mark.parametrize(("dtype", "wide"), [("bfloat16", "float32"), ("float16", "float32"), ("complex64", "float32")])
def test_dtypes(dtype, wide):
    x, _, delta = arrays((2, 5, 3), (3, 3, 4), {})
    x, delta = (x.astype(dtype), delta.astype(dtype))
    norms = jaxbp.conv_kernel_grad_sqnorms(x, delta, (3, 3, 4))
    assert norms.dtype == wide
    up = "float32" if dtype != "complex64" else dtype
    each = jaxbp.conv_kernel_grad_per_example(x.astype(up), delta.astype(up), (3, 3, 4))
    np.testing.assert_allclose(norms, squares(np.abs(each)), rtol=1e-5)


def test_float64():
    with jax.enable_x64(True):
        x, _, delta = (a.astype(jnp.float64) for a in arrays((3, 3, 2, 24), (3, 3, 24, 32), {}))
    norms = jaxbp.conv_kernel_grad_sqnorms(x, delta, (3, 3, 24, 32))
    assert norms.dtype == jnp.float64
    np.testing.assert_allclose(norms, squares(jaxbp.conv_kernel_grad_per_example(x, delta, (3, 3, 24, 32))), rtol=1e-13)


def test_transformations_of_norms():
    """Mapped examples are examples, and derivatives are those of the sums."""
    x, _, delta = arrays((4, 3, 2, 16), (3, 3, 16, 24), {})
    norms = lambda x, d: jaxbp.conv_kernel_grad_sqnorms(x, d, (3, 3, 16, 24))  # noqa: E731
    expected = norms(x, delta)
    np.testing.assert_allclose(jax.vmap(norms)(x, delta), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(norms, (None, 0))(x[0], delta)[0], expected[0], rtol=1e-6)
    jaxpr = str(jax.make_jaxpr(jax.vmap(norms))(x, delta))
    assert re.search(r"f32\[4\] = kernel_sqnorms", jaxpr)
    right = jax.grad(lambda d: jnp.sum(jaxbp.conv_kernel_grad_per_example(x, d, (3, 3, 16, 24)) ** 2))(delta)
    ours = jax.jit(jax.grad(lambda d: norms(x, d).sum()))(delta)
    np.testing.assert_allclose(ours, right, rtol=0, atol=1e-4 * np.abs(right).max())


# ---------------------------------------------------------------------------------------------------------- norms=


@pytest.mark.sampled(16)
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("with_bias", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_norms_of_conv(name, with_bias):
    case = BATCHED[name]
    x, kernel, delta = arrays(case.x, case.kernel, case.arguments, integers)
    bias = (integers(3, kernel.shape[-1:]),) if with_bias else ()
    z, pull = jax.vjp(
        lambda x, n, *p: jaxbp.conv(x, *p, norms=n, **case.arguments), x, jnp.zeros(len(x)), kernel, *bias
    )
    plain, plain_pull = jax.vjp(lambda x, *p: jaxbp.conv(x, *p, **case.arguments), x, kernel, *bias)
    assert_equal(z, plain)
    dx, norms, *parameters = pull(delta)
    assert_equal((dx, *parameters), plain_pull(delta))
    each = squares(jaxbp.conv_kernel_grad_per_example(x, delta, case.kernel, **case.arguments))
    if with_bias:
        each = each + squares(np.sum(delta, axis=tuple(range(1, delta.ndim - 1))))
    np.testing.assert_array_equal(norms, each)


def test_norms_in_lax_layouts():
    lhs, rhs = integers(0, (3, 4, 5, 4)), integers(1, (6, 2, 3, 2))
    arguments = ((1, 2), "SAME", None, None, ("NCHW", "OIHW", "NCHW"), 2)
    op = lambda n: jaxbp.conv_general_dilated(lhs, rhs, *arguments, norms=n)  # noqa: E731
    z, pull = jax.vjp(op, jnp.zeros(3))
    delta = integers(2, z.shape)
    gradient = lambda x, d: jax.vjp(lambda k: jax.lax.conv_general_dilated(x, k, *arguments), rhs)[1](d)[0]  # noqa: E731
    right = [gradient(x[None], d[None]) for x, d in zip(lhs, delta, strict=True)]
    np.testing.assert_array_equal(pull(delta)[0], squares(right))


@pytest.mark.parametrize("norms_shape", [(), (3,), (3, 2)])
def test_axes_behind_the_norms_are_positions(norms_shape):
    x, kernel, bias = integers(0, (3, 2, 4, 3)), integers(1, (3, 3, 5)), integers(2, (5,))
    for op, k in ((jaxbp.conv, kernel), (jaxbp.dense, kernel[0])):
        z, pull = jax.vjp(lambda n, op=op, k=k: op(x, k, bias, norms=n), jnp.zeros(norms_shape))
        delta = integers(3, z.shape)
        rows = int(np.prod(norms_shape))

        def gradients(x, d, op=op, k=k):
            return jax.vjp(lambda k, b: op(x, k, b), k, bias)[1](d)

        parts = zip(x.reshape(rows, -1, 4, 3), delta.reshape(rows, -1, *delta.shape[2:]), strict=True)
        right = [sum(float(jnp.sum(g**2)) for g in gradients(*part)) for part in parts]
        np.testing.assert_array_equal(pull(delta)[0].reshape(-1), right)


def model(x, parameters, norms=None):
    """Two convolutions and a dense layer."""
    more = {} if norms is None else dict(norms=norms)
    x = jnp.tanh(jaxbp.conv(x, *parameters[:2], strides=2, **more))
    x = jnp.tanh(jaxbp.conv(x, parameters[2], feature_group_count=2, **more))
    return jaxbp.dense(x.reshape(*x.shape[:-3], -1), *parameters[3:], **more)


def model_data():
    shapes = [(3, 3, 2, 4), (4,), (3, 3, 2, 4), (24, 3), (3,)]
    return normal(9, (8, 5, 4, 2)), [normal(i, shape) for i, shape in enumerate(shapes)]


def test_norms_of_a_model_under_transformations():
    x, parameters = model_data()
    loss = lambda p, x: jnp.sum(jnp.sin(model(x, p)))  # noqa: E731
    each = jax.vmap(jax.grad(loss), (None, 0))(parameters, x)
    right = sum(squares(g) for g in each)
    counted = lambda n, x: jnp.sum(jnp.sin(model(x, parameters, n)))  # noqa: E731
    zeros = jnp.zeros(len(x))
    ways = {
        "grad": jax.grad(counted)(zeros, x),
        "jit": jax.jit(jax.grad(counted))(zeros, x),
        "vmap(grad)": jax.vmap(jax.grad(counted))(zeros, x),
        "grad(vmap)": jax.grad(lambda n: jax.vmap(counted)(n, x).sum())(zeros),
        "grad(jit(vmap))": jax.grad(lambda n: jax.jit(jax.vmap(counted))(n, x).sum())(zeros),
        "checkpoint": jax.grad(jax.checkpoint(counted))(zeros, x),
        "scan": jax.lax.scan(lambda c, nx: (c, jax.grad(counted)(*nx)), 0, (zeros, x))[1],
    }
    for name, norms in ways.items():
        np.testing.assert_allclose(norms, right, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("check_vma", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_norms_under_shard_map(check_vma):
    x, parameters = model_data()
    gradient = jax.grad(lambda n, p, x: jnp.sum(jnp.sin(model(x, p, n))))
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(P("i"), P(), P("i")), out_specs=P("i"), check_vma=check_vma)
    expected = gradient(jnp.zeros(8), parameters, x)
    np.testing.assert_allclose(jax.jit(sharded)(jnp.zeros(8), parameters, x), expected, rtol=1e-5)


def test_norms_on_an_explicit_mesh():
    x, parameters = model_data()
    expected = jax.grad(lambda n: jnp.sum(jnp.sin(model(x, parameters, n))))(jnp.zeros(8))
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        put = lambda a: jax.device_put(a, jax.NamedSharding(mesh, P("i")))  # noqa: E731
        ours = jax.jit(jax.grad(lambda n, x: jnp.sum(jnp.sin(model(x, parameters, n)))))(put(jnp.zeros(8)), put(x))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------- errors

X, K = jnp.ones((2, 3, 5, 2)), jnp.ones((3, 2, 4))
NCHW, OIHW = jnp.ones((2, 2, 5, 4)), jnp.ones((4, 2, 3, 3))
ERRORS = {
    "norms: integers": (
        lambda: jaxbp.conv(X, K, norms=jnp.zeros(2, jnp.int32)), TypeError,
        "conv: norms has dtype int32, but squared norms are added up in float32",
    ),
    "norms: bfloat16": (
        lambda: jaxbp.dense(X, K[0], norms=jnp.zeros(2, jnp.bfloat16)), TypeError, "dense: norms has dtype bfloat16",
    ),
    "norms: no array": (lambda: jaxbp.conv(X, K, norms=0.0), TypeError, "conv: norms must be an array"),
    "norms: shape": (
        lambda: jaxbp.conv(X, K, norms=jnp.zeros(3)), ValueError,
        "conv: norms has shape (3,), which is not how the batch axes (2, 3) of the input begin",
    ),
    "norms: positions": (
        lambda: jaxbp.conv(X, K, norms=jnp.zeros((2, 3, 5))), ValueError, "conv: norms has shape (2, 3, 5), which",
    ),
    "norms: batch groups": (
        lambda: jaxbp.conv_general_dilated(NCHW, OIHW, (1, 1), "SAME", batch_group_count=2, norms=jnp.zeros(2)),
        ValueError, "conv_general_dilated: norms= needs examples of their own, but batch_group_count=2",
    ),
    "sqnorms: delta": (
        lambda: jaxbp.conv_kernel_grad_sqnorms(X, X, K.shape), ValueError,
        "conv_kernel_grad_sqnorms: delta has shape (2, 3, 5, 2), but the other arguments call for (2, 3, 5, 4)",
    ),
    "per example: dtypes": (
        lambda: jaxbp.conv_kernel_grad_per_example(X, X.astype(jnp.bfloat16), K.shape), TypeError,
        "conv_kernel_grad_per_example: x has dtype float32, but delta has dtype bfloat16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_error(name):
    call, exception, message = ERRORS[name]
    with pytest.raises(exception, match=re.escape(message)):
        call()
