"""Rules as people write them: wrong ones that look right, right ones that look wrong, and what the report says of them."""

import time
from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import SymbolicZero
from jax.experimental import pallas as pl

from jaxbp import check_vjp, compare
from jaxbp._compare._wide import Wide, without_rules

quick = partial(compare, time=False, memory=False, transforms=(), probe=False)


def ruled(function, backward, forward=None):
    """`function` with a rule whose residuals are its arguments."""
    manual = jax.custom_vjp(function)
    manual.defvjp(forward or (lambda *args: (function(*args), args)), backward)
    return manual


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), "float32")


def hint_of(report):
    return next(row.hint for row in report.rows if not row.ok)


def row_of(report, name):
    return next(row for row in report.rows if row.name == name)


# The lever: jaxprs without rules, in float64


def in_a_loop(x):
    return jax.lax.scan(lambda c, xi: (c + xi.astype(jnp.float32), jnp.sin(c)), jnp.zeros((), jnp.float32), x)[1]


def in_a_while(x):
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1]


def in_a_cond(x):
    return jax.lax.cond(x[0] > 0, jnp.sin, lambda x: jnp.cos(x).astype(jnp.bfloat16).astype(x.dtype), x)


def with_bits(x):
    return x * jax.random.normal(jax.random.key(3), x.shape, jnp.float32)


def with_scatter(x):
    return jnp.zeros(4, jnp.float32).at[jnp.array([0, 2, 2])].add(x[:3]).at[1].multiply(3.0) + jnp.sort(x)[:4]


def with_product(x):
    return jnp.dot(x.reshape(2, 3), x.reshape(3, 2), preferred_element_type=jnp.float32, precision="highest")


def squares_kernel(x_ref, o_ref, sum_ref):
    @pl.when(pl.program_id(0) == 0)
    def _():
        sum_ref[...] = jnp.zeros_like(sum_ref)

    x = x_ref[...].astype(jnp.float32)
    o_ref[...] = (x * x * (1 + pl.program_id(0)).astype(jnp.float32)).astype(o_ref.dtype)
    sum_ref[...] += x.sum(keepdims=True)


def with_a_kernel(x):
    out = jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct((1,), x.dtype)
    block = pl.BlockSpec((4,), lambda i: (i,))
    specs = {"in_specs": [block], "out_specs": (block, pl.BlockSpec((1,), lambda i: (0,)))}
    squares, total = pl.pallas_call(squares_kernel, out_shape=out, grid=(2,), interpret=True, **specs)(x)
    return squares[: x.size] / (1 + total[0] ** 2 if x.size % 4 == 0 else 1)


PROGRAMS = (
    in_a_loop,
    in_a_while,
    in_a_cond,
    with_bits,
    with_scatter,
    with_product,
    with_a_kernel,
    lambda x: jax.nn.gelu(x),
)


@pytest.mark.parametrize("function", PROGRAMS)
def test_any_program_runs_in_float64(function):
    x = normal(6)
    wrapped = jax.jit(jax.checkpoint(ruled(function, lambda kept, delta: (delta,))))
    wide = Wide(wrapped, x)
    found = wide(x)[0]
    assert found.dtype == np.float64 and not wide.kept
    own = np.asarray(function(x))
    assert 0 < np.abs(found - own).max() <= (1e-2 if function is in_a_cond else 3e-6) * np.abs(own).max()
    # In float64 the function is smooth to its last digits.
    nudged = np.asarray(x, np.float64) + 1e-9
    assert 0 < np.abs(wide(nudged)[0] - found).max() < 1e-6


@pytest.mark.sampled(2)
@pytest.mark.parametrize("function", [in_a_loop, in_a_cond, with_scatter, with_product, with_a_kernel])
def test_a_program_without_its_rules_is_differentiable(function):
    x = normal(6)
    plain = without_rules(jax.jit(ruled(function, lambda kept, delta: (jnp.zeros(6),))))
    gradient = jax.grad(lambda x: plain(x).sum())(x)
    step = 1e-2
    for at in range(6):
        moved = [plain(x.at[at].add(s * step)).astype(jnp.float32).sum() for s in (1, -1)]
        np.testing.assert_allclose(gradient[at], (moved[0] - moved[1]) / (2 * step), rtol=0.05, atol=0.1)


