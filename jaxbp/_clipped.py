"""Sums of clipped per-example gradients, as differentially private training needs them.

    sum_n min(1, C / |g_n|) g_n        g_n: the gradient of the loss of example n

Norms come first: one backward pass of the loss, mapped over the examples, gives every |g_n| (`_norms.py`). Weighted by
`min(1, C / |g_n|)`, the losses are then pulled back once more, to the sum. No layer holds a gradient of each example.

A norm is counted right where a parameter is the kernel or the bias of one layer, used once. The loss's jaxpr says for
which parameters that holds. All others (used twice, in a loop, in arithmetic, by other packages' layers) are
differentiated for each example by themselves, so that the sum is exact for every model.

Source: Abadi et al., "Deep learning with differential privacy" (2016); Li et al., "Large language models can be strong
differentially private learners" (2022), for the two passes.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ._arguments import as_array, keeping_64_bits
from ._conv import conv_p
from ._conv_lax import Layout, conv_in_layout_p
from ._dense import dense_p
from ._geometry import ConvGeometry
from ._mesh import vary_alike
from ._norms import count_norms, dense_geometry, norm_dtype

LAYERS = (conv_p, conv_in_layout_p, dense_p)
# Primitives of a program within a program that runs once, and where they have it.
ONCE = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr"}
LOOPS = ("scan", "while", "cond")


class Explanation(NamedTuple):
    """How a parameter's gradients are bounded: "norm" or "vmap", and why."""

    path: str
    how: str
    why: str


class Settings(NamedTuple):
    """What `clipped_grad` was told."""

    loss: Callable[..., Any]
    l2_clip_norm: Any
    has_aux: bool
    microbatch: int | None


class ClippedGrad:
    """What `clipped_grad` returns: a function of `(params, *batch)`."""

    def __init__(self, settings: Settings):
        self._settings = settings

    @keeping_64_bits
    def __call__(self, params: Any, *batch: Any) -> Any:
        """The clipped sum and the norms, and with `has_aux` what else the loss returned for each example."""
        params, batch = _checked_arrays(params, batch)
        (total, norms), aux = _in_microbatches(self._settings, params, batch)
        return ((total, norms), aux) if self._settings.has_aux else (total, norms)

    @keeping_64_bits
    def explain(self, params: Any, *batch: Any) -> list[Explanation]:
        """For each parameter its path, "norm" (its layer counts it) or "vmap" (one gradient per example), and why."""
        params, batch = _checked_arrays(params, batch)
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
        reasons = _reasons(_traced(self._settings, params, batch), len(paths))
        return [
            Explanation(
                path, "vmap" if reason else "norm", reason or "it is the kernel or bias of one layer, or not used"
            )
            for path, reason in zip(paths, reasons, strict=True)
        ]


def clipped_grad(
    loss: Callable[..., Any], *, l2_clip_norm: Any, has_aux: bool = False, microbatch: int | None = None
) -> ClippedGrad:
    """The sum of the examples' gradients, each clipped to a norm: exact for every model, mostly without one of each.

    `sum_n g_n min(1, C / |g_n|)` with `g_n` the gradient of example n's loss and `|g_n|` its norm over all parameters.

    Args:
      loss: `loss(params, *example)`, a scalar, of one example: as one writes it for `jax.vmap(jax.grad(loss))`.
      l2_clip_norm: C, a positive number (or a scalar array).
      has_aux: whether the loss returns a pair, of the scalar and of anything else.
      microbatch: how many examples are differentiated at a time, to save memory; None: all.

    Returns:
      A function of `(params, *batch)`, arrays whose first axis counts the examples. It returns `(clipped_sum, norms)`:
      a tree like `params`, and the (N,) norms before clipping. With `has_aux`: `((clipped_sum, norms), aux)`, aux for
      each example. A gradient of zeros stays zero. An example whose gradient is not finite adds nothing, and its norm
      is not finite. The function's `explain(params, *batch)` lists, for each parameter, its path, "norm" or "vmap", and
      why: "norm" for kernels and biases that one layer of jaxbp uses once; "vmap" for all others, of which a gradient
      of each example is held. Call it under `jax.jit`. Noise is yours to add, to the sum. Under `shard_map` the sum is
      the device's own: add them up by `jax.lax.psum(clipped_sum, axis)`.

    Raises:
      TypeError: the loss is no function or not a scalar floating-point number, or a parameter is not one of those.
      ValueError: l2_clip_norm or microbatch is not positive, or the batch's arrays differ in their first axis.

    Example:
      >>> import jax, jax.numpy as jnp, jaxbp
      >>> def loss(params, x, y):
      ...     return jnp.sum((jaxbp.dense(x, params["kernel"]) - y) ** 2) / 2
      >>> params, x, y = {"kernel": jnp.zeros((2, 1))}, jnp.array([[3., 4.], [0., 1.]]), jnp.array([[1.], [-0.5]])
      >>> clipped_sum, norms = jax.jit(jaxbp.clipped_grad(loss, l2_clip_norm=1.0))(params, x, y)
      >>> norms, clipped_sum["kernel"][:, 0]
      (Array([5. , 0.5], dtype=float32), Array([-0.6, -0.3], dtype=float32))

    Source: Abadi et al., "Deep learning with differential privacy" (2016), algorithm 1.
    """
    if not callable(loss):
        raise TypeError(f"clipped_grad: loss={loss!r} must be a function of (params, *example)")
    if isinstance(l2_clip_norm, int | float | np.number) and not (0 < l2_clip_norm < math.inf):
        raise ValueError(f"clipped_grad: l2_clip_norm={l2_clip_norm} must be a positive number")
    if microbatch is not None and (not isinstance(microbatch, int) or microbatch < 1):
        raise ValueError(f"clipped_grad: microbatch={microbatch!r} must be a number of examples, 1 or more, or None")
    return ClippedGrad(Settings(loss, l2_clip_norm, bool(has_aux), microbatch))


