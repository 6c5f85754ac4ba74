"""Arguments that people forget: zeros, ones, equal entries, large and small ones, negative zero."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._call import words
from ._double import Arrays, run
from ._judge import Judgement, differences, in_double, judge, largest_entry, usual_entry
from ._report import Row
from ._slopes import between_the_slopes
from ._witnesses import Look, natural_sizes

# Relative to the largest entry, in the rule's own dtype and in float64: what no rounding explains.
_GROSS = 1e-3


def _probe(name: str, variable: Any) -> Any:
    """An argument of the same shape and dtype with the probe's values."""
    values = {
        "zeros": jnp.zeros_like(variable),
        "ones": jnp.ones_like(variable),
        "equal entries": jnp.full_like(variable, usual_entry(in_double(variable))),
        "large": variable * jnp.asarray(1000, variable.dtype),
        "small": variable * jnp.asarray(1e-3, variable.dtype),
        "negative zero": jnp.full_like(variable, -0.0),
    }
    return values[name]


PROBES = ("zeros", "ones", "equal entries", "large", "small", "negative zero")


def probe_rows(look: Look, skipped: set[str], rng: np.random.Generator) -> tuple[list[Row], tuple[str, ...]]:
    """One row for each probe, and notes; `skipped` are the gradients that are not judged."""
    if isinstance(look.manual, Exception):
        return [], ()
    walks = [double.wide.walk for double in (look.forward, look.rule(), look.pull) if double.wide is not None]
    if any(walk.searching for walk in walks):
        return [], ("no probes: a loop ends when its numbers say so, and for other arguments it might not",)
    if isinstance(look.pull.first, Exception) or not look.pull.exact:
        return [], ("no probes: automatic has no gradient in float64",)
    programs: list[Any] = list(map(jax.jit, look.backward[:2]))
    if isinstance(run(programs[0], *look.operands), Exception):
        programs = look.backward[:2]
    rows = []
    for name in PROBES:
        row = Row(name, "probe", None, None, "ok")
        for at, argument in enumerate(look.call.names):
            if not look.variables[at].size:
                continue
            variables = (*look.variables[:at], _probe(name, look.variables[at]), *look.variables[at + 1 :])
            problem = _problem(look._replace(variables=variables), programs, skipped, rng)
            if problem:
                hint, found, wanted = problem
                row = row._replace(
                    verdict="WRONG",
                    hint=f"where {argument} is {_in_words(name)}: {hint}",
                    index=found.index,
                    manual_value=None if found.index is None else found.manual[found.index].item(),
                    reference_value=None if found.index is None else wanted[found.index].item(),
                )
                break
        rows.append(row)
    return rows, ()


def _in_words(name: str) -> str:
    """A probe as the end of "where x is"."""
    return {"zeros": "0", "ones": "1", "equal entries": "the same everywhere"}.get(name, name)


def _problem(
    look: Look, programs: list[Any], skipped: set[str], rng: np.random.Generator
) -> tuple[str, Judgement, np.ndarray] | None:
    """What is wrong at a probe, where the plain function's gradient is finite."""
    wanted, mine = look.pull(*look.operands), run(programs[0], *look.operands)
    if isinstance(wanted, Exception):
        return None
    theirs: Arrays | Exception | None = None
    sizes: list[float] | None = None
    for at, name in enumerate(look.call.names):
        if name in skipped:
            continue
        place, variable = look.first_gradient + at, look.variables[at]
        reference = in_double(wanted[place])
        found = Judgement(name, reference, None, reference)
        if isinstance(mine, Exception):
            return f"the rule raised {words(mine)}", found, reference
        finite = np.isfinite(reference)
        if mine[place].shape != reference.shape or not finite.any():
            continue
        clean = np.where(finite, mine[place], reference)
        close = judge(name, clean.astype(mine[place].dtype), None, reference, variable, lambda: 0.0)
        if close.ok:
            continue
        theirs = run(programs[1], *look.operands) if theirs is None else theirs
        if isinstance(theirs, Exception):
            return None
        broken = finite & ~np.isfinite(mine[place]) & np.isfinite(theirs[place])
        if broken.any():
            index = tuple(int(i) for i in np.argwhere(broken)[0])
            text = f"the gradient of {name} is not finite, and automatic's is"
            return text, found._replace(manual=mine[place], index=index), reference
        sizes = natural_sizes(look.pull, look.operands, rng) if sizes is None else sizes
        # Where all terms cancel, whatever delta is, what is left is rounding.
        usual = 0.0 if isinstance(look.reference, Exception) else largest_entry(in_double(look.reference[place]))
        size = max([largest_entry(reference), 1e-9 * usual, *(sizes[place : place + 1])])
        if hint := _wrong_formula(look, at, mine[place], in_double(theirs[place]), reference, size):
            return hint
    return None


def _wrong_formula(
    look: Look, at: int, mine: np.ndarray, theirs: np.ndarray, reference: np.ndarray, size: float
) -> tuple[str, Judgement, np.ndarray] | None:
    """An error that is gross in the rule's own dtype and in float64, and that no kink explains."""
    rule = look.rule()
    precise = rule(*look.operands) if rule.exact else TypeError()
    if isinstance(precise, Exception) or not size:
        return None
    exact = in_double(precise[look.first_gradient + at])
    judged = np.isfinite(reference) & np.isfinite(exact)
    off = np.minimum(differences(exact, reference), differences(mine, reference))
    off = np.where(judged & (differences(theirs, reference) < off / 2), off, 0.0)
    if off.max(initial=0.0) <= _GROSS * size:
        return None
    found = Judgement(
        look.call.names[at], np.where(judged, exact, reference), None, reference, limit=1.0, unit=_GROSS * size
    )
    sides = between_the_slopes(look, at, found)
    if sides.refused is None:
        return None
    error = off[sides.refused] / size
    text = f"the gradient of {found.label} is wrong by {100 * error:.2g} %, in float64, too"
    return text, found._replace(index=sides.refused), reference
