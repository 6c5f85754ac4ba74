"""The commands and the examples as programs: Ctrl-C, files that cannot be written, wrong input, every op by name."""

import argparse
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import jaxbp
from jaxbp import __main__ as command_line
from jaxbp import _bench, _interrupt, _output
from jaxbp._bench import _measure
from jaxbp._compare import _command

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if "def main(" in path.read_text())
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
POOLS = ["--filter", "^average pool:", "--seconds", "2"]
QUICK = ["--filter", "global average pool", "--seconds", "0"]
posix = pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")

RULE = """
import gc, os, signal, sys, threading, time
import jax
import jax.numpy as jnp

def press():
    os.kill(os.getpid(), signal.SIGINT)

@jax.custom_vjp
def square(x):
    return x * x

square.defvjp(lambda x: (x * x, x), lambda x, delta: (2 * x * delta,))
"""


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start Python in a folder."""
    return subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(folder: Path, *words: str) -> tuple[int, str, str]:
    """Status, output and errors of Python's run in a folder."""
    with start(folder, *words) as process:
        try:
            out, err = process.communicate(timeout=200)
        finally:
            process.kill()
    return process.returncode, out, err


def until(process: subprocess.Popen[str], words: str) -> str:
    """What a program prints, up to a line with these words."""
    lines = []
    while not lines or words not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], f"it ended by itself: {process.stderr.read()}"
    return "".join(lines)


# --------------------------------------------------------------------------------------------------- Ctrl-C

MOMENTS = {
    "while a module is imported": "press(); time.sleep(99)",
    "twice": "press(); press(); time.sleep(99)",
    "inside a garbage collection": """
        gc.callbacks.append(lambda *_: press())
        gc.collect()
        time.sleep(99)
        """,
    "inside a callback of JAX": """
        def inside(x):
            press()
            return x
        x = jax.pure_callback(inside, jax.ShapeDtypeStruct((), jnp.float32), jnp.float32(1))
        jax.block_until_ready(x)
        time.sleep(99)
        """,
    "while XLA compiles on another thread": """
        def long(x):
            for _ in range(300):
                x = jnp.sort(jnp.sin(x) @ x)
            return x
        x = jnp.ones((32, 32))
        threading.Thread(target=lambda: jax.jit(long)(x)).start()
        time.sleep(1)
        press()
        time.sleep(99)
        """,
    "while the main thread is inside JAX": """
        threading.Timer(1, press).start()
        jax.block_until_ready(jax.jit(lambda x: jax.lax.fori_loop(0, 10**9, lambda _, y: jnp.sin(y), x))(jnp.ones(999)))
        """,
    "where every exception is caught": """
        while True:
            try:
                press()
                time.sleep(99)
            except BaseException:
                pass
        """,
}


@pytest.mark.sampled(3)
@posix
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_is_one_line_and_status_130(tmp_path, moment):
    (tmp_path / "mine.py").write_text(RULE + textwrap.dedent(MOMENTS[moment]))
    assert finished(tmp_path, "-m", "jaxbp", "compare", "mine.py:square", "--shape", "3") == (
        130,
        "",
        "jaxbp: interrupted\n",
    )


@pytest.mark.exhaustive
@posix
def test_bench_keeps_what_it_measured(tmp_path):
    (tmp_path / "some.json").write_text("old")
    with start(tmp_path, "-m", "jaxbp", "bench", *POOLS, "--json", "some.json", "--plot", "some.png") as process:
        printed = until(process, "average pool")
        assert (tmp_path / "some.json").read_text() == "old"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "geometric means" in out
    count, total = re.fullmatch(r"jaxbp: interrupted after (\d+) of (\d+)\n", err).groups()
    names = [case["name"] for case in json.loads((tmp_path / "some.json").read_text())["cases"]]
    assert 1 <= len(names) == int(count) < int(total)
    assert names[0] in printed
    assert sorted(os.listdir(tmp_path)) == ["some.json", "some.png"]


