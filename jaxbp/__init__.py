"""Convolution and pooling for JAX whose backward passes are written by hand."""

from importlib import metadata as _metadata

from . import _interrupt as _interrupt
from . import automatic as automatic
from ._activation import relu as relu
from ._activation import sigmoid as sigmoid
from ._activation import tanh as tanh
from ._adaptive_pool import adaptive_avg_pool as adaptive_avg_pool
from ._adaptive_pool import adaptive_max_pool as adaptive_max_pool
from ._avg_pool import avg_pool as avg_pool
from ._avg_pool import avg_pool_grad as avg_pool_grad
from ._avg_pool import lp_pool as lp_pool
from ._avg_pool import sum_pool as sum_pool
from ._clipped import clipped_grad as clipped_grad
from ._compare import check_vjp as check_vjp
from ._compare import compare as compare
from ._conv import conv as conv
from ._conv import conv_bias_grad as conv_bias_grad
from ._conv import conv_input_grad as conv_input_grad
from ._conv import conv_kernel_grad as conv_kernel_grad
from ._conv import dilate as dilate
from ._conv import rot180 as rot180
from ._conv_lax import conv_general_dilated as conv_general_dilated
from ._conv_lax import conv_transpose as conv_transpose
from ._dense import dense as dense
from ._explain import explain as explain
from ._forward_mode import forward_mode as forward_mode
from ._loss import softmax_cross_entropy as softmax_cross_entropy
from ._max_pool import max_pool as max_pool
from ._max_pool import max_pool_grad as max_pool_grad
from ._max_pool import max_pool_with_winners as max_pool_with_winners
from ._max_pool import max_unpool as max_unpool
from ._max_pool import min_pool as min_pool
from ._measured_plans import plans as plans
from ._measured_plans import tune as tune
from ._measured_plans import use_plans as use_plans
from ._per_example import conv_kernel_grad_per_example as conv_kernel_grad_per_example
from ._per_example import conv_kernel_grad_sqnorms as conv_kernel_grad_sqnorms
from ._pool import upsample as upsample
from ._rules import conv_general_dilated_with as conv_general_dilated_with
from ._rules import conv_with as conv_with
from ._rules import dense_with as dense_with
from ._rules import relu_with as relu_with
from ._swap import swap_lax as swap_lax

__all__ = [
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "automatic",
    "avg_pool",
    "avg_pool_grad",
    "check_vjp",
    "clipped_grad",
    "compare",
    "conv",
    "conv_bias_grad",
    "conv_general_dilated",
    "conv_general_dilated_with",
    "conv_input_grad",
    "conv_kernel_grad",
    "conv_kernel_grad_per_example",
    "conv_kernel_grad_sqnorms",
    "conv_transpose",
    "conv_with",
    "dense",
    "dense_with",
    "dilate",
    "explain",
    "forward_mode",
    "lp_pool",
    "max_pool",
    "max_pool_grad",
    "max_pool_with_winners",
    "max_unpool",
    "min_pool",
    "plans",
    "relu",
    "relu_with",
    "rot180",
    "sigmoid",
    "softmax_cross_entropy",
    "sum_pool",
    "swap_lax",
    "tanh",
    "tune",
    "upsample",
    "use_plans",
]

try:
    __version__: str = _metadata.version("jaxbp")
except _metadata.PackageNotFoundError:  # a checkout on the path that nobody installed
    __version__ = "0+not.installed"


def __dir__() -> list[str]:
    """The public names, and no files."""
    return [*__all__, "__version__", "__doc__", "__file__", "__name__", "__path__"]
