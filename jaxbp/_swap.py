"""Code written for `jax.lax`, run on jaxbp: one function at a time (`rebind`) or inside a block (`swap_lax`).

A library's layer computes its convolution with `lax.conv_general_dilated(...)`, where `lax` is a global name
of the library's module. Giving that name another value redirects the layer and leaves all the rest of it
(parameters, padding modes, masks, error messages) the library's own.
"""

import contextlib
import functools
import importlib
import math
import operator
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.export import is_symbolic_dim

from ._avg_pool import sum_pool
from ._conv_lax import conv_general_dilated, conv_transpose
from ._geometry import dilated_size
from ._max_pool import max_pool, min_pool

F = TypeVar("F", bound=Callable[..., Any])


def reduce_window(
    operand: Any,
    init_value: Any,
    computation: Callable[..., Any],
    window_dimensions: Sequence[int],
    window_strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    base_dilation: Sequence[int] | None = None,
    window_dilation: Sequence[int] | None = None,
) -> Any:
    """`lax.reduce_window`; a floating-point maximum, minimum or sum goes to jaxbp's pools, the rest to lax."""
    arguments = (init_value, computation, window_dimensions)
    rank = len(window_dimensions)
    strides = (1,) * rank if window_strides is None else tuple(window_strides)
    dilation = (1,) * rank if window_dilation is None else tuple(window_dilation)
    base = (1,) * rank if base_dilation is None else tuple(base_dilation)
    if not isinstance(padding, str):
        padding = tuple((low, high) for low, high in padding)
    pads: Sequence[Any] = (padding,) * rank if isinstance(padding, str) else padding
    pool = _pool_for(operand, init_value, computation)
    # Where the lengths disagree, the error is lax's.
    if pool is None or set(base) != {1} or {*map(len, (strides, dilation, base, pads)), operand.ndim} != {rank}:
        return lax.reduce_window(operand, *arguments, strides, padding, base_dilation, dilation)
    if has_no_place(operand.shape, window_dimensions, pads, dilation):
        # Nothing was read, so nothing is sent back. lax's own gradient refuses dilations and what crops everything.
        return lax.reduce_window(lax.stop_gradient(operand), *arguments, strides, padding, base_dilation, dilation)
    idle = [(1, 1, pad) for pad in ("SAME", "SAME_LOWER", "VALID", (0, 0))]
    pooled = [axis for axis in range(rank) if (window_dimensions[axis], strides[axis], pads[axis]) not in idle]
    if not pooled:
        return operand
    # jaxbp's pools take (*batch, *spatial, channels): everything before the first pooled axis is a batch axis,
    # and where the very last axis is pooled, a single channel goes behind it.
    needs_channel = pooled[-1] == rank - 1
    spatial = slice(pooled[0], rank if needs_channel else rank - 1)
    result = pool(
        jnp.expand_dims(operand, -1) if needs_channel else operand,
        tuple(window_dimensions[spatial]),
        strides[spatial],
        padding if isinstance(padding, str) else padding[spatial],
        window_dilation=dilation[spatial],
    )
    return result[..., 0] if needs_channel else result


def has_no_place(
    sizes: Sequence[int], window_shape: Sequence[int], pads: Sequence[Any], dilation: Sequence[int]
) -> bool:
    """Whether along some axis the window is larger than the padded input, so that lax's result has size 0."""
    for size, k, pad, d in zip(sizes, window_shape, pads, dilation, strict=True):
        if isinstance(pad, str) and pad.upper() != "VALID":
            continue  # the other words pad until a window fits
        low, high = (0, 0) if isinstance(pad, str) else map(operator.index, pad)
        room = low + size + high - dilated_size(k, d)
        if not is_symbolic_dim(room) and room < 0:
            return True
    return False


def _pool_for(operand: Any, init_value: Any, computation: Callable[..., Any]) -> Callable[..., Any] | None:
    """The pool that computes this reduction, or None where jaxbp has none."""
    if not isinstance(operand, jax.Array | np.ndarray) or not jnp.issubdtype(operand.dtype, jnp.floating):
        return None
    if isinstance(init_value, Tracer) or np.ndim(init_value) != 0:
        return None
    reductions = {lax.max: (max_pool, -math.inf), lax.min: (min_pool, math.inf), lax.add: (sum_pool, 0)}
    pool, identity = reductions.get(computation, (None, None))
    return pool if np.asarray(init_value) == identity else None


class _StandIn(types.ModuleType):
    """A module with some of its names replaced; every other name is looked up in the module itself."""

    def __init__(self, module: types.ModuleType, **replaced: Any):
        super().__init__(module.__name__, module.__doc__)
        self._module = module
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __reduce__(self) -> Any:
        return importlib.import_module, (self._module.__name__,)


