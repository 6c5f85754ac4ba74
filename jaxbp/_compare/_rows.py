"""From witnesses to the rows of a report: the forward value and the gradients."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ._call import is_inexact, words
from ._hints import name_mistake
from ._judge import CAP, FLOOR, Judgement, excess, in_double, judge, largest_entry, same_in_double
from ._mistakes import alternatives, depends_wrongly_on_delta, ignored_outputs, leaks
from ._report import Row
from ._slopes import Line, Sides, between_the_slopes, by_slopes_alone, draw_direction, slope
from ._witnesses import Look, ask_in_float32, natural_size, right_when_run_further


class Wishes(NamedTuple):
    """What the user allows: a limit in eps, arguments without a gradient; and whether to measure slopes."""

    limit: float | dict[str, float] | None = None
    none_ok: frozenset[str] = frozenset()
    slopes: bool = True

    def limit_of(self, argument: str, name: str) -> float | None:
        """The limit of one argument; None where the usual one holds."""
        if isinstance(self.limit, dict):
            return self.limit.get(argument, self.limit.get(name))
        return self.limit


def gradient_rows(own: Look, cotangent: Any, wishes: Wishes, rng: np.random.Generator) -> list[Row]:
    """The forward value's row and one for each gradient."""
    wide = ask_in_float32(own, cotangent, rng)
    rows = [_forward_row(own, wide, wishes)]
    for at, name in enumerate(own.call.names):
        if isinstance(own.manual, Exception):
            rows.append(failed(name, "gradient", f"the rule raised {words(own.manual)}", own.variables[at]))
            continue
        manual = own.manual[own.first_gradient + at]
        if own.call.arguments[at] in wishes.none_ok and not np.asarray(manual).any():
            row = Row(name, "gradient", own.variables[at].shape, str(own.variables[at].dtype), "ok")
            rows.append(row._replace(notes=("no gradient, as none_ok says",)))
        elif isinstance(own.reference, Exception):
            rows.append(_row_without_reference(own, at, wishes, rng))
        else:
            rows.append(_gradient_row(own, wide, at, wishes, rng))
    return rows


def failed(name: str, kind: str, hint: str, expected: Any = None, verdict: str = "WRONG") -> Row:
    """A row for something that did not come to numbers."""
    shape, dtype = (None, None) if expected is None else (expected.shape, str(expected.dtype))
    return Row(name, kind, shape, dtype, verdict, hint=hint)


def judged_gradient(look: Look, at: int, limit: float | None) -> Judgement:
    """Judge one gradient."""
    assert not isinstance(look.manual, Exception)
    place = look.first_gradient + at
    theirs, reference = (None if isinstance(w, Exception) else w[place] for w in (look.automatic, look.reference))
    size = functools.partial(natural_size, look.sizes, place)
    noise = look.noise()[place] if look.noise() else 0.0
    name, variable = look.call.names[at], look.variables[at]
    return judge(name, look.manual[place], theirs, reference, variable, size, limit=limit, noise=noise)


def _judged_values(look: Look, limit: float | None) -> tuple[Judgement, int]:
    """The worst part of the forward value, with and without differentiation; how many entries nobody can judge."""
    found, unknown = [], 0
    for place, (theirs, reference) in enumerate(zip(look.plain_automatic, look.plain_reference, strict=True)):
        size = functools.partial(natural_size, look.sizes, place)
        noise = 0.0 if look.forward.exact or not look.noise() else look.noise()[place]
        further = {"limit": limit if is_inexact(theirs) else None, "noise": noise}
        found.append(judge("the function", look.plain_manual[place], theirs, reference, theirs, size, **further))
        if isinstance(look.manual, Exception):
            continue
        mine, better = without_overflow(look.manual[place], reference)
        unknown += better
        found.append(judge("the fwd rule", mine, theirs, reference, theirs, size, **further))
    return max(found, key=excess), unknown


def without_overflow(mine: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, int]:
    """A forward rule's values, but for those where only the plain function overflows; how many these are."""
    if not is_inexact(mine) or mine.shape != reference.shape:
        return mine, 0
    better = np.isfinite(in_double(mine)) & ~np.isfinite(in_double(reference))
    if not better.any():
        return mine, 0
    return np.where(better, reference, mine).astype(mine.dtype), int(better.sum())


