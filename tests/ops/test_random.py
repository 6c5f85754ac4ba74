"""Random arguments of convolutions and pools: against the loops, bit for bit, and lax where it has an answer.

By default a few fixed cases; `JAXBP_EXAMPLES=5000 pytest tests/ops/test_random.py` tries as many new ones of each.
"""

import itertools

import jax
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from jax import lax

import jaxbp
import loops
from cases import Conv, assert_equal, assert_exact, assert_sums_close, delta_of, integers, lax_is_right, pull_back

RANKS = (0, 1, 1, 2, 2, 2, 2, 3, 3)
counter = itertools.count(1)


def forget_programs():
    """Compiled programs of thousands of geometries would fill the memory."""
    if next(counter) % 400 == 0:
        jax.clear_caches()


@st.composite
def paddings(draw, sizes, spans, strides, words=True):
    """A padding for which every window fits at least once, in one of its spellings."""
    rank = len(sizes)
    spelling = draw(st.sampled_from(["word", "pairs", "pairs", "integers", "integer"] if words else ["pairs"]))
    if spelling == "word":
        word = draw(st.sampled_from(["SAME", "SAME_LOWER", "VALID", "same"]))
        return word if word != "VALID" or all(n >= k for n, k in zip(sizes, spans, strict=True)) else "SAME"
    if spelling == "integer" and rank:
        value = draw(st.integers(0, 3))
        assume(all(n + 2 * value >= k for n, k in zip(sizes, spans, strict=True)))
        return value
    pairs = []
    for n, k in zip(sizes, spans, strict=True):
        low = draw(st.integers(-min(2, n), 4))
        high = draw(st.integers(max(-2, k - n - low, -n - low), max(5, k - n - low)))
        pairs.append((low, high))
    if spelling == "integers" and all(low == high for low, high in pairs):
        return tuple(low for low, _ in pairs)
    return tuple(pairs)


@st.composite
def convolutions(draw, common_only=False):
    """Any arguments of `conv`."""
    rank = 2 if common_only else draw(st.sampled_from(RANKS))
    largest = {0: 1, 1: 9, 2: 6, 3: 4}[rank]
    sizes = [draw(st.integers(1, largest)) for _ in range(rank)]
    window = [draw(st.integers(1, 3 if rank > 1 else 4)) for _ in range(rank)]
    strides, dilation, input_dilation = ([draw(st.sampled_from([1, 1, 2, 3])) for _ in range(rank)] for _ in range(3))
    if draw(st.booleans()):
        input_dilation = [1] * rank
    dilated = [(n - 1) * i + 1 for n, i in zip(sizes, input_dilation, strict=True)]
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    group_channels, group_features = (draw(st.sampled_from(few)) for few in ([1, 1, 2, 3, 4, 8, 18], [1, 2, 3, 16, 16]))
    batch = draw(st.sampled_from([1, 2, 3, 2]))
    common = draw(st.integers(0, 2 if common_only else 9)) if rank == 2 else None
    if common in (0, 1, 2):
        # The commonest layers of all: many channels and 3x3, few inputs and 5x5, few outputs and 3x3.
        size, batch = [(3, 8), (5, draw(st.sampled_from([1, 32]))), (3, 16)][common]
        sizes, groups = [n + (12 if common == 1 else 6) for n in sizes], 1
        window, dilated, input_dilation = [size, size], sizes, [1, 1]
        apart = draw(st.sampled_from([([1, 1], [1, 1]), ([1, 1], [1, 2]), ([1, 1], [2, 2]), ([1, 2], [1, 1])]))
        strides, dilation = apart if common == 0 else ([1, 1], [1, 1])
        spans = [(size - 1) * d + 1 for d in dilation]
        many = draw(st.sampled_from([32, 64]))
        group_channels, group_features = [
            (many, many),
            (3, draw(st.sampled_from([3, 5, 7, 16]))),
            (18, draw(st.integers(1, 3))),
        ][common]
    arguments = dict(
        strides=tuple(strides),
        padding=draw(paddings(dilated, spans, strides, words=input_dilation == [1] * rank)),
        kernel_dilation=tuple(dilation),
        input_dilation=tuple(input_dilation),
        feature_group_count=groups,
    )
    if rank and draw(st.booleans()) and len(set(strides)) == 1:
        arguments["strides"] = strides[0]
    x = (batch, *sizes, groups * group_channels)
    return Conv(x, (*window, group_channels, groups * group_features), arguments)


def lower_cased(arguments):
    """The arguments as the loops take them: padding words in capitals."""
    padding = arguments["padding"]
    return arguments | dict(padding=padding.upper() if isinstance(padding, str) else padding)


