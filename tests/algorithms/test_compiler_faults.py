"""Each fault of a compiler that is written around: the plain program fails, the one that is written around does not."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from jax import lax

import loops
from cases import assert_exact, integers
from jaxbp import _plan
from jaxbp._algorithms import _direct
from jaxbp._algorithms._compiler_faults import OLD_COMPILER, append_zeros, crop_first, reads_in_place
from jaxbp._geometry import ConvGeometry, conv_window

SEEN = jaxlib.version.__version_info__ < (0, 13)


def geometry(x, kernel, strides=1, padding="VALID", input_dilation=1):
    return ConvGeometry(conv_window("test", x, kernel, strides, padding, input_dilation, 1, 1))


def test_cropping_one_end_and_padding_the_other_reads_outside():
    """Without `crop_first` the numbers beyond the input are whatever lies there."""
    x, kernel, padding = integers(1, (3, 4, 16)), integers(2, (2, 16, 16)), ((-2, 3),)
    right = loops.conv(x, kernel, strides=2, padding=padding, input_dilation=1, kernel_dilation=1)

    def plain(x):
        return lax.conv_general_dilated(x, kernel, (2,), padding, dimension_numbers=("NWC", "WIO", "NWC"))

    if OLD_COMPILER:
        assert not np.array_equal(plain(jnp.asarray(x)), right)
    cropped, rest, _ = crop_first(jnp.asarray(x), padding, (1,), [1])
    assert cropped.shape == (3, 2, 16) and rest == ((0, 3),)
    z = _direct.definition["z"](jnp.asarray(x), jnp.asarray(kernel), geometry(x.shape, kernel.shape, 2, padding))
    assert_exact(z, right)


def test_a_kernel_gets_zeros_where_the_compiler_would_take_an_axis_for_groups():
    """A window of 3 at stride 2 over pixels that stand 3 apart, with more taps than pixels."""
    kernel, sizes = jnp.ones((3, 5, 1, 1)), (2, 3)
    longer, padding = append_zeros(kernel, sizes, (2, 1), ((0, 0), (2, 2)), (3, 1), (1, 1))
    assert longer.shape == (4, 5, 1, 1) and padding == ((0, 1), (2, 2))
    assert float(longer[-1].sum()) == 0
    same, padding = append_zeros(kernel, (3, 9), (2, 1), ((0, 0), (2, 2)), (3, 1), (1, 1))
    assert same is kernel and padding == ((0, 0), (2, 2))


def test_windows_without_padding_are_gathered():
    """Up to jaxlib 0.10 one row more is computed, and dropped; the values are the definition's."""
    x, kernel = integers(1, (8, 40, 40, 16)), integers(2, (3, 3, 16, 16))
    g = geometry(x.shape, kernel.shape)
    p = _plan.problem_of("z", g, x.shape, kernel.shape, np.float32, "cpu")
    assert reads_in_place(p) == OLD_COMPILER
    assert not reads_in_place(p.inside(geometry=geometry(x.shape, kernel.shape, padding="SAME")))
    run = jax.jit(lambda x, k: _direct.run(x, k, p))
    assert_exact(run(x, kernel), _direct.definition["z"](jnp.asarray(x), jnp.asarray(kernel), g))
    rows = "8,39,38,16" in run.lower(x, kernel).compile().as_text()
    assert rows == OLD_COMPILER or not OLD_COMPILER


ABORTS = """
import jax.numpy as jnp
from jax import lax
import jaxbp
x, kernel = jnp.ones((1, 2, 3, 1)), jnp.ones((3, 5, 1, 1))
strides, padding, dilation = (2, 1), ((0, 0), (2, 2)), (3, 1)
"""
CALLS = {
    "lax": 'lax.conv_general_dilated(x, kernel, strides, padding, dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"))',
    "jaxbp": "jaxbp.conv(x, kernel, strides=strides, padding=padding, input_dilation=dilation)",
}


@pytest.mark.parametrize("library", CALLS)
def test_a_swap_of_operands_aborts_no_process(library):
    """In a process of its own: lax's does abort."""
    if library == "lax" and not SEEN:
        pytest.skip("a newer jaxlib: see whether the fault is mended")
    command = [sys.executable, "-c", ABORTS + CALLS[library]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (library == "jaxbp"), done.stderr[-500:]
