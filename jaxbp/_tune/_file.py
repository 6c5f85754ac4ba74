"""The file of measured plans: merged under a lock, and written whole, so that two processes lose nothing."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._output import require_writable, write_whole
from .._plan._machine import Machine
from .._plan._measured import VERSION, File, Measured, entries, key, machines_of, require_path

# Merging takes milliseconds: a lock that is older belonged to a process that was killed.
STALE_SECONDS = 10.0
WAIT_SECONDS = 60.0


def require_plans(file: File) -> None:
    """Refuse a file that cannot be written, or that holds something else."""
    require_path(file)
    folder = os.path.dirname(os.path.abspath(file))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{os.fspath(file)}: there is no folder {folder}")
    require_writable("the file of plans", file)
    _content(file)


def plans_of(file: File, here: Machine) -> dict[str, Measured]:
    """What the file holds for a machine, by the sums' keys."""
    for entry in _content(file)["machines"]:
        if all(entry[name] == fact for name, fact in here._asdict().items()):
            return dict(entries(entry["plans"]))
    return {}


def merge(file: File, here: Machine, found: dict[str, Measured]) -> None:
    """Add what was measured on a machine, by the sums' keys; what else the file holds stays as it is."""
    path = os.path.realpath(file)
    with _locked(f"{path}.lock"):
        content = _content(path)
        entry = _entry(content["machines"], here)
        known = {key(one["sum"]): one for one in entry["plans"]}
        known |= {name: {"sum": json.loads(name), **measured._asdict()} for name, measured in found.items()}
        entry["plans"] = [known[name] for name in sorted(known)]
        text = _text(content)
        write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _content(file: File) -> dict[str, Any]:
    """What the file holds; nothing yet where there is none, or an empty one."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(file)} is no file of plans: {error}") from None
    if not text:
        return {"version": VERSION, "machines": []}
    machines_of(file, text)
    return json.loads(text)


def _entry(machines: list[dict[str, Any]], here: Machine) -> dict[str, Any]:
    """A machine's part of the file, made where there is none."""
    facts = here._asdict()
    for entry in machines:
        if all(entry[name] == fact for name, fact in facts.items()):
            return entry
    machines.append({**facts, "plans": []})
    return machines[-1]


def _text(content: dict[str, Any]) -> str:
    """JSON with one line for each plan."""
    machines = []
    for entry in content["machines"]:
        facts = [f"      {json.dumps(name)}: {json.dumps(fact)}" for name, fact in entry.items() if name != "plans"]
        lines = ",\n".join(f"        {json.dumps(plan)}" for plan in entry["plans"])
        machines.append("    {\n" + ",\n".join([*facts, f'      "plans": [\n{lines}\n      ]']) + "\n    }")
    others = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items() if name != "machines"]
    listed = '  "machines": [\n' + ",\n".join(machines) + "\n  ]"
    return "{\n" + ",\n".join([*others, listed]) + "\n}\n"


@contextmanager
def _locked(lock: str) -> Iterator[None]:
    """One process at a time. A file that only one can create works on every disk, also between machines."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            _remove_if_stale(lock)
        if time.monotonic() > end:
            raise TimeoutError(f"{lock}: another process has held it for {WAIT_SECONDS:.0f} s; if none does, delete it")
        time.sleep(0.01)
    try:
        yield
    finally:
        os.unlink(lock)


def _remove_if_stale(lock: str) -> None:
    """Take away the lock of a process that was killed."""
    try:
        if time.time() - os.stat(lock).st_mtime > STALE_SECONDS:
            os.unlink(lock)
    except FileNotFoundError:
        pass
