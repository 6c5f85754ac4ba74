"""Rules as values: known rules of the literature against their formulas in NumPy, and what surrounds a rule."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxbp
import loops
from cases import CONVS, assert_equal, assert_exact, integers, normal, pull_back

# The gradient itself, as a rule.
GRADIENT = lambda m, delta, z, x, k: (m.input_grad(delta, k), m.kernel_grad(x, delta))  # noqa: E731
ALIGNMENT = lambda m, delta, z, x, k, fixed: (m.input_grad(delta, fixed), m.kernel_grad(x, delta), None)  # noqa: E731
GEOMETRIES = {
    "strided": ((2, 6, 5, 4), (3, 2, 4, 6), dict(strides=(2, 1))),
    "groups": ((2, 6, 5, 4), (3, 3, 2, 6), dict(strides=2, feature_group_count=2)),
    "depthwise": ((2, 5, 4, 3), (3, 3, 1, 3), dict(feature_group_count=3, padding="VALID")),
}


SOME = [
    name if name in ("defaults", "groups, strided", "both dilations, negative padding", "3-D", "two batch axes", "0-D", "no batch axis", "empty batch")
    else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in CONVS
]  # fmt: skip


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", SOME)
def test_the_gradient_as_a_rule_is_convs_own(name):
    case = CONVS[name]
    x, kernel, bias = integers(0, case.x), integers(1, case.kernel), integers(2, case.kernel[-1:])
    ours = pull_back(lambda x, k, b: jaxbp.conv_with(GRADIENT)(x, k, bias=b, **case.arguments), x, kernel, bias)
    assert_equal(ours, pull_back(lambda x, k, b: jaxbp.conv(x, k, b, **case.arguments), x, kernel, bias))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("layout", [("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NCHW"), ("CHWN", "IHWO", "HWNC")])
@pytest.mark.parametrize("groups", [dict(), dict(feature_group_count=2), dict(batch_group_count=2)], ids=str)
def test_in_the_callers_layout(layout, groups):
    channels = 4 // groups.get("feature_group_count", 1)
    lhs, rhs = (
        jnp.moveaxis(integers(i, shape), range(4), [word.index(c) for c in letters])
        for i, (word, letters, shape) in enumerate(
            [(layout[0], "NHWC", (2, 5, 4, 4)), (layout[1], "HWIO", (3, 2, channels, 6))]
        )
    )
    arguments = ((1, 2), ((1, 1), (0, 1)), (1, 1), (2, 1), layout)
    ours = jaxbp.conv_general_dilated_with(GRADIENT)
    assert_equal(
        pull_back(lambda x, k: ours(x, k, *arguments, **groups), lhs, rhs),
        pull_back(lambda x, k: jaxbp.conv_general_dilated(x, k, *arguments, **groups), lhs, rhs),
    )


def test_dense_and_relu():
    x, kernel, bias = integers(0, (2, 3, 4)), integers(1, (4, 5)), integers(2, (5,))
    ours = pull_back(lambda x, k, b: jaxbp.dense_with(GRADIENT)(x, k, bias=b), x, kernel, bias)
    assert_equal(ours, pull_back(jaxbp.dense, x, kernel, bias))
    relu = jaxbp.relu_with(lambda delta, z, x: jnp.where(x > 0, delta, 0))
    assert_equal(pull_back(relu, x), pull_back(jaxbp.relu, x))


# ----------------------------------------------------------------------------------- rules of the literature, in NumPy


@pytest.mark.parametrize("name", GEOMETRIES)
def test_feedback_alignment(name):
    """BioTorch: dx by the fixed weights, dW by the input; not the gradient, but its own definition."""
    x_shape, kernel_shape, arguments = GEOMETRIES[name]
    x, kernel, fixed = integers(0, x_shape), integers(1, kernel_shape), integers(2, kernel_shape)
    layer = jaxbp.conv_with(ALIGNMENT)
    z, (dx, dkernel, dfixed) = pull_back(lambda *a: layer(*a, **arguments), x, kernel, fixed)
    delta = np.asarray(integers(99, z.shape))
    assert_exact(dx, loops.conv(x, fixed, delta=delta, **arguments)[0])
    true_dx, true_dkernel, _ = loops.conv(x, kernel, delta=delta, **arguments)
    assert_exact(dkernel, true_dkernel)
    assert not np.any(dfixed)
    assert np.abs(true_dx - np.asarray(dx)).max() > 1


@pytest.mark.parametrize("name", GEOMETRIES)
def test_sign_symmetry(name):
    """BioTorch's uSF: dx by the signs of the weights."""
    x_shape, kernel_shape, arguments = GEOMETRIES[name]
    x, kernel = integers(0, x_shape), integers(1, kernel_shape)
    layer = jaxbp.conv_with(lambda m, d, z, x, k: (m.input_grad(d, jnp.sign(k)), m.kernel_grad(x, d)))
    z, (dx, _) = pull_back(lambda *a: layer(*a, **arguments), x, kernel)
    assert_exact(dx, loops.conv(x, np.sign(kernel), delta=np.asarray(integers(99, z.shape)), **arguments)[0])


