"""Measured plans: which algorithm was found to be the fastest for a sum, on a machine. A file holds them.

The file is JSON: `version`, and `machines`, each with its facts and its `plans`. A plan names a sum, the algorithm that
is the fastest for it with all that are inside of it, and the one that the table would choose.

What is in use is part of the key of JAX's caches, as a user context: a program that was compiled with other plans is
compiled again. Of the three ways to say it, a block wins over `use_plans`, and that over the environment.
"""

import json
import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .._geometry import PoolProblem, Problem
from ._machine import Machine, machine
from ._row import INSIDE

VERSION = 1
VARIABLE = "JAXBP_PLANS"
# What is computed, in words: the sums of a convolution, and the maps of pools by their primitives' names.
TITLES = {
    "z": "forward",
    "x": "input gradient",
    "kernel": "kernel gradient",
    "max_pool": "max pool",
    "take_winners": "pixels that won",
    "upsample_winners": "gradient by winners",
    "upsample_chosen": "max pool gradient",
    "unpool_winners": "max unpool",
    "window_sum": "sum pool",
    "upsample_evenly": "sum pool gradient",
}
# That the environment decides.
UNSAID = "the environment"
File = str | os.PathLike[str]


class Measured(NamedTuple):
    """A sum's fastest plan and the table's choice, by name, and milliseconds of both."""

    plan: str
    table: str
    plan_ms: float
    table_ms: float


class Plans:
    """All plans of a file; equal where the files' contents are."""

    def __init__(self, file: File, text: str):
        self.file, self.text = os.fspath(file), text
        self.machines = {of: dict(entries(entry["plans"])) for of, entry in machines_of(self.file, text).items()}
        self.warned = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plans) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Plans({self.file!r})"

    def find(self, p: Problem | PoolProblem, known: Collection[str]) -> Measured | None:
        """What was measured of a sum on this machine, of plans that are made of known algorithms."""
        if not self.warned and not any(self._fits(of, known) for of in self.machines):
            self.warned = True
            warnings.warn(_no_plan_fits(self.file, machine(p.platform), self.machines), stacklevel=2)
        here = machine(p.platform)
        found = None if here is None else self.machines.get(here, {}).get(key(describe(p)))
        return found if found is not None and is_known(found.plan, known) else None

    def _fits(self, of: Machine, known: Collection[str]) -> bool:
        """Whether plans for a machine can be used on this one."""
        return of == machine(of.platform) and any(is_known(one.plan, known) for one in self.machines[of].values())


_in_use = jax.make_user_context(UNSAID)


def in_use() -> Plans | None:
    """The plans of the innermost block, of `use_plans`, or of the environment."""
    said = _in_use.value
    return _of_environment() if isinstance(said, str) else said


def use(plans: Plans | None) -> None:
    """Take these plans from now on, in every thread."""
    _in_use.set_global(plans)


@contextmanager
def using(plans: Any) -> Iterator[None]:
    """Take these plans inside the block, in this thread."""
    with _in_use(plans):
        yield


@lru_cache
def _of_environment() -> Plans | None:
    """The plans that the environment names, read once."""
    file = os.environ.get(VARIABLE)
    if not file:
        return None
    if not os.path.exists(file):
        raise FileNotFoundError(f"{VARIABLE}={file}: there is no such file; `python -m jaxbp tune` writes one")
    return load(file)


def load(file: File) -> Plans:
    """The plans of a file."""
    require_path(file)
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{os.fspath(file)}: there is no such file of plans; `jaxbp.tune` writes one") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{os.fspath(file)} is a folder; give the path of a file of plans in it") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(file)} is no file of plans: {error}") from None
    return Plans(file, text)


def require_path(file: Any) -> None:
    """Refuse what is no path."""
    if not isinstance(file, str | os.PathLike):
        raise TypeError(f"plans: file must be the path of a file, but got {type(file).__name__} {file!r}")


def machines_of(file: File, text: str) -> dict[Machine, dict[str, Any]]:
    """The machines of a file of plans, each with its part of the file; a broken or newer file is refused."""
    name = os.fspath(file)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is no file of plans: {error}") from None
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{name} is no file of plans: it has no version; a file that jaxbp wrote has {VERSION}")
    if version > VERSION:
        raise ValueError(
            f"{name} has version {version}, but this jaxbp reads files of plans up to version {VERSION}: "
            "install a newer jaxbp, or give another file"
        )
    try:
        found = {}
        for entry in content["machines"]:
            for _ in entries(entry["plans"]):
                pass
            found[Machine(*(entry[name] for name in Machine._fields))] = entry
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{name} is no file of plans: {type(error).__name__} {error} in its machines") from None
    return found


def entries(plans: Any) -> Iterator[tuple[str, Measured]]:
    """The plans of one machine by the keys of their sums."""
    for entry in plans:
        of, plan, table = key(dict(entry["sum"])), entry["plan"], entry["table"]
        if not (isinstance(plan, str) and isinstance(table, str)):
            raise TypeError(f"of a plan's name, {plan!r} or {table!r}")
        yield of, Measured(plan, table, float(entry["plan_ms"]), float(entry["table_ms"]))


def is_known(plan: str, known: Collection[str]) -> bool:
    """Whether a plan is made of known algorithms."""
    return set(plan.split(INSIDE)) <= set(known)


def key(description: dict[str, Any]) -> str:
    """One text for each sum, whatever the order in which a file describes it."""
    return json.dumps(description, sort_keys=True)


def describe(p: Problem | PoolProblem) -> dict[str, Any]:
    """A problem in words that JSON has; what most do not have is left out."""
    pool = isinstance(p, PoolProblem)
    w = p.window if pool else p.geometry.window
    ones = (1,) * w.rank
    said: dict[str, Any] = {"sum": TITLES[p.out], "batch": p.batch, "dtype": np.dtype(p.dtype).name}
    said |= {"input": w.input_shape, "window": w.window_shape, "padding": w.padding, "output": w.output_shape}
    unusual: dict[str, tuple[Any, Any]] = {"strides": (w.strides, ones), "dilation": (w.dilation, ones)}
    if pool:
        said["channels"] = p.channels
    else:
        g, wide = p.geometry, p.geometry.preferred_element_type
        said["channels"], said["features"] = (p.features, p.channels) if p.out == "x" else (p.channels, p.features)
        unusual |= {
            "input dilation": (w.input_dilation, ones),
            "groups": (g.feature_group_count, 1),
            "members": (p.members, 1),
            "precision": (None if g.precision is None else str(g.precision), None),
            "result": (None if wide is None else np.dtype(wide).name, None),
        }
    return said | {name: value for name, (value, usual) in unusual.items() if value != usual}


def _no_plan_fits(file: str, here: Machine | None, others: Any) -> str:
    """The warning."""
    known = "; ".join(", ".join(str(fact) for fact in of if fact != "") for of in others) or "no machine at all"
    mine = ", ".join(str(fact) for fact in here or () if fact != "")
    return f"{file}: none of its plans is for this machine ({mine}), so the tables choose; it has plans for {known}"
