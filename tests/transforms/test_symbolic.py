"""Programs exported with symbolic sizes, where plain lax exports them: one program, right at every size.

Where a window does not fit a size, the result has size 0, as lax's has.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

import jaxbp
import loops
from cases import assert_exact, integers

# What is known of a size, and sizes that are so.
SIZES = [("t", (), (1, 2, 7)), ("t", ("t >= 4",), (4, 9)), ("2*t", (), (2, 8)), ("t + 2", (), (3, 6))]
PADS = ["SAME", "SAME_LOWER", "VALID", (1, 2), (2, 0), (-1, 0), (-2, 3), (3, -1)]
STRIDES = (1, 2, 3)
LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}


class Case(NamedTuple):
    """The window along every axis, and what is known of the first one's size."""

    window: tuple[int, ...]
    strides: int
    padding: str | tuple[int, int]
    dilation: int
    known: tuple = SIZES[0]

    def pads(self):
        return self.padding if isinstance(self.padding, str) else (self.padding,) * len(self.window)

    def shapes(self):
        """Of an input of two channels: the symbolic one, and known ones."""
        text, constraints, sizes = self.known
        spatial = [text, "u"][: len(self.window)]
        symbolic = export.symbolic_shape(", ".join(["b", *spatial, "2"]), constraints=constraints)
        return symbolic, [(1 + i, *(size, 5 - i)[: len(spatial)], 2) for i, size in enumerate(sizes)]


def cases(windows):
    """Every padding with every stride; windows and what is known take turns."""
    turns = itertools.cycle(itertools.product(SIZES, windows))
    for (padding, strides), (known, (window, dilation)) in zip(itertools.product(PADS, STRIDES), turns, strict=False):
        yield Case(window, strides, padding, dilation, known)


CONVS = [*cases([((3,), 1), ((2,), 2), ((4,), 1), ((1,), 1)]), *list(cases([((3, 2), 1), ((2, 3), 2)]))[::5]]
POOLS = [
    *cases([((3,), 1), ((2,), 2), ((2,), 1), ((9,), 1)]),
    *list(cases([((3, 2), 1), ((2, 3), 2), ((5, 4), 1)]))[::3],
]


def exported(function, *shapes):
    """The program of a jitted function of float32 arrays."""
    return export.export(jax.jit(function))(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))


def pulled_back(function):
    """The function's value and its gradients, with the value itself pulled back."""

    def both(*arrays):
        value, pullback = jax.vjp(function, *arrays)
        return value, pullback(value)

    return both


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_convolutions(case):
    rank = len(case.window)
    kernel = integers(1, (*case.window, 2, 3))
    symbolic, known = case.shapes()
    steps, dilation = (case.strides,) * rank, (case.dilation,) * rank

    def lax_like(op):
        return lambda x, k: op(x, k, steps, case.pads(), None, dilation, LAYOUTS[rank])

    program = exported(pulled_back(lax_like(jaxbp.conv_general_dilated)), symbolic, kernel.shape)
    assert (
        program.out_avals[0].shape
        == exported(lax_like(lax.conv_general_dilated), symbolic, kernel.shape).out_avals[0].shape
    )
    arguments = dict(strides=case.strides, padding=case.pads(), kernel_dilation=case.dilation)
    for shape in known:
        x = integers(2, shape)
        z, (dx, dkernel) = program.call(x, kernel)
        expected = loops.conv(x, kernel, **arguments)
        assert_exact(z, expected)
        expected_dx, expected_dkernel, _ = loops.conv(x, kernel, delta=expected, **arguments)
        assert_exact(dx, expected_dx)
        assert_exact(dkernel, expected_dkernel)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2),)], ids=str)
@pytest.mark.parametrize("strides", STRIDES)
def test_transposed_convolutions(padding, strides):
    kernel = integers(1, (4, 2, 3))
    symbolic, known = Case((4,), strides, "SAME", 1, SIZES[strides - 1]).shapes()

    def lax_like(op):
        return lambda x, k: op(x, k, (strides,), padding)

    program = exported(pulled_back(lax_like(jaxbp.conv_transpose)), symbolic, kernel.shape)
    assert (
        program.out_avals[0].shape == exported(lax_like(lax.conv_transpose), symbolic, kernel.shape).out_avals[0].shape
    )
    arguments = loops.as_conv((4,), (strides,), padding)
    for shape in known:
        x = integers(2, shape)
        z, (dx, dkernel) = program.call(x, kernel)
        expected = loops.conv(x, kernel, **arguments)
        assert_exact(z, expected)
        expected_dx, expected_dkernel, _ = loops.conv(x, kernel, delta=expected, **arguments)
        assert_exact(dx, expected_dx)
        assert_exact(dkernel, expected_dkernel)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", POOLS, ids=str)
