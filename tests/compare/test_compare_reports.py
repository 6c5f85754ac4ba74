"""Mistakes of real bug reports rebuilt, and right rules of many kinds: what check_vjp, JAX, chex and torch say of them.

By default a part of them runs, with check_vjp alone; the others carry the marker exhaustive, and

    python tests/compare/test_compare_reports.py

prints the table that the README shows.
"""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from other_checks import OTHERS, TORCH, complains, is_vague, with_torch

from jaxbp import compare

DTYPES = ("float32", "bfloat16")
CAUSAL = np.tril(np.ones((8, 8), bool))
WINDOW = CAUSAL & ~np.tril(np.ones((8, 8), bool), -3)
KEYS = np.broadcast_to(np.arange(8) < 6, (8, 8))
IDS, LABELS = np.array([0, 2, 2, 1, 4, 2]), np.array([1, 0, 3, 2, 2, 0])
KEY = np.array([0, 7], np.uint32)


def ruled(function, backward):
    # A custom_vjp would fill in defaults and differentiate them.
    manual = jax.custom_vjp(lambda *args: function(*args))
    manual.defvjp(lambda *args: (function(*args), args), backward)
    return manual


def as_another(function, other):
    """`function` with the gradient of another one."""
    return ruled(function, lambda kept, g: jax.vjp(other, *kept)[1](g))


def draw(shapes, dtype):
    """Arguments; a tuple of two entries, (shape, "positive"), is for logarithms and roots."""
    rng = np.random.default_rng(5)
    arrays = []
    for shape in shapes:
        positive = len(shape) == 2 and shape[1] == "positive"
        values = rng.standard_normal(shape[0] if positive else shape)
        arrays.append(jnp.asarray((np.abs(values) + 0.5 if positive else values).astype(jnp.dtype(dtype))))
    return arrays


# Functions


def scores(q, k):
    return q @ k.T * jnp.asarray(0.5, q.dtype)


def attend(mask, q, k, v):
    return jax.nn.softmax(jnp.where(mask, scores(q, k).astype(jnp.float32), -1e30)).astype(v.dtype) @ v


def flash(mask, g, q, k, v):
    """dv, dq and dk with the rows' log-sums of the forward pass, and the mask of the backward one."""
    s = scores(q, k).astype(jnp.float32)
    total = jax.nn.logsumexp(jnp.where(mask[0], s, -1e30), axis=-1, keepdims=True)
    p = jnp.where(mask[1], jnp.exp(s - total), 0).astype(v.dtype)
    ds = p * (g @ v.T - (g * (p @ v)).sum(-1, keepdims=True)) * jnp.asarray(0.5, q.dtype)
    return ds @ k, ds.T @ q, p.T @ g


def attention(*masks):
    return ruled(partial(attend, masks[0]), lambda kept, g: flash(masks, g, *kept))


def dropped(x, key=KEY, keep=0.75):
    bits = jax.random.bernoulli(jax.random.wrap_key_data(jnp.asarray(key)), 0.75, x.shape)
    return jnp.where(bits, x / jnp.asarray(keep, x.dtype), jnp.zeros((), x.dtype))


def bias(x, b):
    return x * 2 + b[None, None]


def rms(x, eps=1e-3):
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + jnp.asarray(eps, x.dtype))


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + jnp.asarray(1e-3, x.dtype))


def xent(z):
    logp = jax.nn.log_softmax(z)
    return -jnp.take_along_axis(logp, LABELS[:, None], 1)[:, 0]


def ignoring(z, ignored=2):
    return jnp.where(np.arange(6) == ignored, jnp.zeros((), z.dtype), xent(z))


def embed(table):
    return table[IDS]


def heads(q, k):
    """Six query heads share two key heads."""
    return jnp.einsum("hgtd,hsd->hgts", q, k, preferred_element_type=q.dtype)


def product(x, w):
    return x @ w


# Wrong rules: (name, rule, shapes, which words name it)


class Mistake(NamedTuple):
    name: str
    rule: Any
    shapes: tuple
    words: tuple[str, ...] = ()


QKV = ((8, 4),) * 3
SQUARE = ((5, 5), (5, 5))


