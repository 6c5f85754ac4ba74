"""The ops and their gradients as naive loops in NumPy, float64: over every window, every tap, every pixel.

Nothing here comes from jaxbp or JAX. Along one axis, tap `t` of window `o` reads the padded, dilated input at
`o * stride + t * dilation`; a loop visits every (window, tap) and asks which input pixel, if any, lies there.
"""

import itertools
import math

import numpy as np


def axis_windows(size, window, stride, padding, dilation=1, input_dilation=1, ceil_mode=False):
    """For every window along one axis: the pixels that its taps read, None for a tap that reads no pixel."""
    span = (window - 1) * dilation + 1
    dilated = (size - 1) * input_dilation + 1 if size else 0
    low, high = axis_padding(dilated, window, stride, padding, dilation)
    end = low + dilated + high
    input_end = low + dilated + min(high, 0)
    windows, start = [], 0
    # ceil_mode keeps one window that hangs over the end if it starts on the input or its low padding.
    while start + span <= end or (ceil_mode and start + span - stride < end and start < input_end):
        positions = [start + tap * dilation for tap in range(window)]
        windows.append(
            [
                (p - low) // input_dilation if low <= p < input_end and (p - low) % input_dilation == 0 else None
                for p in positions
            ]
        )
        start += stride
    return windows


def axis_padding(size, window, stride, padding, dilation=1):
    """The (low, high) padding along one axis."""
    if padding == "VALID":
        return 0, 0
    if padding in ("SAME", "SAME_LOWER"):
        total = max(0, (math.ceil(size / stride) - 1) * stride + (window - 1) * dilation + 1 - size)
        short, long = total // 2, total - total // 2
        return (short, long) if padding == "SAME" else (long, short)
    return (padding, padding) if np.ndim(padding) == 0 else tuple(padding)


def per_axis(value, rank):
    """One value per axis; None means 1."""
    value = 1 if value is None else value
    return (value,) * rank if isinstance(value, str) or np.ndim(value) == 0 else tuple(value)


def visit(axes):
    """Yield (a window's place, [the pixel of each tap in row-major order, or None])."""
    for place in itertools.product(*(range(len(windows)) for windows in axes)):
        taps = itertools.product(*(windows[o] for windows, o in zip(axes, place, strict=True)))
        yield place, [None if None in pixel else pixel for pixel in taps]


def images_of(x, rank):
    """x with its batch axes as one."""
    batch = x.shape[: x.ndim - rank - 1]
    return batch, x.reshape(math.prod(batch), *x.shape[len(batch) :])


# ------------------------------------------------------------------------------------------------ convolution


def conv(x, kernel, bias=None, *, delta=None, strides=1, padding="SAME", input_dilation=1, kernel_dilation=1,
         feature_group_count=1):  # fmt: skip
    """z, or with delta = dJ/dz the gradients (dx, dkernel, dbias): every product a * w is visited once."""
    wide = np.complex128 if np.iscomplexobj(x) else np.float64
    x, kernel, groups = np.asarray(x, wide), np.asarray(kernel, wide), feature_group_count
    *window_shape, _, features = kernel.shape
    rank = len(window_shape)
    batch, images = images_of(x, rank)
    spatial, channels = images.shape[1:-1], images.shape[-1]
    axes = [
        axis_windows(*facts)
        for facts in zip(
            spatial, window_shape, per_axis(strides, rank), per_axis(padding, rank),
            per_axis(kernel_dilation, rank), per_axis(input_dilation, rank), strict=True,
        )
    ]  # fmt: skip
    z = np.zeros((len(images), *map(len, axes), features), wide)
    dx, dkernel = np.zeros_like(images), np.zeros_like(kernel)
    delta = None if delta is None else np.asarray(delta, wide).reshape(z.shape)
    per_in, per_out = channels // groups, features // groups
    for place, pixels in visit(axes):
        for tap, pixel in zip(np.ndindex(*window_shape), pixels, strict=True):
            for group in range(groups if pixel is not None else 0):
                reads = (slice(None), *pixel, slice(group * per_in, (group + 1) * per_in))
                writes = (slice(None), *place, slice(group * per_out, (group + 1) * per_out))
                weights = (*tap, slice(None), writes[-1])
                if delta is None:
                    z[writes] += images[reads] @ kernel[weights]
                else:
                    dx[reads] += delta[writes] @ kernel[weights].T
                    dkernel[weights] += images[reads].T @ delta[writes]
    if delta is not None:
        return dx.reshape(x.shape), dkernel, delta.sum(axis=tuple(range(rank + 1)))
    z = z if bias is None else z + np.asarray(bias, wide)
    return z.reshape(*batch, *z.shape[1:])


