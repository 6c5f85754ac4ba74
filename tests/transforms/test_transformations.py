"""Every op under every transformation of JAX, against its automatic twin under the same transformation.

`TRANSFORMATIONS` is the table: each entry is a check of one op. The table of docs/support.md is made from it.
"""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_policies

import jaxbp
from cases import OPS, Op, assert_equal, assert_exact, integers
from jaxbp import _plan, _sums


def loss(op: Op, ops, numbers: tuple[int, ...] | None = None):
    """A scalar with curvature, as a function of the op's arrays; and the positions of those with a gradient."""

    def value(*arrays):
        y = op.call(ops, *arrays)
        return jnp.sum(y * y * (1 + jnp.arange(y.size, dtype=y.dtype).reshape(y.shape) / y.size))

    return value, numbers or op.differentiable


def gradient(op: Op, ops):
    """The gradient with respect to every array that has one."""
    value, numbers = loss(op, ops)
    return jax.grad(value, numbers)


@functools.cache
def twin_gradient(op: Op):
    """The twin's gradient, compiled once for all checks."""
    return jax.jit(gradient(op, jaxbp.automatic))


def same(op: Op, transform, *arrays) -> None:
    """`transform(op, ops)(*arrays)` agrees between the hand-written rule and the twin."""
    arrays = arrays or op.arrays()
    ours, twin = jax.jit(lambda *a: (transform(op, jaxbp)(*a), transform(op, jaxbp.automatic)(*a)))(*arrays)
    chex.assert_trees_all_close(ours, twin, rtol=2e-5, atol=2e-5)
    assert all(np.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(ours))


def check_jit(op):
    same(op, lambda op, ops: lambda *a: op.call(ops, *a))


def check_grad(op):
    """Eagerly, where every step runs by itself."""
    chex.assert_trees_all_close(
        gradient(op, jaxbp)(*op.arrays()), twin_gradient(op)(*op.arrays()), rtol=2e-5, atol=2e-5
    )


def batched(op, chosen):
    """The op's arrays, those at `chosen` with a leading axis of 2 different entries, and vmap's in_axes."""
    arrays = [jnp.stack([a, a[::-1]]) if i in chosen else a for i, a in enumerate(op.arrays())]
    return arrays, tuple(0 if i in chosen else None for i in range(len(arrays)))


def choices(op):
    """Every non-empty choice of the op's arrays."""
    n = len(op.shapes)
    return [c for size in range(1, n + 1) for c in itertools.combinations(range(n), size)]


def same_mapped(op, function):
    """`vmap(function(ops))` over each argument and over each choice of several, in one program."""
    mapped = [batched(op, chosen) for chosen in choices(op)]

    def transform(op, ops):
        return lambda *given: [
            jax.vmap(function(ops), axes)(*arrays) for (_, axes), arrays in zip(mapped, given, strict=True)
        ]

    same(op, transform, *(arrays for arrays, _ in mapped))


def check_vmap(op):
    same_mapped(op, lambda ops: lambda *a: op.call(ops, *a))


def check_vmap_of_grad(op):
    same_mapped(op, lambda ops: gradient(op, ops))


def check_grad_of_vmap(op):
    """One gradient for a batch of calls that share what is not mapped."""
    arrays, axes = batched(op, (0,))

    def transform(op, ops):
        value, numbers = loss(op, ops)
        return jax.grad(lambda *a: jax.vmap(value, axes)(*a).sum(), numbers)

    same(op, transform, *arrays)


def check_hessian(op):
    """Forward over reverse, in every pair of arguments."""
    same(op, lambda op, ops: jax.hessian(*loss(op, ops)))


def directions(op):
    """A tangent for every array that has a gradient."""
    arrays = op.arrays()
    return tuple(jnp.cos(arrays[i] * 7) for i in op.differentiable)


def of_differentiable(op, function):
    """The function of the differentiable arrays alone, with the others as they are."""
    arrays = op.arrays()

    def inner(*some):
        whole = list(arrays)
        for i, a in zip(op.differentiable, some, strict=True):
            whole[i] = a
        return function(*whole)

    return inner


