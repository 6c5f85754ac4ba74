"""Ops with another backward rule: a function that makes its gradients of the same maps.

    z = x * W        backward: rule(maps, delta, z, x, W)

The three sums of a convolution (`_conv.py`) are plain functions, so a rule is a value: the gradient itself is
`(maps.input_grad(delta, W), maps.kernel_grad(x, delta))`, and feedback alignment, relevance propagation or quantised
gradients change what is put into a map or what is made of it. A dense layer is the convolution without spatial axes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from . import _conv
from . import _conv_lax as in_lax
from . import _sums as sums
from ._arguments import as_array, keeping_64_bits, refuse_complex, wider
from ._conv import conv_input_grad, conv_kernel_grad, one_batch_axis, sum_to_channels
from ._forward_mode import refuse
from ._geometry import ConvGeometry
from ._mesh import call_map, call_rule

Rule = Callable[..., Any]


class Maps(NamedTuple):
    """One layer's three maps, its geometry bound.

    `forward(x, kernel)`, `input_grad(delta, kernel)` and `kernel_grad(x, delta)`; the last two take
    `preferred_element_type`, too, and give their second or first array's dtype without it.
    """

    forward: Callable[..., jax.Array]
    input_grad: Callable[..., jax.Array]
    kernel_grad: Callable[..., jax.Array]


class Layer(NamedTuple):
    """A layer and its rule: all that is no array, hashable."""

    op: str
    rule: Rule
    geometry: ConvGeometry
    layout: in_lax.Layout | None = None


# ------------------------------------------------------------------------------------------------- the public ops


def conv_with(rule: Rule) -> Callable[..., jax.Array]:
    """`jaxbp.conv` with another backward rule, which is made of the same maps.

    `z = x * W` forward; backward whatever `rule` makes of `delta = dJ/dz`. The gradient itself is the rule
    `lambda maps, delta, z, x, kernel: (maps.input_grad(delta, kernel), maps.kernel_grad(x, delta))`.

    Args:
      rule: `rule(maps, delta, z, x, kernel, *extra) -> (dx, dkernel, *dextra)`: an array of the shape and dtype of x,
        of kernel and of each extra array, or None for zero. `maps.forward(x, kernel)`, `maps.input_grad(delta, kernel)`
        and `maps.kernel_grad(x, delta)` are the layer's maps, its strides and all else bound; the last two take
        `preferred_element_type` as well. Under `vmap` the rule sees one example; under `shard_map` the device's part,
        and what it returns for an array that devices share is added up.

    Returns:
      `f(x, kernel, *extra, bias=None, strides=1, padding="SAME", input_dilation=1, kernel_dilation=1,
      feature_group_count=1, precision=None, preferred_element_type=None)`, called as `conv` is. `extra` are arrays for
      the rule alone, such as the fixed weights of feedback alignment. The bias stays outside: the rule's z is without
      it, and its gradient is the sum of delta.

    Raises:
      TypeError: rule is no function; or, when the gradient is taken, it returns something else than a gradient for
        each array, or a gradient of another dtype than its array.
      ValueError: where `conv` would; a gradient of another shape than its array.

    Example:
      >>> import jax, jax.numpy as jnp, jaxbp
      >>> aligned = jaxbp.conv_with(lambda m, delta, z, x, k, fixed: (m.input_grad(delta, fixed), m.kernel_grad(x, delta), None))
      >>> x, kernel, fixed = jnp.ones((1, 3, 1)), jnp.full((1, 1, 1), 2.), jnp.full((1, 1, 1), 5.)
      >>> jax.grad(lambda x: aligned(x, kernel, fixed).sum())(x)[0, :, 0]
      Array([5., 5., 5.], dtype=float32)

    Source: Lillicrap et al., "Random synaptic feedback weights support error backpropagation for deep learning" (2016).
    """  # noqa: E501
    _require_rule("conv_with", rule)

    @keeping_64_bits
    def conv(
        x: jax.Array, kernel: jax.Array, *extra: jax.Array, bias: jax.Array | None = None,
        strides: int | Sequence[int] = 1, padding: Any = "SAME", input_dilation: int | Sequence[int] = 1,
        kernel_dilation: int | Sequence[int] = 1, feature_group_count: int = 1, precision: Any = None,
        preferred_element_type: Any = None,
    ) -> jax.Array:  # fmt: skip
        """`jaxbp.conv` with a backward rule of its own: see `jaxbp.conv_with`."""
        x, kernel, bias, call = _conv.prepared(
            "conv_with", x, kernel, bias, strides, padding, input_dilation, kernel_dilation, feature_group_count,
            precision, preferred_element_type,
        )  # fmt: skip
        layer = partial(_layer, Layer("conv_with", rule, call.geometry))
        return _apply("conv_with", layer, x, kernel, bias, *extra, output_shape=call.output_shape, like=call.like)

    return conv


def conv_general_dilated_with(rule: Rule) -> Callable[..., jax.Array]:
    """`jax.lax.conv_general_dilated` with a backward rule of one's own, for code that is written for lax.

    `z = x * W` forward; backward whatever `rule` makes of `delta = dJ/dz`, as in `conv_with`.

    Args:
      rule: `rule(maps, delta, z, lhs, rhs, *extra) -> (dlhs, drhs, *dextra)`, as `conv_with` has it. Arrays and maps
        are in the caller's layout (`dimension_numbers`).

    Returns:
      `f(lhs, rhs, window_strides, padding, lhs_dilation=None, ..., *, extra=())` with the arguments of
      `jax.lax.conv_general_dilated`, so that it fits the argument `conv_general_dilated=` of Flax's Conv; `extra` is
      a sequence of arrays for the rule alone.

    Raises:
      TypeError: as `conv_with`.
      ValueError: as `conv_with`; the window is larger than its padded input.

    Example:
      >>> import jax, jax.numpy as jnp, jaxbp
      >>> sign = jaxbp.conv_general_dilated_with(lambda m, delta, z, x, k: (m.input_grad(delta, jnp.sign(k)), m.kernel_grad(x, delta)))
      >>> x, kernel = jnp.ones((1, 1, 3)), jnp.full((1, 1, 1), -2.)
      >>> jax.grad(lambda x: sign(x, kernel, (1,), "SAME").sum())(x)[0, 0]
      Array([-1., -1., -1.], dtype=float32)

    Source: Liao, Leibo, Poggio, "How important is weight symmetry in backpropagation?" (2016).
    """  # noqa: E501
    op = "conv_general_dilated_with"
    _require_rule(op, rule)

    @keeping_64_bits
    def conv_general_dilated(
        lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: str | Sequence[tuple[int, int]],
        lhs_dilation: Sequence[int] | None = None, rhs_dilation: Sequence[int] | None = None,
        dimension_numbers: Any = None, feature_group_count: int = 1, batch_group_count: int = 1, precision: Any = None,
        preferred_element_type: Any = None, out_sharding: Any = None, *, extra: Sequence[jax.Array] = (),
    ) -> jax.Array:  # fmt: skip
        """`jax.lax.conv_general_dilated` with a rule of its own: see `jaxbp.conv_general_dilated_with`."""
        lhs, rhs, call = in_lax.prepared(
            op, lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
            batch_group_count, precision, preferred_element_type,
        )  # fmt: skip
        if 0 in call.geometry.window.output_shape and 0 not in call.geometry.window.input_shape:
            raise ValueError(
                f"{op}: the window of rhs of shape {rhs.shape} does not fit into the padded lhs of shape {lhs.shape}; "
                "use a smaller window or more padding"
            )
        layer = partial(_layer, Layer(op, rule, call.geometry, call.layout))
        return _apply(
            op, layer, lhs, rhs, None, *extra, output_shape=call.output_shape, like=call.like,
            out_sharding=in_lax.checked_sharding(op, out_sharding),
        )  # fmt: skip

    return conv_general_dilated


def dense_with(rule: Rule) -> Callable[..., jax.Array]:
    """`jaxbp.dense` with another backward rule, which is made of the same maps.

    `z = a W` forward; backward whatever `rule` makes of `delta = dJ/dz`, as in `conv_with`. The gradient itself is
    `(maps.input_grad(delta, kernel), maps.kernel_grad(x, delta))`: `delta W^T` and `a^T delta`.

    Args:
      rule: `rule(maps, delta, z, x, kernel, *extra) -> (dx, dkernel, *dextra)`, as `conv_with` has it.

    Returns:
      `f(x, kernel, *extra, bias=None, precision=None)`, called as `dense` is.

    Raises:
      TypeError, ValueError: as `conv_with`; the kernel is not a matrix.

    Example:
      >>> import jax, jax.numpy as jnp, jaxbp
      >>> relevance = jaxbp.dense_with(lambda m, r, z, x, k: (x * m.input_grad(r / z, k), None))
      >>> kernel = jnp.array([[1., 3.], [1., 1.]])
      >>> jax.grad(lambda x: relevance(x, kernel).sum())(jnp.array([1., 1.]))
      Array([1.25, 0.75], dtype=float32)

    Source: Bach et al., "On pixel-wise explanations for non-linear classifier decisions" (2015).
    """
    op = "dense_with"
    _require_rule(op, rule)

    @keeping_64_bits
    def dense(
        x: jax.Array, kernel: jax.Array, *extra: jax.Array, bias: jax.Array | None = None, precision: Any = None
    ) -> jax.Array:
        """`jaxbp.dense` with a backward rule of its own: see `jaxbp.dense_with`."""
        kernel = as_array(op, "kernel", kernel)
        if kernel.ndim != 2:
            raise ValueError(f"{op}: kernel has shape {kernel.shape}, but it must be a matrix: (inputs, outputs)")
        x, kernel, bias, call = _conv.prepared(op, x, kernel, bias, (), (), (), (), 1, precision, None)
        layer = partial(_layer, Layer(op, rule, call.geometry))
        return _apply(op, layer, x, kernel, bias, *extra, output_shape=call.output_shape, like=call.like)

    return dense


def relu_with(rule: Rule) -> Callable[[jax.Array], jax.Array]:
    """`jaxbp.relu` with another backward rule, as in guided backpropagation.

    `z = max(x, 0)` forward; backward whatever `rule` makes of `delta = dJ/dz`. The gradient itself is the rule
    `lambda delta, z, x: jnp.where(x > 0, delta, 0)`.

    Args:
      rule: `rule(delta, z, x) -> dx`, all of one shape and dtype; None for zero.

    Returns:
      `f(x)`, called as `relu` is.

    Raises:
      TypeError: rule is no function; x is not an array, or is complex; the rule's gradient has another dtype.
      ValueError: the rule's gradient has another shape than x.

    Example:
      >>> import jax, jax.numpy as jnp, jaxbp
      >>> guided = jaxbp.relu_with(lambda delta, z, x: jnp.where((x > 0) & (delta > 0), delta, 0))
      >>> _, pull = jax.vjp(guided, jnp.array([-1., 1., 1.]))
      >>> pull(jnp.array([3., 3., -3.]))
      (Array([0., 3., 0.], dtype=float32),)

    Source: Springenberg et al., "Striving for simplicity: the all convolutional net" (2015).
    """
    op = "relu_with"
    _require_rule(op, rule)

    @keeping_64_bits
    def relu(x: jax.Array) -> jax.Array:
        """`jaxbp.relu` with a backward rule of its own: see `jaxbp.relu_with`."""
        x = as_array(op, "x", x)
        refuse_complex(op, "x", x)
        layer = partial(_rectifier, (op, rule))
        return _apply(op, layer, x, output_shape=x.shape, like=[(x, axis) for axis in range(x.ndim)])

    return relu


# --------------------------------------------------------------------------------------------- layer, rule and maps


def _apply(op: str, layer: Callable[..., jax.Array], *arrays: Any, **mesh: Any) -> jax.Array:
    """Call a layer with a rule of its own; every op of this file comes through here."""
    refuse(op, "a rule of one's own")
    given = [None if a is None else as_array(op, f"extra array {i - 2}", a) for i, a in enumerate(arrays)]
    return call_rule(layer, *given, **mesh)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer(layer: Layer, x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *extra: jax.Array) -> jax.Array:
    """z = x * W + b."""
    return _layer_fwd(layer, x, kernel, bias, *extra)[0]


@keeping_64_bits
def _layer_fwd(
    layer: Layer, x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *extra: jax.Array
) -> tuple[jax.Array, tuple]:
    """Keep all that a rule may ask for."""
    z = _maps(layer).forward(x, kernel)
    return z if bias is None else z + jnp.broadcast_to(bias, z.shape), (z, x, kernel, bias is None, extra)


@keeping_64_bits
def _layer_bwd(layer: Layer, kept: tuple, delta: jax.Array) -> tuple:
    """The rule's gradients, and the bias's own."""
    z, x, kernel, no_bias, extra = kept
    gradients = layer.rule(_maps(layer), delta, z, x, kernel, *extra)
    names = ("x", "kernel") if layer.layout is None else ("lhs", "rhs")
    names = (*names, *(f"extra array {i + 1}" for i in range(len(extra))))
    dx, dkernel, *dextra = _checked(layer.op, names, gradients, (x, kernel, *extra))
    return dx, dkernel, None if no_bias else sum_to_channels(delta), *dextra


_layer.defvjp(_layer_fwd, _layer_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rectifier(static: tuple[str, Rule], x: jax.Array) -> jax.Array:
    """z = max(x, 0)."""
    return _rectifier_fwd(static, x)[0]


@keeping_64_bits
def _rectifier_fwd(static: tuple[str, Rule], x: jax.Array) -> tuple[jax.Array, tuple]:
    """Keep the input and the output."""
    z = jnp.where(x <= 0, jnp.zeros((), x.dtype), x)
    return z, (z, x)


@keeping_64_bits
def _rectifier_bwd(static: tuple[str, Rule], kept: tuple, delta: jax.Array) -> tuple:
    """The rule's gradient."""
    (op, rule), (z, x) = static, kept
    return tuple(_checked(op, ("x",), (rule(delta, z, x),), (x,)))


