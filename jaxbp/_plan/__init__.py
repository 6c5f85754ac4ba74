"""Which algorithm of `_algorithms` evaluates a sum, on each platform: the entry points of the sums of convs and pools.

No gradients and no validation here: a rule in `_conv.py` or `_max_pool.py` says what is computed, with a geometry that
was checked once. `_cpu`, `_cpu_kernel_grad`, `_cpu_winograd` and `_gpu` choose. `_run_on_cpu` and `_run_on_gpu` run
what was chosen.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._algorithms import _direct, _pools, _upsample, _windows
from .._algorithms._direct import rot180 as rot180
from .._algorithms._memory import after as after
from .._algorithms._windows import Form
from .._arguments import sum_dtype, wider
from .._batching import is_mapped_here
from .._geometry import ConvGeometry, Window
from . import _cpu, _cpu_kernel_grad, _gpu, _run_on_cpu, _run_on_gpu


@partial(jax.jit, static_argnums=2, inline=True)
def conv_forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """(N, *output, O) from x of (N, *spatial, C) and a kernel of (*window, C / groups, O)."""
    dtype = g.preferred_element_type or x.dtype
    if 0 in (*x.shape, *kernel.shape, *g.window.output_shape):
        return jnp.zeros((x.shape[0], *g.window.output_shape, kernel.shape[-1]), dtype)
    sizes = x.shape[0], x.shape[-1], kernel.shape[-1]
    names = Names(_cpu.forward_form(g, *sizes)[0], _gpu.forward_form(g, *sizes)[0])
    return _evaluate(names, _direct.forward, _run_on_cpu.forward, _run_on_gpu.forward, x, kernel, g).astype(dtype)


@partial(jax.jit, static_argnums=2, inline=True)
def conv_input_grad(delta: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """(N, *spatial, C) from delta of (N, *output, O), in the kernel's dtype."""
    *_, group_channels, features = kernel.shape
    channels = group_channels * g.feature_group_count
    shape = (delta.shape[0], *g.window.input_shape, channels)
    if 0 in (*delta.shape, *shape):
        return jnp.zeros(shape, kernel.dtype)
    wide = wider(delta.dtype, kernel.dtype)
    sizes = delta.shape[0], channels, features
    names = Names(_cpu.input_grad_form(g, *sizes)[0], _gpu.input_grad_form(g, *sizes)[0])
    forms = _direct.input_grad, _run_on_cpu.input_grad, _run_on_gpu.input_grad
    return _evaluate(names, *forms, delta.astype(wide), kernel.astype(wide), g).astype(kernel.dtype)


def conv_kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """(*window, C / groups, O) from x of (N, *spatial, C) and delta of (N, *output, O), in x's dtype."""
    return _kernel_grad(x, delta, g, is_mapped_here(x))


