"""Measured slopes: along directions, and on both sides of single entries."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ._call import outputs
from ._double import Arrays, run
from ._judge import Judgement, differences, in_double, largest_entry, usual_entry
from ._witnesses import Look, normal

# Entries at a kink that are looked at one by one.
_MOST_ENTRIES = 32
_DIRECTIONS = 8


class Slope(NamedTuple):
    """A measured directional derivative, how unsmooth the function is there, and what noise does to both."""

    value: float
    roughness: float
    noise: float
    rough_noise: float


class Line:
    """The terms of sum(cotangents * outputs) as variable `at` moves, relative to where it is."""

    def __init__(self, look: Look, at: int, of_the_rule: bool = False) -> None:
        self.look, self.at, self.of_the_rule = look, at, of_the_rule
        self.exact = (look.rule() if of_the_rule else look.sloped).exact
        self.step = 1e-5 if self.exact else 1e-2
        self.middle = in_double(look.variables[at])
        self.weights = [in_double(c) for c in look.cotangents]
        self.center = self._values(self.middle)
        terms = [] if self.center is None else [np.ravel(values) for values in self.center]
        # Terms that are not finite here have no slope, and must not hide those of the others.
        self.blind = ~np.isfinite(np.concatenate(terms)) if terms else np.zeros(0, bool)

    def _values(self, moved: np.ndarray) -> Arrays | None:
        look = self.look
        variables = [*look.variables[: self.at], moved, *look.variables[self.at + 1 :]]
        if self.of_the_rule:
            results = look.rule()(variables, look.fixed, look.cotangents)
        elif isinstance(look.sloped.first, Exception):
            variables[self.at] = jnp.asarray(moved.astype(look.variables[self.at].dtype))
            results = run(functools.partial(outputs, look.call, look.functions.automatic), variables, look.fixed)
        else:
            results = look.sloped(variables, look.fixed)
        return None if isinstance(results, Exception) else [in_double(a) for a in results[: len(self.weights)]]

    def rise(self, displacement: np.ndarray) -> np.ndarray:
        """How far each term rises; NaN where it cannot be said."""
        there = self._values(self.middle + displacement)
        if there is None or self.center is None:
            return np.array([np.nan])
        with np.errstate(invalid="ignore", over="ignore"):
            parts = [np.real(c * (a - b)).ravel() for c, a, b in zip(self.weights, there, self.center, strict=True)]
        return np.where(self.blind, 0.0, np.concatenate(parts))

    def hides(self, entry: tuple[int, ...]) -> bool:
        """Whether a term that is not finite here depends on an entry: whether it becomes finite elsewhere."""
        for value in (1.0, 0.0, -1.0) if self.blind.any() else ():
            moved = self.middle.copy()
            moved[entry] = value
            there = self._values(moved)
            if there is None or np.isfinite(np.concatenate([np.ravel(v) for v in there])[self.blind]).any():
                return True
        return False

    def noise(self, direction: np.ndarray) -> np.ndarray:
        """The noise of each term: what a parabola through nine near points leaves of them."""
        found = []
        for place in (0.5, -0.5):
            offsets = np.linspace(-0.08, 0.08, 9)
            values = np.stack([self.rise((place + offset) * self.step * direction) for offset in offsets])
            basis = np.stack([np.ones(9), offsets, offsets**2], 1)
            with np.errstate(invalid="ignore"):
                rest = values - basis @ (np.linalg.pinv(basis) @ values)
            found.append(np.sqrt(np.sum(rest**2, 0) / 6))
        return np.minimum(*found)


def slope(line: Line, direction: np.ndarray, noise: np.ndarray) -> Slope | None:
    """The slope along a direction; None if it is not finite.

    Points at plus and minus h and h/2 give two central slopes D and two differences G of the one-sided slopes. Where
    the function is smooth, D(h) = D(h/2) and G(h) = 2 G(h/2) up to h^2. At or next to a kink they are not, and the
    slope says nothing.
    """
    step = line.step
    with np.errstate(invalid="ignore", over="ignore"):
        up, down, half_up, half_down = (line.rise(s * step * direction) for s in (1, -1, 0.5, -0.5))
        long, short = (up - down) / (2 * step), (half_up - half_down) / step
        gap, half_gap = (up + down) / step, 2 * (half_up + half_down) / step
        # Output by output, since two kinks can cancel in the sum and still leave the slope without a meaning.
        roughness = np.sum(np.abs(long - short) + np.abs(gap - 2 * half_gap))
    found = Slope(
        float(np.sum(4 * short - long)) / 3,
        float(roughness),
        4 * float(np.sqrt(np.sum(noise**2))) / step,
        8 * float(np.sum(noise)) / step,
    )
    return found if np.isfinite(found).all() else None


def draw_direction(look: Look, at: int, rng: np.random.Generator) -> np.ndarray:
    """A random direction of the variable's own size."""
    variable = in_double(look.variables[at])
    return normal(rng, variable) * usual_entry(variable)


# On both sides of single entries


