"""All pools: against loops (exact where sums are), the automatic twin, and the decided behaviour at the edges."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxbp
import loops
from cases import (
    ADAPTIVE,
    POOL_ARGUMENTS,
    POOLS,
    Pool,
    assert_equal,
    assert_exact,
    assert_sums_close,
    delta_of,
    distinct,
    integers,
    normal,
    pull_back,
)

KINDS = {"max_pool": "max", "min_pool": "min", "avg_pool": "avg", "sum_pool": "sum", "lp_pool": "lp"}
WAYS = [(op, extra) for op, extras in POOL_ARGUMENTS.items() for extra in extras]
TWINS = (jaxbp, jaxbp.automatic)
NANS = jnp.array([1.0, jnp.nan, 3.0, jnp.nan, -jnp.inf, jnp.inf, 2.0, jnp.inf, -jnp.inf, -jnp.inf])[:, None]

each_case = pytest.mark.parametrize("case", POOLS.values(), ids=POOLS)


def all_pools(ops, case: Pool, inputs: jax.Array, left_out: tuple[str, ...] = ()) -> dict[str, tuple]:
    """The value and the gradient of every pool in every way."""
    results = {}
    for op, extra in WAYS:
        if op not in left_out and extra not in left_out:
            arguments = case.arguments | POOL_ARGUMENTS[op][extra]
            y, (dx,) = pull_back(lambda x, op=op, a=arguments: getattr(ops, op)(x, case.window, **a), inputs)
            results[f"{op} {extra}".strip()] = (y, dx)
    return results


def check_all_against_loops(case: Pool, inputs: jax.Array, results: dict[str, tuple]) -> None:
    """All results of `all_pools` equal to the loops'."""
    for op, extra in WAYS:
        check_against_loops(op, POOL_ARGUMENTS[op][extra], case, inputs, results[f"{op} {extra}".strip()])


def check_against_loops(op: str, extra: dict, case: Pool, inputs: jax.Array, result: tuple | None = None) -> None:
    """The value and the gradient of one pool equal to the loops'."""
    arguments = case.arguments | extra
    if result is None:
        y, (dx,) = pull_back(lambda x: getattr(jaxbp, op)(x, case.window, **arguments), inputs)
    else:
        y, dx = result
    expected, _, expected_dx = loops.pool(KINDS[op], inputs, case.window, **arguments, delta=delta_of(y))
    if op in ("max_pool", "min_pool", "sum_pool"):
        assert_exact(y, expected)
        assert_exact(dx, expected_dx)
    else:
        terms = math.prod(case.window)
        assert_sums_close(y, expected, terms, 9)
        assert_sums_close(dx, expected_dx, terms, 9)


def check_all_against_twin(name: str, program) -> None:
    """Equal to the automatic rule's value and gradient; on numbers that all differ, so that nobody breaks ties."""
    case, inputs = POOLS[name], distinct(1, POOLS[name].inputs)
    # JAX has no gradient of max pooling with a window dilation or cropped.
    left_out = ("max_pool", "min_pool") if "dilat" in name or "negative" in name else ()
    # Norms differ from one another in what they do to a number, not in which windows have it.
    left_out = (*left_out, "p = 1", "p = 3") if name != "overlap, same" else left_out
    ours = jax.device_get(program(inputs))
    twins = jax.device_get(jax.jit(lambda x: all_pools(jaxbp.automatic, case, x, left_out))(inputs))
    terms = 4 * math.prod(case.window)
    for way, (twin_y, twin_dx) in twins.items():
        y, dx = ours[way]
        # The twin's gradient is NaN at a norm of 0, and of the 0 / 0 of a window wholly in padding.
        defined = np.isfinite(twin_dx)
        assert "lp_pool" in way or name == "windows wholly in padding" or defined.all(), way
        np.testing.assert_allclose(y, twin_y, rtol=1e-6 * terms, atol=1e-6 * terms, err_msg=way)
        np.testing.assert_allclose(dx[defined], twin_dx[defined], rtol=1e-6 * terms, atol=1e-6 * terms, err_msg=way)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("name", POOLS)
def test_equals_loops_and_twin(name):
    """Every pool with every argument of its own, in one compiled program."""
    case, inputs = POOLS[name], integers(1, POOLS[name].inputs)
    program = jax.jit(lambda x: all_pools(jaxbp, case, x))
    check_all_against_loops(case, inputs, program(inputs))
    if inputs.size:
        check_all_against_twin(name, program)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["overlap, same", "asymmetric padding", "ceil_mode, window dilation"])
