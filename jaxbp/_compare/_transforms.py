"""The same question under other circumstances: transformed, differentiated again, with parts that nobody asks for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._call import Call, outputs, pull_back, second_order, second_order_reverse, words
from ._judge import excess, judge
from ._report import Row
from ._rows import Wishes, filled, hint_for, without_overflow
from ._witnesses import Arrays, Double, Look, natural_size, natural_sizes, normal, run

Programs = list[Callable[..., Any]]
TRANSFORMS = ("jit", "vmap", "second", "unused", "constant", "twice")
_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def determinism_row(look: Look) -> Row:
    """Whether two runs of the rule gave the same bits."""
    row = Row("repeated", "determinism", None, None, "ok")
    if not look.differs:
        return row
    return row._replace(
        verdict="differs", hint=f"two runs of manual differ in {', '.join(look.differs)}: the rule is not deterministic"
    )


class Repeated:
    """Rows about one look, each for all results of a transformation and about the worst of them.

    `trusted` are the gradients that a row accepted although they are not the reference's (at a kink, for instance):
    there the rule's own gradient is what a transformation must not change.
    """

    def __init__(self, look: Look, rows: list[Row], wishes: Wishes) -> None:
        self.look, self.wishes = look, wishes
        self.wrong = {row.name for row in rows if row.verdict == "WRONG"}
        self.trusted = {
            row.name
            for row in rows
            if row.kind == "gradient"
            and row.verdict != "WRONG"
            and (row.manual_error is None or row.limit is None or row.manual_error > row.limit)
        }
        self.names = list(look.call.names)
        self.labels = ["forward"] * look.first_gradient + self.names
        self.expected = [*look.plain_automatic, *look.variables]
        self.programs: Programs = [functools.partial(pull_back, look.call, f) for f in look.functions[:2]]

    def right(self, mine: Arrays | Exception, reference: Arrays | Exception) -> Arrays | Exception:
        """The reference with the rule's own gradients where those are trusted."""
        if isinstance(mine, Exception):
            return reference
        if isinstance(reference, Exception):
            return mine
        pairs = zip(self.labels, mine, reference, strict=True)
        return [one if label in self.trusted else other for label, one, other in pairs]

    def row(
        self,
        name: str,
        manual: Any,
        automatic: Any,
        reference: Any,
        expected: Sequence[Any] | None = None,
        labels: list[str] | None = None,
        sizes: Callable[[], list[float]] | None = None,
        skip: Iterable[int] = (),
    ) -> Row:
        """One row; `skip` are the results that cannot be judged."""
        row = Row(name, "transform", None, None, "not supported")
        if isinstance(manual, Exception):
            # A rule that needs concrete values fails under jit where automatic does not, and that is a mistake.
            limit = isinstance(manual, NotImplementedError) or name == "second" or isinstance(automatic, Exception)
            return row._replace(verdict=row.verdict if limit else "WRONG", hint=f"manual raised {words(manual)}")
        reference = automatic if isinstance(reference, Exception) else reference
        if isinstance(reference, Exception):
            return row._replace(hint=f"nothing to compare with, since automatic raised {words(reference)}")
        theirs = [None] * len(manual) if isinstance(automatic, Exception) else automatic
        labels, expected = labels or self.labels, expected or self.expected
        noises = self.look.noise()
        found = []
        items = zip(labels, manual, theirs, reference, expected, strict=True)
        for at, (label, mine, other, right, like) in enumerate(items):
            if at in skip:
                continue
            if label == "forward":
                mine, _ = without_overflow(mine, right)
            size = functools.partial(natural_size, sizes or self.look.sizes, at)
            argument = label.split(" (")[0]
            further = {"limit": self.wishes.limit_of(argument, argument), "noise": max(noises, default=0.0)}
            judged = judge(label, mine, other, right, like, size, **further)
            found.append(judged._replace(ok=judged.ok or judged.excused))
        if not found:
            return row._replace(hint="not differentiable here, so there is nothing to compare with")
        worst = max(found, key=excess)
        seen = worst.label in self.wrong or worst.label.split(" (")[0] in self.wrong
        hint = "" if worst.ok else f"{worst.label}: " + ("as above" if seen else hint_for(worst))
        return filled(row._replace(hint=hint), worst)


def transform_rows(
    look: Look, transforms: Sequence[str], rng: np.random.Generator, known: list[Row], wishes: Wishes
) -> list[Row]:
    """The rows of all transformations that were asked for."""
    if isinstance(look.manual, Exception):
        return []
    repeated, rows = Repeated(look, known, wishes), []
    makers = {"jit": _jit, "vmap": _vmap, "second": _second, "unused": _unused, "constant": _constant, "twice": _twice}
    for name in TRANSFORMS:
        if name in transforms:
            rows += makers[name](look, repeated, rng)
    return rows


