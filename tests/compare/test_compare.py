"""compare and check_vjp: that each kind of mistake gets its row, its words and its verdict."""

import argparse
import json
import re
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import check_vjp, compare
from jaxbp._compare import _command, _cost
from jaxbp._compare._hints import name_mistake
from jaxbp._compare._report import Comparison

quick = partial(compare, time=False, memory=False, transforms=(), probe=False, finite_difference=False)


def with_rule(function, change):
    """`function` with a hand-written rule: JAX's own gradients, changed."""

    manual = jax.custom_vjp(function)

    def forward(*args):
        return function(*args), args

    def backward(args, delta):
        return change(jax.vjp(function, *args)[1](delta), args, delta)

    manual.defvjp(forward, backward)
    return manual


def affine(x, w, b):
    return jnp.einsum("nij,jk->nik", x, w, preferred_element_type=x.dtype) + b[None, None, :]


def arguments(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((5, 6, 4), (4, 3), (3,))
    return [jnp.asarray(rng.standard_normal(shape).astype(jnp.dtype(dtype))) for shape in shapes]


def right(gradients, args, delta):
    return gradients


def rows_of(report):
    return {row.name: row for row in report.rows}


def gradients_of(report):
    return [row.name for row in report.rows if row.kind in ("forward", "gradient")]


# Hints


def dx(change):
    return lambda g, args, delta: (change(g[0]), g[1], g[2])


def db(change):
    return lambda g, args, delta: (g[0], g[1], change(delta))


_ORDER = np.random.default_rng(0).permutation(120)
MUTANTS = {
    "factor": (dx(lambda g: g * jnp.asarray(1.0003, g.dtype)), "x", r"manual = 1\.0003 x automatic"),
    "sign": (dx(lambda g: -g), "x", r"manual = -automatic: the sign"),
    "zeros": (dx(jnp.zeros_like), "x", "all zeros"),
    "none": (lambda g, args, delta: (None, g[1], g[2]), "x", "all zeros .or the rule returns None"),
    "reversed": (dx(lambda g: g[:, ::-1]), "x", r"reversed along axes \(1,\)"),
    "slice": (dx(lambda g: g.at[:, 0].set(0)), "x", r"lie in \[:, 0, :\], where manual is 0"),
    "steps": (dx(lambda g: g.at[:, 1::2].set(0)), "x", r"lie in \[:, 1:6:2, :\], where manual is 0"),
    "entry": (dx(lambda g: g.at[2, 3, 1].multiply(1.5)), "x", r"lies in \[2, 3, 1\], where manual = 1\.5 x"),
    "shift": (dx(lambda g: jnp.roll(g, 1, axis=1)), "x", r"shifted by \(1,\) along axes \(1,\)"),
    "rounding": (dx(lambda g: g.astype("bfloat16").astype(g.dtype)), "x", "rounded to bfloat16"),
    "mean": (db(lambda delta: delta.mean((0, 1))), "b", r"automatic / 30: a mean in place of a sum"),
    "first image": (db(lambda delta: delta[0].sum(0)), "b", "only index 0 along axis 0 of the output"),
    "last image lost": (db(lambda delta: delta[:-1].sum((0, 1))), "b", "index 4 along axis 0 of the output is not"),
    "nan": (dx(lambda g: g.at[1, 2, 3].set(jnp.nan)), "x", r"1 of 120 entry is not finite.*\[1, 2, 3\]"),
    "twice": (dx(lambda g: 2 * g), "x", "manual = 2 x automatic.*counted twice"),
    "noise": (dx(lambda g: g * (1 + 1e-3 * jnp.sin(1e3 * g))), "x", "not linear in delta"),
    "sorted": (dx(lambda g: jnp.sort(g, axis=None).reshape(g.shape)), "x", "not linear in delta"),
    "ignored": (lambda g, args, delta: (args[0], g[1], g[2]), "x", "does not depend on delta"),
    "no pattern": (dx(lambda g: g.reshape(-1)[_ORDER].reshape(g.shape)), "x", "no pattern known"),
}


# What the numbers alone show.
BY_NUMBERS = ("factor", "sign", "zeros", "reversed", "slice", "steps", "entry", "shift", "rounding", "nan", "twice")


@pytest.mark.parametrize("name", BY_NUMBERS)
def test_the_words_for_numbers(name):
    change, _, words = MUTANTS[name]
    right = np.random.default_rng(0).standard_normal((5, 6, 4)).astype("float32")
    wrong = np.asarray(change((jnp.asarray(right), None, None), None, None)[0])
    assert re.search(words, name_mistake(wrong, right, 1e-6, 24.0))


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", MUTANTS)
def test_the_hint_names_the_mistake(name):
    change, argument, words = MUTANTS[name]
    report = quick(with_rule(affine, change), *arguments())
    wrong = [row for row in report.rows if not row.ok]
    assert [row.name for row in wrong] == [argument]
    assert re.search(words, wrong[0].hint), wrong[0].hint
    assert wrong[0].hint.split(",")[0] in " ".join(str(report).split()).replace("-> ", "")


def test_swapped_axes_and_gradients_returned_in_the_wrong_order():
    def product(x, y):
        return x @ jnp.sin(y)

    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.standard_normal((4, 4)), "float32") for _ in range(2))
    swapped = quick(with_rule(product, lambda g, args, delta: (g[0].T, g[1])), x, y)
    assert "axes 0 and 1 swapped" in rows_of(swapped)["x"].hint
    exchanged = quick(with_rule(product, lambda g, args, delta: (g[1], g[0])), x, y, names=("x", "y"))
    assert rows_of(exchanged)["x"].hint == "manual = the gradient of y: returned in the wrong place"
    assert rows_of(exchanged)["y"].hint == "manual = the gradient of x: returned in the wrong place"