def one_sided(line: Line, entry: tuple[int, ...]) -> tuple[float, float]:
    """The slopes below and above one entry; NaN where they are not finite or grow without a bound."""
    size = abs(float(line.middle[entry]))
    step = (1e-6 if line.exact else 1e-2) * (size if 0 < size < np.inf else usual_entry(line.middle))
    found = []
    for sign in (-1, 1):
        near, far = np.zeros_like(line.middle), np.zeros_like(line.middle)
        far[entry], near[entry] = sign * step, sign * step / 2
        one, other = float(line.rise(far).sum()) / (sign * step), float(line.rise(near).sum()) / (sign * step / 2)
        settled = abs(one - other) <= 0.05 * (abs(one) + abs(other)) or abs(one - other) <= 1e-3
        found.append(2 * other - one if settled and np.isfinite(one + other) else np.nan)
    return found[0], found[1]


class Sides(NamedTuple):
    """Entries at which the one-sided slopes allow the rule's value, those where they say nothing, and one refused."""

    allowed: list[tuple[int, ...]]
    unknown: list[tuple[int, ...]]
    refused: tuple[int, ...] | None


def between_the_slopes(look: Look, at: int, found: Judgement, first_only: bool = True) -> Sides:
    """Look at the entries that are not the reference's: is each between the slopes on its two sides?

    Where the reference is finite, only a kink excuses another value. With `first_only` a refused entry ends the search.
    """
    manual, reference = in_double(found.manual), in_double(found.reference)
    off = differences(manual, reference)
    off[~np.isfinite(manual) & ~np.isfinite(reference)] = 0.0
    entries = [tuple(map(int, entry)) for entry in np.argwhere(off > found.limit * found.unit)]
    # The worst first: a mistake is found at once.
    entries.sort(key=lambda entry: (np.isfinite(reference[entry]), off[entry]), reverse=True)
    if len(entries) > _MOST_ENTRIES:
        entries = [entries[int(i)] for i in np.linspace(0, len(entries) - 1, _MOST_ENTRIES)]
    line, size = Line(look, at), largest_entry(reference)
    sides = Sides([], [], None)
    for entry in entries:
        verdict = None if np.iscomplexobj(manual) else _allowed(line, entry, manual, reference, found, size)
        if verdict:
            sides.allowed.append(entry)
        elif verdict is None and not np.isfinite(reference[entry]) and np.isfinite(manual[entry]):
            sides.unknown.append(entry)
        else:
            sides = sides._replace(refused=sides.refused or entry)
            if first_only:
                return sides
    if sides.allowed and not _allowed_together(line, sides.allowed, manual, found):
        return Sides([], sides.unknown, sides.allowed[0])
    return sides


def _allowed_together(line: Line, entries: list[tuple[int, ...]], manual: np.ndarray, found: Judgement) -> bool:
    """Whether equal entries are between the slopes when they move as one: a maximum has one winner, whoever that is."""
    step = (1e-6 if line.exact else 1e-2) * usual_entry(line.middle)
    for value in {float(line.middle[entry]) for entry in entries}:
        equal = line.middle == value
        number = int(equal.sum())
        # Output by output, as each may be at another side of its kink.
        above, below = line.rise(equal * step) / step, line.rise(equal * -step) / -step
        low, high = float(np.minimum(above, below).sum()), float(np.maximum(above, below).sum())
        total = float(manual[equal].sum())
        if number == 1 or line.blind.any() or not np.isfinite([low, high, total]).all():
            continue
        room = 1e-4 * max(abs(low), abs(high)) + number**0.5 * found.limit * found.unit
        if not low - room <= total <= high + room:
            return False
    return True


def _allowed(
    line: Line, entry: tuple[int, ...], manual: np.ndarray, reference: np.ndarray, found: Judgement, size: float
) -> bool | None:
    """Whether one entry is between its slopes; None where they say nothing."""
    if not np.isfinite(manual[entry]):
        return False
    if line.hides(entry):
        # Where the function itself overflows, the forward rule's values still have slopes.
        if np.isfinite(reference[entry]) or not line.look.rule().exact:
            return None
        line = Line(line.look, line.at, of_the_rule=True)
        if line.hides(entry):
            return None
    low, high = sorted(one_sided(line, entry))
    if np.isnan([low, high]).any():
        return False
    room = 1e-4 * max(abs(low), abs(high)) + found.limit * found.unit
    kink = high - low > max(1e-4 * max(abs(low), abs(high), size), 4 * found.limit * found.unit)
    # Plain autodiff can be wrong where branches meet, though both sides have one slope. A surrogate is never wrong.
    middle = (low + high) / 2
    misled = line.look.functions.surrogate is None and abs(reference[entry] - middle) > 1e-2 * max(abs(middle), size)
    return bool(low - room <= manual[entry] <= high + room and (kink or misled or not np.isfinite(reference[entry])))


# Without any gradient to compare with


class Check(NamedTuple):
    """What slopes alone say about one gradient: which entry is wrong if one is, and how well they looked."""

    ok: bool
    checked: str
    index: tuple[int, ...] | None = None
    slope: float | None = None
    error: float = 0.0
    kink: bool = False
    gradient: np.ndarray | None = None
    room: float = 0.0


