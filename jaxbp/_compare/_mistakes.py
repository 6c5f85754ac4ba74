"""What a gradient would be after each of some common mistakes, and through which outputs a wrong one goes wrong."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ._call import pull_back
from ._double import Arrays, run
from ._judge import in_double, largest_entry
from ._wide import Wide
from ._witnesses import Look, normal

# Output indices that are pulled back one by one.
_MOST_INDICES = 32
# How an output goes wrong that reaches what it should, and no more.
_ELSE = "sends a wrong gradient to"


def alternatives(look: Look, at: int, exact: bool) -> Iterator[tuple[str, np.ndarray]]:
    """What the gradient of variable `at` would be after each of some common mistakes.

    `exact`: both sides are float64, so that a forgotten small constant can be told from rounding.
    """
    names, variables, cotangents = look.call.names, look.variables, look.cotangents

    def gradients(variables: tuple, cotangents: list) -> Arrays:
        results = look.pull(variables, look.fixed, cotangents)
        return [] if isinstance(results, Exception) else results[look.first_gradient :]

    right = gradients(variables, cotangents)
    if not right:
        return
    for other, gradient in enumerate(right):
        if other != at and gradient.shape == variables[at].shape:
            yield f"manual = the gradient of {names[other]}: returned in the wrong place", gradient
    if exact and look.pull.wide is not None:
        yield from _without_small_constants(look, at)
    for other, variable in enumerate(variables):
        factor = in_double(variable)
        if factor.size > 1 and factor.all() and _stretches(factor.shape, right[at].shape):
            yield f"manual = automatic times {names[other]}: a factor too many", right[at] * factor
            yield f"manual = automatic divided by {names[other]}: a factor is missing", right[at] / factor
    for other, variable in enumerate(variables):
        rank = variable.ndim
        spatial = tuple(range(max(rank - 2, 0)))
        for axes in dict.fromkeys([spatial, tuple(range(rank)), *((axis,) for axis in range(rank))]):
            if other != at and any(variable.shape[axis] > 1 for axis in axes):
                flipped = (*variables[:other], jnp.flip(variable, axes), *variables[other + 1 :])
                for gradient in gradients(flipped, cotangents)[at : at + 1]:
                    text = f"manual = the gradient for {names[other]} reversed along axes {axes}"
                    yield f"{text}: not rotated (rot180), or rotated twice", gradient
        if rank >= 2 and variable.shape[-1] == variable.shape[-2] > 1 and other != at:
            turned = (*variables[:other], jnp.swapaxes(variable, -1, -2), *variables[other + 1 :])
            for gradient in gradients(turned, cotangents)[at : at + 1]:
                yield f"manual = the gradient for {names[other]} transposed: a transpose too much or too few", gradient
    for output, cotangent in enumerate(cotangents):
        others = [jnp.zeros_like(c) for c in cotangents]
        for axis, length in enumerate(cotangent.shape):
            for index in dict.fromkeys([0, length - 1]) if length > 1 else ():
                masked = [*others[:output], _only(cotangent, axis, index), *others[output + 1 :]]
                for gradient in gradients(variables, masked)[at : at + 1]:
                    yield f"only index {index} along axis {axis} of the output is counted", gradient
                    text = f"index {index} along axis {axis} of the output is not counted"
                    yield text, right[at] - gradient


def _stretches(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether an array of one shape is broadcast to the other."""
    pairs = zip(reversed(shape), reversed(whole), strict=False)
    return len(shape) <= len(whole) and all(size in (1, full) for size, full in pairs)


def _without_small_constants(look: Look, at: int) -> Iterator[tuple[str, np.ndarray]]:
    """The gradient of the function with each of its small constants left out."""
    assert look.pull.wide is not None
    small = sorted(v for v in look.pull.wide.walk.literals if 0 < abs(v) <= 1e-2)[:8]
    for value in small:
        try:
            program = functools.partial(pull_back, look.call, look.functions.automatic)
            found = Wide(program, *look.operands, replace={value: 0.0})(*look.operands)
        except Exception:  # a function that needs its constant
            continue
        yield (
            f"manual = the gradient without the constant {value:.3g}: a forgotten eps?",
            found[look.first_gradient + at],
        )


