"""Every refusal of the public ops: the exception, and that the message names the op, the argument and both values.

`ERRORS` has a call for each. The last test reads the sources and checks that no `raise` was left out.
"""

import ast
import re
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp

PACKAGE = Path(jaxbp.__file__).parent
MODULES = (
    "_geometry", "_arguments", "_conv", "_conv_lax", "_pool", "_max_pool", "_avg_pool", "_adaptive_pool", "_dense",
    "_activation", "_loss", "automatic",
)  # fmt: skip

X, K, B = jnp.ones((2, 5, 4, 2)), jnp.ones((3, 3, 2, 6)), jnp.ones(6)
Y, WINNERS = jnp.ones((2, 2, 2, 2)), jnp.zeros((2, 2, 2, 2), jnp.uint8)
NCHW, OIHW = jnp.ones((4, 2, 5, 4)), jnp.ones((6, 2, 3, 3))
BF16, INT, COMPLEX = X.astype(jnp.bfloat16), X.astype(jnp.int32), X.astype(jnp.complex64)
ROW = jnp.ones((5, 1))

# name: (call, exception, what the message must contain, in this order)
ERRORS = {
    # ------------------------------------------------------------------------------- found by asking for nonsense
    "conv: x holds text": (
        lambda: jaxbp.conv(np.array(["a"]), K), TypeError, ["conv: x is a ndarray of dtype <U1", "holds no numbers"],
    ),
    "relu: x is a random key": (
        lambda: jaxbp.relu(jax.random.key(0)), TypeError, ["relu: x", "key<fry>", "holds no numbers"],
    ),
    "conv: more pixels than can be counted": (
        lambda: jaxbp.conv(X, K, input_dilation=2**40, padding=1), ValueError,
        ["conv: along spatial axis 0", "pixels", "2147483647"],
    ),
    "dilate: more pixels than can be counted": (
        lambda: jaxbp.dilate(X, 2**40), ValueError, ["dilate: dilation=", "(2, 5, 4, 2)", "2147483647"],
    ),
    "avg_pool_grad: input_shape is a number": (
        lambda: jaxbp.avg_pool_grad(Y, 4, (2, 2), 2), TypeError, ["avg_pool_grad: input_shape=4", "sequence of integers"],
    ),
    "max_pool_grad: input_shape holds a fraction": (
        lambda: jaxbp.max_pool_grad(Y, WINNERS, (2, 4.0, 4, 2), (2, 2), 2), TypeError,
        ["max_pool_grad: input_shape=(2, 4.0, 4, 2)", "sequence of integers"],
    ),
    "conv_kernel_grad: kernel_shape is negative": (
        lambda: jaxbp.conv_kernel_grad(X, X, (3, 3, -2, 2)), ValueError,
        ["conv_kernel_grad: kernel_shape=(3, 3, -2, 2)", "negative"],
    ),
    "avg_pool: divisor_override is text": (
        lambda: jaxbp.avg_pool(X, (2, 2), divisor_override="2"), TypeError,
        ["avg_pool: divisor_override='2'", "finite number"],
    ),
    "avg_pool: divisor_override is not finite": (
        lambda: jaxbp.avg_pool(X, (2, 2), divisor_override=float("nan")), TypeError,
        ["avg_pool: divisor_override=nan", "finite number"],
    ),
    "lp_pool: p is text": (lambda: jaxbp.lp_pool(X, (2, 2), p="2"), TypeError, ["lp_pool: p='2'", "number"]),
    "conv_general_dilated: an integer among pairs": (
        lambda: jaxbp.conv_general_dilated(NCHW, OIHW, (1, 1), (1, (1, 1))), ValueError,
        ["conv_general_dilated: padding=(1, (1, 1))", "'SAME_LOWER'", "2 (low, high) pairs", "jax.lax"],
    ),
    "conv_transpose: one integer for all strides": (
        lambda: jaxbp.conv_transpose(X, K, 2, "SAME"), TypeError,
        ["conv_transpose: strides=2", "sequence of 2 integers", "jax.lax"],
    ),
    "conv_general_dilated: out_sharding is text": (
        lambda: jaxbp.conv_general_dilated(NCHW, OIHW, (1, 1), "SAME", out_sharding="x"), TypeError,
        ["conv_general_dilated: out_sharding='x'", "PartitionSpec"],
    ),
    "conv_general_dilated: norms with batch groups": (
        lambda: jaxbp.conv_general_dilated(NCHW, OIHW, (1, 1), "SAME", batch_group_count=2, norms=jnp.zeros(2)), ValueError,
        ["conv_general_dilated: norms=", "batch_group_count=2"],
    ),
    "conv_general_dilated: batch groups are text": (
        lambda: jaxbp.conv_general_dilated(NCHW, OIHW, (1, 1), "SAME", batch_group_count="2"), TypeError,
        ["conv_general_dilated: batch_group_count='2'", "integer"],
    ),
    "softmax_cross_entropy: complex logits": (
        lambda: jaxbp.softmax_cross_entropy(COMPLEX, X), TypeError,
        ["softmax_cross_entropy: logits has dtype complex64", "order"],
    ),
    "softmax_cross_entropy: no classes": (
        lambda: jaxbp.softmax_cross_entropy(jnp.ones((2, 0)), jnp.zeros(2, jnp.int32)), ValueError,
        ["softmax_cross_entropy: logits has shape (2, 0)", "no class"],
    ),
    # ------------------------------------------------------------------------------------------------- conv
    "conv: x is a list": (lambda: jaxbp.conv([1.0], K), TypeError, ["conv: x", "list", "[1.0]", "asarray"]),
    "conv: kernel is a number": (lambda: jaxbp.conv(X, 1.0), TypeError, ["conv: kernel", "float", "1.0"]),
    "conv: bias is a number": (lambda: jaxbp.conv(X, K, 1.0), TypeError, ["conv: bias", "float", "1.0"]),
    "conv: kernel of another dtype": (
        lambda: jaxbp.conv(BF16, K), TypeError, ["conv: x", "bfloat16", "kernel", "float32", "kernel.astype"],
    ),
    "conv: bias of another dtype": (
        lambda: jaxbp.conv(X, K, B.astype(jnp.bfloat16)), TypeError, ["conv: x", "float32", "bias", "bfloat16"],
    ),
    "conv: kernel has one axis": (lambda: jaxbp.conv(X, B), ValueError, ["conv: kernel", "(6,)", "two axes"]),
    "conv: x has too few axes": (
        lambda: jaxbp.conv(B, K), ValueError, ["conv: kernel", "(3, 3, 2, 6)", "x", "(6,)", "at least 3 axes"],
    ),
    "conv: channels differ": (
        lambda: jaxbp.conv(X[..., :1], K), ValueError,
        ["conv: x has 1 channels", "(2, 5, 4, 1)", "kernel", "(3, 3, 2, 6)", "2 channels would fit"],
    ),
    "conv: channels differ in groups": (
        lambda: jaxbp.conv(X, K, feature_group_count=3), ValueError,
        ["conv: x has 2 channels", "kernel", "feature_group_count=3", "6 channels would fit"],
    ),
    "conv: groups do not divide the features": (
        lambda: jaxbp.conv(X, jnp.ones((3, 3, 1, 5)), feature_group_count=2), ValueError,
        ["conv: kernel has 5 output channels", "feature_group_count=2", "multiple of 2"],
    ),
    "conv: groups of zero": (
        lambda: jaxbp.conv(X, K, feature_group_count=0), ValueError, ["conv: feature_group_count=0", "at least 1"],
    ),
    "conv: groups of a half": (
        lambda: jaxbp.conv(X, K, feature_group_count=1.5), TypeError, ["conv: feature_group_count=1.5", "integer"],
    ),
    "conv: bias of another shape": (
        lambda: jaxbp.conv(X, K, jnp.ones(5)), ValueError, ["conv: bias has shape (5,)", "(6,)"],
    ),
    "conv: bias with batch": (
        lambda: jaxbp.conv(X, K, jnp.ones((1, 6))), ValueError, ["conv: bias has shape (1, 6)", "(6,)"],
    ),
    "conv: strides of zero": (
        lambda: jaxbp.conv(X, K, strides=0), ValueError, ["conv: strides=(0, 0)", "at least 1"],
    ),
    "conv: negative strides": (
        lambda: jaxbp.conv(X, K, strides=(1, -2)), ValueError, ["conv: strides=(1, -2)", "at least 1"],
    ),
    "conv: too many strides": (
        lambda: jaxbp.conv(X, K, strides=(1, 1, 1)), ValueError, ["conv: strides=(1, 1, 1)", "3 entries", "2 spatial"],
    ),
    "conv: strides of a half": (
        lambda: jaxbp.conv(X, K, strides=0.5), TypeError, ["conv: strides=0.5", "integer", "2 integers"],
    ),
    "conv: strides are a word": (
        lambda: jaxbp.conv(X, K, strides="two"), TypeError, ["conv: strides='two'", "integer"],
    ),
    "conv: kernel dilation of zero": (
        lambda: jaxbp.conv(X, K, kernel_dilation=(0, 1)), ValueError, ["conv: kernel_dilation=(0, 1)", "at least 1"],
    ),
    "conv: input dilation of zero": (
        lambda: jaxbp.conv(X, K, input_dilation=0), ValueError, ["conv: input_dilation=(0, 0)", "at least 1"],
    ),
    "conv: unknown padding": (
        lambda: jaxbp.conv(X, K, padding="FULL"), ValueError, ["conv: padding='FULL'", "'VALID'", "'SAME'", "pairs"],
    ),
    "conv: padding of a half": (
        lambda: jaxbp.conv(X, K, padding=0.5), ValueError, ["conv: padding=0.5", "'SAME'", "integer"],
    ),
    "conv: padding of triples": (
        lambda: jaxbp.conv(X, K, padding=((1, 2, 3), (1, 2, 3))), ValueError, ["conv: padding=((1, 2, 3)", "pairs"],
    ),
    "conv: padding for one axis of two": (
        lambda: jaxbp.conv(X, K, padding=((1, 1),)), ValueError, ["conv: padding=((1, 1),)", "1 entries", "2 spatial"],
    ),
    "conv: a word and an input dilation": (
        lambda: jaxbp.conv(X, K, padding="SAME", input_dilation=2), ValueError,
        ["conv: padding='SAME'", "input_dilation=(2, 2)", "padding=((1, 1), (1, 1))", "(9, 7)"],
    ),
    "conv: padding takes away more than there is": (
        lambda: jaxbp.conv(X, K, padding=((-3, -3), (0, 0))), ValueError,
        ["conv: padding=((-3, -3), (0, 0))", "5", "axis 0", "at least 0"],
    ),
    "conv: window larger than the input": (
        lambda: jaxbp.conv(X[:, :2], K, padding="VALID"), ValueError,
        ["conv:", "axis 0", "spans 3 pixels", "kernel 3", "only 2", "smaller window or more padding"],
    ),
    "conv: dilated window larger than the input": (
        lambda: jaxbp.conv(X, K, padding="VALID", kernel_dilation=(1, 2)), ValueError,
        ["conv:", "axis 1", "spans 5 pixels", "kernel_dilation 2", "only 4"],
    ),
    "conv: empty window": (
        lambda: jaxbp.conv(X, jnp.ones((0, 3, 2, 6))), ValueError, ["conv: kernel", "(0, 3)", "at least one pixel"],
    ),
    # -------------------------------------------------------------------------------------- gradient maps
    "conv_input_grad: delta of another shape": (
        lambda: jaxbp.conv_input_grad(jnp.ones((2, 5, 3, 6)), K, X.shape), ValueError,
        ["conv_input_grad: delta has shape (2, 5, 3, 6)", "(2, 5, 4, 6)"],
    ),
    "conv_input_grad: kernel of another dtype": (
        lambda: jaxbp.conv_input_grad(jnp.ones((2, 5, 4, 6)), K.astype(jnp.bfloat16), X.shape), TypeError,
        ["conv_input_grad: delta", "float32", "kernel", "bfloat16"],
    ),
    "conv_input_grad: input_shape of other channels": (
        lambda: jaxbp.conv_input_grad(jnp.ones((2, 5, 4, 6)), K, (2, 5, 4, 3)), ValueError,
        ["conv_input_grad: input_shape has 3 channels", "kernel"],
    ),
    "conv_kernel_grad: delta of another shape": (
        lambda: jaxbp.conv_kernel_grad(X, jnp.ones((2, 5, 4, 5)), K.shape), ValueError,
        ["conv_kernel_grad: delta has shape (2, 5, 4, 5)", "(2, 5, 4, 6)"],
    ),
    "conv_kernel_grad: kernel_shape of one axis": (
        lambda: jaxbp.conv_kernel_grad(X, X, (3,)), ValueError, ["conv_kernel_grad: kernel_shape", "(3,)", "two axes"],
    ),
    "conv_kernel_grad: x is a list": (
        lambda: jaxbp.conv_kernel_grad([1.0], X, K.shape), TypeError, ["conv_kernel_grad: x", "list"],
    ),
    "conv_bias_grad: delta is a scalar": (
        lambda: jaxbp.conv_bias_grad(jnp.float32(1)), ValueError, ["conv_bias_grad: delta has shape ()", "one axis"],
    ),
    "conv_bias_grad: delta is a list": (
        lambda: jaxbp.conv_bias_grad([1.0]), TypeError, ["conv_bias_grad: delta", "list"],
    ),
    "rot180: kernel is a list": (lambda: jaxbp.rot180([1.0]), TypeError, ["rot180: kernel", "list"]),
    "dilate: x is a list": (lambda: jaxbp.dilate([1.0], 2), TypeError, ["dilate: x", "list"]),
    "dilate: too many entries": (
        lambda: jaxbp.dilate(ROW, (2, 2, 2)), ValueError, ["dilate: dilation=(2, 2, 2)", "3 entries", "(5, 1)", "2 axes"],
    ),
    "dilate: zero": (lambda: jaxbp.dilate(ROW, (0, 1)), ValueError, ["dilate: dilation=(0, 1)", "at least 1"]),
    # --------------------------------------------------------------------------------------- lax's names
    "conv_general_dilated: lhs is a list": (
        lambda: jaxbp.conv_general_dilated([1.0], OIHW, (1, 1), "SAME"), TypeError, ["conv_general_dilated: lhs", "list"],
    ),
    "conv_general_dilated: rhs of another dtype": (
        lambda: jaxbp.conv_general_dilated(NCHW, OIHW.astype(jnp.int32), (1, 1), "SAME"), TypeError,
        ["conv_general_dilated: lhs", "float32", "rhs", "int32"],
    ),
    "conv_general_dilated: numbers of axes differ": (
        lambda: jaxbp.conv_general_dilated(NCHW[0], OIHW, (1, 1), "SAME"), ValueError,
        ["conv_general_dilated: lhs has shape (2, 5, 4)", "rhs has shape (6, 2, 3, 3)", "same number"],
    ),
    "conv_general_dilated: one axis": (
        lambda: jaxbp.conv_general_dilated(B, B, (), "SAME"), ValueError, ["conv_general_dilated: lhs", "(6,)", "two"],
    ),
    "conv_general_dilated: channels differ": (
        lambda: jaxbp.conv_general_dilated(NCHW[:, :1], OIHW, (1, 1), "SAME"), ValueError,
        ["conv_general_dilated: lhs has 1 channels", "rhs", "feature_group_count=1"],
    ),
    "conv_general_dilated: too few strides": (
        lambda: jaxbp.conv_general_dilated(NCHW, OIHW, (1,), "SAME"), ValueError,
        ["conv_general_dilated: window_strides=(1,)", "1 entries", "2 spatial"],
    ),
    "conv_general_dilated: a word and lhs_dilation": (
        lambda: jaxbp.conv_general_dilated(NCHW, OIHW, (1, 1), "SAME_LOWER", (2, 1)), ValueError,
        ["conv_general_dilated: padding='SAME_LOWER'", "lhs_dilation=(2, 1)", "padding=((1, 1), (1, 1))"],
    ),
    "conv_general_dilated: rhs_dilation of zero": (
        lambda: jaxbp.conv_general_dilated(NCHW, OIHW, (1, 1), "SAME", None, (0, 1)), ValueError,
        ["conv_general_dilated: rhs_dilation=(0, 1)", "at least 1"],
    ),
    "conv_general_dilated: both kinds of groups": (
        lambda: jaxbp.conv_general_dilated(
            NCHW, jnp.ones((6, 1, 3, 3)), (1, 1), "SAME", feature_group_count=2, batch_group_count=2
        ),
        ValueError, ["conv_general_dilated: feature_group_count=2", "batch_group_count=2", "only one"],
    ),
    "conv_general_dilated: batch groups of zero": (
        lambda: jaxbp.conv_general_dilated(NCHW, OIHW, (1, 1), "SAME", batch_group_count=0), ValueError,
        ["conv_general_dilated: batch_group_count=0", "at least 1"],
    ),
    "conv_general_dilated: batch groups do not divide": (
        lambda: jaxbp.conv_general_dilated(NCHW, OIHW, (1, 1), "SAME", batch_group_count=3), ValueError,
        ["conv_general_dilated: batch_group_count=3", "batch size 4", "6 output channels"],
    ),
    "conv_transpose: unknown padding": (
        lambda: jaxbp.conv_transpose(X, K, (1, 1), "FULL"), ValueError, ["conv_transpose: padding='FULL'", "'SAME'"],
    ),
    "conv_transpose: same_lower with a stride": (
        lambda: jaxbp.conv_transpose(X, K, (2, 1), "SAME_LOWER"), ValueError,
        ["conv_transpose: padding='SAME_LOWER'", "strides=(2, 1)", "padding=((", "'SAME'"],
    ),
    "conv_transpose: strides of zero": (
        lambda: jaxbp.conv_transpose(X, K, (0, 1), "SAME"), ValueError, ["conv_transpose: strides=(0, 1)", "at least 1"],
    ),
    "conv_transpose: channels differ": (
        lambda: jaxbp.conv_transpose(X[..., :1], K, (1, 1), "SAME"), ValueError, ["conv_transpose: lhs has 1 channels", "rhs"],
    ),
    "conv_transpose: rhs is a list": (
        lambda: jaxbp.conv_transpose(X, [1.0], (1, 1), "SAME"), TypeError, ["conv_transpose: rhs", "list"],
    ),
    # ------------------------------------------------------------------------------------------------ pools
    "sum_pool: booleans": (
        lambda: jaxbp.sum_pool(jnp.ones((4, 4, 1), bool), (2, 2)), TypeError, ["sum_pool: inputs", "bool", "int32"],
    ),
    "avg_pool: integers": (lambda: jaxbp.avg_pool(INT, (2, 2)), TypeError, ["avg_pool: inputs", "int32", "floating"]),
    "lp_pool: integers": (lambda: jaxbp.lp_pool(INT, (2, 2)), TypeError, ["lp_pool: inputs", "int32", "floating"]),
    "lp_pool: complex": (lambda: jaxbp.lp_pool(COMPLEX, (2, 2)), TypeError, ["lp_pool: inputs", "complex64"]),
    "lp_pool: p below 1": (lambda: jaxbp.lp_pool(X, (2, 2), p=0.5), ValueError, ["lp_pool: p=0.5", "at least 1"]),
    "lp_pool: p is NaN": (lambda: jaxbp.lp_pool(X, (2, 2), p=float("nan")), ValueError, ["lp_pool: p=nan"]),
    "avg_pool: divisor of zero": (
        lambda: jaxbp.avg_pool(X, (2, 2), divisor_override=0), ValueError, ["avg_pool: divisor_override=0", "None"],
    ),
    "avg_pool_grad: integers": (
        lambda: jaxbp.avg_pool_grad(INT, X.shape, (2, 2)), TypeError, ["avg_pool_grad: delta", "int32"],
    ),
    "avg_pool_grad: delta of another shape": (
        lambda: jaxbp.avg_pool_grad(Y, X.shape, (2, 2), 2, "SAME"), ValueError,
        ["avg_pool_grad: delta has shape (2, 2, 2, 2)", "(2, 5, 4, 2)", "window_shape=(2, 2)", "gives (2, 3, 2, 2)"],
    ),
    "max_pool_grad: winners of another shape": (
        lambda: jaxbp.max_pool_grad(Y, WINNERS[:1], X.shape, (2, 2), 2), ValueError,
        ["max_pool_grad: winners has shape (1, 2, 2, 2)", "gives (2, 2, 2, 2)"],
    ),
    "max_pool_grad: winners are not integers": (
        lambda: jaxbp.max_pool_grad(Y, Y, X.shape, (2, 2), 2), TypeError, ["max_pool_grad: winners", "float32", "integers"],
    ),
    "max_pool_grad: input_shape has too few axes": (
        lambda: jaxbp.max_pool_grad(Y, WINNERS, (5, 4), (2, 2), 2), ValueError,
        ["max_pool_grad: input_shape has shape (5, 4)", "window_shape=(2, 2)", "3 axes"],
    ),
    "max_unpool: winners are not integers": (
        lambda: jaxbp.max_unpool(Y, Y, (2, 2)), TypeError, ["max_unpool: winners", "float32", "integers"],
    ),
    "max_unpool: a word without input_shape": (
        lambda: jaxbp.max_unpool(Y, WINNERS, (2, 2), 2, "SAME"), ValueError,
        ["max_unpool: padding='SAME'", "(2, 2, 2, 2)", "input_shape"],
    ),
    "max_unpool: too few axes": (
        lambda: jaxbp.max_unpool(jnp.ones((2, 2)), WINNERS[0, :, :, 0], (2, 2), 2), ValueError,
        ["max_unpool: pooled has shape (2, 2)", "window_shape=(2, 2)", "3 axes"],
    ),
    "max_unpool: input_shape pools to something else": (
        lambda: jaxbp.max_unpool(Y, WINNERS, (2, 2), 2, input_shape=(2, 8, 4, 2)), ValueError,
        ["max_unpool: pooled has shape (2, 2, 2, 2)", "(2, 8, 4, 2)", "gives (2, 4, 2, 2)"],
    ),
    "upsample: delta has too few axes": (
        lambda: jaxbp.upsample(B, (2, 2)), ValueError, ["upsample: delta has shape (6,)", "window_shape=(2, 2)", "2 axes"],
    ),
    "upsample: winners of another shape": (
        lambda: jaxbp.upsample(Y, (2, 2), winners=WINNERS[:1]), ValueError,
        ["upsample: winners has shape (1, 2, 2, 2)", "delta has shape (2, 2, 2, 2)"],
    ),
    "upsample: winners are not integers": (
        lambda: jaxbp.upsample(Y, (2, 2), winners=Y), TypeError, ["upsample: winners", "float32", "integers"],
    ),
    "upsample: integers are not spread evenly": (
        lambda: jaxbp.upsample(INT, (2, 2)), TypeError, ["upsample: delta", "int32", "floating"],
    ),
    # --------------------------------------------------------------------------------------- adaptive pools
    "adaptive_avg_pool: a symbolic size": (
        lambda: jax.eval_shape(
            lambda x: jaxbp.adaptive_avg_pool(x, (2,)),
            jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, t, 2"), jnp.float32),
        ),
        ValueError, ["adaptive_avg_pool: inputs has shape (b, t, 2)", "t is symbolic", "known spatial sizes"],
    ),
    "adaptive_avg_pool: integers": (
        lambda: jaxbp.adaptive_avg_pool(INT, (2, 2)), TypeError, ["adaptive_avg_pool: inputs", "int32"],
    ),
    "adaptive_max_pool: complex": (
        lambda: jaxbp.adaptive_max_pool(COMPLEX, (2, 2)), TypeError, ["adaptive_max_pool: inputs", "complex64"],
    ),
    # ---------------------------------------------------------------------------- dense, activations, loss
    "dense: kernel is not a matrix": (
        lambda: jaxbp.dense(X, B), ValueError, ["dense: kernel has shape (6,)", "matrix"],
    ),
    "dense: inputs differ": (
        lambda: jaxbp.dense(jnp.ones((2, 3)), jnp.ones((4, 5))), ValueError,
        ["dense: x has shape (2, 3)", "kernel has shape (4, 5)", "size 4"],
    ),
    "dense: x is a scalar": (
        lambda: jaxbp.dense(jnp.float32(1), jnp.ones((4, 5))), ValueError, ["dense: x has shape ()", "(4, 5)"],
    ),
    "dense: bias of another shape": (
        lambda: jaxbp.dense(jnp.ones((2, 4)), jnp.ones((4, 5)), jnp.ones(4)), ValueError,
        ["dense: bias has shape (4,)", "(4, 5)", "(5,)"],
    ),
    "dense: kernel of another dtype": (
        lambda: jaxbp.dense(jnp.ones((2, 4)), jnp.ones((4, 5), jnp.bfloat16)), TypeError,
        ["dense: x", "float32", "kernel", "bfloat16"],
    ),
    "dense: bias of another dtype": (
        lambda: jaxbp.dense(jnp.ones((2, 4)), jnp.ones((4, 5)), jnp.ones(5, jnp.int32)), TypeError,
        ["dense: x", "float32", "bias", "int32"],
    ),
    "dense: x is a list": (lambda: jaxbp.dense([1.0], K), TypeError, ["dense: x", "list"]),
    "relu: a number": (lambda: jaxbp.relu(1.0), TypeError, ["relu: x", "float", "1.0"]),
    "relu: complex": (lambda: jaxbp.relu(COMPLEX), TypeError, ["relu: x", "complex64", "order"]),
    "sigmoid: integers": (lambda: jaxbp.sigmoid(INT), TypeError, ["sigmoid: x", "int32", "floating"]),
    "tanh: integers": (lambda: jaxbp.tanh(INT), TypeError, ["tanh: x", "int32", "floating"]),
    "softmax_cross_entropy: logits are a scalar": (
        lambda: jaxbp.softmax_cross_entropy(jnp.float32(1), jnp.int32(0)), ValueError,
        ["softmax_cross_entropy: logits has shape ()", "one axis"],
    ),
    "softmax_cross_entropy: integer logits": (
        lambda: jaxbp.softmax_cross_entropy(INT, INT), TypeError, ["softmax_cross_entropy: logits", "int32"],
    ),
    "softmax_cross_entropy: labels of another shape": (
        lambda: jaxbp.softmax_cross_entropy(jnp.ones((3, 4)), jnp.zeros(4, jnp.int32)), ValueError,
        ["softmax_cross_entropy: integer labels have shape (4,)", "(3, 4)", "(3,) would fit"],
    ),
    "softmax_cross_entropy: distributions of another shape": (
        lambda: jaxbp.softmax_cross_entropy(jnp.ones((3, 4)), jnp.ones(3)), ValueError,
        ["softmax_cross_entropy: labels have shape (3,)", "(3, 4)", "distribution"],
    ),
    "softmax_cross_entropy: distributions of another dtype": (
        lambda: jaxbp.softmax_cross_entropy(jnp.ones((3, 4)), jnp.ones((3, 4), jnp.bfloat16)), TypeError,
        ["softmax_cross_entropy: logits", "float32", "labels", "bfloat16"],
    ),
    "softmax_cross_entropy: labels are a list": (
        lambda: jaxbp.softmax_cross_entropy(jnp.ones((1, 4)), [1]), TypeError, ["softmax_cross_entropy: labels", "list"],
    ),
    "automatic.max_pool: too few axes": (
        lambda: jaxbp.automatic.max_pool(B, (2, 2)), ValueError,
        ["automatic.max_pool: inputs has shape (6,)", "window_shape=(2, 2)"],
    ),
}  # fmt: skip

