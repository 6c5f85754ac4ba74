"""`swap_lax`: what it reaches, what it does not, and that every name gets its own value back."""

import contextlib
import subprocess
import sys
import threading
import types

import equinox
import flax
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.lax import conv_general_dilated

from cases import runs_jaxbp
from jaxbp import _swap
from jaxbp._swap import rebind, reduce_window, swap_lax

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


def integers(seed, shape, dtype=np.float32):
    """Small integers: sums of their products are exact, so that two right results are equal bit for bit."""
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, shape), dtype)


X, KERNEL = integers(0, (2, 6, 5, 4)), integers(1, (3, 2, 4, 3))
CHANNELS_FIRST_X, CHANNELS_FIRST_KERNEL = integers(2, (2, 4, 6, 5)), integers(3, (3, 4, 2, 2))


def convolution(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 2), "SAME", dimension_numbers=CHANNELS_LAST)


CALLS = {
    "lax": (convolution, (X, KERNEL)),
    "jax.lax": (
        lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 2), "SAME", dimension_numbers=CHANNELS_LAST),
        (X, KERNEL),
    ),
    "imported name": (
        lambda x, k: conv_general_dilated(x, k, (1, 2), "SAME", dimension_numbers=CHANNELS_LAST),
        (X, KERNEL),
    ),
    "transposed": (lambda x, k: lax.conv_transpose(x, k, (2, 1), "SAME"), (X, KERNEL)),
    "conv": (lambda x, k: lax.conv(x, k, (2, 1), "VALID"), (CHANNELS_FIRST_X, CHANNELS_FIRST_KERNEL)),
    "general padding": (
        lambda x, k: lax.conv_with_general_padding(x, k, (2, 1), ((1, 0), (0, 1)), (1, 1), (2, 1)),
        (CHANNELS_FIRST_X, CHANNELS_FIRST_KERNEL),
    ),
    "maximum": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        (X,),
    ),
}


def gradients(function, *args):
    value, pullback = jax.vjp(function, *args)
    return value, *pullback(integers(9, value.shape))


def assert_all_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_restored():
    assert lax is sys.modules["jax.lax"] and jax is sys.modules["jax"]
    assert conv_general_dilated is sys.modules["jax.lax"].conv_general_dilated
    assert not +_swap._users


@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients_inside_the_block(name):
    function, args = CALLS[name]
    theirs = gradients(function, *args)
    with swap_lax():
        assert runs_jaxbp(function, *args)
        ours = gradients(function, *args)
    assert_all_equal(ours, theirs)
    assert not runs_jaxbp(function, *args)
    assert_restored()


WINDOWS = {
    "2x2": (X, -jnp.inf, lax.max, ((1, 2, 2, 1), (1, 2, 2, 1), "VALID")),
    "overlapping": (X, -jnp.inf, lax.max, ((1, 3, 2, 1), (1, 2, 1, 1), "SAME")),
    "lower": (X, 0.0, lax.add, ((1, 2, 2, 1), (1, 1, 1, 1), "SAME_LOWER")),
    "pairs": (X, np.float32(np.inf), lax.min, ((1, 3, 2, 1), None, ((0, 0), (1, 1), (0, 1), (0, 0)))),
    "one axis": (X, 0, lax.add, ((1, 1, 2, 1), (1, 1, 2, 1))),
    "channels first": (CHANNELS_FIRST_X, -jnp.inf, lax.max, ((1, 1, 2, 2), (1, 1, 2, 2), "VALID")),
    "every axis": (X, -jnp.inf, lax.max, ((2, 2, 2, 2), (1, 2, 1, 2), "VALID")),
    "apart": (X, 0.0, lax.add, ((2, 1, 1, 2), (1, 1, 1, 1), "VALID")),
    "strides alone": (X, -jnp.inf, lax.max, ((1, 1, 1, 1), (1, 2, 3, 1), "VALID")),
    "padding alone": (X, 0.0, lax.add, ((1, 1, 1, 1), None, ((0, 0), (1, 2), (0, 0), (0, 0)))),
    "dilated": (X, 0.0, lax.add, ((1, 2, 2, 1), None, "VALID", None, (1, 2, 3, 1))),
    "NumPy": (np.asarray(X), 0.0, lax.add, ((1, 2, 2, 1),)),
    "one number per window": (X[0, 0, 0], jnp.float32(0), lax.add, ((4,),)),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", WINDOWS)
def test_reduce_window(name):
    x, init, computation, arguments = WINDOWS[name]
    ours, theirs = (
        gradients(lambda x, f=f: f(x, init, computation, *arguments), x) for f in (reduce_window, lax.reduce_window)
    )
    assert_all_equal(ours, theirs)
    assert runs_jaxbp(lambda x: reduce_window(x, init, computation, *arguments), x)


OTHER_WINDOWS = {
    "product": (X, 1.0, lax.mul, ((1, 2, 2, 1),)),
    "own reduction": (X, 0.0, lambda a, b: a + 2 * b, ((1, 2, 2, 1),)),
    "other start": (X, 1.0, lax.add, ((1, 2, 2, 1),)),
    "integers": (integers(0, (2, 6, 5, 4), np.int32), 0, lax.add, ((1, 2, 2, 1),)),
    "base dilation": (X, 0.0, lax.add, ((1, 2, 2, 1), None, "VALID", (1, 2, 1, 1))),
    "nothing pooled": (X, 0.0, lax.add, ((1, 1, 1, 1),)),
    "two arrays": (
        (X, X),
        (0.0, 0.0),
        lambda a, b: (a[0] + b[0], lax.max(a[1], b[1])),
        ((1, 2, 2, 1),),
    ),
}


@pytest.mark.parametrize("name", OTHER_WINDOWS)
def test_reduce_window_leaves_the_rest_to_lax(name):
    x, init, computation, arguments = OTHER_WINDOWS[name]
    ours, theirs = (f(x, init, computation, *arguments) for f in (reduce_window, lax.reduce_window))
    assert_all_equal(jax.tree.leaves(ours), jax.tree.leaves(theirs))
    assert not runs_jaxbp(lambda x: reduce_window(x, init, computation, *arguments), x)


def test_reduce_window_with_a_traced_start_is_left_to_lax():
    pool = jax.jit(lambda x, init: reduce_window(x, init, lax.add, (1, 2, 2, 1)))
    np.testing.assert_array_equal(pool(X, 1.0), lax.reduce_window(X, 1.0, lax.add, (1, 2, 2, 1)))


def test_reduce_window_reports_wrong_lengths_as_lax_does():
    with pytest.raises((TypeError, ValueError), match="window_strides"):
        reduce_window(X, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2))


