"""Every public docstring: its parts, and its example, run under the default settings of a user."""

import doctest
import inspect
import re

import jax
import pytest

import jaxbp

PUBLIC = sorted(
    name
    for name, value in vars(jaxbp).items()
    if not name.startswith("_") and inspect.isfunction(inspect.unwrap(value))
)
TWINS = sorted(name for name, value in vars(jaxbp.automatic).items() if not name.startswith("_") and name in PUBLIC)


@pytest.mark.sampled(20)
@pytest.mark.parametrize("name", PUBLIC)
def test_example(name):
    function = getattr(jaxbp, name)
    (test,) = [t for t in doctest.DocTestFinder(recurse=False).find(function, name, globs={}) if t.examples]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runner = doctest.DocTestRunner()
        report = []
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("name", PUBLIC)
def test_parts(name):
    """One sentence, the arguments by name, what is returned and raised, an example, and the source."""
    function = getattr(jaxbp, name)
    text = inspect.getdoc(function)
    signature = inspect.signature(function)
    returns_nothing = signature.return_annotation in (None, "None")
    assert text.split("\n\n")[0].endswith(".")
    for part in ("Args:", "Returns:", "Raises:", "Example:", "Source:"):
        assert part in text or (part == "Returns:" and returns_nothing), part
    arguments = text.split("Args:")[1].split("Raises:")[0].split("Returns:")[0]
    for parameter in signature.parameters:
        assert parameter in arguments, parameter


def test_the_package_says_what_it_is():
    assert inspect.getdoc(jaxbp)
    for name in TWINS:
        assert inspect.getdoc(getattr(jaxbp.automatic, name))


@pytest.mark.parametrize("name", PUBLIC)
def test_formulas_explain_their_letters(name):
    """A formula speaks of the arguments by their names or explains its letters; it has none of the rule files' own."""
    summary = inspect.getdoc(getattr(jaxbp, name)).split("Args:")[0]
    assert not re.search(r"\ba(\[| \*)", summary), "x is the input's name"
    if re.search(r"\bd t\b", summary):
        for words in (r"\bs the\s+stride", r"\bd the\s+(kernel\s+)?dilation", r"\bp\s+the\s+padding\s+before"):
            assert re.search(words, summary), words