def transposed_padding(k, stride, padding, consistent):
    """(low, high) at an axis of the input with zeros in it, for a window that spans k pixels."""
    if isinstance(padding, str):
        # As lax splits them: for the forward convolution that VALID or SAME would be the padding of.
        total = k + stride - 2 + (max(k - stride, 0) if padding == "VALID" else 0)
        low = k - 1 if padding == "VALID" or stride > k - 1 else -(-total // 2)
        return low, total - low
    return tuple(k - 1 - p for p in padding) if consistent else tuple(padding)


def as_conv(window_shape, strides, padding, rhs_dilation=None, transpose_kernel=False, use_consistent_padding=False):
    """The arguments of `conv` for those of `conv_transpose`, whose kernel may have to be exchanged first."""
    rank = len(window_shape)
    dilation = per_axis(rhs_dilation, rank)
    paddings = [padding] * rank if isinstance(padding, str) else padding
    pairs = [
        transposed_padding((k - 1) * d + 1, s, p, use_consistent_padding)
        for k, d, s, p in zip(window_shape, dilation, strides, paddings, strict=True)
    ]
    return dict(input_dilation=tuple(strides), kernel_dilation=dilation, padding=tuple(pairs))


def exchanged(kernel):
    """Turned by 180 degrees, inputs and outputs swapped: what `transpose_kernel` does first; its own inverse."""
    axes = tuple(range(np.ndim(kernel) - 2))
    return np.flip(kernel, axes).swapaxes(-2, -1)


# --------------------------------------------------------------------------------------------------- pooling


def pool(kind, x, window_shape, strides=None, padding="VALID", count_include_pad=True, *, p=2.0,
         window_dilation=None, ceil_mode=False, divisor_override=None, delta=None):  # fmt: skip
    """(pooled, winners, dx) of the pool `kind`: "max", "min", "avg", "sum" or "lp"; delta = dJ/dpooled."""
    x = np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)
    rank = len(window_shape)
    batch, images = images_of(x, rank)
    spatial, channels = images.shape[1:-1], images.shape[-1]
    facts = list(
        zip(
            spatial, window_shape, per_axis(strides, rank), per_axis(padding, rank), per_axis(window_dilation, rank),
            strict=True,
        )
    )  # fmt: skip
    axes = [axis_windows(*fact, ceil_mode=ceil_mode) for fact in facts]
    pooled = np.zeros((len(images), *map(len, axes), channels), x.dtype)
    winners = np.full(pooled.shape, math.prod(window_shape))
    dx = np.zeros_like(images)
    delta = np.zeros_like(pooled) if delta is None else np.asarray(delta).reshape(pooled.shape)
    for place, pixels in visit(axes):
        inside = [(tap, pixel) for tap, pixel in enumerate(pixels) if pixel is not None]
        divisor = 1 if kind == "sum" else divisor_override or counted_pixels(facts, place, count_include_pad)
        for image, channel in np.ndindex(len(images), channels):
            at = (image, *place, channel)
            values = [images[(image, *pixel, channel)] for _, pixel in inside]
            slopes = np.zeros(len(values))
            if kind in ("max", "min"):
                chosen = winner(values, kind)
                pooled[at] = (-np.inf if kind == "max" else np.inf) if chosen is None else values[chosen]
                if chosen is not None:
                    winners[at] = inside[chosen][0]
                    slopes[chosen] = 1
            elif kind == "lp":
                pooled[at], slopes = norm_and_slopes(values, p)
            elif divisor:
                pooled[at], slopes = sum(values) / divisor, slopes + 1 / divisor
            else:
                pooled[at] = np.nan
            for (_, pixel), slope in zip(inside, slopes, strict=True):
                if slope:
                    dx[(image, *pixel, channel)] += delta[at] * slope
    shape = (*batch, *pooled.shape[1:])
    return pooled.reshape(shape), winners.reshape(shape), dx.reshape(x.shape)


