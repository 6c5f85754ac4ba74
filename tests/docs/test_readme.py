"""README and docs: their code runs, their outputs are true, their links lead somewhere, and CI runs the test line."""

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest
from benchmark_tables import RESULTS, SLOWER, SUMMARY, WHOLE, block, filled, layer_table, load, measured, program_table

import jaxbp

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
MOST_LINES = {"README.md": 180, "BENCHMARKS.md": 150, "CONTRIBUTING.md": 60, "docs/architecture.md": 80}
names_of_documents = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def blocks(path: Path) -> list[tuple[str, str | None]]:
    """A document's Python blocks in order, each with the output block that follows it directly, if any."""
    found = re.findall(r"```python\n(.*?)```\n(?:```\n(.*?)```)?", path.read_text(), flags=re.DOTALL)
    return [(code, output or None) for code, output in found]


def anchors(path: Path) -> set[str]:
    """The addresses of a document's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.fixture
def readers_jax():
    """A reader's JAX is not set to refuse promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def in_an_empty_folder(tmp_path, monkeypatch):
    """What a reader writes lands there, and no measured plan stays in use."""
    monkeypatch.chdir(tmp_path)
    yield
    jaxbp.use_plans(None)


# Some documents have a test of their own.
TESTED_ELSEWHERE = {"rules_and_norms.md"}


@pytest.mark.parametrize(
    "path", [p for p in DOCUMENTS if blocks(p) and p.name not in TESTED_ELSEWHERE], ids=lambda path: path.name
)
def test_every_block_runs_and_prints_what_it_says(path, readers_jax, in_an_empty_folder):
    """A document's blocks run in order, in one session."""
    names: dict = {}
    for code, output in blocks(path):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, path.name, "exec"), names)
        if output is not None:
            assert printed.getvalue().split() == output.split(), code


def test_the_documents_have_code():
    assert {"README.md", "derivation.md", "write-a-rule.md", "migrating.md", "faq.md", "algorithms.md"} <= {
        path.name for path in DOCUMENTS if blocks(path)
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=names_of_documents)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists() and found.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("name", MOST_LINES)
def test_documents_stay_short(name):
    assert len((ROOT / name).read_text().splitlines()) <= MOST_LINES[name]


def test_ci_takes_its_test_line_from_here():
    section = re.search(r"<!-- test line -->(.*?)<!-- end of test line -->", README.read_text(), flags=re.DOTALL)
    assert section is not None
    lines = [line for line in section.group(1).splitlines() if line.startswith("python")]
    assert len(lines) == 1, "the test line is one line"
    assert "pytest" in lines[0]
    script = (ROOT / ".ci" / "run").read_text()
    assert "<!-- test line -->" in script
    assert 'eval "$test_line"' in script
    assert "pytest" not in script, "CI has a test line of its own"


def test_every_command_exists():
    """`python -m jaxbp NAME` and its options, wherever a document writes them."""
    import argparse
    import importlib

    from jaxbp.__main__ import COMMANDS

    for path in DOCUMENTS:
        for name, rest in re.findall(r"python -m jaxbp (\w+)([^`\n]*)", path.read_text()):
            assert name in COMMANDS, f"{path.name}: {name}"
            parser = argparse.ArgumentParser()
            importlib.import_module(COMMANDS[name][0]).add_arguments(parser)
            known = {option for action in parser._actions for option in action.option_strings}
            unknown = set(re.findall(r"--\w[\w-]*", rest)) - known
            assert not unknown, f"{path.name}: {name} has no {unknown}"


COMMANDS_SHOWN = sorted(
    {
        words.strip()
        for path in DOCUMENTS
        for words in re.findall(r"python -m jaxbp ((?:explain \w|compare|bench --plan)[^`\n]*)", path.read_text())
    }
)


@pytest.mark.parametrize("words", COMMANDS_SHOWN)
def test_every_command_but_measurements_runs(words, tmp_path, monkeypatch, capsys):
    """In an empty folder, with a file of the reader's own where a document names one."""
    from jaxbp import __main__ as command_line

    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    rule = "import jax\nfunction = jax.custom_vjp(lambda x: x * x)\n"
    rule += "function.defvjp(lambda x: (x * x, x), lambda x, delta: (2 * x * delta,))\n"
    (tmp_path / "file.py").write_text(rule)
    extra = ["--no-time"] if words.startswith("compare") else []
    if words == "compare":
        extra += ["relu", "--transforms", "jit"]  # without a name it compares every op: tests/bench does
    assert command_line.main([*words.split(), *extra]) == 0
    written = [word for word in words.split() if word.endswith((".html", ".png", ".gif"))]
    assert all((tmp_path / name).stat().st_size > 1000 for name in written)
    capsys.readouterr()