def _jit(look: Look, repeated: Repeated, rng: np.random.Generator) -> list[Row]:
    """Compiled, and compiled for several devices where there are some."""
    jitted: Programs = [jax.jit(program) for program in repeated.programs]
    right = repeated.right(look.manual, look.reference)
    rows = [repeated.row("jit", run(jitted[0], *look.operands), run(jitted[1], *look.operands), right)]
    if jax.device_count() > 1 and jax.process_count() == 1:
        operands, problem = _sharded(look)
        if problem:
            rows.append(Row("sharding", "transform", None, None, "not supported", hint=problem))
        else:
            sharded = repeated.row("sharding", run(jitted[0], *operands), run(jitted[1], *operands), right)
            rows.append(sharded._replace(notes=(_collectives(jitted, operands),)))
    return rows


def _vmap(look: Look, repeated: Repeated, rng: np.random.Generator) -> list[Row]:
    """Two points at once: the arguments, and the same smaller."""
    pair = tuple(jnp.stack([v, v * jnp.asarray(0.75, v.dtype)]) for v in look.variables)
    signs = [jnp.asarray(rng.choice([-1.0, 1.0], c.shape).astype(c.dtype)) for c in look.cotangents]
    both = [jnp.stack([c, s * c]) for c, s in zip(look.cotangents, signs, strict=True)]
    mapped: Programs = [jax.vmap(f, in_axes=(0, None, 0)) for f in repeated.programs]
    results = [run(f, pair, look.fixed, both) for f in mapped]
    scaled = tuple(v[1] for v in pair), look.fixed, [c[1] for c in both]
    wanted = look.pull(*scaled)
    alone = run(repeated.programs[0], *scaled) if repeated.trusted or isinstance(wanted, Exception) else wanted
    first = repeated.right(look.manual, look.reference)
    other = repeated.right(alone, wanted)
    reference: Any = other
    if not isinstance(other, Exception) and not isinstance(first, Exception):
        reference = [np.stack(two) for two in zip(first, other, strict=True)]
    shapes = [jax.ShapeDtypeStruct((2, *a.shape), a.dtype) for a in repeated.expected]
    return [repeated.row("vmap", results[0], results[1], reference, shapes)]


def _second(look: Look, repeated: Repeated, rng: np.random.Generator) -> list[Row]:
    """The derivative of the gradient."""
    # Along an argument whose automatic gradient is not to be trusted, the derivative of any gradient is not either.
    kinks = [at for at, name in enumerate(repeated.names) if name in repeated.trusted]
    moved = [np.zeros(v.shape) if at in kinks else normal(rng, v) for at, v in enumerate(look.variables)]
    operands = (*look.operands, [jnp.asarray(m.astype(v.dtype)) for m, v in zip(moved, look.variables, strict=True)])
    programs: Programs = [functools.partial(second_order, look.call, f) for f in look.functions]
    results, notes = [run(program, *operands) for program in programs[:2]], ()
    if isinstance(results[0], Exception):
        reverse = run(functools.partial(second_order_reverse, look.call, look.functions.manual), *operands)
        if not isinstance(reverse, Exception):
            notes = (f"by reverse over reverse, since forward over reverse raised {words(results[0])}",)
            results[0] = reverse
    wanted = Double(programs[1], operands, programs[2])
    sizes = functools.cache(functools.partial(natural_sizes, wanted, operands, rng))
    row = repeated.row(
        "second", results[0], results[1], wanted.first, list(look.variables), repeated.names, sizes, kinks
    )
    return [row._replace(notes=notes)]


# What symbolic zeros and perturbed arguments tell a rule


def _pull_part(
    call: Call, function: Callable, kept: tuple[int, ...], asked: tuple[int, ...], variables, fixed, cotangents
) -> list:
    """The gradients of some arguments through some outputs, the others constant and unused."""

    def part(*chosen: Any) -> list:
        given = list(variables)
        for at, value in zip(asked, chosen, strict=True):
            given[at] = value
        values = outputs(call, function, given, fixed)[0]
        return [values[at] for at in kept]

    values, pull = jax.vjp(part, *(variables[at] for at in asked))
    return list(pull([cotangents[at].astype(v.dtype) for at, v in zip(kept, values, strict=True)]))