def _forward_row(own: Look, wide: Look | None, wishes: Wishes) -> Row:
    """The row of the function's value."""
    expected = own.plain_manual[0]
    found, unknown = _judged_values(own, wishes.limit_of("forward", "forward"))
    closer = None if wide is None else _judged_values(wide, wishes.limit_of("forward", "forward"))[0]
    shown, notes, hint = found, (), ""
    if closer is not None and not closer.ok:
        if found.ok:
            shown, notes = closer, (f"seen with the arguments in float32; in {expected.dtype} rounding hides it",)
    elif closer is not None and not found.ok and np.isfinite(found.manual_error):
        hint = f"low precision: right in float32, but the rule rounds too early in {expected.dtype}"
    if unknown:
        notes = (*notes, f"{unknown} entries not judged: the plain function is not finite there, and the rule is")
    row = Row("forward", "forward", expected.shape, str(expected.dtype), "", hint=hint, notes=notes)
    if shown.excused:
        return _unusable(filled(row, shown), own, shown)
    if not shown.ok and not hint:
        row = row._replace(hint=hint_for(shown))
    if not shown.ok and shown.label == "the fwd rule":
        row = row._replace(hint=f"the fwd rule's value is not the function's: {row.hint}")
    return filled(row, shown)


def _gradient_row(own: Look, wide: Look | None, at: int, wishes: Wishes, rng: np.random.Generator) -> Row:
    """The row of one gradient that has a reference."""
    name, variable = own.call.names[at], own.variables[at]
    limit = wishes.limit_of(own.call.arguments[at], name)
    found = judged_gradient(own, at, limit)
    closer = None if wide is None else judged_gradient(wide, at, limit)
    shown, source, notes = found, own, ()
    if closer is not None and wide is not None and not closer.ok and not closer.excused and found.ok:
        shown, source = closer, wide
        notes = (f"seen with the arguments in float32; in {variable.dtype} rounding hides it",)
    row = filled(Row(name, "gradient", variable.shape, str(variable.dtype), "", notes=notes), shown)
    if variable.dtype.itemsize < 4 and found.automatic_error is not None and np.isfinite(found.manual_error):
        row = row._replace(notes=(*row.notes, _nearer(found)))
    if shown.ok and (shown.automatic_error or 0.0) > FLOOR >= shown.manual_error:
        row = row._replace(notes=(*row.notes, "automatic is the inexact one here"))
    if not shown.ok:
        if wishes.slopes and (measured := _with_slope(row, source, at, rng)).ok:
            return measured
        sides = _sides(source, at, shown) if wishes.slopes or not np.isfinite(shown.manual_error) else None
        if sides is not None and sides.refused is None:
            return _subgradient(row, sides)
        if shown.excused:
            return _unusable(row, own, shown, at)
        eps = float(jnp.finfo(variable.dtype).eps)
        if limit is None and shown.manual_error * eps <= CAP and right_when_run_further(source, at):
            text = "as exact as a loop that ends at a tolerance: run further, the rule is right in float64"
            return row._replace(verdict="ok", notes=(*row.notes, text))
    if wishes.slopes:
        row = _with_slope(row, source, at, rng)
    if not row.ok and not row.hint:
        rounds = closer is not None and closer.ok and np.isfinite(found.manual_error)
        early = f"low precision: right in float32, but the rule rounds too early in {variable.dtype}"
        row = row._replace(hint=early if rounds else gradient_hint(source, at, shown, rng))
    return row


def _sides(look: Look, at: int, found: Judgement) -> Sides | None:
    """The one-sided slopes at the entries that differ, if they can be had."""
    if found.problem or found.reference is None or isinstance(look.forward.first, Exception):
        return None
    sides = between_the_slopes(look, at, found)
    return sides if sides.allowed or sides.unknown or sides.refused else None