def test_pools(case):
    """All pools of one window in one program."""
    symbolic, known = case.shapes()
    keywords = dict(window_dilation=case.dilation)
    kinds = ["max", "min", "avg", "sum", "lp"]

    def pools(x):
        pooled = [
            pulled_back(
                lambda x, kind=kind: getattr(jaxbp, f"{kind}_pool")(
                    x, case.window, case.strides, case.pads(), **keywords
                )
            )(x)
            for kind in kinds
        ]
        inner = pulled_back(lambda x: jaxbp.avg_pool(x, case.window, case.strides, case.pads(), False, **keywords))(x)
        return pooled, inner, jaxbp.max_pool_with_winners(x, case.window, case.strides, case.pads(), **keywords)

    def lax_sum(x):
        pads = case.pads() if isinstance(case.padding, str) else ((0, 0), *case.pads(), (0, 0))
        ones = (1,) * len(case.window)
        return lax.reduce_window(
            x, np.float32(0), lax.add, (1, *case.window, 1), (1, *(case.strides * n for n in ones), 1), pads,
            window_dilation=(1, *(case.dilation * n for n in ones), 1),
        )  # fmt: skip

    program = exported(pools, symbolic)
    assert program.out_avals[0].shape == exported(lax_sum, symbolic).out_avals[0].shape
    arguments = (case.window, case.strides, case.pads())
    for shape in known:
        x = integers(2, shape) + 0.5
        pooled, inner, (best, winners) = program.call(x)
        for kind, (y, (dx,)) in zip([*kinds, "inner"], [*pooled, inner], strict=True):
            name, counted = ("avg", False) if kind == "inner" else (kind, True)
            expected, _, _ = loops.pool(name, x, *arguments, counted, **keywords)
            _, chosen, expected_dx = loops.pool(name, x, *arguments, counted, delta=expected, **keywords)
            fits = np.isfinite(expected)  # of a maximum over padding alone
            np.testing.assert_allclose(np.where(fits, y, 0), np.where(fits, expected, 0), rtol=1e-6, err_msg=kind)
            assert np.all(np.isfinite(np.asarray(y)) >= fits)
            if fits.all():
                np.testing.assert_allclose(dx, expected_dx, rtol=1e-5, atol=1e-6, err_msg=kind)
            if kind == "max":
                np.testing.assert_array_equal(winners, chosen)
                np.testing.assert_array_equal(best, y)


def network(ops, x, a, b, c):
    """Layers of the same sizes beside each other, whose outputs are added, and a layer behind them."""
    dims = LAYOUTS[1]
    z = ops.conv_general_dilated(x, a, (2,), "SAME", dimension_numbers=dims)
    z = z + ops.conv_general_dilated(x, b, (2,), "SAME", dimension_numbers=dims)
    z = jnp.maximum(z, 0)
    z = ops.conv_general_dilated(z, c, (3,), ((1, 0),), dimension_numbers=dims)
    return z - jnp.mean(z)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("known", SIZES, ids=str)
def test_layers_after_each_other(known):
    symbolic, shapes = Case((3,), 1, "SAME", 1, known).shapes()
    kernels = integers(1, (3, 2, 4)), integers(2, (3, 2, 4)), integers(3, (2, 4, 3))
    program = exported(pulled_back(lambda *a: network(jaxbp, *a)), symbolic, *(k.shape for k in kernels))
    assert (
        program.out_avals[0].shape
        == exported(lambda *a: network(lax, *a), symbolic, *(k.shape for k in kernels)).out_avals[0].shape
    )
    for shape in shapes:
        x = integers(4, shape)
        got = program.call(x, *kernels)
        expected = jax.jit(pulled_back(lambda *a: network(lax, *a)))(x, *kernels)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def _general(*arguments, **keywords):
    return lambda ops, x, k: ops.conv_general_dilated(x, k, *arguments, **keywords)


