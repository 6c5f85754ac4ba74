"""The named cases that every test file iterates over, and the data and tolerances to run them with."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from loops import axis_padding, per_axis


class Conv(NamedTuple):
    """A convolution: x of (*batch, *spatial, C), kernel of (*window, C / groups, O), and `conv`'s keywords."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    arguments: dict[str, Any] = {}  # noqa: RUF012


class Pool(NamedTuple):
    """A pool over inputs of (*batch, *spatial, C), with the arguments that all windowed pools share."""

    inputs: tuple[int, ...]
    window: tuple[int, ...]
    arguments: dict[str, Any] = {}  # noqa: RUF012


CONVS = {
    "defaults": Conv((2, 5, 6, 2), (3, 3, 2, 3)),
    "valid": Conv((2, 5, 6, 2), (3, 2, 2, 3), dict(padding="VALID")),
    "1x1": Conv((2, 4, 3, 3), (1, 1, 3, 2)),
    "1x1, strided": Conv((2, 5, 4, 3), (1, 1, 3, 2), dict(strides=2)),
    "even kernel, same": Conv((1, 5, 6, 1), (2, 4, 1, 2), dict(padding="SAME")),
    "even kernel, same_lower": Conv((1, 5, 6, 1), (2, 4, 1, 2), dict(padding="SAME_LOWER")),
    "even kernel, strided, same": Conv((1, 7, 6, 1), (4, 2, 1, 2), dict(strides=(2, 3))),
    "even kernel, strided, same_lower": Conv((1, 7, 6, 1), (4, 2, 1, 2), dict(strides=(2, 3), padding="SAME_LOWER")),
    "stride > window": Conv((2, 8, 7, 2), (2, 2, 2, 1), dict(strides=3, padding="VALID")),
    "stride = window, pixels left over": Conv((2, 7, 8, 1), (3, 3, 1, 2), dict(strides=3, padding="VALID")),
    "one integer of padding": Conv((2, 4, 5, 1), (3, 3, 1, 2), dict(padding=1)),
    "one integer of padding per axis": Conv((2, 4, 5, 1), (3, 3, 1, 2), dict(padding=(2, 0))),
    "asymmetric padding": Conv((2, 4, 5, 1), (3, 2, 1, 2), dict(padding=((0, 2), (3, 1)))),
    "negative padding": Conv((2, 7, 8, 1), (3, 2, 1, 2), dict(padding=((-1, 0), (-2, -1)))),
    "negative and positive padding": Conv((1, 6, 6, 1), (3, 3, 1, 1), dict(padding=((-2, 3), (4, -3)), strides=2)),
    "windows wholly in padding": Conv((1, 3, 4, 1), (2, 2, 1, 2), dict(padding=((5, 0), (3, 4)))),
    "many channels, windows wholly in padding": Conv((1, 3, 4, 9), (2, 2, 9, 4), dict(padding=((5, 0), (3, 4)))),
    "many channels, cropped and padded": Conv(
        (2, 6, 6, 12), (3, 3, 12, 4), dict(padding=((-2, 1), (1, -3)), strides=2)
    ),
    "many channels, 3x3": Conv((3, 7, 5, 32), (3, 3, 32, 32), dict(padding="SAME")),
    "kernel dilation": Conv((2, 7, 8, 2), (3, 2, 2, 1), dict(kernel_dilation=(2, 3))),
    "kernel dilation, strided": Conv((1, 9, 8, 1), (3, 2, 1, 2), dict(kernel_dilation=2, strides=(3, 2))),
    "input dilation": Conv((2, 4, 3, 2), (3, 2, 2, 1), dict(input_dilation=(2, 3), padding=1)),
    "input dilation of a window of one pixel": Conv(
        (2, 4, 3, 2), (1, 1, 2, 3), dict(input_dilation=(2, 3), padding=((0, 1), (1, 0)))
    ),
    "input dilation of fewer pixels than the window along one axis": Conv(
        (2, 3, 4, 2), (2, 5, 2, 3), dict(input_dilation=(2, 3), padding=0)
    ),
    "input dilation, strided": Conv((1, 4, 5, 1), (3, 3, 1, 2), dict(input_dilation=(3, 2), strides=(2, 3), padding=2)),
    "both dilations, negative padding": Conv(
        (1, 5, 4, 1), (2, 3, 1, 1), dict(input_dilation=(2, 3), kernel_dilation=(3, 2), padding=((-1, 2), (1, -2)))
    ),
    "groups": Conv((2, 5, 4, 4), (3, 2, 2, 6), dict(feature_group_count=2)),
    "groups, strided": Conv((1, 6, 5, 6), (3, 3, 2, 3), dict(feature_group_count=3, strides=2)),
    "depthwise": Conv((2, 5, 4, 3), (3, 3, 1, 3), dict(feature_group_count=3)),
    "depthwise with multiplier": Conv(
        (2, 6, 5, 3), (3, 2, 1, 6), dict(feature_group_count=3, strides=(2, 1), padding=((1, 0), (0, 2)))
    ),
    "depthwise, dilated": Conv((1, 7, 6, 2), (3, 3, 1, 2), dict(feature_group_count=2, kernel_dilation=2)),
    "depthwise, a large window": Conv((2, 8, 6, 2), (9, 8, 1, 4), dict(feature_group_count=2, strides=(1, 2))),
    "0-D": Conv((3, 2), (2, 4)),
    "0-D, groups": Conv((3, 4), (2, 6), dict(feature_group_count=2)),
    "0-D, depthwise": Conv((3, 2), (1, 2), dict(feature_group_count=2)),
    "1-D": Conv((2, 9, 2), (4, 2, 3), dict(strides=2)),
    "1-D, causal, dilated": Conv((2, 9, 2), (3, 2, 2), dict(padding=((4, 0),), kernel_dilation=2)),
    "3-D": Conv((2, 3, 4, 3, 2), (2, 3, 2, 2, 2), dict(strides=(1, 2, 1))),
    "3-D, groups": Conv((1, 3, 3, 4, 2), (2, 2, 2, 1, 4), dict(feature_group_count=2, padding="VALID")),
    "4-D": Conv((1, 2, 3, 2, 3, 1), (2, 2, 1, 2, 1, 2), dict(padding="VALID")),
    "no batch axis": Conv((5, 4, 2), (3, 3, 2, 3), dict(strides=2)),
    "two batch axes": Conv((2, 3, 4, 5, 1), (2, 2, 1, 2)),
    "kernel as large as the input": Conv((2, 4, 5, 2), (4, 5, 2, 3), dict(padding="VALID")),
    "large kernel": Conv((1, 9, 10, 1), (9, 8, 1, 1), dict(padding="SAME")),
    "patches": Conv((1, 8, 8, 3), (4, 4, 3, 5), dict(strides=4, padding="VALID")),
    "one pixel": Conv((1, 1, 1, 1), (1, 1, 1, 1)),
    "empty batch": Conv((0, 5, 4, 2), (3, 3, 2, 3)),
    "empty axis": Conv((2, 0, 4, 2), (3, 3, 2, 3), dict(padding=1)),
    "no features": Conv((2, 5, 4, 2), (3, 3, 2, 0)),
    "no channels": Conv((2, 5, 4, 0), (3, 3, 0, 3)),
}

