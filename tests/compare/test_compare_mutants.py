"""Ten mutants and many right rules: what check_vjp misses, next to JAX's and chex's gradient checks.

By default a part of the cases runs, with check_vjp alone; JAXBP_FULL=1 runs all of them, and so does

    python tests/compare/test_compare_mutants.py

which prints the tables that the README shows.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import other_checks
import pytest

import jaxbp
from jaxbp import compare

FULL = __name__ == "__main__" or os.environ.get("JAXBP_FULL", "") not in ("", "0")
DTYPES = ("float32", "bfloat16", "float16")
SMALL, IMAGES = (2, 6, 6, 1), ((1, 6, 6, 1), (8, 28, 28, 1))
OTHERS = other_checks.OTHERS if FULL else {}
TOOLS = ("`jaxbp.check_vjp`", *OTHERS)


def with_bias(op, **keywords):
    """A convolution of lax's form, (x, kernel), with a bias."""

    def biased(x, kernel, bias):
        out = op(x, kernel, **keywords)
        return out + bias.reshape((1,) * (out.ndim - 1) + (-1,))

    return biased


NHWC = ("NHWC", "HWIO", "NHWC")
lax_conv = partial(with_bias, dimension_numbers=NHWC)
CONVS: dict[str, tuple[tuple[int, ...], Callable[[Any], Callable]]] = {
    "conv 3x3": ((3, 3, 1, 4), lambda m: m.conv),
    "conv 5x5 VALID": ((5, 5, 1, 3), lambda m: partial(m.conv, padding="VALID")),
    "conv 3x3 stride 2": ((3, 3, 1, 4), lambda m: partial(m.conv, strides=2)),
    "conv 2x3 dilated": ((2, 3, 1, 4), lambda m: partial(m.conv, kernel_dilation=2)),
    "conv_general_dilated": (
        (3, 3, 1, 2),
        lambda m: lax_conv(m.conv_general_dilated, window_strides=(1, 1), padding=((1, 0), (0, 1))),
    ),
    "conv_transpose": ((3, 3, 1, 2), lambda m: with_bias(m.conv_transpose, strides=(2, 2), padding="SAME")),
}
POOLS: dict[str, Callable[[Any], Callable]] = {
    "max_pool 2x2": lambda m: lambda x: m.max_pool(x, (2, 2), (2, 2)),
    "max_pool 3x3 stride 2": lambda m: lambda x: m.max_pool(x, (3, 3), (2, 2), "SAME"),
    "min_pool 2x2": lambda m: lambda x: m.min_pool(x, (2, 2), (2, 2)),
    "avg_pool 2x2": lambda m: lambda x: m.avg_pool(x, (2, 2), (2, 2)),
    "avg_pool 3x3 SAME": lambda m: lambda x: m.avg_pool(x, (3, 3), (1, 1), "SAME", False),
    "sum_pool 3x3": lambda m: lambda x: m.sum_pool(x, (3, 3)),
    "lp_pool 2x2": lambda m: lambda x: m.lp_pool(x, (2, 2), (2, 2)),
    "adaptive_avg_pool": lambda m: lambda x: m.adaptive_avg_pool(x, (3, 2)),
    "adaptive_max_pool": lambda m: lambda x: m.adaptive_max_pool(x, (3, 2)),
}
# The dtypes in which mistakes are put into an op on an image: by default, in the long walk, and everything.
Part = dict[tuple[str, tuple[int, ...]], tuple[str, ...]]
DAILY: Part = {("conv 3x3", SMALL): ("float32",), ("max_pool 2x2", SMALL): ("float16",)}
WALK: Part = {
    ("conv 3x3", IMAGES[0]): ("bfloat16",),
    ("conv 3x3", IMAGES[1]): ("float32",),
    ("max_pool 2x2", IMAGES[0]): ("float16",),
    ("max_pool 2x2", IMAGES[1]): ("float32",),
}
EVERYTHING: Part = {(name, image): DTYPES for name in (*CONVS, *POOLS) for image in IMAGES}


class Mistake(NamedTuple):
    """A wrong gradient, and the words that a hint must have to name it.

    `change(gradients, pull, args, delta)` gives the wrong gradients; `pull(args, delta)` are the right ones for
    any arguments.
    """

    name: str
    change: Callable
    words: tuple[str, ...]


def at(index: int, function: Callable) -> Callable:
    """Change one of the gradients: 0 the input's, 1 the kernel's, 2 the bias's."""
    return lambda g, pull, args, delta: (*g[:index], function(g[index], delta), *g[index + 1 :])


def not_rotated(g, pull, args, delta):
    return (pull((args[0], jaxbp.rot180(args[1]), args[2]), delta)[0], *g[1:])


def one_entry(g, delta):
    """The first entry that is not 0, times 1.5."""
    flat = g.reshape(-1)
    where = jnp.argmax(flat != 0)
    return flat.at[where].multiply(jnp.asarray(1.5, g.dtype)).reshape(g.shape)


def factor(number):
    return lambda g, delta: g * jnp.asarray(number, g.dtype)


