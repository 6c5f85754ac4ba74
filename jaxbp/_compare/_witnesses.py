"""The witnesses of a comparison: one call run in several ways, and how far the results lie apart."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._cost import in_one_line

Arrays = list[np.ndarray]

# eps that a rule may be off by, whatever the automatic rule does.
FLOOR = 16.0


class Call(NamedTuple):
    """How the function under test is called.

    `leaves` are the leaves of (args, kwargs) with None where an array is put in: at `variable_at` the
    differentiated ones, whose names are `names`, and at `fixed_at` the others.
    """

    treedef: Any
    leaves: tuple
    variable_at: tuple[int, ...]
    fixed_at: tuple[int, ...]
    names: tuple[str, ...]


def is_inexact(array: Any) -> bool:
    """True for floating and complex arrays, PRNG keys and plain Python numbers excluded."""
    return hasattr(array, "dtype") and jnp.issubdtype(array.dtype, jnp.inexact)


def outputs(call: Call, function: Callable, variables: Sequence, fixed: Sequence) -> tuple[list, list]:
    """The function's output leaves: those that have a gradient, and the others."""
    leaves = list(call.leaves)
    for at, leaf in zip(call.variable_at + call.fixed_at, (*variables, *fixed), strict=True):
        leaves[at] = leaf
    args, kwargs = jax.tree.unflatten(call.treedef, leaves)
    results = [jnp.asarray(leaf) for leaf in jax.tree.leaves(function(*args, **kwargs))]
    return [leaf for leaf in results if is_inexact(leaf)], [leaf for leaf in results if not is_inexact(leaf)]


def pull_back(call: Call, function: Callable, variables: tuple, fixed: tuple, cotangents: Sequence):
    """(values under differentiation, gradients of the variables)."""
    values, pull, others = jax.vjp(lambda *v: outputs(call, function, v, fixed), *variables, has_aux=True)
    gradients = pull([c.astype(value.dtype) for c, value in zip(cotangents, values, strict=True)])
    return values + others, list(gradients)


def second_order(call: Call, function: Callable, variables: tuple, fixed: tuple, cotangents, tangents) -> list:
    """How the gradients change along the tangents: forward over reverse."""
    tangents = tuple(t.astype(v.dtype) for t, v in zip(tangents, variables, strict=True))
    return jax.jvp(lambda *v: pull_back(call, function, v, fixed, cotangents)[1], variables, tangents)[1]


def second_order_reverse(call: Call, function: Callable, variables, fixed, cotangents, tangents) -> list:
    """The same by reverse over reverse: a matrix of second derivatives is symmetric."""
    tangents = [t.astype(v.dtype) for t, v in zip(tangents, variables, strict=True)]
    _, pull = jax.vjp(lambda *v: pull_back(call, function, v, fixed, cotangents)[1], *variables)
    return list(pull(tangents))


def run(program: Callable, *operands: Any, double: bool = False) -> Arrays | Exception:
    """The program's results as NumPy arrays, or what it raised; with `double` in float64."""
    try:
        with jax.enable_x64(True) if double else contextlib.nullcontext():
            operands = jax.tree.map(lambda leaf: widen(leaf, 8), operands) if double else operands
            return [np.asarray(leaf) for leaf in jax.tree.leaves(program(*operands))]
    except Exception as error:  # whatever a rule under test raises belongs into the report
        return error


def widen(leaf: Any, size: int) -> Any:
    """An inexact array with at least `size` bytes for each real number; anything else as it is."""
    if not is_inexact(leaf):
        return leaf
    bits = 16 * size if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 8 * size
    dtype = np.dtype(f"complex{bits}" if bits > 8 * size else f"float{bits}")
    return jnp.asarray(leaf if leaf.dtype.itemsize >= dtype.itemsize else np.asarray(leaf).astype(dtype))


