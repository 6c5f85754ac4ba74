"""Windows as integers: what strides, padding and dilation do to sizes. No arrays here.

Along one axis, an input of `n` pixels with `input_dilation` zeros-spaced pixels is padded to

    padded = low + (n - 1) * input_dilation + 1 + high

and a window of `k` pixels spaced `dilation` apart spans `(k - 1) * dilation + 1` of them, so it fits at

    output = (padded - span) // stride + 1

places. Tap `t` of window `o` reads the padded pixel `o * stride + t * dilation`. Everything else in the
package that speaks of positions is this one line of arithmetic, solved for one of its letters.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import lax
from jax.core import max_dim, min_dim
from jax.export import is_symbolic_dim

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]
POOL_WORDS = ("window_shape", "strides", "window_dilation", "input_dilation")
CONV_WORDS = ("x", "kernel", "feature_group_count", "strides", "kernel_dilation", "input_dilation")
PADDING_WORDS = ("VALID", "SAME", "SAME_LOWER")
MOST_PIXELS = 2**31 - 1
FLOAT = np.dtype(np.float32)


class Window(NamedTuple):
    """A window sliding over the spatial axes of an input: seven facts per axis, all integers."""

    input_shape: Ints
    window_shape: Ints
    strides: Ints
    padding: Pairs
    dilation: Ints
    input_dilation: Ints
    output_shape: Ints

    @property
    def rank(self) -> int:
        """How many spatial axes there are."""
        return len(self.window_shape)

    @property
    def taps(self) -> int:
        """How many pixels one window has."""
        return math.prod(self.window_shape)

    def unpadded(self, **facts: Ints) -> "Window":
        """The window, with other facts as given, over an input of what it reads, which holds its padding already."""
        w = self._replace(padding=((0, 0),) * self.rank, **facts)
        axes = zip(w.output_shape, w.strides, w.window_shape, w.dilation, strict=True)
        return w._replace(input_shape=tuple((out - 1) * s + dilated_size(k, d) for out, s, k, d in axes))


class ConvGeometry(NamedTuple):
    """All of a convolution that is not an array: hashable, so that it can be a static argument."""

    window: Window
    feature_group_count: int = 1
    precision: Any = None
    preferred_element_type: Any = None


class Problem(NamedTuple):
    """One of a convolution's three sums, with all that the choice of its algorithm may depend on: see `problem`."""

    out: str
    geometry: ConvGeometry
    batch: int
    channels: int
    features: int
    dtype: Any
    platform: str
    members: int
    # What follows from these: the geometry of what slides, and of its window.
    g: ConvGeometry
    window: Window
    rank: int
    taps: int
    groups: int
    group_channels: int
    group_features: int
    pixels: int  # of an image
    outputs: int  # of an image
    positions: int  # outputs of the whole batch
    columns: int  # elements that a window reads of a group
    strided: bool  # windows step over pixels
    dilated: bool  # a window's pixels stand apart
    over_zeros: bool  # there are zeros between the input's pixels
    dense: bool  # a single group, at least one axis, no zeros between pixels
    symbolic: bool  # a size is not known while the program is made

    def inside(self, **changes: Any) -> "Problem":
        """The sum that an algorithm leaves: what changes, the rest as it is. The kernel is rotated already."""
        given = dict(zip(self._fields[:8], self, strict=False))
        return problem(**{**given, "out": "kernel" if self.out == "kernel" else "z", "geometry": self.g, **changes})


