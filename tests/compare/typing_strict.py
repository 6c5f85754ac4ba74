# pyright: strict
"""A user's test of a rule, in strict mode: `compare` and `check_vjp` are typed throughout (read by `.ci/run`)."""

from typing import Any, assert_type

import jax

import jaxbp


def check(rule: jax.custom_vjp[jax.Array], x: jax.Array, kernel: jax.Array) -> str:
    report = jaxbp.compare(
        rule, x, x, automatic=jaxbp.automatic.relu, argnums=(0, 1), names=["x", "w"], transforms=["jit"], time=False
    )
    assert_type(report.ok, bool)
    assert_type(report.manual, str)
    assert_type([row.name for row in report.rows], list[str])
    assert_type([row.manual_error for row in report.rows], list[float | None])
    assert_type(report.rows[0].ok, bool)
    assert_type(report.to_dict(), dict[str, Any])
    assert_type(report.check().cost.note, str)
    assert_type({name: arrays[0] for name, arrays in report.gradients.items()}, dict[str, Any])
    report.plot("x", axes=(0, 1)).savefig("x.png")
    jaxbp.check_vjp(rule, x, x)
    jaxbp.check_vjp(jaxbp.conv, x, kernel, automatic=jaxbp.automatic.conv, strides=2, key=1)
    return str(report)


@jaxbp.swap_lax("flax")
def pool(x: jax.Array) -> jax.Array:
    return jaxbp.max_pool(jaxbp.automatic.max_pool(x, (2, 2)), (2, 2), 2, [(0, 1), (1, 0)])
