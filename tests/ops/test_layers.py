"""Dense layers, activations and the loss: by hand, against NumPy in float64, and against the twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxbp
from cases import assert_equal, assert_exact, assert_sums_close, delta_of, integers, normal, pull_back

DENSE = {
    "one batch axis": (5, 3),
    "no batch axis": (3,),
    "two batch axes": (2, 4, 3),
    "empty batch": (0, 3),
    "no inputs": (5, 0),
}


@pytest.mark.parametrize("shape", DENSE.values(), ids=DENSE)
def test_dense_equals_loops_and_twin(shape):
    x, kernel, bias = integers(1, shape), integers(2, (shape[-1], 4)), integers(3, (4,))
    z, gradients = pull_back(jaxbp.dense, x, kernel, bias)
    delta = np.asarray(delta_of(z), np.float64).reshape(-1, 4)
    rows = np.asarray(x, np.float64).reshape(len(delta), shape[-1])
    expected, dx, dkernel, dbias = np.zeros((len(rows), 4)), np.zeros(rows.shape), np.zeros(kernel.shape), np.zeros(4)
    for n, o in np.ndindex(len(rows), 4):
        expected[n, o] += bias[o]
        dbias[o] += delta[n, o]
        for i in range(shape[-1]):
            expected[n, o] += rows[n, i] * kernel[i, o]
            dx[n, i] += delta[n, o] * kernel[i, o]
            dkernel[i, o] += rows[n, i] * delta[n, o]
    assert_exact(z, expected.reshape(*shape[:-1], 4))
    for gradient, e in zip(gradients, (dx.reshape(shape), dkernel, dbias), strict=True):
        assert_exact(gradient, e)
    assert_equal((z, gradients), pull_back(jaxbp.automatic.dense, x, kernel, bias))
    assert_equal(jaxbp.dense(x, kernel), jaxbp.automatic.dense(x, kernel))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64])
def test_dense_dtypes(dtype):
    primals = integers(1, (5, 3), dtype), integers(2, (3, 4), dtype), integers(3, (4,), dtype)
    z, gradients = pull_back(jaxbp.dense, *primals)
    assert z.dtype == dtype and all(g.dtype == dtype for g in gradients)
    wide = [np.asarray(p, np.complex128) for p in primals]
    np.testing.assert_array_equal(np.asarray(z, np.complex128), wide[0] @ wide[1] + wide[2])
    assert_equal(gradients, pull_back(jaxbp.automatic.dense, *primals)[1])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_dense_gradients_accumulate_in_float32(dtype):
    x, kernel, bias = jnp.ones((4096, 1), dtype), jnp.ones((1, 1), dtype), jnp.zeros(1, dtype)
    z, pullback = jax.vjp(jaxbp.dense, x, kernel, bias)
    _, dkernel, dbias = pullback(jnp.ones_like(z))
    assert dkernel.item() == dbias.item() == 4096


def test_dense_of_integers():
    x, kernel = jnp.array([[1, 2]]), jnp.array([[3, 4], [5, 6]])
    np.testing.assert_array_equal(jaxbp.dense(x, kernel), [[13, 16]])


PRECISIONS = ["highest", jax.lax.Precision.HIGH, ("highest", "high")]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dense_precision_reaches_all_three_products(precision):
    program = jax.make_jaxpr(jax.grad(lambda x, k: jaxbp.dense(x, k, precision=precision).sum(), (0, 1)))(
        jnp.ones((2, 3)), jnp.ones((3, 4))
    )
    assert "HIGH" in str(program) and "precision=None" not in str(program)


# ----------------------------------------------------------------------------------------------- activations

ACTIVATIONS = {
    "relu": (lambda z: np.where(z <= 0, 0, z), lambda z: np.where(z > 0, 1.0, 0.0)),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name, dtype):
    function, derivative = ACTIVATIONS[name]
    with jax.enable_x64(True):
        z = normal(1, (3, 4, 5), jnp.dtype(dtype))
        a, (dz,) = pull_back(getattr(jaxbp, name), z)
        wide = np.asarray(z, np.float64)
        assert a.dtype == dz.dtype == z.dtype
        assert_sums_close(a, function(wide), 4)
        assert_sums_close(dz, derivative(wide) * np.asarray(delta_of(a), np.float64), 4, 3)
        twin, (twin_dz,) = pull_back(getattr(jaxbp.automatic, name), z)
        assert_equal(a, twin)
        assert_sums_close(dz, twin_dz, 4, 3)


def test_relu_at_the_edges():
    z = jnp.array([-jnp.inf, -1.0, -0.0, 0.0, 2.0**-90, jnp.inf, jnp.nan])
    a, pullback = jax.vjp(jaxbp.relu, z)
    np.testing.assert_array_equal(a, [0, 0, 0, 0, 2.0**-90, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(pullback(jnp.ones_like(z))[0], [0, 0, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(jaxbp.relu(jnp.array([-3, 0, 3])), [0, 0, 3])
    assert jaxbp.relu(jnp.zeros((0, 2))).shape == (0, 2)
    assert jaxbp.relu(jnp.float32(-1)).shape == ()


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_saturation(name):
    z = jnp.array([-1e4, -100.0, 100.0, 1e4, -jnp.inf, jnp.inf])
    a, pullback = jax.vjp(getattr(jaxbp, name), z)
    low = 0 if name == "sigmoid" else -1
    np.testing.assert_allclose(a, [low, low, 1, 1, low, 1], atol=1e-30)
    np.testing.assert_allclose(pullback(jnp.ones_like(z))[0], np.zeros(6), atol=1e-30)


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_activations_of_complex_numbers(name):
    z = jax.lax.complex(normal(1, (4,)), normal(2, (4,)))
    a, (dz,) = pull_back(getattr(jaxbp, name), z)
    twin, (twin_dz,) = pull_back(getattr(jaxbp.automatic, name), z)
    assert_equal(a, twin)
    np.testing.assert_allclose(dz, twin_dz, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------ loss


def cross_entropy(logits, targets):
    """The loss, and its gradients for delta = 1, one number at a time."""
    logits, targets = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    losses = np.zeros(logits.shape[:-1])
    dlogits, dtargets = np.zeros(logits.shape), np.zeros(logits.shape)
    for place in np.ndindex(*losses.shape):
        z, t = logits[place], targets[place]
        log_total = np.log(np.sum(np.exp(z - z.max()))) + z.max()
        for c in range(len(z)):
            losses[place] += t[c] * (log_total - z[c]) if t[c] else 0
            dtargets[place][c] = log_total - z[c]
            dlogits[place][c] = np.exp(z[c] - log_total) * t.sum() - t[c]
    return losses, dlogits, dtargets


@pytest.mark.sampled(2)
@pytest.mark.parametrize("batch", [(5,), (), (2, 3), (0,)], ids=str)
def test_cross_entropy_of_labels(batch):
    logits = normal(1, (*batch, 4))
    labels = jnp.asarray(np.random.default_rng(2).integers(0, 4, batch), jnp.int32)
    losses, pullback = jax.vjp(lambda z: jaxbp.softmax_cross_entropy(z, labels), logits)
    expected, dlogits, _ = cross_entropy(logits, np.eye(4)[np.asarray(labels)])
    assert_sums_close(losses, expected, 8, 2)
    assert_sums_close(pullback(jnp.ones_like(losses))[0], dlogits, 8)
    twin, twin_pullback = jax.vjp(lambda z: jaxbp.automatic.softmax_cross_entropy(z, labels), logits)
    assert_sums_close(losses, twin, 8, 2)
    assert_sums_close(pullback(jnp.ones_like(losses))[0], twin_pullback(jnp.ones_like(twin))[0], 8)


def test_cross_entropy_of_distributions():
    """Also of targets that do not sum to 1, and the targets' own gradient."""
    logits, targets = normal(1, (5, 4)), jnp.abs(normal(2, (5, 4)))
    losses, pullback = jax.vjp(jaxbp.softmax_cross_entropy, logits, targets)
    expected, dlogits, dtargets = cross_entropy(logits, targets)
    assert_sums_close(losses, expected, 16, 4)
    for gradient, e in zip(pullback(jnp.ones_like(losses)), (dlogits, dtargets), strict=True):
        assert_sums_close(gradient, e, 16, 4)


