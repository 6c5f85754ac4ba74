"""What docs/faq.md says that jaxbp does right where plain lax does not."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxbp


def integers(*shape):
    """Small integers, so that sums are exact."""
    return np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32)


def sharded(x, *spec):
    """x on all devices of an Auto mesh."""
    mesh = jax.make_mesh((len(jax.devices()),), ("devices",), axis_types=(AxisType.Auto,))
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))


def test_gradients_of_each_example_of_a_sharded_batch():
    x, kernel = integers(16, 6, 6, 2), integers(3, 3, 2, 3)
    gradients = jax.jit(jax.vmap(jax.grad(lambda k, x: (jaxbp.conv(x[None], k) ** 2).sum()), (None, 0)))
    assert (np.asarray(gradients(kernel, sharded(x, "devices"))) == np.asarray(gradients(kernel, x))).all()


def test_the_gradient_of_a_max_pool_whose_height_is_sharded():
    x = integers(2, 16, 6, 2)
    gradient = jax.jit(jax.grad(lambda x: (jaxbp.max_pool(x, (3, 3), (1, 1), "SAME") ** 2).sum()))
    assert (np.asarray(gradient(sharded(x, None, "devices"))) == np.asarray(gradient(x))).all()


def test_the_gradient_of_a_cnn_under_checkify():
    x, kernel = integers(2, 6, 6, 2), integers(3, 3, 2, 3)

    def loss(kernel):
        logits = jaxbp.max_pool(jaxbp.relu(jaxbp.conv(x, kernel)), (2, 2), (2, 2)).reshape(2, -1)
        return jaxbp.softmax_cross_entropy(logits, jnp.array([1, 2])).sum()

    error, gradient = checkify.checkify(jax.grad(loss), errors=checkify.float_checks)(kernel)
    error.throw()
    assert jnp.allclose(gradient, jax.grad(loss)(kernel), atol=1e-5)
