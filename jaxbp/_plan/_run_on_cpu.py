"""The chosen form of a map, evaluated on a CPU: each name that `_cpu` gives, and what it calls."""

import math
from collections.abc import Callable
from functools import partial

import jax

from .._algorithms import (
    _direct,
    _fold_axis,
    _gemm,
    _im2col,
    _pack_batch,
    _pad_row,
    _shift_add,
    _space_to_batch,
    _subpixel,
    _swap_operands,
    _toeplitz,
    _valid_taps,
    _width_tiling,
    _winograd,
)
from .._algorithms._memory import after, materialize
from .._algorithms._tiles import (
    MOST_WRITTEN,
    chunk,
    largest_divisor,
    map_concat,
    map_images,
    map_tiles,
    sum_images,
    sum_tiles,
    tile,
)
from .._algorithms._windows import Form, pad_axes, side_by_side
from .._batching import one_by_one
from .._geometry import ConvGeometry, Window, read_padding, transposed
from . import _cpu, _cpu_winograd, _limits
from ._cpu import forward_form
from ._cpu_kernel_grad import kernel_grad_form
from ._limits import as_blocks

# Forms of a kernel's gradient that gather several times as many numbers as x has.
GATHERING = {
    *("im2col", "row_im2col", "grouped im2col", "width_tiling im2col", "width_tiling row_im2col", "fold_axis"),
    *("valid_taps", "winograd", "winograd in parts"),
}


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry, back: bool = False) -> jax.Array:
    """Evaluate the forward sum in the chosen form; taken back, of delta, with the kernel rotated and exchanged."""
    w, groups = g.window, g.feature_group_count
    features = groups * kernel.shape[-2] if back else kernel.shape[-1]
    name, _ = forward_form(g, x.shape[0], x.shape[-1], features, back)
    if name == "gemm" and w.taps == 1 and back and set(w.strides) <= {1}:
        name = "transposed gemm"

    def rotated() -> jax.Array:
        return _direct.taken_back(kernel, groups)

    # Forms that read the kernel as it is: a rotated one would be a copy.
    match name:
        case "winograd":
            return _winograd.forward(x, kernel, g, back)
        case "winograd in parts":
            axis = kernel.ndim - (2 if back else 1)
            return _some_features(lambda kernel: _winograd.forward(x, kernel, g, back), kernel, x.shape[-1], axis)
        case "valid_taps":
            return _valid_taps.forward(x, kernel, g, back)
        case "kn2row":
            return _project_then_add(x, kernel, g, back)
        case "swap_operands":
            return _swap_operands.forward(x, kernel, g, back)
        case "space_to_batch":
            return _space_to_batch.forward(x, kernel, g, partial(forward, back=back))
        case "transposed gemm":
            g = g._replace(window=as_blocks(transposed(w)))
            put_in_place = partial(_gemm.transposed, kernel=kernel if back else rotated(), g=g)
            return _copied_blocks(put_in_place, x, g.window, features)
    kernel = rotated() if back else kernel
    match name:
        case "gemm":
            g = g._replace(window=as_blocks(w))
            return _copied_blocks(partial(_gemm.forward, kernel=kernel, g=g), x, g.window, x.shape[-1])
        case "subpixel":
            return _subpixel.forward(x, kernel, g, forward, partial(map_images, times=4))
        case "per_image":
            return _image_by_image(x, kernel, g)
        case "shift_add":
            return _shift_add.forward(x, kernel, g)
        case "toeplitz":
            pixels = w.window_shape[0] * w.input_shape[1] * x.shape[-1] // w.output_shape[1]
            return _in_blocks(lambda x, g: _toeplitz.forward(x, kernel, g), x, g, pixels)
        case "width_tiling":
            return _width_tiling.forward(x, kernel, g, _taps_at_once)
        case "im2col":
            return _taps_at_once(x, kernel, g)
        case "per_group":
            return _group_by_group(forward, x, kernel, g)
        case "fold_axis":
            pixels = _folded_pixels(w, x.shape[-1])
            return _in_blocks(lambda x, g: _fold_axis.fold_forward(x, kernel, g, forward, _views), x, g, pixels)
        case "pack_batch":
            return _pack_batch.forward(x, kernel, g)
        case "pad_row":
            return _in_blocks(lambda x, g: _pad_row.forward(x, kernel, g), x, g, features, times=4)
        case "pad_input":
            x, g = _padded(x, g)
    return _direct.forward(x, kernel, g)