LIBRARIES = {
    "linen": (flax, linen.Conv(3, (3, 3)), X),
    "linen transposed": (flax, linen.ConvTranspose(3, (3, 3), strides=(2, 2)), X),
    "linen cell": (
        "flax",
        linen.RNN(linen.ConvLSTMCell(3, (3, 3))),
        X[:, None],
    ),
    "haiku": (haiku, haiku.without_apply_rng(haiku.transform(lambda x: haiku.Conv2D(3, 3)(x))), X),
    "haiku network": (
        "haiku",
        haiku.without_apply_rng(haiku.transform(lambda x: haiku.max_pool(x, (2, 2, 1), (2, 2, 1), "SAME"))),
        X,
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries(name):
    library, layer, x = LIBRARIES[name]
    params = layer.init(jax.random.key(0), x)

    def loss(params, x):
        return jnp.sum(layer.apply(params, x) ** 2)

    theirs = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    with swap_lax(library):
        assert runs_jaxbp(loss, params, x)
        ours = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    assert not runs_jaxbp(loss, params, x)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_equinox_and_its_filtered_transforms():
    layer = equinox.nn.Conv2d(4, 3, 3, key=jax.random.key(0))
    pool = equinox.nn.MaxPool2d(2, 2)
    loss = equinox.filter_jit(equinox.filter_grad(lambda layer, x: jnp.sum(pool(layer(x)) ** 2)))
    theirs = loss(layer, CHANNELS_FIRST_X[0])
    with swap_lax(equinox):
        assert runs_jaxbp(lambda x: loss(layer, x).weight, CHANNELS_FIRST_X[0]) is False
        assert runs_jaxbp(lambda x: layer(x), CHANNELS_FIRST_X[0])
        ours = loss(layer, CHANNELS_FIRST_X[0])
    np.testing.assert_allclose(ours.weight, theirs.weight, rtol=1e-4, atol=1e-4)


def test_only_the_named_library_is_swapped():
    with swap_lax(haiku):
        assert not runs_jaxbp(convolution, X, KERNEL)
        assert lax is sys.modules["jax.lax"]
    with swap_lax(__name__):
        assert runs_jaxbp(convolution, X, KERNEL)


def test_a_compiled_function_is_traced_again_inside_and_runs_its_former_program_after():
    seen = []

    @jax.jit
    def function(x, kernel):
        seen.append(_swap._block_context().value)
        return convolution(x, kernel)

    def is_swapped():
        return runs_jaxbp(function, X, KERNEL)

    results = [function(X, KERNEL), function(X, KERNEL)]
    assert not is_swapped()
    with swap_lax():
        results += [function(X, KERNEL), function(X, KERNEL)]
        assert is_swapped()
    results += [function(X, KERNEL)]
    assert not is_swapped()
    assert seen == [False, True]
    assert_all_equal(results, [results[0]] * 5)


def test_scan_and_checkpoint_are_traced_again_too():
    def function(x):
        body = jax.checkpoint(lambda x, _: (lax.conv_general_dilated(x, kernel, (1, 1), "SAME"), None))
        return jax.lax.scan(body, x, None, length=2)[0]

    kernel = integers(4, (4, 4, 3, 3))
    theirs = gradients(function, CHANNELS_FIRST_X)
    with swap_lax():
        assert runs_jaxbp(function, CHANNELS_FIRST_X)
        ours = gradients(function, CHANNELS_FIRST_X)
    assert not runs_jaxbp(function, CHANNELS_FIRST_X)
    assert_all_equal(ours, theirs)


def test_a_program_compiled_ahead_of_time_stays_what_it_was():
    before = jax.jit(convolution).lower(X, KERNEL).compile()
    text = before.as_text()
    with swap_lax():
        np.testing.assert_array_equal(before(X, KERNEL), convolution(X, KERNEL))
        assert before.as_text() == text


def test_a_pullback_taken_inside_stays_hand_written():
    _, theirs = jax.vjp(convolution, X, KERNEL)
    with swap_lax():
        value, pullback = jax.vjp(convolution, X, KERNEL)
    delta = integers(9, value.shape)
    assert_all_equal(pullback(delta), theirs(delta))


def test_forward_mode_is_refused_inside_and_works_outside():
    function = lambda x: convolution(x, KERNEL)  # noqa: E731
    with swap_lax(), pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(function, (X,), (X,))
    _, tangent = jax.jvp(function, (X,), (X,))
    np.testing.assert_array_equal(tangent, function(X))


def test_an_nnx_convolution_keeps_what_it_was_built_with():
    layer = nnx.Conv(4, 3, (3, 3), rngs=nnx.Rngs(0))
    transposed = nnx.ConvTranspose(4, 3, (3, 3), rngs=nnx.Rngs(0))
    with swap_lax():
        assert not runs_jaxbp(layer, X)
        assert runs_jaxbp(transposed, X)


def test_restored_after_an_exception():
    with pytest.raises(ZeroDivisionError), swap_lax():
        assert runs_jaxbp(convolution, X, KERNEL)
        raise ZeroDivisionError
    assert_restored()
    assert not runs_jaxbp(convolution, X, KERNEL)


def test_nested_blocks():
    with swap_lax():
        with swap_lax(__name__):
            assert runs_jaxbp(convolution, X, KERNEL)
        assert runs_jaxbp(convolution, X, KERNEL)
    assert_restored()


def test_as_a_decorator():
    @swap_lax()
    def inside():
        return runs_jaxbp(convolution, X, KERNEL)

    assert inside() and inside()
    assert_restored()


def test_a_name_that_was_given_another_value_keeps_it():
    module = types.ModuleType("a_module_of_the_user")
    module.lax = lax
    sys.modules[module.__name__] = module
    try:
        with swap_lax(module):
            assert module.lax is not lax and module.lax.max is lax.max
            module.lax = "something else"
        assert module.lax == "something else"
    finally:
        del sys.modules[module.__name__]


def test_other_threads_keep_lax_and_overlapping_blocks_restore_everything():
    first_is_open, second_is_open, first_is_closed = (threading.Event() for _ in range(3))
    seen = {}

    def first():
        with swap_lax():
            first_is_open.set()
            assert second_is_open.wait(60)
            seen["first"] = runs_jaxbp(convolution, X, KERNEL)
        first_is_closed.set()

    def second():
        assert first_is_open.wait(60)
        seen["outside"] = runs_jaxbp(convolution, X, KERNEL)
        with swap_lax():
            second_is_open.set()
            assert first_is_closed.wait(60)
            seen["second"] = runs_jaxbp(convolution, X, KERNEL)

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert seen == {"first": True, "outside": False, "second": True}
    assert_restored()


@pytest.mark.parametrize(
    ("library", "message"),
    [
        ("a_library_nobody_has", "'a_library_nobody_has' is not imported; import it before the block"),
        (jax.numpy, "cannot swap inside 'jax.numpy'"),
        ("jaxbp.automatic", "cannot swap inside 'jaxbp.automatic'"),
        (contextlib, "none of the 1 loaded modules of 'contextlib' has a global name bound to jax, jax.lax"),
    ],
)
def test_libraries_that_cannot_be_swapped(library, message):
    with pytest.raises(ValueError, match=message), swap_lax(library):
        pytest.fail("the block must not be entered")
    assert_restored()


@pytest.mark.parametrize("library", [lambda x: x, 3, None, ["flax"]])
def test_what_is_no_library_is_refused_at_once(library):
    """A decorator without its parentheses is one of them."""
    with pytest.raises(TypeError, match=r"swap_lax: .* is no library; .*@swap_lax\(\)"):
        swap_lax(library)


def test_rebind_changes_the_copy_alone():
    copy = rebind(convolution, lax=_swap.JAXBP_LAX)
    assert runs_jaxbp(copy, X, KERNEL) and not runs_jaxbp(convolution, X, KERNEL)
    assert_all_equal(gradients(copy, X, KERNEL), gradients(convolution, X, KERNEL))


def test_rebind_refuses_a_function_that_does_not_use_the_name():
    with pytest.raises(ImportError, match=r"test_swap\.integers .* does not use the name lax"):
        rebind(integers, lax=_swap.JAXBP_LAX)


def test_importing_jaxbp_imports_no_library():
    program = "import sys, jaxbp; print(sorted({'flax', 'equinox', 'haiku'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert result.stdout == "[]\n", result.stderr