def _subgradient(row: Row, sides: Sides) -> Row:
    """A row whose other values the one-sided slopes allow."""
    notes = row.notes
    if sides.allowed:
        places = ", ".join(str(list(entry)) for entry in sides.allowed[:3])
        notes = (*notes, f"subgradient: between the one-sided slopes at {places}, where automatic has another value")
    if sides.unknown:
        places = ", ".join(str(list(entry)) for entry in sides.unknown[:3])
        notes = (*notes, f"not judged at {places}: the plain function is not finite there")
    return row._replace(verdict="ok", kink=bool(sides.allowed), notes=notes)


def _nearer(found: Judgement) -> str:
    """Which of the two is nearer to float64, in half precision."""
    mine, theirs = found.manual_error, found.automatic_error or 0.0
    if abs(mine - theirs) <= 0.05 * max(mine, theirs):
        return f"as near to float64 as automatic ({mine:.2g} eps)"
    return f"nearer to float64: {'manual' if mine < theirs else 'automatic'} ({mine:.2g} against {theirs:.2g} eps)"


def _unusable(row: Row, look: Look, found: Judgement, at: int | None = None) -> Row:
    """Automatic is off by so much that it is no measure: the rule in float64 decides, if it runs there."""
    text = f"automatic itself is off by {found.automatic_error:.1g} eps, too much for a measure"
    right = _right_in_double(look, at)
    if right is None:
        return row._replace(verdict="not checked", hint=f"{text}, and the rule does not run in float64")
    if right:
        return row._replace(verdict="ok", notes=(*row.notes, f"{text}; in float64 the rule is right"))
    return row._replace(verdict="WRONG", hint=f"{text}; in float64 the rule is wrong, too")


def _right_in_double(look: Look, at: int | None) -> bool | None:
    """Whether the rule evaluated in float64 gives the reference; None where that cannot be said."""
    rule = look.rule()
    if not rule.exact or isinstance(rule.first, Exception) or not look.forward.exact:
        return None
    if at is None:
        pairs = zip(rule.first, look.plain_reference, look.plain_automatic, strict=False)
        return all(same_in_double(a, b, c.dtype) for a, b, c in pairs if is_inexact(c))
    if isinstance(look.reference, Exception) or not (look.pull.exact or look.tangent is not None):
        return None
    place = look.first_gradient + at
    return same_in_double(rule.first[place], look.reference[place], look.variables[at].dtype)


def filled(row: Row, found: Judgement) -> Row:
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


def hint_for(found: Judgement, further=(), survives: bool | None = None) -> str:
    """What the numbers look like, in words."""
    if found.problem or found.reference is None:
        return found.problem
    if not is_inexact(found.manual):
        return "the values differ"
    bits = 1 - np.log2(float(jnp.finfo(found.manual.dtype).eps))
    return name_mistake(found.manual, found.reference, found.limit * found.unit, bits, further, survives)


def gradient_hint(look: Look, at: int, found: Judgement, rng: np.random.Generator) -> str:
    """What a wrong gradient looks like, in words; in float64, if the error is one there."""
    if found.problem or found.reference is None or not np.isfinite(found.manual_error):
        return hint_for(found)
    right = _right_in_double(look, at)
    if isinstance(look.forward.first, list) and look.reference is not None:
        # Values that a kink allows are not part of the mistake.
        reference = found.reference.copy()
        for entry in between_the_slopes(look, at, found, first_only=False).allowed:
            reference[entry] = found.manual[entry]
        found = found._replace(reference=reference)
    if right is not None and not right:
        rule = look.rule().first
        assert not isinstance(rule, Exception)
        precise = in_double(rule[look.first_gradient + at])
        unit = 5e-7 * max(largest_entry(in_double(found.reference)), natural_size(look.sizes, look.first_gradient + at))
        found = found._replace(manual=precise.astype(precise.dtype), limit=1.0, unit=unit or 1e-300)
    if text := depends_wrongly_on_delta(look, at, rng):
        return text
    if ignored := ignored_outputs(look, at):
        return f"{ignored} not counted: a cotangent is ignored"
    survives = None if right is None else not right
    text = hint_for(found, alternatives(look, at, exact=survives is True), survives)
    place = (
        leaks(look, at, found.limit * found.unit) if not text or "no pattern" in text or "float64, too" in text else ""
    )
    return place or text