def rebind(function: F, home: str | None = None, /, **names: Any) -> F:
    """A copy of `function` that sees other values for some of its module's names; the module is untouched.

    `home` is the module in which the copy is found under the name of `function`, so that it can be pickled.
    """
    original: Any = function
    while hasattr(original, "__wrapped__"):
        original = original.__wrapped__
    unused = sorted(set(names) - set(original.__code__.co_names))
    if unused:
        raise ImportError(
            f"{original.__module__}.{original.__qualname__} of the installed version does not use the name "
            f"{' and '.join(unused)}, through which jaxbp replaces its operations; "
            f"please install a version that jaxbp's tests cover"
        )
    namespace = {**original.__globals__, **names}
    copy: Any = types.FunctionType(
        original.__code__, namespace, original.__name__, original.__defaults__, original.__closure__
    )
    copy.__kwdefaults__ = original.__kwdefaults__
    copy.__annotations__ = original.__annotations__
    copy.__doc__ = original.__doc__
    copy.__module__ = home or original.__module__
    return copy


OPERATIONS: dict[str, Callable[..., Any]] = {
    "conv": rebind(lax.conv, conv_general_dilated=conv_general_dilated),
    "conv_general_dilated": conv_general_dilated,
    "conv_transpose": conv_transpose,
    "conv_with_general_padding": rebind(lax.conv_with_general_padding, conv_general_dilated=conv_general_dilated),
    "reduce_window": reduce_window,
}

# What the adapters put in the place of a library's `lax`.
JAXBP_LAX = _StandIn(lax, **OPERATIONS)


def swap_lax(*libraries: types.ModuleType | str) -> "contextlib._GeneratorContextManager[None]":
    """Inside this block, code that cannot be edited uses jaxbp wherever it calls `jax.lax` by name.

    For the duration of the block the names `lax`, `jax` and the functions listed below, where they are globals
    of the libraries' modules, are bound to stand-ins. These call jaxbp in the thread that opened the block and
    `jax.lax` in every other, so other threads keep what they had. Values stay the same; gradients become the
    hand-written ones: for `z = x * w`, `dx = dz (full) rot180(w)` and `dw = x (corr) dz`.

    Swapped: `conv_general_dilated`, `conv_transpose`, `conv`, `conv_with_general_padding`, and `reduce_window`
    of a floating-point array with `lax.max`, `lax.min` or `lax.add` (this is what pooling layers call).

    Functions compiled with `jax.jit`: the block is part of their cache key. One that was compiled before is
    traced and compiled again inside the block; after the block, its former program runs again.

    Not reached:

    - programs already compiled ahead of time (`jax.jit(f).lower(x).compile()`), exported ones, and jaxprs;
      likewise a program compiled ahead of time inside the block stays on jaxbp after it, and so does the
      pullback of a `jax.vjp` taken inside;
    - a function that was stored anywhere but in a module's global name: default arguments,
      `functools.partial`, class and instance attributes. `flax.nnx.Conv` stores its convolution so: give it
      `conv_general_dilated=jaxbp.conv_general_dilated`, or use `jaxbp.flax.nnx`;
    - imports inside functions, and modules first imported inside the block;
    - JAX's own modules (`jnp.convolve`, `jax.scipy.signal`, `lax.conv_general_dilated_local`), and
      `reduce_window` of integers, with another reduction, or with a base dilation: they stay with `jax.lax`;
    - forward mode (`jax.jvp`, `jax.jacfwd`, `jax.linearize`): JAX refuses it for hand-written rules, so take it
      outside the block, or open `jaxbp.forward_mode()`, too;
    - coroutines that the same thread runs while the block waits: they are inside it, too.

    Args:
      *libraries: the packages to swap in, as modules or by name; their submodules count as well. Without any:
        all modules imported so far, `__main__` among them, except those of `jax`, `jaxlib` and `jaxbp`.

    Returns:
      A context manager, also usable as a decorator (`@swap_lax()`) of a function that is no generator and
      no coroutine: those run after their call, outside of the block. Blocks may be nested and may overlap
      between threads. Every name gets its own value back when the last block that swapped it is left, by
      whatever way.

    Raises:
      TypeError: a library is neither a module nor a name.
      ValueError: a library is not imported yet, is one of `jax`, `jaxlib` and `jaxbp`, or binds none of the
        swapped names in any of its modules.

    Example:
      >>> import sys, types, jax, jax.numpy as jnp, jaxbp
      >>> library = types.ModuleType("library")  # stands for one that cannot be edited
      >>> exec("from jax import lax\\ndef layer(x, w): return lax.conv(x, w, (1, 1), 'VALID')", vars(library))
      >>> sys.modules["library"] = library
      >>> x, w = jnp.arange(9.0).reshape(1, 1, 3, 3), jnp.arange(4.0).reshape(1, 1, 2, 2)
      >>> with jaxbp.swap_lax("library"):
      ...     jax.grad(lambda w: library.layer(x, w).sum())(w)
      Array([[[[ 8., 12.],
               [20., 24.]]]], dtype=float32)

    Source: the rules are those of `jaxbp.conv` and `jaxbp.max_pool`; the cache key is `jax.make_user_context`.
    """
    for library in libraries:
        if not isinstance(library, types.ModuleType | str):
            raise TypeError(
                f"swap_lax: {library!r} is no library; give modules or their names, as in swap_lax('flax'), or none "
                "for all that are imported: swap_lax(). As a decorator it needs its parentheses, too: @swap_lax()"
            )
    return _block(*libraries)