@pytest.mark.exhaustive
def test_a_kernel_that_was_not_rotated_is_recognised():
    def slide(x, kernel):
        return sum(kernel[j] * x[j : j + 8] for j in range(3))

    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(n), "float32") for n in (10, 3))
    not_rotated = with_rule(slide, lambda g, args, d: (jax.vjp(slide, args[0], args[1][::-1])[1](d)[0], g[1]))
    hint = rows_of(quick(not_rotated, x, kernel))["x"].hint
    assert "the gradient for kernel reversed along axes (0,): not rotated (rot180)" in hint


# Verdicts


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_right_rule_is_right_in_every_row(dtype):
    report = compare(with_rule(affine, right), *arguments(dtype), time=False)
    assert report.ok, report
    rows = [row for row in report.rows if row.name != "sharding"]
    probes = ["zeros", "ones", "equal entries", "large", "small", "negative zero"]
    transforms = ["jit", "vmap", "second", "constant", "twice"]
    assert [row.name for row in rows] == ["forward", "x", "w", "b", "repeated", *transforms, *probes]
    assert all(row.verdict == "ok" for row in rows)
    assert all(row.finite_difference < 1e-6 for row in report.rows[1:4])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["factor", "rounding"])
def test_low_precision_hides_no_mistake(dtype, name):
    change, argument, words = MUTANTS[name]
    row = rows_of(quick(with_rule(affine, change), *arguments(dtype)))[argument]
    assert not row.ok
    assert re.search(words, row.hint)
    assert any("seen with the arguments in float32" in note for note in row.notes)


def test_low_precision_sums_in_the_rule_are_named():
    def total(x):
        return jnp.sum(x, dtype="float32").astype(x.dtype) * jnp.ones((4096,), x.dtype)

    def naive_sum(g, args, delta):
        body = lambda carry, d: (carry + d, None)  # noqa: E731
        return (jnp.full_like(args[0], jax.lax.scan(body, jnp.zeros((), delta.dtype), delta)[0]),)

    delta = jnp.ones((4096,), "bfloat16")
    report = quick(with_rule(total, naive_sum), jnp.ones((3,), "bfloat16"), cotangent=delta)
    assert "low precision: right in float32" in report.rows[1].hint


def test_the_automatic_rule_can_be_the_inexact_one():
    def shifted(x, b):
        return x + b[None, :]

    exact = with_rule(shifted, lambda g, args, delta: (g[0], delta.astype("float32").sum(0).astype(delta.dtype)))
    x = jnp.zeros((4096, 3), "bfloat16")

    def automatic(x, b):
        @jax.custom_vjp
        def add(x, b):
            return shifted(x, b)

        def backward(_, delta):
            summed, _ = jax.lax.scan(lambda c, d: (c + d, None), jnp.zeros_like(delta[0]), delta)
            return delta, summed

        add.defvjp(lambda x, b: (shifted(x, b), None), backward)
        return add(x, b)

    report = quick(exact, x, jnp.zeros(3, "bfloat16"), automatic=automatic, cotangent=jnp.ones((4096, 3)), names="xb")
    row = rows_of(report)["b"]
    assert row.ok and row.automatic_error > 16 > row.manual_error
    assert "automatic is the inexact one here" in row.notes


