"""The README: its code runs, its outputs are true, and CI runs its test line."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks() -> list[tuple[str, str | None]]:
    """The README's Python blocks in order, each with the output block that follows it directly, if any."""
    found = re.findall(r"```python\n(.*?)```\n(?:```\n(.*?)```)?", README, flags=re.DOTALL)
    return [(code, output or None) for code, output in found if not code.startswith("from jaxbp.flax")]


@pytest.fixture
def default_promotion(monkeypatch):
    """A reader's JAX is not set to refuse promotion."""
    import jax

    before = jax.config.jax_numpy_dtype_promotion, jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before[0])
    jax.config.update("jax_numpy_rank_promotion", before[1])


def test_every_block_runs_and_prints_what_it_says(default_promotion):
    assert len(blocks()) >= 8
    names: dict = {}
    for code, output in blocks():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), names)
        if output is not None:
            assert printed.getvalue().split() == output.split(), code


def test_ci_takes_its_test_line_from_here():
    section = re.search(r"<!-- test line -->(.*?)<!-- end of test line -->", README, flags=re.DOTALL)
    assert section is not None
    lines = [line for line in section.group(1).splitlines() if line.startswith("python")]
    assert len(lines) == 1, "the test line is one line"
    assert "pytest" in lines[0]
    script = (ROOT / ".ci" / "run").read_text()
    assert "<!-- test line -->" in script
    assert 'eval "$test_line"' in script
    assert "pytest" not in script, "CI has a test line of its own"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_every_public_name_is_in_the_readme():
    import jaxbp

    public = {name for name in vars(jaxbp) if not name.startswith("_")} - {"flax", "equinox", "haiku"}
    missing = {name for name in public if f"`{name}" not in README and f"jaxbp.{name}" not in README}
    assert not missing
