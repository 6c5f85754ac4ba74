"""Arrays of 64 bits outside of the block that enabled them: lax keeps their width, and so does every op.

The truth is the automatic twin inside such a block.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbp
from cases import OPS, Op, _pool


def _conv(x, kernel, **keywords):
    return Op(lambda ops, x, kernel: ops.conv(x, kernel, **keywords), (x, kernel))


# Of every algorithm that evaluates a sum of a convolution on a CPU.
CONVS = {
    "1x1": _conv((2, 4, 4, 4), (1, 1, 4, 5)),
    "1x1, strided": _conv((2, 5, 5, 4), (1, 1, 4, 5), strides=2),
    "patches": _conv((1, 8, 8, 3), (4, 4, 3, 5), strides=4, padding="VALID"),
    "depthwise": _conv((2, 6, 6, 4), (3, 3, 1, 4), feature_group_count=4),
    "depthwise, a large window": _conv((2, 8, 6, 2), (9, 8, 1, 4), feature_group_count=2),
    "groups": _conv((2, 6, 6, 16), (3, 3, 8, 16), feature_group_count=2),
    "groups of few channels": _conv((2, 6, 6, 8), (3, 3, 2, 8), feature_group_count=4),
    "strided": _conv((2, 9, 9, 8), (3, 3, 8, 8), strides=2),
    "taps apart": _conv((2, 9, 9, 8), (3, 3, 8, 8), kernel_dilation=2),
    "pixels apart": _conv((2, 5, 5, 8), (4, 4, 8, 8), input_dilation=2, padding=2),
    "tiles": _conv((8, 8, 8, 64), (3, 3, 64, 64)),
    "tiles in phases": _conv((2, 16, 16, 128), (3, 3, 128, 128), kernel_dilation=2),
    "few channels": _conv((2, 32, 32, 3), (3, 3, 3, 16)),
    "few features": _conv((2, 8, 8, 16), (3, 3, 16, 2)),
    "one axis": _conv((2, 40, 4), (5, 4, 6)),
    "one axis, strided": _conv((2, 40, 16), (5, 16, 20), strides=2),
    "three axes": _conv((1, 4, 5, 6, 4), (3, 3, 3, 4, 4)),
    "a window larger than its input": _conv((1, 5, 5, 8), (9, 9, 8, 8)),
    "a large window": _conv((8, 32, 24, 2), (9, 9, 2, 4)),
    "much padding": _conv((2, 4, 4, 64), (3, 3, 64, 64), padding=4),
    "negative padding": _conv((2, 7, 8, 2), (3, 2, 2, 2), padding=((-1, 2), (-2, -1))),
    "nothing": _conv((0, 5, 4, 2), (3, 3, 2, 3)),
}

POOLS = {
    "max, many pixels": Op(_pool("max_pool", (5, 5), (1, 1), "SAME"), ((1, 9, 9, 2),), like="distinct"),
    "max, ceil_mode": Op(_pool("max_pool", (3, 2), (2, 2), 1, ceil_mode=True), ((1, 6, 7, 2),), like="distinct"),
    "average, many pixels": Op(_pool("avg_pool", (6, 6), (1, 1), "SAME", False), ((1, 9, 9, 2),)),
    "average, global": Op(_pool("avg_pool", (4, 4)), ((2, 4, 4, 2),)),
    "sum, one axis": Op(_pool("sum_pool", (3,), (2,), "SAME"), ((2, 9, 2),)),
    "sum, an axis of three": Op(_pool("sum_pool", (2, 2, 3), (2, 1, 2), "SAME"), ((1, 4, 3, 5, 1),)),
    "largest magnitude": Op(_pool("lp_pool", (2, 2), (2, 2), p=float("inf")), ((2, 4, 4, 2),), like="distinct"),
    "adaptive average, long windows": Op(_pool("adaptive_avg_pool", (2, 3)), ((1, 40, 7, 2),)),
    "adaptive maximum, long windows": Op(_pool("adaptive_max_pool", (2, 3)), ((1, 41, 7, 2),), like="distinct"),
    "average of nothing": Op(_pool("avg_pool", (2, 2)), ((0, 4, 4, 2),)),
}

LAYOUTS = {
    "NCHW": Op(lambda ops, x, k: ops.conv_general_dilated(x, k, (1, 1), "SAME"), ((2, 4, 6, 6), (5, 4, 3, 3))),
    "groups of the batch": Op(
        lambda ops, x, k: ops.conv_general_dilated(x, k, (1, 1), "SAME", batch_group_count=2),
        ((4, 2, 6, 6), (6, 2, 3, 3)),
    ),
    "transposed, one axis": Op(lambda ops, x, k: ops.conv_transpose(x, k, (2,), "VALID"), ((2, 8, 4), (4, 4, 3))),
}

CASES = OPS | CONVS | POOLS | LAYOUTS


def of_64_bits(op: Op) -> tuple[jax.Array, ...]:
    """The op's data, made in a block that enables 64 bits."""
    with jax.enable_x64(True):
        return op.arrays(np.float64)


