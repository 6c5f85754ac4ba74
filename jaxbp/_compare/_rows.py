"""From witnesses to the rows of a report: verdicts, hints, measured slopes, transformations."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._hints import name_mistake
from ._report import Row
from ._witnesses import (
    FLOOR,
    Arrays,
    Judgement,
    Look,
    ask_in_float32,
    excess,
    in_double,
    is_inexact,
    judge,
    natural_size,
    natural_sizes,
    normal,
    pull_back,
    run,
    second_order,
    second_order_reverse,
    slope,
    widen,
    words,
)

_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def gradient_rows(own: Look, cotangent: Any, finite_difference: bool, rng: np.random.Generator) -> list[Row]:
    """The forward value's row and one for each gradient."""
    wide = ask_in_float32(own, cotangent, rng)
    rows = [_row(own, wide, None, "forward")]
    for at, name in enumerate(own.call.names):
        row = _row(own, wide, at, name)
        rows.append(_with_slope(row, own, at, rng) if finite_difference else row)
    return rows


def failed(name: str, kind: str, hint: str, expected: Any = None) -> Row:
    """A row for something that did not come to numbers."""
    shape, dtype = (None, None) if expected is None else (expected.shape, str(expected.dtype))
    return Row(name, kind, shape, dtype, "WRONG", hint=hint)


def _row(own: Look, wide: Look | None, at: int | None, label: str) -> Row:
    """The row of the forward value (None) or of one gradient, from one or two looks."""
    kind = "forward" if at is None else "gradient"
    expected = own.plain_manual[0] if at is None else own.variables[at]
    if at is not None and isinstance(own.manual, Exception):
        return failed(label, kind, f"the rule raised {words(own.manual)}", expected)
    found = _judgement(own, at)
    closer = None if wide is None else _judgement(wide, at)
    notes, hint, source = (), "", own
    if closer is not None and wide is not None and not closer.ok:
        source = wide
        if found.ok:
            notes = (f"seen with the arguments in float32; in {expected.dtype} rounding hides it",)
    elif closer is not None and not found.ok and np.isfinite(found.manual_error):
        hint = f"low precision: right in float32, but the rule rounds too early in {expected.dtype}"
    shown = closer if closer is not None and found.ok and not closer.ok else found
    if not shown.ok and not hint:
        seen = closer if closer is not None and source is wide else found
        hint = _hint(seen, () if at is None else _alternatives(source, at))
        if shown.label == "the fwd rule":
            hint = f"the fwd rule's value is not the function's: {hint}"
    if shown.ok and (shown.automatic_error or 0.0) > FLOOR >= shown.manual_error:
        notes = (*notes, "automatic is the inexact one here")
    return _filled(Row(label, kind, expected.shape, str(expected.dtype), "", hint=hint, notes=notes), shown)


def _judgement(look: Look, at: int | None) -> Judgement:
    """Judge the forward value (None; its worst part, with and without differentiation) or one gradient."""
    if at is not None:
        assert not isinstance(look.manual, Exception)
        place = look.first_gradient + at
        theirs, reference = (None if isinstance(w, Exception) else w[place] for w in (look.automatic, look.reference))
        size = functools.partial(natural_size, look.sizes, place)
        return judge(look.call.names[at], look.manual[place], theirs, reference, look.variables[at], size)
    found = []
    for place, (theirs, reference) in enumerate(zip(look.plain_automatic, look.plain_reference, strict=True)):
        size = functools.partial(natural_size, look.sizes, place)
        found.append(judge("the function", look.plain_manual[place], theirs, reference, theirs, size))
        if not isinstance(look.manual, Exception):
            found.append(judge("the fwd rule", look.manual[place], theirs, reference, theirs, size))
    return max(found, key=excess)


def _filled(row: Row, found: Judgement) -> Row:
    """The row with a judgement's numbers."""

    def value(array: np.ndarray | None) -> Any:
        if array is None or found.index is None or array.shape != found.manual.shape:
            return None
        return array[found.index].item()

    return row._replace(
        verdict="ok" if found.ok else "WRONG",
        manual_error=None if found.reference is None else found.manual_error,
        automatic_error=found.automatic_error,
        limit=found.limit,
        index=found.index,
        manual_value=value(found.manual),
        automatic_value=value(found.automatic),
        reference_value=value(found.reference),
    )


def _hint(found: Judgement, alternatives=()) -> str:
    """What the numbers look like, in words."""
    if found.problem or found.reference is None:
        return found.problem
    if not is_inexact(found.manual):
        return "the values differ"
    bits = 1 - np.log2(float(jnp.finfo(found.manual.dtype).eps))
    return name_mistake(found.manual, found.reference, found.limit * found.unit, bits, alternatives)