def problem(
    out: str, geometry: ConvGeometry, batch: int, channels: int, features: int,
    dtype: Any = FLOAT, platform: str = "cpu", members: int = 1,
) -> Problem:  # fmt: skip
    """What is to be summed.

    `out` says which sum: "z", where a kernel slides over x; "x", where the rotated kernel slides over delta; "kernel",
    where x times delta is summed over all positions. `geometry` is the forward pass's. `channels` are those of what the
    window slides over (x, or for "x" delta), `features` those of the result (or for "kernel" of delta). `members`: how
    many such sums, of examples or kernels of their own, a vmap asks for.
    """
    g, w = geometry, geometry.window
    if not is_static((batch, channels, features, *w.input_shape, *w.window_shape, *w.output_shape)):
        facts: dict[str, Any] = dict.fromkeys(Problem._fields[8:], 0) | {"g": g, "window": w, "symbolic": True}
        return Problem(out, geometry, batch, channels, features, dtype, platform, members, **facts)
    if out == "x":
        g = g._replace(window=transposed(as_patches(g.window)), preferred_element_type=None)
    w, groups = g.window, g.feature_group_count
    outputs, over_zeros = math.prod(w.output_shape), any(d > 1 for d in w.input_dilation)
    return Problem(
        out, geometry, batch, channels, features, dtype, platform, members,
        g=g,
        window=w,
        rank=w.rank,
        taps=w.taps,
        groups=groups,
        group_channels=channels // groups,
        group_features=features // groups,
        pixels=math.prod(w.input_shape),
        outputs=outputs,
        positions=batch * outputs,
        columns=w.taps * channels // groups,
        strided=any(s > 1 for s in w.strides),
        dilated=any(d > 1 for d in w.dilation),
        over_zeros=over_zeros,
        dense=groups == 1 and w.rank > 0 and not over_zeros,
        symbolic=False,
    )  # fmt: skip


class PoolProblem(NamedTuple):
    """A map of a pool, by its primitive's name, with all that the choice of its algorithm may depend on."""

    out: str
    window: Window
    batch: int
    channels: int
    dtype: Any
    platform: str
    # A vmap joins its examples to the batch.
    members: int = 1

    @property
    def symbolic(self) -> bool:
        """Whether a size is not known while the program is made."""
        return not is_static((self.batch, self.channels, *self.window.input_shape, *self.window.output_shape))