def test_what_cannot_be_float64_is_named():
    wide = Wide(lambda x: host(np.sin)(x) + x, jnp.arange(3.0))
    assert wide(jnp.arange(3.0))[0].dtype == np.float64 and wide.kept == ("pure_callback",)


# Wrong rules


def rms(x):
    def kernel(x_ref, o_ref):
        x = x_ref[...].astype(jnp.float32)
        o_ref[...] = (x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)).astype(o_ref.dtype)

    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


def test_noise_inside_of_a_kernel_hides_nothing():
    def backward(kept, delta):
        return (1.1 * delta * jax.lax.rsqrt((kept[0] * kept[0]).mean(-1, keepdims=True) + 1e-6),)

    def right(kept, delta):
        x, s = kept[0], jax.lax.rsqrt((kept[0] * kept[0]).mean(-1, keepdims=True) + 1e-6)
        return (s * (delta - x * s * (delta * x * s).mean(-1, keepdims=True)),)

    x = normal(10, 40)
    reports = [quick(ruled(rms, backward), x, key=seed) for seed in range(3)]
    assert not any(report.ok or report.rows[1].kink for report in reports)
    assert quick(ruled(rms, right), x).ok


@pytest.mark.sampled(1)
@pytest.mark.parametrize("factor", [0.0, -1.0, 1.5])
def test_random_numbers_inside_of_the_function(factor):
    def dropout(x, key):
        return jnp.where(jax.random.bernoulli(key, 0.75, x.shape), x / 0.75, 0)

    def backward(kept, delta):
        return factor * jax.vjp(lambda x: dropout(x, kept[1]), kept[0])[1](delta)[0], None

    x, key = jnp.arange(1.0, 129.0), jax.random.key(0)
    report = quick(ruled(dropout, backward), x, key)
    assert not report.ok
    right = ruled(dropout, lambda kept, delta: (jax.vjp(lambda x: dropout(x, kept[1]), kept[0])[1](delta)[0], None))
    assert quick(right, x, key).ok


def test_an_unusable_automatic_gradient_is_no_limit():
    """In float32 the two terms cancel to nothing; in float64 the rule shows what it is."""

    def difference(x):
        return (x + 1e8) - 1e8 + jnp.sin(x) * (x + 1e8 - 1e8)

    def backward(factor):
        return lambda kept, delta: (factor * delta * (1 + jnp.sin(kept[0]) + jnp.cos(kept[0]) * kept[0]),)

    x = jnp.arange(1.0, 7.0)
    assert quick(ruled(difference, backward(1.0)), x, limit={"forward": 1e9}).ok
    wrong = quick(ruled(difference, backward(1.2)), x, limit={"forward": 1e9})
    assert row_of(wrong, "x").verdict == "WRONG"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: wraps(f)(lambda x: f(x) + 1)])
def test_rules_are_found_at_any_depth(wrap):
    def through_float32(x):
        return jnp.sin(x.astype(jnp.float32)).astype(x.dtype)

    sin = ruled(through_float32, lambda kept, delta: (1.5 * delta * jnp.cos(kept[0]),))

    class Layer:
        def __call__(self, x):
            return jax.lax.scan(lambda c, _: (sin(c) + 1, None), x, length=1)[0]

    report = quick(wrap(Layer().__call__), normal(30))
    assert hint_of(report) == "manual = 1.5 x automatic"


def test_keywords_and_python_floats_are_differentiated():
    f = jax.custom_vjp(lambda x, w, temperature: x @ w / temperature)
    f.defvjp(
        lambda x, w, t: (x @ w / t, (x, w, t)),
        lambda r, g: (g @ r[1].T / r[2], 0 * r[1], jnp.zeros(())),
    )
    x, w = normal(2, 3), normal(3, 4)
    for args, keywords in (((x,), {"w": w, "temperature": 2.0}), ((x, w, 2.0), {})):
        report = quick(f, *args, **keywords)
        assert {row.name: row.ok for row in report.rows if row.kind == "gradient"} == {
            "x": True,
            "w": False,
            "temperature": False,
        }
    allowed = quick(f, x, w, 2.0, none_ok=("w", "temperature"))
    assert allowed.ok and "no gradient, as none_ok says" in row_of(allowed, "w").notes