def in_double(array: Any) -> np.ndarray:
    """A NumPy array in double precision."""
    array = np.asarray(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


class Judgement(NamedTuple):
    """How far one manual array is from the reference, in eps, and what it may be."""

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


def judge(
    label: str,
    manual: np.ndarray,
    automatic: np.ndarray | None,
    reference: np.ndarray | None,
    expected: Any,
    size: Callable[[], float],
) -> Judgement:
    """Judge one array. `expected` has its shape and dtype, `size()` is its size if nothing cancelled."""
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
        limit = max(2 * (other or 0.0), FLOOR)
        other = np.inf if excused is not None and excused.any() else other
        return found._replace(
            ok=error <= limit, manual_error=error, automatic_error=other, limit=limit, unit=unit, index=index
        )

    first = measured(largest_entry(wide))
    return first if first.ok or distance == np.inf else measured(max(largest_entry(wide), size()))


def excess(judgement: Judgement) -> tuple[bool, float]:
    """How bad a judgement is, for choosing the worst."""
    error = judgement.manual_error
    return not judgement.ok, error / judgement.limit if judgement.limit else error


def _distance(
    array: np.ndarray, reference: np.ndarray, excused: np.ndarray | None
) -> tuple[float, tuple[int, ...] | None]:
    """The largest absolute difference and where it is; inf where only one of the two is finite."""
    if not array.size:
        return 0.0, None
    wide = in_double(array)
    with np.errstate(invalid="ignore"):
        difference = np.abs(wide - reference)
    difference = np.where(np.isnan(difference), np.inf, difference)
    difference[(wide == reference) | (np.isnan(wide) & np.isnan(reference))] = 0.0
    if excused is not None:
        difference[excused] = 0.0
    index = np.unravel_index(difference.argmax(), difference.shape)
    return float(difference[index]), tuple(int(i) for i in index)


def largest_entry(array: np.ndarray) -> float:
    """The largest finite entry's absolute value."""
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


class Slope(NamedTuple):
    """A measured directional derivative, how unsmooth the function is there, and the noise of both."""

    value: float
    roughness: float
    noise: float


def slope(
    call: Call, function: Callable, operands: tuple, at: int, direction: np.ndarray, double: bool
) -> Slope | None:
    """The slope of sum(cotangents * outputs) as variable `at` moves along `direction`; None if not finite.

    Points at plus and minus h and h/2 give two central slopes D and two differences G of the one-sided
    slopes. Where the function is smooth, D(h) = D(h/2) and G(h) = 2 G(h/2) up to h^2. At or next to a kink
    (a tie of a max pool, relu at 0) they are not, and the slope says nothing.
    """
    variables, fixed, cotangents = operands
    step = 1e-5 if double else 1e-2
    middle, weights = in_double(variables[at]), [in_double(c) for c in cotangents]

    def values(t: float) -> Arrays | Exception:
        moved = middle + t * direction
        moved = moved if double else jnp.asarray(moved.astype(variables[at].dtype))
        program = functools.partial(outputs, call, function)
        results = run(program, (*variables[:at], moved, *variables[at + 1 :]), fixed, double=double)
        return results if isinstance(results, Exception) else [in_double(a) for a in results[: len(weights)]]

    center = values(0.0)
    if isinstance(center, Exception):
        return None

    def rise(t: float) -> np.ndarray:
        there = values(t)
        if isinstance(there, Exception):
            return np.array([np.nan])
        parts = [np.real(c * (a - b)).ravel() for c, a, b in zip(weights, there, center, strict=True)]
        return np.concatenate(parts)

    with np.errstate(invalid="ignore", over="ignore"):
        up, down, half_up, half_down = (rise(s * step) for s in (1, -1, 0.5, -0.5))
        size = sum(float(np.sum(np.abs(c * a))) for c, a in zip(weights, center, strict=True))
        long, short = (up - down) / (2 * step), (half_up - half_down) / step
        gap, half_gap = (up + down) / step, 2 * (half_up + half_down) / step
        # Output by output, since two kinks can cancel in the sum and still leave the slope without a meaning.
        roughness = np.sum(np.abs(long - short) + np.abs(gap - 2 * half_gap))
    eps = 2.3e-16 if double else 1.2e-7
    found = Slope(float(np.sum(4 * short - long)) / 3, float(roughness), 4 * eps * size / step)
    return found if np.isfinite(found).all() else None


class Look(NamedTuple):
    """All witnesses at one set of arguments.

    Each is a list of arrays, values first and then gradients, or the exception that was raised; `plain` are
    lists of values alone, computed without differentiation. `problem` says why there are none.
    """

    call: Call
    manual_function: Callable
    automatic_function: Callable
    variables: tuple
    fixed: tuple
    cotangents: list
    plain_manual: Arrays
    plain_automatic: Arrays
    plain_reference: Arrays
    manual: Arrays | Exception
    automatic: Arrays | Exception
    reference: Arrays | Exception
    sizes: Callable[[], list[float]]
    notes: tuple[str, ...] = ()
    problem: str = ""

    @property
    def operands(self) -> tuple:
        """What a backward program is called with."""
        return self.variables, self.fixed, self.cotangents

    @property
    def first_gradient(self) -> int:
        """Where the gradients begin in a witness."""
        return len(self.plain_manual)

    def arrays(self) -> dict[str, tuple]:
        """name -> (manual, automatic, reference) gradients, None for a missing one."""
        witnesses = (self.manual, self.automatic, self.reference)
        return {
            name: tuple(None if isinstance(w, Exception) else w[self.first_gradient + at] for w in witnesses)
            for at, name in enumerate(self.call.names)
        }


def ask(
    call: Call,
    manual: Callable,
    automatic: Callable,
    variables: tuple,
    fixed: tuple,
    cotangent: Any,
    plain: Arrays,
    rng: np.random.Generator,
) -> Look:
    """Ask all witnesses; `plain` is what manual returns without differentiation."""
    cotangents = draw_cotangents(plain, cotangent, rng)
    forward, backward = (
        functools.partial(outputs, call, automatic),
        functools.partial(pull_back, call, automatic),
    )
    operands = (variables, fixed, cotangents)
    functions = (call, manual, automatic)
    notes = []
    theirs = run(forward, variables, fixed)
    if isinstance(theirs, Exception):
        problem = f"automatic raised {words(theirs)}"
    elif [a.shape for a in plain] != [a.shape for a in theirs]:
        problem = f"manual returns shapes {[a.shape for a in plain]}, automatic {[a.shape for a in theirs]}"
    else:
        problem = ""
    if problem or isinstance(theirs, Exception):
        return Look(*functions, *operands, plain, plain, plain, [], [], [], list, (), problem)
    precise = run(forward, variables, fixed, double=True)
    if isinstance(precise, Exception):
        notes.append(f"automatic does not run in float64 ({words(precise)}): its own dtype is the reference")
        precise = theirs
    elif any(is_inexact(a) and a.dtype.itemsize < 8 for a in precise):
        notes.append("automatic returns less than float64 for float64 arguments: the reference may be inexact")
    automatic_result = run(backward, *operands)
    if isinstance(automatic_result, Exception):
        notes.append(f"automatic has no gradient ({words(automatic_result)}): finite differences judge manual")
    reference = run(backward, *operands, double=True)
    if isinstance(reference, Exception):
        reference = automatic_result
    program = functools.partial(pull_back, call, manual)
    result, again = run(program, *operands), run(program, *operands)
    if not isinstance(result, Exception) and not isinstance(again, Exception):
        for name, one, other in zip(call.names, result[len(plain) :], again[len(plain) :], strict=True):
            if one.tobytes() != other.tobytes():
                notes.append(f"{name}: two runs of manual differ, so the rule is not deterministic")

    @functools.cache
    def sizes() -> list[float]:
        gradients = natural_sizes(backward, operands, rng)
        return [*value_sizes(forward, operands, precise, rng), *gradients[len(plain) :]] if gradients else []

    return Look(
        *functions,
        *operands,
        plain,
        theirs,
        precise,
        result,
        automatic_result,
        reference,
        sizes,
        tuple(notes),
    )


def ask_in_float32(own: Look, cotangent: Any, rng: np.random.Generator) -> Look | None:
    """The same in float32 where an argument has less: rounding to bfloat16 hides a factor of 1.0003."""
    if all(variable.dtype.itemsize >= 4 for variable in own.variables):
        return None
    variables, fixed = (tuple(widen(leaf, 4) for leaf in part) for part in (own.variables, own.fixed))
    plain = run(functools.partial(outputs, own.call, own.manual_function), variables, fixed)
    if isinstance(plain, Exception) or [a.shape for a in plain] != [a.shape for a in own.plain_manual]:
        return None
    functions = own.manual_function, own.automatic_function
    look = ask(own.call, *functions, variables, fixed, cotangent, plain, rng)
    return None if look.problem or isinstance(look.manual, Exception) else look


def natural_sizes(program: Callable, operands: tuple, rng: np.random.Generator) -> list[float]:
    """The largest entries of the reference when what it is linear in has random signs: nothing cancels."""
    variables, fixed, *linear = operands
    largest: list[float] = []
    for _ in range(3):
        signed = [[c * jnp.asarray(_signs(rng, c).astype(c.dtype)) for c in part] for part in linear]
        results = run(program, variables, fixed, *signed, double=True)
        if isinstance(results, Exception):
            return []
        largest = [
            max(pair) for pair in zip(map(largest_entry, results), largest or map(largest_entry, results), strict=True)
        ]
    return largest


def value_sizes(program: Callable, operands: tuple, values: Arrays, rng: np.random.Generator) -> list[float]:
    """How far the values move for each eps by which the arguments move: their size where terms cancel."""
    variables, fixed, _ = operands
    step = 1e-6
    moved = tuple(in_double(v) * (1 + step * _signs(rng, v)) for v in variables)
    results = run(program, moved, fixed, double=True)
    if isinstance(results, Exception):
        return [0.0] * len(values)
    return [
        largest_entry((in_double(a) - in_double(b)) / step) if is_inexact(a) else 0.0
        for a, b in zip(results, values, strict=True)
    ]


def natural_size(sizes: Callable[[], list[float]], at: int) -> float:
    """One of the sizes, 0 if they could not be had."""
    known = sizes()
    return known[at] if known else 0.0


def _signs(rng: np.random.Generator, like: Any) -> np.ndarray:
    """Plus and minus ones."""
    return rng.choice([-1.0, 1.0], like.shape)


def draw_cotangents(values: Arrays, cotangent: Any, rng: np.random.Generator) -> list:
    """One cotangent for each output that has a gradient, in its dtype."""
    inexact = [value for value in values if is_inexact(value)]
    if cotangent is None:
        return [jnp.asarray(normal(rng, value).astype(value.dtype)) for value in inexact]
    given = [leaf for leaf in jax.tree.leaves(cotangent) if is_inexact(leaf)]
    if (shapes := [np.shape(leaf) for leaf in given]) != (wanted := [value.shape for value in inexact]):
        raise ValueError(f"compare: cotangent has arrays of shapes {shapes}, but the output has {wanted}")
    return [jnp.asarray(np.asarray(leaf).astype(value.dtype)) for leaf, value in zip(given, inexact, strict=True)]


def normal(rng: np.random.Generator, like: Any) -> np.ndarray:
    """Normally distributed numbers in double precision."""
    values = rng.standard_normal(like.shape)
    is_complex = jnp.issubdtype(like.dtype, jnp.complexfloating)
    return values + 1j * rng.standard_normal(like.shape) if is_complex else values


def words(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {in_one_line(error)}"
