"""The witnesses of a comparison: one call run in several ways."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._call import Call, is_inexact, outputs, pull_back, push_forward, words
from ._double import Arrays, Double, run, widen
from ._judge import in_double, largest_entry, same_in_double

# Entries for which a gradient is put together from forward-mode slopes.
_MOST_TANGENTS = 4096


class Functions(NamedTuple):
    """The rule's function, the one without it, and what to call under x64 where its jaxpr does not do.

    A surrogate has the gradient that is meant, but not the values.
    """

    manual: Callable
    automatic: Callable
    fallback: Callable
    surrogate: Callable | None = None


class Look(NamedTuple):
    """All witnesses at one set of arguments.

    Each is a list of arrays, values first and then gradients, or the exception that was raised; `plain` are lists of
    values alone, computed without differentiation. `backward` are the programs of `functions`, made once, so that
    what JAX compiles of them is compiled once. `problem` says why there are none. `forward` and `pull` are the
    function and its gradient in float64, `sloped` what slopes are measured of, `rule` the same for the rule itself.
    """

    call: Call
    functions: Functions
    backward: list[Callable]
    variables: tuple
    fixed: tuple
    cotangents: list
    plain_manual: Arrays
    plain_automatic: Arrays
    plain_reference: Arrays
    manual: Arrays | Exception
    automatic: Arrays | Exception
    reference: Arrays | Exception
    forward: Double
    sloped: Double
    pull: Double
    rule: Callable[[], Double]
    sizes: Callable[[], list[float]]
    noise: Callable[[], list[float]]
    tangent: Callable[[], Double] | None = None
    differs: tuple[str, ...] = ()
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
    functions: Functions,
    variables: tuple,
    fixed: tuple,
    cotangent: Any,
    plain: Arrays,
    rng: np.random.Generator,
) -> Look | str:
    """Ask all witnesses; `plain` is what manual returns without differentiation. A string says why none can be had."""
    cotangents = draw_cotangents(plain, cotangent, rng)
    programs = [functools.partial(outputs, call, function) for function in functions[:3]]
    backward = [functools.partial(pull_back, call, function) for function in functions[:3]]
    operands = (variables, fixed, cotangents)
    theirs = run(programs[1], variables, fixed)
    if isinstance(theirs, Exception):
        return f"automatic raised {words(theirs)}"
    if [a.shape for a in plain] != [a.shape for a in theirs]:
        return f"manual returns shapes {[a.shape for a in plain]}, automatic {[a.shape for a in theirs]}"
    forward = Double(programs[1], (variables, fixed), programs[2])
    precise, notes = forward.first, []
    if isinstance(precise, Exception):
        notes.append(f"automatic does not run in float64 ({words(precise)}): its own dtype is the reference")
        precise = theirs
    elif forward.kept:
        notes.append(f"{', '.join(forward.kept)} cannot run in float64: there the reference is as exact as automatic")
    elif not forward.exact:
        notes.append("automatic returns less than float64 for float64 arguments: the reference may be inexact")
    automatic = run(backward[1], *operands)
    pull = Double(backward[1], operands, backward[2])
    reference, tangent = pull.first, None
    if isinstance(automatic, Exception):
        why, automatic = automatic, run(backward[2], *operands)
        tangent = functools.cache(lambda: _pushed(call, functions, operands))
        if isinstance(reference, Exception) and isinstance(automatic, Exception):
            reference = _by_forward_mode(tangent(), operands, precise)
            if isinstance(reference, Exception):
                notes.append(f"automatic has no gradient ({words(why)}): finite differences judge manual")
            else:
                notes.append(f"automatic has no reverse mode ({words(why)}): forward mode is the reference")
    if isinstance(reference, Exception):
        reference = automatic
    result, again = run(backward[0], *operands), run(backward[0], *operands)
    differs = []
    if not isinstance(result, Exception) and not isinstance(again, Exception):
        pairs = zip(call.names, result[len(plain) :], again[len(plain) :], strict=True)
        differs = [name for name, one, other in pairs if one.tobytes() != other.tobytes()]

    @functools.cache
    def sizes() -> list[float]:
        gradients = natural_sizes(pull, operands, rng)
        return [*value_sizes(forward, operands, precise, rng), *gradients[len(plain) :]] if gradients else []

    @functools.cache
    def noise() -> list[float]:
        exact = pull.exact or tangent is not None
        return [] if exact or isinstance(automatic, Exception) else _noise(backward[1], operands, automatic, rng)

    return Look(
        call,
        functions,
        backward,
        *operands,
        plain,
        theirs,
        precise,
        result,
        automatic,
        reference,
        forward,
        forward
        if functions.surrogate is None
        else Double(functools.partial(outputs, call, functions.surrogate), operands[:2]),
        pull,
        functools.cache(lambda: Double(backward[0], operands, _refuse)),
        sizes,
        noise,
        tangent,
        tuple(differs),
        tuple(notes),
    )


def _refuse(*operands: Any) -> Any:
    """A rule whose jaxpr cannot be evaluated in float64 is not called under x64: its code may write out dtypes."""
    raise TypeError("not in float64")


def ask_in_float32(own: Look, cotangent: Any, rng: np.random.Generator) -> Look | None:
    """The same in float32 where an argument has less: rounding to bfloat16 hides a factor of 1.0003."""
    if all(variable.dtype.itemsize >= 4 for variable in own.variables):
        return None
    variables, fixed = (tuple(widen(leaf, 4) for leaf in part) for part in (own.variables, own.fixed))
    plain = run(functools.partial(outputs, own.call, own.functions.manual), variables, fixed)
    if isinstance(plain, Exception) or [a.shape for a in plain] != [a.shape for a in own.plain_manual]:
        return None
    look = ask(own.call, own.functions, variables, fixed, cotangent, plain, rng)
    return None if isinstance(look, str) or isinstance(look.manual, Exception) else look


def right_when_run_further(look: Look, at: int) -> bool:
    """Whether a rule and its reference are the same in float64 once their loops have run further than asked for."""
    wide = look.forward.wide
    if wide is None or not wide.walk.searching:
        return False
    values = Double(functools.partial(outputs, look.call, look.functions.automatic), look.operands[:2], _refuse, True)
    rule = Double(look.backward[0], look.operands, _refuse, True)
    wanted = Double(look.backward[1], look.operands, _refuse, True).first
    if isinstance(wanted, Exception):
        wanted = _by_forward_mode(
            _pushed(look.call, look.functions, look.operands, True), look.operands, look.plain_reference
        )
    if isinstance(values.first, Exception) or isinstance(rule.first, Exception) or isinstance(wanted, Exception):
        return False
    # A loop that does something else than converge has other values then.
    near = [
        largest_entry(in_double(one) - in_double(other)) <= 1e-2 * largest_entry(in_double(other))
        for one, other in zip(values.first, look.plain_reference, strict=True)
    ]
    place = look.first_gradient + at
    return all(near) and same_in_double(rule.first[place], wanted[place], look.variables[at].dtype)


# Slopes by forward mode


def _pushed(call: Call, functions: Functions, operands: tuple, further: bool = False) -> Double:
    """The slope along tangents, by forward mode, in float64."""
    tangents = [jnp.zeros_like(v) for v in operands[0]]
    program = functools.partial(push_forward, call, functions.automatic)
    return Double(program, (*operands, tangents), _refuse, further)


def _by_forward_mode(pushed: Double, operands: tuple, values: Arrays) -> Arrays | Exception:
    """The values and a gradient put together from the slopes along each entry."""
    variables = operands[0]
    if pushed.wide is None or not pushed.exact:
        return pushed.problem or TypeError("no forward mode in float64")
    if sum(v.size for v in variables) > _MOST_TANGENTS:
        return ValueError("too many entries for forward mode")
    gradients = []
    for at, variable in enumerate(variables):
        is_complex = np.iscomplexobj(variable)
        gradient = np.zeros(variable.size, np.complex128 if is_complex else np.float64)
        for start in range(0, variable.size, 256):
            unit = np.eye(variable.size)[start : start + 256].reshape(-1, *variable.shape)
            repeated = _repeated(operands, len(unit))
            for factor in (1, 1j) if is_complex else (1,):
                still = [np.zeros((len(unit), *v.shape)) for v in variables]
                moved = [*still[:at], factor * unit, *still[at + 1 :]]
                slopes = pushed.many(*repeated, moved)
                if isinstance(slopes, Exception):
                    return slopes
                # The gradient g of a real sum is such that its slope along d is Re(g d).
                gradient[start : start + 256] += np.conj(factor) * slopes[0]
        gradients.append(gradient.reshape(variable.shape))
    return [*values, *gradients]


def _repeated(operands: Any, times: int) -> Any:
    """The operands, each with a new axis in front, floats in float64."""

    def repeat(leaf: Any) -> Any:
        if not is_inexact(leaf):
            return jnp.broadcast_to(leaf, (times, *leaf.shape))
        return np.broadcast_to(in_double(leaf), (times, *leaf.shape))

    return jax.tree.map(repeat, operands)


# How large entries are where nothing cancels, and how far rounding moves them


def natural_sizes(program: Callable, operands: tuple, rng: np.random.Generator) -> list[float]:
    """The largest entries of the reference when what it is linear in has random signs: nothing cancels."""
    variables, fixed, *linear = operands
    largest: list[float] = []
    for _ in range(3):
        signed = [[c * jnp.asarray(_signs(rng, c).astype(c.dtype)) for c in part] for part in linear]
        results = program(variables, fixed, *signed)
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
    results = program(moved, fixed)
    if isinstance(results, Exception):
        return [0.0] * len(values)
    return [
        largest_entry((in_double(a) - in_double(b)) / step) if is_inexact(a) else 0.0
        for a, b in zip(results, values, strict=True)
    ]


def _noise(program: Callable, operands: tuple, own: Arrays, rng: np.random.Generator) -> list[float]:
    """How far results move when they are computed otherwise: arguments moved by one eps, cotangents in two parts."""
    variables, fixed, cotangents = operands
    moved = [0.0] * len(own)

    def include(results: Arrays | Exception) -> None:
        if not isinstance(results, Exception):
            for at, (one, other) in enumerate(zip(results, own, strict=True)):
                if is_inexact(one):
                    moved[at] = max(moved[at], largest_entry(in_double(one) - in_double(other)))

    for _ in range(3):
        steps = [v * jnp.asarray(1 + float(jnp.finfo(v.dtype).eps) * _signs(rng, v), v.dtype) for v in variables]
        include(run(program, tuple(steps), fixed, cotangents))
        masks = [jnp.asarray(_signs(rng, c) > 0) for c in cotangents]
        parts = [
            run(program, variables, fixed, [jnp.where(m == side, c, 0) for m, c in zip(masks, cotangents, strict=True)])
            for side in (True, False)
        ]
        if not any(isinstance(part, Exception) for part in parts):
            sums: Any = [a + b if is_inexact(a) else a for a, b in zip(*parts, strict=True)]
            include([*own[: len(own) - len(variables)], *sums[len(own) - len(variables) :]])
    return moved


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
