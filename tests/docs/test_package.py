"""The package as a user meets it: version, names, and the errors where a library is missing."""

import importlib
import inspect
import pydoc
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import jaxbp
from jaxbp import __main__ as command_line

ROOT = Path(__file__).parents[2]
ADAPTERS = {"flax": "flax", "equinox": "equinox", "haiku": "haiku"}


def test_the_version_is_the_metadata_s(capsys):
    assert jaxbp.__version__ == metadata.version("jaxbp")
    with pytest.raises(SystemExit, match="0"):
        command_line.main(["--version"])
    assert capsys.readouterr().out == f"jaxbp {jaxbp.__version__}\n"


def test_the_documents_have_the_version():
    version = jaxbp.__version__
    assert f"## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_public_name_is_listed():
    """`__all__` has what the package imports by name, and `dir` shows no files."""
    imported = {name for name in vars(jaxbp) if not name.startswith("_")} - {*ADAPTERS}
    assert sorted(imported) == sorted(jaxbp.__all__) == jaxbp.__all__
    assert not [name for name in dir(jaxbp) if name.startswith("_") and not name.startswith("__")]


def test_help_lists_the_functions():
    text = pydoc.plain(pydoc.render_doc(jaxbp))
    for name in jaxbp.__all__:
        assert f"{name}(" in text or inspect.ismodule(getattr(jaxbp, name)), name


@pytest.mark.parametrize(
    ("adapter", "names"),
    [
        ("flax", {"linen", "nnx", "serialization"}),
        ("flax.linen", {"Conv", "max_pool", "Dense", "relu"}),
        ("flax.nnx", {"Conv", "avg_pool", "Linear", "Rngs"}),
        ("equinox", {"nn", "Module", "filter_jit"}),
        ("equinox.nn", {"Conv2d", "MaxPool2d", "Linear"}),
        ("haiku", {"Conv2D", "max_pool", "Linear", "transform"}),
    ],
)
def test_adapters_show_the_library_s_names_too(adapter, names):
    module = importlib.import_module(f"jaxbp.{adapter}")
    assert names <= {*dir(module)} and "rebind" not in dir(module)
    by_star: dict = {}
    exec(f"from jaxbp.{adapter} import *", by_star)
    assert names <= by_star.keys()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_missing_library_names_the_extra(adapter, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(f"jaxbp.{adapter}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, adapter, None)
    message = rf"jaxbp\.{adapter} needs {adapter}, which is not installed: pip install 'jaxbp\[{adapter}\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        importlib.import_module(f"jaxbp.{adapter}")


def test_every_extra_that_a_message_names_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {*ADAPTERS, "plot", "torch"} <= project["optional-dependencies"].keys()