def test_a_python_float_that_must_stay_one():
    @partial(jax.jit, static_argnames="rate")
    def scaled(x, rate):
        return ruled(lambda x: rate * jnp.sin(x), lambda kept, delta: (rate * delta * jnp.cos(kept[0]),))(x)

    report = quick(scaled, normal(3), rate=0.5)
    assert report.ok and [row.name for row in report.rows][:2] == ["forward", "x"]
    assert "rate: Python floats that the function needs as they are, so not differentiated" in report.notes


def host(function):
    def call(x):
        out = jax.ShapeDtypeStruct(x.shape, jnp.float32)
        return jax.pure_callback(
            lambda a: function(np.asarray(a)).astype(np.float32), out, x, vmap_method="expand_dims"
        )

    return call


@pytest.mark.sampled(1)
@pytest.mark.parametrize("change, words", [(lambda g: 1.01 * g, r""), (lambda g: g.at[7].multiply(1.5), r"\[7\]")])
def test_slopes_alone_say_what_they_checked(change, words):
    def rule(change):
        return ruled(host(np.sin), lambda kept, delta: (change(delta * jnp.cos(kept[0])),))

    x = normal(40)
    right = quick(rule(lambda g: g), x)
    assert right.ok and any("checked by slopes alone: x: 8 directions, 0." in note for note in right.rows[1].notes)
    wrong = quick(rule(change), x)
    assert not wrong.ok and "finite differences disagree with manual" in hint_of(wrong)
    if words:
        assert wrong.rows[1].index == (7,)
    big = normal(500)
    assert not quick(rule(lambda g: g.at[417].set(9.0)), big).ok


def test_what_nothing_could_check_is_not_ok():
    rule = ruled(host(np.sin), lambda kept, delta: (delta * jnp.cos(kept[0]),))
    report = quick(rule, normal(4), finite_difference=False)
    assert not report.ok and report.rows[1].verdict == "not checked"
    assert str(report).endswith("not checked: x (1 of 3 rows)")
    with pytest.raises(AssertionError, match="automatic has no gradient, and finite_difference=False"):
        check_vjp(rule, normal(4), finite_difference=False, transforms=())


@pytest.mark.sampled(1)
@pytest.mark.parametrize("factor, ok", [(1.0, True), (1.001, False)])
def test_forward_mode_judges_where_reverse_mode_fails(factor, ok):
    def root(x):
        return jax.lax.while_loop(
            lambda c: c[0] < 20, lambda c: (c[0] + 1, (c[1] + x / c[1]) / 2), (0, jnp.ones_like(x))
        )[1]

    report = quick(ruled(root, lambda kept, delta: (factor * delta / (2 * jnp.sqrt(kept[0])),)), jnp.arange(1.0, 6.0))
    assert report.ok is ok
    assert any("forward mode is the reference" in note for note in report.notes)


def test_branches_of_symbolic_zeros_are_run():
    f = jax.custom_vjp(lambda x: (jnp.sin(x), jnp.cos(x)))

    def backward(x, cotangents):
        a, b = cotangents
        if isinstance(b, SymbolicZero):
            return (-a * jnp.cos(x),)
        return (-b * jnp.sin(x) if isinstance(a, SymbolicZero) else a * jnp.cos(x) - b * jnp.sin(x),)

    f.defvjp(lambda x: (f(x.value), x.value), backward, symbolic_zeros=True)
    report = compare(f, jnp.arange(4.0), time=False, memory=False, probe=False, transforms="unused")
    assert "x (output 1 unused): manual = -automatic" in row_of(report, "unused").hint


def test_residuals_whose_structure_depends_on_the_call():
    f = jax.custom_vjp(lambda x, w: x * w)

    def forward(x, w):
        return x.value * w.value, (x.value if w.perturbed else None, w.value if x.perturbed else None)

    def backward(kept, g):
        x, w = kept
        return None if w is None else g * w, None if x is None else g * x

    f.defvjp(forward, backward, symbolic_zeros=True)
    report = compare(f, normal(4), normal(4, seed=1), time=False, memory=False, probe=False, transforms="twice")
    assert not report.ok and "one jitted function called with other arguments" in row_of(report, "twice").hint


