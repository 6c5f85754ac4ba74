"""Which form evaluates a map on a CPU, and why. One function per map, from geometry, batch and channels alone.

The reasons are measurements on x86 CPUs (BENCHMARKS.md). Every other platform uses the textbook forms for
convolutions, which their libraries run well. Each function returns the form's name and the reason.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from .._batching import one_by_one
from .._geometry import ConvGeometry, Window, is_static, read_padding, transposed
from . import _axes, _bands, _multiply_add, _product, _subpixel, _taps, _textbook, _winograd
from ._blocks import channel_block, cut, largest_divisor, map_blocks, map_images, sum_blocks
from ._memory import written
from ._windows import Choice, pad_axes

# Where the measurements change sides.
MAX_TAPS = 64  # that are written out one by one
MULTIPLY_ADD_TERMS = 40  # taps times channels of a group
DENSE_MULTIPLY_ADD_TERMS = 32  # the same in a single group
FEW_WEIGHTS = 512
LARGE_WINDOW = 25  # taps
MAX_ROWS = 16  # of a window, side by side before a banded matrix
MOST_ZEROS = 8  # numbers of a banded matrix for each that is a weight
FEWEST_TILES = 128  # of a whole batch, to share Winograd's weights
MOST_WEIGHTS = 1 << 17  # channels times features, to be transformed for Winograd
MOST_PARTS = 1 << 17  # numbers: an image's outputs, each tap's by itself, of which some images fit the cache
FEW_PRODUCTS = 64  # channels times features, for which every tap's part is a product of its own
FEW_VIEWS = 16  # taps side by side, that are worth their compile time
SMALL_WINDOW = 7  # taps
FEW_COLUMNS = 72  # taps times channels, side by side in one product
MORE_COLUMNS = 300  # the same for a small window
FEW_FEATURES = 16
FEW_IMAGES = 4  # of a batch
FEW_POSITIONS = 1 << 9  # of a whole batch
MANY_POSITIONS = 1 << 12
LARGE_EXAMPLE = 1 << 13  # numbers of an input, whose kernel gradient under vmap is faster by itself
MOST_OUTPUTS = 1 << 21  # numbers: 8 MiB of float32 that stay in the cache, and may be copied


def forward_form(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice:
    """The form of a forward sum with `channels` inputs and `features` outputs."""
    w, groups = g.window, g.feature_group_count
    c = channels // groups
    if not is_static((batch, *w.input_shape, *w.output_shape)):
        return "textbook", "sizes are symbolic"
    if groups == 1 and _apart(_as_blocks(w)):
        return "product", "windows do not overlap: one matrix product"
    if groups == 1 and _apart(_as_blocks(transposed(w))):
        return "transposed product", "windows do not overlap: one matrix product, put in place"
    if any(d > 1 for d in w.input_dilation):
        wide_steps = any(s > 1 for s, d in zip(w.strides, w.input_dilation, strict=True) if d > 1)
        outputs = math.prod(w.output_shape) * features
        whole = _divides(w) and features > 1 and outputs <= MOST_OUTPUTS
        large = w.rank == 2 and w.taps > LARGE_WINDOW and features <= 4
        if not wide_steps and (groups > 1 or w.rank > 2 or large or whole):
            return "sub-pixel", "zeros between the input's cells are left out: more outputs, put side by side"
        if groups == 1 and batch * outputs > MOST_OUTPUTS:
            return "image by image", "the compiler skips the zeros itself, but slows down beyond the cache"
        return "textbook", "the compiler skips the zeros itself"
    if groups > 1 and _suits_multiply_add(w, c):
        return "multiply-add", "few channels in a group: a short elementwise sum"
    if groups == 1 and c * w.taps <= DENSE_MULTIPLY_ADD_TERMS and c * w.taps * features <= FEW_WEIGHTS:
        return "multiply-add", "few weights: a short elementwise sum"
    if groups == 1 and _suits_bands(g, batch, c, features):
        return "bands", "few channels, a large window: rows of cells times a banded matrix"
    if groups > 1 and w.rank <= 2:
        return "group by group", "grouped convolutions run as if dense"
    parts = w.taps * features * math.prod(w.output_shape)
    weights = c * features
    cheap = 2 * FEW_PRODUCTS if w.rank > 2 or parts <= MOST_PARTS else FEW_PRODUCTS
    few = features <= 4 and weights <= cheap
    if groups == 1 and few and w.taps <= DENSE_MULTIPLY_ADD_TERMS and set(w.strides) <= {1}:
        return "project then add", "few outputs: one matrix product, then shifted sums"
    if groups == 1 and w.rank > 2 and w.window_shape[0] <= MAX_TAPS:
        return "fold", "no fast convolution beyond two dimensions: the first axis becomes channels and images"
    if channels * features <= MOST_WEIGHTS and _suits_winograd(g, batch, channels, features):
        return "winograd", "3x3 at stride 1: 16 products where 36 are usual"
    if math.prod(w.window_shape) > math.prod(w.input_shape):
        return "padded", "the compiler exchanges a window and a smaller input, and loses its fast convolution"
    return "textbook", "a dense convolution is what the compiler does best"


def input_grad_form(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice:
    """The form of the input's gradient: of the forward sum that takes delta back."""
    return forward_form(g._replace(window=transposed(_as_blocks(g.window))), batch, features, channels)


