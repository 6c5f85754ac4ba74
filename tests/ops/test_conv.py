"""`conv` and its gradient maps: against loops (exact), the automatic twin, and the geometry of every case."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxbp
import loops
from cases import (
    CONVS,
    Conv,
    assert_equal,
    assert_exact,
    assert_sums_close,
    delta_of,
    integers,
    lax_is_right,
    normal,
    pull_back,
)

each_case = pytest.mark.parametrize("case", CONVS.values(), ids=CONVS)


def data(case: Conv, dtype=np.float32, numbers=integers):
    """x, kernel and bias of a case."""
    return numbers(1, case.x, dtype), numbers(2, case.kernel, dtype), numbers(3, case.kernel[-1:], dtype)


def run_rule(ops, case: Conv, *primals: jax.Array):
    """The value and the three gradients of one convolution."""
    return pull_back(lambda *primals: ops.conv(*primals, **case.arguments), *primals)


def run_gradient_maps(case: Conv, x: jax.Array, kernel: jax.Array, delta: jax.Array):
    """The three gradients by the plain functions."""
    return (
        jaxbp.conv_input_grad(delta, kernel, x.shape, **case.arguments),
        jaxbp.conv_kernel_grad(x, delta, kernel.shape, **case.arguments),
        jaxbp.conv_bias_grad(delta),
    )


def check_against_loops(case: Conv, wrap=lambda function: function) -> None:
    """The value, the three gradients, and those of the gradient maps equal to the loops' bit for bit."""
    primals = data(case)

    def run(*primals):
        z, gradients = run_rule(jaxbp, case, *primals)
        return z, gradients, run_gradient_maps(case, *primals[:2], delta_of(z))

    z, gradients, by_maps = wrap(run)(*primals)
    assert_exact(z, loops.conv(*primals, **case.arguments))
    expected = loops.conv(*primals, delta=delta_of(z), **case.arguments)
    for gradient, by_map, e in zip(gradients, by_maps, expected, strict=True):
        assert_exact(gradient, e)
        assert_exact(by_map, e)


def check_against_twin(case: Conv, wrap=lambda function: function) -> None:
    """The value and all three gradients equal to those of JAX's automatic rule."""
    assert_equal(
        *wrap(lambda *primals: [run_rule(ops, case, *primals) for ops in (jaxbp, jaxbp.automatic)])(*data(case))
    )


@pytest.mark.sampled(18)
@each_case
def test_equals_loops(case):
    check_against_loops(case, jax.jit)


@pytest.mark.parametrize("name", ["defaults", "input dilation, strided", "depthwise with multiplier", "3-D"])
def test_equals_loops_eagerly(name):
    check_against_loops(CONVS[name])


@pytest.mark.sampled(14)
@pytest.mark.parametrize("name", [name for name, case in CONVS.items() if lax_is_right(*case)])
def test_equals_twin(name):
    check_against_twin(CONVS[name], jax.jit)


@pytest.mark.parametrize("name", ["defaults", "input dilation, strided", "depthwise with multiplier", "3-D"])
def test_equals_twin_eagerly(name):
    check_against_twin(CONVS[name])