def test_a_rule_that_forgets_a_constant_argument():
    f = jax.custom_vjp(lambda x, w: x * w)

    def backward(kept, g):
        x, w, alone = kept
        return g * w * (2 if alone else 1), g * x

    def forward(x, w):
        return x.value * w.value, (x.value, w.value, not w.perturbed)

    f.defvjp(forward, backward, symbolic_zeros=True)
    report = compare(f, normal(4), normal(4, seed=1), time=False, memory=False, probe=False, transforms="constant")
    assert "x (w constant): manual = 2 x automatic" in row_of(report, "constant").hint


def test_probes_find_what_happens_at_the_edge():
    def loss(p, t):
        return -(t * jnp.log(p + 1e-7) + (1 - t) * jnp.log(1 - p + 1e-7))

    def backward(kept, g):
        p, t = kept
        return g * ((1 - t) / (1 - p) - t / p), None

    p = jax.nn.sigmoid(normal(9))
    report = compare(ruled(loss, backward), p, jnp.arange(9.0) % 2, argnums=0, time=False, memory=False, transforms=())
    assert row_of(report, "p").ok and {row.name for row in report.rows if not row.ok} >= {"zeros", "ones"}
    assert row_of(report, "zeros").hint == "where p is 0: the gradient of p is not finite, and automatic's is"
    assert quick(ruled(loss, backward), p, jnp.arange(9.0) % 2, argnums=0).ok


def test_probes_leave_out_functions_that_search():
    def halved(x):
        return jax.lax.while_loop(lambda y: y.max() > 1, lambda y: y / 2, x)

    rule = ruled(halved, lambda kept, delta: (delta * halved(kept[0]) / kept[0],))
    report = compare(rule, jnp.arange(1.0, 5.0), time=False, memory=False, transforms=())
    assert any("no probes: a loop ends when its numbers say so" in note for note in report.notes)


# Right rules


def test_finite_where_plain_autodiff_is_nan():
    def plain(x):
        return jnp.log(1 + jnp.exp(x))

    log1pexp = jax.custom_vjp(plain)
    log1pexp.defvjp(lambda x: (jnp.logaddexp(x, 0.0), x), lambda x, g: (g * jax.nn.sigmoid(x),))
    every = partial(compare, time=False, memory=False, transforms=("jit", "vmap"))
    one = every(log1pexp, jnp.array([1000.0, 0.0, -3.0]))
    assert one.ok and any("subgradient" in note for note in one.rows[1].notes), one

    def length(x):
        return jnp.sqrt((x * x).sum(-1))

    safe = ruled(length, lambda kept, g: (g[:, None] * kept[0] / jnp.maximum(length(kept[0]), 1e-30)[:, None],))
    two = every(safe, jnp.zeros((2, 3)).at[0].set(1.0))
    assert two.ok and "subgradient" in str(two), two
    three = every(jax.nn.relu, jnp.array([-1.0, 0.0, 2.0]))
    assert three.ok and "subgradient: between the one-sided slopes at [1]" in str(three), three


@pytest.mark.parametrize("share, ok", [("first", True), ("equal", True), ("all", False), ("none", False)])
def test_a_maximum_has_one_winner(share, ok):
    """Each of two equal entries may have the gradient, but not both."""

    def backward(kept, g):
        x = kept[0]
        won = (x == x.max(-1, keepdims=True)).astype(x.dtype)
        first = jax.nn.one_hot(x.argmax(-1), x.shape[-1])
        lost = jnp.where(won.sum(-1, keepdims=True) > 1, 0, won)
        part = {"first": first, "equal": won / won.sum(-1, keepdims=True), "all": won, "none": lost}[share]
        return (part * g[:, None],)

    largest = ruled(lambda x: x.max(-1), backward)
    ties = quick(largest, jnp.asarray([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]]))
    assert ties.ok is ok, ties
    assert "bits" not in str(ties)
    probed = quick(largest, normal(3, 4), probe=True)
    assert probed.ok is ok and row_of(probed, "x").ok, probed