def _parts(look: Look, repeated: Repeated, name: str, parts: list[tuple[str, tuple, tuple]]) -> list[Row]:
    """One row about gradients through parts: (what is left out, outputs kept, arguments asked for)."""
    labels: list[str] = []
    manual, theirs, reference, expected = [], [], [], []
    for words_, kept, asked in parts:
        cotangents = [c if at in kept else jnp.zeros_like(c) for at, c in enumerate(look.cotangents)]
        wanted = look.pull(look.variables, look.fixed, cotangents)
        if isinstance(wanted, Exception):
            return []
        programs: Programs = [functools.partial(_pull_part, look.call, f, kept, asked) for f in look.functions[:2]]
        mine, other = (run(program, *look.operands) for program in programs)
        if isinstance(mine, Exception):
            row = repeated.row(name, mine, other, wanted)
            return [row._replace(hint=f"{words_}: {row.hint}")]
        labels += [f"{repeated.names[at]} ({words_})" for at in asked]
        manual += mine
        theirs += [None] * len(asked) if isinstance(other, Exception) else other
        reference += [wanted[look.first_gradient + at] for at in asked]
        expected += [look.variables[at] for at in asked]
    kinks = [at for at, label in enumerate(labels) if label.split(" (")[0] in repeated.trusted]
    # Entries that cancel nothing: an unused output leaves fewer terms, never more.
    sizes = functools.cache(lambda: _sizes_of(look, labels))
    return [repeated.row(name, manual, theirs, reference, expected, labels, sizes, kinks)]


def _sizes_of(look: Look, labels: list[str]) -> list[float]:
    """The natural size of each gradient that a label names."""
    known, names = look.sizes(), look.call.names
    if not known:
        return []
    return [known[look.first_gradient + names.index(label.split(" (")[0])] for label in labels]


def _unused(look: Look, repeated: Repeated, rng: np.random.Generator) -> list[Row]:
    """Each output left unused."""
    number = len(look.cotangents)
    every, arguments = range(number), tuple(range(len(look.variables)))
    if number < 2:
        return []
    parts = [(f"output {out} unused", tuple(at for at in every if at != out), arguments) for out in list(every)[:8]]
    return _parts(look, repeated, "unused", parts)


def _constant(look: Look, repeated: Repeated, rng: np.random.Generator) -> list[Row]:
    """Each argument constant, and each alone."""
    every, kept = range(len(look.variables)), tuple(range(len(look.cotangents)))
    if len(every) < 2:
        return []
    asked = {tuple(at for at in every if at != out): f"{repeated.names[out]} constant" for out in list(every)[:8]}
    for at in list(every)[:8]:
        asked.setdefault((at,), "all others constant")
    return _parts(look, repeated, "constant", [(text, kept, arguments) for arguments, text in asked.items()])


def _pull_twice(call: Call, function: Callable, variables: tuple, fixed: tuple, cotangents: list) -> list:
    """One jitted function, called once for each argument, with only that one differentiated."""
    once = jax.jit(lambda v, f: outputs(call, function, v, f)[0])

    def every(*chosen: Any) -> list:
        return [once((*variables[:at], v, *variables[at + 1 :]), fixed) for at, v in enumerate(chosen)]

    values, pull = jax.vjp(every, *variables)
    return list(pull([[c.astype(v.dtype) for c, v in zip(cotangents, each, strict=True)] for each in values]))


def _twice(look: Look, repeated: Repeated, rng: np.random.Generator) -> list[Row]:
    """One program that uses the function several times."""
    if not 2 <= len(look.variables) <= 8:
        return []
    programs: Programs = [functools.partial(_pull_twice, look.call, f) for f in look.functions[:2]]
    results = [run(program, *look.operands) for program in programs]
    right = repeated.right(look.manual, look.reference)
    wanted = right if isinstance(right, Exception) else right[look.first_gradient :]
    names = repeated.names
    sizes = functools.cache(lambda: look.sizes()[look.first_gradient :])
    row = repeated.row("twice", results[0], results[1], wanted, list(look.variables), names, sizes)
    if row.verdict == "WRONG" and not row.hint.endswith("as above"):
        text = "one jitted function called with other arguments differentiated each time"
        row = row._replace(hint=f"{text}: {row.hint} (do residuals have one structure, whatever is differentiated?)")
    return [row]


# Several devices


def _sharded(look: Look) -> tuple[Any, str]:
    """The operands with their leading axes split over all devices, or why that cannot be."""
    devices, first = jax.devices(), look.variables[0]
    length = first.shape[0] if first.ndim else 0
    if not length or length % len(devices):
        return (
            (),
            f"{look.call.names[0]}'s leading axis of {length} does not divide by {len(devices)} devices",
        )
    mesh = jax.sharding.Mesh(np.array(devices), ("devices",))

    def place(leaf):
        split = ("devices",) if leaf.ndim and leaf.shape[0] == length else ()
        return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*split)))

    return jax.tree.map(place, look.operands), ""


def _collectives(programs: list, operands: Any) -> str:
    """What the compiled programs send between devices."""
    counts = []
    for program in programs:
        try:
            text = program.lower(*operands).compile().as_text()
        except Exception:  # the row itself says what was raised
            counts.append("unknown")
            continue
        found = {word: text.count(f" {word}(") + text.count(f" {word}-start(") for word in _COLLECTIVES}
        counts.append(", ".join(f"{number} {word}" for word, number in found.items() if number) or "none")
    return f"collectives on {jax.device_count()} devices: manual {counts[0]}; automatic {counts[1]}"