def _only(cotangent: Any, axis: int, index: int) -> Any:
    """A cotangent with one index along one axis."""
    length = cotangent.shape[axis]
    mask = (np.arange(length) == index).reshape([-1] + [1] * (cotangent.ndim - axis - 1))
    return cotangent * jnp.asarray(np.broadcast_to(mask, cotangent.shape).astype(cotangent.dtype))


def _rule(look: Look, at: int, cotangents: list) -> np.ndarray | None:
    """The rule's gradient for other cotangents, in float64 if it runs there."""
    rule = look.rule()
    if rule.exact and not isinstance(rule.first, Exception):
        results = rule(look.variables, look.fixed, cotangents)
    else:
        program = functools.partial(pull_back, look.call, look.functions.manual)
        results = run(program, look.variables, look.fixed, cotangents)
    return None if isinstance(results, Exception) else in_double(results[look.first_gradient + at])


def depends_wrongly_on_delta(look: Look, at: int, rng: np.random.Generator) -> str:
    """A gradient that ignores delta, or is not linear in it."""
    others = [jnp.asarray(normal(rng, c).astype(c.dtype)) for c in look.cotangents]
    both = [a + b for a, b in zip(look.cotangents, others, strict=True)]
    first, second, third = (_rule(look, at, list(c)) for c in (look.cotangents, others, both))
    if first is None or second is None or third is None or not np.isfinite(first + second + third).all():
        return ""
    size = max(largest_entry(first), largest_entry(second))
    if not size:
        return ""
    eps = 1e-9 if look.rule().exact else 64 * float(jnp.finfo(look.variables[at].dtype).eps)
    if largest_entry(first - second) <= eps * size:
        return "manual does not depend on delta: the cotangent is ignored"
    if all(c.dtype.itemsize >= 4 for c in look.cotangents) and largest_entry(first + second - third) > 1e3 * eps * size:
        return "manual is not linear in delta"
    return ""


def ignored_outputs(look: Look, at: int) -> str:
    """Outputs whose cotangents have no part in a gradient, and should."""
    ignored = []
    for output in range(min(len(look.cotangents), 8)):
        alone = [c if at == output else jnp.zeros_like(c) for at, c in enumerate(look.cotangents)]
        right, mine = look.pull(look.variables, look.fixed, alone), _rule(look, at, alone)
        if not isinstance(right, Exception) and mine is not None and not mine.any():
            ignored += [output] if right[look.first_gradient + at].any() else []
    if not 0 < len(ignored) < len(look.cotangents):
        return ""
    return f"output {ignored[0]} is" if len(ignored) == 1 else f"outputs {', '.join(map(str, ignored))} are"


class _Leak(NamedTuple):
    """How one index of an output goes wrong: too much, too little or otherwise, and where; and what it does reach."""

    verb: str
    box: list[tuple[int, int]]
    reach: list[tuple[int, int]]


def leaks(look: Look, at: int, tolerance: float) -> str:
    """Which output sends a wrong gradient to which entries, if that is a part of both."""
    name, shape = look.call.names[at], look.variables[at].shape
    for output, cotangent in enumerate(look.cotangents):
        which = "the output" if len(look.cotangents) == 1 else f"output {output}"
        for axis, length in enumerate(cotangent.shape):
            if not 1 < length <= _MOST_INDICES:
                continue
            found = _leaks_along(look, at, output, axis, tolerance)
            if text := _leak_in_words(found, name, f"along axis {axis} of {which}", shape, length):
                return text
    return ""