def test_sums_that_cancel_are_no_false_alarm():
    """One entry, 1000 terms whose sum nearly vanishes: adding them in another order is not a mistake."""

    def weighted(x, w):
        return x * w[0]

    def other_order(g, args, delta):
        return g[0], jnp.cumsum((delta * args[0])[::-1])[-1:]

    def naive(g, args, delta):
        return g[0], jnp.cumsum(delta * args[0])[-1:] * 1.001

    rng = np.random.default_rng(3)
    x = rng.standard_normal(1000)
    x -= x.mean()
    delta = jnp.ones((1000,), "float32")
    x = jnp.asarray(x, "float32")
    x = x.at[0].add(-float(np.sum(np.asarray(x, np.float64))) + 1e-5)
    w = jnp.ones((1,), "float32")
    assert quick(with_rule(weighted, other_order), x, w, cotangent=delta).ok
    # The same data with a cotangent that does not cancel still shows a factor.
    assert not quick(with_rule(weighted, naive), x, w).ok


def test_not_finite_where_the_reference_is_not_either_is_right():
    def root(x):
        return jnp.sqrt(x)

    x = jnp.asarray([0.0, 1.0, -1.0, 4.0], "float32")
    report = quick(with_rule(root, right), x)
    assert report.ok, report
    broken = quick(with_rule(root, lambda g, args, delta: (jnp.where(jnp.isfinite(g[0]), g[0], 0),)), x)
    assert "automatic is not finite where manual is" in broken.rows[1].hint


def test_overflow_of_the_automatic_rule_hides_no_other_entry():
    def scaled(x):
        return x * jnp.asarray([1.0, 6e4, 1.0], x.dtype)

    x = jnp.ones((3,), "float16")
    wrong = with_rule(scaled, lambda g, args, delta: (g[0].at[2].set(9e3),))
    row = quick(wrong, x, cotangent=jnp.asarray([1.0, 2.0, 3e3], "float16")).rows[1]
    assert not row.ok
    assert row.index == (2,)


def test_integer_outputs_and_arguments_pass_through():
    def pick(table, indices, count):
        return {"picked": table[indices] * count, "where": indices}

    @partial(jax.custom_vjp, nondiff_argnums=(2,))
    def manual(table, indices, count):
        return pick(table, indices, count)

    def backward(count, kept, delta):
        table, indices = kept
        return jnp.zeros_like(table).at[indices].add(delta["picked"] * count), None

    manual.defvjp(lambda t, i, c: (pick(t, i, c), (t, i)), backward)
    table = jnp.asarray(np.random.default_rng(0).standard_normal((5, 2)), "float32")
    report = compare(manual, table, jnp.asarray([0, 3, 3]), 2, time=False)
    assert report.ok, report
    assert [row.name for row in report.rows if row.kind == "gradient"] == ["table"]

    other = with_rule(lambda x: (x * 2, jnp.argmax(x)), right)
    wrong = quick(other, jnp.arange(4.0), automatic=lambda x: (x * 2, jnp.argmin(x)))
    assert wrong.rows[0].verdict == "WRONG" and wrong.rows[0].hint == "the values differ"


def test_a_nondiff_argument_given_by_keyword_or_left_out_hides_no_other():
    def power(x, w, n=2):
        return (x * w) ** n

    @partial(jax.custom_vjp, nondiff_argnums=(2,))
    def manual(x, w, n=2):
        return power(x, w, n)

    def wrong_for_x(n, kept, delta):
        x, w = kept
        return delta, delta * n * (x * w) ** (n - 1) * x

    manual.defvjp(lambda x, w, n: (power(x, w, n), (x, w)), wrong_for_x)
    x = jnp.arange(1.0, 7.0)
    bound = partial(manual, n=2)
    calls = [(manual, (x, x), {}), (manual, (x, x), {"n": 2}), (manual, (x, x, 2), {}), (bound, (x, x), {})]
    for function, args, keywords in calls:
        report = compare(function, *args, **keywords, time=False, memory=False)
        verdicts = {row.name: row.verdict for row in report.rows if row.kind == "gradient"}
        assert verdicts == {"x": "WRONG", "w": "ok"}


def test_pytrees_keywords_and_complex_numbers():
    def layer(params, x, *, gain):
        return {"out": (x * params["scale"] + params["shift"]) * gain, "norm": jnp.abs(x) ** 2}

    @jax.custom_vjp
    def manual(params, x, gain):
        return layer(params, x, gain=gain)

    def forward(params, x, gain):
        return layer(params, x, gain=gain), (params, x, gain)

    def backward(kept, delta):
        return jax.vjp(lambda p, x, g: layer(p, x, gain=g), *kept)[1](delta)

    manual.defvjp(forward, backward)

    def public(params, x, *, gain):
        return manual(params, x, gain)

    rng = np.random.default_rng(0)
    z = [jnp.asarray(rng.standard_normal(3) + 1j * rng.standard_normal(3), "complex64") for _ in range(3)]
    report = compare(public, {"scale": z[0], "shift": z[1]}, z[2], gain=z[0], automatic=layer, time=False)
    assert report.ok, report
    assert [row.name for row in report.rows][:4] == ["forward", "params['scale']", "params['shift']", "x"]
    json.dumps(report.to_dict(), allow_nan=False)