def stable(z, epsilon=1e-6, where=jnp.where):
    """z, away from zero."""
    return z + epsilon * where(z < 0, -1.0, 1.0).astype(z.dtype)


def lrp_epsilon(m, relevance, z, x, k):
    """R_i = x_i sum_j w_ij R_j / z_j."""
    return x * m.input_grad(relevance / stable(z), k), None


def lrp_z_plus(m, relevance, z, x, k):
    """The same over positive contributions alone."""
    parts = [(jnp.maximum(x, 0), jnp.maximum(k, 0)), (jnp.minimum(x, 0), jnp.minimum(k, 0))]
    share = relevance / stable(sum(m.forward(*part) for part in parts))
    return sum(a * m.input_grad(share, w) for a, w in parts), None


def contributions(x, kernel, relevance, arguments, positive):
    """Relevance by the definition, one product x w after the other, in loops over outputs."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    z = loops.conv(x, kernel, **arguments)
    result = np.zeros_like(x)
    for place in np.ndindex(*z.shape):
        one = np.zeros_like(z)
        one[place] = 1
        # What meets in this output: each input with its weight.
        weights = loops.conv(x, kernel, delta=one, **arguments)[0]
        products = x * weights
        products = np.maximum(products, 0) if positive else products
        total = products.sum()
        result += products / stable(np.asarray(total), where=np.where) * relevance[place]
    return result


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("rule", [lrp_epsilon, lrp_z_plus])
def test_relevance(name, rule):
    """zennit's Epsilon and ZPlus, and the sum of relevance is conserved."""
    x_shape, kernel_shape, arguments = GEOMETRIES[name]
    x, kernel = normal(0, (1, *x_shape[1:])), normal(1, kernel_shape)
    z, pull = jax.vjp(lambda x: jaxbp.conv_with(rule)(x, kernel, **arguments), x)
    relevance = normal(2, z.shape)
    (ours,) = pull(relevance)
    expected = contributions(x, kernel, np.asarray(relevance, np.float64), arguments, rule is lrp_z_plus)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-3 * scale if rule is lrp_epsilon else 1e-4 * scale)
    np.testing.assert_allclose(ours.sum(), relevance.sum(), rtol=0, atol=1e-3 * np.abs(ours).sum())


def test_guided_backpropagation():
    guided = jaxbp.relu_with(lambda delta, z, x: jnp.where((x > 0) & (delta > 0), delta, 0))
    _, pull = jax.vjp(guided, jnp.array([-1.0, 0.0, 2.0, 3.0]))
    np.testing.assert_array_equal(pull(jnp.array([5.0, 5.0, 5.0, -5.0]))[0], [0, 0, 5, 0])


# --------------------------------------------------------------------------------------------- dtypes of the maps


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["defaults", "groups, strided", "1-D", "input dilation, strided", "depthwise"])
def test_bfloat16_operands_float32_gradient(name):
    """The sums of the bfloat16 numbers in float32: exactly those of the same numbers as float32."""
    case = CONVS[name]
    x, kernel = normal(0, case.x, jnp.bfloat16), normal(1, case.kernel, jnp.bfloat16)
    delta = normal(2, jaxbp.conv(x, kernel, **case.arguments).shape, jnp.bfloat16)
    wide = [a.astype(jnp.float32) for a in (x, kernel, delta)]
    keywords = dict(case.arguments, preferred_element_type=jnp.float32)
    dx = jaxbp.conv_input_grad(delta, kernel, case.x, **keywords)
    dkernel = jaxbp.conv_kernel_grad(x, delta, case.kernel, **keywords)
    assert_equal(dx, jaxbp.conv_input_grad(wide[2], wide[1], case.x, **case.arguments))
    assert_equal(dkernel, jaxbp.conv_kernel_grad(wide[0], wide[2], case.kernel, **case.arguments))

    def rule(m, delta, z, x, k):
        dk = m.kernel_grad(x, delta, preferred_element_type=jnp.float32)
        assert dk.dtype == jnp.float32
        return m.input_grad(delta, k), dk.astype(k.dtype)

    _, pull = jax.vjp(lambda x, k: jaxbp.conv_with(rule)(x, k, **case.arguments), x, kernel)
    assert_equal(pull(delta)[1], dkernel.astype(jnp.bfloat16))


