"""A row of a table: an algorithm, and where it is fast."""

from collections.abc import Callable
from typing import Any, NamedTuple

# Not an algorithm, but the first word of a plan: the sums of a vmap's members one after the other, by the plan inside.
ONE_BY_ONE = "one_by_one"
# Between an algorithm and the one that is inside of it.
INSIDE = " > "


class Row(NamedTuple):
    """`algorithm` where it applies and `when` holds. It may name what is inside: "width_tiling > im2col"."""

    when: Callable[[Any], bool]
    algorithm: str
    why: str


def always(p: Any) -> bool:
    """Wherever the algorithm applies."""
    return True
