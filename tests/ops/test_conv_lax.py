"""`conv_general_dilated` and `conv_transpose`: lax's names, lax's layouts, lax's values; gradients by loops and lax."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbp
import loops
from cases import CONVS, LAYOUTS, OPS, Conv, assert_equal, assert_exact, delta_of, integers, lax_is_right, pull_back

# `conv`'s words and those of lax.
WORDS = dict(
    strides="window_strides",
    padding="padding",
    input_dilation="lhs_dilation",
    kernel_dilation="rhs_dilation",
    feature_group_count="feature_group_count",
)


def in_lax_words(case: Conv) -> dict:
    """A case's arguments as `conv_general_dilated` takes them: a tuple for every axis."""
    rank = len(case.kernel) - 2
    arguments = dict(strides=1, padding="SAME") | case.arguments
    words = {}
    for ours, theirs in WORDS.items():
        if ours in arguments:
            value = arguments[ours]
            if ours == "padding" and not isinstance(value, str):
                value = tuple((p, p) if isinstance(p, int) else p for p in loops.per_axis(value, rank))
            elif ours not in ("padding", "feature_group_count"):
                value = loops.per_axis(value, rank)
            words[theirs] = value
    return words


def numbers_of(layout, rank):
    """lax's ConvDimensionNumbers for a layout, whatever the shapes."""
    shape = (1,) * (rank + 2)
    return lax.conv_dimension_numbers(shape, shape, layout)


def from_channels_last(array, spec):
    """(N, *spatial, C) in the layout of lax's lhs_spec or out_spec."""
    order = (spec[0], *spec[2:], spec[1])
    return np.transpose(np.asarray(array), np.argsort(order))


def from_kernel(kernel, spec):
    """(*window, I, O) in the layout of lax's rhs_spec."""
    order = (*spec[2:], spec[1], spec[0])
    return np.transpose(np.asarray(kernel), np.argsort(order))


CHANNELS_LAST = [name for name, case in CONVS.items() if "batch ax" not in name]
LAYOUT_CASES = [
    (name, LAYOUTS[len(CONVS[name].kernel) - 2][i % len(LAYOUTS[len(CONVS[name].kernel) - 2])])
    for i, name in enumerate(CHANNELS_LAST)
] + [("asymmetric padding", layout) for layout in LAYOUTS[2]]


@pytest.mark.sampled(9)
@pytest.mark.parametrize(
    ("name", "layout"), LAYOUT_CASES, ids=[f"{n}-{'.'.join(d or ['None'])}" for n, d in LAYOUT_CASES]
)
def test_equals_loops_and_lax(name, layout):
    case = CONVS[name]
    rank, words = len(case.kernel) - 2, in_lax_words(case)
    dn = numbers_of(layout, rank)
    x, kernel = integers(1, case.x), integers(2, case.kernel)
    lhs, rhs = from_channels_last(x, dn.lhs_spec), from_kernel(kernel, dn.rhs_spec)

    def run(function, lhs, rhs):
        return pull_back(lambda a, b: function(a, b, dimension_numbers=layout, **words), lhs, rhs)

    z, (dlhs, drhs) = jax.jit(lambda a, b: run(jaxbp.conv_general_dilated, a, b))(lhs, rhs)
    order = (dn.out_spec[0], *dn.out_spec[2:], dn.out_spec[1])
    delta = np.transpose(np.asarray(delta_of(z)), order)
    assert_exact(np.transpose(np.asarray(z), order), loops.conv(x, kernel, **case.arguments))
    dx, dkernel, _ = loops.conv(x, kernel, delta=delta, **case.arguments)
    assert_exact(dlhs, from_channels_last(dx, dn.lhs_spec))
    assert_exact(drhs, from_kernel(dkernel, dn.rhs_spec))
    if lax_is_right(*case):
        assert_equal((z, (dlhs, drhs)), jax.jit(lambda a, b: run(lax.conv_general_dilated, a, b))(lhs, rhs))


