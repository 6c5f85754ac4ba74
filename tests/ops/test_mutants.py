"""Mutants of the sums: the checks of test_conv and test_pool must fail on every one of them."""

import jax
import jax.numpy as jnp
import pytest
import test_conv
import test_pool

import jaxbp
from cases import CONVS, POOLS, integers
from jaxbp import _plan, _sums
from jaxbp._algorithms import _pools


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


# A sum, and what is done to its result.
CONV_MUTANTS = [
    ("z", first_row_lost),
    ("z", last_corner_lost),
    ("z", slightly_larger),
    ("x", zero),
    ("x", first_row_lost),
    ("x", last_corner_lost),
    ("x", one_element_larger),
    ("x", rounded),
    ("x", first_image_only),
    ("kernel", taps_exchanged),
    ("kernel", slightly_larger),
    ("kernel", not_summed),
]
# A map of pools, and what is done to its result.
POOL_MUTANTS = [
    ("upsample_chosen", zero),
    ("upsample_chosen", first_row_lost),
    ("upsample_chosen", one_element_larger),
    ("upsample_chosen", first_image_only),
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


def replace_map(monkeypatch, name, change):
    """Replace every algorithm of a pool's map by what `change` makes of it, and forget the plans of before."""
    known = {key: each._replace(form=change(each.form)) for key, each in _pools.ALGORITHMS[name].items()}
    monkeypatch.setitem(_pools.ALGORITHMS, name, known)
    _plan.by_table.cache_clear()


@pytest.fixture(autouse=True)
def right_plans_afterwards():
    """No test leaves a changed plan behind."""
    yield
    _plan.by_table.cache_clear()


def spoil_sum(monkeypatch, out, spoil):
    """Replace the evaluation of one of the three sums by one whose result `spoil(result, *operands)` changes."""
    right = _plan.evaluate

    def wrong(plan, a, b, dtype):
        return spoil(right(plan, a, b, dtype)) if plan.problem.out == out else right(plan, a, b, dtype)

    monkeypatch.setattr(_plan, "evaluate", wrong)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("name", "spoil"), CONV_MUTANTS, ids=[f"{n}-{s.__name__}" for n, s in CONV_MUTANTS])
def test_conv_mutant_is_found(monkeypatch, name, spoil):
    spoil_sum(monkeypatch, name, spoil)
    assert_both_checks_fail()


@pytest.mark.parametrize(
    "wrong", ["kernel not rotated", "bias averaged", "bias of the first image", "gradients exchanged"]
)
def test_mutant_of_the_rule_is_found(monkeypatch, wrong):
    """Mistakes that a rule could make with sums that are right."""
    right = _sums.input_grad
    if wrong == "kernel not rotated":
        monkeypatch.setattr(_sums, "input_grad", lambda d, k, g, first=None: right(d, jaxbp.rot180(k), g))
    elif wrong == "gradients exchanged":
        monkeypatch.setattr(_sums, "input_grad", lambda d, k, g, first=None: right(d[::-1], k, g))
    elif wrong == "bias averaged":
        monkeypatch.setattr("jaxbp._conv.sum_to_channels", lambda delta: delta.mean((0, 1, 2)))
    else:
        monkeypatch.setattr("jaxbp._conv.sum_to_channels", lambda delta: delta[0].sum((0, 1)))
    assert_both_checks_fail()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "spoil"), POOL_MUTANTS, ids=[f"{n}-{s.__name__}" for n, s in POOL_MUTANTS])
def test_pool_mutant_is_found(monkeypatch, name, spoil):
    replace_map(monkeypatch, name, lambda right: lambda *args, **keywords: spoil(right(*args, **keywords)))
    case = POOLS["overlap, same"]
    inputs = integers(1, case.inputs)
    with pytest.raises(AssertionError):
        test_pool.check_all_against_loops(case, inputs, jax.jit(lambda x: test_pool.all_pools(jaxbp, case, x))(inputs))


def test_ties_to_the_last_are_found(monkeypatch):
    """Small integers have ties: a pool that breaks them in the other order has other gradients."""
    reverse = (slice(None), slice(None, None, -1), slice(None, None, -1))

    def to_the_last(right):
        def last(x, w):
            pooled, winners = right(x[reverse], w)
            return pooled[reverse], (w.taps - 1 - winners[reverse].astype(jnp.int32)).astype(winners.dtype)

        return last

    replace_map(monkeypatch, "max_pool", to_the_last)
    case = POOLS["stride 1, same"]
    inputs = integers(1, case.inputs)
    with pytest.raises(AssertionError):
        test_pool.check_against_loops("max_pool", {}, case, inputs)