def _alternatives(look: Look, at: int) -> Iterator[tuple[str, np.ndarray]]:
    """What the gradient of variable `at` would be after each of some common mistakes."""
    names, variables, cotangents = look.call.names, look.variables, look.cotangents
    program = functools.partial(pull_back, look.call, look.automatic_function)

    def gradients(variables, cotangents) -> Arrays:
        results = run(program, variables, look.fixed, cotangents, double=True)
        return [] if isinstance(results, Exception) else results[look.first_gradient :]

    right = gradients(variables, cotangents)
    for other, gradient in enumerate(right):
        if other != at and gradient.shape == variables[at].shape:
            yield f"manual = the gradient of {names[other]}: returned in the wrong place", gradient
    for other, variable in enumerate(variables):
        rank = variable.ndim
        spatial = tuple(range(max(rank - 2, 0)))
        for axes in dict.fromkeys([spatial, tuple(range(rank)), *((axis,) for axis in range(rank))]):
            if other != at and any(variable.shape[axis] > 1 for axis in axes):
                flipped = (*variables[:other], jnp.flip(variable, axes), *variables[other + 1 :])
                for gradient in gradients(flipped, cotangents)[at : at + 1]:
                    text = f"manual = the gradient for {names[other]} reversed along axes {axes}"
                    yield f"{text}: not rotated (rot180), or rotated twice", gradient
    for output, cotangent in enumerate(cotangents):
        others = [jnp.zeros_like(c) for c in cotangents]
        for axis, length in enumerate(cotangent.shape):
            for index in dict.fromkeys([0, length - 1]) if length > 1 else ():
                mask = (np.arange(length) == index).reshape([-1] + [1] * (cotangent.ndim - axis - 1))
                only = cotangent * jnp.asarray(np.broadcast_to(mask, cotangent.shape).astype(cotangent.dtype))
                masked = [*others[:output], only, *others[output + 1 :]]
                for gradient in gradients(variables, masked)[at : at + 1]:
                    yield f"only index {index} along axis {axis} of the output is counted", gradient
                    yield (
                        f"index {index} along axis {axis} of the output is not counted",
                        right[at] - gradient,
                    )


def _with_slope(row: Row, look: Look, at: int, rng: np.random.Generator) -> Row:
    """The gradient's row with the measured slope, which decides where the automatic rule cannot."""
    if isinstance(look.manual, Exception):
        return row
    place = look.first_gradient + at
    manual, variable = in_double(look.manual[place]), in_double(look.variables[at])
    reference = None if isinstance(look.reference, Exception) else in_double(look.reference[place])
    direction = normal(rng, variable) * (np.sqrt(np.mean(np.abs(variable) ** 2)) if variable.any() else 1.0)
    if not variable.size or manual.shape != variable.shape or not np.isfinite(manual).all():
        return row
    double = all(a.dtype.itemsize >= 8 for a in look.plain_reference if is_inexact(a))
    found = slope(look.call, look.automatic_function, look.operands, at, direction, double)
    if found is None:
        return row._replace(notes=(*row.notes, "finite differences are not finite here"))
    judged = manual if reference is None else reference
    natural = float(np.sqrt(np.sum(np.abs(judged * direction) ** 2))) or 1.0
    room = (1e-5 if double else 2e-2) * natural + found.noise
    rounding = 32 * float(jnp.finfo(look.variables[at].dtype).eps) * natural

    def off(gradient: np.ndarray) -> float:
        return abs(float(np.sum(gradient * direction).real) - found.value)

    kink = found.roughness > room + 8 * found.noise
    row = row._replace(finite_difference=off(judged) / natural, kink=kink)
    if kink and not row.ok and reference is not None and _agree_nearby(look, at, rng):
        text = "not differentiable here (a tie or a corner): the rules choose differently; nearby they agree"
        return row._replace(hint=text)
    if off(judged) <= room + (rounding if reference is None else 0.0):
        return row
    if kink and off(judged) <= room + rounding + 8 * found.roughness:
        text = "not differentiable here: the one-sided slopes differ (a tie or a corner)"
        return row._replace(notes=(*row.notes, text))
    if reference is None:
        return row._replace(verdict="WRONG", hint=row.hint or "finite differences disagree with manual")
    if not row.ok and off(manual) <= room + rounding:
        text = "automatic disagrees with finite differences and manual agrees: automatic is the wrong one"
        return row._replace(verdict="ok", hint="", notes=(*row.notes, text))
    text = "finite differences disagree with both rules (pass finite_difference=False if that is meant)"
    return row._replace(verdict="WRONG", hint=row.hint or text, notes=(*row.notes, text) if row.hint else row.notes)


def _agree_nearby(look: Look, at: int, rng: np.random.Generator) -> bool:
    """True when manual and reference agree for arguments moved off the kink."""
    moved = []
    for variable in (widen(v, 4) for v in look.variables):
        room = 1e-3 * (np.abs(in_double(variable)).max(initial=0.0) or 1.0)
        moved.append(variable + jnp.asarray((room * normal(rng, variable)).astype(variable.dtype)))
    operands = (
        tuple(moved),
        tuple(widen(leaf, 4) for leaf in look.fixed),
        [jnp.asarray(normal(rng, c).astype(widen(c, 4).dtype)) for c in look.cotangents],
    )
    manual, automatic = (
        functools.partial(pull_back, look.call, f) for f in (look.manual_function, look.automatic_function)
    )
    mine, theirs = run(manual, *operands), run(automatic, *operands)
    precise = run(automatic, *operands, double=True)
    if isinstance(mine, Exception) or isinstance(theirs, Exception) or isinstance(precise, Exception):
        return False
    place = look.first_gradient + at
    return judge("", mine[place], theirs[place], precise[place], moved[at], lambda: 0.0).ok