def _with_slope(row: Row, look: Look, at: int, rng: np.random.Generator) -> Row:
    """The gradient's row with the measured slope: both rules can share a mistake, or automatic be the wrong one."""
    assert not isinstance(look.manual, Exception) and not isinstance(look.reference, Exception)
    place = look.first_gradient + at
    manual, variable = in_double(look.manual[place]), in_double(look.variables[at])
    reference = in_double(look.reference[place])
    if not variable.size or manual.shape != variable.shape or not np.isfinite(manual).all():
        return row
    if not np.isfinite(reference).all():
        return row
    direction = draw_direction(look, at, rng)
    line = Line(look, at)
    found = slope(line, direction, line.noise(direction))
    if found is None:
        return row._replace(notes=(*row.notes, "finite differences are not finite here"))
    natural = float(np.sqrt(np.sum(np.abs(reference * direction) ** 2))) or 1.0
    room = (1e-5 if line.exact else 2e-2) * natural + 2 * found.noise
    rounding = 32 * float(jnp.finfo(look.variables[at].dtype).eps) * natural

    def off(gradient: np.ndarray) -> float:
        return abs(float(np.sum(gradient * direction).real) - found.value)

    kink = found.roughness > room + found.rough_noise
    row = row._replace(finite_difference=off(reference) / natural, kink=kink)
    if kink:
        # A kink says nothing against a slope, and nothing for a gradient.
        if off(reference) > room:
            text = "not differentiable here: the one-sided slopes differ (a tie or a corner)"
            row = row._replace(notes=(*row.notes, text))
        return row
    automatic_off = row.automatic_error is not None and row.automatic_error > 1e4 and row.ok
    if off(reference) <= room:
        if automatic_off and (row.manual_error or 0.0) <= FLOOR:
            text = "automatic disagrees with finite differences and manual agrees: automatic is the wrong one"
            row = row._replace(notes=(*row.notes, text))
        return row
    if not row.ok and off(manual) <= room + rounding:
        text = "automatic disagrees with finite differences and manual agrees: automatic is the wrong one"
        return row._replace(verdict="ok", hint="", notes=(*row.notes, text))
    text = "finite differences disagree with both rules (pass finite_difference=False if that is meant)"
    return row._replace(verdict="WRONG", hint=row.hint or text, notes=(*row.notes, text) if row.hint else row.notes)


def _row_without_reference(look: Look, at: int, wishes: Wishes, rng: np.random.Generator) -> Row:
    """The row of a gradient that only slopes can judge."""
    variable = look.variables[at]
    row = Row(look.call.names[at], "gradient", variable.shape, str(variable.dtype), "not checked")
    assert not isinstance(look.manual, Exception)
    manual = look.manual[look.first_gradient + at]
    if not variable.size:
        return row._replace(verdict="ok")
    if manual.shape != variable.shape or manual.dtype != variable.dtype:
        text = f"manual is {manual.dtype}{list(manual.shape)} where {variable.dtype}{list(variable.shape)} is expected"
        return row._replace(verdict="WRONG", hint=text)
    if not np.isfinite(in_double(manual)).all():
        return row._replace(verdict="WRONG", hint="manual is not finite")
    if not wishes.slopes:
        return row._replace(hint="automatic has no gradient, and finite_difference=False")
    found = by_slopes_alone(look, at, rng)
    if found is None:
        return row._replace(hint="automatic has no gradient, and no slope can be measured here")
    row = row._replace(
        verdict="ok" if found.ok else "WRONG",
        finite_difference=found.error,
        kink=found.kink,
        notes=(f"checked by slopes alone: {found.checked}",),
    )
    if found.ok:
        return row
    hint = "finite differences disagree with manual"
    if found.gradient is not None and np.isfinite(found.gradient).all() and manual.size > 1:
        room = 4 * found.room * largest_entry(found.gradient)
        named = name_mistake(manual, found.gradient, room, 8.0)
        hint += "" if "no pattern" in named or "bits" in named else f": {named}"
    value = None if found.index is None else in_double(manual)[found.index].item()
    return row._replace(hint=hint, index=found.index, manual_value=value, reference_value=found.slope)
