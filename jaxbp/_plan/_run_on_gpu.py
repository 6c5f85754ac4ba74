"""Run the chosen algorithm of each sum on an NVIDIA GPU: every name that `_gpu` returns.

No tiles and no loops over the batch: a GPU wants all of the work at once.
"""

import jax

from .._algorithms import _direct, _fold_axis, _gemm, _shift_add, _space_to_batch, _subpixel, _width_tiling
from .._algorithms._windows import concat_views_by_axis
from .._arguments import sum_dtype
from .._geometry import ConvGeometry, transposed
from ._gpu import forward_form, kernel_grad_form
from ._limits import as_patches


def forward(x: jax.Array, kernel: jax.Array, g: ConvGeometry, back: bool = False) -> jax.Array:
    """Evaluate the forward sum with the chosen algorithm. `back`: the input's gradient, where x is delta."""
    w, groups = g.window, g.feature_group_count
    features = groups * kernel.shape[-2] if back else kernel.shape[-1]
    backward_kernel = _direct.backward_kernel(kernel, groups)
    kernel, transposed_kernel = (backward_kernel, kernel) if back else (kernel, backward_kernel)
    match forward_form(g, x.shape[0], x.shape[-1], features, back)[0]:
        case "transposed gemm":
            return _gemm.transposed(x, transposed_kernel, g._replace(window=as_patches(transposed(w))))
        case "gemm":
            return _gemm.forward(x, kernel, g._replace(window=as_patches(w)))
        case "subpixel":
            return _subpixel.forward(x, kernel, g, forward, lambda form, x, pixels: form(x))
        case "shift_add":
            wide = sum_dtype(x.dtype)
            return _shift_add.forward(x.astype(wide), kernel.astype(wide), g).astype(x.dtype)
        case "fold_axis":
            return _fold_axis.forward(x, kernel, g, forward, concat_views_by_axis)
        case "width_tiling":
            return _width_tiling.forward(x, kernel, g, _direct.forward)
    return _direct.forward(x, kernel, g)


def input_grad(delta: jax.Array, kernel: jax.Array, g: ConvGeometry) -> jax.Array:
    """Evaluate the input's gradient: the forward sum of delta and the rotated kernel."""
    back = g._replace(window=transposed(as_patches(g.window)), preferred_element_type=None)
    return forward(delta, kernel, back, back=True)


def kernel_grad(x: jax.Array, delta: jax.Array, g: ConvGeometry) -> jax.Array:
    """Evaluate the kernel's gradient with the chosen algorithm."""
    w, groups = g.window, g.feature_group_count
    match kernel_grad_form(g, x.shape[0], x.shape[-1], delta.shape[-1], x.dtype.itemsize)[0]:
        case "swap_operands":
            swapped_grad = kernel_grad(delta, x, g._replace(window=transposed(w)))
            return _direct.backward_kernel(swapped_grad, groups)
        case "gemm":
            return _gemm.kernel_grad(x, delta, g._replace(window=as_patches(w)), _gemm.read_across)
        case "space_to_batch":
            return _space_to_batch.kernel_grad(x, delta, g, kernel_grad)
        case "reductions":
            wide = sum_dtype(x.dtype)
            return _shift_add.reductions(x.astype(wide), delta.astype(wide), g).astype(x.dtype)
        case "batch_group_count":
            return _direct.kernel_grad_by_dimension_numbers(x, delta, g)
        case "fold_axis":
            return _fold_axis.kernel_grad(x, delta, g, kernel_grad, concat_views_by_axis)
        case "width_tiling":
            return _width_tiling.kernel_grad(x, delta, g, _direct.kernel_grad)
        case "half":
            return _direct.kernel_grad(x, delta, g)
    return _direct.kernel_grad(x, delta, g)