def test_second_order_leaves_out_what_automatic_has_wrong():
    """Where the weight is 0 plain autodiff takes the other branch, and so does its derivative along the weight."""

    def weighted(x, w):
        return jnp.where(w != 0, w * jnp.sin(x), 0)

    def backward(kept, g):
        return g * kept[1] * jnp.cos(kept[0]), g * jnp.sin(kept[0])

    def frozen(kept, g):
        return jax.lax.stop_gradient(g * kept[1] * jnp.cos(kept[0])), g * jnp.sin(kept[0])

    second = partial(compare, time=False, memory=False, probe=False, transforms="second")
    x, w = normal(4, 5), jnp.eye(5, dtype="float32")[jnp.array([0, 2, 4, 1])]
    right = second(ruled(weighted, backward), x, w)
    assert right.ok and any("automatic is the wrong one" in note for note in row_of(right, "w").notes), right
    assert not row_of(second(ruled(weighted, frozen), x, w), "second").ok


def test_a_mask_of_infinities_is_measured_around():
    """A direction as large as the entries would be infinite."""
    x = normal(4, 6).at[0, 2].set(-jnp.inf)
    rule = ruled(lambda x: jax.nn.logsumexp(x, -1), lambda kept, g: (g[..., None] * jax.nn.softmax(kept[0], -1),))
    report = quick(rule, x)
    assert report.ok and row_of(report, report.rows[1].name).finite_difference < 1e-6, report


def test_a_wrong_formula_in_a_loop_is_no_mask():
    """A later output goes wrong through every earlier step, though nothing is masked."""

    def step(h, x, w):
        return jnp.tanh(h @ w + x)

    def backward(kept, g):
        h, x, w = kept
        d = g * (1 - step(h, x, w))  # of tanh(z) it is 1 - tanh(z)^2
        return d @ w.T, d, h.T @ d

    cell = ruled(step, backward)

    def net(x, w):
        return jax.lax.scan(lambda h, xi: (cell(h, xi, w), h.sum()), jnp.zeros_like(x[0]), x)

    report = quick(net, normal(5, 2, 3), normal(3, 3, seed=1) / 2)
    hints = [row.hint for row in report.rows if not row.ok]
    assert hints and not any("a mask" in hint or "tile" in hint for hint in hints), hints


def test_a_long_sum_in_another_order():
    """With a callback inside nothing is wider than float32: the limit grows with the noise of the sum."""

    @jax.custom_jvp
    def identity(x):
        return host(lambda a: a)(x)

    identity.defjvp(lambda primals, tangents: (identity(*primals), identity(tangents[0])))

    def total(x, w):
        return jax.lax.scan(lambda c, xi: (c + jnp.sin(xi * w), None), jnp.zeros(3, jnp.float32), x)[0]

    def backward(kept, g):
        x, w, g = kept[0], kept[1][None], g[None]
        return g * jnp.cos(x * w) * w, (g * jnp.cos(x * w) * x).sum(0)

    x, w = normal(20000, 3), jnp.array([2.0, 3.0, 1.5])
    assert quick(ruled(total, backward), x, w, finite_difference=False).ok
    narrow = quick(ruled(total, backward), x, w, automatic=lambda x, w: total(x, w) + 0 * jnp.sum(w), key=1)
    assert narrow.ok


def test_arguments_are_never_deleted():
    sin = ruled(jnp.sin, lambda kept, g: (g * jnp.cos(kept[0]),))
    x = jnp.arange(4.0)
    assert compare(jax.jit(sin, donate_argnums=0), x, time=False, memory=False).ok and not x.is_deleted()


def test_a_linear_function_has_no_kink():
    def matmul(x, w):
        return jnp.matmul(x, w, preferred_element_type=jnp.float32).astype(x.dtype)

    f = ruled(matmul, lambda r, g: (matmul(g, r[1].T), matmul(r[0].T, g)))
    report = quick(f, normal(64, 32), normal(32, 32, seed=1))
    assert report.ok and not any(row.kink for row in report.rows)


# Hints


def named(plain, backward, *args, **keywords):
    return hint_of(quick(ruled(plain, backward), *args, **keywords))