def first_tiles(g, width=4):
    """Without the rows of the last tile, which is not whole."""
    return jnp.where((np.arange(g.shape[0]) < g.shape[0] // width * width)[:, None], g, jnp.zeros((), g.dtype))


def change(index, function):
    """JAX's own gradients with one of them changed."""

    def wrong(plain):
        def backward(kept, g):
            own = list(jax.vjp(plain, *kept)[1](g))
            own[index] = function(own[index], g, *kept)
            return tuple(own)

        return ruled(plain, backward)

    return wrong


MISTAKES = (
    Mistake("causal mask missing on the way back", attention(CAUSAL, np.ones((8, 8), bool)), QKV, ("leaks into", "from i + 1")),
    Mistake("window one too wide on the way back", attention(WINDOW, CAUSAL), QKV, ("leaks into", "up to i - 3")),
    Mistake("window one too narrow", attention(WINDOW, WINDOW & ~np.tril(CAUSAL, -2)), QKV, ("does not reach",)),
    Mistake("padded keys not masked", attention(KEYS, np.ones((8, 8), bool)), QKV, ("lie in [6:8, :]",)),
    Mistake("scale of the scores forgotten", change(0, lambda d, *_: 2 * d)(partial(attend, CAUSAL)), QKV, ("2 x automatic",)),
    Mistake("softmax without its sum", ruled(lambda z: jax.nn.softmax(z), lambda r, g: (jax.nn.softmax(r[0]) * g,)), ((4, 6),), ("a sum or a mean is missing",)),
    Mistake("dropout with another key", as_another(dropped, partial(dropped, key=KEY + 1)), ((8, 9),), ("leaks into",)),
    Mistake("dropout without its scale", as_another(dropped, partial(dropped, keep=1.0)), ((8, 9),), ("0.75 x automatic",)),
    Mistake("dropout's mask forgotten", ruled(dropped, lambda r, g: (g / jnp.asarray(0.75, g.dtype),)), ((8, 9),), ("leaks into",)),
    Mistake("mean over the broadcast axes", change(1, lambda d, g, *_: g.mean((0, 1)))(bias), ((2, 5, 3), (3,)), ("a mean in place",)),
    Mistake("sum over the batch missing", change(1, lambda d, g, *_: g[0].sum(0))(bias), ((2, 5, 3), (3,)), ("only index 0 along axis 0",)),
    Mistake("last image lost", change(1, lambda d, g, *_: g[:-1].sum((0, 1)))(bias), ((3, 5, 3), (3,)), ("index 2 along axis 0", "not counted")),
    Mistake("only the first head of a group", change(1, lambda d, g, q, k: jnp.einsum("hts,htd->hsd", g[:, 0], q[:, 0]))(heads), ((2, 3, 4, 5), (2, 4, 5)), ("only index 0 along axis 1",)),
    Mistake("layer norm without its mean", as_another(layer_norm, lambda x: (x - lax.stop_gradient(x.mean(-1, keepdims=True))) * lax.rsqrt(x.var(-1, keepdims=True) + jnp.asarray(1e-3, x.dtype))), ((4, 6),)),
    Mistake("forgotten eps", as_another(rms, partial(rms, eps=0.0)), ((4, 6),), ("a forgotten eps?",)),
    Mistake("last tile lost", change(0, lambda d, *_: first_tiles(d))(lambda x: jnp.sin(x)), ((10, 3),), ("lie in [8:10, :], where manual is 0",)),
    Mistake("last tile counted twice", change(0, lambda d, *_: 2 * d - first_tiles(d))(lambda x: jnp.sin(x)), ((10, 3),), ("lie in [8:10, :], where manual = 2 x",)),
    Mistake("stop_gradient around a weight", as_another(product, lambda x, w: x @ lax.stop_gradient(w)), ((3, 4), (4, 5)), ("all zeros",)),
    Mistake("product not transposed", change(0, lambda d, g, x, w: g @ w)(product), SQUARE, ("transposed",)),
    Mistake("weight's gradient transposed", change(1, lambda d, *_: d.T)(product), SQUARE, ("axes 0 and 1 swapped",)),
    Mistake("gradients in the other order", ruled(lambda x, w: x @ jnp.sin(w), lambda r, g: jax.vjp(lambda x, w: x @ jnp.sin(w), *r)[1](g)[::-1]), SQUARE, ("returned in the wrong place",)),
    Mistake("forgotten bias", change(1, lambda d, *_: jnp.zeros_like(d))(bias), ((2, 5, 3), (3,)), ("all zeros",)),
    Mistake("rows written, not added", change(0, lambda d, g, t: jnp.zeros_like(t).at[IDS].set(g))(embed), ((5, 4),), ("lie in [2, :]",)),
    Mistake("index off by one", change(0, lambda d, *_: jnp.roll(d, 1, 0))(lambda x: jnp.cos(x)), ((9, 4),), ("shifted by (1,)",)),
    Mistake("accumulated in bfloat16", change(1, lambda d, g, x, w: (x.astype("bfloat16").T @ g.astype("bfloat16")).astype(d.dtype))(product), ((64, 8), (8, 5)), ("low precision",)),
    Mistake("sign of the second factor", change(1, lambda d, *_: -d)(lambda x, w: x * w), ((4, 5), (4, 5)), ("-automatic",)),
    Mistake("divided by the length twice", change(0, lambda d, *_: d / jnp.asarray(6, d.dtype))(lambda x: x.mean(-1)), ((4, 6),), ("automatic / 6",)),
    Mistake("sum run in the wrong direction", ruled(lambda x: jnp.cumsum(x), lambda r, g: (jnp.cumsum(g),)), ((9,),), ("leaks into",)),
    Mistake("ignored label counted", as_another(ignoring, partial(ignoring, ignored=-1)), ((6, 5),), ("lie in [2, :]",)),
    Mistake("loss scale ignored", ruled(lambda x: jnp.sin(x), lambda r, g: (jnp.cos(r[0]),)), ((4, 5),), ("cotangent is ignored",)),
)  # fmt: skip
# With bfloat16 arguments it is not a mistake.
FLOAT32_ONLY = {"accumulated in bfloat16"}


# Right rules: (name, function, an equal one whose gradient is taken, shapes)


def newton(x):
    return lax.while_loop(lambda c: c[0] < 30, lambda c: (c[0] + 1, (c[1] + x / c[1]) / 2), (0, jnp.ones_like(x)))[1]


def rnn(x, w):
    return lax.scan(lambda h, xi: (jnp.tanh(h @ w + xi), h), jnp.zeros_like(x[0]), x)[0]


def unrolled(x, w):
    h = jnp.zeros_like(x[0])
    for xi in x:
        h = jnp.tanh(h @ w + xi)
    return h


def kernel(body, x, *more, block=4):
    """A Pallas kernel over blocks of rows, in interpret mode."""
    rows = pl.BlockSpec((block, *x.shape[1:]), lambda i: (i, *[0] * (x.ndim - 1)))
    whole = [pl.BlockSpec(m.shape, lambda i, n=m.ndim: (0,) * n) for m in more]
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    call = pl.pallas_call(
        body, out_shape=out, grid=(-(-x.shape[0] // block),), in_specs=[rows, *whole], out_specs=rows, interpret=True
    )
    return call(x, *more)


def softmax_body(x_ref, o_ref):
    x = x_ref[...].astype(jnp.float32)
    e = jnp.exp(x - x.max(-1, keepdims=True))
    o_ref[...] = (e / e.sum(-1, keepdims=True)).astype(o_ref.dtype)


def rms_body(x_ref, w_ref, o_ref):
    x = x_ref[...].astype(jnp.float32)
    y = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-3) * w_ref[...].astype(jnp.float32)[None]
    o_ref[...] = y.astype(o_ref.dtype)


def rms_in_float32(x, w):
    wide = x.astype(jnp.float32)
    return (wide * lax.rsqrt((wide * wide).mean(-1, keepdims=True) + 1e-3) * w.astype(jnp.float32)[None]).astype(
        x.dtype
    )


M, V, P = ((4, 6),), ((7,),), ((((4, 6)), "positive"),)
RIGHT: dict[str, tuple[Any, Any, tuple]] = {
    "sigmoid": (lambda x: 1 / (1 + jnp.exp(-x)), lambda x: jax.nn.sigmoid(x), M),
    "softplus": (lambda x: jnp.log1p(jnp.exp(x)), lambda x: jax.nn.softplus(x), M),
    "tanh": (lambda x: jnp.tanh(x), lambda x: 2 * jax.nn.sigmoid(2 * x) - 1, M),
    "swish": (lambda x: x / (1 + jnp.exp(-x)), lambda x: jax.nn.silu(x), M),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), lambda x: x * jax.scipy.stats.norm.cdf(x).astype(x.dtype), M),
    "mish": (lambda x: x * jnp.tanh(jnp.log1p(jnp.exp(x))), lambda x: x * jnp.tanh(jax.nn.softplus(x)), M),
    "relu": (lambda x: jnp.maximum(x, 0), lambda x: jnp.where(x > 0, x, 0), M),
    "absolute value": (lambda x: jnp.abs(x), lambda x: x * lax.stop_gradient(jnp.sign(x)), M),
    "clip": (lambda x: jnp.clip(x, -1, 1), lambda x: jnp.where(jnp.abs(x) < 1, x, lax.stop_gradient(jnp.sign(x))), M),
    "softmax": (lambda x: jax.nn.softmax(x), lambda x: jnp.exp(x - jax.nn.logsumexp(x, -1, keepdims=True)), M),
    "log softmax": (lambda x: jax.nn.log_softmax(x), lambda x: x - jax.nn.logsumexp(x, -1, keepdims=True), M),
    "logsumexp": (lambda x: jnp.log(jnp.exp(x).sum(-1)), lambda x: jax.nn.logsumexp(x, -1), M),
    "layer norm": (layer_norm, lambda x: jax.nn.standardize(x, epsilon=1e-3), M),
    "rms norm": (rms, lambda x: x / jnp.sqrt((x * x).mean(-1, keepdims=True) + jnp.asarray(1e-3, x.dtype)), M),
    "length": (lambda x: jnp.sqrt((x * x).sum(-1)), lambda x: jnp.linalg.norm(x, axis=-1), M),
    "cosine": (lambda x, y: (x * y).sum() / jnp.sqrt((x * x).sum() * (y * y).sum()), lambda x, y: jnp.vdot(x, y) / jnp.linalg.norm(x) / jnp.linalg.norm(y), V * 2),
    "product": (product, lambda x, w: jnp.einsum("ij,jk->ik", x, w, preferred_element_type=x.dtype), ((3, 4), (4, 5))),
    "quadratic form": (lambda x, a: x @ (a @ x), lambda x, a: (x @ a) @ x, ((5,), (5, 5))),
    "bilinear": (lambda x, w, y: jnp.einsum("i,ij,j->", x, w, y), lambda x, w, y: (x @ w) @ y, ((3,), (3, 4), (4,))),
    "causal attention": (partial(attend, CAUSAL), (CAUSAL, CAUSAL), QKV),
    "windowed attention": (partial(attend, WINDOW), (WINDOW, WINDOW), QKV),
    "cross entropy": (xent, lambda z: jax.nn.logsumexp(z, -1) - (z * np.eye(5)[LABELS].astype(z.dtype)).sum(-1), ((6, 5),)),
    "huber": (lambda x: jnp.where(jnp.abs(x) < 1, x * x / 2, jnp.abs(x) - jnp.asarray(0.5, x.dtype)), lambda x: jnp.minimum(jnp.abs(x), 1) * (jnp.abs(x) - jnp.minimum(jnp.abs(x), 1) / 2), M),
    "sums so far": (lambda x: jnp.cumsum(x), lambda x: jnp.tril(jnp.ones((7, 7), x.dtype)) @ x, V),
    "products so far": (lambda x: jnp.cumprod(x), lambda x: lax.associative_scan(jnp.multiply, x), V),
    "sort": (lambda x: jnp.sort(x), lambda x: x[jnp.argsort(lax.stop_gradient(x))], V),
    "largest": (lambda x: x.max(-1), lambda x: jnp.take_along_axis(x, lax.stop_gradient(x).argmax(-1)[:, None], 1)[:, 0], M),
    "dropout": (dropped, lambda x: x * lax.stop_gradient(dropped(jnp.ones_like(x))), ((8, 9),)),
    "embedding": (embed, lambda t: np.eye(5)[IDS].astype(t.dtype) @ t, ((5, 4),)),
    "variance": (lambda x: x.var(-1), lambda x: (x * x).mean(-1) - x.mean(-1) ** 2, M),
    "power": (lambda x: x**3, lambda x: x * x * x, M),
    "logarithm": (lambda x: jnp.log(x), lambda x: jnp.log2(x) / jnp.asarray(np.log2(np.e), x.dtype), P),
    "root by Newton's steps": (newton, lambda x: jnp.sqrt(x), P),
    "recurrent net": (rnn, unrolled, ((6, 4), (4, 4))),
    "rematerialised": (jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))), lambda x: jnp.sin(jnp.sin(x)), M),
    "inverse": (lambda a: jnp.linalg.inv(a @ a.T + 4 * jnp.eye(4, dtype=a.dtype)), lambda a: jnp.linalg.solve(a @ a.T + 4 * jnp.eye(4, dtype=a.dtype), jnp.eye(4, dtype=a.dtype)), ((4, 4),)),
    "log determinant": (lambda a: jnp.linalg.slogdet(a @ a.T + 4 * jnp.eye(4, dtype=a.dtype))[1], lambda a: 2 * jnp.log(jnp.diagonal(jnp.linalg.cholesky(a @ a.T + 4 * jnp.eye(4, dtype=a.dtype)))).sum(), ((4, 4),)),
    "Pallas softmax": (partial(kernel, softmax_body), lambda x: jax.nn.softmax(x.astype(jnp.float32)).astype(x.dtype), ((8, 5),)),
    "Pallas softmax, ragged": (partial(kernel, softmax_body), lambda x: jax.nn.softmax(x.astype(jnp.float32)).astype(x.dtype), ((10, 5),)),
    "Pallas RMS norm": (partial(kernel, rms_body), rms_in_float32, ((8, 6), (6,))),
    "Pallas RMS norm, ragged": (partial(kernel, rms_body), rms_in_float32, ((9, 6), (6,))),
}  # fmt: skip
# jax's and optax's own rules, as they are.
INSTALLED = {
    "jax.nn.relu": jax.nn.relu,
    "jax.nn.relu6": jax.nn.relu6,
    "jnp.logaddexp": lambda x: jnp.logaddexp(x, 0),
    "jnp.sinc": lambda x: jnp.sinc(x),
    "flax fp8": None,
}
NO_BFLOAT16 = {"gelu", "inverse", "log determinant"}  # the error function, LAPACK


