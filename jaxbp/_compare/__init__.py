"""Is this gradient right, how exact, how fast, how big? A hand-written rule in front of its witnesses.

Four witnesses answer for the same arguments and the same cotangent:

    manual           the function with the hand-written rule
    automatic        the same function differentiated by JAX, in the same dtype
    reference        automatic in float64
    finite diff.     the measured slope of automatic in float64, along one random direction per argument

Errors are in eps of the dtype times the reference's largest entry. A row is right when

    error(manual) <= max(2 * error(automatic), 16)

so that a rule may be as inexact as JAX's own, and a mistake of 0.03 % in float32 (2500 eps) cannot hide.
In bfloat16 and float16 it could: there a second look asks the same question with the arguments in float32.
Where the terms of a sum cancel, eps of the result says nothing about rounding. So before a row is called
wrong, the reference is evaluated for cotangents with random signs too: the same terms, but not cancelling.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._arguments import keeping_64_bits
from ._cost import Cost, measure
from ._report import Comparison
from ._rows import failed, gradient_rows, transform_rows
from ._witnesses import Call, ask, is_inexact, outputs, run, words

TRANSFORMS = ("jit", "vmap", "second")


@keeping_64_bits
def compare(
    manual: Callable[..., Any],
    *args: Any,
    automatic: Callable[..., Any] | None = None,
    argnums: int | Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    cotangent: Any = None,
    key: Any = None,
    transforms: Sequence[str] = TRANSFORMS,
    finite_difference: bool = True,
    time: bool = True,
    memory: bool = True,
    **kwargs: Any,
) -> Comparison:
    """Compare a function's hand-written gradient with the automatic one, and both with float64.

    For a cotangent c, each argument's gradient is `J^T c`. Its error is
    `max|manual - reference| / (eps * max|reference|)`, and it is right when that is at most
    `max(2 * error(automatic), 16)`, the reference being `automatic` in float64.

    Args:
        manual: the function with the rule: a `jax.custom_vjp`, or anything that calls one.
        *args: its arguments, pytrees of arrays of any shape. Arrays of integers, and anything that is no
            array, are passed through.
        automatic: the same function without the rule. By default the one that `jax.custom_vjp` decorated.
        argnums: which arguments to differentiate; by default all that hold floating arrays.
        names: a name for each of `args`; by default those of the signature.
        cotangent: what to pull back, a pytree like the output; by default normally distributed.
        key: a JAX key or an int: the seed of everything random here.
        transforms: which of "jit", "vmap", "second" (second order: the derivative of the gradient) to repeat
            the comparison under. With more than one device "jit" is repeated on sharded arrays.
        finite_difference: measure slopes too, so that a mistake shared by both rules is found.
        time: measure the time of both. It never decides the verdict.
        memory: measure what is kept for the backward pass, and temporary bytes.
        **kwargs: passed to both functions; arrays among them are not differentiated.

    Returns:
        A `Comparison`: print it, ask `.ok`, `.rows`, `.to_dict()`, call `.check()` or `.plot(argument)`.
        What a function raises while it runs becomes a row of the report.

    Raises:
        TypeError: if `automatic` is missing and `manual` does not wrap a function, if an argument cannot be
            differentiated, or when called under a JAX transformation.
        ValueError: if `argnums`, `names`, `cotangent` or `transforms` do not fit the call.

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

    Source: the error unit and the four witnesses are described at the top of this module.
    """
    transforms = (transforms,) if isinstance(transforms, str) else tuple(transforms)
    if unknown := [name for name in transforms if name not in TRANSFORMS]:
        raise ValueError(f"compare: transforms={transforms} has {unknown}; known are {TRANSFORMS}")
    seed = _seed(key)
    titles = _titles(manual, automatic)
    automatic = _undecorated(manual) if automatic is None else automatic
    call, variables, fixed = _read_call(manual, automatic, args, kwargs, argnums, names)
    rng = np.random.default_rng(seed)
    plain = run(functools.partial(outputs, call, manual), variables, fixed)
    if isinstance(plain, Exception):
        return Comparison(*titles, (failed("forward", "forward", f"manual raised {words(plain)}"),))
    if not any(map(is_inexact, plain)):
        return Comparison(*titles, (failed("forward", "forward", "manual returns no floating array"),))
    look = ask(call, manual, automatic, variables, fixed, cotangent, plain, rng)
    if look.problem:
        return Comparison(*titles, (failed("forward", "forward", look.problem),))
    rows = gradient_rows(look, cotangent, finite_difference, rng)
    rows += transform_rows(look, transforms, rng, rows)
    cost = Cost()
    if time or memory:
        pair = [lambda v, f, g=function: outputs(call, g, v, f)[0] for function in (manual, automatic)]
        cost = measure(pair, variables, fixed, look.cotangents, timed=time, memory=memory)
    return Comparison(*titles, tuple(rows), cost, look.notes, look.arrays())


def check_vjp(manual: Callable[..., Any], *args: Any, **keywords: Any) -> None:
    """Assert that a function's hand-written gradient is right: `compare` as one line of a test suite.

    Takes what `compare` takes, and measures neither time nor memory.

    Args:
        manual: the function with the rule.
        *args: its arguments.
        **keywords: `automatic`, `argnums`, `names`, `cotangent`, `key`, `transforms` and
            `finite_difference` as in `compare`; all others are passed to both functions.

    Raises:
        AssertionError: if a row is wrong; its text is the table.
        TypeError: as in `compare`.
        ValueError: as in `compare`.

    Example:
        >>> import jax.numpy as jnp, jaxbp
        >>> x, kernel = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 4))
        >>> jaxbp.check_vjp(jaxbp.conv, x, kernel, automatic=jaxbp.automatic.conv, strides=2)

    Source: as in `compare`.
    """
    compare(manual, *args, **{**keywords, "time": False, "memory": False}).check()


# Reading the call


def _undecorated(manual: Callable[..., Any]) -> Callable[..., Any]:
    """The function that jax.custom_vjp (under any jit or wraps) decorated."""
    if isinstance(manual, functools.partial):
        return functools.partial(_undecorated(manual.func), *manual.args, **manual.keywords)
    function: Any = manual
    while not isinstance(function, jax.custom_vjp | jax.custom_jvp) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    if not isinstance(function, jax.custom_vjp | jax.custom_jvp):
        raise TypeError(
            f"compare: {_title(manual)} is no jax.custom_vjp function and wraps none, so there is nothing to "
            "compare it with. Pass automatic=, a function of the same arguments that JAX differentiates "
            "(for jaxbp.conv that is automatic=jaxbp.automatic.conv)."
        )
    return function.__wrapped__


def _read_call(
    manual: Any, automatic: Any, args: tuple, kwargs: dict, argnums: Any, names: Any
) -> tuple[Call, tuple, tuple]:
    """Take the arguments apart: what is differentiated, what is held fixed, what is static."""
    asked = _asked(args, argnums)
    static, static_names = _nondiff(manual)
    wanted = set(range(len(args))) - static if asked is None else asked
    if names is not None and len(names) != len(args):
        raise ValueError(f"compare: names={tuple(names)} has {len(names)} entries for {len(args)} arguments")
    labels = _argument_names((manual, automatic), args) if names is None else list(names)
    paths, treedef = jax.tree.flatten_with_path((args, kwargs))
    leaves: list[Any] = [leaf for _, leaf in paths]
    variables, fixed, titles, differentiated = {}, {}, [], set()
    for place, (path, leaf) in enumerate(paths):
        number, name = (path[1].idx, None) if path[0].idx == 0 else (None, path[1].key)
        if isinstance(leaf, Tracer):
            raise TypeError("compare: an argument is a tracer; call compare outside of jit, grad and vmap")
        if asked is not None and number in asked and isinstance(leaf, float | complex):
            leaf = jnp.asarray(leaf)
        floating = isinstance(leaf, jax.Array | np.ndarray | np.generic) and is_inexact(leaf)
        if number in static or name in static_names or not (floating or isinstance(leaf, jax.Array)):
            continue
        leaves[place] = None
        if floating and number is not None and number in wanted:
            variables[place] = jnp.asarray(leaf)
            titles.append(labels[number] + jax.tree_util.keystr(path[2:]))
            differentiated.add(number)
        else:
            fixed[place] = jnp.asarray(leaf)
    for at in sorted((asked or set()) - differentiated):
        kind = f"{type(args[at]).__name__} {getattr(args[at], 'dtype', '')}".strip()
        raise TypeError(f"compare: argnums asks for argument {at} ({labels[at]}), a {kind} without a floating array")
    if not variables:
        raise TypeError("compare: no argument holds a floating array, so there is no gradient to compare")
    call = Call(treedef, tuple(leaves), tuple(variables), tuple(fixed), tuple(titles))
    return call, tuple(variables.values()), tuple(fixed.values())


def _asked(args: tuple, argnums: Any) -> set[int] | None:
    """argnums as a set of positions."""
    if argnums is None:
        return None
    try:
        asked = list(map(operator.index, argnums if isinstance(argnums, Iterable) else [argnums]))
    except TypeError:
        raise TypeError(f"compare: argnums={argnums!r} must be an integer or a sequence of integers") from None
    if bad := [at for at in asked if not -len(args) <= at < len(args)]:
        raise ValueError(f"compare: argnums={argnums} asks for {bad}, but there are {len(args)} arguments")
    return {at % len(args) for at in asked}


def _argument_names(functions: Sequence[Callable[..., Any]], args: tuple[Any, ...]) -> list[str]:
    """The positional arguments' names, from the first signature that has them."""
    names = [f"args[{at}]" for at in range(len(args))]
    for function in reversed(functions):
        plain = _parameters(function)
        names[: len(plain)] = plain[: len(names)]
    return names


def _parameters(function: Callable[..., Any]) -> list[str]:
    """The names of the parameters that can be given by position; none where the signature is not known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _nondiff(manual: Any) -> tuple[set[int], set[str]]:
    """The positions and names of the arguments that the rule takes as they are, whichever way they are given."""
    function, bound = manual, 0
    if isinstance(manual, functools.partial):
        function, bound = manual.func, len(manual.args)
    names, places = _parameters(function), getattr(function, "nondiff_argnums", ())
    return {at - bound for at in places}, {names[at] for at in places if at < len(names)}


def _titles(manual: Any, automatic: Any) -> tuple[str, str]:
    """Both functions' names, told apart."""
    one, other = _title(manual), "" if automatic is None else _title(automatic)
    if automatic is None:
        other = f"{one} without its rule"
    elif one == other:
        one, other = (f"{getattr(f, '__module__', '')}.{one}".lstrip(".") for f in (manual, automatic))
    return one, other


def _title(function: Any) -> str:
    """The function's name, for people."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", None) or type(function).__name__


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
