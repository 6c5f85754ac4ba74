"""The three sums of a convolution as one JAX primitive.

`<delta, conv(x, kernel)>` is linear in x, in kernel and in delta. Give two of them, and the gradient with respect to
the third is one of three sums: the output, the gradient of the input, the gradient of the kernel. So the derivative
of a sum, and its transpose, are such sums again: the primitive is closed under differentiation, of any order.

A third operand has no part in the sum: it is computed first. So a network's backward pass finishes one layer after the
other, and holds the temporaries of one.

A `vmap` whose kernel is the same for all examples makes them one larger batch. Any other adds a mapped axis in front of
its operands: a *level*, which says of both operands whether they have that axis.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from . import _plan as plan
from ._arguments import full_width, wider
from ._batching import Levels, mapped_over
from ._geometry import ConvGeometry, Problem, is_static
from ._partition import Rule, Split, joined, on_devices, part_of_window, window_factors, window_sizes, with_halos

OPERANDS = {"z": ("x", "kernel"), "x": ("z", "kernel"), "kernel": ("x", "z")}


class Sum(NamedTuple):
    """Which of the three sums, of which convolution, over which mapped axes."""

    out: str
    geometry: ConvGeometry
    levels: Levels = ()


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """(N, *output, O) from x of (N, *spatial, C) and a kernel of (*window, C / groups, O)."""
    return conv_sum_p.bind(x, kernel, of=Sum("z", g))


def input_grad(delta: jax.Array, kernel: jax.Array, g: ConvGeometry, first: jax.Array | None = None) -> jax.Array:
    """(N, *spatial, C) from delta of (N, *output, O), in the kernel's dtype; computed once `first` is known."""
    # Sums of single pixels or within groups have no temporaries worth an order.
    gathers = g.feature_group_count == 1 and is_static(g.window.window_shape) and g.window.taps > 1
    waits = first is not None and gathers
    return conv_sum_p.bind(delta, kernel, *((first,) if waits else ()), of=Sum("x", g))


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """(*window, C / groups, O) from x of (N, *spatial, C) and delta of (N, *output, O), in x's dtype."""
    return conv_sum_p.bind(x, delta, of=Sum("kernel", g))


conv_sum_p = Primitive("conv_sum")


def _evaluate(a: jax.Array, b: jax.Array, *first: jax.Array, of: Sum, platform: str = "") -> jax.Array:
    """The sum by an algorithm of `_plan`, mapped over its levels."""
    with full_width((a, b)):
        aval = _abstract(jax.typeof(a), jax.typeof(b), of=of)
        if is_static(aval.shape) and 0 in (*a.shape, *b.shape, *aval.shape):
            return jnp.zeros(aval.shape, aval.dtype)
        if first and platform == "cpu" and jnp.issubdtype(b.dtype, jnp.floating):
            # Either operand will do; the smaller one costs less.
            a_is_smaller = math.prod(a.shape) < math.prod(b.shape) if is_static((*a.shape, *b.shape)) else False
            a, b = (plan.after(a, *first), b) if a_is_smaller else (a, plan.after(b, *first))
        chosen = plan.plan(problem_of(a, b, of, platform))
        run = functools.partial(plan.evaluate, chosen, dtype=aval.dtype)
        return mapped_over(run, of.levels, one_by_one=chosen.algorithm == plan.ONE_BY_ONE)(a, b)


def problem_of(a: Any, b: Any, of: Sum, platform: str) -> Problem:
    """What there is to choose an algorithm for, given the sum's operands or their shapes and dtypes."""
    sizes, a_shape, b_shape = _members(a, b, of.levels)
    members = math.prod(size for size, level in zip(sizes, of.levels, strict=True) if all(level))
    # Of a symbolic number there may be several.
    members = members if is_static([members]) else 2
    return plan.problem_of(of.out, of.geometry, a_shape, b_shape, wider(a.dtype, b.dtype), platform, members)


@functools.lru_cache(maxsize=4096)
def _compiled(of: Sum) -> Any:
    """The sum as a compiled function, for eager calls."""
    return jax.jit(functools.partial(conv_sum_p.bind, of=of))


def _impl(a: jax.Array, b: jax.Array, *first: jax.Array, of: Sum) -> jax.Array:
    """The sum called eagerly, where one is computed after the other anyway."""
    return _compiled(of)(a, b)


