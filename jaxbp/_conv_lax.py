"""Convolution under lax's own names: a layout, and groups of the batch, around the rule in `_conv.py`."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from ._arguments import as_array, call_map, require_same_dtype
from ._conv import bind
from ._geometry import canonical_padding, conv_window, dilated_size, per_axis, transposed_padding


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
) -> jax.Array:
    """`jax.lax.conv_general_dilated` with a hand-written backward rule: same arguments, same values.

    A layout is a transposition around `conv`'s. A group of the batch is a group of channels in disguise: with b
    groups, (b n, *spatial, C) is moved to (n, *spatial, b C), and group j reads channels j C to (j + 1) C.

    Args:
      lhs: input of n + 2 axes in the layout of `dimension_numbers`, by default (N, C, *spatial).
      rhs: kernel of n + 2 axes, by default (O, C / feature groups, *window), of lhs's dtype.
      window_strides: n integers, in cells.
      padding: "SAME", "SAME_LOWER", "VALID" or n (low, high) pairs in cells.
      lhs_dilation: n integers: distance between the input's cells; None: 1.
      rhs_dilation: n integers: distance between the kernel's cells; None: 1.
      dimension_numbers: as in lax: None, a `ConvDimensionNumbers`, or three strings such as ("NHWC", "HWIO", "NHWC").
      feature_group_count, batch_group_count: number of groups; only one of them may exceed 1.
      precision, preferred_element_type, out_sharding: as in lax.

    Returns:
      The output of n + 2 axes in the layout of `dimension_numbers`; of size 0 where the window does not fit.

    Raises:
      TypeError: an argument is not an array, or dtypes differ.
      ValueError: shapes, groups, padding, strides or dilations do not fit; a padding word together with an
        `lhs_dilation` (the message says which pairs to write).

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
        feature_group_count, batch_group_count, precision, preferred_element_type, out_sharding,
    )  # fmt: skip


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

    A convolution of stride 1 over the input with `strides - 1` zeros between its cells:
    `z[o] = sum_t a[(o + d t - p) / s] w[t]`, over the taps t for which the index is whole.

    Args:
      lhs: input of n + 2 axes in the layout of `dimension_numbers`, by default (N, *spatial, C).
      rhs: kernel of n + 2 axes, by default (*window, C, O), of lhs's dtype.
      strides: n integers, in cells of the output.
      padding: "SAME" or "VALID" (of the forward convolution whose sizes this one undoes), or n (low, high) pairs
        around the dilated input; with `use_consistent_padding` the pairs, too, are the forward convolution's.
      rhs_dilation: n integers: distance between the kernel's cells; None: 1.
      dimension_numbers: as in lax.
      transpose_kernel: rotate the kernel by 180 degrees and exchange its channel axes, as Keras does.
      precision, preferred_element_type: as in lax.
      use_consistent_padding: read pairs as PyTorch does.

    Returns:
      The output of n + 2 axes in the layout of `dimension_numbers`.

    Raises:
      TypeError: an argument is not an array, or dtypes differ.
      ValueError: as `conv_general_dilated`; "SAME_LOWER" with a stride (the message says which pairs to write).

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
    steps = per_axis(op, "strides", strides, rank)
    dilation = per_axis(op, "rhs_dilation", rhs_dilation, rank)
    spans = tuple(dilated_size(rhs.shape[axis], d) for axis, d in zip(dn.rhs_spec[2:], dilation, strict=True))
    pads = _transposed_pads(op, padding, spans, steps, use_consistent_padding)
    if transpose_kernel:
        rhs = lax.rev(rhs, dn.rhs_spec[2:]).swapaxes(dn.rhs_spec[0], dn.rhs_spec[1])
    return _general(op, lhs, rhs, (1,) * rank, pads, steps, dilation, dn, 1, 1, precision, preferred_element_type, None)


