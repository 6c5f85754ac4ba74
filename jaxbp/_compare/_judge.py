"""How far an array is from its float64 reference, in eps, and whether that may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ._call import is_inexact

# eps that a rule may be off by, whatever the automatic rule does.
FLOOR = 16.0
# Relative to the largest entry: from here on automatic's own error says nothing about another one's.
CAP = 0.03


def in_double(array: Any) -> np.ndarray:
    """A NumPy array in double precision."""
    array = np.asarray(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


class Judgement(NamedTuple):
    """How far one manual array is from the reference, in eps, and what it may be.

    `excused` marks an error that only the cap on `limit` made wrong: automatic is off by as much.
    """

    label: str
    manual: np.ndarray
    automatic: np.ndarray | None
    reference: np.ndarray | None
    ok: bool = True
    manual_error: float = 0.0
    automatic_error: float | None = None
    limit: float = FLOOR
    unit: float = 1.0
    index: tuple[int, ...] | None = None
    problem: str = ""
    excused: bool = False


def judge(
    label: str,
    manual: np.ndarray,
    automatic: np.ndarray | None,
    reference: np.ndarray | None,
    expected: Any,
    size: Callable[[], float],
    *,
    limit: float | None = None,
    noise: float = 0.0,
) -> Judgement:
    """Judge one array.

    `expected` has its shape and dtype, `size()` is its size if nothing cancelled, `limit` what a user allows in eps,
    `noise` how far rounding moves the reference itself.
    """
    found = Judgement(label, manual, automatic, reference)
    if reference is None:
        return found
    for what, got, want in (("shape", manual.shape, expected.shape), ("dtype", manual.dtype, expected.dtype)):
        if got != want:
            problem = f"manual has {what} {got} where {want} is expected"
            return found._replace(ok=False, manual_error=np.inf, problem=problem)
    if automatic is not None and automatic.shape != reference.shape:
        automatic = None
    wide = in_double(reference)
    # Where automatic overflows its dtype nobody can ask for better.
    excused = np.isfinite(wide) & ~np.isfinite(in_double(automatic)) if automatic is not None else None
    distance, index = _distance(manual, wide, excused)
    theirs = None if automatic is None else _distance(automatic, wide, excused)[0]
    if not is_inexact(manual):
        return found._replace(ok=not distance, manual_error=distance, automatic_error=theirs, limit=0.0, index=index)

    def measured(largest: float) -> Judgement:
        info = jnp.finfo(manual.dtype)
        unit = max(float(info.eps) * largest, float(info.smallest_subnormal))
        error, other = distance / unit, None if theirs is None else theirs / unit
        own = max(2 * (other or 0.0), FLOOR, 4 * noise / unit)
        most = limit if limit is not None else min(own, max(FLOOR, CAP / float(info.eps)))
        other = np.inf if excused is not None and excused.any() else other
        return found._replace(
            ok=error <= most,
            manual_error=error,
            automatic_error=other,
            limit=most,
            unit=unit,
            index=index,
            excused=limit is None and most < error <= own,
        )

    first = measured(largest_entry(wide))
    return first if first.ok or distance == np.inf else measured(max(largest_entry(wide), size()))


def excess(judgement: Judgement) -> tuple[bool, float]:
    """How bad a judgement is, for choosing the worst."""
    error = judgement.manual_error
    return not judgement.ok, error / judgement.limit if judgement.limit else error


def same_in_double(found: np.ndarray, reference: np.ndarray, dtype: Any) -> bool:
    """Whether a rule evaluated in float64 is the reference, but for constants written in `dtype`."""
    if found.shape != reference.shape:
        return False
    found, reference = in_double(found), in_double(reference)
    eps = float(jnp.finfo(dtype).eps)
    room = max(16 * 1.2e-7, eps / 4 if eps > 1e-6 else 0.0) * largest_entry(reference)
    distance, _ = _distance(found, reference, None)
    return distance <= room


def _distance(
    array: np.ndarray, reference: np.ndarray, excused: np.ndarray | None
) -> tuple[float, tuple[int, ...] | None]:
    """The largest absolute difference and where it is; inf where only one of the two is finite."""
    if not array.size:
        return 0.0, None
    difference = differences(array, reference)
    if excused is not None:
        difference[excused] = 0.0
    index = np.unravel_index(difference.argmax(), difference.shape)
    return float(difference[index]), tuple(int(i) for i in index)


def differences(array: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Absolute differences, entry by entry; inf where only one of the two is finite."""
    wide = in_double(array)
    with np.errstate(invalid="ignore"):
        difference = np.abs(wide - reference)
    difference = np.where(np.isnan(difference), np.inf, difference)
    difference[(wide == reference) | (np.isnan(wide) & np.isnan(reference))] = 0.0
    return difference


def largest_entry(array: np.ndarray) -> float:
    """The largest finite entry's absolute value."""
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def usual_entry(array: np.ndarray) -> float:
    """The usual size of an array's finite entries, 1 if there is none but 0: a mask may hold -inf."""
    finite = array[np.isfinite(array)]
    return float(np.sqrt(np.mean(np.abs(finite) ** 2))) or 1.0 if finite.size else 1.0