def right_rule(name):
    """The rule, its arguments' shapes, and compare's keywords."""
    if name == "flax fp8":
        from flax.linen import fp8_ops

        def quantised(x):
            scale, history = jnp.ones((1,), jnp.float32), jnp.zeros((16,), jnp.float32)
            return fp8_ops.in_qdq(x.dtype, jnp.float8_e4m3fn, x, scale, history)

        return quantised, M, {"surrogate": lambda x: x, "probe": False}
    if name in INSTALLED:
        return INSTALLED[name], M, {}
    function, other, shapes = RIGHT[name]
    return (attention(*other) if isinstance(other, tuple) else as_another(function, other)), shapes, {}


def report_on(rule, args, **keywords):
    return compare(rule, *args, transforms=(), time=False, memory=False, **keywords)


# One of each kind: a mask, a random draw, a missing sum, a formula, a constant, a tile, an accumulator, an order.
PART = (
    *((MISTAKES[i].name, "float32") for i in (0, 8, 10, 13, 14, 15, 24, 27)),
    *((MISTAKES[i].name, "bfloat16") for i in (9, 16)),
)
PART_RIGHT = tuple(
    (name, "float32")
    for name in ("relu", "causal attention", "root by Newton's steps", "Pallas RMS norm, ragged", "flax fp8")
)


