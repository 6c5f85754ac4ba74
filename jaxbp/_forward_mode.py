"""Forward mode for ops with a hand-written backward rule.

A backward rule says how delta goes back: `dx = B(delta)`, linear in delta. It also says how a tangent goes forward,
because `<delta, dz> = <B(delta), dx>` for every delta: **dz = B^T(dx)**. So one derivation serves both modes.
`jax.custom_vjp` does not know that and refuses tangents. Inside `forward_mode` a rule is a `jax.custom_jvp` whose
tangent is one linear map that carries its transpose with it: B^T forward, B itself backward.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ._arguments import keeping_64_bits

# --------------------------------------------------------------------------------------------- the block

_made: list[Any] = []


def _context() -> Any:
    """JAX's context that is on inside a block; made late, because making one empties jit's fast cache."""
    if not _made:
        _made.append(jax.make_user_context(default_value=False))
    return _made[0]


def is_on() -> bool:
    """Whether this thread is inside a block."""
    return bool(_made and _made[0].value)


def mode() -> dict[str, bool]:
    """What an op's equation says of the mode in which it was traced: nothing outside of a block."""
    return {"both_modes": True} if is_on() else {}


def refuse(op: str, what: str) -> None:
    """TypeError inside a block, for what has no forward mode."""
    if is_on():
        raise TypeError(
            f"{op}: {what} has no forward mode, but it was called inside of jaxbp.forward_mode(); call it outside, or "
            "under `with jaxbp.forward_mode(False):`"
        )


def forward_mode(enabled: bool = True) -> "contextlib._GeneratorContextManager[None]":
    """Inside this block every op of jaxbp has forward mode as well as reverse mode.

    `dz = B^T(dx)`, where `dx = B(delta)` is the op's hand-written backward rule: the map that is adjoint to it.

    Outside, ops are `jax.custom_vjp` functions, which JAX refuses to differentiate forward ("can't apply forward-mode
    autodiff (jvp) to a custom_vjp function"). Inside, `jax.jvp`, `jax.jacfwd`, `jax.linearize` and
    `jax.linear_transpose` (of ops that are linear) work on them, in any order with `jax.grad` and under `jit`, `vmap`,
    `scan`, `checkpoint` and `shard_map`; in the adapters and in `swap_lax`, too. `jax.experimental.jet` works on every
    op that is called directly. Under `jit` it fails on `jax.custom_jvp`, so it works there on convolutions, `dense` and
    linear pools alone. Values and gradients are the same as outside.

    Functions compiled with `jax.jit`: the block is part of their cache key. One that was traced before is traced again
    inside the block; after the block, its former program runs again. A jaxpr, a program compiled ahead of time or
    exported, and the pullback of a `jax.vjp` stay what they were when they were made.

    Args:
      enabled: False turns forward mode off again, inside a block that turned it on.

    Returns:
      A context manager of the calling thread, also usable as a decorator (`@forward_mode()`) of a function that is no
      generator and no coroutine. Blocks may be nested.

    Raises:
      TypeError: enabled is neither True nor False.

    Example:
      >>> import jax, jax.numpy as jnp, jaxbp
      >>> x, kernel = jnp.arange(4.).reshape(4, 1), jnp.array([1., 10.]).reshape(2, 1, 1)
      >>> with jaxbp.forward_mode():
      ...     z, dz = jax.jvp(lambda k: jaxbp.conv(x, k, padding="VALID"), (kernel,), (jnp.ones_like(kernel),))
      >>> dz[:, 0]
      Array([1., 3., 5.], dtype=float32)

    Source: Griewank and Walther, "Evaluating derivatives" (2008), section 3.2; JAX's `make_user_context`.
    """
    if not isinstance(enabled, bool):
        raise TypeError(
            f"forward_mode: enabled={enabled!r} must be True or False; as a decorator it needs its parentheses: "
            "@forward_mode()"
        )
    return _block(enabled)


@contextlib.contextmanager
def _block(enabled: bool) -> Iterator[None]:
    """The block of `forward_mode`."""
    with _context()(enabled):
        yield


# ---------------------------------------------------------------------------------------------- the rules