def test_equals_loops_eagerly(name):
    case, inputs = POOLS[name], integers(1, POOLS[name].inputs)
    check_all_against_loops(case, inputs, all_pools(jaxbp, case, inputs))


@pytest.mark.sampled(8)
@each_case
def test_winners(case):
    """Winners, the gradient map, and unpooling: what pooling read is written back to its place."""
    inputs, window, arguments = integers(1, case.inputs), case.window, case.arguments

    @jax.jit
    def run(inputs):
        pooled, winners = jaxbp.max_pool_with_winners(inputs, window, **arguments)
        dx = jaxbp.max_pool_grad(delta_of(pooled), winners, inputs.shape, window, **arguments)
        values = integers(5, pooled.shape)
        back, (dvalues,) = pull_back(
            lambda v: jaxbp.max_unpool(v, winners, window, **arguments, input_shape=inputs.shape), values
        )
        return pooled, winners, dx, values, back, dvalues

    pooled, winners, dx, values, back, dvalues = run(inputs)
    expected, expected_winners, expected_dx = loops.pool("max", inputs, window, **arguments, delta=delta_of(pooled))
    assert_exact(pooled, expected)
    assert winners.dtype == jnp.uint8
    np.testing.assert_array_equal(winners, expected_winners)
    assert_exact(dx, expected_dx)
    expected, expected_dvalues = loops.unpool(values, winners, inputs.shape, window, **arguments, delta=delta_of(back))
    assert_exact(back, expected)
    assert_exact(dvalues, expected_dvalues)


@pytest.mark.sampled(12)
@each_case
def test_avg_pool_grad(case):
    shape = loops.pool("sum", np.zeros(case.inputs), case.window, **case.arguments)[0].shape
    delta, ways = integers(1, shape), [case.arguments | extra for extra in POOL_ARGUMENTS["avg_pool"].values()]
    gradients = jax.jit(lambda d: [jaxbp.avg_pool_grad(d, case.inputs, case.window, **way) for way in ways])(delta)
    for dx, way in zip(gradients, ways, strict=True):
        expected = loops.pool("avg", np.zeros(case.inputs), case.window, **way, delta=delta)[2]
        assert_sums_close(dx, expected, math.prod(case.window), 3)


@pytest.mark.parametrize("op", ["avg_pool", "sum_pool", "lp_pool", "max_pool"])
def test_one_pixel_windows_may_crop(op):
    """XLA aborts the process on a `reduce_window` that crops a constant so, inside or outside a program."""
    arguments = dict(strides=(1, 1), padding=((4, 1), (-1, -1)))
    case, inputs = Pool((2, 6, 2), (1, 1), arguments), integers(1, (2, 6, 2))
    check_against_loops(op, {}, case, inputs)
    for x in (inputs, np.ones((2, 6, 2), np.float32)):
        ours, twin = (jax.jit(lambda ops=ops, x=x: getattr(ops, op)(x, (1, 1), **arguments))() for ops in TWINS)
        np.testing.assert_array_equal(ours, twin)