def test_a_wider_output():
    """delta is then wider than the operands, and gradients are as conv's own."""
    x, kernel = normal(0, (2, 5, 4), jnp.bfloat16), normal(1, (3, 4, 2), jnp.bfloat16)
    ours = pull_back(lambda x, k: jaxbp.conv_with(GRADIENT)(x, k, preferred_element_type=jnp.float32), x, kernel)
    assert_equal(ours, pull_back(lambda x, k: jaxbp.conv(x, k, preferred_element_type=jnp.float32), x, kernel))


# ------------------------------------------------------------------------------------------------- transformations


def alignment_data():
    return normal(0, (8, 5, 4, 2)), normal(1, (3, 3, 2, 3)), normal(2, (3, 3, 2, 3)), normal(3, (3,))


def alignment_loss(x, kernel, fixed, bias, rule=ALIGNMENT):
    return jnp.sum(jnp.sin(jaxbp.conv_with(rule)(x, kernel, fixed, bias=bias, strides=2)))


def test_under_jit_vmap_scan_and_checkpoint():
    x, *parameters = alignment_data()
    expected = jax.grad(alignment_loss, (1, 3))(x, *parameters)

    def close(actual):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), actual, expected)

    close(jax.jit(jax.grad(alignment_loss, (1, 3)))(x, *parameters))
    close(jax.grad(jax.checkpoint(alignment_loss), (1, 3))(x, *parameters))
    mapped = jax.vmap(alignment_loss, (0, None, None, None))
    close(jax.grad(lambda *a: mapped(*a).sum(), (1, 3))(x, *parameters))
    close(jax.grad(lambda *a: jax.jit(mapped)(*a).sum(), (1, 3))(x, *parameters))
    each = jax.vmap(jax.grad(alignment_loss, (1, 3)), (0, None, None, None))(x, *parameters)
    close(jax.tree.map(lambda a: a.sum(0), each))

    def scanned(x, *parameters):
        return jax.lax.scan(lambda c, one: (c + alignment_loss(one, *parameters), None), 0.0, x)[0]

    close(jax.grad(scanned, (1, 3))(x, *parameters))


def test_under_vmap_the_rule_sees_one_example():
    """A rule that scales by the largest delta scales each example by its own."""
    layer = jaxbp.conv_with(lambda m, d, z, x, k: (m.input_grad(d / jnp.max(jnp.abs(d)), k), None))
    x, kernel = normal(0, (3, 6, 2)), normal(1, (3, 2, 2))
    gradient = jax.grad(lambda x: jnp.sum(layer(x, kernel) ** 2))
    mapped = jax.vmap(gradient)(x)
    for one, example in zip(mapped, x, strict=True):
        np.testing.assert_allclose(one, gradient(example), rtol=0, atol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_under_shard_map(check_vma):
    """Parameters that the devices share get the sum of all devices' gradients; without a check, a psum is needed."""
    x, *parameters = alignment_data()
    expected = jax.grad(alignment_loss, (0, 1, 3))(x, *parameters)
    mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(x, *parameters):
        dx, dkernel, dbias = jax.grad(alignment_loss, (0, 1, 3))(x, *parameters)
        return (dx, dkernel, dbias) if check_vma else (dx, jax.lax.psum(dkernel, "i"), jax.lax.psum(dbias, "i"))

    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(P("i"), P(), P(), P()), out_specs=(P("i"), P(), P()), check_vma=check_vma
    )
    for one, right in zip(jax.jit(sharded)(x, *parameters), expected, strict=True):
        np.testing.assert_allclose(one, right, rtol=0, atol=1e-4)


def test_under_shard_map_a_constant_gradient_is_added_up():
    layer = jaxbp.conv_with(lambda m, d, z, x, k: (None, jnp.ones(k.shape)))
    x, kernel = normal(0, (8, 5, 2)), normal(1, (3, 2, 3))
    mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    gradient = jax.grad(lambda k, x: layer(x, k).sum())
    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("i")), out_specs=P())
    np.testing.assert_array_equal(sharded(kernel, x), np.full(kernel.shape, 8.0))


def test_on_an_explicit_mesh():
    x, *parameters = alignment_data()
    expected = jax.grad(alignment_loss, (1, 3))(x, *parameters)
    mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(x, jax.NamedSharding(mesh, P("i")))
        ours = jax.jit(jax.grad(alignment_loss, (1, 3)))(x, *parameters)
    for one, right in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, right, rtol=0, atol=1e-4)