@partial(jax.jit, static_argnums=(2, 3), inline=True)
def _kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, mapped: bool) -> jax.Array:
    """The same. Below a vmap every example has a kernel gradient of its own, and no algorithm may group them."""
    shape = (*g.window.window_shape, x.shape[-1] // g.feature_group_count, delta.shape[-1])
    if 0 in (*x.shape, *delta.shape):
        return jnp.zeros(shape, x.dtype)
    wide = wider(x.dtype, delta.dtype)
    sizes = x.shape[0], x.shape[-1], delta.shape[-1]
    on_cpu = "one by one" if mapped else _cpu_kernel_grad.kernel_grad_form(g, *sizes)[0]
    names = Names(on_cpu, _gpu.kernel_grad_form(g, *sizes, wide.itemsize)[0])
    forms = _direct_kernel_grad, partial(_run_on_cpu.kernel_grad, mapped=mapped), _run_on_gpu.kernel_grad
    return _evaluate(names, *forms, x.astype(wide), delta.astype(wide), g).astype(x.dtype)


def _direct_kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """The direct sum, accumulated in the dtype for sums."""
    wide = sum_dtype(x.dtype)
    return _direct.kernel_grad(x.astype(wide), delta.astype(wide), g)


@partial(jax.jit, static_argnums=1, inline=True)
def max_and_winners(x: jax.Array, w: Window) -> tuple[jax.Array, jax.Array]:
    """The maximum of every window of x, (*batch, *spatial, C), and the tap that won it."""
    if 0 in (*x.shape, *w.output_shape):
        empty = (*x.shape[: x.ndim - w.rank - 1], *w.output_shape, x.shape[-1])
        lowest = jnp.full(empty, _windows.lowest(x.dtype), x.dtype)
        return lowest, jnp.full(empty, w.taps, _windows.winner_dtype(w.taps))
    return _pools.max_and_winners(x, w)


@partial(jax.jit, static_argnums=2, inline=True)
def upsample_winners(delta: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """Each delta at the input pixel that won its window, added where one pixel won several, 0 elsewhere."""
    return _or_zeros(_pools.by_winners, delta, winners, w)


@partial(jax.jit, static_argnums=2, inline=True)
def upsample_maxima(delta: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """The same for winners that a maximum chose: windows that chose in the same row chose the same pixel of it."""
    return _or_zeros(partial(_pools.by_winners, chosen=True), delta, winners, w)


@partial(jax.jit, static_argnums=2, inline=True)
def unpool_winners(values: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """Each value at the input pixel that won its window, the last one where a pixel won several, 0 elsewhere."""
    return _or_zeros(_upsample.unpool, values, winners, w)


@partial(jax.jit, static_argnums=2, inline=True)
def take_winners(x: jax.Array, winners: jax.Array, w: Window) -> jax.Array:
    """The input pixel that won each window."""
    return _windows.take_winners(x, winners, w) if x.size and winners.size else jnp.zeros(winners.shape, x.dtype)


@partial(jax.jit, static_argnums=1, inline=True)
def window_sum(x: jax.Array, w: Window) -> jax.Array:
    """The sum of every window, in the dtype in which sums are accumulated."""
    x = x.astype(sum_dtype(x.dtype))
    if 0 in (*x.shape, *w.output_shape):
        return jnp.zeros((*x.shape[: x.ndim - w.rank - 1], *w.output_shape, x.shape[-1]), x.dtype)
    return _pools.window_sum(x, w)


@partial(jax.jit, static_argnums=1, inline=True)
def upsample_evenly(delta: jax.Array, w: Window) -> jax.Array:
    """Each delta at every input pixel of its window, added where windows overlap."""
    return _or_zeros(lambda d, _, w: _pools.evenly(d, w), delta, None, w)


def _or_zeros(form: Callable[..., jax.Array], delta: jax.Array, winners: jax.Array | None, w: Window) -> jax.Array:
    """`form` of delta, unless there is nothing to upsample."""
    if 0 in (*delta.shape, *w.input_shape):
        return jnp.zeros((*delta.shape[: delta.ndim - w.rank - 1], *w.input_shape, delta.shape[-1]), delta.dtype)
    return form(delta, winners, w)


class Names(NamedTuple):
    """The algorithms of one sum, by name."""

    cpu: str
    gpu: str


def _evaluate(
    names: Names, direct: Form, on_cpu: Form, on_gpu: Form, a: jax.Array, b: jax.Array, g: ConvGeometry
) -> jax.Array:
    """The chosen algorithm on a CPU and on an NVIDIA GPU, the direct sum elsewhere.

    The platform is known when the program is lowered.
    """
    if {*names} == {"direct"} or not jnp.issubdtype(a.dtype, jnp.floating):
        return direct(a, b, g)
    dtype = jax.eval_shape(lambda a, b: direct(a, b, g), a, b).dtype

    def anywhere(a: jax.Array, b: jax.Array) -> jax.Array:
        return direct(a, b, g)

    def cpu(a: jax.Array, b: jax.Array) -> jax.Array:
        wide = wider(sum_dtype(a.dtype), dtype)
        return on_cpu(a.astype(wide), b.astype(wide), g._replace(preferred_element_type=None)).astype(dtype)

    def gpu(a: jax.Array, b: jax.Array) -> jax.Array:
        return on_gpu(a, b, g).astype(dtype)

    platforms = {"cpu": cpu} if names.cpu != "direct" else {}
    if names.gpu != "direct" and g.preferred_element_type is None:
        platforms["cuda"] = gpu
    return lax.platform_dependent(a, b, **platforms, default=anywhere) if platforms else anywhere(a, b)