def in_bfloat16(g, delta):
    return g.astype("bfloat16").astype(g.dtype)


SHARED = (
    Mistake("dx zero", at(0, lambda g, delta: jnp.zeros_like(g)), ("all zeros",)),
    Mistake("first row lost", at(0, lambda g, delta: g.at[:, 0].set(0)), ("where manual is 0", "[:, 0, ")),
    Mistake("one corner lost", at(0, lambda g, delta: g.at[:, 0, 0].set(0)), ("where manual is 0", "0, 0, :]")),
    Mistake("one element x 1.5", at(0, one_entry), ("only wrong entry", "1.5 x automatic")),
    Mistake("rounded to bfloat16", at(0, in_bfloat16), ("rounded to bfloat16",)),
)
CONV_MISTAKES = (
    Mistake("kernel not rotated", not_rotated, ("not rotated (rot180)",)),
    *SHARED,
    Mistake("dW x 1.001", at(1, factor(1.001)), ("1.001 x automatic",)),
    Mistake("dW x 1.0003", at(1, factor(1.0003)), ("1.0003 x automatic",)),
    Mistake("db a mean", at(2, lambda g, delta: delta.mean((0, 1, 2))), ("a mean in place of a sum",)),
    Mistake("db of the first image only", at(2, lambda g, delta: delta[0].sum((0, 1))), ("only index 0 along axis 0",)),
)
# A pool has no kernel and no bias, so the mistakes there are made with its only gradient.
POOL_MISTAKES = (
    Mistake("kernel not rotated", at(0, lambda g, delta: g[:, ::-1, ::-1]), ("reversed along axes (1, 2)",)),
    *SHARED,
    Mistake("dW x 1.001", at(0, factor(1.001)), ("1.001 x automatic",)),
    Mistake("dW x 1.0003", at(0, factor(1.0003)), ("1.0003 x automatic",)),
    Mistake("db a mean", at(0, factor(0.25)), ("a mean in place of a sum",)),
    Mistake("db of the first image only", at(0, lambda g, delta: g.at[1:].set(0)), ("only index 0 along axis 0",)),
)


def mutant_of(function: Callable, mistake: Mistake) -> Callable:
    """`function` with a hand-written rule that makes the mistake."""
    manual = jax.custom_vjp(lambda *args: function(*args))

    def pull(args, delta):
        return jax.vjp(function, *args)[1](delta)

    manual.defvjp(
        lambda *args: (function(*args), args),
        lambda args, delta: mistake.change(pull(args, delta), pull, args, delta),
    )
    return manual


def draw(shapes, dtype, seed) -> list:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape).astype(jnp.dtype(dtype))) for shape in shapes]


def arguments(function, mistakes, shapes, dtype) -> list:
    """Arguments at which every one of the mistakes changes the gradient."""
    for seed in range(50):
        args = draw(shapes, dtype, seed)
        exact = [a.astype("float32") for a in args]
        value, pull = jax.vjp(function, *exact)
        delta = jnp.asarray(np.random.default_rng(seed).standard_normal(value.shape), "float32")
        right = pull(delta)

        def changed(mistake, right=right, exact=exact, delta=delta):
            wrong = mistake.change(right, lambda a, d: jax.vjp(function, *a)[1](d), exact, delta)
            return any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(wrong, right, strict=True))

        if all(map(changed, mistakes)):
            return args
    raise AssertionError("no data on which every mistake shows")


def alarms(manual, automatic, args, probe=False) -> tuple[Any, ...]:
    """Whether each of the tools complains, and the hints of ours."""
    report = compare(manual, *args, automatic=automatic, transforms=(), probe=probe, time=False, memory=False)
    theirs = [other_checks.complains(check, manual, args) for check in OTHERS.values()]
    return not report.ok, *theirs, " | ".join(row.hint for row in report.rows)


def mutant_cases(part: Part):
    """(op, mistakes, automatic function, shapes, dtypes) of every op and batch."""
    for (name, image), dtypes in part.items():
        if name in CONVS:
            kernel, make = CONVS[name]
            yield name, CONV_MISTAKES, make(jaxbp.automatic), (image, kernel, kernel[-1:]), dtypes
        else:
            yield name, POOL_MISTAKES, POOLS[name](jaxbp.automatic), (image,), dtypes


def group(dtype) -> str:
    """JAX's and chex's checks step by 1e-4, which float32 can just about resolve and the others cannot."""
    return "float32" if dtype == "float32" else "bfloat16 and float16"


class Counts(NamedTuple):
    """(dtypes, mistake) -> [cases, caught by each tool, named by our hint]; what ours missed or did not name."""

    mutants: dict[tuple[str, str], list[int]]
    missed: list[str]
    unnamed: list[str]
    false: dict[str, list[int]]
    wrong: list[str]