def by_slopes_alone(look: Look, at: int, rng: np.random.Generator) -> Check | None:
    """Hold a gradient against slopes along several directions; None where no slope can be measured."""
    assert not isinstance(look.manual, Exception)
    manual, name = in_double(look.manual[look.first_gradient + at]), look.call.names[at]
    line = Line(look, at)
    first = draw_direction(look, at, rng)
    noise = line.noise(first)
    pushed = _forward_slope(look, at)
    eps = float(jnp.finfo(look.variables[at].dtype).eps)
    worst, kinks, checked = (0.0, first, 0.0, 0.0), 0, 0
    room = 0.0
    for _ in range(_DIRECTIONS):
        direction = draw_direction(look, at, rng)
        natural = float(np.sqrt(np.sum(np.abs(manual * direction) ** 2))) or 1.0
        if pushed is not None:
            value, allowed = pushed(direction), 64 * eps * natural
        else:
            found = slope(line, direction, noise)
            if found is None:
                continue
            if found.roughness > 1e-2 * natural + 2 * found.rough_noise:
                kinks += 1
                continue
            value, allowed = found.value, max(1e-3 * natural, 4 * found.noise) + 32 * eps * natural
        checked += 1
        off = abs(float(np.sum(manual * direction).real) - value)
        room = max(room, allowed / natural)
        if off / allowed >= worst[0]:
            worst = (off / allowed, direction, value, off / natural)
    if not checked:
        return _entries_alone(look, at, line, kinks)
    text = f"{name}: {checked} directions, {100 * room:.2g} %"
    if room > 0.1:
        return None
    if worst[0] <= 1:
        return Check(True, text, error=worst[3])
    index, value, gradient = _locate(line, manual, worst[1], noise, pushed)
    return Check(False, text, index, value, worst[3], gradient=gradient, room=room)


def _entries_alone(look: Look, at: int, line: Line, kinks: int) -> Check | None:
    """A kink in every direction: single entries."""
    if not kinks or np.iscomplexobj(line.middle):
        return None
    assert not isinstance(look.manual, Exception)
    manual = in_double(look.manual[look.first_gradient + at])
    places = np.unique(np.linspace(0, manual.size - 1, _MOST_ENTRIES).astype(int))
    for place in places:
        entry = tuple(int(i) for i in np.unravel_index(place, manual.shape))
        low, high = sorted(one_sided(line, entry))
        room = 1e-2 * (1e-3 + max(abs(low), abs(high)))
        if not low - room <= manual[entry] <= high + room:
            return Check(False, f"{look.call.names[at]}: {len(places)} entries", entry, (low + high) / 2, kink=True)
    return Check(True, f"{look.call.names[at]}: {len(places)} entries, 1 %", kink=True)


def _forward_slope(look: Look, at: int) -> Any:
    """A function that gives slopes by forward mode, or None."""
    pushed = look.tangent() if look.tangent is not None else None
    if pushed is None or pushed.wide is None or not pushed.exact:
        return None

    def value(direction: np.ndarray) -> float:
        tangents = [direction if other == at else np.zeros(v.shape) for other, v in enumerate(look.variables)]
        found = pushed(*look.operands, tangents)
        return np.nan if isinstance(found, Exception) else float(found[0])

    return value


def _locate(
    line: Line, manual: np.ndarray, direction: np.ndarray, noise: np.ndarray, pushed: Any
) -> tuple[tuple[int, ...] | None, float | None, np.ndarray | None]:
    """The entry at which a gradient is most wrong, its slope, and all slopes where there are few entries."""

    def measured(part: np.ndarray) -> float:
        if pushed is not None:
            return pushed(part)
        found = slope(line, part, noise)
        return np.nan if found is None else found.value

    def unit(place: int) -> np.ndarray:
        one = np.zeros(manual.size)
        one[place] = usual_entry(line.middle)
        return one.reshape(manual.shape)

    if manual.size <= 64 and not np.iscomplexobj(manual):
        size = usual_entry(line.middle)
        slopes = np.array([measured(unit(i)) / size for i in range(manual.size)]).reshape(manual.shape)
        place = int(np.nan_to_num(np.abs(slopes - manual), nan=-1.0).argmax())
        index = tuple(int(i) for i in np.unravel_index(place, manual.shape))
        return index, float(slopes[index]), slopes
    places = np.arange(manual.size)
    while places.size > 1:
        halves = []
        for half in (places[: places.size // 2], places[places.size // 2 :]):
            part = np.zeros(manual.size, direction.dtype)
            part[half] = direction.ravel()[half]
            part = part.reshape(manual.shape)
            halves.append((abs(float(np.sum(manual * part).real) - measured(part)), half))
        places = max(halves, key=lambda pair: np.nan_to_num(pair[0]))[1]
    index = tuple(int(i) for i in np.unravel_index(int(places[0]), manual.shape))
    return index, measured(unit(int(places[0]))) / usual_entry(line.middle), None