def test_argnums_and_names_choose_what_is_differentiated():
    report = quick(with_rule(affine, MUTANTS["zeros"][0]), *arguments(), argnums=(1, -1), names=("a", "b", "c"))
    assert gradients_of(report) == ["forward", "b", "c"]
    assert report.ok
    number = quick(with_rule(lambda x, s: x * s, right), jnp.ones(3), 2.0, argnums=1, names=("x", "s"))
    assert gradients_of(number) == ["forward", "s"]


def test_the_fwd_rule_is_held_against_the_function():
    @jax.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (1.01 * x * x, x), lambda x, delta: (2 * x * delta,))
    report = quick(square, jnp.arange(1.0, 4.0))
    assert report.rows[0].verdict == "WRONG"
    assert "the fwd rule's value is not the function's: manual = 1.01 x automatic" in report.rows[0].hint


# What goes wrong while it runs


def test_what_the_rule_raises_is_a_row():
    def explode(g, args, delta):
        raise RuntimeError("lost the residuals\nsecond line")

    report = compare(with_rule(affine, explode), *arguments())
    assert [row.verdict for row in report.rows] == ["ok", "WRONG", "WRONG", "WRONG"]
    place = rf"in explode, {re.escape(__file__)}:\d+"
    assert re.fullmatch(
        rf"the rule raised RuntimeError: lost the residuals second line \({place}\)", report.rows[1].hint
    )
    with pytest.raises(AssertionError, match="lost the residuals"):
        report.check()


def test_wrong_shape_and_missing_cotangents_are_rows():
    shape = quick(with_rule(affine, lambda g, args, delta: (g[0][:1], g[1], g[2])), *arguments())
    assert not shape.ok and "the rule raised ValueError" in shape.rows[1].hint
    missing = quick(with_rule(affine, lambda g, args, delta: g[:2]), *arguments())
    assert not missing.ok and "the rule raised TypeError" in missing.rows[1].hint


def test_a_gradient_of_another_dtype_is_a_row():
    change = lambda g, args, delta: (g[0].astype("float32"), g[1], g[2])  # noqa: E731
    row = rows_of(quick(with_rule(affine, change), *arguments("bfloat16")))["x"]
    assert not row.ok
    assert row.hint == "manual has dtype float32 where bfloat16 is expected"


def test_functions_that_raise_are_a_row():
    def refuse(x):
        raise ValueError("no such thing")

    manual = quick(refuse, jnp.ones(3), automatic=jnp.sin)
    assert manual.rows[0].hint.startswith("manual raised ValueError: no such thing (in refuse, ")
    automatic = quick(with_rule(jnp.sin, right), jnp.ones(3), automatic=refuse)
    assert automatic.rows[0].hint.startswith("automatic raised ValueError: no such thing (in refuse, ")
    shapes = quick(with_rule(jnp.sin, right), jnp.ones(3), automatic=lambda x: x[:2])
    assert shapes.rows[0].hint == "manual returns shapes [(3,)], automatic [(2,)]"
    nothing = quick(lambda x: {"count": x.size}, jnp.ones(3), automatic=lambda x: {"count": x.size})
    assert nothing.rows[0].hint == "manual returns no floating array"
    assert not manual.ok and not automatic.ok and not shapes.ok and not nothing.ok


def test_a_rule_that_is_not_deterministic_is_noted():
    rng = np.random.default_rng(0)
    change = lambda g, args, delta: (g[0] * float(1 + 1e-7 * rng.random()), g[1], g[2])  # noqa: E731
    report = quick(with_rule(affine, change), *arguments())
    row = rows_of(report)["repeated"]
    assert row.verdict == "differs" and row.hint == "two runs of manual differ in x: the rule is not deterministic"
    assert rows_of(quick(with_rule(affine, right), *arguments()))["repeated"].verdict == "ok"


# Finite differences


def test_a_kink_is_recognised():
    def corner(x):
        return jnp.maximum(x, 0)

    at_zero = with_rule(corner, lambda g, args, delta: (jnp.where(args[0] >= 0, delta, 0),))
    report = compare(at_zero, jnp.arange(-3.0, 3.0), time=False, memory=False, transforms=(), probe=False)
    assert report.rows[1].kink and report.ok
    assert any("subgradient: between the one-sided slopes at [3]" in note for note in report.rows[1].notes)
    beyond = with_rule(
        corner, lambda g, args, delta: (jnp.where(args[0] >= 0, jnp.where(args[0] == 0, 2 * delta, delta), 0),)
    )
    report = compare(beyond, jnp.arange(-3.0, 3.0), time=False, memory=False, transforms=(), probe=False)
    assert not report.ok and "only wrong entry lies in [3], where manual = 4 x automatic" in report.rows[1].hint
    off_zero = compare(at_zero, jnp.arange(-3.0, 3.0) + 0.5, time=False, memory=False)
    assert off_zero.ok and not off_zero.rows[1].kink