def kernel_grad_form(g: ConvGeometry, batch: int, channels: int, features: int) -> Choice:
    """The form of the kernel's gradient."""
    w, groups = g.window, g.feature_group_count
    c, o = channels // groups, features // groups
    if not is_static((batch, *w.input_shape, *w.output_shape)):
        return "textbook", "sizes are symbolic"
    if any(d > 1 for d in w.input_dilation):
        if all(s == 1 for s in w.strides):
            return "mirrored", "the same sum with input and delta exchanged has strides in place of zeros"
        return "textbook", "strides and input dilation together"
    if groups == 1 and _apart(_as_blocks(w)):
        return "product", "windows do not overlap: one matrix product"
    if groups == 1 and _apart(_as_blocks(transposed(w))):
        return "mirrored", "the same sum with input and delta exchanged: windows do not overlap"
    if groups == 1 and w.rank > 2 and w.window_shape[0] <= MAX_TAPS:
        return "fold", "no fast convolution beyond two dimensions: the first axis becomes channels and images"
    if w.rank == 0:
        return "textbook", "no window"
    if groups > 1 and c == 1 and o <= 4 and _suits_multiply_add(w, c):
        return "multiply-add", "depthwise: products summed over the batch, one reduction for all taps"
    if groups > 1 and w.taps <= MAX_TAPS:
        return "grouped taps", "grouped convolutions run as if dense"
    if groups > 1:
        return "textbook", "a large window"
    if min(c, o) >= 64 and _suits_winograd(g, batch, c, o):
        return "winograd", "3x3 at stride 1: 16 products where 36 are usual"
    if w.rank == 2 and set(w.strides) == {1} and c >= 2 * o and sum(w.window_shape) <= MAX_TAPS:
        if batch * math.prod(w.output_shape) < FEW_POSITIONS:
            return "mirrored", "few outputs: the same sum with input and delta exchanged has few inputs"
        if w.taps <= FEW_VIEWS and w.taps * o <= MORE_COLUMNS:
            return "mirrored taps", "few outputs: views of all taps of delta, times the input"
        return "mirrored rows", "few outputs: views of one row of taps of delta, times the input"
    if w.rank == 2 and _suits_taps(g, batch, c, o):
        return "taps", "few channels: views of all taps side by side, block by block: one product"
    if w.rank == 2 and w.taps <= MAX_TAPS and _suits_rows(g, batch, c, o):
        return "rows", "views of one row of taps side by side, block by block: a product for each row"
    if math.prod(w.output_shape) > math.prod(w.input_shape):
        return "padded", "the compiler exchanges a delta and a smaller input, and loses its fast convolution"
    return "textbook", "a dense convolution is what the compiler does best"


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Evaluate the forward sum in the chosen form."""
    w, groups = g.window, g.feature_group_count
    name, _ = forward_form(g, x.shape[0], x.shape[-1], kernel.shape[-1])
    match name:
        case "product":
            return _product.forward(x, kernel, g._replace(window=_as_blocks(w)))
        case "transposed product":
            back = _textbook.exchange_channels(_textbook.rot180(kernel, w.rank), groups)
            return _product.transposed(x, back, g._replace(window=_as_blocks(transposed(w))))
        case "sub-pixel":
            return _subpixel.forward(x, kernel, g, forward)
        case "image by image":
            return _image_by_image(x, kernel, g)
        case "multiply-add":
            return _multiply_add.forward(x, kernel, g)
        case "bands":
            cells = w.window_shape[0] * w.input_shape[1] * x.shape[-1] // w.output_shape[1]
            return _in_blocks(lambda x, g: _bands.forward(x, kernel, g), x, g, cells)
        case "group by group":
            return _group_by_group(x, kernel, g)
        case "project then add":
            return _project_then_add(x, kernel, g)
        case "fold":
            cells = w.window_shape[0] * x.shape[-1]
            return _in_blocks(lambda x, g: _axes.fold_forward(x, kernel, g, forward), x, g, cells)
        case "winograd":
            return _winograd.forward(x, kernel, g)
        case "padded":
            x, g = _padded(x, g)
    return _textbook.forward(x, kernel, g)


def input_grad(delta: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Evaluate the input's gradient: the forward sum of delta and the rotated kernel."""
    rotated = _textbook.exchange_channels(_textbook.rot180(kernel, g.window.rank), g.feature_group_count)
    back = transposed(_as_blocks(g.window))
    return forward(delta, rotated, g._replace(window=back, preferred_element_type=None))


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry, mapped: bool = False) -> jax.Array:
    """Evaluate the kernel's gradient in the chosen form; below a vmap, of each example alone where faster."""
    w, groups = g.window, g.feature_group_count
    c = x.shape[-1] // groups

    def again(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
        return kernel_grad(x, delta, g, mapped)

    def alone(form: Callable[..., jax.Array], smallest: int = LARGE_EXAMPLE) -> Callable[..., jax.Array]:
        if mapped and x.size >= smallest:
            return lambda x, delta, g: one_by_one(partial(form, g=g), x, delta)
        return form

    def mirrored(form: Callable[..., jax.Array]) -> jax.Array:
        exchanged = form(delta, x, g._replace(window=transposed(w)))
        return _textbook.exchange_channels(_textbook.rot180(exchanged, w.rank), groups)

    name, _ = kernel_grad_form(g, x.shape[0], x.shape[-1], delta.shape[-1])
    if mapped and name == "textbook" and w.rank == groups == 1 and w.input_dilation == (1,) and w.taps <= MAX_TAPS:
        return _taps.taps_kernel_grad(x, delta, g)
    match name:
        case "mirrored":
            return mirrored(again)
        case "mirrored taps":
            return mirrored(alone(_taps.taps_kernel_grad))
        case "mirrored rows":
            return mirrored(alone(_taps.rows_kernel_grad))
        case "product":
            return _product.kernel_grad(x, delta, g._replace(window=_as_blocks(w)))
        case "multiply-add":
            return _multiply_add.kernel_grad(x, delta, g)
        case "grouped taps":
            return _taps.grouped_kernel_grad(x, delta, g, largest_divisor(groups, 16 // c))
        case "winograd":
            return alone(_winograd.kernel_grad)(x, delta, g)
        case "taps":
            return alone(_taps.taps_kernel_grad)(x, delta, g)
        case "rows":
            return alone(_taps.rows_kernel_grad)(x, delta, g)
        case "fold":
            # The compiler's own sum over all positions would be less exact than what it does in more dimensions.
            flat = alone(_taps.taps_kernel_grad) if w.rank == 3 and w.taps * c <= 2 * FEW_COLUMNS else again
            blocks = cut(g, x.shape[0], w.window_shape[0] * c)
            if blocks.count == 1:
                return _axes.fold_kernel_grad(x, delta, g, flat)
            return sum_blocks(lambda x, d, g: _axes.fold_kernel_grad(x, d, g, flat), x, delta, g, blocks)
        case "padded":
            x, g = _padded(x, g)
    return alone(_textbook.kernel_grad, 0)(x, delta, g)


def _apart(w: Window) -> bool:
    """Whether every cell lies in one window at most, and windows are blocks or single cells."""
    if any(d > 1 for d in w.input_dilation):
        return False
    return w.taps == 1 or (w.window_shape == w.strides and set(w.dilation) <= {1})


def _as_blocks(w: Window) -> Window:
    """The same windows with other strides, where that makes them blocks: one alone along an axis takes no step."""
    steps = zip(w.window_shape, w.strides, w.output_shape, strict=True)
    blocks = w._replace(strides=tuple(k if out == 1 else s for k, s, out in steps))
    return blocks if _apart(blocks) else w


def _suits_multiply_add(w: Window, channels: int) -> bool:
    """Whether the sum of a group's taps, or for one channel that of one of their rows, is short."""
    if channels == 1:
        return w.taps // max(w.window_shape, default=1) <= MAX_TAPS
    return channels * w.taps <= MULTIPLY_ADD_TERMS


def _divides(w: Window) -> bool:
    """Whether the distance between cells divides the window along every axis: no weight of a block of outputs is 0."""
    facts = zip(w.window_shape, w.dilation, w.input_dilation, strict=True)
    return all(s == 1 or (k % s == 0 and d == 1) for k, d, s in facts)


def _suits_bands(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether a window is large enough for its banded matrix, which then has rows and columns enough to multiply."""
    w = g.window
    if w.rank != 2 or w.taps < LARGE_WINDOW or w.window_shape[0] > MAX_ROWS or g.precision is not None:
        return False
    if w.input_shape[-1] > MOST_ZEROS * w.window_shape[-1]:
        return False
    rows, columns = batch * w.output_shape[0], w.output_shape[-1] * features
    return channels <= 16 and features < 8 and columns >= 64 and rows >= 256


def _suits_winograd(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether there are channels enough to sum over, tiles enough to share the weights, and an image fits the cache."""
    w = g.window
    if w.window_shape != (3, 3) or {*w.strides, *w.dilation, g.feature_group_count} != {1} or g.precision is not None:
        return False
    tiles = math.prod(-(-out // _winograd.OUTPUTS) for out in w.output_shape)
    fits = _winograd.blocks(g, batch, channels, features).bands == 1
    return min(channels, features) >= 32 and tiles > 4 and batch * tiles >= FEWEST_TILES and fits


def _suits_taps(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether views of all taps are few columns for their product, which enough outputs share."""
    w, positions = g.window, batch * math.prod(g.window.output_shape)
    columns = w.taps * channels
    if features < (FEW_FEATURES if channels > 1 else 4 * FEW_FEATURES):
        return False
    if w.taps <= SMALL_WINDOW and columns <= MORE_COLUMNS:
        return positions >= FEW_POSITIONS
    return columns <= FEW_COLUMNS and positions >= MANY_POSITIONS and batch > FEW_IMAGES


def _suits_rows(g: ConvGeometry, batch: int, channels: int, features: int) -> bool:
    """Whether views of a row of taps cost less than what the compiler loses by few outputs, strides, or in general."""
    w, positions = g.window, batch * math.prod(g.window.output_shape)
    columns, fewest = w.taps * channels, min(channels, features)
    if batch <= FEW_IMAGES and features <= FEW_FEATURES:
        return channels > 1 and columns >= 4 * features
    if fewest < FEW_FEATURES or not 3 * features <= columns <= 50 * features:
        return False
    if set(w.strides) != {1} or fewest >= 6 * FEW_FEATURES:
        return True
    return positions >= 2 * FEW_POSITIONS and (fewest >= 3 * FEW_FEATURES or features < 2 * FEW_FEATURES)


def _padded(x: jax.Array, g: ConvGeometry) -> tuple[jax.Array, ConvGeometry]:
    """The input with its padding written out, no smaller than the window or delta that slides over it; what is left."""
    w = g.window
    x = written(pad_axes(x, range(1, w.rank + 1), read_padding(w), 0))
    return x, g._replace(window=w._replace(input_shape=x.shape[1:-1], padding=((0, 0),) * w.rank))


def _in_blocks(form: Callable[..., jax.Array], x: jax.Array, g: ConvGeometry, cells: int) -> jax.Array:
    """The form on all of the input where its temporaries fit, `cells` numbers for each output; else block by block."""
    blocks = cut(g, x.shape[0], cells)
    return form(x, g) if blocks.count == 1 else map_blocks(form, x, g, blocks)


def _project_then_add(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Some images at a time, whose padding is left to the parts, fewer than the input; large images in bands."""
    cells = g.window.taps * kernel.shape[-1]
    image = cells * math.prod(g.window.output_shape)
    if image > MOST_OUTPUTS * 2:
        return _in_blocks(lambda x, g: _taps.project_then_add(x, kernel, g), x, g, cells)
    return map_images(lambda x: _taps.project_then_add(x, kernel, g), x, image, times=2)


def _image_by_image(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """The textbook form of one image, or of some, after the other."""
    cells = math.prod(g.window.output_shape) * kernel.shape[-1]
    return map_images(lambda x: _textbook.forward(x, kernel, g), x, cells)


def _group_by_group(x: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """One dense convolution for each group, in a loop."""
    groups, features = g.feature_group_count, kernel.shape[-1]
    alone = g._replace(feature_group_count=1)

    def add_group(i: jax.Array, z: jax.Array) -> jax.Array:
        group = _textbook.forward(channel_block(x, i, groups), channel_block(kernel, i, groups), alone)
        return jax.lax.dynamic_update_slice_in_dim(z, group, i * (features // groups), axis=z.ndim - 1)

    z = jnp.zeros_like(x, shape=(x.shape[0], *g.window.output_shape, features))
    return jax.lax.fori_loop(0, groups, add_group, z)