# What `conv` has no word for, or refuses: (lhs, rhs, arguments), in lax's words.
EXTRA = {
    "batch groups": ((4, 2, 5, 4), (6, 2, 3, 2), dict(window_strides=(1, 2), padding="SAME", batch_group_count=2)),
    "batch groups, one image each": (
        (3, 2, 5),
        (6, 2, 2),
        dict(window_strides=(1,), padding="VALID", batch_group_count=3),
    ),
    "batch groups, layout": (
        (5, 4, 3, 4),
        (2, 2, 3, 2),
        dict(
            window_strides=(2, 1),
            padding=((1, 0), (0, 1)),
            batch_group_count=2,
            dimension_numbers=("HWCN", "HWIO", "NHWC"),
        ),
    ),
    "window does not fit": ((2, 2, 3, 4), (3, 2, 5, 5), dict(window_strides=(1, 1), padding="VALID")),
    "dilated window does not fit": (
        (1, 1, 4),
        (1, 1, 3),
        dict(window_strides=(1,), padding="VALID", rhs_dilation=(2,)),
    ),
    "empty batch": ((0, 2, 5), (3, 2, 2), dict(window_strides=(1,), padding="SAME")),
    "a ConvDimensionNumbers": (
        (2, 5, 4, 2),
        (3, 2, 2, 3),
        dict(
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
        ),
    ),
    "lower case padding": ((1, 1, 5, 4), (1, 1, 2, 2), dict(window_strides=(2, 1), padding="same_lower")),
    "precision": (
        (1, 1, 5, 4),
        (2, 1, 2, 2),
        dict(window_strides=(1, 1), padding="SAME", precision=("highest", "default")),
    ),
    "a precision each": (
        (1, 1, 5, 4),
        (2, 1, 2, 2),
        dict(window_strides=(1, 1), padding="SAME", precision=(lax.Precision.HIGH, lax.Precision.HIGHEST)),
    ),
    "preferred_element_type": (
        (1, 1, 5, 4),
        (2, 1, 2, 2),
        dict(window_strides=(1, 1), padding="SAME", preferred_element_type=jnp.float32),
    ),
    "lists": ((2, 3, 5, 4), (2, 3, 2, 2), dict(window_strides=[1, 1], padding=[(1, 0), [0, 1]], lhs_dilation=[1, 2])),
    "out_sharding=None": ((1, 1, 5, 4), (2, 1, 2, 2), dict(window_strides=(1, 1), padding="SAME", out_sharding=None)),
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize("name", EXTRA)
def test_the_rest_of_lax(name):
    lhs_shape, rhs_shape, words = EXTRA[name]

    def both(function):
        return jax.jit(lambda a, b: pull_back(lambda a, b: function(a, b, **words), a, b))(
            integers(1, lhs_shape), integers(2, rhs_shape)
        )

    assert_equal(both(jaxbp.conv_general_dilated), both(lax.conv_general_dilated))


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.bfloat16, jnp.float16, jnp.int32, jnp.int8])
def test_dtypes(dtype):
    lhs, rhs = integers(1, (2, 2, 5, 4), dtype), integers(2, (3, 2, 2, 2), dtype)
    expected = lax.conv_general_dilated(lhs, rhs, (2, 1), "SAME")
    assert_equal(jaxbp.conv_general_dilated(lhs, rhs, (2, 1), "SAME"), expected)
    if jnp.issubdtype(dtype, jnp.inexact):
        ours, twin = (
            pull_back(lambda a, b, f=f: f(a, b, (2, 1), "SAME"), lhs, rhs)[1]
            for f in (jaxbp.conv_general_dilated, lax.conv_general_dilated)
        )
        assert_equal(ours, twin)


@pytest.mark.parametrize("op", ["conv_general_dilated", "conv_transpose"])
def test_signature_is_that_of_lax(op):
    ours, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(getattr(m, op)).parameters.values()]
        for m in (jaxbp, lax)
    )
    # Behind lax's own, by name alone.
    more = [("norms", inspect.Parameter.KEYWORD_ONLY, None)] if op == "conv_general_dilated" else []
    assert ours == theirs + more


@pytest.mark.parametrize("op", OPS)
def test_twin_has_the_same_signature(op):
    ours, twin = (
        [(p.name, p.kind, p.default) for p in inspect.signature(getattr(m, op)).parameters.values()]
        for m in (jaxbp, jaxbp.automatic)
    )
    # Per-example norms are made by a backward rule, which the twin has none of.
    assert [parameter for parameter in ours if parameter[0] != "norms"] == twin


# ------------------------------------------------------------------------------------------- conv_transpose