def test_kinks_that_cancel_in_the_sum_are_recognised():
    """Two outputs with opposite cotangents at one tie: the one-sided slopes of their sum agree."""

    def pair(x):
        return jnp.stack([jnp.maximum(x[0], x[1]), jnp.maximum(x[0], x[1])])

    def first_or_last(g, args, delta):
        return (jnp.stack([delta[0], delta[1]]),)

    report = compare(
        with_rule(pair, first_or_last),
        jnp.ones(2),
        automatic=with_rule(pair, first_or_last),
        cotangent=jnp.asarray([1.0, -1.0]),
        time=False,
        memory=False,
    )
    assert report.rows[1].kink and report.ok


def test_a_wrong_rule_stays_wrong_at_a_kink():
    wrong = with_rule(jax.nn.relu, lambda g, args, delta: (1.5 * g[0],))
    report = compare(wrong, jnp.arange(-3.0, 3.0), time=False, memory=False)
    assert report.rows[1].hint == "manual = 1.5 x automatic"


def test_a_mistake_that_both_rules_share_is_found():
    both = with_rule(jnp.sin, lambda g, args, delta: (2 * g[0],))
    report = compare(both, jnp.arange(1.0, 4.0), automatic=both, time=False, memory=False)
    assert "finite differences disagree with both rules" in report.rows[1].hint
    assert compare(both, jnp.arange(1.0, 4.0), automatic=both, finite_difference=False, time=False).ok


def test_a_wrong_automatic_rule_is_named():
    wrong = with_rule(jnp.sin, lambda g, args, delta: (2 * g[0],))
    report = quick(with_rule(jnp.sin, right), jnp.arange(1.0, 4.0), automatic=wrong, finite_difference=True)
    assert report.ok
    assert any("automatic is the wrong one" in note for note in report.rows[1].notes)


@pytest.mark.parametrize("factor, ok", [(1.0, True), (1.01, False)])
def test_without_an_automatic_gradient_slopes_decide(factor, ok):
    def no_gradient(x):
        return jax.pure_callback(lambda a: np.sin(a), jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, delta: (factor * jnp.cos(x) * delta,))
    report = compare(sine, jnp.arange(4.0), automatic=no_gradient, time=False, memory=False)
    assert report.rows[1].ok is ok, report
    assert report.rows[1].automatic_error is None
    assert any("automatic has no gradient" in note for note in report.notes)


# Transformations


def test_a_rule_that_fails_under_jit_only_is_wrong_there():
    def peeking(g, args, delta):
        return (g[0] if float(delta.sum()) > -1e9 else -g[0], *g[1:])

    rows = rows_of(compare(with_rule(affine, peeking), *arguments(), time=False, memory=False))
    assert rows["x"].ok and not rows["jit"].ok and not rows["vmap"].ok
    assert "ConcretizationTypeError" in rows["jit"].hint


def test_what_custom_vjp_cannot_do_is_no_failure():
    inner = with_rule(jnp.sin, right)

    @jax.custom_vjp
    def nested(x):
        return inner(x)

    nested.defvjp(lambda x: (inner(x), x), lambda x, delta: (inner(x + np.pi / 2) * delta,))
    report = compare(nested, jnp.arange(1.0, 4.0), automatic=jnp.sin, time=False, memory=False)
    row = rows_of(report)["second"]
    assert report.ok and row.verdict == "ok"
    assert any("by reverse over reverse" in note for note in row.notes)

    def callback(x, delta):
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (jax.pure_callback(lambda a, d: np.cos(a) * d, out, x, delta, vmap_method="sequential"),)

    opaque = with_rule(jnp.sin, lambda g, args, delta: callback(args[0], delta))
    report = compare(opaque, jnp.arange(1.0, 4.0), time=False, memory=False)
    assert report.ok
    assert rows_of(report)["second"].verdict == "not supported"
    assert "manual raised ValueError" in rows_of(report)["second"].hint


def test_a_rule_that_is_wrong_under_vmap_only():
    def across(g, args, delta):
        return (g[0] * (2.0 if type(delta).__name__ == "BatchTracer" else 1.0), *g[1:])

    rows = rows_of(compare(with_rule(affine, across), *arguments(), time=False, memory=False))
    assert rows["jit"].ok and not rows["vmap"].ok
    assert rows["vmap"].hint.startswith("x: manual = 2 x automatic")