@given(convolutions(), st.sampled_from([(), (2,), (2, 2)]))
def test_conv(case, batch):
    """Value and gradients; with no batch axis, one, or two."""
    forget_programs()
    case = case._replace(x=(*batch, *case.x[1:]))
    primals = integers(1, case.x), integers(2, case.kernel), integers(3, case.kernel[-1:])

    def run(ops):
        return jax.jit(lambda *p: pull_back(lambda *p: ops.conv(*p, **case.arguments), *p))(*primals)

    z, gradients = run(jaxbp)
    arguments = lower_cased(case.arguments)
    assert_exact(z, loops.conv(*primals, **arguments))
    for gradient, e in zip(gradients, loops.conv(*primals, delta=delta_of(z), **arguments), strict=True):
        assert_exact(gradient, e)
    if lax_is_right(case.x, case.kernel, arguments):
        assert_equal((z, gradients), run(jaxbp.automatic))


@given(convolutions(), st.randoms(use_true_random=False), st.sampled_from([1, 1, 2, 3]))
def test_conv_general_dilated(case, random, batch_groups):
    """Any layout, and groups of the batch; against loops where there is one group, and lax."""
    forget_programs()
    rank = len(case.kernel) - 2
    orders = [random.sample(range(rank + 2), rank + 2) for _ in range(3)]
    dn = lax.ConvDimensionNumbers(*map(tuple, orders))
    x_shape, kernel_shape, groups = case.x, case.kernel, case.arguments["feature_group_count"]
    if batch_groups > 1:
        groups = 1
        x_shape = (2 * batch_groups, *x_shape[1:-1], kernel_shape[-2])
        kernel_shape = (*kernel_shape[:-1], 2 * batch_groups)
    words = dict(
        window_strides=loops.per_axis(case.arguments["strides"], rank),
        padding=case.arguments["padding"],
        lhs_dilation=case.arguments["input_dilation"],
        rhs_dilation=case.arguments["kernel_dilation"],
        feature_group_count=groups,
        batch_group_count=batch_groups,
    )
    if not isinstance(words["padding"], str):
        words["padding"] = tuple((p, p) if isinstance(p, int) else p for p in loops.per_axis(words["padding"], rank))
    x, kernel = integers(1, x_shape), integers(2, kernel_shape)
    to_lhs = np.argsort((dn.lhs_spec[0], *dn.lhs_spec[2:], dn.lhs_spec[1]))
    to_rhs = np.argsort((*dn.rhs_spec[2:], dn.rhs_spec[1], dn.rhs_spec[0]))
    back = (dn.out_spec[0], *dn.out_spec[2:], dn.out_spec[1])

    def run(function):
        return jax.jit(lambda a, b: pull_back(lambda a, b: function(a, b, dimension_numbers=dn, **words), a, b))(
            x.transpose(to_lhs), kernel.transpose(to_rhs)
        )

    z, (dlhs, drhs) = run(jaxbp.conv_general_dilated)
    arguments = lower_cased(case.arguments)
    if batch_groups == 1:
        assert_exact(z.transpose(back), loops.conv(x, kernel, **arguments))
        dx, dkernel, _ = loops.conv(x, kernel, delta=np.transpose(delta_of(z), back), **arguments)
        assert_exact(dlhs, dx.transpose(to_lhs))
        assert_exact(drhs, dkernel.transpose(to_rhs))
    if lax_is_right(x_shape, kernel_shape, arguments):
        assert_equal((z, (dlhs, drhs)), run(lax.conv_general_dilated))


@st.composite
def pools(draw):
    """A pool and any of its arguments."""
    rank = draw(st.sampled_from(RANKS[1:]))
    largest = {1: 9, 2: 6, 3: 4}[rank]
    sizes = [draw(st.integers(1, largest)) for _ in range(rank)]
    window = [draw(st.integers(1, 5 if rank < 3 else 3)) for _ in range(rank)]
    strides, dilation = ([draw(st.sampled_from([1, 1, 2, 3])) for _ in range(rank)] for _ in range(2))
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    op = draw(st.sampled_from(["max_pool", "min_pool", "avg_pool", "sum_pool", "lp_pool"]))
    arguments = dict(
        strides=draw(st.sampled_from([tuple(strides), None, strides[0]])),
        window_dilation=draw(st.sampled_from([tuple(dilation), None if set(dilation) == {1} else tuple(dilation)])),
        ceil_mode=draw(st.booleans()),
    )
    arguments["padding"] = draw(paddings(sizes, spans, loops.per_axis(arguments["strides"], rank)))
    if not isinstance(arguments["padding"], str):
        # A crop of the end leaves open what a window that hangs over it would read, and is refused.
        highs = [p if isinstance(p, int) else p[1] for p in loops.per_axis(arguments["padding"], rank)]
        arguments["ceil_mode"] &= min(highs) >= 0
    if op == "avg_pool":
        arguments["count_include_pad"] = draw(st.booleans())
        arguments["divisor_override"] = draw(st.sampled_from([None, None, 2, 7]))
    if op == "lp_pool":
        arguments["p"] = draw(st.sampled_from([1.0, 2.0, 3.0, float("inf")]))
    batch = draw(st.sampled_from([(), (1,), (2,), (2, 2)]))
    return op, (*batch, *sizes, draw(st.integers(1, 2))), tuple(window), arguments