@pytest.mark.exhaustive
@posix
def test_compare_keeps_what_it_compared(tmp_path):
    with start(tmp_path, "-m", "jaxbp", "compare", "relu", "conv", "--json", "some.json") as process:
        until(process, "ok")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "jaxbp: interrupted\n"
    assert json.loads((tmp_path / "some.json").read_text())[0]["ok"] is True


@posix
def test_ctrl_c_leaves_no_half_written_file(tmp_path):
    code = """
        import os, signal, sys, time
        from jaxbp import _interrupt, _output
        _interrupt.watch("me")
        def half(path):
            path.write_text("half")
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(99)
        _output.write_whole("whole.txt", half)
        """
    (tmp_path / "whole.txt").write_text("old")
    assert finished(tmp_path, "-c", textwrap.dedent(code)) == (130, "", "me: interrupted\n")
    assert (tmp_path / "whole.txt").read_text() == "old" and len(os.listdir(tmp_path)) == 1


@posix
def test_what_must_not_be_disturbed_is_not(tmp_path):
    code = """
        import os, signal, time
        from jaxbp import _interrupt
        _interrupt.watch("me")
        with _interrupt.undisturbed:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
            print("done")
        time.sleep(99)
        """
    assert finished(tmp_path, "-c", textwrap.dedent(code)) == (130, "done\n", "me: interrupted\n")


@posix
def test_nobody_who_reads_no_more_holds_it_up(tmp_path):
    """A pager that is full of output, for one."""
    code = """
        import threading
        from jaxbp import _interrupt
        _interrupt.SECONDS = 0.5
        _interrupt.watch("me")
        threading.Thread(target=lambda: print("x" * 10**6, flush=True)).start()
        import time
        time.sleep(0.5)
        print("now", file=__import__("sys").stderr, flush=True)
        time.sleep(99)
        """
    with start(tmp_path, "-c", textwrap.dedent(code)) as process:
        assert process.stderr.readline() == "now\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == "me: interrupted\n"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("way", ["a program", "-m of a package", "-m pytest"])