def test_hints_say_what_happened():
    x = normal(6, 8)
    assert named(lambda x: x, lambda r, g: (-0.5 * g,), x) == "manual = -0.5 x automatic"
    exact, rough = partial(jax.nn.gelu, approximate=False), partial(jax.nn.gelu, approximate=True)
    text = named(exact, lambda r, g: jax.vjp(rough, r[0])[1](g), x)
    assert "in float64, too: an approximation, or a small term is missing" in text
    text = named(
        lambda z: jnp.abs(z) ** 2, lambda r, g: (2 * g.astype("complex64") * r[0],), jax.lax.complex(x[:3], x[3:])
    )
    assert text == "manual = conj(automatic): a conjugate is missing, or one too many"

    def norm(x):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    def no_eps(r, g):
        s = jax.lax.rsqrt((r[0] * r[0]).mean(-1, keepdims=True))
        return (s * (g - r[0] * s * (g * r[0] * s).mean(-1, keepdims=True)),)

    assert named(norm, no_eps, 0.1 * x) == "manual = the gradient without the constant 1e-06: a forgotten eps?"
    half = named(lambda x: x * x, lambda r, g: ((g * r[0]).astype("float16").astype("float32") * 2.0,), x)
    assert half == "every entry is a float16 number: rounded to float16"
    low = named(lambda x: x * x, lambda r, g: (r[0] * (2 * g).astype("bfloat16").astype("float32"),), x)
    assert "right in float64: low precision in an intermediate result" in low
    assert "cotangent is ignored" in named(jnp.sin, lambda r, g: (jnp.cos(r[0]),), x)
    assert named(jnp.sin, lambda r, g: (jnp.cos(r[0]) * g * jnp.abs(g),), x) == "manual is not linear in delta"


def test_hints_name_a_factor_and_a_sum_over_too_many_axes():
    x, w = normal(6, 3), normal(3, seed=1)
    cube = named(lambda x: x**3, lambda r, g: (3 * g * r[0] ** 3,), x)
    assert cube == "manual = automatic times x: a factor too many"
    forgotten = named(lambda x, w: x * w[None], lambda r, g: (g, (g * r[0]).sum(0)), x, w)
    assert forgotten == "manual = automatic divided by w: a factor is missing"
    for part, words in (("sum", "axis 0"), ("mean", "axis 0")):
        total = lambda r, g, part=part: (g, jnp.full(3, getattr(g.sum(0), part)()))  # noqa: E731
        text = named(lambda x, b: x + b[None], total, x, w)
        assert text == f"manual = the {part} of automatic along {words}: a {part} over too many axes"


def test_hints_name_outputs_that_are_not_counted():
    """As where a batch norm returns its statistics, too."""

    def normed(x):
        mean, var = x.mean(0), x.var(0)
        return (x - mean[None]) * jax.lax.rsqrt(var + 1e-5)[None], mean, var

    def backward(outputs):
        def rule(kept, delta):
            return jax.vjp(normed, *kept)[1](tuple(d if at in outputs else 0 * d for at, d in enumerate(delta)))

        return rule

    assert named(normed, backward({0}), normal(7, 4)) == "outputs 1, 2 are not counted: a cotangent is ignored"
    assert named(normed, backward({0, 2}), normal(7, 4)) == "output 1 is not counted: a cotangent is ignored"


def test_hints_name_a_missing_sum():
    """A norm's backward pass without its second term takes each entry for itself."""

    def unit(x):
        return x / jnp.sqrt((x * x).sum(-1, keepdims=True))

    text = named(unit, lambda r, g: (g / jnp.sqrt((r[0] * r[0]).sum(-1, keepdims=True)),), normal(4, 3))
    assert text == (
        "index i along axis 1 of the output reaches only index i along axis 1 of x: a sum or a mean is missing?"
    )


def test_a_coarse_dtype_takes_no_factor_for_a_whole_number():
    """Of second derivatives in bfloat16 only the rule's own dtype is known."""
    x = normal(6, 8).astype("bfloat16")

    def backward(r, g):
        cos = jnp.cos(r[0])
        return (g * (cos + 0.75 * (cos - jax.lax.stop_gradient(cos))),)

    sine = ruled(jnp.sin, backward)
    report = compare(sine, x, time=False, memory=False, probe=False, transforms="second")
    assert row_of(report, "second").hint.startswith("x: manual = about 1.7 x automatic"), report