def check_forward_over_reverse(op):
    def transform(op, ops):
        inner = of_differentiable(op, gradient(op, ops))
        return lambda *a: jax.jvp(inner, tuple(a[i] for i in op.differentiable), directions(op))[1]

    same(op, transform)


def check_reverse_over_reverse(op):
    def transform(op, ops):
        first = gradient(op, ops)
        weights = directions(op)
        return jax.grad(
            lambda *a: sum(jnp.vdot(w, g) for w, g in zip(weights, first(*a), strict=True)), op.differentiable
        )

    same(op, transform)


def check_scan(op):
    """Gradient descent as a scan, and the gradient through all of its steps."""

    def transform(op, ops):
        def after(*arrays):
            def step(some, _):
                g = of_differentiable(op, gradient(op, ops))(*some)
                return tuple(a - 0.01 * d for a, d in zip(some, g, strict=True)), None

            some, _ = lax.scan(step, tuple(arrays[i] for i in op.differentiable), length=2)
            return sum(jnp.vdot(a, a) for a in some)

        return jax.grad(after, op.differentiable)

    same(op, transform)


def check_while_loop(op):
    def transform(op, ops):
        def descend(*arrays):
            def step(state):
                count, some = state
                g = of_differentiable(op, gradient(op, ops))(*some)
                return count + 1, tuple(a - 0.01 * d for a, d in zip(some, g, strict=True))

            return lax.while_loop(lambda s: s[0] < 2, step, (0, tuple(arrays[i] for i in op.differentiable)))[1]

        return descend

    same(op, transform)


def check_checkpoint(op):
    def transform(op, ops):
        value, numbers = loss(op, ops)
        policies = [None, checkpoint_policies.nothing_saveable, checkpoint_policies.dots_saveable]
        policies.append(checkpoint_policies.everything_saveable)
        return lambda *a: [jax.grad(jax.checkpoint(value, policy=p), numbers)(*a) for p in policies]

    same(op, transform)


def check_donation(op):
    """The buffers of the arguments are given away, and the answer is the same."""
    value, numbers = loss(op, jaxbp)
    # The program returns one array of each donated shape, so that every buffer finds a use.
    update = jax.jit(
        lambda *a: tuple(a[i] - g for i, g in zip(numbers, jax.grad(value, numbers)(*a), strict=True)),
        donate_argnums=numbers,
    )
    arrays = op.arrays()
    expected = tuple(arrays[i] - g for i, g in zip(numbers, twin_gradient(op)(*arrays), strict=True))
    given = [jnp.array(a) for a in arrays]
    chex.assert_trees_all_close(update(*given), expected, rtol=2e-5, atol=2e-5)
    assert all(given[i].is_deleted() for i in numbers)


def check_export(op):
    """One program for three platforms, run here on one of them."""
    function = jax.jit(gradient(op, jaxbp))
    exported = jax.export.export(function, platforms=("cpu", "cuda", "tpu"))(*op.arrays())
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    chex.assert_trees_all_close(exported.call(*op.arrays()), twin_gradient(op)(*op.arrays()), rtol=2e-5, atol=2e-5)


def check_symbolic_batch(op):
    """One program for every batch size."""
    (batch,) = jax.export.symbolic_shape("batch")
    with_batch = [i for i, shape in enumerate(op.shapes) if i == 0 or i == op.integer]
    exported = jax.export.export(jax.jit(gradient(op, jaxbp)))(
        *(
            jax.ShapeDtypeStruct((batch, *a.shape[1:]) if i in with_batch else a.shape, a.dtype)
            for i, a in enumerate(op.arrays())
        )
    )
    for size in (1, op.shapes[0][0]):
        arrays = [jnp.resize(a, (size, *a.shape[1:])) if i in with_batch else a for i, a in enumerate(op.arrays())]
        chex.assert_trees_all_close(exported.call(*arrays), twin_gradient(op)(*arrays), rtol=2e-5, atol=2e-5)