POOLS = ("max_pool", "min_pool", "avg_pool", "sum_pool", "lp_pool", "max_pool_with_winners")
COMPARING = ("max_pool", "min_pool", "max_pool_with_winners")


def pool_errors(op):
    """What every pool refuses."""
    pool = getattr(jaxbp, op)
    return {
        f"{op}: inputs are a list": (lambda: pool([1.0], (2,)), TypeError, [f"{op}: inputs", "list"]),
        f"{op}: inputs are a scalar": (
            lambda: pool(jnp.float32(1), (2,)), ValueError, [f"{op}: inputs has shape ()", "window_shape=(2,)", "2 axes"],
        ),
        f"{op}: too few axes": (
            lambda: pool(ROW, (2, 2)), ValueError, [f"{op}: inputs has shape (5, 1)", "window_shape=(2, 2)", "3 axes"],
        ),
        f"{op}: window is an integer": (lambda: pool(ROW, 2), TypeError, [f"{op}: window_shape=2", "sequence", "(2, 2)"]),
        f"{op}: window of halves": (lambda: pool(ROW, (0.5,)), TypeError, [f"{op}: window_shape=(0.5,)", "integers"]),
        f"{op}: no window": (lambda: pool(ROW, ()), ValueError, [f"{op}: window_shape=()", "one integer"]),
        f"{op}: empty window": (lambda: pool(ROW, (0,)), ValueError, [f"{op}: window_shape", "(0,)", "at least one pixel"]),
        f"{op}: strides of zero": (lambda: pool(ROW, (2,), 0), ValueError, [f"{op}: strides=(0,)", "at least 1"]),
        f"{op}: too many strides": (lambda: pool(ROW, (2,), (1, 2)), ValueError, [f"{op}: strides=(1, 2)", "1 spatial"]),
        f"{op}: window dilation of zero": (
            lambda: pool(ROW, (2,), window_dilation=0), ValueError, [f"{op}: window_dilation=(0,)", "at least 1"],
        ),
        f"{op}: unknown padding": (
            lambda: pool(ROW, (2,), 1, "CIRCULAR"), ValueError, [f"{op}: padding='CIRCULAR'", "'SAME'", "pairs"],
        ),
        f"{op}: window larger than the input": (
            lambda: pool(ROW, (6,)), ValueError, [f"{op}:", "spans 6 pixels", "window_shape 6", "only 5"],
        ),
        f"{op}: ceil_mode and a crop of the end": (
            lambda: pool(ROW, (2,), 2, ((0, -1),), ceil_mode=True),
            ValueError,
            [f"{op}: padding=((0, -1),) crops the end", "ceil_mode=True", "x[:-1]"],
        ),
        f"{op}: padding takes away everything": (
            lambda: pool(ROW, (1,), 1, ((-4, -4),)), ValueError, [f"{op}: padding=((-4, -4),)", "5", "at least 0"],
        ),
    }  # fmt: skip