def count(part: Part, geometries: int) -> Counts:
    """Plant every mistake in every op, and check right rules of random geometries."""
    found = Counts(defaultdict(lambda: [0] * (2 + len(TOOLS))), [], [], defaultdict(lambda: [0] * (1 + len(TOOLS))), [])
    for name, mistakes, function, shapes, dtypes in mutant_cases(part):
        # With one image there is no difference between the first and all.
        mistakes = [m for m in mistakes if shapes[0][0] > 1 or "first image" not in m.name]
        for dtype in dtypes:
            args = arguments(function, mistakes, shapes, dtype)
            for mistake in mistakes:
                *caught, hints = alarms(mutant_of(function, mistake), function, args)
                named = all(word in hints for word in mistake.words)
                add(found.mutants[group(dtype), mistake.name], (1, *caught, named))
                case = f"{mistake.name}: {name} {shapes[0]} {dtype}: {hints}"
                if not caught[0]:
                    found.missed.append(case)
                elif not named:
                    found.unnamed.append(case)
    for seed in range(geometries):
        text, manual, automatic, args = random_case(seed)
        *raised, hints = alarms(manual, automatic, args, probe=True)
        add(found.false[group(args[0].dtype)], (1, *raised))
        if raised[0]:
            found.wrong.append(f"{text}: {hints}")
    return found


def add(total: list[int], more) -> None:
    total[:] = [a + int(b) for a, b in zip(total, more, strict=True)]


def random_case(seed: int):
    """A random geometry: (description, jaxbp's op, automatic op, arguments)."""
    rng = np.random.default_rng(seed)
    dtype = DTYPES[seed % 3]
    pick = lambda *choices: choices[rng.integers(len(choices))]  # noqa: E731
    batch, height, width = int(rng.integers(1, 4)), int(rng.integers(3, 9)), int(rng.integers(3, 9))
    window = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    strides = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    padding = pick("SAME", "VALID", ((1, 0), (0, 1)), ((0, 0), (0, 0)))
    kind = pick("conv", "conv", "max_pool", "min_pool", "avg_pool", "sum_pool")
    integers = bool(rng.integers(2))

    def array(*shape):
        values = rng.integers(-2, 3, shape) if integers else rng.standard_normal(shape)
        return jnp.asarray(values.astype(jnp.dtype(dtype)))

    if kind == "conv":
        groups, inputs, outputs = int(rng.integers(1, 3)), int(rng.integers(1, 3)), int(rng.integers(1, 4))
        args = [array(batch, height, width, groups * inputs), array(*window, inputs, groups * outputs)]
        args += [array(groups * outputs)] if rng.integers(2) else []
        keywords = {"strides": strides, "padding": padding, "feature_group_count": groups}
    else:
        args = [array(batch, height, width, int(rng.integers(1, 4)))]
        keywords = {"window_shape": window, "strides": strides, "padding": padding}
    text = f"{kind} {[a.shape for a in args]} {keywords} {dtype} {'integers' if integers else 'normal'} seed {seed}"
    manual, automatic = (partial(getattr(module, kind), **keywords) for module in (jaxbp, jaxbp.automatic))
    return text, manual, automatic, args


def table(found: Counts) -> str:
    """All counts in Markdown."""
    lines = []
    order = [mistake.name for mistake in CONV_MISTAKES]
    for dtypes in dict.fromkeys(map(group, DTYPES)):
        lines += [
            "",
            f"| {dtypes} | cases | {' | '.join(TOOLS)} | named by the hint |",
            "| --- " * (3 + len(TOOLS)) + "|",
        ]
        rows = [(name, found.mutants[dtypes, name]) for name in order if (dtypes, name) in found.mutants]
        total = [sum(column) for column in zip(*(row for _, row in rows), strict=True)]
        for name, row in [*rows, ("**caught**", total)]:
            lines.append(f"| {name} | {' | '.join(map(str, row))} |")
        lines.append(f"| **false alarms**, right rules | {' | '.join(map(str, found.false[dtypes]))} | |")
    return "\n".join(lines)


RUNS = [
    pytest.param((DAILY, 2), id="daily"),
    pytest.param((WALK, 9), id="walk", marks=pytest.mark.exhaustive),
]


@pytest.fixture(scope="module", params=[pytest.param((EVERYTHING, 500), id="everything")] if FULL else RUNS)
def found(request) -> Counts:
    return count(*request.param)


def test_no_mutant_is_missed(found, capsys):
    with capsys.disabled():
        print(table(found))
        if not FULL:
            print("A part of the cases; JAXBP_FULL=1 runs every op, and 500 random geometries.")
    assert len({name for _, name in found.mutants}) == 10
    assert not found.missed, "\n".join(found.missed)


def test_no_right_rule_is_called_wrong(found):
    assert not found.wrong, "\n".join(found.wrong)


def test_the_hints_name_at_least_eight_of_ten(found):
    """A mistake counts as named when it is named in every case of it."""
    always = {name for (_, name), (cases, *_, named) in found.mutants.items() if named == cases}
    always -= {name for (_, name), (cases, *_, named) in found.mutants.items() if named != cases}
    assert len(always) >= 8, "\n".join(found.unnamed)


if __name__ == "__main__":
    everything = count(EVERYTHING, geometries=500)
    print(table(everything))
    print("\n".join(["", *everything.missed, *everything.unnamed, *everything.wrong]))
    sys.exit(bool(everything.missed or everything.wrong))
