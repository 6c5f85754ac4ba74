"""Is this gradient right, how exact, how fast, how big? A hand-written rule in front of its witnesses.

The witnesses answer for the same arguments and the same cotangent:

    manual           the function with the hand-written rule
    automatic        the same function without it, differentiated by JAX, in the same dtype
    reference        automatic in float64: its jaxpr with every float in float64, whatever casts it holds
    rule in float64  manual evaluated likewise: an error that is there, too, is a wrong formula, not rounding
    slopes           of automatic in float64, measured, or by forward mode where only reverse mode fails

Errors are in eps of the dtype times the reference's largest entry. A row is right when

    error(manual) <= max(2 * error(automatic), 16)

so that a rule may be as inexact as JAX's own, and a mistake of 0.03 % in float32 (2500 eps) cannot hide. Where
automatic itself is off by 3 % it is no measure, and the rule in float64 decides.
In bfloat16 and float16 a mistake could hide: there a second look asks the same question with the arguments in float32.
Where the terms of a sum cancel, eps of the result says nothing about rounding. So before a row is called wrong, the
reference is evaluated for cotangents with random signs too: the same terms, but not cancelling.
Where automatic is not finite, or has a kink, one-sided slopes decide: any value between them is right.
Where a loop ends at a tolerance, as a solver's does, it runs further in float64 before a row is called wrong.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._arguments import keeping_64_bits
from ._call import Call, is_inexact, outputs, pull_back, read_call, require_known, title, titles, words
from ._cost import Cost, measure
from ._double import run
from ._probes import probe_rows
from ._report import Comparison, Row
from ._rows import Wishes, failed, gradient_rows
from ._transforms import TRANSFORMS, determinism_row, transform_rows
from ._wide import Walk, without_rules
from ._witnesses import Functions, Look, ask


@keeping_64_bits
def compare(
    manual: Callable[..., Any],
    *args: Any,
    automatic: Callable[..., Any] | None = None,
    surrogate: Callable[..., Any] | None = None,
    cases: Iterable[Sequence[Any]] = (),
    argnums: int | Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    cotangent: Any = None,
    key: Any = None,
    limit: float | dict[str, float] | None = None,
    none_ok: str | Sequence[str] = (),
    transforms: Sequence[str] = TRANSFORMS,
    probe: bool = True,
    finite_difference: bool = True,
    time: bool = True,
    memory: bool = True,
    keywords: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Comparison:
    """Compare a function's hand-written gradient with the automatic one, and both with float64.

    For a cotangent c, each argument's gradient is `J^T c`. Its error is
    `max|manual - reference| / (eps * max|reference|)`, and it is right when that is at most
    `max(2 * error(automatic), 16)`. The reference is `automatic` in float64, and eps that of the arguments' dtype.

    Args:
        manual: the function with the rule: a `jax.custom_vjp`, or anything that calls one.
        *args: its arguments, pytrees of arrays of any shape. Floating arrays and Python floats are differentiated.
            Arrays of integers, and anything that is no number, are passed through.
        automatic: the same function without the rule. By default every custom rule in `manual`, at any depth (jit,
            checkpoint, loops, methods), is replaced by its plain function; Pallas kernels run block by block.
        surrogate: for rules that are wrong on purpose (straight-through, clipping, reversal): a function whose
            gradient `manual` is meant to have. The values are still compared with the plain function's; second order
            is left out.
        cases: further argument tuples, compared like `args` (or in place of them): sizes just below, at and above a
            tile's, batch 1 and many, rows that are masked, arguments left out. A failing row names its case.
        argnums: which positional arguments to differentiate; by default all that hold floats, keywords included.
        names: a name for each of `args`; by default those of the signature.
        cotangent: what to pull back, a pytree like the output; by default normally distributed.
        key: a JAX key or an int, from which all that is random here is drawn; by default 0.
        limit: the largest error in eps that passes, for all rows or as `{argument: eps}`; "forward" names the value.
        none_ok: arguments for which the rule may return None or zeros.
        transforms: what to repeat the comparison under: "jit", "vmap", "second" (second order: the derivative of the
            gradient), "unused" (each output unused), "constant" (each argument constant), "twice" (one jitted function
            called with other arguments differentiated). With more than one device "jit" is repeated on sharded arrays.
        probe: compare at zeros, ones, equal entries, large and small ones and negative zeros, too, where the plain
            function's gradient is finite.
        finite_difference: measure slopes too, so that a mistake shared by both rules is found.
        time: measure the time of both. It never decides the verdict.
        memory: measure what is kept for the backward pass, and temporary bytes.
        keywords: keyword arguments for both functions, those that have the names of compare's own included.
        **kwargs: the same, for all other names.

    Returns:
        A `Comparison`: print it, ask `.ok`, `.rows`, `.to_dict()`, call `.check()` or `.plot(argument)`.
        What a function raises while it runs becomes a row of the report.

    Raises:
        TypeError: if `manual` has no rule and `automatic` is missing, if an argument cannot be differentiated, if a
            keyword is neither compare's nor the function's, or when called under a JAX transformation.
        ValueError: if `argnums`, `names`, `cotangent`, `transforms`, `limit` or `none_ok` do not fit the call.

    Example:
        >>> import jax, jax.numpy as jnp, jaxbp
        >>> @jax.custom_vjp
        ... def scaled(x, w):
        ...     return x * w
        >>> def backward(kept, delta):
        ...     x, w = kept
        ...     return delta * w, 1.001 * delta * x
        >>> scaled.defvjp(lambda x, w: (x * w, (x, w)), backward)
        >>> report = jaxbp.compare(scaled, jnp.arange(6.0), jnp.ones(6), time=False)
        >>> [(row.name, row.hint) for row in report.rows if not row.ok][0]
        ('w', 'manual = 1.001 x automatic')

    Source: the file jaxbp/_compare/__init__.py, which says what each error is measured against.
    """
    transforms = (transforms,) if isinstance(transforms, str) else tuple(transforms)
    if unknown := [name for name in transforms if name not in TRANSFORMS]:
        raise ValueError(f"compare: transforms={transforms} has {unknown}; known are {TRANSFORMS}")
    if automatic is not None and surrogate is not None:
        raise TypeError("compare: give automatic= or surrogate=, not both: a surrogate takes automatic's place")
    none_ok = (none_ok,) if isinstance(none_ok, str) else tuple(none_ok)
    kwargs = {**kwargs, **(keywords or {})}
    require_known(manual, kwargs)
    wishes = Wishes(limit, frozenset(none_ok), finite_difference and surrogate is None)

    def one(args: tuple, measured: bool) -> Comparison:
        functions, call, variables, fixed, notes = _read(manual, automatic, surrogate, args, kwargs, argnums, names)
        _require_arguments(call, wishes)
        options = _Options(wishes, transforms, probe, cotangent, time and measured, memory and measured)
        heads = titles(manual, surrogate or automatic, surrogate is not None)
        return _compare(heads, functions, call, variables, fixed, notes, options, _seed(key))

    listed = list(cases)
    if bad := [case for case in listed if not isinstance(case, tuple | list)]:
        raise TypeError(f"compare: cases has {bad[0]!r:.60}; each case is a tuple of arguments")
    if not listed:
        return one(args, True)
    reports = {}
    for case in [args, *map(tuple, listed)] if args else map(tuple, listed):
        reports[_shapes(case)] = one(case, not reports)
    return _together(reports)


def check_vjp(manual: Callable[..., Any], *args: Any, **keywords: Any) -> None:
    """Assert that a function's hand-written gradient is right: `compare` as one line of a test suite.

    Takes what `compare` takes, and measures neither time nor memory.

    Args:
        manual: the function with the rule.
        *args: its arguments.
        **keywords: those of `compare`; all others are passed to both functions.

    Raises:
        AssertionError: if a row is wrong, or nothing could check it; its text is the table.
        TypeError: as in `compare`.
        ValueError: as in `compare`.

    Example:
        >>> import jax.numpy as jnp, jaxbp
        >>> x, kernel = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 4))
        >>> jaxbp.check_vjp(jaxbp.conv, x, kernel, automatic=jaxbp.automatic.conv, strides=2)

    Source: as in `compare`.
    """
    compare(manual, *args, **{**keywords, "time": False, "memory": False}).check()


# One comparison


class _Options(NamedTuple):
    """What is asked for beside the gradients."""

    wishes: Wishes
    transforms: tuple[str, ...]
    probe: bool
    cotangent: Any
    time: bool
    memory: bool


def _compare(
    heads: tuple[str, str],
    functions: Functions,
    call: Call,
    variables: tuple,
    fixed: tuple,
    notes: tuple[str, ...],
    options: _Options,
    seed: Any,
) -> Comparison:
    """The report of one case."""
    # Other numbers than the user's own default_rng(seed) gives: a cotangent that is the argument hides mistakes.
    rng = np.random.default_rng([*np.atleast_1d(seed).tolist(), 1986])
    plain = run(functools.partial(outputs, call, functions.manual), variables, fixed)
    if isinstance(plain, Exception):
        return Comparison(*heads, (failed("forward", "forward", f"manual raised {words(plain)}"),))
    if not any(map(is_inexact, plain)):
        return Comparison(*heads, (failed("forward", "forward", "manual returns no floating array"),))
    look = ask(call, functions, variables, fixed, options.cotangent, plain, rng)
    if isinstance(look, str):
        return Comparison(*heads, (failed("forward", "forward", look),))
    rows = gradient_rows(look, options.cotangent, options.wishes, rng)
    if not isinstance(look.manual, Exception):
        rows.append(determinism_row(look))
    rows += transform_rows(look, options.transforms, rng, rows, options.wishes)
    if options.probe:
        skipped = {row.name for row in rows if not row.ok or row.manual_error is None}
        # Where automatic is the wrong one, probes would only say so again.
        skipped |= {row.name for row in rows if row.ok and not row.kink and (row.manual_error or 0) > (row.limit or 0)}
        limit = options.wishes.limit
        skipped |= set(call.names) if isinstance(limit, float | int) else set(limit or ())
        probed, more = probe_rows(look, skipped, rng)
        rows, notes = rows + probed, (*notes, *more)
    cost = Cost()
    if options.time or options.memory:
        pair = [
            lambda v, f, g=function: outputs(call, g, v, f)[0] for function in (functions.manual, functions.fallback)
        ]
        cost = measure(pair, variables, fixed, look.cotangents, timed=options.time, memory=options.memory)
    return Comparison(*heads, tuple(rows), cost, (*look.notes, *notes, *_blind_spots(look)), look.arrays())


def _read(
    manual: Any, automatic: Any, surrogate: Any, args: tuple, kwargs: dict, argnums: Any, names: Any
) -> tuple[Functions, Call, tuple, tuple, tuple[str, ...]]:
    """The functions and the call, its Python floats differentiated if the function can take them as arrays."""
    given = surrogate or automatic
    read = functools.partial(read_call, (manual, given or manual), args, kwargs, argnums, names)
    call, variables, fixed = read()
    notes: tuple[str, ...] = ()
    if call.numbers and _raised(manual, call, variables, fixed):
        floats = [call.names[at] for at in call.numbers]
        try:
            other = read(plain_numbers=True)
        except TypeError:  # nothing but numbers
            other = None
        if other is not None and not _raised(manual, *other):
            call, variables, fixed = other
            notes = (f"{', '.join(floats)}: Python floats that the function needs as they are, so not differentiated",)
    return _functions(manual, automatic, surrogate, call, variables, fixed), call, variables, fixed, notes


def _raised(manual: Any, call: Call, variables: tuple, fixed: tuple) -> Exception | None:
    """What the rule raises, run once in both directions."""
    plain = run(functools.partial(outputs, call, manual), variables, fixed)
    if isinstance(plain, Exception):
        return plain
    cotangents = [jnp.ones_like(value) for value in plain if is_inexact(value)]
    found = run(functools.partial(pull_back, call, manual), variables, fixed, cotangents)
    return found if isinstance(found, Exception) else None


def _functions(manual: Any, automatic: Any, surrogate: Any, call: Call, variables: tuple, fixed: tuple) -> Functions:
    """The function without its rule: the given one, or the rule's own code, whichever JAX can differentiate."""

    def differentiates(function: Any) -> bool:
        def both(variables: tuple, fixed: tuple) -> Any:
            cotangents = [jnp.ones_like(value) for value in outputs(call, function, variables, fixed)[0]]
            return pull_back(call, function, variables, fixed, cotangents)

        try:
            jax.eval_shape(both, variables, fixed)
        except Exception:  # whatever a user's function raises
            return False
        return True

    if automatic is not None:
        inside = without_rules(automatic)
        better = inside if not differentiates(automatic) and differentiates(inside) else automatic
        return Functions(manual, better, automatic)
    walk = Walk()
    stripped, decorated = without_rules(manual, walk), _undecorated(manual)
    try:
        jax.eval_shape(functools.partial(outputs, call, stripped), variables, fixed)
        traced = True
    except Exception:  # a function that needs concrete values, or fails: its own row says so
        traced = False
    if not traced or not walk.rules:
        stripped = decorated
    if stripped is None and (surrogate is None or not traced):
        if not traced and _raised(manual, call, variables, fixed):
            return Functions(manual, manual, manual)
        raise TypeError(
            f"compare: {title(manual)} is no jax.custom_vjp function and calls none, so there is nothing to "
            "compare it with. Pass automatic=, a function of the same arguments that JAX differentiates "
            "(for jaxbp.conv that is automatic=jaxbp.automatic.conv)."
        )
    plain = manual if stripped is None else stripped
    if surrogate is not None:
        meant = _with_gradient_of(plain, surrogate)
        return Functions(manual, meant, meant, surrogate)
    if decorated is not None and not differentiates(plain) and differentiates(decorated):
        return Functions(manual, decorated, decorated)
    return Functions(manual, plain, plain if decorated is None else decorated)