def value_and_gradients(op: Op, ops, *arrays):
    """What the op returns, and its gradients with the value itself pulled back."""

    def of(*some):
        whole = list(arrays)
        for i, a in zip(op.differentiable, some, strict=True):
            whole[i] = a
        return op.call(ops, *whole)

    value, pullback = jax.vjp(of, *(arrays[i] for i in op.differentiable))
    return value, pullback(value)


def mapped(op: Op, ops, *arrays):
    """The same, mapped over the first argument twice, once in a loop and once at once."""
    x, *rest = arrays
    xs = lax.concatenate([lax.expand_dims(x, (0,)), lax.expand_dims(lax.neg(x), (0,))], 0)
    return (
        jax.vmap(lambda x: value_and_gradients(op, ops, x, *rest))(xs),
        lax.scan(lambda _, x: (None, value_and_gradients(op, ops, x, *rest)), None, xs)[1],
    )


def assert_like_twin(got, op: Op, function, arrays) -> None:
    """The twin's dtypes, and its numbers at the accuracy of 64 bits."""
    with jax.enable_x64(True):
        expected = jax.jit(functools.partial(function, op, jaxbp.automatic))(*arrays)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype == np.float64
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-12, atol=1e-12 * np.abs(b).max(initial=1))


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", CASES)
def test_jitted(name):
    op = CASES[name]
    arrays = of_64_bits(op)
    got = jax.jit(functools.partial(value_and_gradients, op, jaxbp))(*arrays)
    assert_like_twin(got, op, value_and_gradients, arrays)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [*OPS, "tiles", "largest magnitude", "adaptive maximum, long windows"])
def test_eager(name):
    op = CASES[name]
    arrays = of_64_bits(op)
    assert_like_twin(value_and_gradients(op, jaxbp, *arrays), op, value_and_gradients, arrays)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [*OPS, "tiles", "three axes"])
def test_mapped(name):
    op = CASES[name]
    arrays = of_64_bits(op)
    assert_like_twin(jax.jit(functools.partial(mapped, op, jaxbp))(*arrays), op, mapped, arrays)


def wrapped(op: Op, ops, *arrays):
    """The gradients of a checkpointed, a jitted and a checkpointed jitted op, and second derivatives."""

    def loss(call, *some):
        whole = list(arrays)
        for i, a in zip(op.differentiable, some, strict=True):
            whole[i] = a
        return lax.reduce_sum(lax.integer_pow(call(*whole), 3), range(call(*whole).ndim))

    def gradients(call, *some):
        return jax.grad(functools.partial(loss, call), range(len(some)))(*some)

    call = functools.partial(op.call, ops)
    some = tuple(arrays[i] for i in op.differentiable)
    calls = (jax.checkpoint(call), jax.jit(call), jax.checkpoint(jax.jit(call)))
    return [gradients(each, *some) for each in calls], jax.jvp(functools.partial(gradients, call), some, some)[1]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", OPS)
