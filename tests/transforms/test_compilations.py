"""What is called eagerly a second time, on arrays of the same shapes, compiles no program."""

import collections

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from test_64_bits import CONVS, LAYOUTS, MAPS, POOLS

import jaxbp
from cases import OPS, Op

LARGE = {
    "adaptive average, windows of 23": Op(lambda ops, x: ops.adaptive_avg_pool(x, (3, 3)), ((1, 67, 67, 2),)),
    "adaptive maximum, windows of 23": Op(lambda ops, x: ops.adaptive_max_pool(x, (3, 3)), ((1, 67, 67, 2),)),
    "windows that reach a pixel in a loop": Op(
        lambda ops, y, winners: ops.max_unpool(y, winners, (5, 5)), ((1, 4, 4, 2), (1, 4, 4, 2)), integer=1, limit=25
    ),
    "a large image": Op(lambda ops, x, k: ops.conv(x, k), ((2, 64, 64, 8), (3, 3, 8, 16))),
}
CASES = OPS | CONVS | POOLS | LAYOUTS | LARGE


@pytest.fixture
def compiled():
    """How many programs have been compiled since the test began."""
    events = collections.Counter()

    def count(name, seconds, **facts):
        events[name.rsplit("/", 1)[-1]] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    yield lambda: events["backend_compile_duration"]
    jax.monitoring.unregister_event_duration_listener(count)


def gradients(op, arrays):
    """The op's value and gradients, eagerly."""

    def of(*some):
        whole = list(arrays)
        for i, a in zip(op.differentiable, some, strict=True):
            whole[i] = a
        return op.call(jaxbp, *whole)

    value, pullback = jax.vjp(of, *(arrays[i] for i in op.differentiable))
    return value, pullback(value)


def second_order(op, arrays):
    """The derivative of the gradients along their arguments, eagerly."""
    some = tuple(arrays[i] for i in op.differentiable)

    def of(*some):
        whole = list(arrays)
        for i, a in zip(op.differentiable, some, strict=True):
            whole[i] = a
        return gradients(op, whole)[1]

    return jax.jvp(of, some, some)[1]


def mapped(op, arrays):
    """Mapped over each argument: the value and gradients; and the gradient of what is mapped over the first."""
    several = [jnp.stack([a, a]) for a in arrays]
    for i in range(len(arrays)):
        axes = tuple(0 if j == i else None for j in range(len(arrays)))
        some = [b if j == i else a for j, (a, b) in enumerate(zip(arrays, several, strict=True))]
        jax.vmap(lambda *arrays: gradients(op, arrays), axes)(*some)
    axes = (0, *(None for _ in arrays[1:]))
    whole = Op(lambda ops, *arrays: jax.vmap(lambda *some: op.call(ops, *some), axes)(*arrays), op.shapes, op.integer)
    return gradients(whole, (several[0], *arrays[1:]))


def compiles_once(compiled, function, *arguments):
    function(*arguments)
    before = compiled()
    function(*arguments)
    assert compiled() == before


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", CASES)
def test_gradients(compiled, name):
    op = CASES[name]
    compiles_once(compiled, gradients, op, op.arrays())


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", [mapped, second_order])
@pytest.mark.parametrize("name", OPS | LARGE)
def test_under_transformations(compiled, name, how):
    op = CASES[name]
    compiles_once(compiled, how, op, op.arrays())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MAPS)
def test_gradient_maps(compiled, name):
    function, shapes = MAPS[name]
    arrays = [jnp.asarray(np.random.default_rng(i).normal(size=shape), jnp.float32) for i, shape in enumerate(shapes)]
    compiles_once(compiled, function, *arrays)
    compiles_once(compiled, jax.vmap(function), *(a[None] for a in arrays))