def adaptive_errors(op):
    """What both adaptive pools refuse."""
    pool = getattr(jaxbp, op)
    return {
        f"{op}: inputs are a list": (lambda: pool([1.0], (2,)), TypeError, [f"{op}: inputs", "list"]),
        f"{op}: output_shape is an integer": (lambda: pool(X, 2), TypeError, [f"{op}: output_shape=2", "sequence"]),
        f"{op}: output of zero": (lambda: pool(X, (0, 2)), ValueError, [f"{op}: output_shape=(0, 2)", "at least 1"]),
        f"{op}: no output": (lambda: pool(X, ()), ValueError, [f"{op}: output_shape=()", "at least one integer"]),
        f"{op}: too few axes": (
            lambda: pool(ROW, (2, 2)), ValueError, [f"{op}: inputs has shape (5, 1)", "output_shape=(2, 2)", "3 axes"],
        ),
        f"{op}: empty axis": (
            lambda: pool(X[:, :0], (2, 2)), ValueError, [f"{op}: inputs has shape (2, 0, 4, 2)", "size 0"],
        ),
    }  # fmt: skip


for op in POOLS:
    ERRORS |= pool_errors(op)
for op in COMPARING:
    ERRORS[f"{op}: complex"] = (
        lambda op=op: getattr(jaxbp, op)(COMPLEX, (2, 2)), TypeError, [f"{op}: inputs", "complex64", "order"],
    )  # fmt: skip