# name: (call, the symbolic shapes, what is known, the sizes of all names)
OTHERS = {
    "channels": (_general((1,), "SAME", None, None, LAYOUTS[1]), "b, t, c; 3, c, 4", (), dict(b=2, t=5, c=3)),
    "features": (_general((2,), "SAME", None, None, LAYOUTS[1]), "b, t, 3; 3, 3, c", (), dict(b=2, t=5, c=3)),
    "NCHW": (_general((2, 1), "SAME"), "b, 2, t, u; 3, 2, 3, 2", (), dict(b=2, t=5, u=4)),
    "groups": (
        _general((2,), "VALID", None, None, LAYOUTS[1], 2), "b, t, 4; 3, 2, 4", (), dict(b=2, t=7),
    ),
    "groups of the batch": (
        _general((2,), "VALID", None, None, LAYOUTS[1], 1, 2), "2*b, t, 4; 3, 4, 4", (), dict(b=2, t=7),
    ),
    "pixels apart": (_general((2,), ((1, 2),), (3,), (2,), LAYOUTS[1]), "b, t, 4; 3, 4, 4", (), dict(b=2, t=5)),
    "pixels apart, cropped": (_general((1,), ((-1, 2),), (2,), None, LAYOUTS[1]), "b, t, 4; 3, 4, 4", (), dict(b=2, t=5)),
    "a window of symbolic size": (_general((1,), "VALID", None, None, LAYOUTS[1]), "b, t, 2; k, 2, 3", ("t >= k",), dict(b=2, t=5, k=3)),
}  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", OTHERS)
def test_other_symbolic_sizes(name):
    call, text, constraints, sizes = OTHERS[name]
    scope = export.SymbolicScope(constraints)
    specs = [export.symbolic_shape(each, scope=scope) for each in text.split(";")]
    program = exported(pulled_back(lambda *a: call(jaxbp, *a)), *specs)
    assert program.out_avals[0].shape == exported(lambda *a: call(lax, *a), *specs).out_avals[0].shape
    for more in (0, 2):
        known = {letter: size + more for letter, size in sizes.items()}
        arrays = [
            integers(i, tuple(eval(size, {}, known) for size in each.split(",")))
            for i, each in enumerate(text.split(";"))
        ]
        got = program.call(*arrays)
        expected = jax.jit(pulled_back(lambda *a: call(lax, *a)))(*arrays)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)


def test_gradients_of_an_exported_program():
    """JAX exports the derivative when it is asked for."""
    symbolic = export.symbolic_shape("b, t, 2")
    kernel = integers(1, (3, 2, 4))

    def layers(x, k):
        return jaxbp.max_pool(jaxbp.conv(x, k, strides=2), (2,), (2,))

    program = exported(layers, symbolic, kernel.shape)
    for size in (3, 8, 13):
        x = integers(2, (2, size, 2))
        for a, b in zip(
            jax.tree.leaves(pulled_back(program.call)(x, kernel)),
            jax.tree.leaves(pulled_back(layers)(x, kernel)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("op", ["max_pool", "avg_pool", "sum_pool"])
def test_a_last_window_that_hangs_over_the_end(op):
    symbolic = export.symbolic_shape("b, t, 2")
    keywords = dict(ceil_mode=True, padding=((1, 1),))

    def pool(x):
        return getattr(jaxbp, op)(x, (3,), 2, **keywords)

    program = exported(pulled_back(pool), symbolic)
    for size in (1, 4, 5, 6, 7):
        x = integers(2, (2, size, 2))
        (y, (dx,)), kind = program.call(x), op.removesuffix("_pool")
        expected, _, _ = loops.pool(kind, x, (3,), 2, **keywords)
        _, _, expected_dx = loops.pool(kind, x, (3,), 2, **keywords, delta=expected)
        np.testing.assert_allclose(y, expected, rtol=1e-6)
        np.testing.assert_allclose(dx, expected_dx, rtol=1e-6)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("strides", STRIDES)
def test_gradient_maps(strides):
    """The maps that are told the shape of an input, and unpooling."""
    b, t = export.symbolic_shape("b, t", constraints=["t >= 3"])

    def maps(x, kernel):
        z = jaxbp.conv(x, kernel, strides=strides)
        y, winners = jaxbp.max_pool_with_winners(x, (3,), strides)
        window = ((3,), strides)
        return (
            jaxbp.conv_input_grad(z, kernel, x.shape, strides=strides),
            jaxbp.conv_kernel_grad(x, z, kernel.shape, strides=strides),
            jaxbp.max_pool_grad(y, winners, x.shape, *window),
            jaxbp.avg_pool_grad(y, x.shape, *window),
            jaxbp.max_unpool(y, winners, *window, input_shape=x.shape),
            jaxbp.upsample(x, (2,)),
            jaxbp.dilate(x, (strides,)),
        )

    program = exported(maps, (b, t, 2), (3, 2, 3))
    kernel = integers(1, (3, 2, 3))
    for size in (3, 4, 8):
        x = integers(2, (2, size, 2))
        for a, b in zip(program.call(x, kernel), maps(x, kernel), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("op", ["adaptive_avg_pool", "adaptive_max_pool"])
def test_adaptive_pools_need_known_sizes(op):
    symbolic = export.symbolic_shape("b, t, 2")
    with pytest.raises(ValueError, match=rf"{op}: inputs has shape \(b, t, 2\).* t is symbolic.*known spatial sizes"):
        exported(lambda x: getattr(jaxbp, op)(x, (2,)), symbolic)