def verdict_on(mistake, dtype):
    """Whether it is found, whether it is named, and the hints."""
    report = report_on(mistake.rule, draw(mistake.shapes, dtype), probe=False)
    hints = " | ".join(row.hint for row in report.rows if not row.ok)
    return not report.ok, bool(mistake.words) and all(word in hints for word in mistake.words), hints


def walks(part, every):
    """Every case, those that are not in the part marked exhaustive."""
    return [
        pytest.param(*case, marks=[] if case in part else pytest.mark.exhaustive, id=" ".join(map(str, case)))
        for case in every
    ]


@pytest.fixture(autouse=True)
def default_promotion():
    """A user's JAX is not set to refuse promotion."""
    before = jax.config.jax_numpy_dtype_promotion, jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before[0])
    jax.config.update("jax_numpy_rank_promotion", before[1])


def mistakes_in(dtype):
    return [mistake for mistake in MISTAKES if dtype == "float32" or mistake.name not in FLOAT32_ONLY]


def right_rules_in(dtype):
    return [name for name in [*RIGHT, *INSTALLED] if dtype == "float32" or name not in NO_BFLOAT16]


EVERY_MISTAKE = [(mistake, dtype) for dtype in DTYPES for mistake in mistakes_in(dtype)]
EVERY_RIGHT_RULE = [(name, dtype) for dtype in DTYPES for name in right_rules_in(dtype)]
FOUND, REJECTED = (
    f"{words}, {' and '.join(DTYPES)}" for words in ("reported mistakes found", "other right rules rejected")
)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name, dtype", walks(PART, [(m.name, dtype) for m, dtype in EVERY_MISTAKE]))
def test_no_reported_mistake_is_missed(name, dtype):
    mistake = next(mistake for mistake in MISTAKES if mistake.name == name)
    found, named, hints = verdict_on(mistake, dtype)
    assert found
    assert named or is_vague(hints) or not mistake.words, hints


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name, dtype", walks(PART_RIGHT, EVERY_RIGHT_RULE))
def test_no_right_rule_is_rejected(name, dtype):
    rule, shapes, keywords = right_rule(name)
    report = report_on(rule, draw(shapes, dtype), **keywords)
    assert report.ok, report


