"""The worked values and the symbolic gradients of the derivation, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp

SQUARE = jnp.arange(16.0).reshape(4, 4, 1)
MAX_BACK = [[0, 0, 0, 0], [0, 5, 0, 7], [0, 0, 0, 0], [0, 13, 0, 15]]
AVG_BACK = np.kron([[0.625, 1.125], [2.625, 3.125]], np.ones((2, 2)))
A, W = jnp.arange(9.0).reshape(3, 3, 1), jnp.arange(4.0).reshape(2, 2, 1, 1)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_max_pool(wrap):
    pooled, pullback = jax.vjp(wrap(lambda x: jaxbp.max_pool(x, (2, 2), (2, 2))), SQUARE)
    np.testing.assert_array_equal(pooled[..., 0], [[5, 7], [13, 15]])
    np.testing.assert_array_equal(pullback(pooled)[0][..., 0], MAX_BACK)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_avg_pool(wrap):
    pooled, pullback = jax.vjp(wrap(lambda x: jaxbp.avg_pool(x, (2, 2), (2, 2))), SQUARE)
    np.testing.assert_array_equal(pooled[..., 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(pullback(pooled)[0][..., 0], AVG_BACK)


def test_pool_gradient_maps():
    pooled, winners = jaxbp.max_pool_with_winners(SQUARE, (2, 2), (2, 2))
    np.testing.assert_array_equal(winners[..., 0], np.full((2, 2), 3))
    back = jaxbp.max_pool_grad(pooled, winners, (4, 4, 1), (2, 2), (2, 2))
    np.testing.assert_array_equal(back[..., 0], MAX_BACK)
    pooled = jaxbp.avg_pool(SQUARE, (2, 2), (2, 2))
    np.testing.assert_array_equal(jaxbp.avg_pool_grad(pooled, (4, 4, 1), (2, 2), (2, 2))[..., 0], AVG_BACK)


def test_upsample():
    delta = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    by_winner = [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]
    evenly = [[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 1, 1], [0.75, 0.75, 1, 1]]
    np.testing.assert_array_equal(jaxbp.upsample(delta, (2, 2), winners=jnp.zeros((2, 2), jnp.int32)), by_winner)
    np.testing.assert_array_equal(jaxbp.upsample(delta, (2, 2)), evenly)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_conv(wrap):
    function = wrap(lambda x, kernel, bias: jaxbp.conv(x, kernel, bias, padding="VALID"))
    z, pullback = jax.vjp(function, A, W, jnp.zeros(1))
    np.testing.assert_array_equal(z[..., 0], [[19, 25], [37, 43]])
    dx, dkernel, dbias = pullback(z)
    np.testing.assert_array_equal(dx[..., 0], [[0, 19, 25], [38, 144, 118], [74, 197, 129]])
    np.testing.assert_array_equal(dkernel[..., 0, 0], [[308, 432], [680, 804]])
    np.testing.assert_array_equal(dbias, [124])


def test_conv_gradient_maps():
    delta = jnp.array([[19.0, 25.0], [37.0, 43.0]]).reshape(2, 2, 1)
    dx = jaxbp.conv_input_grad(delta, W, (3, 3, 1), padding="VALID")
    np.testing.assert_array_equal(dx[..., 0], [[0, 19, 25], [38, 144, 118], [74, 197, 129]])
    dkernel = jaxbp.conv_kernel_grad(A, delta, (2, 2, 1, 1), padding="VALID")
    np.testing.assert_array_equal(dkernel[..., 0, 0], [[308, 432], [680, 804]])
    np.testing.assert_array_equal(jaxbp.conv_bias_grad(delta), [124])


def test_kernel_gradient_before_the_last_rotation():
    """The article slides a over padded delta and rotates the result by 180 degrees."""
    delta = jnp.array([[19.0, 25.0], [37.0, 43.0]]).reshape(2, 2, 1)
    full = jaxbp.conv(delta, A.reshape(3, 3, 1, 1), padding=1, strides=1)[..., 0]
    np.testing.assert_array_equal(full, [[804, 680], [432, 308]])
    np.testing.assert_array_equal(jaxbp.rot180(full), [[308, 432], [680, 804]])


def unit(shape, *index):
    """Zeros with a single 1."""
    return jnp.zeros(shape).at[index].set(1.0)


@pytest.mark.parametrize(
    ("entry", "terms"),
    [
        ("11", "d11 w11"),
        ("22", "d11 w22 + d12 w21 + d21 w12 + d22 w11"),
        ("12", "d11 w12 + d12 w11"),
        ("33", "d22 w22"),
    ],
)
def test_symbolic_input_gradient(entry, terms):
    """The coefficient of each product d * w in da, found by setting one d and one w to 1."""
    at = tuple(int(digit) - 1 for digit in entry)
    for d in np.ndindex(2, 2):
        for w in np.ndindex(2, 2):
            product = f"d{d[0] + 1}{d[1] + 1} w{w[0] + 1}{w[1] + 1}"
            da = jaxbp.conv_input_grad(
                unit((2, 2), *d)[..., None], unit((2, 2), *w)[..., None, None], (3, 3, 1), padding="VALID"
            )
            assert int(da[(*at, 0)]) == (product in terms.split(" + "))


@pytest.mark.parametrize(
    ("entry", "terms"),
    [
        ("11", "d11 a11 + d12 a12 + d21 a21 + d22 a22"),
        ("12", "d11 a12 + d12 a13 + d21 a22 + d22 a23"),
        ("21", "d11 a21 + d12 a22 + d21 a31 + d22 a32"),
        ("22", "d11 a22 + d12 a23 + d21 a32 + d22 a33"),
    ],
)
def test_symbolic_kernel_gradient(entry, terms):
    at = tuple(int(digit) - 1 for digit in entry)
    for d in np.ndindex(2, 2):
        for a in np.ndindex(3, 3):
            product = f"d{d[0] + 1}{d[1] + 1} a{a[0] + 1}{a[1] + 1}"
            dw = jaxbp.conv_kernel_grad(
                unit((3, 3), *a)[..., None], unit((2, 2), *d)[..., None], (2, 2, 1, 1), padding="VALID"
            )
            assert int(dw[(*at, 0, 0)]) == (product in terms.split(" + "))


def test_dense_chain_rule():
    """dJ/dW = x^T delta, dJ/dx = delta W^T, dJ/db = sum of delta."""
    a, weights = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), jnp.array([[1.0, 0.0, 2.0], [3.0, 1.0, 0.0]])
    z, pullback = jax.vjp(jaxbp.dense, a, weights, jnp.ones(3))
    np.testing.assert_array_equal(z, [[8, 3, 3], [16, 5, 7], [24, 7, 11]])
    da, dweights, dbias = pullback(jnp.array([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0], [1.0, 1.0, 1.0]]))
    np.testing.assert_array_equal(da, [[3, 3], [0, 2], [3, 4]])
    np.testing.assert_array_equal(dweights, [[6, 11, 6], [8, 14, 8]])
    np.testing.assert_array_equal(dbias, [2, 3, 2])