POOLS = {
    "disjoint": Pool((2, 4, 6, 2), (2, 2), dict(strides=2)),
    "default strides": Pool((2, 5, 4, 2), (2, 3)),
    "overlap": Pool((2, 7, 6, 1), (3, 3), dict(strides=(2, 2))),
    "overlap, same": Pool((2, 7, 6, 1), (3, 3), dict(strides=2, padding="SAME")),
    "stride 1, same": Pool((1, 5, 4, 2), (3, 3), dict(padding="SAME")),
    "even window, same": Pool((1, 6, 5, 1), (2, 4), dict(strides=(1, 3), padding="SAME")),
    "even window, same_lower": Pool((1, 6, 5, 1), (2, 4), dict(strides=(1, 3), padding="SAME_LOWER")),
    "stride > window": Pool((2, 8, 7, 1), (2, 1), dict(strides=(3, 3))),
    "pixels left over": Pool((1, 7, 8, 2), (3, 3), dict(strides=3)),
    "one integer of padding": Pool((1, 5, 4, 2), (3, 3), dict(strides=2, padding=1)),
    "asymmetric padding": Pool((2, 5, 4, 1), (3, 2), dict(strides=(2, 1), padding=((0, 2), (1, 0)))),
    "negative padding": Pool((2, 7, 8, 1), (3, 2), dict(strides=2, padding=((-1, 0), (-2, -1)))),
    "negative and positive padding": Pool((1, 7, 6, 1), (3, 3), dict(strides=2, padding=((-2, 2), (1, -1)))),
    "windows wholly in padding": Pool((1, 3, 4, 1), (2, 2), dict(strides=(1, 2), padding=((3, 0), (2, 3)))),
    "window dilation": Pool((1, 8, 7, 2), (3, 2), dict(strides=(2, 1), window_dilation=(2, 3))),
    "window dilation, padding": Pool(
        (1, 6, 7, 1), (3, 2), dict(strides=2, window_dilation=2, padding=((2, 1), (0, 3)))
    ),
    "dilation and stride share a factor": Pool((1, 11, 9, 1), (3, 2), dict(strides=(4, 2), window_dilation=(2, 4))),
    "ceil_mode": Pool((1, 6, 7, 2), (3, 2), dict(strides=2, ceil_mode=True)),
    "ceil_mode, padding": Pool((1, 6, 8, 1), (3, 3), dict(strides=(2, 3), padding=1, ceil_mode=True)),
    "ceil_mode, last window starts in padding": Pool(
        (1, 5, 4, 1), (2, 2), dict(strides=(2, 3), padding=1, ceil_mode=True)
    ),
    "ceil_mode, window dilation": Pool(
        (1, 8, 7, 1), (2, 3), dict(strides=3, padding=1, window_dilation=2, ceil_mode=True)
    ),
    "global": Pool((2, 4, 3, 2), (4, 3)),
    "large window": Pool((1, 7, 6, 1), (5, 4), dict(padding="SAME")),
    "large window, large overlap": Pool((1, 8, 8, 1), (6, 6), dict(padding="SAME")),
    "large window along the first axis": Pool((1, 9, 3, 2), (17, 1), dict(padding="SAME")),
    "large window along the last axis": Pool((1, 3, 9, 2), (1, 17), dict(padding="SAME")),
    "large window, the last axis strided alone": Pool(
        (1, 7, 6, 5, 1), (6, 5, 1), dict(padding=((3, 2), (2, 2), (1, 0)), strides=(1, 1, 2))
    ),
    "large window, strided, dilated": Pool(
        (1, 11, 12, 1), (5, 4), dict(strides=2, window_dilation=2, padding=((3, 2), (1, 4)))
    ),
    "window of one pixel": Pool((2, 4, 3, 1), (1, 1), dict(strides=2)),
    "1-D": Pool((2, 9, 2), (3,), dict(strides=2)),
    "3-D": Pool((1, 4, 3, 5, 1), (2, 2, 3), dict(strides=(2, 1, 2), padding="SAME")),
    "no batch axis": Pool((5, 4, 2), (2, 2)),
    "two batch axes": Pool((2, 2, 4, 5, 1), (3, 2), dict(strides=2)),
    "empty batch": Pool((0, 5, 4, 2), (2, 2)),
    "empty axis": Pool((2, 0, 4, 1), (2, 2), dict(padding=1)),
    "no channels": Pool((2, 5, 4, 0), (2, 2)),
}