def test_second_derivatives():
    x, kernel = normal(0, (2, 5, 2)), normal(1, (3, 2, 3))
    loss = lambda op: lambda k: jnp.sum(jnp.sin(op(x, k)))  # noqa: E731
    ours = jax.hessian(loss(jaxbp.conv_with(GRADIENT)))(kernel)
    np.testing.assert_allclose(ours, jax.hessian(loss(jaxbp.automatic.conv))(kernel), rtol=0, atol=1e-4)


def test_in_flax():
    linen = pytest.importorskip("flax.linen")
    x, fixed = normal(0, (2, 6, 6, 3)), normal(1, (3, 3, 3, 4))
    aligned = functools.partial(jaxbp.conv_general_dilated_with(ALIGNMENT), extra=(fixed,))
    theirs, ours = (linen.Conv(4, (3, 3), conv_general_dilated=op) for op in (None, aligned))
    params = ours.init(jax.random.key(0), x)
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=1e-5)
    dx = jax.grad(lambda x: jnp.sum(ours.apply(params, x)))(x)
    delta = jnp.ones((2, 6, 6, 4))
    np.testing.assert_allclose(dx, jaxbp.conv_input_grad(delta, fixed, x.shape), atol=1e-4)


# --------------------------------------------------------------------------------------------------------- errors

X, K = jnp.ones((2, 5, 2)), jnp.ones((3, 2, 3))


def pulled(rule, op=jaxbp.conv_with, arrays=(X, K)):
    return lambda: jax.grad(lambda x: jnp.sum(op(rule)(x, *arrays[1:])))(arrays[0])


ERRORS = {
    "no function": (lambda: jaxbp.conv_with(3), TypeError, "conv_with: rule=3 must be a function"),
    "no function for relu": (lambda: jaxbp.relu_with(None), TypeError, "relu_with: rule=None must be a function of (delta, z, x)"),
    "not a tuple": (pulled(lambda m, d, z, x, k: d), TypeError, "conv_with: the rule must return a tuple of 2 gradients, for x, kernel"),
    "too many": (pulled(lambda m, d, z, x, k: (None,) * 3), TypeError, "but it returned 3 of them"),
    "shape": (pulled(lambda m, d, z, x, k: (d, None)), ValueError, "conv_with: the rule's gradient for x has shape (2, 5, 3), but x has (2, 5, 2)"),
    "dtype": (
        pulled(lambda m, d, z, x, k: (x.astype(jnp.bfloat16), None)), TypeError,
        "conv_with: the rule's gradient for x has dtype bfloat16, but x has float32; return gradient.astype(x.dtype)",
    ),
    "no array": (pulled(lambda m, d, z, x, k: (0.0, None)), TypeError, "conv_with: the rule's gradient for x must be an array"),
    "integers": (
        pulled(lambda m, d, z, x, k, i: (None, None, i), arrays=(X, K, jnp.arange(3))), TypeError,
        "conv_with: extra array 1 has dtype int32, which has no gradient",
    ),
    "extra is a number": (lambda: jaxbp.conv_with(GRADIENT)(X, K, 1.0), TypeError, "conv_with: extra array 1 must be an array"),
    "a map's kernel": (
        pulled(lambda m, d, z, x, k: (m.input_grad(d, k[:2]), None)), ValueError,
        "conv_input_grad: delta has shape (2, 5, 3), but the other arguments call for (2, 6, 3)",
    ),
    "a map's kernel without channels": (
        pulled(lambda m, d, z, x, k: (m.input_grad(d, k[0, 0]), None)), ValueError, "conv_input_grad: kernel has shape (3,)",
    ),
    "channels": (lambda: jaxbp.conv_with(GRADIENT)(X, K[:, :1]), ValueError, "conv_with: x has 2 channels"),
    "dense: no matrix": (lambda: jaxbp.dense_with(GRADIENT)(X, K), ValueError, "dense_with: kernel has shape (3, 2, 3)"),
    "dense: shapes": (lambda: jaxbp.dense_with(GRADIENT)(X, K[0].T), ValueError, "dense_with: x has 2 channels"),
    "lax: window too large": (
        lambda: jaxbp.conv_general_dilated_with(GRADIENT)(X, jnp.ones((3, 5, 9)), (1,), "VALID"), ValueError,
        "conv_general_dilated_with: the window of rhs of shape (3, 5, 9) does not fit",
    ),
    "relu: complex": (lambda: jaxbp.relu_with(lambda *a: None)(X.astype(jnp.complex64)), TypeError, "relu_with: x has dtype complex64"),
    "narrower": (
        lambda: jaxbp.conv_input_grad(X[..., :1], K[..., :1], X.shape, preferred_element_type=jnp.bfloat16), TypeError,
        "narrower than the original type",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_error(name):
    call, exception, message = ERRORS[name]
    with pytest.raises(exception, match=re.escape(message)):
        call()
