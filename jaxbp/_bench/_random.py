"""Layers that nobody chose: shapes drawn at random, for each family in turn."""

import math
import random
from itertools import cycle, islice

from ._suite import Case, conv_case, operations, pool_case, transposed_case

# Of each family's layers, how many spatial axes they have.
RANKS = {
    "dense": (2,),
    "1x1": (2,),
    "depthwise": (1, 2, 2),
    "grouped": (2,),
    "dilated": (1, 2),
    "patch": (2,),
    "transposed": (1, 2, 2, 3),
    "1-D": (1,),
    "3-D": (3,),
    "max pool": (1, 2, 2, 3),
    "average pool": (1, 2, 2, 3),
}
SIZES = {
    1: (16, 50, 100, 128, 256, 1000, 1024, 4096, 16000),
    2: (4, 7, 8, 10, 13, 14, 16, 20, 27, 28, 32, 40, 56, 64, 112, 128, 224),
    3: (4, 5, 7, 8, 14, 16, 24, 28),
}
WINDOWS = {1: (2, 3, 3, 4, 5, 7, 9, 15, 31), 2: (2, 3, 3, 3, 4, 5, 7), 3: (2, 3, 3, 4)}
OWN_WINDOWS = {"1x1": (1,), "patch": (2, 2, 4, 4, 7, 8, 14, 16)}
BATCHES = (1, 1, 2, 4, 8, 16, 32, 64)
CHANNELS = (1, 2, 3, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 960)
# Those of the suite, about: none of a few microseconds, none of seconds where groups are taken as if there were none.
OPERATIONS = 1e6, 2e9
NUMBERS = 1 << 12, 1 << 23


def random_cases(count: int, seed: int) -> tuple[Case, ...]:
    """So many different layers, the same ones for the same seed."""
    rng = random.Random(seed)
    drawn: dict[str, Case] = {}
    for family in islice(cycle(RANKS), count):
        case = None
        while case is None or case.name in drawn:
            case = _draw(rng, family)
        drawn[case.name] = case
    return tuple(drawn.values())


def _draw(rng: random.Random, family: str) -> Case | None:
    """A layer of this family, or None where what was drawn makes none, or one too small or too large."""
    rank = rng.choice(RANKS[family])
    size, window = rng.choice(SIZES[rank]), rng.choice(OWN_WINDOWS.get(family, WINDOWS[rank]))
    dilation = rng.choice((2, 3, 8)) if family == "dilated" else 1
    padding = rng.choice(("SAME", "SAME", "VALID"))
    x = (rng.choice(BATCHES), *(size,) * rank, rng.choice(CHANNELS))
    if (window - 1) * dilation >= size or not NUMBERS[0] <= math.prod(x) <= NUMBERS[1]:
        return None
    if family in ("max pool", "average pool"):
        op = "max_pool" if family == "max pool" else "avg_pool"
        return pool_case(op, "random", x, (window,) * rank, rng.choice((1, 2, window)), padding)
    network = "random" if padding == "SAME" else f"random {padding}"
    features, strides, groups = rng.choice(CHANNELS), rng.choice((1, 1, 2)), 1
    if family == "transposed":
        case = transposed_case(network, x, (*(window,) * rank, x[-1], features), rng.choice((1, 2, 2, 3)), padding)
        return case if OPERATIONS[0] <= operations(case, ()) <= OPERATIONS[1] else None
    if family == "patch":
        strides = window
    elif family == "depthwise":
        groups, features = x[-1], x[-1] * rng.choice((1, 1, 1, 2))
    elif family == "grouped":
        groups = rng.choice((2, 4, 8, 32))
        features = groups * rng.choice((2, 4, 8, 16, 32))
    if x[-1] % groups or (groups == 1 and family in ("depthwise", "grouped")):
        return None
    kernel = (*(window,) * rank, x[-1] // groups, features)
    words = {"padding": padding, "kernel_dilation": dilation, "feature_group_count": groups}
    case = conv_case(network, family, x, kernel, strides, **words)
    work = groups * operations(case, (x[0], *(size // strides,) * rank, features))
    return case if OPERATIONS[0] <= work <= OPERATIONS[1] else None