def operand_shapes(p: Problem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of a sum's two operands."""
    w = p.geometry.window
    if p.out == "kernel":
        return (p.batch, *w.input_shape, p.channels), (p.batch, *w.output_shape, p.features)
    if p.out == "x":
        return (p.batch, *w.output_shape, p.channels), (*w.window_shape, p.group_features, p.channels)
    return (p.batch, *w.input_shape, p.channels), (*w.window_shape, p.group_channels, p.features)


def is_static(sizes: Sequence[Any]) -> bool:
    """Whether all sizes are known integers (and not the symbolic sizes of `jax.export`)."""
    return all(isinstance(size, int) for size in sizes)


def dilated_size(size: int, dilation: int) -> int:
    """Pixels from the first to the last of `size` pixels that stand `dilation` apart."""
    return size if dilation == 1 else max_dim((size - 1) * dilation + 1, 0)


def per_axis(op: str, argument: str, value: Any, rank: int, minimum: int = 1) -> Ints:
    """`value` as one integer per spatial axis: a single integer counts for all, None means 1."""
    if value is None:
        return (1,) * rank
    try:
        values = tuple(map(operator.index, value)) if _iterable(value) else (operator.index(value),) * rank
    except TypeError:
        raise TypeError(f"{op}: {argument}={value!r} must be an integer or a sequence of {rank} integers") from None
    if len(values) != rank:
        raise ValueError(
            f"{op}: {argument}={values} has {len(values)} entries, but there are {rank} spatial axes; "
            f"give {rank} integers, one for each"
        )
    if min(values, default=minimum) < minimum:
        raise ValueError(f"{op}: {argument}={values} must be at least {minimum} along every axis")
    return values


def as_shape(op: str, argument: str, value: Any) -> Ints:
    """`value` as the shape of an array: a sequence of integers, none of them negative."""
    try:
        sizes: list[Any] = [size if is_symbolic_dim(size) else operator.index(size) for size in value]
    except TypeError:
        raise TypeError(
            f"{op}: {argument}={value!r} must be the shape of an array, a sequence of integers; for example x.shape"
        ) from None
    shape = tuple(sizes)
    if any(is_static([size]) and size < 0 for size in shape):
        raise ValueError(f"{op}: {argument}={shape} must not be negative along any axis")
    return shape


def canonical_padding(op: str, padding: Any, rank: int) -> str | Pairs:
    """`padding` as one of lax's words or as a (low, high) pair of integers per spatial axis."""
    if isinstance(padding, str):
        if padding.upper() not in PADDING_WORDS:
            raise ValueError(
                f"{op}: padding={padding!r} is not known; use one of {', '.join(map(repr, PADDING_WORDS))}, "
                f"or {rank} (low, high) pairs of integers"
            )
        return padding.upper()
    try:
        if not _iterable(padding):
            return (_pair(padding),) * rank
        pairs = tuple(_pair(entry) for entry in padding)
    except (TypeError, ValueError):
        raise ValueError(
            f"{op}: padding={padding!r} must be one of {', '.join(map(repr, PADDING_WORDS))}, an integer, "
            f"or a sequence of {rank} (low, high) pairs of integers"
        ) from None
    if len(pairs) != rank:
        raise ValueError(
            f"{op}: padding={padding!r} has {len(pairs)} entries, but there are {rank} spatial axes; "
            f"give {rank} (low, high) pairs, one for each"
        )
    return pairs


def make_window(
    op: str,
    input_shape: Sequence[int],
    window_shape: Sequence[int],
    strides: Any,
    padding: Any,
    dilation: Any = 1,
    input_dilation: Any = 1,
    *,
    names: tuple[str, str, str, str] = POOL_WORDS,
    ceil_mode: bool = False,
    allow_empty: bool = False,
) -> Window:
    """Check a window's arguments once and resolve them to a `Window`; `names` are the caller's words.

    A window that is larger than its padded input is an error, unless the input itself is empty along
    that axis or `allow_empty` asks for lax's answer, a result of size 0.
    """
    window_name, strides_name, dilation_name, input_dilation_name = names
    rank, sizes, window_shape = len(window_shape), tuple(input_shape), tuple(window_shape)
    if any(is_static([k]) and k < 1 for k in window_shape):
        raise ValueError(
            f"{op}: {window_name} has spatial shape {window_shape}, but a window needs at least one pixel along "
            "every axis"
        )
    strides = per_axis(op, strides_name, strides, rank)
    dilation = per_axis(op, dilation_name, dilation, rank)
    input_dilation = per_axis(op, input_dilation_name, input_dilation, rank)
    pairs = canonical_padding(op, padding, rank)
    spans = tuple(map(dilated_size, window_shape, dilation))
    dilated = tuple(map(dilated_size, sizes, input_dilation))
    if isinstance(pairs, str):
        word, pairs = pairs, resolve_padding(pairs, dilated, spans, strides)
        if any(d != 1 for d in input_dilation):
            raise ValueError(
                f"{op}: padding={word!r} has no agreed meaning together with {input_dilation_name}="
                f"{input_dilation}; write the pairs: padding={pairs} is {word!r} for the dilated input of "
                f"spatial shape {dilated}"
            )
    padded = [low + size + high for size, (low, high) in zip(dilated, pairs, strict=True)]
    for axis, (pixels, span) in enumerate(zip(padded, spans, strict=True)):
        if is_static([pixels, span]) and max(pixels, span) > MOST_PIXELS:
            raise ValueError(
                f"{op}: along spatial axis {axis} the padded input has {pixels} pixels and the window spans {span}, "
                f"but positions are counted up to {MOST_PIXELS}; use less padding or dilation"
            )
    places = []
    for axis, (size, pixels, span) in enumerate(zip(dilated, padded, spans, strict=True)):
        if is_static([pixels]) and pixels < 0:
            raise ValueError(
                f"{op}: padding={pairs} takes away more pixels than the {size} that spatial axis {axis} of the "
                f"{'dilated ' if input_dilation[axis] > 1 else ''}input has; what is left must be at least 0"
            )
        count = max_dim((pixels - span) // strides[axis] + 1, 0)
        if ceil_mode:
            # One more may hang over the end, if it starts in front of what is padded there.
            end = pairs[axis][0] + size
            count = max_dim(count, min_dim(-(-(pixels - span) // strides[axis]) + 1, -(-end // strides[axis])))
        if is_static([count, size]) and count == 0 < size and not allow_empty:
            raise ValueError(
                f"{op}: along spatial axis {axis} the window spans {span} pixels ({window_name} "
                f"{window_shape[axis]}, {dilation_name} {dilation[axis]}), but the padded input has only {pixels} "
                f"({size} and padding {pairs[axis]}); use a smaller window or more padding"
            )
        places.append(count)
    window = Window(sizes, window_shape, strides, pairs, dilation, input_dilation, tuple(places))
    if ceil_mode:
        if any(high < 0 for _, high in pairs):
            raise ValueError(
                f"{op}: padding={pairs} crops the end of the input, where ceil_mode=True adds pixels; crop the input "
                "itself (for example x[:-1]) and leave the high padding at 0 or more"
            )
        pairs = tuple(
            (low, max_dim(high, end)) for (low, high), (_, end) in zip(pairs, read_padding(window), strict=True)
        )
        window = window._replace(padding=pairs)
    return window


def conv_window(
    op: str,
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Any,
    padding: Any,
    input_dilation: Any,
    kernel_dilation: Any,
    feature_group_count: Any,
    *,
    names: tuple[str, ...] = CONV_WORDS,
    allow_empty: bool = False,
) -> Window:
    """Check the shapes of a channels-last convolution, (*batch, *spatial, C) with (*window, C / groups, O)."""
    x_name, kernel_name, group_name, strides_name, kernel_dilation_name, input_dilation_name = names
    x_shape, kernel_shape = tuple(x_shape), tuple(kernel_shape)
    rank = len(kernel_shape) - 2
    if rank < 0:
        raise ValueError(
            f"{op}: {kernel_name} has shape {kernel_shape}, but it needs at least two axes: "
            f"(*window, input channels / groups, output channels)"
        )
    if len(x_shape) < rank + 1:
        raise ValueError(
            f"{op}: {kernel_name} has shape {kernel_shape}, so there are {rank} spatial axes, but {x_name} has "
            f"shape {x_shape}; it needs at least {rank + 1} axes: (*batch, *spatial, channels)"
        )
    try:
        groups = operator.index(feature_group_count)
    except TypeError:
        raise TypeError(f"{op}: {group_name}={feature_group_count!r} must be an integer") from None
    *_, channels = x_shape
    *window_shape, group_channels, features = kernel_shape
    if groups < 1:
        raise ValueError(f"{op}: {group_name}={groups} must be at least 1")
    if channels != group_channels * groups:
        raise ValueError(
            f"{op}: {x_name} has {channels} channels (shape {x_shape}), but {kernel_name} of shape {kernel_shape} "
            f"reads {group_channels} in each of {group_name}={groups} groups; {group_channels * groups} channels "
            f"would fit (the last two axes are input channels / groups and output channels)"
        )
    if features % groups:
        raise ValueError(
            f"{op}: {kernel_name} has {features} output channels (shape {kernel_shape}), which {group_name}="
            f"{groups} does not divide; use a multiple of {groups}"
        )
    return make_window(
        op, x_shape[len(x_shape) - rank - 1 : -1], window_shape, strides, padding, kernel_dilation, input_dilation,
        names=(kernel_name, strides_name, kernel_dilation_name, input_dilation_name), allow_empty=allow_empty,
    )  # fmt: skip


def resolve_padding(word: str, sizes: Ints, spans: Ints, strides: Ints) -> Pairs:
    """The (low, high) pairs that one of lax's padding words stands for."""
    if word == "VALID":
        return ((0, 0),) * len(sizes)
    if is_static(sizes):
        pairs = []
        for size, span, stride in zip(sizes, spans, strides, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + span - size)
            low = total // 2 if word == "SAME" else total - total // 2
            pairs.append((low, total - low))
        return tuple(pairs)
    return tuple(lax.padtype_to_pads(sizes, spans, strides, word))


def transposed_padding(span: int, stride: int, padding: str | tuple[int, int]) -> tuple[int, int]:
    """Zeros around a dilated input so that a transposed convolution undoes the sizes of a forward one.

    `padding` is the forward convolution's; the words "SAME" and "VALID" split the total as lax does.
    """
    if padding == "VALID":
        low, total = span - 1, span + stride - 2 + max(span - stride, 0)
    elif padding == "SAME":
        total = span + stride - 2
        low = span - 1 if stride > span - 1 else (total + 1) // 2
    else:
        before, after = padding
        low, total = span - 1 - int(before), 2 * (span - 1) - int(before) - int(after)
    return low, total - low


def read_padding(window: Window) -> Pairs:
    """The padding that ends where the last window ends: pixels beyond are read by no window.

    Where no window fits, one pixel is missing for the first: no size is negative, whatever a symbolic one turns out.
    """
    pairs = []
    for axis, (low, _) in enumerate(window.padding):
        span = dilated_size(window.window_shape[axis], window.dilation[axis])
        size = dilated_size(window.input_shape[axis], window.input_dilation[axis])
        starts = dilated_size(window.output_shape[axis], window.strides[axis])
        pairs.append((low, starts + span - 1 - low - size))
    return tuple(pairs)


def full_padding(window: Window) -> Pairs:
    """Zeros around the strided delta so that the rotated window meets every input pixel exactly once.

    In full convolution each side gets `span - 1` zeros; what the forward padding added is taken off again.
    """
    pairs = []
    for axis in range(window.rank):
        span = dilated_size(window.window_shape[axis], window.dilation[axis])
        delta = dilated_size(window.output_shape[axis], window.strides[axis])
        size = dilated_size(window.input_shape[axis], window.input_dilation[axis])
        low = span - 1 - window.padding[axis][0]
        pairs.append((low, size + span - 1 - delta - low))
    return tuple(pairs)


def transposed(window: Window) -> Window:
    """The window of the full convolution that takes delta back to the input: strides and input dilation exchanged."""
    return window._replace(
        input_shape=window.output_shape,
        output_shape=window.input_shape,
        strides=window.input_dilation,
        input_dilation=window.strides,
        padding=full_padding(window),
    )


def non_overlapping(window: Window) -> bool:
    """Whether every pixel lies in one window at most, and windows are patches or single pixels."""
    apart = window.taps == 1 or (window.window_shape == window.strides and set(window.dilation) <= {1})
    return apart and set(window.input_dilation) <= {1}


def as_patches(window: Window) -> Window:
    """The same windows as patches, where they are: the stride is free along an axis that has one window."""
    steps = zip(window.window_shape, window.strides, window.output_shape, strict=True)
    patches = window._replace(strides=tuple(k if out == 1 else s for k, s, out in steps))
    return patches if non_overlapping(patches) else window


def outputs_inside(window: Window) -> tuple[Pairs, ...]:
    """Along every axis, for every tap, the outputs (from, up to) for which it reads input, undilated, not padding."""
    axes = []
    for axis, (low, _) in enumerate(window.padding):
        pairs = []
        for tap in range(window.window_shape[axis]):
            # The pixel that this tap reads for the first output.
            start = tap * window.dilation[axis] - low
            first = max(0, -(start // window.strides[axis]))
            end = min(window.output_shape[axis], -((start - window.input_shape[axis]) // window.strides[axis]))
            pairs.append((first, max(first, end)))
        axes.append(tuple(pairs))
    return tuple(axes)


def _pair(entry: Any) -> tuple[int, int]:
    """A (low, high) pair; one integer stands for both."""
    if not _iterable(entry):
        return operator.index(entry), operator.index(entry)
    low, high = entry
    return operator.index(low), operator.index(high)


def _iterable(value: Any) -> bool:
    """Whether `value` is a sequence of things and not a single one."""
    return hasattr(value, "__len__") and not (hasattr(value, "shape") and value.shape == ())
