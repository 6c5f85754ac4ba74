"""PyTorch as another oracle, where it is installed: pools and convolutions with its own meaning of their arguments."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp
from cases import assert_sums_close, delta_of, distinct, integers, normal

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="PyTorch is an extra oracle, not a requirement")

F = torch.nn.functional


def to_torch(x):
    """(N, *spatial, C) as PyTorch's (N, C, *spatial), to be differentiated."""
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy(), requires_grad=True)


def from_torch(t):
    return np.moveaxis(t.detach().numpy(), 1, -1)


def both(ours, theirs, x):
    """The value and gradient of both, for the same delta."""
    y, pullback = jax.vjp(ours, x)
    delta = delta_of(y)
    t = to_torch(x)
    z = theirs(t)
    z.backward(torch.tensor(np.moveaxis(np.asarray(delta), -1, 1).copy()))
    return (y, pullback(delta)[0]), (from_torch(z), from_torch(t.grad))


def assert_same(pair, terms=1):
    (y, dx), (torch_y, torch_dx) = pair
    assert_sums_close(y, torch_y, terms, 9)
    assert_sums_close(dx, torch_dx, terms, 9)


POOLS = {
    "strided": dict(shape=(2, 7, 8, 2), window=(3, 2), strides=2),
    "padding": dict(shape=(2, 7, 8, 2), window=(3, 3), strides=(2, 1), padding=1),
    "padding of each axis": dict(shape=(1, 7, 8, 1), window=(4, 3), strides=3, padding=(2, 1)),
    "ceil_mode": dict(shape=(2, 6, 7, 2), window=(3, 2), strides=2, ceil_mode=True),
    "ceil_mode, padding": dict(shape=(2, 6, 8, 1), window=(3, 3), strides=(2, 3), padding=1, ceil_mode=True),
    "ceil_mode, window dropped": dict(shape=(1, 5, 4, 1), window=(2, 2), strides=(2, 3), padding=1, ceil_mode=True),
    "ceil_mode, large stride": dict(shape=(1, 8, 9, 1), window=(2, 3), strides=(5, 4), padding=1, ceil_mode=True),
    "1-D": dict(shape=(2, 9, 2), window=(3,), strides=2, padding=1, ceil_mode=True),
    "3-D": dict(shape=(1, 4, 5, 6, 2), window=(2, 3, 2), strides=(2, 1, 3), padding=1, ceil_mode=True),
}


def split(case):
    """jaxbp's arguments (pairs of padding) and PyTorch's."""
    case = dict(case)
    shape, window = case.pop("shape"), case.pop("window")
    padding = case.pop("padding", 0)
    ours = dict(case, padding=padding)
    theirs = dict(kernel_size=window, stride=case["strides"], padding=padding)
    theirs |= dict(ceil_mode=True) if case.get("ceil_mode") else {}
    return shape, window, ours, theirs


@pytest.mark.parametrize("name", POOLS)
def test_max_pool(name):
    shape, window, ours, theirs = split(POOLS[name])
    pool = getattr(F, f"max_pool{len(window)}d")
    for numbers in (integers, distinct):
        assert_same(both(lambda x: jaxbp.max_pool(x, window, **ours), lambda t: pool(t, **theirs), numbers(1, shape)))


@pytest.mark.parametrize("dilation", [2, 3])
def test_max_pool_with_dilation(dilation):
    x = distinct(1, (2, 9, 8, 2))
    for ceil_mode in (False, True):
        assert_same(
            both(
                lambda x, c=ceil_mode: jaxbp.max_pool(x, (3, 2), 2, 1, window_dilation=dilation, ceil_mode=c),
                lambda t, c=ceil_mode: F.max_pool2d(t, (3, 2), 2, 1, dilation, ceil_mode=c),
                x,
            )
        )


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("name", POOLS)
def test_avg_pool(name, include):
    shape, window, ours, theirs = split(POOLS[name])
    pool = getattr(F, f"avg_pool{len(window)}d")
    assert_same(
        both(
            lambda x: jaxbp.avg_pool(x, window, count_include_pad=include, **ours),
            lambda t: pool(t, count_include_pad=include, **theirs),
            integers(1, shape),
        ),
        terms=12,
    )


@pytest.mark.parametrize("divisor", [1, 3, 10])
def test_divisor_override(divisor):
    shape, window, ours, theirs = split(POOLS["ceil_mode, padding"])
    assert_same(
        both(
            lambda x: jaxbp.avg_pool(x, window, divisor_override=divisor, **ours),
            lambda t: F.avg_pool2d(t, divisor_override=divisor, **theirs),
            integers(1, shape),
        ),
        terms=12,
    )


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_lp_pool(p):
    """Of positive numbers: PyTorch loses the sign of the others."""
    x = jnp.abs(normal(1, (2, 7, 6, 2))) + 0.5
    assert_same(
        both(
            lambda x: jaxbp.lp_pool(x, (3, 2), 2, p=p, ceil_mode=True),
            lambda t: F.lp_pool2d(t, p, (3, 2), 2, ceil_mode=True),
            x,
        ),
        terms=16,
    )


@pytest.mark.parametrize("output", [(3, 2), (1, 1), (5, 6), (7, 4)])
def test_adaptive_pools(output):
    x = integers(1, (2, 7, 6, 2))
    assert_same(
        both(lambda x: jaxbp.adaptive_avg_pool(x, output), lambda t: F.adaptive_avg_pool2d(t, output), x), terms=12
    )
    assert_same(both(lambda x: jaxbp.adaptive_max_pool(x, output), lambda t: F.adaptive_max_pool2d(t, output), x))


