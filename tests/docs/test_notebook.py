"""The lesson: it runs from top to bottom, and is kept without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "backpropagation.ipynb"
# In a process of its own, with the settings of a reader's JAX.
RUN = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.mark.exhaustive
def test_the_lesson_runs(tmp_path):
    pytest.importorskip("nbclient", reason="the notebook's test needs nbclient and ipykernel")
    done = tmp_path / "done.ipynb"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(NOTEBOOK), str(done)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    outputs = [output for cell in json.loads(done.read_text())["cells"] for output in cell.get("outputs", [])]
    texts = "".join("".join(output.get("text", [])) for output in outputs)
    assert "not rotated (rot180)" in texts and "2 x automatic" in texts and texts.count("ok: all") == 2
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


def test_the_lesson_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert len(cells) > 20
    for cell in cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