def check_forward_mode(op):
    """Inside of a block as the twin; outside custom_vjp refuses it, and says so."""
    arrays = op.arrays()
    primals = tuple(arrays[i] for i in op.differentiable)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(of_differentiable(op, lambda *a: op.call(jaxbp, *a)), primals, primals)

    def transform(op, ops):
        inner = of_differentiable(op, lambda *a: op.call(ops, *a))
        return lambda *a: jax.jvp(inner, tuple(a[i] for i in op.differentiable), directions(op))

    with jaxbp.forward_mode(True):
        same(op, transform)


TRANSFORMATIONS = {
    "jit": check_jit,
    "grad": check_grad,
    "vmap": check_vmap,
    "vmap(grad)": check_vmap_of_grad,
    "grad(vmap)": check_grad_of_vmap,
    "hessian": check_hessian,
    "forward over reverse": check_forward_over_reverse,
    "reverse over reverse": check_reverse_over_reverse,
    "scan": check_scan,
    "while_loop": check_while_loop,
    "checkpoint": check_checkpoint,
    "donation": check_donation,
    "export": check_export,
    "symbolic batch": check_symbolic_batch,
    "forward mode": check_forward_mode,
}
INSIDE_A_BLOCK = ("forward mode",)


@pytest.mark.sampled(22)
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("op", OPS)
def test_transformation(op, transformation):
    TRANSFORMATIONS[transformation](OPS[op])


# ------------------------------------------------------------------------------------ symbolic spatial sizes

SPATIAL = {
    "conv": lambda x, k: jaxbp.conv(x, k, padding="SAME"),
    "conv, strided": lambda x, k: jaxbp.conv(x, k, padding=1, strides=2),
    "conv_general_dilated": lambda x, k: jaxbp.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "conv_general_dilated, strided": lambda x, k: jaxbp.conv_general_dilated(
        x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "max_pool": lambda x, k: jaxbp.max_pool(x, (2, 2), (1, 1), "SAME"),
    "avg_pool": lambda x, k: jaxbp.avg_pool(x, (2, 2), (1, 1)),
    "avg_pool, strided": lambda x, k: jaxbp.avg_pool(x, (2, 2), (2, 2)),
    "max_pool, strided": lambda x, k: jaxbp.max_pool(x, (2, 2), (2, 2)),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SPATIAL)
def test_symbolic_spatial_sizes(name):
    """One program for every image size."""
    batch, height, width = jax.export.symbolic_shape("batch, 2*height, 2*width")
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 2)), jnp.float32)
    function = jax.jit(jax.grad(lambda x, k: jnp.sum(SPATIAL[name](x, k) ** 2)))
    exported = jax.export.export(function)(jax.ShapeDtypeStruct((batch, height, width, 2), jnp.float32), kernel)
    for shape in ((1, 8, 6, 2), (2, 4, 10, 2)):
        x = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
        chex.assert_trees_all_close(exported.call(x, kernel), function(x, kernel), rtol=2e-5, atol=2e-5)


# ----------------------------------------------------------------------- gradients that nobody asked for

MAPS = ("x", "kernel")


@pytest.fixture
def counted(monkeypatch):
    """How often each gradient of a convolution has been evaluated."""
    counts = dict.fromkeys(MAPS, 0)
    _sums._compiled.cache_clear()
    right = _plan.evaluate

    def counting(plan, a, b, dtype):
        if plan.problem.out in counts:
            counts[plan.problem.out] += 1
        return right(plan, a, b, dtype)

    monkeypatch.setattr(_plan, "evaluate", counting)
    return counts


@pytest.mark.parametrize(
    ("asked", "evaluated"), [((0,), (1, 0)), ((1,), (0, 1)), ((2,), (0, 0)), ((0, 1, 2), (1, 1)), ((1, 2), (0, 1))]
)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_only_what_is_asked_for_is_computed(counted, wrap, asked, evaluated):
    x, kernel, bias = jnp.ones((1, 4, 4, 1)), jnp.ones((2, 2, 1, 1)), jnp.ones(1)
    gradients = wrap(jax.grad(lambda *a: jaxbp.conv(*a).sum(), asked))(x, kernel, bias)
    assert len(gradients) == len(asked)
    assert tuple(counted[name] for name in MAPS) == evaluated