def torch_positions(winners, shape, window, strides, padding, dilation):
    """PyTorch's indices, positions in the whole image, from positions in the window."""
    rows, columns = np.meshgrid(*map(np.arange, winners.shape[1:3]), indexing="ij")
    tap_row, tap_column = np.divmod(np.asarray(winners).astype(int), window[1])
    row = rows[None, :, :, None] * strides - padding + tap_row * dilation
    return row * shape[2] + columns[None, :, :, None] * strides - padding + tap_column * dilation


@pytest.mark.parametrize(
    ("window", "strides", "padding", "dilation"), [((2, 2), 2, 0, 1), ((3, 2), 2, 1, 1), ((2, 2), 3, 0, 2)]
)
def test_winners_and_unpool(window, strides, padding, dilation):
    for x in (integers(1, (2, 7, 8, 2)), distinct(1, (2, 7, 8, 2))):
        pooled, winners = jaxbp.max_pool_with_winners(x, window, strides, padding, window_dilation=dilation)
        t, indices = F.max_pool2d(to_torch(x), window, strides, padding, dilation, return_indices=True)
        np.testing.assert_array_equal(
            torch_positions(winners, x.shape, window, strides, padding, dilation), from_torch(indices)
        )
        if window == (2, 2) and dilation == 1:
            back = jaxbp.max_unpool(pooled, winners, window, strides, padding, input_shape=x.shape)
            np.testing.assert_array_equal(
                back, from_torch(F.max_unpool2d(t, indices, window, strides, padding, x.shape[1:3]))
            )


def test_nan_and_infinity():
    """Which of several NaN wins, and what a window of -inf sends back."""
    rows = [
        [1, np.nan, 3, np.nan, 2, 0],
        [np.nan, 1, 2, np.nan, np.nan, 0],
        [-np.inf, -np.inf, -np.inf, -np.inf, 1, np.inf],
        [np.inf, np.inf, np.nan, -np.inf, np.inf, 0],
    ]
    x = jnp.asarray(rows, jnp.float32).reshape(4, 6, 1)
    for window, strides, padding in (((3,), 1, 1), ((2,), 2, 0), ((3,), 3, 1)):
        (y, dx), (torch_y, torch_dx) = both(
            lambda x, w=window, s=strides, p=padding: jaxbp.max_pool(x, w, s, p),
            lambda t, w=window, s=strides, p=padding: F.max_pool1d(t, w, s, p),
            x,
        )
        np.testing.assert_array_equal(y, torch_y)
        np.testing.assert_array_equal(dx, torch_dx)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("strides", "padding", "dilation"), [(1, 1, 1), (2, 0, 1), ((2, 3), (1, 2), (2, 1))])
def test_conv(groups, strides, padding, dilation):
    x, kernel, bias = integers(1, (2, 9, 8, 4)), integers(2, (3, 2, 4 // groups, 6)), integers(3, (6,))
    z, pullback = jax.vjp(
        lambda *p: jaxbp.conv(
            *p, strides=strides, padding=padding, kernel_dilation=dilation, feature_group_count=groups
        ),
        x, kernel, bias,
    )  # fmt: skip
    delta = delta_of(z)
    weights = torch.tensor(np.transpose(kernel, (3, 2, 0, 1)).copy(), requires_grad=True)
    t, b = to_torch(x), torch.tensor(np.asarray(bias), requires_grad=True)
    torch_z = F.conv2d(t, weights, b, strides, padding, dilation, groups)
    torch_z.backward(torch.tensor(np.moveaxis(np.asarray(delta), -1, 1).copy()))
    dx, dkernel, dbias = pullback(delta)
    np.testing.assert_array_equal(z, from_torch(torch_z))
    np.testing.assert_array_equal(dx, from_torch(t.grad))
    np.testing.assert_array_equal(dkernel, np.transpose(weights.grad.numpy(), (2, 3, 1, 0)))
    np.testing.assert_array_equal(dbias, b.grad.numpy())


@pytest.mark.parametrize(
    ("strides", "padding", "dilation"), [((1, 1), 0, (1, 1)), ((2, 3), 1, (1, 1)), ((2, 1), 2, (1, 2))]
)
def test_conv_transpose_with_consistent_padding(strides, padding, dilation):
    x, kernel = integers(1, (2, 4, 3, 3)), integers(2, (4, 3, 2, 3))
    ours = jaxbp.conv_transpose(
        x, kernel, strides, ((padding, padding),) * 2, dilation, transpose_kernel=True, use_consistent_padding=True
    )
    weights = torch.tensor(np.transpose(kernel, (3, 2, 0, 1)).copy())
    theirs = F.conv_transpose2d(to_torch(x), weights, stride=strides, padding=padding, dilation=dilation)
    np.testing.assert_array_equal(ours, from_torch(theirs))


def test_softmax_cross_entropy():
    logits, labels = normal(1, (5, 4)), jnp.array([0, 3, 1, 1, 2])
    losses, pullback = jax.vjp(lambda z: jaxbp.softmax_cross_entropy(z, labels), logits)
    t = torch.tensor(np.asarray(logits), requires_grad=True)
    torch_losses = F.cross_entropy(t, torch.tensor(np.asarray(labels)).long(), reduction="none")
    torch_losses.sum().backward()
    assert_sums_close(losses, torch_losses.detach().numpy(), 4, 4)
    assert_sums_close(pullback(jnp.ones(5))[0], t.grad.numpy(), 4)