@pytest.mark.parametrize("divisor", [-2, 5, 0.5, 2.5])
def test_any_divisor(divisor):
    case = POOLS["overlap, same"]
    check_against_loops("avg_pool", dict(divisor_override=divisor), case, integers(1, case.inputs))


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_adaptive(kind, name):
    shape, output_shape = ADAPTIVE[name]
    inputs = integers(1, shape)
    op = f"adaptive_{kind}_pool"

    def run(ops, x):
        return pull_back(lambda x: getattr(ops, op)(x, output_shape), x)

    # The twin breaks ties in its own way, so it gets numbers that are all different.
    program = jax.jit(lambda x, unlike: (run(jaxbp, x), run(jaxbp, unlike), run(jaxbp.automatic, unlike)))
    (pooled, (dx,)), ours, twin = program(inputs, distinct(1, shape))
    expected, expected_dx = loops.adaptive_pool(kind, inputs, output_shape, delta_of(pooled))
    if kind == "max":
        assert_exact(pooled, expected)
        assert_exact(dx, expected_dx)
    else:
        assert_sums_close(pooled, expected, 16, 9)
        assert_sums_close(dx, expected_dx, 16, 9)
    chex.assert_trees_all_close(ours, twin, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------ ties, NaN, infinity


@pytest.mark.parametrize("op", ["max_pool", "min_pool"])
@pytest.mark.parametrize(("window", "strides"), [((2,), 2), ((3,), 1), ((2,), 1), ((4,), 3)])
def test_nan_and_infinity(op, window, strides):
    check_against_loops(op, dict(strides=strides, padding="SAME"), Pool(NANS.shape, window), NANS)


@pytest.mark.parametrize("op", ["max_pool", "min_pool"])
def test_ties_go_to_the_first(op):
    """A constant image: the gradient of every window goes to its first pixel, as JAX's automatic rule has it."""
    dx = jax.grad(lambda x: getattr(jaxbp, op)(x, (2, 2), (2, 2)).sum())(jnp.ones((4, 4, 1)))
    np.testing.assert_array_equal(dx[..., 0], np.kron(np.ones((2, 2)), [[1, 0], [0, 0]]))
    twin = jax.grad(lambda x: getattr(jaxbp.automatic, op)(x, (2, 2), (2, 2)).sum())(jnp.ones((4, 4, 1)))
    np.testing.assert_array_equal(dx, twin)


@pytest.mark.parametrize("filled", [jnp.inf, -jnp.inf, jnp.nan])
def test_padding_never_wins(filled):
    """Even a window of infinities or NaN next to padding takes its gradient on the input."""
    x = jnp.full((3, 3, 1), filled)
    for op in ("max_pool", "min_pool"):
        dx = jax.grad(lambda x, op=op: getattr(jaxbp, op)(x, (3, 3), (3, 3), 1).sum())(x)
        assert dx.sum() == 1
    pooled, winners = jaxbp.max_pool_with_winners(x, (2, 2), (2, 2), ((1, 0), (1, 0)))
    np.testing.assert_array_equal(winners[0, 0], [3])
    np.testing.assert_array_equal(pooled, jnp.full((2, 2, 1), filled))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"])
@pytest.mark.parametrize("ops", TWINS)
def test_padding_never_wins_without_infinities(ops, dtype):
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]], dtype)[..., None]
    for op, expected, winner in (("max_pool", [4, 4, 4, 4], 4), ("min_pool", [1, 2, 3, 4], 1)):
        pooled, pullback = jax.vjp(lambda x, op=op: getattr(ops, op)(x, (2, 2), (1, 1), "SAME"), x)
        np.testing.assert_array_equal(pooled.astype(jnp.float32).ravel(), expected)
        assert pullback(jnp.ones_like(pooled))[0].astype(jnp.float32).ravel()[winner - 1] == (4 if winner == 4 else 1)


def test_window_wholly_in_padding():
    x = jnp.ones((2, 1))
    pooled, winners = jaxbp.max_pool_with_winners(x, (2,), (2,), ((2, 0),))
    np.testing.assert_array_equal(pooled[:, 0], [-jnp.inf, 1])
    np.testing.assert_array_equal(winners[:, 0], [2, 0])
    np.testing.assert_array_equal(jaxbp.min_pool(x, (2,), (2,), ((2, 0),))[:, 0], [jnp.inf, 1])
    np.testing.assert_array_equal(jaxbp.avg_pool(x, (2,), (2,), ((2, 0),))[:, 0], [0, 1])
    # Nothing is counted, so there is no average; but no gradient is poisoned by it.
    pooled, pullback = jax.vjp(lambda x: jaxbp.avg_pool(x, (2,), (2,), ((2, 0),), False), x)
    np.testing.assert_array_equal(pooled[:, 0], [jnp.nan, 1])
    np.testing.assert_array_equal(pullback(jnp.ones_like(pooled))[0][:, 0], [0.5, 0.5])
    back = jaxbp.max_unpool(jnp.ones((2, 1)), winners, (2,), (2,), ((2, 0),))
    np.testing.assert_array_equal(back[:, 0], [1, 0])


