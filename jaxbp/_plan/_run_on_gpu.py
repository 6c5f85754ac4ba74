"""The chosen form of a map, evaluated on an NVIDIA GPU: each name that `_gpu` gives, and what it calls.

No blocks and no loops over the batch: there is no cache to stay in, and a GPU wants all of the work at once.
"""

import jax

from .._algorithms import _direct, _fold_axis, _gemm, _shift_add, _space_to_batch, _subpixel, _width_tiling
from .._algorithms._windows import view_by_view
from .._arguments import sum_dtype
from .._geometry import ConvGeometry, transposed
from ._gpu import forward_form, kernel_grad_form
from ._limits import as_blocks


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry, back: bool = False) -> jax.Array:
    """Evaluate the forward sum in the chosen form; taken back, of delta, with the kernel rotated and exchanged."""
    w, groups = g.window, g.feature_group_count
    features = groups * kernel.shape[-2] if back else kernel.shape[-1]
    taken_back = _direct.taken_back(kernel, groups)
    kernel, other_way = (taken_back, kernel) if back else (kernel, taken_back)
    match forward_form(g, x.shape[0], x.shape[-1], features, back)[0]:
        case "transposed gemm":
            return _gemm.transposed(x, other_way, g._replace(window=as_blocks(transposed(w))))
        case "gemm":
            return _gemm.forward(x, kernel, g._replace(window=as_blocks(w)))
        case "subpixel":
            return _subpixel.forward(x, kernel, g, forward, lambda form, x, pixels: form(x))
        case "shift_add":
            wide = sum_dtype(x.dtype)
            return _shift_add.forward(x.astype(wide), kernel.astype(wide), g).astype(x.dtype)
        case "fold_axis":
            return _fold_axis.fold_forward(x, kernel, g, forward, view_by_view)
        case "width_tiling":
            return _width_tiling.forward(x, kernel, g, _direct.forward)
    return _direct.forward(x, kernel, g)


def input_grad(delta: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Evaluate the input's gradient: the forward sum of delta and the rotated kernel."""
    back = g._replace(window=transposed(as_blocks(g.window)), preferred_element_type=None)
    return forward(delta, kernel, back, back=True)


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Evaluate the kernel's gradient in the chosen form."""
    w, groups = g.window, g.feature_group_count
    match kernel_grad_form(g, x.shape[0], x.shape[-1], delta.shape[-1], x.dtype.itemsize)[0]:
        case "swap_operands":
            exchanged = kernel_grad(delta, x, g._replace(window=transposed(w)))
            return _direct.taken_back(exchanged, groups)
        case "gemm":
            return _gemm.kernel_grad(x, delta, g._replace(window=as_blocks(w)), _gemm.read_across)
        case "space_to_batch":
            return _space_to_batch.kernel_grad(x, delta, g, kernel_grad)
        case "reductions":
            wide = sum_dtype(x.dtype)
            return _shift_add.reductions(x.astype(wide), delta.astype(wide), g).astype(x.dtype)
        case "batch groups":
            return _direct.kernel_grad_by_names(x, delta, g)
        case "fold_axis":
            return _fold_axis.fold_kernel_grad(x, delta, g, kernel_grad, view_by_view)
        case "width_tiling":
            return _width_tiling.kernel_grad(x, delta, g, _direct.kernel_grad)
        case "half":
            return _direct.kernel_grad(x, delta, g)
    return _direct.kernel_grad(x, delta, g)