# What each pool takes beyond the arguments that all share.
POOL_ARGUMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "max_pool": {"": {}},
    "min_pool": {"": {}},
    "sum_pool": {"": {}},
    "avg_pool": {
        "": {},
        "without padding": dict(count_include_pad=False),
        "own divisor": dict(divisor_override=3),
    },
    "lp_pool": {"": {}, "p = 1": dict(p=1.0), "p = 3": dict(p=3.0), "p = inf": dict(p=float("inf"))},
}

ADAPTIVE = {
    "divides": ((2, 6, 4, 2), (3, 2)),
    "does not divide": ((2, 7, 5, 2), (3, 2)),
    "more windows than pixels": ((1, 3, 2, 1), (5, 4)),
    "global": ((2, 5, 4, 3), (1, 1)),
    "one axis divides": ((1, 6, 5, 1), (3, 3)),
    "identity": ((1, 4, 3, 2), (4, 3)),
    "1-D": ((2, 9, 2), (4,)),
    "3-D": ((1, 4, 3, 5, 1), (2, 2, 3)),
    "no batch axis": ((5, 7, 2), (2, 3)),
    "two batch axes": ((2, 2, 5, 3, 1), (2, 2)),
    "empty batch": ((0, 5, 4, 2), (2, 3)),
}

# lhs, rhs and output layouts of `conv_general_dilated`, over which the cases above are spread.
LAYOUTS = {
    0: [None, ("NC", "OI", "NC"), ("CN", "IO", "NC"), ("NC", "IO", "CN")],
    1: [None, ("NWC", "WIO", "NWC"), ("WNC", "OWI", "CWN"), ("CNW", "IOW", "NCW")],
    2: [
        None,
        ("NCHW", "OIHW", "NCHW"),
        ("NHWC", "HWIO", "NHWC"),
        ("NHWC", "OIHW", "NCHW"),
        ("NCHW", "HWIO", "NHWC"),
        ("CHWN", "IHWO", "HWNC"),
        ("HWCN", "OHWI", "CNHW"),
        ("NWHC", "WHIO", "NWHC"),
        ("WNHC", "HOWI", "HCNW"),
    ],
    3: [None, ("NCDHW", "OIDHW", "NCDHW"), ("NDHWC", "DHWIO", "NDHWC"), ("CDNHW", "ODIHW", "DHNCW")],
    4: [None, ("N0123C", "0123IO", "NC0123")],
}