def _with_gradient_of(plain: Callable[..., Any], surrogate: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the values of one function and the gradient of another."""

    def leaf(value: Any, other: Any) -> Any:
        return other + jax.lax.stop_gradient(value - other) if is_inexact(jnp.asarray(value)) else value

    return lambda *args, **kwargs: jax.tree.map(leaf, plain(*args, **kwargs), surrogate(*args, **kwargs))


def _undecorated(manual: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function that jax.custom_vjp (under any jit or wraps) decorated, if there is one."""
    if isinstance(manual, functools.partial):
        inside = _undecorated(manual.func)
        return None if inside is None else functools.partial(inside, *manual.args, **manual.keywords)
    function: Any = manual
    while not isinstance(function, jax.custom_vjp | jax.custom_jvp) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function.__wrapped__ if isinstance(function, jax.custom_vjp | jax.custom_jvp) else None


def _require_arguments(call: Call, wishes: Wishes) -> None:
    """Refuse names in limit and none_ok that are no argument's."""
    known = [*dict.fromkeys((*call.arguments, *call.names))]
    for option, given, more in (
        ("limit", wishes.limit if isinstance(wishes.limit, dict) else (), ["forward"]),
        ("none_ok", wishes.none_ok, []),
    ):
        if unknown := [name for name in given if name not in (*known, *more)]:
            raise ValueError(f"compare: {option} names {unknown[0]!r}, but what is differentiated is {known}")


# Several cases


def _shapes(case: tuple) -> str:
    """A case in words: the shapes of its arrays."""
    texts = []
    for argument in case:
        leaves = [leaf for leaf in jax.tree.leaves(argument) if hasattr(leaf, "shape")]
        texts += [f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in leaves] or [repr(argument)[:30]]
    return ", ".join(texts)


def _together(reports: dict[str, Comparison]) -> Comparison:
    """One report on all cases: a row for each right one, the rows that failed of the others."""
    rows: list[Row] = []
    for number, (shapes, report) in enumerate(reports.items()):
        worst = max(report.rows, key=lambda row: row.manual_error or 0.0)
        case = Row(f"case {number}", "case", None, None, "ok" if report.ok else "WRONG", worst.manual_error)
        bad = [row for row in report.rows if not row.ok]
        if not report.ok:
            case = case._replace(verdict=next((row.verdict for row in bad if row.verdict == "WRONG"), "not checked"))
        rows.append(case._replace(automatic_error=worst.automatic_error, notes=(shapes,)))
        rows += [row._replace(name=f"case {number}: {row.name}") for row in bad]
    first = next(iter(reports.values()))
    # What one case cannot show another one may.
    every = [set(report.notes) for report in reports.values()]
    notes = tuple(note for note in first.notes if all(note in noted for noted in every))
    seen = dict.fromkeys(note for report in reports.values() for note in report.notes if "cannot show" not in note)
    shown = next((report for report in reports.values() if not report.ok), first)
    notes = (*(note for note in notes if "cannot show" in note), *seen)
    return Comparison(first.manual, first.automatic, tuple(rows), first.cost, notes, shown.gradients)


def _blind_spots(look: Look) -> tuple[str, ...]:
    """Axes of the output of one entry: a sum over one term is its only term."""
    notes = []
    for at, value in enumerate(look.cotangents):
        axes = [axis for axis in range(value.ndim - 1) if value.shape[axis] == 1]
        which = "the output" if len(look.cotangents) == 1 else f"output {at}"
        if axes:
            text = f"axis {axes[0]}" if len(axes) == 1 else f"axes {tuple(axes)}"
            notes.append(f"{text} of {which} has one entry: a missing sum over it cannot show")
    return tuple(notes)


def _seed(key: Any) -> Any:
    """What NumPy's generator is seeded with."""
    if key is None:
        return 0
    try:
        if isinstance(key, jax.Array | np.ndarray):
            return np.asarray(jax.random.key_data(key)).tolist()
        if (seed := operator.index(key)) >= 0:
            return seed
    except TypeError:
        pass
    raise TypeError(f"compare: key={key!r} must be a JAX key, or an integer that is not negative")