def test_cross_entropy_is_stable():
    """Huge logits, a class that is impossible and not asked for, and by how much a confident error costs."""
    logits = jnp.array([[1e4, 0.0], [0.0, 1e4], [3e38, -3e38], [-jnp.inf, 0.0]])
    losses, pullback = jax.vjp(lambda z: jaxbp.softmax_cross_entropy(z, jnp.array([0, 0, 0, 1])), logits)
    np.testing.assert_array_equal(losses, [0, 1e4, 0, 0])
    np.testing.assert_array_equal(pullback(jnp.ones(4))[0], [[0, 0], [-1, 1], [0, 0], [0, 0]])
    one_hot = jnp.array([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    np.testing.assert_array_equal(jaxbp.softmax_cross_entropy(logits, one_hot), losses)
    with jax.debug_nans(True):
        gradients = jax.grad(lambda z, t: jaxbp.softmax_cross_entropy(z, t)[:3].sum(), (0, 1))(logits, one_hot)
    assert not jnp.isnan(gradients[0]).any() and not jnp.isnan(gradients[1]).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_cross_entropy_dtypes(dtype):
    with jax.enable_x64(True):
        logits = normal(1, (5, 4), jnp.dtype(dtype))
        losses, pullback = jax.vjp(lambda z: jaxbp.softmax_cross_entropy(z, jnp.arange(5) % 4), logits)
        (dlogits,) = pullback(jnp.ones_like(losses))
        assert losses.dtype == dlogits.dtype == logits.dtype
        expected, expected_dlogits, _ = cross_entropy(logits, np.eye(4)[np.arange(5) % 4])
        assert_sums_close(losses, expected, 4, 2)
        assert_sums_close(dlogits, expected_dlogits, 4)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32])
def test_labels_of_any_integer_dtype(dtype):
    logits = normal(1, (3, 300))
    labels = jnp.array([0, 100, 7], dtype)
    expected = jaxbp.softmax_cross_entropy(logits, labels.astype(jnp.int32))
    np.testing.assert_array_equal(jaxbp.softmax_cross_entropy(logits, labels), expected)


@pytest.mark.parametrize("label", [-1, 4, 100])
def test_labels_outside_the_classes_give_nan(label):
    losses = jaxbp.softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([label, 0]))
    np.testing.assert_array_equal(np.isnan(losses), [True, False])


def test_finite_differences_in_float64():
    with jax.enable_x64(True):
        x, kernel, bias = normal(1, (4, 3), np.float64), normal(2, (3, 5), np.float64), normal(3, (5,), np.float64)
        targets = jax.nn.softmax(normal(4, (4, 5), np.float64))

        def network(x, kernel, bias, targets):
            return jaxbp.softmax_cross_entropy(jaxbp.tanh(jaxbp.sigmoid(jaxbp.dense(x, kernel, bias))), targets)

        check_grads(network, (x, kernel, bias, targets), order=2, modes=["rev"], rtol=1e-6, atol=1e-6)