TRANSPOSED = {
    "same": ((2, 4, 3, 2), (3, 2, 2, 3), ((2, 2), "SAME")),
    "valid": ((2, 4, 3, 2), (3, 2, 2, 3), ((2, 3), "VALID")),
    "stride 1": ((1, 4, 5, 1), (3, 3, 1, 2), ((1, 1), "SAME")),
    "stride > kernel, same": ((1, 3, 4, 1), (2, 1, 1, 2), ((3, 2), "SAME")),
    "stride > kernel, valid": ((1, 3, 4, 1), (2, 1, 1, 2), ((3, 2), "VALID")),
    "even kernel": ((1, 4, 3, 1), (4, 2, 1, 2), ((2, 1), "SAME")),
    "pairs": ((1, 4, 3, 1), (3, 3, 1, 2), ((2, 2), ((1, 2), (0, 1)))),
    "negative pairs": ((1, 4, 4, 1), (3, 2, 1, 2), ((2, 2), ((-1, 0), (1, -1)))),
    "same_lower without a stride": ((1, 4, 4, 1), (2, 2, 1, 2), ((1, 1), "SAME_LOWER")),
    "rhs_dilation": ((1, 4, 3, 2), (3, 2, 2, 1), ((2, 1), "SAME", (2, 3))),
    "layout": ((1, 2, 4, 3), (3, 2, 2, 3), ((2, 1), "SAME", None, ("NCHW", "OIHW", "NHWC"))),
    "transpose_kernel": ((1, 4, 3, 2), (3, 2, 3, 2), ((2, 2), "SAME", None, None, True)),
    "transpose_kernel, layout": ((1, 2, 4, 3), (2, 3, 3, 2), ((2, 2), "VALID", None, ("NCHW", "OIHW", "NCHW"), True)),
    "consistent pairs": (
        (1, 4, 3, 1),
        (3, 3, 1, 2),
        dict(strides=(2, 2), padding=((1, 1), (0, 1)), use_consistent_padding=True),
    ),
    "consistent same": ((1, 4, 3, 1), (3, 2, 1, 2), dict(strides=(2, 1), padding="SAME", use_consistent_padding=True)),
    "precision": ((1, 4, 3, 1), (3, 3, 1, 2), dict(strides=(2, 2), padding="SAME", precision="highest")),
    "preferred": ((1, 4, 3, 1), (3, 3, 1, 2), dict(strides=(2, 2), padding="SAME", preferred_element_type=jnp.float32)),
    "0-D": ((2, 3), (3, 4), ((), "SAME")),
    "1-D": ((2, 5, 2), (4, 2, 3), ((3,), "SAME")),
    "3-D": ((1, 2, 3, 2, 1), (2, 2, 3, 1, 2), ((2, 1, 2), "VALID")),
    "empty batch": ((0, 4, 3, 2), (3, 2, 2, 3), ((2, 2), "SAME")),
}


def as_keywords(arguments) -> dict:
    """The arguments of `conv_transpose` by name."""
    names = ("strides", "padding", "rhs_dilation", "dimension_numbers", "transpose_kernel")
    return arguments if isinstance(arguments, dict) else dict(zip(names, arguments, strict=False))


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose_equals_lax(name):
    lhs_shape, rhs_shape, arguments = TRANSPOSED[name]
    words = as_keywords(arguments)

    def both(function):
        return jax.jit(lambda a, b: pull_back(lambda a, b: function(a, b, **words), a, b))(
            integers(1, lhs_shape), integers(2, rhs_shape)
        )

    assert_equal(both(jaxbp.conv_transpose), both(lax.conv_transpose))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("k", "s"), [(3, 2), (2, 2), (4, 3), (1, 2)])
def test_conv_transpose_is_the_input_gradient_of_conv(k, s, padding):
    """With its kernel transposed it is the map that takes delta back through a convolution, where sizes divide."""
    delta, kernel = integers(1, (2, 4, 3)), integers(2, (k, 2, 3))
    back = jaxbp.conv_transpose(delta, kernel, (s,), padding, transpose_kernel=True)
    dx = jaxbp.conv_input_grad(delta, kernel, back.shape, strides=s, padding=padding)
    np.testing.assert_array_equal(back, dx)


@pytest.mark.parametrize("name", ["same", "valid", "pairs", "rhs_dilation", "transpose_kernel", "1-D", "3-D"])
def test_conv_transpose_equals_loops(name):
    """Value and gradients of a convolution over the input with zeros between its pixels."""
    lhs_shape, rhs_shape, arguments = TRANSPOSED[name]
    words = as_keywords(arguments)
    lhs, rhs = integers(1, lhs_shape), integers(2, rhs_shape)
    z, (dlhs, drhs) = pull_back(lambda a, b: jaxbp.conv_transpose(a, b, **words), lhs, rhs)
    facts = {name: value for name, value in words.items() if name != "dimension_numbers"}
    turn = loops.exchanged if words.get("transpose_kernel") else np.asarray
    arguments = loops.as_conv(rhs_shape[:-2], **facts)
    assert_exact(z, loops.conv(lhs, turn(rhs), **arguments))
    dx, dkernel, _ = loops.conv(lhs, turn(rhs), delta=delta_of(z), **arguments)
    assert_exact(dlhs, dx)
    assert_exact(drhs, turn(dkernel))
