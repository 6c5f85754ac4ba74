"""docs/support.md claims of every op just what the tests run."""

from pathlib import Path

from support_table import CONVOLUTIONS, POOLINGS, support_table

import jaxbp
from cases import OPS


def test_the_page_has_the_table():
    """After a change of the cases: `python tests/docs/support_table.py` prints the new one."""
    page = (Path(__file__).parents[2] / "docs" / "support.md").read_text()
    _, _, rest = page.partition("<!-- support table -->")
    table, end, _ = rest.partition("<!-- end of support table -->")
    assert end
    assert table.strip() == support_table()


def test_every_op_is_in_the_tables():
    """All that jaxbp.automatic has: every forward op of the package."""
    forward = {name for name in vars(jaxbp.automatic) if hasattr(jaxbp, name) and not name.startswith("_")}
    forward = {name for name in forward if callable(getattr(jaxbp, name))}
    assert forward == set(OPS)
    assert {*CONVOLUTIONS, *POOLINGS} <= forward