@contextlib.contextmanager
def _block(*libraries: types.ModuleType | str) -> Iterator[None]:
    """The block of `swap_lax`."""
    bindings = _find_bindings(libraries)
    with _lock:
        inside_block = _block_context()
        for binding in bindings:
            _users[binding.key] += 1
            binding.namespace[binding.name] = binding.stand_in
    try:
        with inside_block(True):
            yield
    finally:
        with _lock:
            for binding in bindings:
                _users[binding.key] -= 1
                # A name that was given another value meanwhile keeps it.
                if not _users[binding.key] and binding.namespace.get(binding.name) is binding.stand_in:
                    binding.namespace[binding.name] = binding.original


class _Binding(NamedTuple):
    """One global name of one module, with its own value and the one it has inside a block."""

    namespace: dict[str, Any]
    name: str
    original: Any
    stand_in: Any

    @property
    def key(self) -> tuple[int, str]:
        return id(self.namespace), self.name


_lock = threading.Lock()
_users: Counter[tuple[int, str]] = Counter()


@functools.cache
def _block_context() -> Any:
    """JAX's context that is on inside a block; made late, because making one empties jit's fast cache."""
    return jax.make_user_context(default_value=False)


class _Switch:
    """A function that is `replacement` inside a block of its own thread and `original` anywhere else."""

    def __init__(self, original: Callable[..., Any], replacement: Callable[..., Any]):
        functools.update_wrapper(self, original)
        self._original, self._replacement = original, replacement

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self._replacement if _block_context().value else self._original)(*args, **kwargs)

    def __reduce__(self) -> Any:
        # A model that was made inside a block is read outside of it.
        return _itself, (self._original,)


def _itself(function: F) -> F:
    """What a pickled switch is when it is read."""
    return function


_SWITCHED = {name: _Switch(getattr(lax, name), operation) for name, operation in OPERATIONS.items()}
_SWITCHED_LAX = _StandIn(lax, **_SWITCHED)
_STAND_INS = [
    (jax, _StandIn(jax, lax=_SWITCHED_LAX)),
    (lax, _SWITCHED_LAX),
    *((getattr(lax, name), switched) for name, switched in _SWITCHED.items()),
]
# Found by identity, and by the stand-in's too: another block may already be open.
_BY_IDENTITY = {id(value): pair for pair in _STAND_INS for value in pair}


def _find_bindings(libraries: Sequence[types.ModuleType | str]) -> list[_Binding]:
    """Every global name to swap, in the libraries' loaded modules; ValueError where there is none."""
    loaded = {name: module for name, module in list(sys.modules.items()) if hasattr(module, "__dict__")}
    refused = ("jax", "jaxlib", "jaxbp")
    if not libraries:
        names = [name for name in loaded if name.partition(".")[0] not in refused]
        return [binding for name in names for binding in _bindings_of(loaded[name])]
    bindings = []
    for library in libraries:
        package = library if isinstance(library, str) else library.__name__
        if package.partition(".")[0] in refused:
            raise ValueError(
                f"swap_lax: cannot swap inside {package!r}, which jaxbp itself runs on; "
                f"name the library or the module that calls jax.lax"
            )
        if package not in loaded:
            raise ValueError(f"swap_lax: {package!r} is not imported; import it before the block")
        names = [name for name in loaded if name == package or name.startswith(f"{package}.")]
        found = [binding for name in names for binding in _bindings_of(loaded[name])]
        if not found:
            raise ValueError(
                f"swap_lax: none of the {len(names)} loaded modules of {package!r} has a global name bound to "
                f"jax, jax.lax or one of {', '.join(OPERATIONS)}; nothing would be swapped"
            )
        bindings += found
    return bindings


def _bindings_of(module: types.ModuleType) -> list[_Binding]:
    """The global names of one module that a block swaps."""
    return [
        _Binding(vars(module), name, *_BY_IDENTITY[id(value)])
        for name, value in list(vars(module).items())
        if id(value) in _BY_IDENTITY
    ]