@given(pools())
def test_pool(case):
    forget_programs()
    op, shape, window, arguments = case
    x = integers(1, shape)
    pooled, (dx,) = jax.jit(lambda x: pull_back(lambda x: getattr(jaxbp, op)(x, window, **arguments), x))(x)
    delta = delta_of(pooled)
    expected, winners, expected_dx = loops.pool(op[:-5], x, window, **lower_cased(arguments), delta=delta)
    terms = int(np.prod(window))
    if op in ("max_pool", "min_pool", "sum_pool"):
        assert_exact(pooled, expected)
        assert_exact(dx, expected_dx)
    else:
        assert_sums_close(pooled, expected, terms, 9)
        assert_sums_close(dx, expected_dx, terms, 9)
    if op == "max_pool":
        again, ours = jaxbp.max_pool_with_winners(x, window, **arguments)
        np.testing.assert_array_equal(again, pooled)
        np.testing.assert_array_equal(ours, winners)
        back, (dvalues,) = pull_back(
            lambda v: jaxbp.max_unpool(v, ours, window, **arguments, input_shape=shape), integers(2, pooled.shape)
        )
        expected, expected_dvalues = loops.unpool(
            integers(2, pooled.shape), winners, shape, window, **lower_cased(arguments), delta=delta_of(back)
        )
        assert_exact(back, expected)
        assert_exact(dvalues, expected_dvalues)
    elif op != "min_pool":
        twin = getattr(jaxbp.automatic, op)(x, window, **arguments)
        np.testing.assert_allclose(pooled, twin, rtol=1e-6 * terms, atol=1e-6 * terms)


@st.composite
def transposed(draw):
    """Any arguments of `conv_transpose`."""
    rank = draw(st.sampled_from(RANKS))
    sizes = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    window = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    strides, dilation = (tuple(draw(st.sampled_from([1, 2, 3])) for _ in range(rank)) for _ in range(2))
    channels, features = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    swapped, consistent = draw(st.booleans()), draw(st.booleans())
    padding = draw(st.sampled_from(["SAME", "VALID", "pairs"]))
    if padding == "pairs":
        spans = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
        top = [k - 1 if consistent else 3 for k in spans]
        padding = tuple((draw(st.integers(0, t)), draw(st.integers(0, t))) for t in top)
        for n, s, k, (low, high) in zip(sizes, strides, spans, padding, strict=True):
            pixels = (n - 1) * s + 1 + (2 * (k - 1) - low - high if consistent else low + high)
            assume(pixels >= k)
    kernel = (*window, features, channels) if swapped else (*window, channels, features)
    words = dict(rhs_dilation=dilation, transpose_kernel=swapped, use_consistent_padding=consistent)
    return (2, *sizes, channels), kernel, dict(strides=strides, padding=padding, **words)


@given(transposed())
def test_conv_transpose(case):
    forget_programs()
    lhs_shape, rhs_shape, words = case
    lhs, rhs = integers(1, lhs_shape), integers(2, rhs_shape)

    def run(function):
        return jax.jit(lambda a, b: pull_back(lambda a, b: function(a, b, **words), a, b))(lhs, rhs)

    z, (dlhs, drhs) = run(jaxbp.conv_transpose)
    turn = loops.exchanged if words["transpose_kernel"] else np.asarray
    kernel, arguments = turn(rhs), loops.as_conv(rhs_shape[:-2], **words)
    assert_exact(z, loops.conv(lhs, kernel, **arguments))
    dx, dkernel, _ = loops.conv(lhs, kernel, delta=delta_of(z), **arguments)
    assert_exact(dlhs, dx)
    assert_exact(drhs, turn(dkernel))
    if lax_is_right(lhs_shape, kernel.shape, arguments):
        assert_equal((z, (dlhs, drhs)), run(lax.conv_transpose))


@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 5)), min_size=1, max_size=3),
    st.sampled_from(["avg", "max"]),
)
def test_adaptive_pool(axes, kind):
    forget_programs()
    sizes, output = zip(*axes, strict=True)
    x = integers(1, (2, *sizes, 1))
    function = getattr(jaxbp, f"adaptive_{kind}_pool")
    pooled, (dx,) = jax.jit(lambda x: pull_back(lambda x: function(x, output), x))(x)
    expected, expected_dx = loops.adaptive_pool(kind, x, output, delta_of(pooled))
    if kind == "max":
        assert_exact(pooled, expected)
        assert_exact(dx, expected_dx)
    else:
        assert_sums_close(pooled, expected, 27, 9)
        assert_sums_close(dx, expected_dx, 27, 9)