class Op(NamedTuple):
    """A public op as a function of its arrays: `call(jaxbp, *arrays)`, or `call(jaxbp.automatic, *arrays)`."""

    call: Callable[..., jax.Array]
    shapes: tuple[tuple[int, ...], ...]
    integer: int | None = None  # which array holds integers, and is not differentiated
    limit: int = 0  # the integers are from 0 up to this
    like: str = "normal"  # "distinct": numbers without ties

    def arrays(self, dtype: Any = np.float32) -> tuple[jax.Array, ...]:
        """Data to call it with."""
        numbers = distinct if self.like == "distinct" else normal
        return tuple(
            from_numpy(np.random.default_rng(i).integers(0, self.limit, shape), np.int32)
            if i == self.integer
            else numbers(i, shape, dtype)
            for i, shape in enumerate(self.shapes)
        )

    @property
    def differentiable(self) -> tuple[int, ...]:
        """The positions of the arrays that have a gradient."""
        return tuple(i for i in range(len(self.shapes)) if i != self.integer)


def _pool(op: str, *arguments: Any, **keywords: Any) -> Callable[..., jax.Array]:
    return lambda ops, x: getattr(ops, op)(x, *arguments, **keywords)


# Every forward op, small, for whatever happens around it: transformations, meshes, the program that is exported.
OPS = {
    "conv": Op(
        lambda ops, x, kernel, bias: ops.conv(x, kernel, bias, strides=2, kernel_dilation=2, feature_group_count=2),
        ((2, 5, 4, 2), (2, 2, 1, 2), (2,)),
    ),
    "conv_general_dilated": Op(
        lambda ops, x, kernel: ops.conv_general_dilated(
            x, kernel, (2, 1), ((1, 0), (0, 1)), (1, 2), (1, 1), ("NHWC", "OIHW", "NHWC")
        ),
        ((2, 5, 4, 2), (2, 2, 2, 2)),
    ),
    "conv_transpose": Op(
        lambda ops, x, kernel: ops.conv_transpose(x, kernel, (2, 1), "SAME"), ((2, 3, 4, 2), (3, 2, 2, 2))
    ),
    "max_pool": Op(_pool("max_pool", (3, 2), (2, 1), "SAME"), ((2, 5, 4, 2),), like="distinct"),
    "min_pool": Op(_pool("min_pool", (2, 2), (2, 2)), ((2, 4, 4, 2),), like="distinct"),
    "avg_pool": Op(_pool("avg_pool", (3, 2), (2, 1), "SAME", False), ((2, 5, 4, 2),)),
    "sum_pool": Op(_pool("sum_pool", (2, 2), (1, 2)), ((2, 5, 4, 2),)),
    "lp_pool": Op(_pool("lp_pool", (2, 2), (2, 1), p=3.0), ((2, 4, 4, 2),), like="distinct"),
    "max_pool_with_winners": Op(
        lambda ops, x: ops.max_pool_with_winners(x, (2, 2), (2, 1))[0], ((2, 4, 4, 2),), like="distinct"
    ),
    "max_unpool": Op(
        lambda ops, y, winners: ops.max_unpool(y, winners, (2, 2), (2, 2)),
        ((2, 2, 2, 2), (2, 2, 2, 2)),
        integer=1,
        limit=4,
    ),
    "adaptive_avg_pool": Op(_pool("adaptive_avg_pool", (2, 3)), ((2, 5, 3, 2),)),
    "adaptive_max_pool": Op(_pool("adaptive_max_pool", (2, 3)), ((2, 5, 3, 2),), like="distinct"),
    "dense": Op(lambda ops, x, kernel, bias: ops.dense(x, kernel, bias), ((2, 3), (3, 4), (4,))),
    "relu": Op(lambda ops, x: ops.relu(x), ((2, 3, 2),)),
    "sigmoid": Op(lambda ops, x: ops.sigmoid(x), ((2, 3, 2),)),
    "tanh": Op(lambda ops, x: ops.tanh(x), ((2, 3, 2),)),
    "softmax_cross_entropy": Op(
        lambda ops, logits, labels: ops.softmax_cross_entropy(logits, labels), ((4, 3), (4,)), integer=1, limit=3
    ),
}