# ------------------------------------------------------------------------------------------------- the two passes


def _in_microbatches(of: Settings, params: Any, batch: tuple) -> Any:
    """Some examples at a time, the sums added up."""
    examples, some = jax.tree.leaves(batch)[0].shape[0], of.microbatch
    if some is None or examples <= some:
        return _clipped(of, params, batch)
    whole = examples - examples % some
    parts = jax.tree.map(lambda a: a[:whole].reshape(whole // some, some, *a.shape[1:]), batch)

    def add(total: Any, part: tuple) -> Any:
        (more, norms), aux = _clipped(of, params, part)
        return jax.tree.map(jnp.add, total, more), (norms, aux)

    leaves, tree = jax.tree.flatten(params)
    zeros = vary_alike(*map(jnp.zeros_like, leaves), *leaves)[: len(leaves)]
    total, each = lax.scan(add, jax.tree.unflatten(tree, zeros), parts)
    norms, aux = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), each)
    if whole < examples:
        total, (more_norms, more_aux) = add(total, jax.tree.map(lambda a: a[whole:], batch))
        norms, aux = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), (norms, aux), (more_norms, more_aux))
    return (total, norms), aux


def _clipped(of: Settings, params: Any, batch: tuple) -> Any:
    """Norms, weights, and the weighted sum."""
    leaves, tree = jax.tree.flatten(params)
    reasons = _reasons(_traced(of, params, batch), len(leaves))
    counted = {i: leaf for i, leaf in enumerate(leaves) if reasons[i] is None}
    others = {i: leaf for i, leaf in enumerate(leaves) if reasons[i] is not None}

    def one(counted: dict, others: dict, norm: jax.Array, *example: Any) -> Any:
        return _with_norm(of, tree, counted, others, norm, example)

    def everyone(counted: dict, norms: jax.Array) -> Any:
        return jax.vmap(one, (None, None, 0, *(0 for _ in batch)))(counted, others, norms, *batch)

    examples = jax.tree.leaves(batch)[0].shape[0]
    dtype = norm_dtype(*(leaf.dtype for leaf in leaves))
    (zeros,) = vary_alike(_zeros_beside(jax.tree.leaves(batch)[0], examples, dtype), *leaves)[:1]
    losses, pull, aux = jax.vjp(everyone, counted, zeros, has_aux=True)
    gradients: dict = {}
    if others:
        # The norm pass, which gives gradients of single examples by the way.
        def gradients_of_one(zero: jax.Array, *example: Any) -> Any:
            return jax.grad(lambda *a: one(counted, *a, *example)[0], (0, 1))(others, zero)

        gradients, squares = jax.vmap(gradients_of_one)(zeros, *batch)
        squares += sum(jnp.sum(jnp.square(g.astype(dtype)), range(1, g.ndim)) for g in gradients.values())
    else:
        _, squares = pull(jnp.ones_like(losses))
    norms = jnp.sqrt(squares)
    finite = jnp.isfinite(norms)
    limit = jnp.asarray(of.l2_clip_norm, dtype)
    weights = jnp.where(finite, jnp.minimum(1, limit / jnp.maximum(norms, jnp.finfo(dtype).tiny)), 0).astype(dtype)
    total, _ = pull(weights.astype(losses.dtype))
    for i, gradient in gradients.items():
        of_all, weight = (jnp.expand_dims(a, range(1, gradient.ndim)) for a in (finite, weights))
        total[i] = jnp.sum(jnp.where(of_all, weight * gradient.astype(dtype), 0), axis=0).astype(gradient.dtype)
    return (jax.tree.unflatten(tree, [total[i] for i in range(len(leaves))]), norms), aux