def test_only_what_is_needed_is_kept():
    """For the kernel's gradient alone x is kept, and for x's the kernel."""
    x, kernel = jnp.ones((1, 4, 4, 3)), jnp.ones((2, 2, 3, 5))

    def kept(function, primal):
        return [a.shape for a in jax.tree.leaves(jax.vjp(function, primal)[1]) if hasattr(a, "shape")]

    assert kept(lambda k: jaxbp.conv(x, k), kernel) == [x.shape]
    assert kept(lambda x: jaxbp.conv(x, kernel), x) == [kernel.shape]


def test_dense_computes_only_what_is_asked_for():
    x, kernel, bias = jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones(4)
    for asked, products in ((0, 1), (1, 1), (2, 0), ((0, 1, 2), 2)):
        _, pullback = jax.vjp(
            lambda *some, asked=asked: jaxbp.dense(*_put((x, kernel, bias), asked, some)),
            *_take((x, kernel, bias), asked),
        )
        assert str(jax.make_jaxpr(pullback)(jnp.ones((2, 4)))).count("dot_general[") == products


def _take(values, positions):
    return [values[i] for i in ((positions,) if isinstance(positions, int) else positions)]


def _put(values, positions, some):
    values = list(values)
    for i, value in zip((positions,) if isinstance(positions, int) else positions, some, strict=True):
        values[i] = value
    return values


@pytest.mark.parametrize("op", ["conv", "max_pool", "sum_pool"])
def test_integers_have_no_gradient(op):
    """Differentiating an integer input is refused by JAX with both facts; nothing is computed."""
    x = jnp.ones((1, 4, 4, 1), jnp.int32)
    function = {
        "conv": lambda x: jaxbp.conv(x, jnp.ones((2, 2, 1, 1), jnp.int32)),
        "max_pool": lambda x: jaxbp.max_pool(x, (2, 2)),
        "sum_pool": lambda x: jaxbp.sum_pool(x, (2, 2)),
    }[op]
    with pytest.raises(TypeError, match=r"grad requires real- or complex-valued inputs.*int32"):
        jax.grad(lambda x: function(x).sum())(x)
    y, pullback = jax.vjp(function, x)
    assert pullback(np.zeros(y.shape, jax.dtypes.float0))[0].dtype == jax.dtypes.float0