def winner(values, kind):
    """Which of a window's values wins: the first extremum, but the last NaN; None if there are no values."""
    chosen = None
    for index, value in enumerate(values):
        if chosen is None or np.isnan(value) or (value > values[chosen] if kind == "max" else value < values[chosen]):
            chosen = index
    return chosen


def norm_and_slopes(values, p):
    """The p-norm of a window and its derivative with respect to each value; 0 at the norm 0."""
    magnitudes = np.abs(np.array(values, np.float64))
    if math.isinf(p):
        first = int(np.argmax(magnitudes)) if values else -1
        return max(magnitudes, default=0.0), [float(np.sign(v)) * (i == first) for i, v in enumerate(values)]
    norm = float(np.sum(magnitudes**p)) ** (1 / p)
    return norm, [float(np.sign(v)) * (abs(v) / norm) ** (p - 1) if v and norm else 0.0 for v in values]


def counted_pixels(facts, place, count_include_pad):
    """How many pixels of a window lie on the input, or on the input and its padding: the average's divisor."""
    count = 1
    for (n, k, s, padding, d), o in zip(facts, place, strict=True):
        low, high = axis_padding(n, k, s, padding, d)
        first, end = (-low, n + high) if count_include_pad else (0, n + min(high, 0))
        count *= sum(first <= o * s + tap * d - low < end for tap in range(k))
    return count


def unpool(values, winners, input_shape, window_shape, strides=None, padding="VALID", *, window_dilation=None,
           ceil_mode=False, delta=None):  # fmt: skip
    """(x, dvalues): each value at its window's winner, the last window's where windows share one."""
    rank = len(window_shape)
    batch, x = images_of(np.zeros(input_shape), rank)
    axes = [
        axis_windows(*fact, ceil_mode=ceil_mode)
        for fact in zip(
            x.shape[1:-1], window_shape, per_axis(strides, rank), per_axis(padding, rank),
            per_axis(window_dilation, rank), strict=True,
        )
    ]  # fmt: skip
    shape = (len(x), *map(len, axes), x.shape[-1])
    values, winners = np.asarray(values, np.float64).reshape(shape), np.asarray(winners).reshape(shape)
    writer = {}
    for place, pixels in visit(axes):
        for image, channel in np.ndindex(len(x), x.shape[-1]):
            window = (image, *place, channel)
            tap = winners[window]
            if tap < len(pixels) and pixels[tap] is not None:
                x[(image, *pixels[tap], channel)] = values[window]
                writer[(image, *pixels[tap], channel)] = window
    dvalues = np.zeros(shape)
    delta = np.zeros(x.shape) if delta is None else np.asarray(delta).reshape(x.shape)
    for pixel, window in writer.items():
        dvalues[window] = delta[pixel]
    return x.reshape(input_shape), dvalues.reshape(*batch, *shape[1:])


def adaptive_pool(kind, x, output_shape, delta=None):
    """(pooled, dx) of "max" or "avg": windows from floor(o n / m) up to ceil((o + 1) n / m)."""
    x = np.asarray(x, np.float64)
    batch, images = images_of(x, len(output_shape))
    spatial, channels = images.shape[1:-1], images.shape[-1]
    pooled, dx = np.zeros((len(images), *output_shape, channels)), np.zeros_like(images)
    delta = np.zeros_like(pooled) if delta is None else np.asarray(delta).reshape(pooled.shape)
    for place in np.ndindex(*output_shape):
        ranges = [
            range(o * n // m, math.ceil((o + 1) * n / m)) for o, n, m in zip(place, spatial, output_shape, strict=True)
        ]
        pixels = list(itertools.product(*ranges))
        for image, channel in np.ndindex(len(images), channels):
            at, values = (image, *place, channel), [images[(image, *pixel, channel)] for pixel in pixels]
            chosen = winner(values, "max")
            pooled[at] = values[chosen] if kind == "max" else sum(values) / len(values)
            for index, pixel in enumerate(pixels):
                slope = float(index == chosen) if kind == "max" else 1 / len(pixels)
                if slope:
                    dx[(image, *pixel, channel)] += delta[at] * slope
    return pooled.reshape(*batch, *output_shape, channels), dx.reshape(x.shape)
