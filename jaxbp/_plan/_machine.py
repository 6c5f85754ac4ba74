"""The machine that plans are measured on: what their speed depends on, besides the sum itself."""

import os
import platform as host
import re
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax

# Of a processor's flags those that the compiler's loops and products depend on.
EXTENSIONS = re.compile(r"^(sse4_2|avx\w*|fma|f16c|amx\w*|asimd\w*|neon|sve\w*|i8mm|bf16)$")


class Machine(NamedTuple):
    """What a measured plan is for: on any other machine another algorithm may be faster."""

    platform: str
    processor: str
    extensions: str
    threads: int
    jaxlib: str


@lru_cache
def machine(platform: str) -> Machine | None:
    """This machine as a platform of programs; None where it has no such device."""
    jaxlib = metadata.version("jaxlib")
    if platform == "cpu":
        return Machine(platform, processor(), extensions(), cores(), jaxlib)
    try:
        device = jax.local_devices(backend=platform)[0]
    except RuntimeError:
        return None
    return Machine(platform, device.device_kind, "", 1, jaxlib)


def cores() -> int:
    """How many cores this process may use: what XLA takes for its threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name."""
    return _of_processor("model name") or host.processor() or host.machine()


def extensions() -> str:
    """The processor's vector extensions, in alphabetical order."""
    flags = (_of_processor("flags") or _of_processor("Features")).split()
    return " ".join(sorted(flag for flag in flags if EXTENSIONS.match(flag)))


def _of_processor(fact: str) -> str:
    """What Linux says of the first processor; empty where nobody says it."""
    try:
        facts = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(rf"^{fact}\s*:\s*(.*)$", facts, re.MULTILINE)
    return found[1] if found else ""