@pytest.mark.sampled(4)
@pytest.mark.parametrize("op", ["avg_pool", "sum_pool", "lp_pool", "max_pool"])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("window", [(3,), (2, 3), (3, 3), (2, 2, 2)], ids=str)
def test_second_derivatives_of_every_form_of_pool(op, window, strides, padding):
    """Of short sums, too, which are the compiler's own loop."""
    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, (2, *(7, 6, 5)[: len(window)], 3)), jnp.float32)

    def pull_twice(ops):
        def loss(x):
            return (getattr(ops, op)(x, window, (strides,) * len(window), padding) ** 3).sum()

        return jax.jit(jax.grad(lambda x: (jax.grad(loss)(x) * jnp.cos(x)).sum()))(x)

    right = pull_twice(jaxbp.automatic)
    chex.assert_trees_all_close(pull_twice(jaxbp), right, rtol=2e-5, atol=2e-5 * float(jnp.abs(right).max()))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("window", [(3, 2), (2,), (3,), (9,), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("padding", ["SAME", "VALID", (1, 0)], ids=str)
def test_symbolic_sizes_under_a_constraint(window, padding):
    """One program for images of every size that a constraint makes large enough."""
    names = ["height", "width", "depth"][: len(window)]
    shape = jax.export.symbolic_shape(", ".join(["batch", *names, "2"]), constraints=[f"{n} >= 9" for n in names])
    strides, pads = (2,) * len(window), padding if isinstance(padding, str) else (padding,) * len(window)

    def gradients(ops):
        pools = ops.max_pool, ops.avg_pool, ops.min_pool
        return jax.jit(jax.grad(lambda x: sum((pool(x, window, strides, pads) ** 2).sum() for pool in pools)))

    exported = jax.export.export(gradients(jaxbp))(jax.ShapeDtypeStruct(shape, jnp.float32))
    for batch, sizes in ((1, (9, 10, 11)), (3, (13, 10, 9))):
        size = (batch, *sizes[: len(window)], 2)
        x = jnp.asarray(np.random.default_rng(0).permutation(math.prod(size)).reshape(size) / 100, jnp.float32)
        chex.assert_trees_all_close(exported.call(x), gradients(jaxbp.automatic)(x), rtol=2e-5, atol=2e-5)


# ------------------------------------------------------------------------------- what a vmap leaves unmapped


def assert_as_automatic(function, *arrays):
    """`function(jaxbp)` and `function(jaxbp.automatic)` agree in shapes, dtypes and values."""
    ours, theirs = (jax.tree.leaves(function(module)(*arrays)) for module in (jaxbp, jaxbp.automatic))
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert_equal(a, b)


def gradients(module):
    """Of a loss that is linear in the output, whose cotangent is the same for all examples."""
    return jax.grad(lambda x, kernel: module.conv(x, kernel).sum(), (0, 1))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["eager", "jit", "checkpoint"])
def test_examples_that_share_the_kernel_and_delta(wrap):
    """The gradient of x is mapped by nothing; it only waits for the kernel's, which is."""
    x, kernel = integers(1, (3, 4, 1, 5, 5, 2)), integers(2, (3, 3, 2, 3))
    assert_as_automatic(lambda module: jax.vmap(wrap(gradients(module)), (0, None)), x[0], kernel)
    twice = lambda module: jax.vmap(jax.vmap(wrap(gradients(module)), (0, None)), (0, None))  # noqa: E731
    assert_as_automatic(twice, x, kernel)
    delta = integers(3, (1, 5, 5, 3))
    pull = lambda module: jax.vmap(lambda x: jax.vjp(wrap(module.conv), x, kernel)[1](delta))  # noqa: E731
    assert_as_automatic(pull, x[0])


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("x", "kernel", "axes"),
    [
        ((3, 2, 5, 5, 2), (3, 3, 2, 0), (0, None)),
        ((3, 2, 5, 5, 0), (3, 3, 0, 4), (0, None)),
        ((3, 2, 0, 5, 2), (3, 3, 2, 4), (0, None)),
        ((0, 2, 5, 5, 2), (3, 3, 2, 3), (0, None)),
        ((0, 2, 5, 5, 2), (0, 3, 3, 2, 3), (0, 0)),
    ],
    ids=["no features", "no channels", "no pixels", "no examples", "no examples, mapped kernels"],
)
def test_mapped_arrays_of_size_zero(x, kernel, axes):
    assert_as_automatic(lambda module: jax.vmap(gradients(module), axes), jnp.ones(x), jnp.ones(kernel))


def test_a_delta_smaller_than_the_kernel_in_a_wider_dtype():
    """It waits for a kernel's gradient of another dtype."""
    x, kernel = jnp.ones((1, 4, 4, 8), jnp.bfloat16), jnp.ones((3, 3, 8, 4), jnp.bfloat16)
    loss = lambda x, k: jaxbp.conv(x, k, padding="VALID", preferred_element_type=jnp.float32).sum()  # noqa: E731
    dx, dkernel = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
    assert dx.dtype == dkernel.dtype == jnp.bfloat16
    assert float(dx.sum()) == 4 * kernel.size and float(dkernel.sum()) == 4 * kernel.size


def test_a_symbolic_number_of_kernel_gradients():
    """Examples of a number that is not known have kernel gradients of their own."""
    (examples,) = jax.export.symbolic_shape("b")
    x, kernel = integers(1, (3, 2, 9, 9, 2)), integers(2, (3, 3, 2, 2))
    function = jax.jit(jax.vmap(jax.grad(lambda k, x: (jaxbp.conv(x, k) ** 2).sum()), (None, 0)))
    shapes = [
        jax.ShapeDtypeStruct(kernel.shape, jnp.float32),
        jax.ShapeDtypeStruct((examples, *x.shape[1:]), jnp.float32),
    ]
    exported = jax.export.export(function, platforms=["cpu"])(*shapes)
    assert_exact(exported.call(kernel, x), function(kernel, x))
