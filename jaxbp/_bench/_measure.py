"""Interleaved timing: programs take turns, so that a machine whose speed drifts is the same machine for all."""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

FEWEST_ROUNDS = 6
MOST_ROUNDS = 101
# Its first call finds the caches and the memory as another program left them; a program that is used finds its own.
SHORTEST_SAMPLE = 2e-2


class Times(NamedTuple):
    """Seconds per call of one program: the fastest sample, their median, and the mean of each round's two."""

    best: float
    median: float
    rounds: tuple[float, ...]


class Limits(NamedTuple):
    """What the machine can do at most: operations and bytes per second."""

    operations: float
    traffic: float


def interleave(programs: Mapping[str, Callable[[], Any]], seconds: float, pause: float = 0.0) -> dict[str, Times]:
    """Time programs in the order A B C C B A, then B C A A C B, C A B B A C, and so on, for about `seconds` altogether.

    In that order a drift that is linear in time cancels within a round, so that rounds are compared with each other.
    Each begins with another program, as one that follows itself finds its memory as it left it, and is faster.
    `pause` seconds pass before each sample, where threads of the last program would still be spinning in the next.
    """
    calls = {}
    for name, call in programs.items():
        jax.block_until_ready(call())
        calls[name] = max(1, math.ceil(SHORTEST_SAMPLE / max(sample(call, 1), 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in programs}
    turn = deque(programs)
    start = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and time.perf_counter() - start > seconds:
            break
        for name in [*turn, *reversed(turn)]:
            if pause:
                time.sleep(pause)
            samples[name].append(sample(programs[name], calls[name]))
        turn.rotate(-1)
    return {name: summarize(values) for name, values in samples.items()}


def sample(call: Callable[[], Any], calls: int) -> float:
    """Seconds per call, over some calls in a row."""
    start, results = time.perf_counter(), None
    for _ in range(calls):
        results = call()
    jax.block_until_ready(results)
    return (time.perf_counter() - start) / calls


def summarize(samples: list[float]) -> Times:
    """Samples in the order in which they were taken, two for each round."""
    rounds = tuple((a + b) / 2 for a, b in zip(samples[::2], samples[1::2], strict=True))
    return Times(min(samples), statistics.median(samples), rounds)


def ratio(slow: Times, fast: Times) -> float:
    """slow / fast: the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(slow.rounds, fast.rounds, strict=True))


def best_ratio(slow: Times, fast: Times) -> float:
    """slow / fast: the ratio of the two fastest samples."""
    return slow.best / fast.best


def geometric_mean(values: list[float]) -> float:
    """The mean for ratios: of 2 and 1/2 it is 1."""
    return math.exp(statistics.fmean(map(math.log, values)))


def machine_limits(dtype: Any) -> Limits:
    """Measure the rate of a square matrix product, and the bandwidth of a copy far larger than any cache."""
    big = jax.default_backend() != "cpu"
    n, elements = (8192, 2**28) if big else (1536, 2**26)
    matrix = jnp.ones((n, n), dtype)
    product = jax.jit(jnp.matmul)
    rate = 2 * n**3 / _fastest(lambda: product(matrix, matrix))
    # Written in place, so that no page of memory is fresh: the first touch of a page costs more than its copy.
    array = [jnp.ones(elements, jnp.float32)]
    flip = jax.jit(jnp.negative, donate_argnums=0)

    def flip_in_place() -> Any:
        array[0] = flip(array[0])
        return array[0]

    return Limits(rate, 2 * array[0].nbytes / _fastest(flip_in_place))


def _fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of some calls."""
    jax.block_until_ready(call())
    return min(sample(call, 1) for _ in range(10))
