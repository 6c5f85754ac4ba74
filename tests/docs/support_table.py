"""The tables of docs/support.md, made from the very lists that the tests iterate over.

`python tests/docs/support_table.py` prints what belongs between the two comments in docs/support.md.
"""

import inspect
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("", "ops", "transforms")]

import conftest  # noqa: F401  (its settings come before any other use of JAX)
import test_conv
import test_layers
from test_conv_lax import EXTRA, LAYOUT_CASES, TRANSPOSED, as_keywords, in_lax_words
from test_programs import USED_TWICE
from test_sharding import LAYERS, WAYS
from test_transformations import INSIDE_A_BLOCK, TRANSFORMATIONS

import jaxbp
from cases import ADAPTIVE, CONVS, OPS, POOL_ARGUMENTS, POOLS

CONVOLUTIONS = ("conv", "conv_general_dilated", "conv_transpose")
POOLINGS = (
    "max_pool", "min_pool", "avg_pool", "sum_pool", "lp_pool", "max_pool_with_winners", "max_unpool",
    "adaptive_avg_pool", "adaptive_max_pool",
)  # fmt: skip
YES, YES_INSIDE_A_BLOCK, NO_SUCH_ARGUMENT = "✓", "✓ ¹", ""
FOOTNOTE = "¹ inside of `with jaxbp.forward_mode():`; outside, `jax.custom_vjp` refuses it."

# A column, and the names that the argument has in the ops' signatures.
ARGUMENTS = {
    "bias": ("bias",),
    "`strides`": ("strides", "window_strides"),
    "padding: words": ("padding",),
    "padding: pairs": ("padding",),
    "padding: negative": ("padding",),
    "input dilation": ("input_dilation", "lhs_dilation"),
    "kernel dilation": ("kernel_dilation", "rhs_dilation"),
    "`window_dilation`": ("window_dilation",),
    "`feature_group_count`": ("feature_group_count",),
    "`batch_group_count`": ("batch_group_count",),
    "`dimension_numbers`": ("dimension_numbers",),
    "`transpose_kernel`": ("transpose_kernel",),
    "`use_consistent_padding`": ("use_consistent_padding",),
    "`precision`": ("precision",),
    "`preferred_element_type`": ("preferred_element_type",),
    "`out_sharding`": ("out_sharding",),
    "`ceil_mode`": ("ceil_mode",),
    "`count_include_pad`": ("count_include_pad",),
    "`divisor_override`": ("divisor_override",),
    "`p`": ("p",),
    "`input_shape`": ("input_shape",),
    "`output_shape`": ("output_shape",),
}


def tested_arguments(op: str) -> list[dict[str, Any]]:
    """The keywords of every case that a test runs an op with."""
    if op == "conv":
        return [
            *(case.arguments for case in CONVS.values()),
            dict(bias=test_conv.data(CONVS["defaults"])[2]),
            *(dict(precision=precision) for precision in test_conv.PRECISIONS),
            *(dict(preferred_element_type=preferred) for _, preferred in test_conv.PREFERRED),
        ]
    if op == "conv_general_dilated":
        spread = [in_lax_words(CONVS[name]) | dict(dimension_numbers=layout) for name, layout in LAYOUT_CASES]
        return spread + [words for _, _, words in EXTRA.values()]
    if op == "conv_transpose":
        return [as_keywords(arguments) for _, _, arguments in TRANSPOSED.values()]
    if op == "dense":
        return [dict(bias=True), *(dict(precision=precision) for precision in test_layers.PRECISIONS)]
    if op.startswith("adaptive"):
        return [dict(output_shape=output_shape) for _, output_shape in ADAPTIVE.values()]
    extras = POOL_ARGUMENTS.get(op, {"": {}}).values()
    given = [case.arguments | extra for case in POOLS.values() for extra in extras]
    return [arguments | dict(input_shape=None) for arguments in given] if op == "max_unpool" else given


def passes(column: str, arguments: dict[str, Any]) -> bool:
    """Whether a case passes the argument of a column."""
    names = [name for name in ARGUMENTS[column] if name in arguments]
    if not column.startswith("padding") or not names:
        return bool(names)
    padding = arguments["padding"]
    if isinstance(padding, str):
        return column == "padding: words"
    negative = "-" in str(padding)
    return column == "padding: negative" if negative else column == "padding: pairs"


def argument_table(ops: tuple[str, ...]) -> list[list[str]]:
    """Ops as rows, the arguments that any of them has as columns."""
    signatures = {op: inspect.signature(getattr(jaxbp, op)).parameters for op in ops}
    columns = [c for c, names in ARGUMENTS.items() if any(n in p for n in names for p in signatures.values())]
    rows = [["", *columns]]
    for op in ops:
        row = [f"`{op}`"]
        for column in columns:
            if not any(name in signatures[op] for name in ARGUMENTS[column]):
                row.append(NO_SUCH_ARGUMENT)
                continue
            assert any(passes(column, arguments) for arguments in tested_arguments(op)), f"{op}: {column} has no test"
            row.append(YES)
        rows.append(row)
    return rows


def transformation_table() -> list[list[str]]:
    """Ops as rows, the transformations and meshes that each is run under as columns."""
    meshes = {
        "jit, sharded": {way.values[0] for way in WAYS},
        "explicit mesh": {way.values[0] for way in WAYS},
        "`shard_map`": set(LAYERS),
        "layer twice": set(USED_TWICE),
    }
    rows = [["", *(f"`{t}`" if " " not in t else t for t in TRANSFORMATIONS), *meshes]]
    for op in OPS:
        row = [f"`{op}`", *(YES_INSIDE_A_BLOCK if t in INSIDE_A_BLOCK else YES for t in TRANSFORMATIONS)]
        for mesh, names in meshes.items():
            assert any(name.split(",")[0] == op for name in names), f"{op}: {mesh} has no test"
            row.append(YES)
        rows.append(row)
    return rows


def as_markdown(rows: list[list[str]]) -> str:
    """A table with its first row as the head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---", *[":-:"] * (len(head) - 1)], *body])


def support_table() -> str:
    """The three tables: arguments of convolutions, arguments of pools, and transformations of everything."""
    tables = argument_table(CONVOLUTIONS), argument_table(POOLINGS), transformation_table()
    return "\n\n".join([*map(as_markdown, tables), FOOTNOTE])


if __name__ == "__main__":
    print(support_table())