_rectifier.defvjp(_rectifier_fwd, _rectifier_bwd)


def _maps(layer: Layer) -> Maps:
    """The maps of a layer, in the caller's layout."""
    maps = _channels_last_maps(layer.geometry)
    if layer.layout is None:
        return maps
    of = layer.layout
    return Maps(
        lambda lhs, rhs: of.undo_output(maps.forward(of.input(lhs), of.kernel(rhs))),
        lambda delta, rhs, **wanted: of.lhs(maps.input_grad(of.output(delta), of.kernel(rhs), **wanted)),
        lambda lhs, delta, **wanted: of.rhs(maps.kernel_grad(of.input(lhs), of.output(delta), **wanted)),
    )


def _channels_last_maps(g: ConvGeometry) -> Maps:
    """The three sums of a convolution for any batch axes, checked as the public maps are."""
    w, groups = g.window, g.feature_group_count
    bound: dict[str, Any] = dict(
        strides=w.strides, padding=w.padding, input_dilation=w.input_dilation, kernel_dilation=w.dilation,
        feature_group_count=groups, precision=g.precision,
    )  # fmt: skip

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        preferred = g.preferred_element_type
        x, kernel, _, call = _conv.prepared("maps.forward", x, kernel, None, **bound, preferred_element_type=preferred)

        def z(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return sums.forward(one_batch_axis(x, w.rank), kernel, call.geometry).reshape(call.output_shape)

        return call_map(z, x, kernel, output_shape=call.output_shape, like=call.like)

    def input_grad(delta: jax.Array, kernel: jax.Array, *, preferred_element_type: Any = None) -> jax.Array:
        # A kernel without an axis of channels is refused below.
        channels = sum(kernel.shape[-2:-1]) * groups
        shape = (*delta.shape[: delta.ndim - w.rank - 1], *w.input_shape, channels)
        own = kernel.dtype if preferred_element_type is None else preferred_element_type
        delta, kernel = _of_one_dtype(delta, kernel)
        return conv_input_grad(delta, kernel, shape, **bound, preferred_element_type=preferred_element_type).astype(own)

    def kernel_grad(x: jax.Array, delta: jax.Array, *, preferred_element_type: Any = None) -> jax.Array:
        shape = (*w.window_shape, x.shape[-1] // groups, delta.shape[-1])
        own = x.dtype if preferred_element_type is None else preferred_element_type
        x, delta = _of_one_dtype(x, delta)
        return conv_kernel_grad(x, delta, shape, **bound, preferred_element_type=preferred_element_type).astype(own)

    return Maps(forward, input_grad, kernel_grad)


def _of_one_dtype(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both in the wider dtype: with `preferred_element_type` delta's differs from the operands'."""
    wide = wider(a.dtype, b.dtype)
    return a.astype(wide), b.astype(wide)


def _require_rule(op: str, rule: Any) -> None:
    """Refuse what cannot be called."""
    if not callable(rule):
        arguments = "(delta, z, x)" if op == "relu_with" else "(maps, delta, z, x, kernel, *extra)"
        raise TypeError(f"{op}: rule={rule!r} must be a function of {arguments} that returns gradients")


def _checked(op: str, names: Sequence[str], gradients: Any, primals: Sequence[jax.Array]) -> list[jax.Array | None]:
    """The rule's gradients, of the shapes, dtypes and mesh axes of their arrays."""
    if not isinstance(gradients, tuple | list) or len(gradients) != len(primals):
        got = f"{len(gradients)} of them" if isinstance(gradients, tuple | list) else type(gradients).__name__
        raise TypeError(
            f"{op}: the rule must return a tuple of {len(primals)} gradients, for {', '.join(names)} (None for zero), "
            f"but it returned {got}"
        )
    checked: list[jax.Array | None] = []
    for name, gradient, primal in zip(names, gradients, primals, strict=True):
        if gradient is None:
            checked.append(None)
            continue
        gradient = as_array(op, f"the rule's gradient for {name}", gradient)
        if gradient.shape != primal.shape:
            raise ValueError(
                f"{op}: the rule's gradient for {name} has shape {gradient.shape}, but {name} has {primal.shape}"
            )
        if not jnp.issubdtype(primal.dtype, jnp.inexact):
            raise TypeError(f"{op}: {name} has dtype {primal.dtype}, which has no gradient; the rule must return None")
        if gradient.dtype != primal.dtype:
            raise TypeError(
                f"{op}: the rule's gradient for {name} has dtype {gradient.dtype}, but {name} has {primal.dtype}; "
                f"return gradient.astype({name.split()[0]}.dtype)"
            )
        missing = jax.typeof(primal).manual_axis_type.varying - jax.typeof(gradient).manual_axis_type.varying
        checked.append(lax.pcast(gradient, tuple(sorted(missing)), to="varying") if missing else gradient)
    return checked
