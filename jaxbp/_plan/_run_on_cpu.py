"""Run the chosen algorithm of each sum on a CPU: every name that `_cpu` and `_cpu_kernel_grad` return."""

import math
from collections.abc import Callable
from functools import partial

import jax

from .._algorithms import (
    _direct,
    _fold_axis,
    _gemm,
    _im2col,
    _kn2row,
    _pack_batch,
    _pad_row,
    _per_group,
    _row_im2col,
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
    MOST_MATERIALIZED,
    chunk,
    largest_divisor,
    map_concat,
    map_images,
    map_tiles,
    sum_images,
    sum_tiles,
    tile,
)
from .._algorithms._windows import concat_views, pad_axes
from .._batching import one_by_one
from .._geometry import ConvGeometry, Window, read_padding, transposed
from . import _cpu, _cpu_winograd, _limits
from ._cpu import forward_form
from ._cpu_kernel_grad import kernel_grad_form
from ._limits import as_patches

# Algorithms of a kernel's gradient that gather several times as many elements as x has.
GATHERING = {
    *("im2col", "row_im2col", "per_group im2col", "width_tiling im2col", "width_tiling row_im2col", "fold_axis"),
    *("valid_taps", "winograd", "winograd in chunks"),
}


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry, back: bool = False) -> jax.Array:
    """Evaluate the forward sum with the chosen algorithm.

    With `back`, the input's gradient: x is delta, and the kernel is rotated, its channels and features swapped.
    """
    w, groups = g.window, g.feature_group_count
    features = groups * kernel.shape[-2] if back else kernel.shape[-1]
    name, _ = forward_form(g, x.shape[0], x.shape[-1], features, back)
    if name == "gemm" and w.taps == 1 and back and set(w.strides) <= {1}:
        name = "transposed gemm"

    def rotated() -> jax.Array:
        return _direct.backward_kernel(kernel, groups)

    # Algorithms that read the kernel as it is. A rotated kernel would be a copy.
    match name:
        case "winograd":
            return _winograd.forward(x, kernel, g, back)
        case "winograd in chunks":
            axis = kernel.ndim - (2 if back else 1)
            return _chunk_features(lambda kernel: _winograd.forward(x, kernel, g, back), kernel, x.shape[-1], axis)
        case "valid_taps":
            return _valid_taps.forward(x, kernel, g, back)
        case "kn2row":
            return _kn2row_in_tiles(x, kernel, g, back)
        case "swap_operands":
            return _swap_operands.forward(x, kernel, g, back)
        case "space_to_batch":
            return _space_to_batch.forward(x, kernel, g, partial(forward, back=back))
        case "transposed gemm":
            g = g._replace(window=as_patches(transposed(w)))
            transposed_gemm = partial(_gemm.transposed, kernel=kernel if back else rotated(), g=g)
            return _gemm_of_some_images(transposed_gemm, x, g.window, features)
    kernel = rotated() if back else kernel
    match name:
        case "gemm":
            g = g._replace(window=as_patches(w))
            return _gemm_of_some_images(partial(_gemm.forward, kernel=kernel, g=g), x, g.window, x.shape[-1])
        case "subpixel":
            return _subpixel.forward(x, kernel, g, forward, partial(map_images, times=4))
        case "per_image":
            return _per_image(x, kernel, g)
        case "shift_add":
            return _shift_add.forward(x, kernel, g)
        case "toeplitz":
            elements = w.window_shape[0] * w.input_shape[1] * x.shape[-1] // w.output_shape[1]
            return _in_tiles(lambda x, g: _toeplitz.forward(x, kernel, g), x, g, elements)
        case "width_tiling":
            return _width_tiling.forward(x, kernel, g, _im2col_in_tiles)
        case "im2col":
            return _im2col_in_tiles(x, kernel, g)
        case "per_group":
            return _per_group.per_group(forward, x, kernel, g)
        case "fold_axis":
            fold = partial(_fold_axis.forward, form=forward, views=_materialized_views)
            return _in_tiles(lambda x, g: fold(x, kernel, g), x, g, _folded_elements(w, x.shape[-1]))
        case "pack_batch":
            return _pack_batch.forward(x, kernel, g)
        case "pad_row":
            return _in_tiles(lambda x, g: _pad_row.forward(x, kernel, g), x, g, features, times=4)
        case "pad_input":
            x, g = _pad_input(x, g)
    return _direct.forward(x, kernel, g)