def _leaks_along(look: Look, at: int, output: int, axis: int, tolerance: float) -> dict[int, _Leak]:
    """The wrong entries for each index along one axis of an output, pulled back alone."""
    found, cotangents = {}, look.cotangents
    for index in range(cotangents[output].shape[axis]):
        masked = [_only(c, axis, index) if o == output else jnp.zeros_like(c) for o, c in enumerate(cotangents)]
        right, mine = look.pull(look.variables, look.fixed, masked), _rule(look, at, masked)
        if isinstance(right, Exception) or mine is None or not np.isfinite(mine).all():
            return {}
        wanted = in_double(right[look.first_gradient + at])
        wrong = np.abs(mine - wanted) > tolerance
        masks = {
            "leaks into": wrong & (wanted == 0),
            "does not reach": wrong & (mine == 0),
            _ELSE: wrong,
        }
        for verb, mask in masks.items():
            if mask.any():
                found[index] = _Leak(verb, _box(mask), _box(mine != 0) if mine.any() else [])
                break
    return found


def _box(mask: np.ndarray) -> list[tuple[int, int]]:
    """The smallest box around what is marked: first and last + 1 along each axis."""
    hits = [np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)]
    return [(int(hit[0]), int(hit[-1]) + 1) for hit in hits]


def _leak_in_words(found: dict[int, _Leak], name: str, along: str, shape: tuple, length: int) -> str:
    """One sentence on what is wrong for which index of the output; empty where no part stands out."""
    for axis, size in enumerate(shape):
        alone = [leak.reach[axis : axis + 1] == [(index, index + 1)] for index, leak in found.items()]
        if size == length == len(found) and all(alone) and {leak.verb for leak in found.values()} == {"does not reach"}:
            return f"index i {along} reaches only index i along axis {axis} of {name}: a sum or a mean is missing?"
    narrow = [leak for leak in found.values() if any(b - a < n for (a, b), n in zip(leak.box, shape, strict=True))]
    if not narrow and 0 < len(found) < length and len(verbs := {leak.verb for leak in found.values()}) == 1:
        first, last = min(found), max(found)
        which = f"{first}:{last + 1}" if last - first + 1 == len(found) > 1 else ", ".join(map(str, list(found)[:5]))
        verb = verbs.pop()
        guess = "" if verb == _ELSE else ": a tile's edge, or a part left out?"
        return f"index {which} {along} {verb} {name}{guess}"
    # Only what is there too much or too little looks like a mask.
    placed = all(leak.verb != _ELSE for leak in found.values())
    told = placed or len(found) < length
    # Of two or three indices, each that reaches all but its own entries looks like a mask.
    if not told or not narrow or (len(found) == length and len(narrow) < max(length - 1, 3)):
        return ""
    for axis, size in enumerate(shape if {leak.verb for leak in found.values()} == {"leaks into"} else ()):
        ends = [(leak.box[axis][0], leak.box[axis][1], index) for index, leak in found.items()]
        starts, stops = {start - index for start, _, index in ends}, {stop - index for _, stop, index in ends}
        if len(found) < 3 or size == 1:
            continue
        if len(starts) == 1 and {stop for _, stop, _ in ends} == {size} and (first := starts.pop()) > 0:
            return f"index i {along} leaks into {name} from i + {first} on: a causal mask is missing?"
        if len(stops) == 1 and {start for start, _, _ in ends} == {0} and (last := stops.pop()) <= 0:
            return f"index i {along} leaks into {name} up to i - {1 - last}: a window is missing or off by one?"

    def place(box: list[tuple[int, int]]) -> str:
        return ", ".join(":" if (a, b) == (0, n) else f"{a}:{b}" for (a, b), n in zip(box, shape, strict=True))

    parts = [f"{index} {leak.verb} {name}[{place(leak.box)}]" for index, leak in list(found.items())[:3]]
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    guess = ": a mask, a window or a tile's edge?" if placed else ""
    return f"index {', '.join(parts)}{more} (indices {along}){guess}"