def test_a_surrogate_is_never_wrong_and_has_no_second_order():
    def quantised(x, s):
        return jnp.round(x / s) * s

    def learnt(x, s):
        return (x / s + jax.lax.stop_gradient(jnp.round(x / s) - x / s)) * s

    def backward(kept, g):
        x, s = kept
        return g, (g * (jnp.round(x / s) - x / s)).sum()

    every = partial(compare, time=False, memory=False)
    x, s = normal(9), jnp.float32(0.3)
    right = every(ruled(quantised, backward), x, s, surrogate=learnt)
    assert right.ok and "second" not in [row.name for row in right.rows], right
    # The slopes of the values are what the surrogate leaves out on purpose.
    rounds = ruled(quantised, lambda kept, g: (g, (g * jnp.round(kept[0] / kept[1])).sum()))
    wrong = every(rounds, x, s, surrogate=learnt, transforms=())
    assert not wrong.ok and "bits" not in hint_of(wrong), wrong


def test_a_kink_of_the_surrogate_is_a_kink():
    """The probe of ones lies on the edge of the clip."""

    def sign(limit):
        return ruled(lambda x: jnp.sign(x), lambda kept, g: (jnp.where(jnp.abs(kept[0]) <= limit, g, 0),))

    clip = lambda x: jnp.clip(x, -1, 1)  # noqa: E731
    every = partial(compare, time=False, memory=False, transforms=(), surrogate=clip)
    assert every(sign(1), normal(20)).ok
    assert not every(sign(1.5), normal(20)).ok


def fixed_point(tolerance):
    def solve(w, b):
        def step(carry):
            after = jnp.tanh(w @ carry[0] + b)
            return after, jnp.abs(after - carry[0]).max()

        return jax.lax.while_loop(lambda c: c[1] > tolerance, step, (jnp.zeros_like(b), jnp.ones_like(b[0])))[0]

    return solve


@pytest.mark.parametrize("transpose, ok", [(True, True), (False, False)])
def test_implicit_differentiation_is_as_exact_as_its_loop(transpose, ok):
    """The loop ends at 1e-5, so the slope of its iterations is 30 eps and more from the solution's."""

    def backward(kept, g):
        x, w, b = kept
        matrix = jnp.eye(x.size) - w * (1 - jnp.tanh(w @ x + b) ** 2)[:, None]
        u = jnp.linalg.solve(matrix.T if transpose else matrix, g)
        return jax.vjp(lambda w, b: jnp.tanh(w @ x + b), w, b)[1](u)

    solve = fixed_point(1e-5)
    rule = ruled(solve, backward, lambda w, b: ((x := solve(w, b)), (x, w, b)))
    report = compare(rule, 0.3 * normal(4, 4), normal(4, seed=1), time=False, memory=False)
    assert report.ok is ok, report
    assert any("run further, the rule is right in float64" in note for note in report.rows[1].notes) is ok


def attention(mask):
    def attend(q, k, v):
        scores = jnp.where(mask, q @ k.T, -1e30)
        return jax.nn.softmax(scores, axis=-1) @ v

    return attend


def test_hints_say_which_output_leaks_into_which_entry():
    causal = np.tril(np.ones((8, 8), bool))
    window = causal & ~np.tril(np.ones((8, 8), bool), -3)
    q, k, v = (normal(8, 4, seed=s) for s in range(3))
    for right, wrong, words in (
        (causal, np.ones((8, 8), bool), "leaks into v from i + 1 on: a causal mask is missing?"),
        (window, causal, "leaks into v up to i - 3: a window is missing or off by one?"),
    ):
        rule = ruled(attention(right), lambda kept, g, wrong=wrong: jax.vjp(attention(wrong), *kept)[1](g))
        row = row_of(quick(rule, q, k, v, argnums=2), "v")
        assert not row.ok and words in row.hint, row.hint