def test_second_order_mistakes_are_found():
    def frozen(g, args, delta):
        return tuple(jax.lax.stop_gradient(item) for item in g)

    rows = rows_of(compare(with_rule(affine, frozen), *arguments(), time=False, memory=False))
    assert rows["jit"].ok and rows["vmap"].ok and not rows["second"].ok
    assert "all zeros" in rows["second"].hint


@pytest.mark.exhaustive
def test_sharding_row_counts_collectives_on_eight_devices():
    code = """
    import jax, jax.numpy as jnp
    from jaxbp._compare import compare
    @jax.custom_vjp
    def mul(x, w): return x * w[None]
    mul.defvjp(lambda x, w: (x * w[None], (x, w)), lambda k, d: (d * k[1][None], (d * k[0]).sum(0)))
    report = compare(mul, jnp.arange(48.0).reshape(16, 3), jnp.arange(3.0), time=False, memory=False)
    print(report); assert report.ok
    print(compare(mul, jnp.ones((3, 3)), jnp.ones(3), time=False, memory=False))
    """
    environment = {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"sharding .* ok\n +collectives on 8 devices: manual 1 all-reduce; automatic 1 all-reduce", done.stdout
    ), done.stdout
    assert "axis of 3 does not divide by 8 devices" in " ".join(done.stdout.split())


def test_sharding_row_counts_collectives():
    assert jax.device_count() == 8
    product = with_rule(lambda x, w: x * w[None], lambda g, args, d: (d * args[1][None], (d * args[0]).sum(0)))
    jitted = partial(quick, product, transforms="jit")
    report = jitted(jnp.arange(48.0).reshape(16, 3), jnp.arange(3.0))
    row = rows_of(report)["sharding"]
    assert report.ok and row.verdict == "ok"
    assert row.notes == ("collectives on 8 devices: manual 1 all-reduce; automatic 1 all-reduce",)
    row = rows_of(jitted(jnp.ones((3, 3)), jnp.ones(3)))["sharding"]
    assert row.verdict == "not supported" and "axis of 3 does not divide by 8 devices" in row.hint


# The report


@pytest.fixture(scope="module")
def report() -> Comparison:
    return compare(with_rule(affine, MUTANTS["slice"][0]), *arguments())


def test_the_table_fits_100_columns_and_says_everything(report):
    text = str(report)
    assert max(map(len, text.splitlines())) <= 100
    for words in (
        "affine (manual) against affine without its rule (automatic)",
        "kept for backward",
        "temporary",
        "compile",
        "forward",
        "backward",
        "both",
        "WRONG: x, jit, vmap, second, constant, twice (6 of ",
    ):
        assert words in text
    assert repr(report) == text
    assert report.cost.residual_bytes == (0, 0)


def test_check_raises_the_table(report):
    with pytest.raises(AssertionError, match=re.escape("[:, 0, :], where manual is 0")):
        report.check()
    fine = quick(with_rule(affine, right), *arguments())
    assert fine.check() is fine


def test_the_dict_is_json_safe(report):
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["ok"] is False
    assert [row["name"] for row in data["rows"] if not row["ok"]] == [
        "x", "jit", "vmap", "second", "constant", "twice",
    ]  # fmt: skip
    assert data["cost"]["timings"]["both"]["verdict"] in ("same", "faster", "slower")
    nan = quick(with_rule(affine, MUTANTS["nan"][0]), *arguments())
    assert json.loads(json.dumps(nan.to_dict(), allow_nan=False))["rows"][1]["manual_error"] == "inf"


def test_the_notebook_table_escapes_and_marks(report):
    page = report._repr_html_()
    assert page.count("<tr") == page.count("</tr>") and "background" in page
    name = "x<script>"
    odd = quick(with_rule(jnp.sin, MUTANTS["sign"][0] and (lambda g, a, d: (-g[0],))), jnp.arange(3.0), names=[name])
    assert "<script>" not in odd._repr_html_() and "x&lt;script&gt;" in odd._repr_html_()


def test_plot_draws_both_rules_and_their_difference(report):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = report.plot("x")
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(images) >= 3
    np.testing.assert_array_equal(np.asarray(images[0])[:, 0], 0)
    assert np.abs(np.asarray(images[1])[:, 0]).min() > 0
    assert report.plot(1) is not None and report.plot("b", axes=None) is not None
    with pytest.raises(ValueError, match=r"plot: argument='y', but the gradients are .'x', 'w', 'b'."):
        report.plot("y")
    plt.close("all")