def input_grad(delta: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Evaluate the input's gradient: the forward sum of delta and the rotated kernel."""
    back = g._replace(window=transposed(as_patches(g.window)), preferred_element_type=None)
    return forward(delta, kernel, back, back=True)


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, mapped: bool = False) -> jax.Array:
    """Evaluate the kernel's gradient with the chosen algorithm. Below a vmap (`mapped`), per example where faster."""
    w, groups = g.window, g.feature_group_count
    c = x.shape[-1] // groups

    def again(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
        return kernel_grad(x, delta, g, mapped)

    def alone(form: Callable[..., jax.Array], smallest: int = _limits.LARGE_EXAMPLE) -> Callable[..., jax.Array]:
        if mapped and x.size >= smallest:
            return lambda x, delta, g: one_by_one(partial(form, g=g), x, delta)
        return form

    def swapped(form: Callable[..., jax.Array]) -> jax.Array:
        swapped_grad = form(delta, x, g._replace(window=transposed(w)))
        return _direct.backward_kernel(swapped_grad, groups)

    name, _ = kernel_grad_form(g, x.shape[0], x.shape[-1], delta.shape[-1])
    x = after(x, delta) if name in GATHERING else x
    has_views = w.rank == groups == 1 and w.input_dilation == (1,) and w.taps <= _limits.MAX_TAPS
    if mapped and name == "direct" and has_views:
        return _im2col.kernel_grad(x, delta, g)
    match name:
        case "swap_operands":
            return swapped(again)
        case "swap_operands im2col":
            return swapped(alone(_im2col.kernel_grad))
        case "swap_operands row_im2col":
            return swapped(alone(_row_im2col.kernel_grad))
        case "gemm":
            g = g._replace(window=as_patches(w))
            if not _copies_much(g.window, x.shape[0], c):
                return _gemm.kernel_grad(x, delta, g)
            return sum_images(partial(_gemm.kernel_grad, g=g), x, delta, math.prod(w.input_shape) * c, times=2)
        case "shift_add":
            return _shift_add.kernel_grad(x, delta, g)
        case "per_group":
            return _per_group.per_group(again, x, delta, g)
        case "per_group im2col":
            return _per_group.grouped_kernel_grad(x, delta, g, largest_divisor(groups, 16 // c))
        case "winograd":
            return alone(_winograd.kernel_grad)(x, delta, g)
        case "winograd in chunks":
            form = alone(_winograd.kernel_grad)
            return _chunk_features(lambda delta: form(x, delta, g), delta, x.shape[-1], delta.ndim - 1)
        case "valid_taps":
            return alone(_valid_taps.kernel_grad)(x, delta, g)
        case "space_to_batch":
            return _space_to_batch.kernel_grad(x, delta, g, again)
        case "im2col":
            return alone(_im2col.kernel_grad)(x, delta, g)
        case "row_im2col":
            return alone(_row_im2col.kernel_grad)(x, delta, g)
        case "width_tiling im2col":
            return _width_tiling.kernel_grad(x, delta, g, alone(_im2col.kernel_grad))
        case "width_tiling row_im2col":
            rows = partial(_row_im2col.kernel_grad, most_sums=_row_im2col.SHORT_SUMS)
            return _width_tiling.kernel_grad(x, delta, g, alone(rows))
        case "fold_axis":
            # XLA:CPU's own two-dimensional sum over all positions would be less exact than its three-dimensional one.
            flat = alone(_im2col.kernel_grad) if w.rank == 3 and w.taps * c <= 2 * _limits.FEW_COLUMNS else again
            tiles = tile(g, x.shape[0], _folded_elements(w, c))
            fold = partial(_fold_axis.kernel_grad, form=flat, views=_materialized_views)
            return fold(x, delta, g) if tiles.count == 1 else sum_tiles(fold, x, delta, g, tiles)
        case "pad_input":
            x, g = _pad_input(x, g)
    return alone(_direct.kernel_grad, 0)(x, delta, g)


def _pad_input(x: jax.Array, g: ConvGeometry) -> tuple[jax.Array, ConvGeometry]:
    """The padded input, materialized, and the geometry without padding.

    The input is then no smaller than the window (or delta) that slides over it.
    """
    w = g.window
    x = materialize(pad_axes(x, range(1, w.rank + 1), read_padding(w), 0))
    return x, g._replace(window=w.unpadded(x.shape[1:-1]))


def _gemm_of_some_images(form: Callable[[jax.Array], jax.Array], x: jax.Array, w: Window, channels: int) -> jax.Array:
    """The GEMM of non-overlapping windows; of some images at a time where the rearranged copy of x is large."""
    if not _copies_much(w, x.shape[0], channels):
        return form(x)
    return map_images(form, x, math.prod(w.input_shape) * channels, times=2)


def _copies_much(w: Window, batch: int, channels: int) -> bool:
    """Whether many pixels are rearranged into windows. Windows of one pixel, or a single window, need none of that."""
    in_order = w.taps == 1 or math.prod(w.output_shape) == 1
    return not in_order and batch * math.prod(w.input_shape) * channels >= MOST_MATERIALIZED


def _in_tiles(
    form: Callable[..., jax.Array], x: jax.Array, g: ConvGeometry, elements: int, times: int = 1
) -> jax.Array:
    """`form` of the whole input, or tile by tile where its temporaries, `elements` per output, exceed the cache."""
    tiles = tile(g, x.shape[0], elements, times=times)
    return form(x, g) if tiles.count == 1 else map_tiles(form, x, g, tiles)


def _folded_elements(w: Window, channels: int) -> int:
    """How many elements of the input, with its first axis folded, belong to each output."""
    return w.window_shape[0] * channels * -(-math.prod(w.input_shape[1:]) // math.prod(w.output_shape[1:]))


def _materialized_views(x: jax.Array, w: Window) -> jax.Array:
    """The concatenated views, computed once: the forward sum and the kernel's gradient share them."""
    return materialize(concat_views(x, w))


def _im2col_in_tiles(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """im2col of as many images as fit the cache."""
    columns = g.window.taps * x.shape[-1]
    times = _cpu.tile_factor(columns, kernel.shape[-1])
    return _in_tiles(lambda x, g: _im2col.forward(x, kernel, g), x, g, columns, times)


def _chunk_features(form: Callable[[jax.Array], jax.Array], a: jax.Array, channels: int, axis: int) -> jax.Array:
    """`form` of one chunk of the features after the other, so that its weights fit the cache.

    Features are an axis of `a`, and the last axis of the result.
    """
    count = a.shape[axis] // _cpu_winograd.features_in_chunk(channels, a.shape[axis])
    return map_concat(lambda i: form(chunk(a, i, count, axis)), count, a, a.ndim - 1)


def _kn2row_in_tiles(x: jax.Array, kernel: jax.Array, g: ConvGeometry, back: bool = False) -> jax.Array:
    """kn2row of some images at a time, or of some rows where images are large and have no zeros between pixels.

    Whole images are not padded: their padding is part of the shifted sums.
    """

    def form(x: jax.Array, g: ConvGeometry = g) -> jax.Array:
        return _kn2row.forward(x, kernel, g, back)

    elements = g.window.taps * kernel.shape[-2 if back else -1]
    if x.size > 2 * _limits.MOST_OUTPUTS:
        # The GEMM reads a copy of the input with its channels first, which would not stay in the cache.
        elements = max(elements, x.shape[-1])
    image = elements * math.prod(g.window.input_shape)
    if image > _limits.MOST_OUTPUTS * 2 and set(g.window.input_dilation) <= {1}:
        return _in_tiles(form, x, g, elements)
    return map_images(form, x, image, times=2)


def _per_image(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """The direct sum of one image, or of some, after the other."""
    elements = math.prod(g.window.output_shape) * kernel.shape[-1]
    return map_images(lambda x: _direct.forward(x, kernel, g), x, elements)
