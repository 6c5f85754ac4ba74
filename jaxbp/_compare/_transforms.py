"""The same question under other circumstances: transformed, differentiated again, with parts that nobody asks for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._call import Call, outputs, second_order, second_order_reverse, words
from ._double import Arrays, Double, run
from ._judge import Judgement, excess, judge
from ._report import Row
from ._rows import Wishes, filled, hint_for, without_overflow
from ._witnesses import Look, natural_size, natural_sizes, normal

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
        self.programs: Programs = list(look.backward[:2])

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
        automatic: Callable[[], Arrays | Exception],
        reference: Any,
        expected: Sequence[Any] | None = None,
        labels: list[str] | None = None,
        sizes: Callable[[], list[float]] | None = None,
        skip: Iterable[int] = (),
    ) -> Row:
        """One row; `skip` are the results that cannot be judged.

        `automatic` is run only where the verdict depends on it, as compiling it takes as long as all else.
        """
        row = Row(name, "transform", None, None, "not supported")
        if isinstance(manual, Exception):
            # A rule that needs concrete values fails under jit where automatic does not, and that is a mistake.
            limit = isinstance(manual, NotImplementedError) or name == "second" or isinstance(automatic(), Exception)
            return row._replace(verdict=row.verdict if limit else "WRONG", hint=f"manual raised {words(manual)}")
        reference = automatic() if isinstance(reference, Exception) else reference
        if isinstance(reference, Exception):
            return row._replace(hint=f"nothing to compare with, since automatic raised {words(reference)}")
        labels, expected = labels or self.labels, expected or self.expected
        arrays = [(place, *item) for place, item in enumerate(zip(labels, manual, reference, expected, strict=True))]
        arrays = [item for item in arrays if item[0] not in skip]
        if not arrays:
            return row._replace(hint="not differentiable here, so there is nothing to compare with")
        worst = self._worst(arrays, sizes, [None] * len(manual))
        if not worst.ok and not isinstance(theirs := automatic(), Exception):
            worst = self._worst(arrays, sizes, theirs)
        seen = worst.label in self.wrong or worst.label.split(" (")[0] in self.wrong
        hint = "" if worst.ok else f"{worst.label}: " + ("as above" if seen else hint_for(worst))
        return filled(row._replace(hint=hint), worst)

    def _worst(self, arrays: list, sizes: Callable[[], list[float]] | None, theirs: Sequence[Any]) -> Judgement:
        """The worst of the judgements of (place, label, manual, reference, one like it)."""
        noise, found = max(self.look.noise(), default=0.0), []
        for place, label, mine, right, like in arrays:
            if label == "forward":
                mine, _ = without_overflow(mine, right)
            size = functools.partial(natural_size, sizes or self.look.sizes, place)
            argument = label.split(" (")[0]
            limit = self.wishes.limit_of(argument, argument)
            judged = judge(label, mine, theirs[place], right, like, size, limit=limit, noise=noise)
            found.append(judged._replace(ok=judged.ok or judged.excused))
        return max(found, key=excess)


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


def _runs(programs: Programs, operands: tuple) -> tuple[Arrays | Exception, Callable[[], Arrays | Exception]]:
    """What the rule's program gives, and automatic's as something to call."""
    return run(programs[0], *operands), functools.cache(functools.partial(run, programs[1], *operands))


def _jit(look: Look, repeated: Repeated, rng: np.random.Generator) -> list[Row]:
    """Compiled, and compiled for several devices where there are some."""
    jitted: Programs = [jax.jit(program) for program in repeated.programs]
    right = repeated.right(look.manual, look.reference)
    rows = [repeated.row("jit", *_runs(jitted, look.operands), right)]
    if jax.device_count() > 1 and jax.process_count() == 1:
        operands, problem = _sharded(look)
        if problem:
            rows.append(Row("sharding", "transform", None, None, "not supported", hint=problem))
        else:
            sharded = repeated.row("sharding", *_runs(jitted, operands), right)
            rows.append(sharded._replace(notes=(_collectives(jitted, operands),)))
    return rows


def _vmap(look: Look, repeated: Repeated, rng: np.random.Generator) -> list[Row]:
    """Two points at once: the arguments, and the same smaller."""
    pair = tuple(jnp.stack([v, v * jnp.asarray(0.75, v.dtype)]) for v in look.variables)
    signs = [jnp.asarray(rng.choice([-1.0, 1.0], c.shape).astype(c.dtype)) for c in look.cotangents]
    both = [jnp.stack([c, s * c]) for c, s in zip(look.cotangents, signs, strict=True)]
    mapped: Programs = [jax.vmap(f, in_axes=(0, None, 0)) for f in repeated.programs]
    mine, theirs = _runs(mapped, (pair, look.fixed, both))
    scaled = tuple(v[1] for v in pair), look.fixed, [c[1] for c in both]
    wanted = look.pull(*scaled)
    alone = run(repeated.programs[0], *scaled) if repeated.trusted or isinstance(wanted, Exception) else wanted
    first = repeated.right(look.manual, look.reference)
    other = repeated.right(alone, wanted)
    reference: Any = other
    if not isinstance(other, Exception) and not isinstance(first, Exception):
        reference = [np.stack(two) for two in zip(first, other, strict=True)]
    shapes = [jax.ShapeDtypeStruct((2, *a.shape), a.dtype) for a in repeated.expected]
    return [repeated.row("vmap", mine, theirs, reference, shapes)]


def _second(look: Look, repeated: Repeated, rng: np.random.Generator) -> list[Row]:
    """The derivative of the gradient. A surrogate stands for the gradient alone."""
    if look.functions.surrogate is not None:
        return []
    # Along an argument whose automatic gradient is not to be trusted, the derivative of any gradient is not either.
    kinks = [at for at, name in enumerate(repeated.names) if name in repeated.trusted]
    moved = [np.zeros(v.shape) if at in kinks else normal(rng, v) for at, v in enumerate(look.variables)]
    operands = (*look.operands, [jnp.asarray(m.astype(v.dtype)) for m, v in zip(moved, look.variables, strict=True)])
    programs: Programs = [functools.partial(second_order, look.call, f) for f in look.functions[:3]]
    (mine, theirs), notes = _runs(programs, operands), ()
    if isinstance(mine, Exception):
        reverse = run(functools.partial(second_order_reverse, look.call, look.functions.manual), *operands)
        if not isinstance(reverse, Exception):
            notes = (f"by reverse over reverse, since forward over reverse raised {words(mine)}",)
            mine = reverse
    wanted = Double(programs[1], operands, programs[2])
    sizes = functools.cache(functools.partial(natural_sizes, wanted, operands, rng))
    row = repeated.row("second", mine, theirs, wanted.first, list(look.variables), repeated.names, sizes, kinks)
    if notes and row.verdict == "WRONG" and repeated.wrong:
        # By reverse over reverse a wrong gradient goes on to all arguments.
        row = row._replace(hint=f"{row.hint.split(':')[0]}: as above")
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
    manual, lazy, reference, expected = [], [], [], []
    for words_, kept, asked in parts:
        cotangents = [c if at in kept else jnp.zeros_like(c) for at, c in enumerate(look.cotangents)]
        wanted = look.pull(look.variables, look.fixed, cotangents)
        if isinstance(wanted, Exception):
            return []
        programs: Programs = [functools.partial(_pull_part, look.call, f, kept, asked) for f in look.functions[:2]]
        mine, theirs = _runs(programs, look.operands)
        if isinstance(mine, Exception):
            row = repeated.row(name, mine, theirs, wanted)
            return [row._replace(hint=f"{words_}: {row.hint}")]
        labels += [f"{repeated.names[at]} ({words_})" for at in asked]
        manual += mine
        lazy.append((theirs, len(asked)))
        reference += [wanted[look.first_gradient + at] for at in asked]
        expected += [look.variables[at] for at in asked]

    def automatic() -> list:
        found = [(theirs(), number) for theirs, number in lazy]
        return [a for other, n in found for a in ([None] * n if isinstance(other, Exception) else other)]

    kinks = [at for at, label in enumerate(labels) if label.split(" (")[0] in repeated.trusted]
    # Entries that cancel nothing: an unused output leaves fewer terms, never more.
    sizes = functools.cache(lambda: _sizes_of(look, labels))
    return [repeated.row(name, manual, automatic, reference, expected, labels, sizes, kinks)]


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
    mine, theirs = _runs(programs, look.operands)
    right = repeated.right(look.manual, look.reference)
    wanted = right if isinstance(right, Exception) else right[look.first_gradient :]
    names = repeated.names
    sizes = functools.cache(lambda: look.sizes()[look.first_gradient :])
    row = repeated.row("twice", mine, theirs, wanted, list(look.variables), names, sizes)
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