def test_residual_bytes_count_what_the_rule_keeps():
    def soft(x):
        return jnp.tanh(x)

    lean = with_rule(soft, right)

    @jax.custom_vjp
    def greedy(x):
        return soft(x)

    def forward(x):
        value = soft(x)
        return value, (x, value * 2, value * 3)

    greedy.defvjp(forward, lambda kept, delta: (delta * (1 - (kept[1] / 2) ** 2),))
    x = jnp.linspace(-1, 1, 256)
    assert compare(lean, x, time=False).cost.residual_bytes[0] == 0
    assert compare(greedy, x, time=False).cost.residual_bytes[0] == 2 * x.nbytes


class Machine:
    """A clock that work moves: each call takes its time, times noise, on a machine that becomes slower."""

    def __init__(self, seed, drift=0.3, noise=0.05):
        self.now, self.drift, self.noise, self.rng = 0.0, drift, noise, np.random.default_rng(seed)

    def work(self, seconds):
        def call():
            speed = (1 + self.drift * self.now) * np.exp(self.noise * self.rng.standard_normal())
            self.now += seconds * speed * (3.0 if self.rng.random() < 0.02 else 1.0)

        return call


def verdicts(monkeypatch, first, second, **machine):
    found = []
    for seed in range(20):
        simulated = Machine(seed, **machine)
        monkeypatch.setattr(_cost.time, "perf_counter", lambda clock=simulated: clock.now)
        timing = _cost.compare_times(simulated.work(first), simulated.work(second))
        assert timing.low <= timing.ratio <= timing.high
        found.append(timing.verdict)
    return found


def test_the_same_work_takes_the_same_time(monkeypatch):
    """With noise, outliers and drift, on a simulated clock: 19 of 20."""
    assert verdicts(monkeypatch, 3e-3, 3e-3).count("same") >= 19
    assert verdicts(monkeypatch, 2e-5, 2e-5).count("same") >= 19


def test_other_work_takes_another_time(monkeypatch):
    assert set(verdicts(monkeypatch, 3e-3, 2.4e-3)) == {"slower"}
    assert set(verdicts(monkeypatch, 2.4e-3, 3e-3)) == {"faster"}


# How it is called


def test_bad_calls_are_refused():
    def plain(x):
        return x

    x = jnp.ones(3)
    with pytest.raises(TypeError, match=r"compare: plain is no jax.custom_vjp function.*Pass automatic="):
        compare(plain, x)
    with pytest.raises(TypeError, match=r"plain is no jax.custom_vjp"):
        check_vjp(plain, x)
    with pytest.raises(ValueError, match=r"transforms=\('pmap',\) has \['pmap'\]; known are"):
        quick(plain, x, automatic=plain, **{"transforms": ("pmap",)})
    with pytest.raises(ValueError, match=r"argnums=3 asks for \[3\], but there are 1 arguments"):
        quick(plain, x, automatic=plain, argnums=3)
    with pytest.raises(ValueError, match=r"transforms=\('pmap',\) has \['pmap'\]; known are"):
        quick(plain, x, automatic=plain, **{"transforms": "pmap"})
    with pytest.raises(TypeError, match=r"argnums=1.0 must be an integer or a sequence of integers"):
        quick(plain, x, automatic=plain, argnums=1.0)
    for key in ("abc", 1.5, -1):
        with pytest.raises(TypeError, match=r"key=.* must be a JAX key, or an integer that is not negative"):
            quick(plain, x, automatic=plain, key=key)
    with pytest.raises(ValueError, match=r"names=\('a', 'b'\) has 2 entries for 1 arguments"):
        quick(plain, x, automatic=plain, names=("a", "b"))
    with pytest.raises(ValueError, match=r"cotangent has arrays of shapes \[\(2,\)\], but the output has \[\(3,\)\]"):
        quick(plain, x, automatic=plain, cotangent=jnp.ones(2))
    with pytest.raises(TypeError, match=r"argument 0 \(x\), a ArrayImpl int32 without a floating array"):
        quick(plain, jnp.arange(3), automatic=plain, argnums=0)
    with pytest.raises(TypeError, match="no argument holds a floating array"):
        quick(plain, 3, automatic=plain)
    with pytest.raises(TypeError, match="tracer; call compare outside of jit"):
        jax.jit(lambda a: quick(plain, a, automatic=plain).ok)(x)


@pytest.mark.exhaustive
def test_the_default_automatic_is_the_decorated_function_also_under_jit():
    wrong = with_rule(affine, MUTANTS["sign"][0])
    assert not quick(jax.jit(wrong), *arguments()).ok


def test_one_transform_by_its_name():
    reports = [quick(with_rule(jnp.sin, right), jnp.ones(3), **{"transforms": name}) for name in ("vmap", ("vmap",))]
    assert [row.name for row in reports[0].rows] == [row.name for row in reports[1].rows]


