"""Mistakes planted into the sums' entry points: the checks of test_conv and test_pool must fail on every one of them."""

import jax
import jax.numpy as jnp
import pytest
import test_conv
import test_pool

import jaxbp
from cases import CONVS, POOLS, integers
from jaxbp import _plan


def first_row_lost(y):
    return y.at[:, 0].set(0)


def last_corner_lost(y):
    return y.at[:, -1, -1].set(0)


def one_element_larger(y):
    return y.at[0, 1, 1, 0].multiply(1.5)


def slightly_larger(y):
    return y * 1.0003


def rounded(y):
    return y.astype(jnp.bfloat16).astype(y.dtype) * (1 + 2**-7)


def zero(y):
    return y * 0


def first_image_only(y):
    return y.at[1:].set(0)


def taps_exchanged(y):
    return y[::-1]


def not_summed(y):
    return y / 2


# An entry point of `_plan`, and what is done to its result.
CONV_MISTAKES = [
    ("conv_forward", first_row_lost),
    ("conv_forward", last_corner_lost),
    ("conv_forward", slightly_larger),
    ("conv_input_grad", zero),
    ("conv_input_grad", first_row_lost),
    ("conv_input_grad", last_corner_lost),
    ("conv_input_grad", one_element_larger),
    ("conv_input_grad", rounded),
    ("conv_input_grad", first_image_only),
    ("conv_kernel_grad", taps_exchanged),
    ("conv_kernel_grad", slightly_larger),
    ("conv_kernel_grad", not_summed),
]
POOL_MISTAKES = [
    ("upsample_maxima", zero),
    ("upsample_maxima", first_row_lost),
    ("upsample_maxima", one_element_larger),
    ("upsample_maxima", first_image_only),
    ("upsample_evenly", slightly_larger),
    ("upsample_evenly", last_corner_lost),
    ("window_sum", first_row_lost),
    ("window_sum", slightly_larger),
]


def assert_both_checks_fail():
    """Neither the loops nor the twin agree with a convolution."""
    with pytest.raises(AssertionError):
        test_conv.check_against_loops(CONVS["defaults"], jax.jit)
    with pytest.raises(AssertionError):
        test_conv.check_against_twin(CONVS["defaults"], jax.jit)


@pytest.fixture
def plant(monkeypatch):
    """Replace an entry point by one that spoils its result."""

    def replace(name, spoil):
        right = getattr(_plan, name)
        monkeypatch.setattr(_plan, name, lambda *args: spoil(right(*args)))

    return replace


@pytest.mark.parametrize(("name", "spoil"), CONV_MISTAKES, ids=[f"{n}-{s.__name__}" for n, s in CONV_MISTAKES])
def test_conv_mistake_is_found(plant, name, spoil):
    plant(name, spoil)
    assert_both_checks_fail()


@pytest.mark.parametrize(
    "wrong", ["kernel not rotated", "bias averaged", "bias of the first image", "gradients exchanged"]
)
def test_mistake_in_the_rule_is_found(monkeypatch, wrong):
    """Mistakes that a rule could make with sums that are right."""
    right = _plan.conv_input_grad
    mistakes = {
        "kernel not rotated": ("conv_input_grad", lambda d, k, g: right(d, jaxbp.rot180(k), g)),
        "gradients exchanged": ("conv_input_grad", lambda d, k, g: right(d[::-1], k, g)),
    }
    if wrong in mistakes:
        monkeypatch.setattr(_plan, *mistakes[wrong])
    elif wrong == "bias averaged":
        monkeypatch.setattr("jaxbp._conv._sum_to_channels", lambda delta: delta.mean((0, 1, 2)))
    else:
        monkeypatch.setattr("jaxbp._conv._sum_to_channels", lambda delta: delta[0].sum((0, 1)))
    assert_both_checks_fail()


@pytest.mark.parametrize(("name", "spoil"), POOL_MISTAKES, ids=[f"{n}-{s.__name__}" for n, s in POOL_MISTAKES])
def test_pool_mistake_is_found(plant, name, spoil):
    plant(name, spoil)
    case = POOLS["overlap, same"]
    inputs = integers(1, case.inputs)
    with pytest.raises(AssertionError):
        test_pool.check_all_against_loops(case, inputs, jax.jit(lambda x: test_pool.all_pools(jaxbp, case, x))(inputs))


def test_ties_to_the_last_are_found(monkeypatch):
    """Small integers have ties: a pool that breaks them in the other order has other gradients."""
    right = _plan.max_and_winners
    reverse = (slice(None), slice(None, None, -1), slice(None, None, -1))

    def last(x, w):
        pooled, winners = right(x[reverse], w)
        return pooled[reverse], (w.taps - 1 - winners[reverse].astype(jnp.int32)).astype(winners.dtype)

    monkeypatch.setattr(_plan, "max_and_winners", last)
    case = POOLS["stride 1, same"]
    inputs = integers(1, case.inputs)
    with pytest.raises(AssertionError):
        test_pool.check_against_loops("max_pool", {}, case, inputs)