def _zeros_beside(a: jax.Array, examples: int, dtype: Any) -> jax.Array:
    """A zero for each example; on a mesh whose axes are Explicit, sharded as the examples are."""
    sharding = jax.typeof(a).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return jnp.zeros(examples, dtype)
    return lax.full((examples,), 0, dtype, sharding=NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0])))


def _checked_arrays(params: Any, batch: tuple) -> tuple[Any, tuple]:
    """The parameters, varying over the mesh axes over which anything varies, and the batch."""
    leaves, tree = jax.tree.flatten(params)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    leaves = [as_array("clipped_grad", f"params{path}", leaf) for path, leaf in zip(paths, leaves, strict=True)]
    for path, leaf in zip(paths, leaves, strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"clipped_grad: params{path} has dtype {leaf.dtype}, which is no real floating-point dtype")
    if not leaves:
        raise ValueError(f"clipped_grad: params={params!r} holds no arrays, so that there is no gradient")
    shapes = [jnp.shape(a) for a in jax.tree.leaves(batch)]
    if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(
            f"clipped_grad: the batch has arrays of shapes {', '.join(map(str, shapes)) or 'none at all'}; each needs "
            "the examples as its first axis, as many as the others"
        )
    batch = jax.tree.map(lambda a: a if isinstance(a, jax.Array) else jnp.asarray(a), batch)
    data = [a for a in jax.tree.leaves(batch) if not jnp.issubdtype(a.dtype, jax.dtypes.extended)]
    return jax.tree.unflatten(tree, vary_alike(*leaves, *data)[: len(leaves)]), batch


# -------------------------------------------------------------------------------- the loss of one example, as a jaxpr


def _traced(of: Settings, params: Any, batch: tuple) -> ClosedJaxpr:
    """The jaxpr of the loss of one example."""
    found = []

    def trace(*example: Any) -> float:
        found.append(_jaxpr(of, params, example)[0])
        return 0.0

    jax.vmap(trace)(*batch)
    return found[0]


def _jaxpr(of: Settings, params: Any, example: tuple) -> tuple[ClosedJaxpr, Any]:
    """The jaxpr of the loss, (loss, aux), and the tree of its results."""

    def pair(params: Any, *example: Any) -> tuple[Any, Any]:
        returned: Any = of.loss(params, *example)
        if of.has_aux and not (isinstance(returned, tuple) and len(returned) == 2):
            raise TypeError(f"clipped_grad: with has_aux=True the loss must return a pair, but returned {returned!r}")
        value: Any = returned[0] if of.has_aux else returned
        aux: Any = returned[1] if of.has_aux else None
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise TypeError(
                f"clipped_grad: the loss of one example must be a scalar of a floating-point dtype, but it has shape "
                f"{jnp.shape(value)} and dtype {jnp.result_type(value)}; write it for one example, without a batch axis"
            )
        return value, aux

    closed, shapes = jax.make_jaxpr(pair, return_shape=True)(params, *example)
    return closed, jax.tree.structure(shapes)


def _with_norm(of: Settings, tree: Any, counted: dict, others: dict, norm: jax.Array, example: tuple) -> Any:
    """(loss, aux) of one example, where the layers of the counted parameters count their norms."""
    leaves = [(counted | others)[i] for i in range(len(counted) + len(others))]
    closed, results = _jaxpr(of, jax.tree.unflatten(tree, leaves), example)
    followed = {var: i for i, var in enumerate(closed.jaxpr.invars[: len(leaves)]) if i in counted}
    values = _evaluate(closed.jaxpr, closed.consts, [*leaves, *jax.tree.leaves(example)], norm, followed)
    return jax.tree.unflatten(results, values)


def _reasons(closed: ClosedJaxpr, count: int) -> list[str | None]:
    """For each parameter, None where the norm rules count it exactly once; else the reason why not."""
    uses: dict[int, list[str | None]] = defaultdict(list)
    for i, reason in _uses(closed.jaxpr, {var: i for i, var in enumerate(closed.jaxpr.invars[:count])}):
        uses[i].append(reason)
    return [
        f"it is used {len(uses[i])} times" if len(uses[i]) > 1 else uses[i][0] if uses[i] else None
        for i in range(count)
    ]


