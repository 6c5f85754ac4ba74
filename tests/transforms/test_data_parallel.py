"""`examples/data_parallel.py`, run as a user runs it: in one process, and in two that really start."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxbp
from jaxbp import _plan
from jaxbp._plan._machine import machine
from jaxbp._plan._measured import Measured, describe, key
from jaxbp._tune._collect import sums_of
from jaxbp._tune._file import merge

SCRIPT = Path(__file__).parents[2] / "examples" / "data_parallel.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The script's result; its own time limit ends its processes before the one here ends it."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--timeout", "240", *arguments], capture_output=True, text=True, timeout=300
    )


def assert_agreement(result: subprocess.CompletedProcess[str], devices: int) -> None:
    """The report says that everything agrees, and its numbers say so, too."""
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"all {devices} devices ended with the same parameters: yes" in result.stdout
    assert "equal to the single-device run to rounding: yes" in result.stdout
    (difference,) = re.findall(r"largest difference (\S+) of", result.stdout)
    assert float(difference) < 1e-12
    for first, last in re.findall(r"loss (\S+) in the first step, (\S+) in the last", result.stdout):
        assert float(last) < 0.75 * float(first)


@pytest.mark.exhaustive
def test_one_process_with_four_devices() -> None:
    result = run("--devices", "4", "--steps", "30")
    assert_agreement(result, devices=4)
    assert "process 0 of 1: 4 of 4 devices" in result.stdout


@pytest.mark.exhaustive
def test_two_processes_with_two_devices_each() -> None:
    result = run("--devices", "4", "--processes", "2", "--steps", "30")
    assert_agreement(result, devices=4)
    for process in (0, 1):
        assert f"process {process} of 2: 2 of 4 devices" in result.stdout
    digests = re.findall(r"parameters ([0-9a-f]{16})\b", result.stdout)
    assert len(digests) == 2 and digests[0] == digests[1]


def test_the_time_limit_ends_every_process() -> None:
    result = run("--devices", "2", "--processes", "2", "--timeout", "1")
    assert result.returncode == 1
    assert "not finished after 1 s, stopped" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "3", "--processes", "2"], "--devices 3 cannot be shared evenly by --processes 2"),
        (["--devices", "3", "--batch", "64"], "--batch 64 cannot be split evenly over --devices 3"),
        (["--steps", "0"], "--steps must be 1 or more, but got 0"),
        (["--process-id", "0"], "--coordinator and --process-id belong together"),
        (
            ["--coordinator", "127.0.0.1:1234", "--process-id", "2", "--processes", "2"],
            "--process-id 2 is not one of 0 to 1",
        ),
    ],
)
def test_arguments_that_cannot_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import data_parallel

    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as stop:
        data_parallel.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.exhaustive
def test_two_processes_with_the_same_measured_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that no table would choose, for the whole batch, a device's part of it, and the single device."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import digits_cnn

    found = {}
    for batch in (64, 32, 16):
        images = jax.ShapeDtypeStruct((batch, 8, 8, 1), np.float64)
        labels = jax.ShapeDtypeStruct((batch,), np.int64)
        with jax.enable_x64(True):
            params = jax.tree.map(lambda leaf: leaf.astype(np.float64), digits_cnn.init(jax.random.key(0), (8, 8, 1)))
            step = functools.partial(jax.grad(digits_cnn.loss), ops=jaxbp)
            for p in sums_of(step, (params, images, labels), "cpu"):
                table, *others = {str(plan): plan for plan in (_plan.by_table(p), *_plan.candidates(p))}
                found[key(describe(p))] = Measured(others[0], table, 1.0, 2.0)
    here = machine("cpu")
    assert here is not None and len(found) >= 6
    merge(tmp_path / "plans.json", here, found)
    monkeypatch.setenv("JAXBP_PLANS", str(tmp_path / "plans.json"))
    result = run("--devices", "4", "--processes", "2", "--steps", "10")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all 4 devices ended with the same parameters: yes" in result.stdout
    assert "equal to the single-device run to rounding: yes" in result.stdout
    assert "Warning" not in result.stderr