def lax_is_right(x: tuple[int, ...], kernel: tuple[int, ...], arguments: dict[str, Any]) -> bool:
    """Whether XLA:CPU convolves correctly, forward and backward (for the shapes and keywords of a `Conv`).

    Where it crops at the start of an axis and pads at its end, it reads outside the buffer:
    https://github.com/openxla/xla/issues/48713. Where it might exchange operands, but not along an axis on which their
    sizes differ, it may abort the process. Such cases are compared with the loops alone.
    """
    rank = len(kernel) - 2
    facts = (per_axis(arguments.get(name, default), rank) for name, default in (
        ("strides", 1), ("padding", "SAME"), ("input_dilation", 1), ("kernel_dilation", 1)
    ))  # fmt: skip
    for n, k, s, padding, i, d in zip(x[len(x) - rank - 1 : -1], kernel[:rank], *facts, strict=True):
        span, dilated = (k - 1) * d + 1, (n - 1) * i + 1
        low, high = axis_padding(dilated, k, s, padding, d)
        out = (low + dilated + high - span) // s + 1
        full_low = span - 1 - low
        full_high = dilated + span - 2 - (out - 1) * s - full_low
        if low < 0 < high or full_low < 0 < full_high:
            return False
        read = (low, span + (out - 1) * s - low - dilated)
        sums = ((n, k, s, (low, high), i, d), (n, out, d, read, i, s), (out, k, i, (full_low, full_high), s, d))
        for pixels, window, step, ends, apart, between in sums:
            if pixels != window == apart == step + 1 and ends == (0, 0) and between == 1:
                return False
    return True


def from_numpy(numbers: np.ndarray, dtype: Any) -> jax.Array:
    """An array of the dtype, converted without a compiled program."""
    return jnp.asarray(numbers.astype(jax.dtypes.canonicalize_dtype(dtype)))


def integers(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> jax.Array:
    """Small integers, with many ties: sums of their products are exact, so that right results are equal bit for bit."""
    numbers = np.random.default_rng(seed).integers(-3, 4, shape)
    if np.issubdtype(dtype, np.complexfloating):
        numbers = numbers + 1j * np.random.default_rng(seed + 1).integers(-3, 4, shape)
    return from_numpy(numbers, dtype)


def normal(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> jax.Array:
    """Normally distributed numbers."""
    return from_numpy(np.random.default_rng(seed).normal(size=shape), dtype)


def distinct(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> jax.Array:
    """Small multiples of 1/4, all different: no ties, and no zero."""
    order = np.random.default_rng(seed).permutation(int(np.prod(shape)))
    return from_numpy((order.reshape(shape) - int(np.prod(shape)) // 2) / 4 + 0.125, dtype)


def assert_equal(actual: Any, expected: Any) -> None:
    """The same tree, shapes, dtypes and numbers."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_exact(actual: jax.Array, expected: np.ndarray) -> None:
    """The float64 number of the loops, rounded once to the array's own dtype."""
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected).astype(actual.dtype), strict=True)


def assert_sums_close(actual: Any, expected: Any, terms: int, largest: float = 1.0) -> None:
    """Sums of `terms` numbers of magnitude `largest`: each term may be rounded once in the array's own dtype."""
    assert np.shape(actual) == np.shape(expected)
    tolerance = float(jnp.finfo(actual.dtype).eps) * terms * largest
    wide = np.complex128 if jnp.issubdtype(actual.dtype, jnp.complexfloating) else np.float64
    np.testing.assert_allclose(np.asarray(actual, wide), np.asarray(expected, wide), rtol=0, atol=tolerance)


def pull_back(function: Callable[..., jax.Array], *primals: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The value, and the gradients that pull small integers back from it."""
    value, pullback = jax.vjp(function, *primals)
    return value, pullback(delta_of(value))


def delta_of(value: jax.Array) -> jax.Array:
    """Small integers in the shape and dtype of an output."""
    return integers(99, value.shape, value.dtype)


def runs_jaxbp(function: Callable[..., Any], *args: Any) -> bool:
    """Whether an op of jaxbp is among a function's equations: a primitive of the package, or a pool's custom_vjp."""
    # A new function, so that no trace from another context is reused.
    text = str(jax.make_jaxpr(lambda *args: function(*args))(*args))
    return re.search(r"custom_vjp_call|= (conv|conv_in_layout|dense)\[", text) is not None