def test_an_exception_names_its_line():
    def backward(kept, g):
        if g.ndim:
            raise NotImplementedError
        return (2 * g,)

    report = quick(ruled(lambda x: 2 * x, backward), jnp.arange(3.0), probe=True)
    text = str(report)
    assert "NotImplementedError (in backward," in text and "test_compare_any_rule.py" in text.replace("\n      ", "")
    assert not report.notes


# For writers of kernels


def test_cases_name_the_one_that_fails():
    def scaled(x, b=None):
        return x * 2 if b is None else x * 2 + b[None]

    def rule(x, b=None):
        if b is None:
            return ruled(scaled, lambda kept, g: (2 * g, None))(x, None)

        def tile(kept, g):
            inside = (jnp.arange(g.shape[1]) < g.shape[1] // 4 * 4).astype(g.dtype)
            return 2 * g, (g * inside[None]).sum(0)

        return ruled(scaled, tile)(x, b)

    cases = [(normal(3, n), normal(n)) for n in (8, 7)] + [(normal(1, 4),), (normal(1, 8), normal(8))]
    report = quick(rule, automatic=scaled, cases=cases)
    assert [row.verdict for row in report.rows if row.kind == "case"] == ["ok", "WRONG", "ok", "ok"]
    assert "float32[3,7], float32[7]" in row_of(report, "case 1").notes[0]
    assert "lie in [4:7], where manual is 0" in row_of(report, "case 1: b").hint
    assert not report.notes
    alone = quick(rule, normal(1, 8), normal(8), automatic=scaled)
    assert "axis 0 of the output has one entry: a missing sum over it cannot show" in alone.notes
    with pytest.raises(TypeError, match="each case is a tuple of arguments"):
        quick(rule, automatic=scaled, cases=[normal(3)])


def test_a_surrogate_is_what_the_rule_is_held_against():
    rounded = ruled(lambda x: jnp.round(x), lambda kept, g: (g,))
    x = normal(12) * 3
    assert not quick(rounded, x).ok
    assert quick(rounded, x, surrogate=lambda x: x).ok
    assert "the surrogate" in str(quick(rounded, x, surrogate=lambda x: x))
    doubled = ruled(lambda x: jnp.round(x), lambda kept, g: (2 * g,))
    assert hint_of(quick(doubled, x, surrogate=lambda x: x)).startswith("manual = 2 x automatic")
    with pytest.raises(TypeError, match="give automatic= or surrogate=, not both"):
        quick(rounded, x, surrogate=lambda x: x, automatic=rounded)


def test_limits_and_keywords():
    rough = ruled(lambda x, w: x * w, lambda kept, g: (1.0001 * g * kept[1], g * kept[0]))
    x, w = normal(5), normal(5, seed=1)
    assert not quick(rough, x, w).ok
    assert quick(rough, x, w, limit=1000).ok and quick(rough, x, w, limit={"x": 1000}).ok
    assert not quick(rough, x, w, limit={"w": 1000}).ok
    for option in ({"limit": {"y": 3}}, {"none_ok": "y"}):
        with pytest.raises(ValueError, match=r"names 'y', but what is differentiated is \['x', 'w'\]"):
            quick(rough, x, w, **option)
    with pytest.raises(TypeError, match=r"rtol= is no argument of compare, and <lambda> takes x, w"):
        quick(rough, x, w, rtol=1e-3)

    def called(x, limit):
        return rough(x, limit)

    assert [row.name for row in quick(called, x, keywords={"limit": w}).rows][:3] == ["forward", "x", "limit"]


def test_half_precision_says_who_is_nearer():
    f = ruled(lambda x: jnp.sin(x) * x, lambda kept, g: jax.vjp(lambda x: jnp.sin(x) * x, kept[0])[1](g))
    report = quick(f, normal(40).astype("bfloat16"))
    assert any("near" in note and "float64" in note for note in row_of(report, "x").notes)


@pytest.mark.exhaustive
def test_a_comparison_is_quick():
    f = ruled(lambda x: jnp.tanh(x), lambda kept, g: (g * (1 - jnp.tanh(kept[0]) ** 2),))
    compare(f, normal(8, 8), time=False, memory=False)
    start = time.process_time()
    compare(f, normal(8, 8), time=False, memory=False)
    assert time.process_time() - start < 5
