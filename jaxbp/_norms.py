"""The squared norm of each example's parameter gradients, without those gradients.

The kernel's gradient of one example is a sum over its output positions, `dW = sum_t p_t delta_t^T`, where p_t is the
patch of the input that output t reads. So its squared norm is a sum over pairs of positions,

    |dW|^2 = sum_(t, s) (p_t . p_s) (delta_t . delta_s)

the product of two Gram matrices of T x T. Of D elements in a patch and p features, for each group, they take
T^2 (D + p) products and the gradient takes T D p. So the Gram matrices are the shorter way where T (D + p) < D p: few
positions, many channels, as in a network's deep layers. Elsewhere the gradient is summed and its squares are added.

An op learns norms by an argument: `norms` takes part in nothing forward, and its cotangent is, by definition, the
squared norm. Layers that share one array add up their norms, as cotangents do. So one backward pass gives the norms of
a model.

Source: Goodfellow, "Efficient per-example gradient computations" (2015); Rochette, Manoel, Tramel, "Efficient
per-example gradient computations in convolutional neural networks" (2019).
"""

import functools
import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from . import _sums as sums
from ._algorithms._windows import MAX_TAPS, tap_views
from ._arguments import Asked, as_array, keeping_64_bits, sum_dtype, wider
from ._batching import op_primitive
from ._forward_mode import refuse
from ._geometry import ConvGeometry, Window, dilated_size, is_static
from ._mesh import call_rule

# Kernels' gradients or Gram matrices that are held at once; beyond, examples come one after the other.
MOST_BYTES = 32 * 2**20
NORM_DTYPES = ("float32", "float64")


def dense_geometry(precision: Any = None) -> ConvGeometry:
    """A dense layer: the convolution without spatial axes."""
    return ConvGeometry(Window((), (), (), (), (), (), ()), 1, precision)


# --------------------------------------------------------------------------------- squared norms of a kernel's gradient


def kernel_sqnorms(x: jax.Array, delta: jax.Array, g: ConvGeometry, exact: bool = False) -> jax.Array:
    """(N,) of x (N, rows, *spatial, C) and delta (N, rows, *output, O): the rows of an example are summed inside."""
    return sqnorms_p.bind(x, delta, geometry=g._replace(preferred_element_type=None), exact=exact)


def norm_dtype(*dtypes: Any) -> Any:
    """The dtype of norms: float32, or float64 where the numbers have it."""
    wide = reduce(wider, dtypes)
    return np.finfo(wide).dtype.type if sum_dtype(wide) == wide and jnp.issubdtype(wide, jnp.inexact) else jnp.float32