def test_passes_that_run_later(name):
    op = CASES[name]
    arrays = of_64_bits(op)
    assert_like_twin(jax.jit(functools.partial(wrapped, op, jaxbp))(*arrays), op, wrapped, arrays)


X, K, Y = ((2, 5, 4, 2), (3, 3, 2, 3), (2, 5, 4, 3))
MAPS = {
    "conv_input_grad": (lambda y, k: jaxbp.conv_input_grad(y, k, X), (Y, K)),
    "conv_kernel_grad": (lambda x, y: jaxbp.conv_kernel_grad(x, y, K), (X, Y)),
    "conv_bias_grad": (jaxbp.conv_bias_grad, (Y,)),
    "rot180": (jaxbp.rot180, (K,)),
    "dilate": (lambda x: jaxbp.dilate(x, (2, 3)), (X,)),
    "upsample": (lambda x: jaxbp.upsample(x, (2, 3)), (X,)),
    "upsample, winners": (lambda x: jaxbp.upsample(x, (2, 3), winners=np.ones(X, np.int32)), (X,)),
    "avg_pool_grad": (lambda y: jaxbp.avg_pool_grad(y, (2, 6, 5, 3), (2, 2), count_include_pad=False), (Y,)),
    "max_pool_grad": (lambda y: jaxbp.max_pool_grad(y, np.ones(Y, np.int32), (2, 6, 5, 3), (2, 2)), (Y,)),
    "conv with a dtype": (lambda x, k: jaxbp.conv(x, k, preferred_element_type=x.dtype), (X, K)),
    "soft labels": (lambda x, t: jaxbp.softmax_cross_entropy(x, t), ((4, 3), (4, 3))),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"])
def test_gradient_maps(name, wrap):
    function, shapes = MAPS[name]
    arrays = of_64_bits(Op(function, shapes))
    if wrap is jax.vmap:
        arrays = tuple(lax.expand_dims(a, (0,)) for a in arrays)
    with jax.enable_x64(True):
        expected = wrap(function)(*arrays)
    got = wrap(function)(*arrays)
    assert got.dtype == expected.dtype == np.float64
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["complex128", "int64", "uint64"])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_other_dtypes_of_64_bits(dtype, wrap):
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(np.arange(np.prod(s)).reshape(s) % 7 + 2**40, dtype) for s in (X, K))
    z, total = wrap(jaxbp.conv)(x, kernel), wrap(lambda x: jaxbp.sum_pool(x, (2, 2)))(x)
    with jax.enable_x64(True):
        expected = jaxbp.automatic.conv(x, kernel), jaxbp.automatic.sum_pool(x, (2, 2))
    for a, b in zip((z, total), expected, strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_labels_of_64_bits():
    """Beside logits of 32 they change nothing but the class that they name."""
    with jax.enable_x64(True):
        labels = jnp.asarray([0, 2, 1])
    logits = jnp.arange(9.0).reshape(3, 3)
    losses, pullback = jax.vjp(lambda z: jaxbp.softmax_cross_entropy(z, labels), logits)
    expected, twin = jax.vjp(lambda z: jaxbp.automatic.softmax_cross_entropy(z, np.array([0, 2, 1])), logits)
    assert labels.dtype == "int64" and losses.dtype == "float32"
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_allclose(pullback(losses)[0], twin(losses)[0], rtol=1e-6)


def test_numpy_arrays_are_cut_as_everywhere():
    """JAX itself cuts NumPy's numbers to 32 bits where 64 are not enabled."""
    assert jaxbp.conv(np.ones((1, 4, 4, 2)), np.ones((3, 3, 2, 2))).dtype == jnp.float32


@pytest.mark.exhaustive
def test_comparison():
    x, kernel = of_64_bits(Op(jaxbp.conv, (X, K)))
    report = jaxbp.compare(jaxbp.conv, x, kernel, automatic=jaxbp.automatic.conv, time=False)
    assert report.ok and "float64" in str(report)