for op in ("adaptive_avg_pool", "adaptive_max_pool"):
    ERRORS |= adaptive_errors(op)


@pytest.mark.parametrize("name", ERRORS)
def test_error(name):
    call, exception, parts = ERRORS[name]
    with pytest.raises(exception, match="(?s)" + ".*".join(map(re.escape, parts))):
        call()


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [
        ("int32", "float32", "float32"),
        ("float32", "int32", "float32"),
        ("bool", "bfloat16", "bfloat16"),
        ("int8", "float16", "float16"),
        ("bfloat16", "float16", "float32"),
        ("float16", "float32", "float32"),
        ("complex64", "float32", "complex64"),
        ("uint8", "int32", "int32"),
        # JAX promotes none of these.
        ("float8_e4m3fn", "float8_e5m2", "float32"),
        ("float8_e4m3fn", "complex64", "complex64"),
        ("int4", "float16", "float32"),
        ("int4", "int8", "int32"),
    ],
)
@pytest.mark.parametrize(
    ("call", "names"),
    [(jaxbp.conv, ("x", "kernel")), (lambda x, k: jaxbp.conv_general_dilated(x, k, (1, 1), "SAME"), ("lhs", "rhs"))],
    ids=["conv", "conv_general_dilated"],
)
def test_mixed_dtypes_are_cast_to_what_holds_both(call, names, first, second, common):
    """The advice loses nothing: float weights never become integers."""
    advice = " and ".join(f"{name}.astype('{common}')" for name in names)
    with pytest.raises(
        TypeError, match=re.escape(f"{names[0]} has dtype {first}, but {names[1]} has dtype {second}")
    ) as e:
        call(jnp.ones((1, 2, 2, 2), first), jnp.ones((2, 2, 2, 2), second))
    assert str(e.value).endswith(f"both must have the same, for example {advice}")


@pytest.mark.parametrize("name", ["conv: channels differ", "max_pool: window larger than the input"])
def test_errors_come_before_anything_runs(name):
    """Also while a program is traced."""
    call, exception, parts = ERRORS[name]
    with pytest.raises(exception, match=re.escape(parts[0])):
        jax.eval_shape(call)


def test_every_raise_has_its_call():
    """The lines that raise, in the sources, are the lines that the calls above raised from."""
    raised = set()
    for call, exception, _ in ERRORS.values():
        try:
            call()
        except exception as error:
            last = traceback.extract_tb(error.__traceback__)
            raised |= {(Path(f.filename).stem, f.lineno) for f in last if Path(f.filename).parent == PACKAGE}
    missing = [
        f"{module}.py:{node.lineno}"
        for module in MODULES
        for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text()))
        if isinstance(node, ast.Raise)
        and not any((module, line) in raised for line in range(node.lineno, node.end_lineno + 1))
    ]
    assert missing == []