class custom_vjp:
    """`jax.custom_vjp`, which inside of a block of `forward_mode` has both modes. Its passes run at full width.

    The arguments that `nondiff_argnums` counts come first, and are no arrays.
    """

    def __init__(self, op: Callable[..., Any], nondiff_argnums: Sequence[int] = ()):
        functools.update_wrapper(self, op)
        self._op, self._statics = op, len(nondiff_argnums)
        self.outside = jax.custom_vjp(op, nondiff_argnums=tuple(nondiff_argnums))

    def defvjp(
        self,
        forward: Callable[..., Any],
        backward: Callable[..., Any],
        pushforward: Callable[..., Any] | None = None,
        linear: bool = False,
    ) -> None:
        """Define the rule: `forward(*static, *arrays)` gives (z, kept), `backward(*static, kept, delta)` the gradients.

        `pushforward(*static, kept, *tangents)`: the transpose of `backward`; None: as JAX transposes it. `linear`: the
        pushforward is the op itself.
        """
        self._forward, self._backward = keeping_64_bits(forward), keeping_64_bits(backward)
        self._pushforward, self._linear = None if pushforward is None else keeping_64_bits(pushforward), linear
        self.outside.defvjp(self._forward, self._backward)

    def __call__(self, *args: Any) -> Any:
        return (self.inside if is_on() else self.outside)(*args)

    def inside(self, *args: Any) -> Any:
        """The op with both modes."""
        static, arrays = args[: self._statics], args[self._statics :]
        if self._linear and any(map(_is_inexact, arrays)):
            return self._tangent(static, arrays, arrays)[1]
        if any(isinstance(a, jet.JetTracer) for a in arrays):
            # jet leaves custom_jvp functions out, and fails on them.
            return self._op(*static, *arrays)
        op = jax.custom_jvp(functools.partial(self._op, *static))
        op.defjvp(lambda primals, tangents: self._tangent(static, primals, tangents), symbolic_zeros=True)
        return op(*arrays)

    def _tangent(self, static: Sequence[Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
        """The value and its tangent."""
        z, kept = self._forward(*static, *primals)
        values, tree = jax.tree.flatten(z)
        moves = [_is_inexact(value) for value in values]
        like = [jax.typeof(value) for value, move in zip(values, moves, strict=True) if move]
        where = [i for i, t in enumerate(tangents) if type(t) is not SymbolicZero and _is_inexact(t)]

        def pull(kept: Any, *deltas: jax.Array) -> list[jax.Array]:
            given = iter(deltas)
            delta = tree.unflatten([next(given) if move else None for move in moves])
            gradients = self._backward(*static, kept, delta)
            return [gradients[i] for i in where]

        def push(kept: Any, *some: jax.Array) -> list[jax.Array]:
            if self._pushforward is None:
                return jax.linear_transpose(functools.partial(pull, kept), *like)(list(some))
            return [self._pushforward(*static, kept, *some)]

        dz = [zero_from_primal(value, True) for value in values]
        if where:
            moved = iter(linear_map(push, pull, kept, *(tangents[i] for i in where)))
            dz = [next(moved) if move else zero for move, zero in zip(moves, dz, strict=True)]
        return z, tree.unflatten(dz)


def _is_inexact(a: Any) -> bool:
    """Whether an array has derivatives."""
    return jnp.issubdtype(a.dtype, jnp.inexact)


# -------------------------------------------------------------------------------------- linear maps in pairs


class Pair(NamedTuple):
    """A function of (*kept, *linear), linear in these, and of (*kept, *its results): its transpose."""

    map: Callable[..., Sequence[jax.Array]]
    transpose: Callable[..., Sequence[jax.Array]]


def linear_map(push: Callable[..., Any], pull: Callable[..., Any], kept: Any, *linear: jax.Array) -> list[jax.Array]:
    """`push(kept, *linear)`, whose transpose is `pull(kept, *deltas)`."""
    leaves, tree = jax.tree.flatten(kept)

    def of_leaves(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arrays: function(tree.unflatten(arrays[: len(leaves)]), *arrays[len(leaves) :])

    return linear_map_p.bind(*leaves, *linear, pair=Pair(of_leaves(push), of_leaves(pull)), kept=len(leaves))


linear_map_p = Primitive("linear_map")
linear_map_p.multiple_results = True


def _evaluate(*arrays: jax.Array, pair: Pair, kept: int) -> Sequence[jax.Array]:
    """The map itself."""
    return pair.map(*arrays)


def _abstract(*avals: Any, pair: Pair, kept: int) -> Sequence[Any]:
    """Its results' shapes, dtypes and mesh axes."""
    return jax.make_jaxpr(pair.map)(*avals).out_avals


def _derivative(primals: Sequence[Any], tangents: Sequence[Any], *, pair: Pair, kept: int) -> tuple[Any, Any]:
    """The map of the linear arrays' tangents; and JAX's own derivative where what was kept has one."""
    out = linear_map_p.bind(*primals, pair=pair, kept=kept)
    terms = []
    if any(type(t) is not ad.Zero for t in tangents[kept:]):
        terms.append(
            linear_map_p.bind(*primals[:kept], *map(ad.instantiate_zeros, tangents[kept:]), pair=pair, kept=kept)
        )
    where = [i for i, t in enumerate(tangents[:kept]) if type(t) is not ad.Zero]
    if where:

        def of_kept(*some: jax.Array) -> Sequence[jax.Array]:
            given = dict(zip(where, some, strict=True))
            return pair.map(*(given.get(i, a) for i, a in enumerate(primals)))

        terms.append(jax.jvp(of_kept, [primals[i] for i in where], [tangents[i] for i in where])[1])
    if not terms:
        return out, [ad.Zero(jax.typeof(a).to_tangent_aval()) for a in out]
    return out, [functools.reduce(ad.add_jaxvals, term) for term in zip(*terms, strict=True)]


def _transpose(deltas: Sequence[Any], *arrays: Any, pair: Pair, kept: int) -> list[Any]:
    """The other map of the pair."""
    gradients: list[Any] = [ad.Zero(a.aval) if ad.is_undefined_primal(a) else None for a in arrays]
    if all(type(delta) is ad.Zero for delta in deltas):
        return gradients
    pulled = linear_map_p.bind(
        *arrays[:kept], *map(ad.instantiate_zeros, deltas), pair=Pair(pair.transpose, pair.map), kept=kept
    )
    return [None if known is None else new for known, new in zip(gradients, [None] * kept + list(pulled), strict=True)]


def _batched(arrays: Sequence[Any], axes: Sequence[Any], *, pair: Pair, kept: int) -> tuple[Sequence[Any], list[int]]:
    """Both maps mapped; over every linear array, so that the transpose adds nothing up."""
    size = next(a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None)
    arrays = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True)]
    arrays[kept:] = [
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else a
        for a, axis in zip(arrays[kept:], axes[kept:], strict=True)
    ]
    of_kept = [None if axis is None else 0 for axis in axes[:kept]]
    mapped = Pair(
        lambda *some: jax.vmap(pair.map, (*of_kept, *[0] * (len(some) - kept)))(*some),
        lambda *some: jax.vmap(pair.transpose, (*of_kept, *[0] * (len(some) - kept)))(*some),
    )
    out = linear_map_p.bind(*arrays, pair=mapped, kept=kept)
    return out, [0] * len(out)


def _jet(primals: Sequence[Any], series: Sequence[Any], *, pair: Pair, kept: int) -> tuple[Any, Any]:
    """Each coefficient by itself."""
    terms = [pair.map(*primals[:kept], *some) for some in zip(*series[kept:], strict=True)]
    return pair.map(*primals), list(map(list, zip(*terms, strict=True)))


linear_map_p.def_impl(_evaluate)
linear_map_p.def_abstract_eval(_abstract)
ad.primitive_jvps[linear_map_p] = _derivative
ad.primitive_transposes[linear_map_p] = _transpose
batching.primitive_batchers[linear_map_p] = _batched
jet.jet_rules[linear_map_p] = _jet
mlir.register_lowering(linear_map_p, mlir.lower_fun(_evaluate, multiple_results=True))