def _general(
    op: str, lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, lhs_dilation: Any, rhs_dilation: Any,
    dimension_numbers: Any, feature_group_count: int, batch_group_count: int, precision: Any,
    preferred_element_type: Any, out_sharding: Any,
) -> jax.Array:  # fmt: skip
    """Bring the arguments to `conv`'s layout, call its rule, and bring the result back."""
    lhs, rhs = _arrays(op, lhs, rhs)
    dn = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    x = lhs.transpose(dn.lhs_spec[0], *dn.lhs_spec[2:], dn.lhs_spec[1])
    kernel = rhs.transpose(*dn.rhs_spec[2:], dn.rhs_spec[1], dn.rhs_spec[0])
    groups = feature_group_count
    if batch_group_count != 1:
        x, groups = _batch_groups_as_channels(op, x, kernel, feature_group_count, batch_group_count)
    w = conv_window(
        op, x.shape, kernel.shape, window_strides, padding, lhs_dilation, rhs_dilation, groups,
        names=("lhs", "rhs", "feature_group_count", "window_strides", "rhs_dilation", "lhs_dilation"),
        allow_empty=True,
    )  # fmt: skip
    out_axes = (dn.out_spec[0], *dn.out_spec[2:], dn.out_spec[1])
    z = bind(x, kernel, None, w, groups, precision, preferred_element_type, _permuted(out_sharding, out_axes))
    return z.transpose(*np.argsort(out_axes))


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


def _batch_groups_as_channels(
    op: str, x: jax.Array, kernel: jax.Array, feature_group_count: int, batch_group_count: int
) -> tuple[jax.Array, int]:
    """(b n, *spatial, C) as (n, *spatial, b C), to be convolved in b groups of channels."""
    try:
        batch_group_count = operator.index(batch_group_count)
    except TypeError:
        raise TypeError(f"{op}: batch_group_count={batch_group_count!r} must be an integer") from None
    batch, *spatial, channels = x.shape
    features = kernel.shape[-1]
    if feature_group_count != 1:
        raise ValueError(
            f"{op}: feature_group_count={feature_group_count} and batch_group_count={batch_group_count}, but only "
            "one of them may exceed 1"
        )
    if batch_group_count < 1:
        raise ValueError(f"{op}: batch_group_count={batch_group_count} must be at least 1")
    if batch % batch_group_count or features % batch_group_count:
        raise ValueError(
            f"{op}: batch_group_count={batch_group_count} must divide the batch size {batch} of lhs and the "
            f"{features} output channels of rhs"
        )
    members = batch // batch_group_count
    shape = (members, *spatial, batch_group_count * channels)

    def grouped(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(batch_group_count, members, *spatial, channels), 0, -2).reshape(shape)

    like = [(x, axis) for axis in range(x.ndim)]
    return call_map(grouped, x, output_shape=shape, like=like), batch_group_count


def _transposed_pads(op: str, padding: Any, spans: tuple[int, ...], strides: tuple[int, ...], consistent: bool) -> Any:
    """The padding of the dilated input, from that of the forward convolution where `padding` speaks of it."""
    padding = canonical_padding(op, padding, len(spans))
    if padding == "SAME_LOWER":
        if all(stride == 1 for stride in strides) and not consistent:
            return padding
        pads = tuple(transposed_padding(k, s, "SAME")[::-1] for k, s in zip(spans, strides, strict=True))
        raise ValueError(
            f"{op}: padding='SAME_LOWER' with strides={strides} has no agreed meaning; write the pairs around the "
            f"dilated input, for example padding={pads}, or use 'SAME' or 'VALID'"
        )
    if isinstance(padding, str):
        return tuple(transposed_padding(k, s, padding) for k, s in zip(spans, strides, strict=True))
    if consistent:
        return tuple(transposed_padding(k, s, pair) for k, s, pair in zip(spans, strides, padding, strict=True))
    return padding


def _permuted(sharding: Any, axes: tuple[int, ...]) -> Any:
    """An output sharding in lax's layout as one in `conv`'s."""
    if sharding is None:
        return None
    spec = sharding.spec if isinstance(sharding, NamedSharding) else sharding
    entries = tuple(spec) + (None,) * (len(axes) - len(spec))
    spec = PartitionSpec(*(entries[axis] for axis in axes))
    return NamedSharding(sharding.mesh, spec) if isinstance(sharding, NamedSharding) else spec