def test_every_public_name_is_in_the_readme():
    import jaxbp

    public = {name for name in vars(jaxbp) if not name.startswith("_")} - {"flax", "equinox", "haiku"}
    readme = README.read_text()
    missing = {name for name in public if f"`{name}" not in readme and f"jaxbp.{name}" not in readme}
    assert not missing


def test_every_algorithm_is_explained():
    from jaxbp._plan import ALGORITHMS

    heads = re.findall(r"^## (\w+)$", (ROOT / "docs" / "algorithms.md").read_text(), flags=re.MULTILINE)
    assert set(ALGORITHMS) <= set(heads)


def test_every_compiler_fault_is_listed():
    """The page has what the file's own table has: each work-around, and a test that exists."""
    from jaxbp._algorithms import _compiler_faults

    page = (ROOT / "docs" / "compilers.md").read_text()
    for function in re.findall(r"\| `(\w+)` \|", _compiler_faults.__doc__ or ""):
        assert f"`{function}`" in page
    tests = (ROOT / "tests" / "algorithms" / "test_compiler_faults.py").read_text()
    for name in re.findall(r"`(test_\w+)`", page):
        assert f"def {name}(" in tests


@pytest.mark.parametrize("name", ["README.md", "BENCHMARKS.md"])
def test_speed_tables_are_those_of_the_raw_results(name):
    """After new results: `python tests/docs/benchmark_tables.py` writes the tables."""
    text = (ROOT / name).read_text()
    assert filled(text) == text


def test_all_raw_results_are_shown():
    text = (ROOT / "BENCHMARKS.md").read_text()
    for file in RESULTS.glob("*.json"):
        record = load(file.stem)
        assert {"machine", "date", "command"} <= record.keys(), file.name
        assert f"<!-- results: {file.stem} -->" in text or file.stem in SUMMARY


def test_the_chart_is_that_of_the_raw_results():
    shown = (RESULTS / "cpu-suite.svg").read_text()
    for family, ratio in re.findall(r"^\| ([\w -]+) \| \d+ \| ([\d.]+) \|", block("cpu-suite"), re.M):
        if family != "all":
            assert f">{family}<" in shown and f">{ratio}<" in shown, family


def test_pytorch_has_columns_where_it_was_timed():
    record = load("cpu-models")
    for case in record["cases"]:
        case["parts"]["forward + gradients"].pop("torch_over_manual", None)
    assert measured(record["cases"]) == ["automatic"]
    for case in record["cases"]:
        case["parts"]["forward + gradients"]["torch_over_manual"] = {"median": 3.0, "best": 3.0, "rounds": 6}
    assert measured(record["cases"]) == ["automatic", "torch"]
    head, _, *rows = program_table(record).splitlines()
    assert "PyTorch / jaxbp" in head and rows[0].split(" | ")[3] == "3.0"


@pytest.mark.parametrize(("ratio", "listed"), [(SLOWER - 2e-3, True), (SLOWER - 1e-4, False), (SLOWER, False)])
def test_a_case_below_the_limit_is_not_shown_as_the_limit(ratio, listed):
    """What is listed as slower reads as slower, and says how the fastest samples compare."""
    record = load("cpu-suite")
    case = next(case for case in record["cases"] if case["parts"][WHOLE]["automatic_over_manual"]["median"] > 1)
    case["parts"][WHOLE]["automatic_over_manual"] = {"median": ratio, "best": 1.25, "rounds": 6}
    line = next(line for line in layer_table(record).splitlines() if line.startswith("Below"))
    assert (f"{case['name']} ({SLOWER - 2e-3:.3f}; fastest samples 1.250)" in line) == listed
    assert (case["name"] in line) == listed


def test_the_documents_draw_the_same_random_layers():
    """A reader who repeats one document's command measures what another document speaks of."""
    documents = [path for path in DOCUMENTS if path.name != "tune.md"]  # which says what its own numbers were made with
    drawn = {words for path in documents for words in re.findall(r"--random \d+(?: --seed \d+)?", path.read_text())}
    assert drawn == {"--random 110 --seed 1"}
