"""The chosen form of a map, evaluated on an NVIDIA GPU: each name that `_gpu_choice` gives, and what it calls.

No blocks and no loops over the batch: there is no cache to stay in, and a GPU wants all of the work at once.
"""

import jax

from .._arguments import sum_dtype
from .._geometry import ConvGeometry, transposed
from . import _axes, _multiply_add, _neighbours, _phases, _product, _subpixel, _textbook
from ._gpu_choice import forward_form, kernel_grad_form
from ._limits import as_blocks
from ._windows import view_by_view


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry, back: bool = False) -> jax.Array:
    """Evaluate the forward sum in the chosen form; taken back, of delta, with the kernel rotated and exchanged."""
    w, groups = g.window, g.feature_group_count
    features = groups * kernel.shape[-2] if back else kernel.shape[-1]
    taken_back = _textbook.taken_back(kernel, groups)
    kernel, other_way = (taken_back, kernel) if back else (kernel, taken_back)
    match forward_form(g, x.shape[0], x.shape[-1], features, back)[0]:
        case "transposed product":
            return _product.transposed(x, other_way, g._replace(window=as_blocks(transposed(w))))
        case "product":
            return _product.forward(x, kernel, g._replace(window=as_blocks(w)))
        case "sub-pixel":
            return _subpixel.forward(x, kernel, g, forward, lambda form, x, cells: form(x))
        case "multiply-add":
            wide = sum_dtype(x.dtype)
            return _multiply_add.forward(x.astype(wide), kernel.astype(wide), g).astype(x.dtype)
        case "fold":
            return _axes.fold_forward(x, kernel, g, forward, view_by_view)
        case "neighbours":
            return _neighbours.forward(x, kernel, g, _textbook.forward)
    return _textbook.forward(x, kernel, g)


def input_grad(delta: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Evaluate the input's gradient: the forward sum of delta and the rotated kernel."""
    back = g._replace(window=transposed(as_blocks(g.window)), preferred_element_type=None)
    return forward(delta, kernel, back, back=True)


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Evaluate the kernel's gradient in the chosen form."""
    w, groups = g.window, g.feature_group_count
    match kernel_grad_form(g, x.shape[0], x.shape[-1], delta.shape[-1], x.dtype.itemsize)[0]:
        case "mirrored":
            exchanged = kernel_grad(delta, x, g._replace(window=transposed(w)))
            return _textbook.taken_back(exchanged, groups)
        case "product":
            return _product.kernel_grad(x, delta, g._replace(window=as_blocks(w)), _product.read_across)
        case "phases":
            return _phases.kernel_grad(x, delta, g, kernel_grad)
        case "reductions":
            wide = sum_dtype(x.dtype)
            return _multiply_add.reductions(x.astype(wide), delta.astype(wide), g).astype(x.dtype)
        case "batch groups":
            return _textbook.kernel_grad_by_names(x, delta, g)
        case "fold":
            return _axes.fold_kernel_grad(x, delta, g, kernel_grad, view_by_view)
        case "neighbours":
            return _neighbours.kernel_grad(x, delta, g, _textbook.kernel_grad)
        case "half":
            return _textbook.kernel_grad(x, delta, g)
    return _textbook.kernel_grad(x, delta, g)