def test_check_vjp_is_silent_or_raises():
    assert check_vjp(with_rule(affine, right), *arguments()) is None
    with pytest.raises(AssertionError, match="the sign is wrong"):
        check_vjp(with_rule(affine, MUTANTS["sign"][0]), *arguments(), finite_difference=False, transforms=())


@pytest.mark.parametrize(
    "key",
    [7, np.int64(7), jax.random.key(7), jax.random.PRNGKey(7)],
    ids=["int", "NumPy's int", "key", "raw key"],
)
def test_the_key_decides_what_is_random(key):
    first, again = (quick(with_rule(jnp.sin, right), jnp.arange(3.0), key=key) for _ in range(2))
    other = quick(with_rule(jnp.sin, right), jnp.arange(3.0), key=8)
    name = next(iter(first.gradients))
    np.testing.assert_array_equal(first.gradients[name][0], again.gradients[name][0])
    assert (first.gradients[name][0] != other.gradients[name][0]).any()


# The command

USER_FILE = """
import jax
@jax.custom_vjp
def scaled(x, w):
    return x * w
scaled.defvjp(lambda x, w: (x * w, (x, w)), lambda kept, delta: (delta * kept[1], FACTOR * delta * kept[0]))
def plain(x, w): return x * w
"""


def command(*words):
    parser = argparse.ArgumentParser()
    _command.add_arguments(parser)
    return _command.run(parser.parse_args(list(words)))


@pytest.mark.parametrize("factor, status", [("1.0", 0), ("1.01", 1)])
def test_the_command_compares_a_users_function(tmp_path, capsys, factor, status):
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE.replace("FACTOR", factor))
    out = tmp_path / "report.json"
    words = [f"{path}:scaled", "--shape", "3,2", "--shape", "3,2", "--no-time", "--json", str(out)]
    assert command(*words) == status
    data = json.loads(out.read_text())
    assert data[0]["ok"] is (status == 0) and data[0]["case"].endswith("mine.py:scaled")
    assert ("manual = 1.01 x automatic" in capsys.readouterr().out) is (status == 1)


def test_the_command_refuses_what_makes_no_sense(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE.replace("FACTOR", "1.0"))
    for words, message in [
        ([f"{path}:scaled"], "needs arguments: give --shape"),
        ([f"{path}:absent", "--shape", "3"], "has no absent"),
        ([f"{path}:__name__", "--shape", "3"], "__name__ is 'mine', not a function"),
        ([f"{tmp_path}/absent.py:f", "--shape", "3"], "cannot import"),
        (["no_such_module_here:f", "--shape", "3"], "cannot import no_such_module_here"),
        ([f"{path}:plain", "--shape", "3", "--shape", "3"], "plain is no jax.custom_vjp"),
        (["convolve"], "'convolve' is no op of jaxbp; known are conv, "),
        (["conv", "--shape", "3"], "go with a module:function"),
        ([f"{path}:scaled", "conv", "--shape", "3"], "one module:function at a time"),
        ([f"{path}:scaled", "--shape", "3"], "but the command line gives 1 array: missing a required argument"),
        ([f"{path}:scaled", "--shape", "3", "--keyword", "c=1"], "gives 1 array and c=: "),
        (["conv", "--json", f"{tmp_path}/absent/x.json"], "there is no folder"),
    ]:
        assert command(*words) == 2
        assert message in capsys.readouterr().err
    for words in (["--shape", "a,b"], ["--value", "("], ["--keyword", "=3"]):
        with pytest.raises(SystemExit) as stop:
            command(*words)
        assert stop.value.code == 2


@pytest.mark.exhaustive
def test_the_command_compares_jaxbps_own_ops(tmp_path, capsys):
    assert command("max_pool", "relu", "--transforms", "jit", "--json", str(tmp_path / "all.json")) == 0
    text = capsys.readouterr().out
    assert "3 of 3 comparisons are right" in text and "max_pool(2x9x8x4, (3, 3), (2, 2), SAME)" in text
    assert len(json.loads((tmp_path / "all.json").read_text())) == 3


def test_compare_knows_no_layer():
    """Everything but the command imports no op: only jax, numpy, the standard library, and what arguments are checked by."""
    import jaxbp._compare as package

    files = [file for file in Path(package.__file__).parent.glob("*.py") if file.name != "_command.py"]
    allowed = {"_adapter", "_arguments", "jax", "numpy", *(file.stem for file in files), *sys.stdlib_module_names}
    assert len(files) == 15
    for file in files:
        lines = file.read_text().splitlines()
        for line in lines:
            if found := re.match(r" *(?:from|import) \.*(\w+)(?= import| *$)", line):
                assert found[1] in allowed, (file, line)
        assert len(lines) < 400