def test_the_readme_shows_every_case():
    """After a change of the cases: this file prints the lines."""
    shown = (Path(__file__).parents[2] / "README.md").read_text()
    for title, cases in ((FOUND, EVERY_MISTAKE), (REJECTED, EVERY_RIGHT_RULE)):
        assert re.search(rf"^\| {title} \| {len(cases)} \|", shown, re.M), (title, len(cases))


class Asked(NamedTuple):
    """A case, which tools complained of it, and what our hint said."""

    case: str
    alarms: list[bool]
    named: bool = False
    hints: str = ""


def ask_about_mistakes(tools):
    for mistake, dtype in EVERY_MISTAKE:
        found, named, hints = verdict_on(mistake, dtype)
        theirs = [complains(check, mistake.rule, draw(mistake.shapes, dtype)) for check in tools.values()]
        yield Asked(f"{mistake.name} {dtype}: {hints}", [found, *theirs], named, hints)


def ask_about_right_rules(tools):
    for name, dtype in EVERY_RIGHT_RULE:
        rule, shapes, keywords = right_rule(name)
        report = report_on(rule, draw(shapes, dtype), **keywords)
        theirs = [complains(check, rule, draw(shapes, dtype)) for check in tools.values()]
        yield Asked(f"{name} {dtype}: {report}", [not report.ok, *theirs])