def transform_rows(look: Look, transforms: Sequence[str], rng: np.random.Generator, known: list[Row]) -> list[Row]:
    """The same question under jit, on sharded arrays, under vmap, and one derivative further."""
    if isinstance(look.manual, Exception):
        return []
    rows = []
    functions = look.manual_function, look.automatic_function
    # Without an automatic gradient, a transformation can still be held against the rule itself.
    trusted = 0 if isinstance(look.reference, Exception) else 1
    right = look.manual if isinstance(look.reference, Exception) else look.reference
    programs = [functools.partial(pull_back, look.call, function) for function in functions]
    expected = [*look.plain_automatic, *look.variables]
    labels = ["forward"] * look.first_gradient + list(look.call.names)
    wrong = {row.name for row in known if not row.ok}

    def row(name: str, results: list, reference: Any, expected: list, labels: list, sizes: Any) -> Row:
        manual, automatic = results
        return _transform_row(name, labels, manual, automatic, reference, expected, sizes, wrong)

    if "jit" in transforms:
        jitted = [jax.jit(program) for program in programs]
        rows.append(row("jit", [run(f, *look.operands) for f in jitted], right, expected, labels, look.sizes))
        if jax.device_count() > 1 and jax.process_count() == 1:
            operands, problem = _sharded(look)
            if problem:
                rows.append(Row("sharding", "transform", None, None, "not supported", hint=problem))
            else:
                results = [run(f, *operands) for f in jitted]
                sharded = row("sharding", results, right, expected, labels, look.sizes)
                rows.append(sharded._replace(notes=(_collectives(jitted, operands),)))
    if "vmap" in transforms:
        pair = tuple(jnp.stack([v, v * jnp.asarray(0.75, v.dtype)]) for v in look.variables)
        signs = [jnp.asarray(rng.choice([-1.0, 1.0], c.shape).astype(c.dtype)) for c in look.cotangents]
        both = [jnp.stack([c, s * c]) for c, s in zip(look.cotangents, signs, strict=True)]
        results = [run(jax.vmap(f, in_axes=(0, None, 0)), pair, look.fixed, both) for f in programs]
        scaled = tuple(v[1] for v in pair), look.fixed, [c[1] for c in both]
        other = run(programs[trusted], *scaled, double=trusted == 1)
        reference: Any = other
        if not isinstance(other, Exception):
            reference = [np.stack(two) for two in zip(right, other, strict=True)]
        shapes = [jax.ShapeDtypeStruct((2, *a.shape), a.dtype) for a in expected]
        rows.append(row("vmap", results, reference, shapes, labels, look.sizes))
    if "second" in transforms:
        operands = (*look.operands, [jnp.asarray(normal(rng, v).astype(v.dtype)) for v in look.variables])
        programs = [functools.partial(second_order, look.call, function) for function in functions]
        results, notes = [run(program, *operands) for program in programs], ()
        if isinstance(results[0], Exception):
            reverse = run(functools.partial(second_order_reverse, look.call, functions[0]), *operands)
            if not isinstance(reverse, Exception):
                notes = (f"by reverse over reverse, since forward over reverse raised {words(results[0])}",)
                results[0] = reverse
        reference = run(programs[1], *operands, double=True)
        sizes = functools.cache(functools.partial(natural_sizes, programs[1], operands, rng))
        names = list(look.call.names)
        rows.append(row("second", results, reference, list(look.variables), names, sizes)._replace(notes=notes))
    return rows


def _transform_row(
    name: str,
    labels: list,
    manual: Any,
    automatic: Any,
    reference: Any,
    expected: list,
    sizes: Any,
    wrong: set,
) -> Row:
    """One row for all results of a transformation, about the worst of them."""
    row = Row(name, "transform", None, None, "not supported")
    if isinstance(manual, Exception):
        # A rule that needs concrete values fails under jit where automatic does not, and that is a mistake.
        limit = isinstance(manual, NotImplementedError) or name == "second" or isinstance(automatic, Exception)
        return row._replace(verdict=row.verdict if limit else "WRONG", hint=f"manual raised {words(manual)}")
    reference = automatic if isinstance(reference, Exception) else reference
    if isinstance(reference, Exception):
        return row._replace(hint=f"nothing to compare with, since automatic raised {words(reference)}")
    theirs = [None] * len(manual) if isinstance(automatic, Exception) else automatic
    found = []
    for at, (label, mine, other, right, like) in enumerate(
        zip(labels, manual, theirs, reference, expected, strict=True)
    ):
        found.append(judge(label, mine, other, right, like, functools.partial(natural_size, sizes, at)))
    worst = max(found, key=excess)
    hint = "" if worst.ok else f"{worst.label}: " + ("as above" if worst.label in wrong else _hint(worst))
    return _filled(row._replace(hint=hint), worst)


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