def takes_gram(x_shape: Sequence[int], features: int, g: ConvGeometry) -> bool:
    """Whether Gram matrices take fewer products than the gradient: T (D + p) < D p, for each group."""
    _, rows, *_, channels = x_shape
    w, groups = g.window, g.feature_group_count
    if not is_static((rows, *w.input_shape, *w.output_shape, *w.window_shape)) or w.taps > MAX_TAPS:
        return False
    positions, columns = rows * math.prod(w.output_shape), w.taps * channels // groups
    return positions * (columns + features // groups) < columns * (features // groups)


@keeping_64_bits
def _evaluate(x: jax.Array, delta: jax.Array, *, geometry: ConvGeometry, exact: bool) -> jax.Array:
    """Each example's squared norm; in a loop, where all at once would take too much memory."""
    dtype = norm_dtype(x.dtype, delta.dtype)
    if is_static((*x.shape, *delta.shape)) and 0 in (*x.shape, *delta.shape):
        return jnp.zeros(x.shape[:1], dtype)
    wide = wider(sum_dtype(wider(x.dtype, delta.dtype)), dtype)
    gram = not exact and jnp.issubdtype(wide, jnp.floating) and takes_gram(x.shape, delta.shape[-1], geometry)
    of_one = partial(_by_gram if gram else _by_gradient, g=geometry)

    def one(x: jax.Array, delta: jax.Array) -> jax.Array:
        return of_one(x.astype(wide), delta.astype(wide)).astype(dtype)

    examples, rows = x.shape[:2]
    w, groups = geometry.window, geometry.feature_group_count
    held = w.taps * (x.shape[-1] // groups) * delta.shape[-1]
    if gram:
        held = 2 * groups * (rows * math.prod(w.output_shape)) ** 2
    if not is_static((examples, held)):
        return lax.map(lambda pair: one(*pair), (x, delta))
    at_once = MOST_BYTES // (held * jnp.dtype(wide).itemsize)
    if examples <= at_once:
        return jax.vmap(one)(x, delta)
    return lax.map(lambda pair: one(*pair), (x, delta), batch_size=at_once if at_once > 1 else None)


def _by_gradient(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Of one example: its gradient's entries, squared and added up."""
    dkernel = sums.kernel_grad(x, delta, g)
    return jnp.sum(lax.real(dkernel * dkernel.conj()) if jnp.iscomplexobj(dkernel) else dkernel * dkernel)


def _by_gram(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Of one example: products of patches times products of delta, over all pairs of positions.

    Rounding may leave a number below zero where terms cancel; a norm is not.
    """
    w, groups = g.window, g.feature_group_count
    zeros = [(0, 0, 0), *((0, 0, d - 1) for d in w.input_dilation), (0, 0, 0)]
    sizes = tuple(map(dilated_size, w.input_shape, w.input_dilation))
    over = w._replace(input_shape=sizes, input_dilation=(1,) * w.rank)
    patches = reduce(jnp.add, (_gram(v, groups) for v in tap_views(lax.pad(x, jnp.zeros((), x.dtype), zeros), over, 0)))
    # Rows first, so that no sum is longer than T: its rounding error would show where terms cancel.
    return jnp.maximum(jnp.sum(jnp.sum(patches * _gram(delta, groups), axis=-1)), 0)


def _gram(a: jax.Array, groups: int) -> jax.Array:
    """(groups, T, T): products of all pairs of positions."""
    a = a.reshape(-1, groups, a.shape[-1] // groups)
    return jnp.einsum("tgc,sgc->gts", a, a, precision=lax.Precision.HIGHEST)


sqnorms_p = Primitive("kernel_sqnorms")


@functools.lru_cache(maxsize=4096)
def _compiled(**parameters: Any) -> Any:
    """For eager calls."""
    return jax.jit(partial(_evaluate, **parameters))


def _abstract(x: Any, delta: Any, *, geometry: ConvGeometry, exact: bool) -> Any:
    """One number for each example; it varies over the mesh axes over which the operands do."""
    like = max(x, delta, key=lambda a: len(a.manual_axis_type.varying))
    sharding = NamedSharding(like.sharding.mesh, PartitionSpec(None))
    dtype = jnp.dtype(norm_dtype(x.dtype, delta.dtype))
    return like.update(shape=x.shape[:1], dtype=dtype, weak_type=False, sharding=sharding)


def _derivative(primals: Sequence[Any], tangents: Sequence[Any], **parameters: Any) -> Any:
    """That of the sums and products."""
    tangents = [ad.instantiate_zeros(tangent) for tangent in tangents]
    return jax.jvp(partial(_evaluate, **parameters), tuple(primals), tuple(tangents))


def _batched(operands: Sequence[Any], axes: Sequence[int | None], **parameters: Any) -> tuple[Any, int]:
    """Examples of examples are examples."""
    count = next(a.shape[axis] for a, axis in zip(operands, axes, strict=True) if axis is not None)
    x, delta = (
        jnp.broadcast_to(a, (count, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(operands, axes, strict=True)
    )
    inner = x.shape[1]
    joined = (a.reshape(count * inner, *a.shape[2:]) for a in (x, delta))
    return sqnorms_p.bind(*joined, **parameters).reshape(count, inner), 0


sqnorms_p.def_impl(lambda x, delta, **parameters: _compiled(**parameters)(x, delta))
sqnorms_p.def_abstract_eval(_abstract)
ad.primitive_jvps[sqnorms_p] = _derivative
batching.primitive_batchers[sqnorms_p] = _batched
mlir.register_lowering(sqnorms_p, mlir.lower_fun(_evaluate, multiple_results=False))


# ------------------------------------------------------------------------------- a layer's output, that counts norms


class Counted(NamedTuple):
    """Whose gradients' norms: the layer's geometry, how many rows an example has, and which of kernel and bias."""

    geometry: ConvGeometry
    rows: int
    kernel: bool
    bias: bool


def _pass(of: Counted, z: jax.Array, x: jax.Array, norms: jax.Array, *parameters: jax.Array) -> jax.Array:
    """z: what is added stands in the rule."""
    return z


def _pass_fwd(of: Counted, asked: Asked, z: jax.Array, x: jax.Array, norms: jax.Array, *parameters: Any) -> tuple:
    """Keep x, which the layer keeps as well."""
    return z, (x, norms)


def _pass_bwd(of: Counted, asked: Asked, kept: tuple, delta: jax.Array) -> tuple:
    """delta for z; squared norms for `norms`; and, where parameters are given, their gradients.

    Those leave out what is not finite: an example whose weight in the sum is zero adds zero whatever it overflows in.
    """
    x, norms = kept
    asks_z, _, asks_norms, *asks_parameters = asked
    gradients = []
    names = [name for name, counted in (("kernel", of.kernel), ("bias", of.bias)) if counted]
    for name, asks in zip(names, asks_parameters, strict=False):
        if not asks:
            gradients.append(None)
        elif name == "kernel":
            gradients.append(sums.kernel_grad(_finite(x), _finite(delta), of.geometry).astype(x.dtype))
        else:
            wide = _finite(delta).astype(sum_dtype(delta.dtype))
            gradients.append(jnp.sum(wide, axis=range(delta.ndim - 1)).astype(delta.dtype))
    squares = _sqnorms(of, x, delta, norms.shape[0]).astype(norms.dtype) if asks_norms else None
    return delta if asks_z else None, None, squares, *gradients


def _sqnorms(of: Counted, x: jax.Array, delta: jax.Array, examples: int) -> jax.Array:
    """Each example's squared norm of the layer's counted gradients."""
    x, delta = (a.reshape(examples, of.rows, *a.shape[1:]) for a in (x, delta))
    dtype = norm_dtype(x.dtype, delta.dtype)
    total = jnp.zeros(examples, dtype)
    if of.kernel:
        total = total + kernel_sqnorms(x, delta, of.geometry)
    if of.bias:
        dbias = jnp.sum(delta.astype(wider(sum_dtype(delta.dtype), dtype)), axis=range(1, delta.ndim - 1))
        total = total + jnp.sum(jnp.square(jnp.abs(dbias)), axis=-1).astype(dtype)
    return total


def _finite(a: jax.Array) -> jax.Array:
    """Zero in place of infinities and NaN."""
    return jnp.where(jnp.isfinite(a), a, jnp.zeros((), a.dtype))


norms_p = op_primitive("norms", _pass, _pass_fwd, _pass_bwd)


def count_norms(
    g: ConvGeometry, rows: int, z: jax.Array, x: jax.Array, norms: jax.Array, *parameters: jax.Array, kernel: bool,
    bias: bool,
) -> jax.Array:  # fmt: skip
    """z of (M rows, *output, O), which counts norms of (M,); with the parameters, also their gradients."""
    of = Counted(g._replace(preferred_element_type=None), rows, kernel, bias)
    return norms_p.bind(z, x, norms, *parameters, static=of, batch=(0, 0, 0, 0), levels=())


def with_norms(op: str, g: ConvGeometry, z: jax.Array, x: jax.Array, norms: Any, *, bias: bool) -> jax.Array:
    """z of (*batch, *output, O) of a layer that was given `norms=`; every op that has it comes through here."""
    refuse(op, "norms=")
    norms = as_array(op, "norms", norms)
    batch = x.shape[: x.ndim - g.window.rank - 1]
    if norms.dtype.name not in NORM_DTYPES:
        raise TypeError(f"{op}: norms has dtype {norms.dtype}, but squared norms are added up in float32 (or float64)")
    if norms.shape != batch[: norms.ndim]:
        raise ValueError(
            f"{op}: norms has shape {norms.shape}, which is not how the batch axes {batch} of the input begin; for a "
            f"norm of each example give jax.numpy.zeros({batch[:1]})"
        )

    def call(z: jax.Array, x: jax.Array, norms: jax.Array) -> jax.Array:
        z_rows, x_rows = (a.reshape(math.prod(batch), *a.shape[len(batch) :]) for a in (z, x))
        flat, rows = norms.reshape(math.prod(norms.shape)), math.prod(batch[norms.ndim :])
        return count_norms(g, rows, z_rows, x_rows, flat, kernel=True, bias=bias).reshape(z.shape)

    like = [(z, axis) for axis in range(z.ndim)]
    return call_rule(call, z, x, norms, output_shape=z.shape, like=like)