def test_importing_the_package_touches_no_signal(tmp_path, way):
    # In a background process it may be ignored from the start.
    now = "signal.getsignal(signal.SIGINT)"
    code = f"import signal; before = {now}\nimport jaxbp, jaxbp.__main__\nprint({now} is before)\n"
    for name in ("program.py", "test_program.py", "package/__init__.py", "package/__main__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    words = {
        "a program": ["program.py", "jaxbp"],
        "-m of a package": ["-m", "package", "-m", "jaxbp"],
        "-m pytest": ["-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "test_program.py"],
    }
    _, out, err = finished(tmp_path, *words[way])
    assert "True" in out and "False" not in out, err


@pytest.mark.parametrize(
    ("original", "arguments", "command"),
    [
        ("python -m jaxbp bench", 1, True),
        ("python -X dev -mjaxbp", 0, True),
        ("python -Im jaxbp compare -m jaxbp", 3, True),
        ("python -Imjaxbp explain conv", 2, True),
        ("python -m jaxbp.__main__ bench", 1, True),
        ("python -m pytest jaxbp", 1, False),
        ("python -m jaxbpx", 0, False),
        ("python -m program -m jaxbp", 2, False),
    ],
)
def test_only_python_m_jaxbp_is_a_command(original, arguments, command):
    words = original.split()
    seen = ["-m", *words[len(words) - arguments :]]
    assert _interrupt._is_command(seen, words) is command
    assert not _interrupt._is_command(["program.py", *seen[1:]], words)
    assert not _interrupt._is_command(seen, []) and not _interrupt._is_command([], words)


# ------------------------------------------------------------------------------------------------- examples


@pytest.mark.sampled(3)
@posix
@pytest.mark.parametrize("name", EXAMPLES)
def test_ctrl_c_ends_an_example(tmp_path, name):
    """While it imports JAX, or a little later."""
    with start(tmp_path, "-X", "importtime", str(ROOT / "examples" / f"{name}.py")) as process:
        while "jaxlib" not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
        time.sleep(EXAMPLES.index(name) % 2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    lines = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert process.returncode == 130 and lines == [f"{name}: interrupted"]
    assert os.listdir(tmp_path) == []


@pytest.mark.exhaustive
@posix
def test_ctrl_c_ends_every_process(tmp_path):
    script = str(ROOT / "examples" / "data_parallel.py")
    with start(tmp_path, script, "--processes", "2", "--devices", "2", "--steps", "100000") as process:
        until(process, "process 1 of 2")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        for pid in (*workers, process.pid):
            os.kill(pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "data_parallel: interrupted\n"
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_helps(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    module = importlib.import_module(name)
    for words, status in ((["--help"], 0), (["--no-such-option"], 2)):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        with pytest.raises(SystemExit) as ended:
            module.main()
        out, err = capsys.readouterr()
        assert ended.value.code == status
        assert ("usage:" in out and err == "") if status == 0 else "--no-such-option" in err


def test_an_example_refuses_a_picture_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    module = importlib.import_module("check_your_own_rule")
    for file, message in ((f"{tmp_path}/no/a.png", "there is no folder"), (f"{tmp_path}/a.xyz", "cannot be drawn")):
        monkeypatch.setattr(sys, "argv", ["check_your_own_rule.py", "--plot", file])
        assert module.main() == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"check_your_own_rule: --plot {file}: ") and message in err
        assert err.count("\n") == 1


# ---------------------------------------------------------------------------------------------------- files

COMMANDS = {
    "bench --json": ["bench", *QUICK, "--json"],
    "bench --plot": ["bench", *QUICK, "--plot"],
    "compare --json": ["compare", "relu", "--json"],
    "explain --html": ["explain", "conv", "--html"],
    "explain --png": ["explain", "conv", "--png"],
    "explain --gif": ["explain", "conv", "--gif"],
}


@pytest.fixture
def nothing_is_measured(monkeypatch):
    """Whatever would take time fails instead."""

    def refuse(*args, **keywords):
        raise AssertionError("it was measured in vain")

    monkeypatch.setattr(_bench, "warm_up", refuse)
    monkeypatch.setattr(_command, "compare", refuse)
    monkeypatch.setattr("jaxbp._explain.drawn_case", refuse)


@pytest.mark.parametrize("option", COMMANDS)
def test_a_file_that_cannot_be_written_is_refused_first(option, tmp_path, capsys, nothing_is_measured):
    suffix = {"json": ".json", "plot": ".png"}.get(option.split("--")[1], "." + option.split("--")[1])
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / "file").write_text("old")
    wrong = {
        f"folder{suffix}": "not of a folder",
        f"no/such{suffix}": "there is no folder",
        f"file/a{suffix}": "there is no folder",
        f"{'a' * 300}{suffix}": "File name too long",
    }
    files = [(str(tmp_path / name), message) for name, message in wrong.items()]
    if os.path.exists("/proc/self"):
        files.append((f"/proc/a{suffix}", "cannot write in /proc"))
    for file, message in files:
        assert command_line.main([*COMMANDS[option], file]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and message in err, err
    assert sorted(os.listdir(tmp_path)) == ["file", f"folder{suffix}"]


def test_an_empty_name_is_no_file(capsys, nothing_is_measured):
    for option in ("bench --json", "bench --plot", "compare --json"):
        assert command_line.main([*COMMANDS[option], ""]) == 2
        assert "give the name of a file" in capsys.readouterr().err


def test_permissions_are_looked_at(tmp_path, monkeypatch):
    """As somebody who is not root."""

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.json").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        with pytest.raises(ValueError, match=r"--json .*a\.json: the file is write-protected"):
            _output.require_writable("--json", tmp_path / "a.json")
    monkeypatch.setattr(_output.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"--json .*b\.json: cannot write in .*: Permission denied"):
        _output.require_writable("--json", tmp_path / "b.json")


def test_looking_leaves_the_file_as_it_is(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    before = path.stat()
    _output.require_writable("--json", path)
    assert path.stat() == before and os.listdir(tmp_path) == ["a.json"]


def test_a_link_and_a_device_stay_what_they_are(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    _output.require_writable("--json", link)
    _output.write_whole(link, lambda path: path.write_text("new"))
    assert link.is_symlink() and target.read_text() == "new"
    if os.path.exists(os.devnull) and os.name != "nt":
        _output.require_writable("--json", os.devnull)
        _output.write_whole(os.devnull, lambda path: path.write_text("new"))
        assert Path(os.devnull).is_char_device()


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "there").write_text("")
    with pytest.raises(NotADirectoryError, match=r"Not a directory: '.*there/file\.html'$"):
        _output.write_whole(tmp_path / "there" / "file.html", lambda path: path.write_text("new"))


@pytest.fixture
def quick(monkeypatch):
    """Leave out what measures the machine."""
    monkeypatch.setattr(_bench, "machine_limits", lambda dtype: _measure.Limits(1e11, 1e10))
    monkeypatch.setattr(_bench, "warm_up", lambda: None)
    monkeypatch.setattr(_measure, "SHORTEST_SAMPLE", 0.0)


def fail(*args):
    """A disk that has become full."""
    raise OSError(28, "No space left on device")


@pytest.mark.exhaustive
def test_what_cannot_be_written_in_the_end_is_printed(quick, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(_bench, "write_whole", fail)
    monkeypatch.setattr(_command, "write_whole", fail)
    for words, entry in (
        (COMMANDS["bench --json"], '"name": "global average pool'),
        (COMMANDS["compare --json"], "rows"),
    ):
        assert command_line.main([*words, str(tmp_path / "a.json")]) == 2
        out, err = capsys.readouterr()
        assert entry in out
        assert err == (
            f"jaxbp {words[0]}: --json {tmp_path / 'a.json'}: No space left on device, so it is printed instead\n"
        )
    assert command_line.main([*COMMANDS["bench --plot"], str(tmp_path / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert "geometric means" in out and err.endswith("a.png: No space left on device\n")


def test_what_was_measured_is_kept_whatever_ends_it(quick, monkeypatch, tmp_path):
    measure = _bench.measure_case
    done = []

    def measure_once(case, **options):
        if done:
            raise RuntimeError
        done.append(case.name)
        return measure(case, **options)

    monkeypatch.setattr(_bench, "measure_case", measure_once)
    with pytest.raises(RuntimeError):
        command_line.main([*COMMANDS["bench --json"], str(tmp_path / "a.json")])
    assert [case["name"] for case in json.loads((tmp_path / "a.json").read_text())["cases"]] == done


@posix
def test_a_reader_that_leaves_early_costs_no_results(tmp_path):
    with start(tmp_path, "-m", "jaxbp", "compare", "relu", "tanh", "--json", "some.json") as process:
        until(process, "relu")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
    assert json.loads((tmp_path / "some.json").read_text())[0]["ok"] is True


def test_numbers_that_json_does_not_know_are_text():
    from jaxbp._bench._result import Pair, Result, to_dict

    result = Result("a case", "dense", {"forward + gradients": {}}, errors=Pair(float("inf"), float("nan")))
    assert to_dict(result)["errors_in_eps"] == {"manual": "inf", "automatic": "nan"}


def test_a_plot_without_a_suffix_gets_one(tmp_path):
    pytest.importorskip("matplotlib")
    assert _output.picture_file(f"{tmp_path}/a") == f"{tmp_path}/a.png"
    assert _output.picture_file("a.svg") == "a.svg"
    with pytest.raises(ValueError, match=r"--plot .*: give the name of a file, not of a folder"):
        _output.require_picture("--plot", str(tmp_path))
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ValueError, match=r"--plot .*a\.png: give the name of a file, not of a folder"):
        _output.require_picture("--plot", f"{tmp_path}/a")


# ------------------------------------------------------------------------------------------------- compare


def compare(*words: str) -> int:
    """Run the command in this process."""
    parser = argparse.ArgumentParser()
    _command.add_arguments(parser)
    return _command.run(parser.parse_args(list(words)))


def test_wrong_numbers_and_words_are_one_line(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(RULE)
    for words, message in (
        (["compare", "relu", "--seed", "-1"], "jaxbp compare: --seed -1 must be 0 or more"),
        (["compare", "relu", "--transforms", "jot"], "jaxbp compare: --transforms 'jot' is not known; use jit, vmap, "),
        (["compare", f"{tmp_path}/mine.py:square", "--shape", "9" * 13], "jaxbp compare: Unable to allocate "),
        (["explain", "conv", "--input", "9999999"], "jaxbp explain: Unable to allocate "),
    ):
        assert command_line.main(words) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith(message)


# Every op that has a rule has a twin without it.
OPS = sorted(
    name for name in vars(jaxbp) if not name.startswith("_") and callable(getattr(jaxbp.automatic, name, None))
)


def test_every_op_is_known():
    assert {"max_unpool", "lp_pool", "conv_transpose", "adaptive_max_pool"} < set(OPS)
    assert {case.op for case in _command.CASES} == set(OPS)


@pytest.mark.parametrize(
    "op",
    [op if op in ("conv", "max_unpool", "lp_pool") else pytest.param(op, marks=pytest.mark.exhaustive) for op in OPS],
)
def test_every_op_can_be_named(op, capsys):
    assert compare(op, "--transforms", "jit") == 0
    assert re.search(rf"^{op}\(.* ok$", capsys.readouterr().out, re.MULTILINE)


WRONG_FILES = {
    "a mistake of syntax": ("import jax\ndef f(x)\n    return x\n", r"mine.py:2: SyntaxError: "),
    "an exception": ("x = 1\ny = x / 0\n", r"mine.py:2: ZeroDivisionError: division by zero"),
    "something that is not installed": ("\n\nimport not_there\n", r"mine.py:3: ModuleNotFoundError: .*'not_there'"),
    "an exception inside a library": (
        "import jax.numpy as jnp\n\njnp.zeros(2) @ jnp.zeros(3)\n",
        r"mine.py:3: TypeError: dot_general",
    ),
    "a program that ends": ("import sys\nsys.exit(0)\n", r"mine.py:2: SystemExit: 0"),
    "a neighbour's mistake": ("import neighbour_of_mine\n", r"neighbour_of_mine.py:1: SyntaxError: "),
    "bytes that are no text": (b"x = '\xff'\n", r"mine.py:1: SyntaxError: "),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "module"])
def test_a_wrong_file_is_named_with_its_line(kind, as_file, tmp_path, monkeypatch, capsys):
    text, message = WRONG_FILES[kind]
    (tmp_path / "mine.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "neighbour_of_mine.py").write_text("def (\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "mine", sys)
    monkeypatch.delitem(sys.modules, "mine")
    if not as_file:
        monkeypatch.chdir(tmp_path)
        importlib.invalidate_caches()
    assert compare(f"{tmp_path}/mine.py:f" if as_file else "mine:f", "--shape", "3") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert re.search(rf"^jaxbp compare: cannot import .*: .*{message}", err), err


def test_a_file_is_imported_as_a_program_would_be(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom its_neighbour import square\n"
        "@dataclasses.dataclass\nclass Config:\n    size: int\n"
    )
    (tmp_path / "its_neighbour.py").write_text(RULE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "mine", sys)
    monkeypatch.delitem(sys.modules, "mine")
    assert compare(f"{tmp_path}/mine.py:square", "--shape", "3", "--no-time", "--transforms", "jit") == 0