def _abstract(a: Any, b: Any, *first: Any, of: Sum) -> Any:
    """Shape and dtype of the sum, by arithmetic; it varies over the mesh axes over which its operands do."""
    g, (sizes, a_shape, b_shape) = of.geometry, _members(a, b, of.levels)
    w, groups, rank = g.window, g.feature_group_count, g.window.rank
    match of.out:
        case "z":
            shape, dtype = (a_shape[0], *w.output_shape, b_shape[-1]), g.preferred_element_type or a.dtype
        case "x":
            shape, dtype = (a_shape[0], *w.input_shape, b_shape[rank] * groups), b.dtype
        case _:
            shape, dtype = (*w.window_shape, a_shape[-1] // groups, b_shape[-1]), a.dtype
    shape = (*sizes, *shape)
    sharding = NamedSharding(a.sharding.mesh, PartitionSpec(*[None] * len(shape)))
    return a.update(shape=shape, dtype=jnp.dtype(dtype), weak_type=False, sharding=sharding)


def _derivative(primals: Sequence[Any], tangents: Sequence[Any], *, of: Sum) -> tuple[Any, Any]:
    """Linear in either operand."""
    a, b, *_ = primals
    da, db, *_ = tangents
    terms = [] if type(da) is ad.Zero else [conv_sum_p.bind(da, b, of=of)]
    terms += [] if type(db) is ad.Zero else [conv_sum_p.bind(a, db, of=of)]
    y = conv_sum_p.bind(*primals, of=of)
    return y, functools.reduce(ad.add_jaxvals, terms) if terms else ad.Zero(jax.typeof(y).to_tangent_aval())


def _transpose(cotangent: Any, *operands: Any, of: Sum) -> list[Any]:
    """The gradient of the operand that is not known: another of the three sums."""
    names = OPERANDS[of.out]
    gradients: list[Any] = [ad.Zero(o.aval) if ad.is_undefined_primal(o) else None for o in operands]
    unknown = next(i for i, operand in enumerate(operands) if ad.is_undefined_primal(operand))
    if type(cotangent) is ad.Zero or unknown == 2:
        return gradients
    known = {names[1 - unknown]: operands[1 - unknown], of.out: cotangent}
    mapped = {names[1 - unknown]: [level[1 - unknown] for level in of.levels], of.out: [True] * len(of.levels)}
    pair = OPERANDS[names[unknown]]
    levels = tuple(zip(mapped[pair[0]], mapped[pair[1]], strict=True))
    gradient = conv_sum_p.bind(known[pair[0]], known[pair[1]], of=Sum(names[unknown], of.geometry, levels))
    # Of an operand that all of a level share, the gradients add up.
    shared = tuple(i for i, level in enumerate(of.levels) if not level[unknown])
    gradients[unknown] = jnp.sum(gradient, axis=shared) if shared else gradient
    return gradients


def _batched(operands: Sequence[Any], axes: Sequence[int | None], *, of: Sum) -> tuple[Any, int | None]:
    """Examples join the batch where they share the kernel; else one level more."""
    a, b, *first = (o if axis is None else jnp.moveaxis(o, axis, 0) for o, axis in zip(operands, axes, strict=True))
    # Of what is only waited for, one example will do.
    first = [o if axis is None else o[0] for o, axis in zip(first, axes[2:], strict=True) if axis is None or len(o)]
    if axes[0] is axes[1] is None:
        return conv_sum_p.bind(a, b, *first, of=of), None
    if axes[1] is None and of.out != "kernel":
        maps = sum(mapped for mapped, _ in of.levels)
        examples, before, batch = a.shape[0], a.shape[1 : 1 + maps], a.shape[1 + maps]
        a = jnp.moveaxis(a, 0, maps).reshape(*before, math.prod((examples, batch)), *a.shape[2 + maps :])
        y, at = conv_sum_p.bind(a, b, *first, of=of), len(of.levels)
        return y.reshape(*y.shape[:at], examples, batch, *y.shape[at + 1 :]), at
    level = (axes[0] is not None, axes[1] is not None)
    return conv_sum_p.bind(a, b, *first, of=of._replace(levels=(level, *of.levels))), 0


def _rule(*avals: Any, of: Sum) -> Rule | None:
    """The sum's factors: levels l, batch n, spatial axes s, taps t, groups g, a group's channels i and features o."""
    (a, b, *_), (out, g, levels) = avals, of
    if g.precision is not None:
        return None  # whoever asks for a precision asks for what lax does
    groups = g.feature_group_count
    level_sizes, (batch, *_), _ = _members(a, b, levels)
    channels, features = a.shape[-1] // groups if out == "kernel" else b.shape[-2], b.shape[-1] // groups
    inputs, outputs = window_factors(g.window)
    axes = {
        "x": (("n",), *inputs, joined(g=groups, i=channels)),
        "z": (("n",), *outputs, joined(g=groups, o=features)),
        "kernel": (*((f"t{axis}",) for axis in range(g.window.rank)), ("i",), joined(g=groups, o=features)),
    }
    names = [(f"l{place}",) for place in range(len(levels))]
    mapped = [tuple(name for name, level in zip(names, levels, strict=True) if level[i]) for i in (0, 1)]
    operands = tuple((*mapped[i], *axes[name]) for i, name in enumerate(OPERANDS[out]))
    sizes = {"n": batch, "g": groups, "i": channels, "o": features, **window_sizes(g.window)}
    sizes |= {name: size for (name,), size in zip(names, level_sizes, strict=True)}
    positions = math.prod(g.window.output_shape) * g.window.taps
    work = math.prod(sizes[name] for name in ("n", "g", "i", "o", *(name for (name,) in names))) * positions
    # Tied to the kernel's groups, the gradient of x would be split as they are, and gathered where x is whole. XLA
    # splits depthwise layers alone, so lax sends as much for other groups in any case.
    untied = ("g",) if out == "x" and groups > 1 and channels > 1 else ()
    return Rule(operands, ((*names, *axes[out]),), sizes, work, untied)


def _part(of: Sum, platform: str) -> Callable[..., jax.Array]:
    """How a device computes its part of the sum."""
    return plan.as_now(functools.partial(_evaluate_part, of, platform))


def _evaluate_part(of: Sum, platform: str, split: Split, a: jax.Array, b: jax.Array) -> jax.Array:
    """A device's part of the sum, by the plan for its sizes."""
    g = of.geometry
    window, halos = part_of_window(g.window, split, of_output=of.out == "x")
    a = with_halos(a, a.ndim - window.rank - 1, halos, split)
    g = g._replace(window=window, feature_group_count=g.feature_group_count // split.count("g"))
    return _evaluate(a, b, of=of._replace(geometry=g), platform=platform)


def _series(primals: Sequence[Any], series: Sequence[Any], *, of: Sum) -> tuple[jax.Array, list[jax.Array]]:
    """The Taylor coefficients of a product: each is a sum of products."""
    a, b = ([primal, *terms] for primal, terms in zip(primals[:2], series, strict=False))

    def coefficient(n: int) -> jax.Array:
        terms = [conv_sum_p.bind(a[i], b[n - i], of=of) for i in range(n + 1)]
        return functools.reduce(jnp.add, terms)

    return coefficient(0), [coefficient(n) for n in range(1, len(a))]


def _members(a: Any, b: Any, levels: Levels) -> tuple[list[int], list[int], list[int]]:
    """The size of each level, and the shapes of one member's operands."""
    sizes, a_shape, b_shape = [], list(a.shape), list(b.shape)
    for of_a, of_b in levels:
        size_a, size_b = a_shape.pop(0) if of_a else None, b_shape.pop(0) if of_b else None
        sizes.append(size_b if size_a is None else size_a)
    return sizes, a_shape, b_shape


conv_sum_p.def_impl(_impl)
conv_sum_p.def_abstract_eval(_abstract)
ad.primitive_jvps[conv_sum_p] = _derivative
ad.primitive_transposes[conv_sum_p] = _transpose
batching.primitive_batchers[conv_sum_p] = _batched
jet.jet_rules[conv_sum_p] = _series
mlir.register_lowering(conv_sum_p, mlir.lower_fun(_evaluate, multiple_results=False))
# On all other platforms every sum is by definition.
for platform in plan.TABLES:
    whole, part = (functools.partial(f, platform=platform) for f in (_evaluate, _part))
    mlir.register_lowering(conv_sum_p, on_devices(whole, part, _rule, remainder=_evaluate), platform=platform)