def test_lp_pool_at_zero_has_gradient_zero():
    for p in (1.0, 1.5, 2.0, 3.0, math.inf):
        dx = jax.grad(lambda x, p=p: jaxbp.lp_pool(x, (2,), (2,), p=p).sum())(jnp.zeros((4, 1)))
        np.testing.assert_array_equal(dx, np.zeros((4, 1)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_lp_pool_of_high_order_rounds_once(dtype):
    """The norms are kept unrounded: their 15th power would multiply the rounding."""
    x = normal(0, (8, 8, 2), dtype)
    dx, exact = (
        jax.grad(lambda x: jaxbp.lp_pool(x, (3, 3), p=16.0).astype(jnp.float32).sum())(x.astype(wide))
        for wide in (dtype, jnp.float32)
    )
    error = jnp.abs(dx.astype(jnp.float32) - exact).max() / jnp.abs(exact).max()
    assert error <= float(jnp.finfo(dtype).eps) / 2


def test_ceil_mode_adds_a_window_and_never_takes_one_away():
    for n in range(1, 8):
        for low, high in ((0, 0), (1, 1), (0, 4), (4, 0), (-1, 0)):
            for k, s in ((1, 2), (2, 1), (2, 3), (3, 2)):
                if n + low + high < k:
                    continue
                floor, ceil = (
                    jax.eval_shape(
                        lambda x, m=mode, k=k, s=s, p=(low, high): jaxbp.sum_pool(x, (k,), s, (p,), ceil_mode=m),
                        jax.ShapeDtypeStruct((n, 1), jnp.float32),
                    ).shape[0]
                    for mode in (False, True)
                )
                assert ceil in (floor, floor + 1), (n, low, high, k, s)


def test_ceil_mode_refuses_padding_that_crops_the_end():
    x = jnp.array([[1.0], [2.0], [3.0], [100.0], [100.0]])
    with pytest.raises(ValueError, match=r"max_pool: padding=\(\(0, -2\),\).*ceil_mode=True.*crop the input"):
        jaxbp.max_pool(x, (2,), 2, ((0, -2),), ceil_mode=True)


# -------------------------------------------------------------------------------------- dtypes and what is kept


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("op", KINDS)
def test_dtypes(op, dtype):
    case = POOLS["overlap, same"]
    with jax.enable_x64(True):
        x = normal(1, case.inputs, jnp.dtype(dtype))
        extra = dict(count_include_pad=False) if op == "avg_pool" else {}
        pooled, (dx,) = pull_back(lambda x: getattr(jaxbp, op)(x, case.window, **case.arguments, **extra), x)
        assert pooled.dtype == dx.dtype == x.dtype
        expected, _, expected_dx = loops.pool(
            KINDS[op], x, case.window, **case.arguments, **extra, delta=np.asarray(delta_of(pooled), np.float64)
        )
        assert_sums_close(pooled, expected, 4, 4)
        assert_sums_close(dx, expected_dx, 9, 4)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("op", ["adaptive_avg_pool", "adaptive_max_pool"])
def test_adaptive_dtypes(op, dtype):
    with jax.enable_x64(True):
        x = normal(1, (2, 7, 5, 1), jnp.dtype(dtype))
        pooled, (dx,) = pull_back(lambda x: getattr(jaxbp, op)(x, (3, 2)), x)
        assert pooled.dtype == dx.dtype == x.dtype
        delta = np.asarray(delta_of(pooled), np.float64)
        expected, expected_dx = loops.adaptive_pool(op[9:12], x, (3, 2), delta)
        assert_sums_close(pooled, expected, 9, 4)
        assert_sums_close(dx, expected_dx, 9, 4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_low_precision_sums_accumulate_in_float32(dtype):
    """A large number and 32 ones: added one by one in the dtype itself, the ones are lost."""
    large = 2048 if dtype == jnp.float16 else 256
    x = jnp.ones((33, 1), dtype).at[0].set(large)
    total = large + 32
    assert jaxbp.sum_pool(x, (33,)).item() == total
    assert jaxbp.avg_pool(x, (33,), divisor_override=32).item() == total / 32
    assert jaxbp.lp_pool(x, (33,), p=1.0).item() == total
    assert jaxbp.adaptive_avg_pool(x, (1,)).astype(jnp.float32).item() * 33 >= large + 16
    y, pullback = jax.vjp(lambda x: jaxbp.sum_pool(x, (33,), padding=32), x[:1])
    assert pullback(x.reshape(y.shape))[0].item() == total


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool"])
def test_integers_forward(dtype):
    case = POOLS["overlap, same"]
    x = np.abs(integers(1, case.inputs)).astype(dtype)
    for op in ("max_pool", "min_pool"):
        pooled = getattr(jaxbp, op)(jnp.asarray(x), case.window, **case.arguments)
        assert pooled.dtype == dtype
        np.testing.assert_array_equal(pooled, loops.pool(KINDS[op], x, case.window, **case.arguments)[0])
    if dtype != "bool":
        total = jaxbp.sum_pool(jnp.asarray(x), case.window, **case.arguments)
        assert total.dtype == dtype
        np.testing.assert_array_equal(total, loops.pool("sum", x, case.window, **case.arguments)[0])


@pytest.mark.parametrize("op", ["avg_pool", "sum_pool"])
def test_complex(op):
    case = POOLS["overlap, same"]
    x = integers(1, case.inputs, np.complex64)
    pooled, (dx,) = pull_back(lambda x: getattr(jaxbp, op)(x, case.window, **case.arguments), x)
    expected, _, expected_dx = loops.pool(KINDS[op], x, case.window, **case.arguments, delta=delta_of(pooled))
    assert pooled.dtype == dx.dtype == jnp.complex64
    assert_sums_close(pooled, expected, 9, 9)
    assert_sums_close(dx, expected_dx, 9, 9)


def residuals(function, x):
    """What the rule keeps between forward and backward: the constants of the pulled-back program."""
    return [leaf for leaf in jax.tree.leaves(jax.vjp(function, x)[1]) if hasattr(leaf, "dtype")]


def test_max_pool_keeps_one_byte_per_window():
    (kept,) = residuals(lambda x: jaxbp.max_pool(x, (3, 3), (2, 2)), normal(1, (2, 9, 9, 3)))
    assert kept.dtype == jnp.uint8 and kept.shape == (2, 4, 4, 3)


@pytest.mark.parametrize("op", ["avg_pool", "sum_pool"])
def test_linear_pools_keep_nothing(op):
    assert residuals(lambda x: getattr(jaxbp, op)(x, (3, 3), (2, 2), "SAME"), normal(1, (2, 9, 9, 3))) == []
    assert residuals(lambda x: jaxbp.adaptive_avg_pool(x, (2, 2)), normal(1, (2, 9, 9, 3))) == []


def test_winners_of_large_windows_need_two_bytes():
    x = jnp.zeros((260, 1)).at[258].set(1.0)
    pooled, winners = jaxbp.max_pool_with_winners(x, (259,))
    assert winners.dtype == jnp.uint16
    np.testing.assert_array_equal(winners[:, 0], [258, 257])
    assert jaxbp.max_pool_grad(pooled, winners, x.shape, (259,))[258].item() == 2


@pytest.mark.parametrize("op", KINDS)
def test_large_windows_do_not_unroll(op):
    """A window of 1024 pixels must not become a program of 1024 steps, forward or backward."""
    program = jax.make_jaxpr(jax.grad(lambda x: getattr(jaxbp, op)(x, (32, 32)).sum()))(jnp.zeros((40, 40, 1)))
    assert str(program).count("\n") < 1024


# -------------------------------------------------------------------------------------------- upsample, unpool


@pytest.mark.parametrize(
    ("window", "strides"), [((2, 3), (2, 3)), ((3, 2), (1, 1)), ((5, 6), (1, 2)), ((7, 7), (1, 1))]
)
def test_gradient_map_takes_winners_of_any_origin(window, strides):
    """No maximum need have chosen them: windows may point anywhere, or nowhere."""
    shape = (2, 9, 10, 2)
    spatial = tuple((n - k) // s + 1 for n, k, s in zip(shape[1:-1], window, strides, strict=True))
    delta = integers(1, (2, *spatial, 2))
    winners = np.random.default_rng(2).integers(0, math.prod(window) + 1, delta.shape)
    expected = np.zeros(shape, np.float32)
    for n, i, j, c in np.ndindex(*delta.shape):
        if winners[n, i, j, c] < math.prod(window):
            row, column = divmod(int(winners[n, i, j, c]), window[1])
            expected[n, i * strides[0] + row, j * strides[1] + column, c] += delta[n, i, j, c]
    dx = jaxbp.max_pool_grad(delta, jnp.asarray(winners, jnp.int32), shape, window, strides)
    np.testing.assert_array_equal(dx, expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_large_windows_of_ties_nan_and_infinities(seed, padding):
    """Given back axis by axis: every window that chose a row must have chosen the same pixel of it."""
    rng = np.random.default_rng(seed)
    values = np.array([0.0, 0.0, 1.0, np.nan, np.inf, -np.inf, -np.inf], np.float32)
    x = jnp.asarray(rng.choice(values, p=[0.3, 0.2, 0.1, 0.02, 0.03, 0.2, 0.15], size=(2, 11, 12, 2)))
    pooled, (dx,) = pull_back(lambda x: jaxbp.max_pool(x, (6, 5), (1, 2), padding), x)
    expected, _, expected_dx = loops.pool("max", x, (6, 5), (1, 2), padding, delta=delta_of(pooled))
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_array_equal(dx, expected_dx)


def test_upsample_of_batches_and_channels():
    delta, winners = integers(1, (2, 2, 3, 2)), integers(2, (2, 2, 3, 2), np.int32) + 3
    by_winner, evenly = jaxbp.upsample(delta, (3, 3), winners=winners), jaxbp.upsample(delta, (3, 3))
    expected = np.zeros((2, 6, 9, 2), np.float32)
    for n, i, j, c in np.ndindex(2, 2, 3, 2):
        row, column = divmod(int(winners[n, i, j, c]), 3)
        expected[n, 3 * i + row, 3 * j + column, c] = delta[n, i, j, c]
    np.testing.assert_array_equal(by_winner, expected)
    np.testing.assert_array_equal(evenly, np.repeat(np.repeat(np.asarray(delta) / np.float32(9), 3, 1), 3, 2))


@pytest.mark.parametrize(
    ("window", "arguments"),
    [((2,), dict(strides=2)), ((3,), dict(strides=2, padding=1)), ((2,), dict(strides=3, window_dilation=2))],
)
def test_unpool_finds_the_smallest_input(window, arguments):
    """Without input_shape: the smallest input that pools to this shape."""
    values = integers(1, (2, 4, 1)) + 5
    winners = jnp.ones((2, 4, 1), jnp.uint8)
    x = jaxbp.max_unpool(values, winners, window, **arguments)
    assert jaxbp.max_pool(x, window, **arguments).shape == values.shape
    smaller = jnp.zeros((2, x.shape[1] - 1, 1))
    assert jaxbp.max_pool(smaller, window, **arguments).shape != values.shape
    assert_equal(x, jaxbp.max_unpool(values, winners, window, **arguments, input_shape=x.shape))
    assert_exact(x, loops.unpool(values, winners, x.shape, window, **arguments)[0])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("op", ["avg_pool", "sum_pool", "lp_pool", "max_pool", "min_pool"])
def test_finite_differences_in_float64(op):
    case = POOLS["window dilation, padding"]
    with jax.enable_x64(True):
        x = distinct(1, case.inputs, np.float64)
        check_grads(
            lambda x: getattr(jaxbp, op)(x, case.window, **case.arguments) ** 2, (x,), order=2, modes=["rev"],
            rtol=1e-5, atol=1e-5, eps=1e-4,
        )  # fmt: skip


@pytest.mark.parametrize("call", [
    lambda x: jaxbp.adaptive_max_pool(x, (1,)), lambda x: jaxbp.adaptive_max_pool(x, (2,)),
    lambda x: jaxbp.adaptive_avg_pool(x, (7,)), lambda x: jaxbp.max_pool(x, (999,), 999), lambda x: jaxbp.min_pool(x, (500,), 250),
])  # fmt: skip
def test_long_windows_do_not_unroll(call):
    """A window as long as a signal must not become a program of as many steps."""
    program = jax.make_jaxpr(jax.grad(lambda x: call(x).sum()))(jnp.zeros((1, 999, 1)))
    assert str(program).count("\n") < 999


@pytest.mark.parametrize(("pixels", "windows"), [(50, 2), (40, 1), (3, 70)])
def test_adaptive_pools_of_many_places(pixels, windows):
    """Looped over, forward and backward."""
    x = integers(1, (2, pixels, 2))
    for kind in ("max", "avg"):
        pooled, (dx,) = pull_back(lambda x, kind=kind: getattr(jaxbp, f"adaptive_{kind}_pool")(x, (windows,)), x)
        expected, expected_dx = loops.adaptive_pool(kind, x, (windows,), delta_of(pooled))
        assert_sums_close(pooled, expected, 64, 9)
        assert_sums_close(dx, expected_dx, 128, 9)
