"""Where jaxbp stands in for another library's function it accepts and refuses what that function does.

A window larger than its input gives a result of size 0 there, and an error in jaxbp's own ops.
"""

import equinox
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx
from jax import lax

import jaxbp
from cases import integers
from jaxbp import equinox as eqx
from jaxbp import haiku as hk
from jaxbp._swap import OPERATIONS
from jaxbp.flax import linen, nnx


@pytest.fixture(autouse=True)
def promotion_as_by_default():
    """The libraries' own average pools divide float32 by a NumPy integer, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def value_and_gradients(function, *args):
    value, pullback = jax.vjp(function, *args)
    return value, *pullback(jnp.ones_like(value))


def assert_all_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------- arguments, as in lax

LHS, RHS = integers(1, (1, 2, 6, 5)), integers(2, (2, 2, 3, 2))
LAST, HWIO = jnp.moveaxis(LHS, 1, -1), jnp.transpose(RHS, (2, 3, 1, 0))
IN_INTEGERS = [2, None, (2,), (1, 1, 1), (0, 1), (-1, 1), "11", [2, 1], np.array([2, 1]), (np.int32(2), 1), range(1, 3)]
PADDINGS = [
    "SAME", "same", "Same", "VALID", "valid", "SAME_LOWER", "same_lower", "FULL", "CAUSAL", "", None, 0, 1, (3, 3),
    [1, 1], (1, (1, 1)), ((1, 1), 1), np.array([1, 1]), ((1, 1),), ((1, 1),) * 3, ((1, 1, 1), (1, 1)), ((1,), (1,)),
    ((1.0, 1), (1, 1)), ((1, 1), None), ("11", "11"), b"SAME", [[1, 0], [0, 1]], np.ones((2, 2), int), ((-1, 0), (0, -1)),
    ((-9, 0), (0, 0)), ((-3, -4), (0, 0)), ((True, False), (np.int32(1), 0)), (((1, 1), (1, 1)),),
]  # fmt: skip
LAYOUTS = [
    None, ("NCHW", "OIHW", "NCHW"), ["NCHW", "OIHW", "NHWC"], ("nchw", "oihw", "nchw"), ("NCHW", "OIHW"), "NCHW",
    ("NCDE", "OIDE", "NCDE"), ("NCHH", "OIHW", "NCHW"), ("NCHX", "OIHW", "NCHW"), ("NCHW", None, "NCHW"), (0, 1, 2),
    ("NCH", "OIH", "NCH"), ("NCHW", "HWIO", "NCHW"), ("NHWC", "HWIO", "NHWC"),
    lax.ConvDimensionNumbers((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)),
]  # fmt: skip
PRECISIONS = [
    None, "highest", "HIGHEST", "high", "default", "fastest", "float32", "tensorfloat32", "foo", lax.Precision.HIGH,
    ("highest", "default"), ["highest", "default"], ("highest",), ("a", "b"), ("highest",) * 3, (None, None), 0, (), True,
]  # fmt: skip
COUNTS = [0, -1, 1, 2, 3, None, "1", True, np.int32(1)]
DTYPES = [None, jnp.float32, "float32", np.dtype("float32"), jnp.bfloat16, jnp.int32, "foo", bool, jnp.complex64, 3]
OTHERS = dict(rhs_dilation=IN_INTEGERS, precision=PRECISIONS, preferred_element_type=DTYPES)
GENERAL = dict(
    window_strides=IN_INTEGERS, padding=PADDINGS, lhs_dilation=[*IN_INTEGERS, (1, 1)], dimension_numbers=LAYOUTS,
    feature_group_count=COUNTS, batch_group_count=COUNTS, out_sharding=[None, "x", 3], **OTHERS,
)  # fmt: skip
TRANSPOSED = dict(
    strides=IN_INTEGERS, padding=PADDINGS, dimension_numbers=LAYOUTS, transpose_kernel=[True, 0], **OTHERS
)
WINDOWS = dict(
    window_dimensions=[2, None, (2, 2), (1, 0, 2, 1), (1, -1, 2, 1), [1, 2, 2, 1], (1, 2, 2, 1, 1), (1, 7, 2, 1)],
    window_strides=[2, (2, 2), (1, 0, 1, 1), (1, -1, 1, 1), [1, 2, 2, 1]],
    padding=[
        "same", "valid", "Same_Lower", "FULL", "", None, 1, (1, 1, 1, 1), ((0, 0), 1, 1, (0, 0)), ((1, 1), (1, 1)),
        [[0, 0], [1, 1], [0, 1], [0, 0]], ((0, 0), (-1, 0), (0, 0), (0, 0)), ((0, 0), (-9, 0), (0, 0), (0, 0)),
        ((0, 0), (-3, -4), (0, 0), (0, 0)), ((0, 0, 0),) * 4, np.ones((4, 2), int),
    ],
    base_dilation=[2, (1, 2, 1, 1), (1, 1), (1, 0, 1, 1), [1, 1, 1, 1]],
    window_dilation=[2, (1, 2, 1, 1), (1, 1), (1, 0, 1, 1), (1, -1, 1, 1), [1, 2, 1, 1], (1, 9, 1, 1)],
)  # fmt: skip
MAXIMA = (LAST, -np.inf, lax.max)
SUMS = (LAST, 0.0, lax.add)
POOLED = dict(window_dimensions=(1, 2, 2, 1), window_strides=(1, 1, 1, 1), padding="VALID")
# (op, arguments, those that stay, those that vary one by one)
TABLES = {
    "general": ("conv_general_dilated", (LHS, RHS), dict(window_strides=(1, 1), padding="VALID"), GENERAL),
    "general, pairs": (
        "conv_general_dilated", (LHS, RHS), dict(window_strides=(2, 1), padding=((1, 1), (0, 1))),
        dict(window_strides=IN_INTEGERS, lhs_dilation=IN_INTEGERS),
    ),
    "general, same": (
        "conv_general_dilated", (LHS, RHS), dict(window_strides=(2, 1), padding="SAME"),
        dict(window_strides=IN_INTEGERS, lhs_dilation=IN_INTEGERS),
    ),
    "transposed": ("conv_transpose", (LAST, HWIO), dict(strides=(1, 1), padding="SAME"), TRANSPOSED),
    "transposed, strides": (
        "conv_transpose", (LAST, HWIO), dict(strides=(2, 1), padding="VALID"), dict(padding=PADDINGS, strides=IN_INTEGERS)
    ),
    "transposed, rotated": (
        "conv_transpose", (LAST, HWIO), dict(strides=(1, 1), transpose_kernel=True), dict(padding=PADDINGS)
    ),
    "transposed, consistent": (
        "conv_transpose", (LAST, HWIO), dict(strides=(2, 1), use_consistent_padding=True),
        dict(padding=[*PADDINGS[:17], ((1, 0), (0, 1))]),
    ),
    "conv": ("conv", (LHS, RHS), dict(window_strides=(1, 1), padding="SAME"), {k: GENERAL[k] for k in ("window_strides", "padding", "precision")}),
    "general padding": (
        "conv_with_general_padding", (LHS, RHS),
        dict(window_strides=(1, 1), padding=((1, 0), (0, 1)), lhs_dilation=None, rhs_dilation=None),
        {k: GENERAL[k] for k in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")},
    ),
    "maxima": ("reduce_window", MAXIMA, POOLED, WINDOWS),
    "sums": ("reduce_window", SUMS, dict(POOLED, padding="SAME"), WINDOWS),
}  # fmt: skip


def outcome(function, *args, **words):
    try:
        return function(*args, **words)
    except Exception as error:
        return error


@pytest.mark.sampled(14)
@pytest.mark.parametrize(
    ("table", "argument"), [(table, argument) for table in TABLES for argument in TABLES[table][3]]
)
def test_the_same_is_accepted_and_refused(table, argument):
    op, args, words, varying = TABLES[table]
    x, *rest = args
    # The values, too, where a spelling could change them; otherwise what is known before compilation.
    lowered = lambda f, x: jax.jit(f).lower(x).out_info  # noqa: E731
    evaluate = (lambda f, x: f(x)) if argument == "padding" and "conv_" in op else lowered
    for value in varying[argument]:
        theirs, ours = (
            outcome(evaluate, lambda x, f=f, value=value: f(x, *rest, **{**words, argument: value}), x)
            for f in (getattr(lax, op), OPERATIONS[op])
        )
        if isinstance(theirs, Exception):
            assert isinstance(ours, TypeError | ValueError), (value, theirs, ours)
        else:
            assert not isinstance(ours, Exception), (value, ours)
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), value
            if isinstance(theirs, jax.Array):
                np.testing.assert_array_equal(ours, theirs, err_msg=str(value))


@pytest.mark.parametrize("op", ["conv_general_dilated", "conv_transpose"])
@pytest.mark.parametrize("padding", [(3, 3), [1, 1], (1, (1, 1)), ((1, 1), 1), 1, 0, None, np.array([1, 1])])
def test_integers_among_pairs_are_refused_by_name(op, padding):
    with pytest.raises(ValueError, match=f"{op}: padding=.* must be one of .* a sequence of 2 .low, high. pairs"):
        getattr(jaxbp, op)(LAST, HWIO, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("argument", ["window_strides", "lhs_dilation", "rhs_dilation"])
def test_one_integer_for_all_axes_is_refused_by_name(argument):
    words = dict(window_strides=(1, 1), padding=((1, 1), (1, 1))) | {argument: 2}
    with pytest.raises(TypeError, match=f"conv_general_dilated: {argument}=2 must be a sequence of 2 integers"):
        jaxbp.conv_general_dilated(LHS, RHS, **words)


def test_iterators_are_read_as_in_lax():
    for op in (jaxbp.conv_general_dilated, lax.conv_general_dilated):
        assert op(LHS, RHS, iter((2, 1)), zip((1, 0), (0, 1), strict=True), iter((1, 2)), iter((1, 1))).shape == (
            1,
            2,
            3,
            9,
        )
    for op in (OPERATIONS["reduce_window"], lax.reduce_window):
        assert op(*SUMS, (1, 2, 2, 1), iter((1, 2, 1, 1)), zip((0, 1, 0, 0), (0, 0, 1, 0), strict=True)).shape == (
            1,
            3,
            5,
            2,
        )


# ------------------------------------------------------------------------- a window that is larger than its input

EMPTY_CONVS = {
    "both axes": ((1, 2, 4, 4), (2, 2, 5, 5), {}),
    "one axis": ((2, 2, 4, 4), (3, 2, 5, 2), dict(window_strides=(2, 2))),
    "dilated": ((1, 2, 4, 4), (2, 2, 3, 3), dict(rhs_dilation=(2, 1))),
    "input dilated": ((1, 2, 2, 3), (2, 2, 4, 2), dict(lhs_dilation=(2, 1), padding=((0, 0), (0, 0)))),
    "padded": ((1, 2, 4, 4), (2, 2, 7, 2), dict(padding=((1, 1), (0, 1)))),
    "cropped": ((1, 2, 4, 4), (2, 2, 3, 3), dict(padding=((-1, -1), (0, 0)))),
    "all cropped": ((1, 2, 4, 4), (2, 2, 1, 3), dict(padding=((-2, -2), (0, 0)))),
    "groups": ((1, 4, 4, 4), (4, 2, 5, 5), dict(feature_group_count=2)),
    "depthwise": ((1, 4, 4, 4), (4, 1, 5, 3), dict(feature_group_count=4)),
    "batch groups": ((2, 2, 4, 4), (4, 2, 5, 5), dict(batch_group_count=2)),
    "one axis in all": ((1, 2, 3), (2, 2, 4), dict(window_strides=(1,))),
    "three axes": ((1, 2, 3, 3, 3), (2, 2, 2, 4, 2), dict(window_strides=(1, 2, 1))),
}


@pytest.mark.parametrize("name", EMPTY_CONVS)
def test_empty_convolutions(name):
    lhs, rhs, words = EMPTY_CONVS[name]
    words = dict(window_strides=(1, 1), padding="VALID") | words
    arrays = integers(1, lhs), integers(2, rhs)
    ours, theirs = (
        jax.jit(lambda a, b, op=op: value_and_gradients(lambda a, b: op(a, b, **words), a, b))(*arrays)
        for op in (jaxbp.conv_general_dilated, lax.conv_general_dilated)
    )
    assert ours[0].size == 0
    assert_all_equal(ours, theirs)


def test_an_empty_transposed_convolution():
    arrays = integers(1, (1, 3, 4, 2)), integers(2, (3, 3, 2, 3))
    for words in (dict(padding=((-1, -1), (0, 0))), dict(padding=((0, 0), (0, 0)), rhs_dilation=(2, 2))):
        ours, theirs = (
            value_and_gradients(lambda a, b, op=op, words=words: op(a, b, (1, 1), **words), *arrays)
            for op in (jaxbp.conv_transpose, lax.conv_transpose)
        )
        assert ours[0].size == 0
        assert_all_equal(ours, theirs)


EMPTY_WINDOWS = {
    "both axes": ((1, 5, 5, 1), "VALID", None),
    "one axis": ((1, 5, 2, 1), "VALID", None),
    "channels": ((1, 1, 1, 4), "valid", None),
    "batch": ((3, 1, 1, 1), "VALID", None),
    "padded": ((1, 6, 2, 1), ((0, 0), (1, 0), (0, 0), (0, 0)), None),
    "dilated": ((1, 3, 1, 1), "VALID", (1, 2, 1, 1)),
    "cropped": ((1, 2, 2, 1), ((0, 0), (-2, -1), (0, 0), (0, 0)), None),
    "more than all cropped": ((1, 2, 2, 1), ((0, 0), (-3, -3), (0, 0), (0, 0)), None),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("reduction", ["max", "min", "add"])
@pytest.mark.parametrize("name", EMPTY_WINDOWS)
def test_empty_windows_under_swap_lax(name, reduction):
    window, padding, dilation = EMPTY_WINDOWS[name]
    x, start = integers(1, (2, 4, 4, 3)), dict(max=-jnp.inf, min=jnp.inf, add=0.0)[reduction]

    def pool(x):
        return lax.reduce_window(x, start, getattr(lax, reduction), window, (1, 2, 1, 1), padding, None, dilation)

    expected = pool(x)
    assert expected.size == 0
    with jaxbp.swap_lax(__name__):
        value, gradient = value_and_gradients(lambda x: pool(x), x)
        mapped = jax.jit(jax.vmap(jax.grad(lambda x: pool(x).sum())))(x[None])
        second = jax.hessian(lambda x: pool(x).sum())(x)
    assert_all_equal([value, gradient], [expected, jnp.zeros_like(x)])
    assert mapped.shape == (1, *x.shape) and not mapped.any() and second.shape == x.shape * 2 and not second.any()


FIRST = integers(3, (3, 6, 6))
IMAGES = integers(4, (2, 6, 6, 3))


def in_haiku(library, name, **words):
    layer = haiku.without_apply_rng(haiku.transform(lambda x: getattr(library, name)(**words)(x)))
    return lambda x: layer.apply(layer.init(jax.random.key(0), x), x)


def in_linen(library, **words):
    layer = library.Conv(4, **words)
    return lambda x: layer.apply(layer.init(jax.random.key(0), x), x)


# name: (ours, theirs, input), functions of the input
EMPTY_LAYERS = {
    **{
        f"{name} {pool} {words}": (
            lambda x, ours=ours, pool=pool, words=words: getattr(ours, pool)(x, **words),
            lambda x, pool=pool, words=words: getattr(flax_linen.pooling, pool)(x, **words),
            x,
        )
        for name, ours in (("linen", linen), ("nnx", nnx))
        for pool in ("max_pool", "min_pool", "avg_pool")
        for words, x in (
            (dict(window_shape=(7, 7)), IMAGES),
            (dict(window_shape=(7, 2), strides=(2, 2)), IMAGES[0]),
            (dict(window_shape=(9, 2), padding=((1, 1), (0, 0))), IMAGES),
        )
    },
    "linen avg_pool without padding": (
        lambda x: linen.avg_pool(x, (7, 2), count_include_pad=False),
        lambda x: flax_linen.avg_pool(x, (7, 2), count_include_pad=False),
        IMAGES,
    ),
    **{
        f"{name} pool": (
            lambda x, ours=ours: ours.pool(x, -jnp.inf, lax.max, (7, 7), (1, 1), "VALID"),
            lambda x: flax_linen.pool(x, -jnp.inf, lax.max, (7, 7), (1, 1), "VALID"),
            IMAGES,
        )
        for name, ours in (("linen", linen), ("nnx", nnx))
    },
    **{
        f"linen Conv {words}": (in_linen(linen, **words), in_linen(flax_linen, **words), IMAGES)
        for words in (
            dict(kernel_size=(7, 7), padding="VALID"),
            dict(kernel_size=(3, 3), kernel_dilation=(3, 1), padding="VALID"),
            dict(kernel_size=(7, 2), padding=((0, 0), (1, 0)), feature_group_count=1, strides=(2, 1)),
        )
    },
    "nnx Conv": (
        lambda x: nnx.Conv(3, 4, (7, 7), padding="VALID", rngs=nnx.Rngs(0))(x),
        lambda x: flax_nnx.Conv(3, 4, (7, 7), padding="VALID", rngs=nnx.Rngs(0))(x),
        IMAGES,
    ),
    **{
        f"equinox {name} {words}": (
            lambda x, name=name, words=words: getattr(eqx.nn, name)(**words)(x),
            lambda x, name=name, words=words: getattr(equinox.nn, name)(**words)(x),
            FIRST,
        )
        for name, words in (
            ("MaxPool2d", dict(kernel_size=7)),
            ("AvgPool2d", dict(kernel_size=(7, 2), stride=2)),
            ("MaxPool2d", dict(kernel_size=9, padding=1)),
            ("MaxPool2d", dict(kernel_size=9, stride=2, use_ceil=True)),
            ("AvgPool2d", dict(kernel_size=9, stride=2, use_ceil=True)),
            ("Pool", dict(init=jnp.inf, operation=lax.min, num_spatial_dims=2, kernel_size=7)),
            ("Conv2d", dict(in_channels=3, out_channels=2, kernel_size=7, key=jax.random.key(0))),
            ("Conv2d", dict(in_channels=3, out_channels=2, kernel_size=3, dilation=3, key=jax.random.key(0))),
            ("ConvTranspose2d", dict(in_channels=3, out_channels=2, kernel_size=1, padding=3, key=jax.random.key(0))),
        )
    },
    **{
        f"haiku {pool} {window} {axis}": (
            lambda x, pool=pool, window=window, axis=axis: getattr(hk, pool)(x, window, (1, 1, 1), "VALID", axis),
            lambda x, pool=pool, window=window, axis=axis: getattr(haiku, pool)(x, window, (1, 1, 1), "VALID", axis),
            IMAGES,
        )
        for pool in ("max_pool", "avg_pool")
        for window, axis in (((7, 7, 1), -1), ((1, 7, 4), 1), ((7, 7, 7), None))
    },
    **{
        f"haiku {name}": (in_haiku(hk, name, **words), in_haiku(haiku, name, **words), IMAGES)
        for name, words in {
            "MaxPool": dict(window_shape=(7, 7, 1), strides=(1, 1, 1), padding="VALID"),
            "AvgPool": dict(window_shape=(7, 2, 1), strides=(1, 1, 1), padding="VALID"),
            "Conv2D": dict(output_channels=2, kernel_shape=7, padding="VALID"),
            "Conv2DTranspose": dict(output_channels=2, kernel_shape=1, padding=((-3, -3), (0, 0))),
            "DepthwiseConv2D": dict(channel_multiplier=2, kernel_shape=(7, 3), padding="VALID"),
            "SeparableDepthwiseConv2D": dict(channel_multiplier=1, kernel_shape=7, padding="VALID"),
        }.items()
    },
}  # fmt: skip


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", EMPTY_LAYERS)
def test_empty_layers_of_the_adapters(name):
    ours, theirs, x = EMPTY_LAYERS[name]
    expected = theirs(x)
    value, gradient = value_and_gradients(ours, x)
    assert expected.size == 0
    assert_all_equal([value, gradient], [expected, jnp.zeros_like(x)])


@pytest.mark.parametrize("op", ["max_pool", "min_pool", "avg_pool", "sum_pool", "lp_pool", "max_pool_with_winners"])
def test_jaxbps_own_pools_keep_their_error(op):
    with pytest.raises(ValueError, match=rf"{op}: along spatial axis 0 the window spans 7 pixels .* has only 6"):
        getattr(jaxbp, op)(IMAGES, (7, 7))


def test_jaxbps_own_convolution_keeps_its_error():
    with pytest.raises(ValueError, match=r"conv: along spatial axis 0 the window spans 7 pixels .* has only 6"):
        jaxbp.conv(IMAGES, integers(1, (7, 7, 3, 2)), padding="VALID")


@pytest.mark.parametrize("library", [linen, nnx])
@pytest.mark.parametrize("pool", ["max_pool", "min_pool"])
@pytest.mark.parametrize("words", [dict(strides=2), dict(strides=(2,)), dict(padding=1), dict(padding=((1, 1),))])
def test_flax_pools_refuse_what_flax_refuses(library, pool, words):
    for function in (getattr(flax_linen.pooling, pool), getattr(library, pool)):
        with pytest.raises((TypeError, AssertionError)):
            function(IMAGES, (2, 2), **words)
