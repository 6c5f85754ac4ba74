"""`docs/rules_and_norms.md`: its code runs, and each rule of its table is a rule."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxbp

PAGE = (Path(__file__).parents[2] / "docs" / "rules_and_norms.md").read_text()


def run_the_page() -> dict:
    """The names after all blocks of code ran, one after the other."""
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    return names


@pytest.mark.exhaustive
def test_the_code_runs(capsys) -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names = run_the_page()
        rules = re.findall(r"`(lambda m, .*?)`[ ,]", PAGE)
        assert len(rules) == 7
        x, kernel = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4))
        for text in rules:
            rule = eval(text, names)
            extra = [kernel] if rule.__code__.co_argcount == 6 else []
            value, pull = jax.vjp(jaxbp.conv_with(rule), x, kernel, *extra)
            assert pull(value)[0].shape == x.shape
    lines = capsys.readouterr().out.splitlines()
    kinds = {line.split()[0]: line.split()[1] for line in lines}
    assert kinds == {"['bias']": "norm", "['kernel']": "norm", "['scale']": "vmap", "['weights']": "norm"}
