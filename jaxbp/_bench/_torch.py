"""The same case in PyTorch, imported only when asked for: same data, channels last, same number of threads.

Where padding is asymmetric (SAME with a stride) PyTorch gets the larger side on both: the same number of windows.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F

from .._geometry import Window, conv_window, make_window
from .._plan._machine import cores
from ._models import LEARNING_RATE, Layers, Model, from_list
from ._programs import GRADIENTS, WHOLE
from ._suite import Case


def set_up() -> str:
    """Use as many threads as JAX does; say which PyTorch this is."""
    torch.set_num_threads(cores())
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"


def torch_programs(case: Case, arrays: list[jax.Array], delta: jax.Array, parts: bool) -> dict[str, Callable[[], Any]]:
    """Forward and all gradients as one call; with `parts` also each map as a call of its own."""
    function = _function(case, delta.shape)
    rank = arrays[0].ndim - 2
    x = _channels_last(arrays[0])
    others = [_kernel(case, arrays[1], rank), *map(_tensor, arrays[2:])] if len(arrays) > 1 else []
    leaves = [leaf.requires_grad_() for leaf in (x, *others)]
    cotangent = _channels_last(delta)
    output = function(*leaves)
    if tuple(output.shape) != tuple(cotangent.shape):
        raise ValueError(f"{case.name}: PyTorch returns shape {tuple(output.shape)}, not {tuple(cotangent.shape)}")

    def whole() -> Any:
        return torch.autograd.grad(function(*leaves), leaves, cotangent)

    def forward() -> Any:
        with torch.no_grad():
            return function(*leaves)

    def gradient(leaf: torch.Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(output, leaf, cotangent, retain_graph=True)

    programs = {WHOLE: whole}
    if parts:
        programs |= {"forward": forward, **dict(zip(GRADIENTS, map(gradient, leaves), strict=False))}
    return programs


def _function(case: Case, output_shape: tuple[int, ...]) -> Callable[..., torch.Tensor]:
    """The case's op as PyTorch has it."""
    x_shape = case.shapes[0]
    rank, spatial = len(x_shape) - 2, x_shape[1:-1]
    if case.pools:
        window, strides, padding = case.arguments
        w = make_window(case.op, spatial, window, strides, padding)
        if case.op == "max_pool":
            pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
            return lambda x: pool(x, window, strides, _symmetric(w))
        average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
        counted = case.keywords.get("count_include_pad", True)
        return lambda x: average(x, window, strides, _symmetric(w), False, counted)
    if case.op == "conv_transpose":
        strides, _ = case.arguments
        lost = [
            (n - 1) * s + k - out
            for n, s, k, out in zip(spatial, strides, case.shapes[1], output_shape[1:-1], strict=False)
        ]
        pads, extra = [-(-n // 2) for n in lost], [n % 2 for n in lost]
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        return lambda x, kernel: transposed(x, kernel, None, strides, pads, extra)
    k = case.keywords
    dilation, groups = k.get("kernel_dilation", 1), k.get("feature_group_count", 1)
    w = conv_window("conv", x_shape, case.shapes[1], k["strides"], k.get("padding", "SAME"), 1, dilation, groups)
    pads = _symmetric(w)
    conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    if any(low != high for low, high in w.padding) and w.strides == (1,) * rank:
        flat = [pad for pair in reversed(w.padding) for pad in pair]
        return lambda x, kernel, bias=None: conv(F.pad(x, flat), kernel, bias, w.strides, 0, w.dilation, groups)
    return lambda x, kernel, bias=None: conv(x, kernel, bias, w.strides, pads, w.dilation, groups)


def _symmetric(w: Window) -> list[int]:
    """One pad per axis: the larger side."""
    return [max(pair) for pair in w.padding]


def _kernel(case: Case, kernel: jax.Array, rank: int) -> torch.Tensor:
    """(*window, I, O) as (O, I, *window); a transposed convolution's rotated, as (I, O, *window)."""
    tensor = _tensor(kernel)
    if case.op == "conv_transpose":
        return _laid_out(tensor.flip(*range(rank)).permute(rank, rank + 1, *range(rank)))
    return _laid_out(tensor.permute(rank + 1, rank, *range(rank)))


def _channels_last(array: jax.Array) -> torch.Tensor:
    """(N, *spatial, C) as (N, C, *spatial); the bytes stay in channels-last order where PyTorch has such a layout."""
    return _laid_out(_tensor(array).permute(0, array.ndim - 1, *range(1, array.ndim - 1)))


def _laid_out(tensor: torch.Tensor) -> torch.Tensor:
    """In the memory format that is fastest for the rank."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats.get(tensor.ndim, torch.contiguous_format))


def _tensor(array: jax.Array) -> torch.Tensor:
    """The same numbers in PyTorch."""
    return torch.tensor(np.asarray(array, np.float32)).to(getattr(torch, str(array.dtype)))


def torch_step(model: Model, parameters: list[jax.Array], images: jax.Array, labels: jax.Array) -> Callable[[], Any]:
    """One step of gradient descent, from the same parameters, on the same data; it returns the loss."""
    tensors = [_parameter(p).requires_grad_() for p in parameters]
    x, y = _channels_last(images), torch.tensor(np.asarray(labels), dtype=torch.int64)
    layers = torch_layers()

    def step() -> torch.Tensor:
        loss = F.cross_entropy(model.network(layers, from_list(tensors), x), y)
        gradients = torch.autograd.grad(loss, tensors)
        with torch.no_grad():
            for tensor, gradient in zip(tensors, gradients, strict=True):
                tensor.sub_(gradient, alpha=LEARNING_RATE)
        return loss

    return step


def torch_layers() -> Layers:
    """The networks' layers in PyTorch, on (N, C, *spatial)."""

    def batch_norm(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, 1 + scale, offset, training=True)

    def layer_norm(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        last = x.permute(0, 2, 3, 1)
        return F.layer_norm(last, last.shape[-1:], 1 + scale, offset).permute(0, 3, 1, 2)

    def conv(x, kernel, bias=None, *, strides=1, padding, groups=1) -> torch.Tensor:
        return F.conv2d(x, kernel, bias, strides, padding, 1, groups)

    return Layers(
        conv,
        F.max_pool2d,
        batch_norm,
        layer_norm,
        F.relu,
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x, weights, bias: F.linear(x, weights.T, bias),
        lambda x: x.mean((2, 3)),
        lambda x: x.permute(0, 2, 3, 1).flatten(1),
    )


def _parameter(array: jax.Array) -> torch.Tensor:
    """A kernel as PyTorch has it, or a vector or matrix as it is."""
    tensor = _tensor(array)
    return _laid_out(tensor.permute(3, 2, 0, 1)) if tensor.ndim == 4 else tensor