@pytest.mark.sampled(8)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("name", ["defaults", "kernel dilation, strided", "groups"])
def test_dtypes(name, dtype):
    """Results keep the dtype, and the error grows with the length of the sum only."""
    case = CONVS[name]
    with jax.enable_x64(True):
        dtype = jnp.dtype(dtype)
        numbers = integers if jnp.issubdtype(dtype, jnp.complexfloating) else normal
        primals = data(case, dtype, numbers)
        run = jax.jit(lambda *primals: pull_back(lambda *p: jaxbp.conv(*p, **case.arguments), *primals))
        z, gradients = run(*primals)
        wide = [np.asarray(p, np.complex128 if numbers is integers else np.float64) for p in primals]
        assert z.dtype == dtype and all(g.dtype == dtype for g in gradients)
        terms = math.prod(case.kernel[:-1]) + 1
        assert_sums_close(z, loops.conv(*wide, **case.arguments), terms, 9)
        expected = loops.conv(*wide, delta=np.asarray(delta_of(z), wide[0].dtype), **case.arguments)
        lengths = (math.prod(case.kernel[:-2]) * case.kernel[-1], z.size // z.shape[-1], z.size // z.shape[-1])
        for gradient, e, length in zip(gradients, expected, lengths, strict=True):
            assert_sums_close(gradient, e, length, 27)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_low_precision_gradients_accumulate_in_float32(dtype):
    """4096 ones, added one by one in the dtype itself, stop at 2048 (float16) or 256 (bfloat16)."""
    x, kernel, bias = jnp.ones((16, 16, 16, 1), dtype), jnp.ones((1, 1, 1, 1), dtype), jnp.zeros(1, dtype)
    z, pullback = jax.vjp(jaxbp.conv, x, kernel, bias)
    _, dkernel, dbias = pullback(jnp.ones_like(z))
    assert dkernel.item() == 4096 and dbias.item() == 4096
    assert dkernel.dtype == dbias.dtype == dtype
    assert jaxbp.conv_kernel_grad(x, z, (1, 1, 1, 1)).item() == 4096
    assert jaxbp.conv_bias_grad(z).item() == 4096


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint8"])
def test_integers_forward(dtype):
    x, kernel = integers(1, (2, 5, 4, 2)) % 4, integers(2, (3, 2, 2, 3)) % 3
    z = jaxbp.conv(x.astype(dtype), kernel.astype(dtype), strides=2)
    assert z.dtype == dtype
    np.testing.assert_array_equal(z, loops.conv(x, kernel, strides=2))


PREFERRED = [("bfloat16", "float32"), ("float16", "float32"), ("int8", "int32")]
PRECISIONS = ["highest", "float32", jax.lax.Precision.HIGH, ("default", "highest"), ["highest", "highest"], None]


@pytest.mark.parametrize(("dtype", "preferred"), PREFERRED)
def test_preferred_element_type(dtype, preferred):
    case = CONVS["defaults"]
    primals = data(case, jnp.dtype(dtype))
    z = jaxbp.conv(*primals, preferred_element_type=preferred)
    assert z.dtype == preferred
    np.testing.assert_array_equal(z, loops.conv(*(np.asarray(p, np.float64) for p in primals)))
    if jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        _, gradients = pull_back(lambda *p: jaxbp.conv(*p, preferred_element_type=jnp.float32), *primals)
        wide = [np.asarray(p, np.float64) for p in primals]
        for gradient, e in zip(gradients, loops.conv(*wide, delta=delta_of(z)), strict=True):
            assert gradient.dtype == dtype
            assert_exact(gradient, e)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision_reaches_all_three_sums(precision):
    x, kernel = normal(1, (2, 9, 9, 8)), normal(2, (3, 3, 8, 16))
    gradients = jax.grad(lambda x, k: jaxbp.conv(x, k, precision=precision).sum(), argnums=(0, 1))
    program = jax.jit(gradients).lower(x, kernel).as_text()
    sums = [line for line in program.splitlines() if "stablehlo.convolution" in line or "stablehlo.dot" in line]
    one = precision[0] if isinstance(precision, tuple | list) else precision
    expected = {None: "DEFAULT", "default": "DEFAULT", "highest": "HIGHEST", "float32": "HIGHEST"}.get(one, "HIGH")
    assert len(sums) >= 2
    assert all(re.search(rf"precision\w*( = \[|.*<precision ){expected}\b", line) for line in sums), sums


def test_bias_may_be_none():
    x, kernel, bias = data(CONVS["defaults"])
    assert_equal(jaxbp.conv(x, kernel), jaxbp.conv(x, kernel, None))
    assert_equal(jaxbp.conv(x, kernel, bias * 0), jaxbp.conv(x, kernel))


def test_finite_differences_in_float64():
    case = CONVS["depthwise with multiplier"]
    with jax.enable_x64(True):
        primals = data(case, np.float64, normal)
        check_grads(lambda *p: jaxbp.conv(*p, **case.arguments), primals, order=2, modes=["rev"], rtol=1e-6, atol=1e-6)


def test_nan_and_infinity_reach_their_own_windows_only():
    x = jnp.zeros((6, 1)).at[1, 0].set(jnp.nan).at[4, 0].set(jnp.inf)
    z, pullback = jax.vjp(lambda x: jaxbp.conv(x, jnp.ones((2, 1, 1)), padding="VALID"), x)
    np.testing.assert_array_equal(z[:, 0], [jnp.nan, jnp.nan, 0, jnp.inf, jnp.inf])
    np.testing.assert_array_equal(pullback(jnp.ones_like(z))[0][:, 0], [1, 2, 2, 2, 2, 1])


def test_rot180_and_dilate():
    kernel = integers(1, (2, 3, 2, 3))
    np.testing.assert_array_equal(jaxbp.rot180(kernel), np.asarray(kernel)[::-1, ::-1])
    np.testing.assert_array_equal(jaxbp.rot180(jnp.arange(3)), [2, 1, 0])
    np.testing.assert_array_equal(jaxbp.rot180(jnp.ones((2, 3, 0, 1))), np.ones((2, 3, 0, 1)))
    x = integers(1, (2, 3, 2, 1))
    expected = np.zeros((2, 5, 4, 1), np.float32)
    expected[:, ::2, ::3] = x
    np.testing.assert_array_equal(jaxbp.dilate(x, (2, 3)), expected)
    np.testing.assert_array_equal(jaxbp.dilate(jnp.array([1, 2]), 3), [1, 0, 0, 2])
    assert jaxbp.dilate(jnp.zeros((0, 2)), (2, 2)).shape == (0, 3)


def test_gradient_is_rot180_of_full_convolution():
    """The article's form of the kernel gradient: slide a over padded delta and rotate the result."""
    a, delta = integers(1, (5, 6, 1)), integers(2, (3, 4, 1))
    full = jaxbp.conv(delta, a.reshape(5, 6, 1, 1), padding=((4, 4), (5, 5)))[..., 0]
    kernel = jaxbp.rot180(full[2:5, 3:6])
    direct = jaxbp.conv_kernel_grad(a, delta, (3, 3, 1, 1), padding="VALID")[..., 0, 0]
    np.testing.assert_array_equal(kernel, direct)


@pytest.mark.parametrize("order", [(None, jnp.float64), (jnp.float64, None), (float, None)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_preferred_element_type_leaves_no_trace(dtype, order):
    """NumPy says that float64 equals None, so that a cache could take one for the other: in either order, both right."""
    x, kernel = jnp.ones((2, 5, 4, 3), dtype), jnp.ones((3, 2, 3, 4), dtype)
    for preferred in order:
        with jax.enable_x64(True):
            found = jaxbp.conv(x, kernel, preferred_element_type=preferred)
            assert found.dtype == (dtype if preferred is None else jnp.float64)


@pytest.mark.parametrize(
    "shapes", [((2, 9, 9, 2), (3, 3, 2, 3)), ((2, 8, 8, 3), (2, 2, 3, 4)), ((2, 8, 8, 4), (3, 3, 1, 4))]
)
def test_preferred_element_type_is_what_sums_are_made_in(shapes):
    """float64 asked for is float64 throughout, by every algorithm; float8 is never summed in eight bits."""
    groups = shapes[0][-1] // shapes[1][-2]
    strides = 2 if shapes[1][0] == 2 else 1
    words = dict(strides=strides, feature_group_count=groups)
    with jax.enable_x64(True):
        x, kernel = normal(1, shapes[0]), normal(2, shapes[1])
        expected = loops.conv(x, kernel, padding="SAME", **words)
        found = jaxbp.conv(x, kernel, preferred_element_type=jnp.float64, **words)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    x, kernel = (normal(i, shape).astype(jnp.float8_e4m3fn) for i, shape in enumerate(shapes))
    found = jaxbp.conv(x, kernel, preferred_element_type=jnp.float32, **words)
    expected = loops.conv(x.astype(jnp.float32), kernel.astype(jnp.float32), padding="SAME", **words)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
