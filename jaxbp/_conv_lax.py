"""Convolution under lax's own names: the rule of `_conv.py`, read and written in a layout.

A layout is a transposition. A group of the batch is a group of channels in disguise: with b groups,
(b n, *spatial, C) is moved to (n, *spatial, b C), and group j reads channels j C to (j + 1) C. Both only move
elements, so that the gradient of each is the move back. The rule keeps the operands as they were given: what an
earlier op keeps of them is then not kept twice.
"""

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from . import _sums as sums
from ._arguments import Asked, as_array, keeping_64_bits, require_same_dtype
from ._batching import op_primitive
from ._conv import conv_backward, conv_geometry
from ._forward_mode import mode
from ._geometry import (
    PADDING_WORDS,
    ConvGeometry,
    canonical_padding,
    conv_window,
    dilated_size,
    per_axis,
    transposed_padding,
)
from ._mesh import call_rule, whole_along
from ._norms import with_norms


@keeping_64_bits
def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
    *,
    norms: jax.Array | None = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` with a hand-written backward rule: same arguments, same values.

    `z[o] = sum_t x[s o + d t - p] w[t]` along every spatial axis, summed over the input channels of a group. Here
    x is lhs, w is rhs, t a position in the window, s the stride, d the kernel dilation, and p the padding before lhs.

    Args:
      lhs: input of n + 2 axes in the layout of `dimension_numbers`, by default (N, C, *spatial).
      rhs: kernel of n + 2 axes, by default (O, C / feature groups, *window), of lhs's dtype.
      window_strides: n integers, in pixels.
      padding: "SAME", "SAME_LOWER", "VALID" or n (low, high) pairs in pixels.
      lhs_dilation: n integers: distance between the input's pixels; None: 1.
      rhs_dilation: n integers: distance between the kernel's pixels; None: 1.
      dimension_numbers: as in lax: None, a `ConvDimensionNumbers`, or three strings such as ("NHWC", "HWIO", "NHWC").
      feature_group_count, batch_group_count: number of groups; only one of them may exceed 1.
      precision: as in lax, and as in `conv`.
      preferred_element_type, out_sharding: as in lax.
      norms: as in `conv`: zeros in float32 of shape (N,) whose cotangent is each example's squared norm of the kernel's
        gradient; None: none.

    Returns:
      The output of n + 2 axes in the layout of `dimension_numbers`; of size 0 where the window does not fit.

    Raises:
      TypeError: an argument is not an array, dtypes differ, or strides or dilations are no sequences.
      ValueError: shapes, groups, padding, strides or dilations do not fit; an integer where lax has a (low, high)
        pair; a padding word together with an `lhs_dilation` (the message says which pairs to write); norms of another
        shape, or with groups of the batch.

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> x, kernel = jnp.arange(9.).reshape(1, 1, 3, 3), jnp.arange(4.).reshape(1, 1, 2, 2)
      >>> jaxbp.conv_general_dilated(x, kernel, (1, 1), "VALID")
      Array([[[[19., 25.],
               [37., 43.]]]], dtype=float32)

    Source: the XLA operation semantics of ConvWithGeneralPadding.
    """
    return _general(
        "conv_general_dilated", lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
        feature_group_count, batch_group_count, precision, preferred_element_type, out_sharding, norms,
    )  # fmt: skip


@keeping_64_bits
def conv_transpose(
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
    use_consistent_padding: bool = False,
) -> jax.Array:
    """`jax.lax.conv_transpose` with a hand-written backward rule: same arguments, same values.

    A convolution of stride 1 over the input with `strides - 1` zeros between its pixels:
    `z[o] = sum_t x[(o + d t - p) / s] w[t]`, over the positions t in the window for which the index is whole. Here
    x is lhs, w is rhs, s the stride, d the kernel dilation and p the padding before the dilated input.

    Args:
      lhs: input of n + 2 axes in the layout of `dimension_numbers`, by default (N, *spatial, C).
      rhs: kernel of n + 2 axes, by default (*window, C, O), of lhs's dtype.
      strides: n integers, in pixels of the output.
      padding: "SAME" or "VALID" (of the forward convolution whose sizes this one undoes), or n (low, high) pairs
        around the dilated input; with `use_consistent_padding` the pairs, too, are the forward convolution's.
        With strides of 1 the other words and spellings of lax (such as "same") pad the input itself, as in lax.
      rhs_dilation: n integers: distance between the kernel's pixels; None: 1.
      dimension_numbers: as in lax.
      transpose_kernel: rotate the kernel by 180 degrees and exchange its channel axes, as Keras does.
      precision: as in lax, and as in `conv`.
      preferred_element_type: as in lax.
      use_consistent_padding: read pairs as PyTorch does.

    Returns:
      The output of n + 2 axes in the layout of `dimension_numbers`.

    Raises:
      TypeError: as `conv_general_dilated`.
      ValueError: as `conv_general_dilated`; another word than "SAME" and "VALID" with a stride (the message says
        which pairs to write).

    Example:
      >>> import jax.numpy as jnp, jaxbp
      >>> x, kernel = jnp.array([[[1.], [2.]]]), jnp.array([1., 10.]).reshape(2, 1, 1)
      >>> jaxbp.conv_transpose(x, kernel, (2,), "VALID")[0, :, 0]
      Array([10.,  1., 20.,  2.], dtype=float32)

    Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016), section 4.
    """
    op = "conv_transpose"
    lhs, rhs = _arrays(op, lhs, rhs)
    rank = lhs.ndim - 2
    if dimension_numbers is None:
        spatial = tuple(range(1, rank + 1))
        channels_last = (0, rank + 1, *spatial)
        dimension_numbers = lax.ConvDimensionNumbers(channels_last, (rank + 1, rank, *range(rank)), channels_last)
    dn = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    steps = _per_axis(op, "strides", strides, rank)
    dilation = _per_axis(op, "rhs_dilation", (1,) * rank if rhs_dilation is None else rhs_dilation, rank)
    spans = tuple(dilated_size(rhs.shape[axis], d) for axis, d in zip(dn.rhs_spec[2:], dilation, strict=True))
    pads = _transposed_pads(op, padding, spans, steps, use_consistent_padding)
    if transpose_kernel:
        rhs = lax.rev(rhs, dn.rhs_spec[2:]).swapaxes(dn.rhs_spec[0], dn.rhs_spec[1])
    return _general(op, lhs, rhs, (1,) * rank, pads, steps, dilation, dn, 1, 1, precision, preferred_element_type, None)


def _general(
    op: str, lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, lhs_dilation: Any, rhs_dilation: Any,
    dimension_numbers: Any, feature_group_count: int, batch_group_count: int, precision: Any,
    preferred_element_type: Any, out_sharding: Any, norms: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """Bring the arguments to `conv`'s layout, call its rule, and bring the result back."""
    lhs, rhs, call = prepared(
        op, lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
        batch_group_count, precision, preferred_element_type,
    )  # fmt: skip
    # Examples that joined the batch would be torn apart by its groups.
    dn, batch_groups = call.layout
    join = (dn.lhs_spec[0], dn.out_spec[0]) if batch_groups == 1 else None
    z = call_rule(
        partial(conv_in_layout_p.bind, static=(call.geometry, call.layout), batch=join, levels=(), **mode()), lhs, rhs,
        output_shape=call.output_shape, like=call.like, out_sharding=checked_sharding(op, out_sharding),
    )  # fmt: skip
    if norms is None:
        return z
    if batch_groups != 1:
        raise ValueError(f"{op}: norms= needs examples of their own, but batch_group_count={batch_groups} mixes them")
    x, z = call.layout.input(lhs), call.layout.output(z)
    return call.layout.undo_output(with_norms(op, call.geometry, z, x, norms, bias=False))


class Call(NamedTuple):
    """What the arguments of lax's signature come to: geometry, layout, and the output's shape and sharding."""

    geometry: ConvGeometry
    layout: "Layout"
    output_shape: Sequence[int]
    like: Sequence[tuple[jax.Array, int] | None]


def prepared(
    op: str, lhs: Any, rhs: Any, window_strides: Any, padding: Any, lhs_dilation: Any, rhs_dilation: Any,
    dimension_numbers: Any, feature_group_count: int, batch_group_count: int, precision: Any,
    preferred_element_type: Any,
) -> tuple[jax.Array, jax.Array, Call]:  # fmt: skip
    """The arguments, checked once."""
    lhs, rhs = _arrays(op, lhs, rhs)
    dn = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    batch, features = lhs.shape[dn.lhs_spec[0]], rhs.shape[dn.rhs_spec[0]]
    batch_groups = _checked_batch_groups(op, batch, features, feature_group_count, batch_group_count)
    lhs = whole_along(lhs, dn.lhs_spec[2:], dn.lhs_spec[1])
    layout = Layout(dn, batch_groups)
    # Of shapes alone: a sharding in the types may not allow the reshape, which the compiler makes later.
    x, kernel = (
        jax.eval_shape(move, jax.ShapeDtypeStruct(a.shape, a.dtype))
        for move, a in ((layout.input, lhs), (layout.kernel, rhs))
    )
    groups = feature_group_count if batch_groups == 1 else batch_groups
    rank = lhs.ndim - 2
    strides = _per_axis(op, "window_strides", window_strides, rank)
    lhs_dilation = _per_axis(op, "lhs_dilation", (1,) * rank if lhs_dilation is None else lhs_dilation, rank)
    rhs_dilation = _per_axis(op, "rhs_dilation", (1,) * rank if rhs_dilation is None else rhs_dilation, rank)
    w = conv_window(
        op, x.shape, kernel.shape, strides, _word_or_pairs(op, padding, rank), lhs_dilation, rhs_dilation, groups,
        names=("lhs", "rhs", "feature_group_count", "window_strides", "rhs_dilation", "lhs_dilation"),
        allow_empty=True,
    )  # fmt: skip
    sizes = {dn.out_spec[0]: (lhs, dn.lhs_spec[0]), dn.out_spec[1]: (rhs, dn.rhs_spec[0])}
    sizes |= {out: (lhs, axis) for out, axis in zip(dn.out_spec[2:], dn.lhs_spec[2:], strict=True)}
    shape = dict(zip(dn.out_spec, (batch // batch_groups, features, *w.output_shape), strict=True))
    g = conv_geometry(w, groups, precision, lhs.dtype, preferred_element_type)
    axes = range(lhs.ndim)
    return lhs, rhs, Call(g, layout, [shape[axis] for axis in axes], [sizes[axis] for axis in axes])


class Layout(NamedTuple):
    """Where lax has the axes of a convolution, and in how many groups its batch."""

    numbers: lax.ConvDimensionNumbers
    batch_groups: int

    def input(self, lhs: jax.Array) -> jax.Array:
        """lhs as (N, *spatial, C)."""
        x = _channels_last(lhs, self.numbers.lhs_spec)
        if self.batch_groups == 1:
            return x
        batch, *spatial, channels = x.shape
        members = batch // self.batch_groups
        grouped = jnp.moveaxis(x.reshape(self.batch_groups, members, *spatial, channels), 0, -2)
        return grouped.reshape(members, *spatial, self.batch_groups * channels)

    def lhs(self, x: jax.Array) -> jax.Array:
        """Undo `input`."""
        if self.batch_groups != 1:
            members, *spatial, channels = x.shape
            grouped = jnp.moveaxis(x.reshape(members, *spatial, self.batch_groups, -1), -2, 0)
            x = grouped.reshape(members * self.batch_groups, *spatial, channels // self.batch_groups)
        return _as_in_lax(x, self.numbers.lhs_spec)

    def kernel(self, rhs: jax.Array) -> jax.Array:
        """rhs as (*window, C / groups, O)."""
        features, channels, *window = self.numbers.rhs_spec
        return rhs.transpose(*window, channels, features)

    def rhs(self, kernel: jax.Array) -> jax.Array:
        """Undo `kernel`."""
        features, channels, *window = self.numbers.rhs_spec
        return kernel.transpose(*np.argsort((*window, channels, features)))

    def output(self, z: jax.Array) -> jax.Array:
        """lax's output, or its cotangent, as (N, *output, O)."""
        return _channels_last(z, self.numbers.out_spec)

    def undo_output(self, z: jax.Array) -> jax.Array:
        """Undo `output`."""
        return _as_in_lax(z, self.numbers.out_spec)


def _conv_in_layout(static: tuple[ConvGeometry, Layout], lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """z = x * W, each in its layout."""
    g, layout = static
    return layout.undo_output(sums.forward(layout.input(lhs), layout.kernel(rhs), g))


def _conv_in_layout_fwd(static: tuple[ConvGeometry, Layout], asked: Asked, lhs: Any, rhs: Any) -> tuple:
    """Keep the operands that the gradients need, as they are."""
    asks_lhs, asks_rhs = asked
    return _conv_in_layout(static, lhs, rhs), (lhs if asks_rhs else None, rhs if asks_lhs else None)


def _conv_in_layout_bwd(static: tuple[ConvGeometry, Layout], asked: Asked, kept: tuple, delta: jax.Array) -> tuple:
    """The gradients of `_conv`, moved back."""
    g, layout = static
    lhs, rhs = kept
    x = None if lhs is None else layout.input(lhs)
    kernel = None if rhs is None else layout.kernel(rhs)
    dx, dkernel, _ = conv_backward(g, asked, (x, kernel), layout.output(delta))
    return None if dx is None else layout.lhs(dx), None if dkernel is None else layout.rhs(dkernel)


conv_in_layout_p = op_primitive("conv_in_layout", _conv_in_layout, _conv_in_layout_fwd, _conv_in_layout_bwd)


def _channels_last(a: jax.Array, spec: Sequence[int]) -> jax.Array:
    """(N, *spatial, C) of an array whose axes for N, C and the spatial ones `spec` names."""
    batch, channels, *spatial = spec
    return a.transpose(batch, *spatial, channels)


def _as_in_lax(a: jax.Array, spec: Sequence[int]) -> jax.Array:
    """Undo `_channels_last`."""
    batch, channels, *spatial = spec
    return a.transpose(*np.argsort((batch, *spatial, channels)))


def _arrays(op: str, lhs: Any, rhs: Any) -> tuple[jax.Array, jax.Array]:
    """Both operands as arrays of the same dtype and the same number of axes."""
    lhs, rhs = as_array(op, "lhs", lhs), as_array(op, "rhs", rhs)
    require_same_dtype(op, lhs=lhs, rhs=rhs)
    if lhs.ndim != rhs.ndim or lhs.ndim < 2:
        raise ValueError(
            f"{op}: lhs has shape {lhs.shape} and rhs has shape {rhs.shape}, but both need the same number of axes, "
            "at least two: batch, channels and the spatial axes"
        )
    return lhs, rhs


def _per_axis(op: str, argument: str, value: Any, rank: int) -> tuple[int, ...]:
    """One integer per spatial axis, from a sequence or an iterator as in lax: a single integer is none."""
    try:
        values = tuple(value)
    except TypeError:
        raise TypeError(
            f"{op}: {argument}={value!r} must be a sequence of {rank} integers, one for each spatial axis, as in "
            "jax.lax"
        ) from None
    return per_axis(op, argument, values, rank)


def _word_or_pairs(op: str, padding: Any, rank: int) -> Any:
    """A word or (low, high) pairs: an integer beside or instead of them, which `conv` takes, is refused as in lax."""
    if isinstance(padding, str):
        return padding
    try:
        return tuple((operator.index(low), operator.index(high)) for low, high in padding)
    except (TypeError, ValueError):
        raise ValueError(
            f"{op}: padding={padding!r} must be one of {', '.join(map(repr, PADDING_WORDS))}, or a sequence of {rank} "
            "(low, high) pairs of integers, as in jax.lax"
        ) from None


def checked_sharding(op: str, sharding: Any) -> Any:
    """An output sharding, or None."""
    if not isinstance(sharding, NamedSharding | PartitionSpec | type(None)):
        raise TypeError(
            f"{op}: out_sharding={sharding!r} must be a NamedSharding or a PartitionSpec of jax.sharding, or None"
        )
    return sharding


def _checked_batch_groups(op: str, batch: int, features: int, feature_groups: Any, batch_groups: Any) -> int:
    """The number of groups of the batch, if it fits."""
    try:
        batch_groups = operator.index(batch_groups)
    except TypeError:
        raise TypeError(f"{op}: batch_group_count={batch_groups!r} must be an integer") from None
    if batch_groups == 1:
        return 1
    if feature_groups != 1:
        raise ValueError(
            f"{op}: feature_group_count={feature_groups} and batch_group_count={batch_groups}, but only "
            "one of them may exceed 1"
        )
    if batch_groups < 1:
        raise ValueError(f"{op}: batch_group_count={batch_groups} must be at least 1")
    if batch % batch_groups or features % batch_groups:
        raise ValueError(
            f"{op}: batch_group_count={batch_groups} must divide the batch size {batch} of lhs and the "
            f"{features} output channels of rhs"
        )
    return batch_groups


def _transposed_pads(op: str, padding: Any, spans: tuple[int, ...], strides: tuple[int, ...], consistent: bool) -> Any:
    """The padding of the dilated input, from that of the forward convolution where `padding` speaks of it."""
    padding = _word_or_pairs(op, padding, len(spans))
    word = canonical_padding(op, padding, len(spans))
    if padding in ("SAME", "VALID"):
        return tuple(transposed_padding(k, s, padding) for k, s in zip(spans, strides, strict=True))
    if isinstance(padding, str):
        # lax reads no other spelling as the forward convolution's: without strides it is the padding of the input.
        if all(stride == 1 for stride in strides) and not consistent:
            return padding
        pads = tuple(transposed_padding(k, s, "SAME") for k, s in zip(spans, strides, strict=True))
        pads = tuple(pair[::-1] for pair in pads) if word == "SAME_LOWER" else pads
        raise ValueError(
            f"{op}: padding={padding!r} with strides={strides} has no agreed meaning; write the pairs around the "
            f"dilated input, for example padding={pads}, or use 'SAME' or 'VALID'"
        )
    if consistent:
        return tuple(transposed_padding(k, s, pair) for k, s, pair in zip(spans, strides, padding, strict=True))
    return padding