def _uses(jaxpr: Any, followed: Mapping[Var, int]) -> Iterator[tuple[int, str | None]]:
    """Each use of the parameters in a program: None where a layer counts it, else what uses it."""
    for eqn in jaxpr.eqns:
        inside = _inside(eqn)
        if inside is not None:
            yield from _uses(inside, _followed_inside(eqn, inside, followed))
            continue
        for place, var in enumerate(eqn.invars):
            if not isinstance(var, Literal) and var in followed:
                yield followed[var], None if place > 0 and _layer(eqn) else _reason(eqn)
    for var in jaxpr.outvars:
        if not isinstance(var, Literal) and var in followed:
            yield followed[var], "it is returned as it is"


def _reason(eqn: JaxprEqn) -> str:
    """What uses a parameter that no layer counts."""
    name = eqn.primitive.name
    if name in LOOPS:
        return f"it is used inside of {name}, which may run any number of times"
    return f"it is an operand of {name}, and not the kernel or bias of one example's layer"


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], norm: jax.Array, followed: Mapping) -> list:
    """A program's results, where the layers of the parameters that are followed count their norms."""
    values: dict[Var, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, Literal) else values[var]

    for eqn in jaxpr.eqns:
        operands = [read(var) for var in eqn.invars]
        mine = [not isinstance(var, Literal) and var in followed for var in eqn.invars]
        with eqn.ctx.manager:
            if not any(mine):
                results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            elif (inside := _inside(eqn)) is not None:
                results = _evaluate_inside(eqn, inside, operands, norm, _followed_inside(eqn, inside, followed))
            else:
                results = _counted_layer(eqn, operands, norm, mine)
        results = results if eqn.primitive.multiple_results else [results]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _evaluate_inside(eqn: JaxprEqn, jaxpr: Any, operands: list, norm: jax.Array, followed: Mapping) -> list:
    """A program within the program; a checkpoint stays one."""
    consts = getattr(eqn.params[ONCE[eqn.primitive.name]], "consts", ())

    def evaluate(norm: jax.Array, *operands: Any) -> list:
        return _evaluate(jaxpr, consts, operands, norm, followed)

    if "policy" in eqn.params:
        keep = {name: eqn.params[name] for name in ("policy", "prevent_cse")}
        evaluate = jax.checkpoint(evaluate, **keep)
    return evaluate(norm, *operands)


def _counted_layer(eqn: JaxprEqn, operands: list, norm: jax.Array, mine: list[bool]) -> jax.Array:
    """A layer whose own gradients of what is counted are left to `count_norms`."""
    found = _layer(eqn)
    assert found is not None
    (g, layout), (x, *parameters) = found, operands
    frozen = [lax.stop_gradient(a) if counted else a for a, counted in zip(parameters, mine[1:], strict=True)]
    z = eqn.primitive.bind(x, *frozen, **eqn.params)
    counts = dict(zip(("kernel", "bias"), (*mine[1:], False), strict=False))
    given = [a for a, counted in zip(parameters, mine[1:], strict=True) if counted]
    if layout is None:
        # A dense layer may have several axes of positions.
        first = x.ndim - g.window.rank - 1
        rows, (z_rows, x_rows) = math.prod(x.shape[:first]), (a.reshape(-1, *a.shape[first:]) for a in (z, x))
        return count_norms(g, rows, z_rows, x_rows, norm[None], *given, **counts).reshape(z.shape)
    z, x, given = layout.output(z), layout.input(x), map(layout.kernel, given)
    return layout.undo_output(count_norms(g, x.shape[0], z, x, norm[None], *given, **counts))


def _layer(eqn: JaxprEqn) -> tuple[ConvGeometry, Layout | None] | None:
    """The geometry and layout of a layer of one example, in which no rows are other examples'; else None."""
    if eqn.primitive not in LAYERS or eqn.params["levels"]:
        return None
    static = eqn.params["static"]
    if eqn.primitive is dense_p:
        return dense_geometry(static), None
    if eqn.primitive is conv_p:
        return static, None
    g, layout = static
    return None if layout.batch_groups != 1 else (g, layout)


def _inside(eqn: JaxprEqn) -> Any:
    """The jaxpr of a program within the program that runs once, or None."""
    name = ONCE.get(eqn.primitive.name)
    if name is None or name not in eqn.params:
        return None
    jaxpr = eqn.params[name]
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _followed_inside(eqn: JaxprEqn, inside: Any, followed: Mapping[Var, int]) -> dict[Var, int]:
    """The parameters as they are called in there."""
    pairs = zip(inside.invars, eqn.invars, strict=True)
    return {name: followed[var] for name, var in pairs if not isinstance(var, Literal) and var in followed}