def input_grad(delta: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Evaluate the input's gradient: the forward sum of delta and the rotated kernel."""
    back = g._replace(window=transposed(as_blocks(g.window)), preferred_element_type=None)
    return forward(delta, kernel, back, back=True)


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, mapped: bool = False) -> jax.Array:
    """Evaluate the kernel's gradient in the chosen form; below a vmap, of each example alone where faster."""
    w, groups = g.window, g.feature_group_count
    c = x.shape[-1] // groups

    def again(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
        return kernel_grad(x, delta, g, mapped)

    def alone(form: Callable[..., jax.Array], smallest: int = _limits.LARGE_EXAMPLE) -> Callable[..., jax.Array]:
        if mapped and x.size >= smallest:
            return lambda x, delta, g: one_by_one(partial(form, g=g), x, delta)
        return form

    def mirrored(form: Callable[..., jax.Array]) -> jax.Array:
        exchanged = form(delta, x, g._replace(window=transposed(w)))
        return _direct.taken_back(exchanged, groups)

    name, _ = kernel_grad_form(g, x.shape[0], x.shape[-1], delta.shape[-1])
    x = after(x, delta) if name in GATHERING else x
    has_views = w.rank == groups == 1 and w.input_dilation == (1,) and w.taps <= _limits.MAX_TAPS
    if mapped and name == "direct" and has_views:
        return _im2col.taps_kernel_grad(x, delta, g)
    match name:
        case "swap_operands":
            return mirrored(again)
        case "swap_operands im2col":
            return mirrored(alone(_im2col.taps_kernel_grad))
        case "swap_operands row_im2col":
            return mirrored(alone(_im2col.rows_kernel_grad))
        case "gemm":
            g = g._replace(window=as_blocks(w))
            if not _copies_much(g.window, x.shape[0], c):
                return _gemm.kernel_grad(x, delta, g)
            return sum_images(partial(_gemm.kernel_grad, g=g), x, delta, math.prod(w.input_shape) * c, times=2)
        case "shift_add":
            return _shift_add.kernel_grad(x, delta, g)
        case "per_group":
            return _group_by_group(again, x, delta, g)
        case "grouped im2col":
            return _im2col.grouped_kernel_grad(x, delta, g, largest_divisor(groups, 16 // c))
        case "winograd":
            return alone(_winograd.kernel_grad)(x, delta, g)
        case "winograd in parts":
            form = alone(_winograd.kernel_grad)
            return _some_features(lambda delta: form(x, delta, g), delta, x.shape[-1], delta.ndim - 1)
        case "valid_taps":
            return alone(_valid_taps.kernel_grad)(x, delta, g)
        case "space_to_batch":
            return _space_to_batch.kernel_grad(x, delta, g, again)
        case "im2col":
            return alone(_im2col.taps_kernel_grad)(x, delta, g)
        case "row_im2col":
            return alone(_im2col.rows_kernel_grad)(x, delta, g)
        case "width_tiling im2col":
            return _width_tiling.kernel_grad(x, delta, g, alone(_im2col.taps_kernel_grad))
        case "width_tiling row_im2col":
            rows = partial(_im2col.rows_kernel_grad, most_sums=_im2col.SHORT_SUMS)
            return _width_tiling.kernel_grad(x, delta, g, alone(rows))
        case "fold_axis":
            # The compiler's own sum over all positions would be less exact than what it does in more dimensions.
            flat = alone(_im2col.taps_kernel_grad) if w.rank == 3 and w.taps * c <= 2 * _limits.FEW_COLUMNS else again
            blocks = tile(g, x.shape[0], _folded_pixels(w, c))
            if blocks.count == 1:
                return _fold_axis.fold_kernel_grad(x, delta, g, flat, _views)
            return sum_tiles(lambda x, d, g: _fold_axis.fold_kernel_grad(x, d, g, flat, _views), x, delta, g, blocks)
        case "pad_input":
            x, g = _padded(x, g)
    return alone(_direct.kernel_grad, 0)(x, delta, g)


def _padded(x: jax.Array, g: ConvGeometry) -> tuple[jax.Array, ConvGeometry]:
    """The input with its padding written out, no smaller than the window or delta that slides over it; what is left."""
    w = g.window
    x = materialize(pad_axes(x, range(1, w.rank + 1), read_padding(w), 0))
    return x, g._replace(window=w.unpadded(x.shape[1:-1]))


def _copied_blocks(form: Callable[[jax.Array], jax.Array], x: jax.Array, w: Window, channels: int) -> jax.Array:
    """The product of windows that are blocks, of some images at a time where a copy of all their pixels is large."""
    if not _copies_much(w, x.shape[0], channels):
        return form(x)
    return map_images(form, x, math.prod(w.input_shape) * channels, times=2)


def _copies_much(w: Window, batch: int, channels: int) -> bool:
    """Whether pixels are many, and not in the order of their windows: of one pixel each, or a single one."""
    in_order = w.taps == 1 or math.prod(w.output_shape) == 1
    return not in_order and batch * math.prod(w.input_shape) * channels >= MOST_WRITTEN


def _in_blocks(form: Callable[..., jax.Array], x: jax.Array, g: ConvGeometry, pixels: int, times: int = 1) -> jax.Array:
    """The form on all of the input where its temporaries fit, `pixels` numbers for each output; else block by block."""
    blocks = tile(g, x.shape[0], pixels, times=times)
    return form(x, g) if blocks.count == 1 else map_tiles(form, x, g, blocks)


def _folded_pixels(w: Window, channels: int) -> int:
    """How many numbers of the input, whose first axis is folded, belong to each output."""
    return w.window_shape[0] * channels * -(-math.prod(w.input_shape[1:]) // math.prod(w.output_shape[1:]))


def _views(x: jax.Array, w: Window) -> jax.Array:
    """Views side by side, once for the forward sum and the kernel's gradient: the compiler would write them twice."""
    return materialize(side_by_side(x, w))


def _taps_at_once(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """One product of all taps, of as many images as fit."""
    columns = g.window.taps * x.shape[-1]
    times = _cpu.times_at_once(columns, kernel.shape[-1])
    return _in_blocks(lambda x, g: _im2col.taps_forward(x, kernel, g), x, g, columns, times)


def _some_features(form: Callable[[jax.Array], jax.Array], a: jax.Array, channels: int, axis: int) -> jax.Array:
    """The form of so many features at a time, an axis of `a` and the last of the result, that weights fit the cache."""
    count = a.shape[axis] // _cpu_winograd.features_in_part(channels, a.shape[axis])
    return map_concat(lambda i: form(chunk(a, i, count, axis)), count, a, a.ndim - 1)


def _project_then_add(x: jax.Array, kernel: jax.Array, g: ConvGeometry, back: bool = False) -> jax.Array:
    """Some images at a time, whose padding is left to the parts; large ones without zeros between pixels in bands."""

    def form(x: jax.Array, g: ConvGeometry = g) -> jax.Array:
        return _im2col.kn2row(x, kernel, g, back)

    pixels = g.window.taps * kernel.shape[-2 if back else -1]
    if x.size > 2 * _limits.MOST_OUTPUTS:
        # The product reads a copy of the input, its channels first, which would not stay in the cache.
        pixels = max(pixels, x.shape[-1])
    image = pixels * math.prod(g.window.input_shape)
    if image > _limits.MOST_OUTPUTS * 2 and set(g.window.input_dilation) <= {1}:
        return _in_blocks(form, x, g, pixels)
    return map_images(form, x, image, times=2)


def _image_by_image(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """The textbook form of one image, or of some, after the other."""
    pixels = math.prod(g.window.output_shape) * kernel.shape[-1]
    return map_images(lambda x: _direct.forward(x, kernel, g), x, pixels)


def _group_by_group(form: Form, a: jax.Array, b: jax.Array, g: ConvGeometry) -> jax.Array:
    """One dense sum for each group, in a loop."""
    groups, alone = g.feature_group_count, g._replace(feature_group_count=1)
    return map_concat(lambda i: form(chunk(a, i, groups), chunk(b, i, groups), alone), groups, a, a.ndim - 1)
