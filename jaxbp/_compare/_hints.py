"""What a wrong gradient looks like, in words: each common mistake leaves its own mark on the numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np


def name_mistake(
    manual: np.ndarray,
    reference: np.ndarray,
    tolerance: float,
    bits: float,
    alternatives: Iterable[tuple[str, np.ndarray]] = (),
    survives: bool | None = None,
) -> str:
    """Say in one sentence how `manual` differs from `reference`.

    `tolerance` is the absolute difference that rounding explains, `bits` the precision of manual's dtype.
    `alternatives` are sentences with the gradient that each would lead to, evaluated only when needed. `survives` says
    whether the difference is there in float64, too (None: not known): if so, it is no matter of rounding.
    """
    manual, reference = _wide(manual), _wide(reference)
    wrong = _differs(manual, reference, tolerance)
    finite = np.isfinite(reference)
    broken = wrong & finite & ~np.isfinite(manual)
    if broken.any():
        return f"{_count(broken)} not finite where automatic is: first {_at(broken, manual)}"
    if (wrong & ~finite).any():
        return f"automatic is not finite where manual is: {_count(wrong & ~finite)}"
    if not manual.any():
        return "manual is all zeros (or the rule returns None here)"
    sentence = "" if survives else _rounded(manual, reference)
    # With one entry every mistake looks like a factor, so other explanations come first.
    checks = [_factor, _conjugate, _axes, _summed, _confined, _shifted] if manual.size > 1 else []
    for check in checks:
        sentence = sentence or check(manual, reference, tolerance)
    if sentence:
        return sentence
    size = np.abs(reference).max()
    for text, other in alternatives:
        room = tolerance * max(1.0, np.abs(other).max() / size if size else 1.0)
        if np.abs(other).max() > room and not _differs(manual, _wide(other), room).any():
            return text
    return _factor(manual, reference, tolerance) or _spread(manual, reference, wrong, bits, survives)


def _wide(array: np.ndarray) -> np.ndarray:
    """The array in double precision."""
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _differs(manual: np.ndarray, reference: np.ndarray, tolerance: float) -> np.ndarray:
    """Where the two differ by more than the tolerance (equal infinities and NaNs do not)."""
    with np.errstate(invalid="ignore"):
        near = np.abs(manual - reference) <= tolerance
    return ~(near | (manual == reference) | (np.isnan(manual) & np.isnan(reference)))


def _count(mask: np.ndarray) -> str:
    """ "3 of 16 entries are"."""
    number = int(mask.sum())
    return f"{number} of {mask.size} {'entry is' if number == 1 else 'entries are'}"


def _at(mask: np.ndarray, manual: np.ndarray) -> str:
    """The first marked index and the value there."""
    index = tuple(int(i) for i in np.argwhere(mask)[0])
    return f"{list(index)} = {manual[index]}"


def _ratio(manual: np.ndarray, reference: np.ndarray, tolerance: float) -> float:
    """The s in manual = s x automatic if one s fits all entries, else 0."""
    squares = np.vdot(reference, reference).real
    if not squares or not np.isfinite(squares):
        return 0.0
    factor = float((np.vdot(reference, manual) / squares).real)
    return 0.0 if _differs(manual, factor * reference, tolerance * max(1.0, abs(factor))).any() else factor


def _factor(manual: np.ndarray, reference: np.ndarray, tolerance: float) -> str:
    """What a common factor means."""
    factor = _ratio(manual, reference, tolerance)
    if not factor:
        return ""
    resolution = 4 * tolerance / np.abs(reference).max()
    if resolution > 0.1:  # nearly every factor would be a whole number
        return "" if abs(factor - 1) <= resolution else f"manual = about {factor:.2g} x automatic"
    if abs(factor + 1) <= resolution:
        return "manual = -automatic: the sign is wrong"
    if 0 < factor < 0.75 and abs(1 / factor - round(1 / factor)) <= max(1e-4, resolution / factor**2):
        return f"manual = automatic / {round(1 / factor)}: a mean in place of a sum?"
    if factor > 1.5 and abs(factor - round(factor)) <= resolution:
        return f"manual = {round(factor)} x automatic: a sum in place of a mean, or something counted twice?"
    text = f"{factor:.6g}"
    return "" if text == "1" else f"manual = {text} x automatic"


def _conjugate(manual: np.ndarray, reference: np.ndarray, tolerance: float) -> str:
    """manual is the complex conjugate of automatic, perhaps with the other sign."""
    if not np.iscomplexobj(reference) or not np.imag(reference).any():
        return ""
    if not _differs(manual, np.conj(reference), tolerance).any():
        return "manual = conj(automatic): a conjugate is missing, or one too many"
    if not _differs(manual, -np.conj(reference), tolerance).any():
        return "manual = -conj(automatic): a conjugate is missing, or one too many, and the sign is wrong"
    return ""


def _axes(manual: np.ndarray, reference: np.ndarray, tolerance: float) -> str:
    """manual is automatic with some axes reversed, or two swapped."""
    long = [axis for axis in range(manual.ndim) if manual.shape[axis] > 1]
    for number in range(1, min(len(long), 4) + 1):
        for axes in itertools.combinations(long, number):
            if not _differs(manual, np.flip(reference, axes), tolerance).any():
                return f"manual = automatic reversed along axes {axes}: rotated once too often or not at all?"
    for first, second in itertools.combinations(long, 2):
        swapped = np.swapaxes(reference, first, second)
        if swapped.shape == manual.shape and not _differs(manual, swapped, tolerance).any():
            return f"manual = automatic with axes {first} and {second} swapped"
    return ""


def _summed(manual: np.ndarray, reference: np.ndarray, tolerance: float) -> str:
    """manual is the same along some axes: the sum or the mean of automatic along them."""
    long = [axis for axis in range(manual.ndim) if manual.shape[axis] > 1]
    axes = tuple(axis for axis in long if not _differs(manual, manual.take([0], axis), 2 * tolerance).any())
    count = np.prod([manual.shape[axis] for axis in axes]) if axes else 0
    for text, divisor in (("sum", 1), ("mean", count)) if axes else ():
        other = np.broadcast_to(reference.sum(axes, keepdims=True) / divisor, manual.shape)
        if not _differs(manual, other, tolerance * count / divisor).any():
            where = f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}"
            return f"manual = the {text} of automatic along {where}: a {text} over too many axes"
    return ""


def _confined(manual: np.ndarray, reference: np.ndarray, tolerance: float) -> str:
    """All wrong entries lie in one slice."""
    wrong = _differs(manual, reference, tolerance)
    places, box = [], []
    for axis, size in enumerate(manual.shape):
        hit = np.flatnonzero(wrong.any(axis=tuple(a for a in range(manual.ndim) if a != axis)))
        low, high = int(hit[0]), int(hit[-1]) + 1
        steps = set(np.diff(hit).tolist())
        step = steps.pop() if len(hit) > 2 and len(steps) == 1 else 1
        box.append(slice(low, high, step))
        whole = high - low == size and step == 1
        text = str(low) if high - low == 1 else f"{low}:{high}" + f":{step}" * (step > 1)
        places.append(":" if whole else text)
    inside = wrong[tuple(box)].size
    if inside == wrong.size or inside > 0.75 * wrong.size:
        return ""
    number = int(wrong.sum())
    entries = f"all {number} wrong entries lie" if number > 1 else "the only wrong entry lies"
    part, right = manual[wrong], reference[wrong]
    if not part.any():
        what = ", where manual is 0"
    else:
        factor = _ratio(part, right, tolerance)
        what = f", where manual = {factor:.6g} x automatic" if factor else ""
    return f"{entries} in [{', '.join(places)}]{what}"


def _shifted(manual: np.ndarray, reference: np.ndarray, tolerance: float) -> str:
    """manual is automatic moved by one or two places along some axes."""
    long = [axis for axis in range(manual.ndim) if manual.shape[axis] > 3][:4]
    moves = [(axis,) for axis in long] + list(itertools.combinations(long, 2))
    for axes in moves:
        for steps in itertools.product((-1, 1, -2, 2), repeat=len(axes)):
            here, there = [slice(None)] * manual.ndim, [slice(None)] * manual.ndim
            for axis, step in zip(axes, steps, strict=True):
                here[axis] = slice(max(step, 0), min(step, 0) or None)
                there[axis] = slice(max(-step, 0), min(-step, 0) or None)
            moved, original = manual[tuple(here)], reference[tuple(there)]
            if np.ptp(np.abs(original)) > 4 * tolerance and not _differs(moved, original, tolerance).any():
                return f"manual = automatic shifted by {steps} along axes {axes}"
    return ""


def _rounded(manual: np.ndarray, reference: np.ndarray) -> str:
    """Every entry of manual is a number of a lower-precision dtype."""
    if np.iscomplexobj(manual):
        return ""
    # Zeros are numbers of every dtype, and a pool's gradient is mostly zeros.
    known = reference[reference != 0]
    for dtype in (np.dtype(jnp.bfloat16), np.dtype(np.float16)) if known.size else ():
        with np.errstate(over="ignore"):
            rounded = manual.astype(dtype).astype(np.float64)
            already = np.mean(known.astype(dtype).astype(np.float64) == known)
        step = float(jnp.finfo(dtype).eps)
        close = np.abs(manual - reference) <= step * np.abs(reference) + 1e-7
        if (rounded == manual).all() and already < 0.9 and close.mean() > 0.9:
            return f"every entry is a {dtype.name} number: rounded to {dtype.name}"
    return ""


def _spread(manual: np.ndarray, reference: np.ndarray, wrong: np.ndarray, bits: float, survives: bool | None) -> str:
    """Nothing recognised: how many entries differ, and to how many bits the rest is right."""
    size = np.abs(reference[np.isfinite(reference)]).max(initial=0.0)
    error = np.abs(manual - reference)[wrong].max(initial=0.0) / size if size else np.inf
    if error < 2**-6:
        text = f"right to {-np.log2(error):.0f} of {bits:.0f} bits"
        if survives:
            return f"{text}, in float64, too: an approximation, or a small term is missing"
        return text if survives is None else f"{text}, and right in float64: low precision in an intermediate result"
    if survives is False:
        return f"{_count(wrong)} wrong, and right in float64: low precision in an intermediate result"
    return f"{_count(wrong)} wrong, in no pattern known here"