def line(title, asked, missing):
    """One row of the README's table, `missing` tools at its end."""
    columns = [len(asked), *map(sum, zip(*(case.alarms for case in asked), strict=True)), *missing]
    return f"| {title} | {' | '.join(map(str, columns))} |"


def main():
    """Print the README's lines; 1 if a mistake is missed, a right rule rejected, or a hint wrong."""
    tools = with_torch()
    missing = [] if TORCH in tools else ["not installed"]
    mistakes, right = list(ask_about_mistakes(tools)), list(ask_about_right_rules(tools))
    given = [asked for asked in mistakes if asked.alarms[0] and (asked.named or not is_vague(asked.hints))]
    named = [asked for asked in given if asked.named]
    bad = [asked for asked in mistakes if not asked.alarms[0]] + [asked for asked in given if not asked.named]
    bad += [asked for asked in right if asked.alarms[0]]
    heads = ["", "cases", "`jaxbp.check_vjp`", *OTHERS, TORCH]
    print(f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|", sep="\n")
    print(line(FOUND, mistakes, missing), line(REJECTED, right, missing), sep="\n")
    print(f"\nNamed: {len(named)} of {len(mistakes)}. Precision of hints: {len(named) / max(len(given), 1):.3f}")
    print("", *(asked.case for asked in bad), sep="\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
