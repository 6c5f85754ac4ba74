"""The examples, run as a user runs them: as programs, by their output, their files and their exit status."""

import gzip
import os
import re
import runpy
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

import jaxbp

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(EXAMPLES), os.environ.get("PYTHONPATH", "")]),
    "COLUMNS": "100",
}
IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


@pytest.fixture(scope="module", autouse=True)
def shared_compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Programs that several of the runs compile are compiled once."""
    ENVIRONMENT["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.getbasetemp().parent / "compiled")
    ENVIRONMENT["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    ENVIRONMENT["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder` and wait for it."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def idx_bytes(array: np.ndarray, magic: int | None = None) -> bytes:
    """An array of bytes as the contents of an idx file."""
    header = struct.pack(f">{1 + array.ndim}I", magic or 0x0800 + array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """A folder of 480 training and 120 test digits in MNIST's four files."""
    images, labels = load_digits(return_X_y=True)
    images = (images * 255 / 16).reshape(-1, 8, 8)
    folder = tmp_path / "mnist"
    folder.mkdir()
    parts = images[:480], labels[:480], images[480:600], labels[480:600]
    for name, part in zip(IDX_FILES, parts, strict=True):
        (folder / name).write_bytes(gzip.compress(idx_bytes(part)))
    return folder


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run an example in this process, which has imported everything already: status, output and errors."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(example: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{example}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_article_agrees_on_every_value(tmp_path: Path) -> None:
    result = run_python(tmp_path, str(EXAMPLES / "article.py"))
    assert result.returncode == 0, result.stderr
    assert "19 of 19 examples agree" in result.stdout
    assert "d11 w22 + d12 w21 + d21 w12 + d22 w11" in result.stdout
    assert "DISAGREES" not in result.stdout


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "spoil", "wrong"),
    [
        ("rot180", lambda right: lambda kernel: kernel, "the same as delta (full) rot180(w)"),
        ("conv_kernel_grad", lambda right: lambda *a, **k: 2 * right(*a, **k), "dw12"),
        ("upsample", lambda right: lambda *a, **k: 1.0000002 * right(*a, **k), "upsample 1 2 3 4"),
    ],
    ids=["rot180", "conv_kernel_grad", "upsample"],
)
def test_article_finds_a_mistake(run_here, monkeypatch: pytest.MonkeyPatch, name: str, spoil, wrong: str) -> None:
    monkeypatch.setattr(jaxbp, name, spoil(getattr(jaxbp, name)))
    status, out, _ = run_here("article")
    assert status == 1
    assert re.search(rf"^{re.escape(wrong)}.*DISAGREES$", out, re.MULTILINE)


def test_by_hand_agrees_with_jax_grad(tmp_path: Path) -> None:
    result = run_python(tmp_path, str(EXAMPLES / "by_hand.py"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every gradient agrees to 16 eps" in result.stdout
    names = re.findall(r"^(\w+\.\w+|images) +\(.*\) +\S+e\S+ +[\d.]+ +[\d.]+$", result.stdout, re.MULTILINE)
    layers = ("conv1", "conv2", "dense")
    assert names == [f"{layer}.{part}" for layer in layers for part in ("bias", "kernel")] + ["images"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["conv_kernel_grad", "max_pool_grad"])
def test_by_hand_finds_a_mistake(run_here, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    right = getattr(jaxbp, name)
    monkeypatch.setattr(jaxbp, name, lambda *a, **k: 1.001 * right(*a, **k))
    status, out, _ = run_here("by_hand")
    assert status == 1
    assert "SOME DIFFER by more than 16 eps" in out


@pytest.mark.exhaustive
def test_gauss_newton_learns_and_agrees(tmp_path: Path) -> None:
    result = run_python(tmp_path, str(EXAMPLES / "gauss_newton.py"), "--steps", "6")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = re.findall(r"^ +(\d+) +([\d.]+) +[\d.]+ +([\d.]+) %$", result.stdout, re.MULTILINE)
    assert [int(step) for step, _, _ in rows] == [1, 2, 3, 4, 5, 6]
    assert float(rows[-1][1]) < float(rows[0][1]) / 2 and float(rows[-1][2]) >= 75
    assert "every product agrees to 256 eps" in result.stdout
    assert len(re.findall(r"^\w+\.\w+ .* eps$", result.stdout, re.MULTILINE)) == 6


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["dense", "max_pool"])
def test_gauss_newton_finds_a_mistake(run_here, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    right = getattr(jaxbp, name)
    monkeypatch.setattr(jaxbp, name, lambda *a, **k: 1.001 * right(*a, **k))
    status, out, _ = run_here("gauss_newton", "--steps", "1")
    assert status == 1
    assert "SOME DIFFER by more than 256 eps" in out


def test_gauss_newton_refuses_no_steps(run_here) -> None:
    status, out, err = run_here("gauss_newton", "--steps", "0")
    assert status == 2 and out == ""
    assert "--steps must be 1 or more, but got 0" in err


@pytest.mark.exhaustive
def test_train_digits_learns_and_compares_both_rules(tmp_path: Path) -> None:
    result = run_python(tmp_path, str(EXAMPLES / "train_digits.py"), "--epochs", "6", "--seed", "1")
    assert result.returncode == 0, result.stderr
    by_hand, automatic = re.search(r"test accuracy +([\d.]+) % +([\d.]+) %", result.stdout).groups()
    assert float(by_hand) >= 97 and float(automatic) >= 97
    assert re.search(r"seconds per epoch +\d+\.\d+ +\d+\.\d+", result.stdout)
    differences = [float(eps) for eps in re.findall(r"([\d.]+) eps$", result.stdout, re.MULTILINE)]
    assert len(differences) == 7 and max(differences) < 64
    assert re.search(r"epoch 6/6 .*loss [\d.]+, accuracy +[\d.]+ %, [\d,]+ images/s", result.stderr)
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["digits.png"]


@pytest.mark.exhaustive
def test_check_a_pallas_kernel_finds_the_lost_rows(tmp_path: Path) -> None:
    result = run_python(tmp_path, str(EXAMPLES / "check_a_pallas_kernel.py"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "index 16:19 along axis 0 of the output does not reach weight: a tile's edge" in result.stdout
    assert "WRONG: case 2, case 3 (2 of 4 cases)" in result.stdout and "ok: all 4 cases" in result.stdout


@pytest.mark.exhaustive
def test_train_digits_is_seeded(tmp_path: Path, idx_folder: Path) -> None:
    runs = "for seed in '556': sys.argv[1:] = '--data', 'mnist', '--epochs', '1', '--seed', seed; train_digits.main()"
    result = run_python(tmp_path, "-c", f"import sys, train_digits\n{runs}")
    first, same, other = re.findall(r"last epoch's loss.*", result.stdout)
    assert first == same != other


@pytest.mark.exhaustive
def test_train_digits_reads_idx_files(tmp_path: Path, idx_folder: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    result = run_python(
        tmp_path, str(EXAMPLES / "train_digits.py"),
        "--data", str(idx_folder), "--epochs", "8", "--out", str(pictures),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "mnist: 480 images to learn from, 120 to test" in result.stdout
    assert float(re.search(r"test accuracy +([\d.]+) %", result.stdout).group(1)) >= 80
    assert (pictures / "digits.png").is_file()


def cut(content: bytes) -> bytes:
    """All but the last bytes of a compressed file."""
    return content[:-20]


def shorter(content: bytes) -> bytes:
    """A whole compressed file of an idx file that lacks its last value."""
    return gzip.compress(gzip.decompress(content)[:-1])


DIGIT = np.zeros((1, 8, 8))
WRONG_FILES = [
    (0, lambda _: None, "missing train-images-idx3-ubyte.gz"),
    (0, cut, "truncated or damaged gzip file"),
    (3, shorter, "the header promises 120 bytes, the file holds 119"),
    (2, lambda _: b"\x89PNG\r\n", "Not a gzipped file"),
    (2, lambda _: b"", "0 bytes, too short for the 16-byte idx header"),
    (0, lambda _: gzip.compress(idx_bytes(DIGIT, 0x0D03)), "magic number 0x00000d03, expected 0x00000803"),
    (1, lambda _: gzip.compress(idx_bytes(DIGIT)), "magic number 0x00000803, expected 0x00000801"),
    (1, lambda _: gzip.compress(idx_bytes(np.zeros(479))), "holds 480 images but .* holds 479 labels"),
    (3, lambda _: gzip.compress(idx_bytes(np.arange(120))), "label 119 at position 119, expected 0 to 9"),
    (2, lambda _: gzip.compress(idx_bytes(np.zeros((120, 7, 9)))), r"\(8, 8\), the test images \(7, 9\)"),
]


@pytest.mark.parametrize(("file", "spoil", "message"), WRONG_FILES)
def test_train_digits_refuses_wrong_files(
    run_here, tmp_path: Path, idx_folder: Path, file: int, spoil, message: str
) -> None:
    path = idx_folder / IDX_FILES[file]
    content = spoil(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run_here("train_digits", "--data", idx_folder, "--out", tmp_path)
    assert status == 2 and out == ""
    assert re.fullmatch(rf"train_digits: .*{message}.*\n", err)
    assert sorted(tmp_path.rglob("*")) == before


def test_train_digits_refuses_images_too_small_to_pool(run_here, tmp_path: Path, idx_folder: Path) -> None:
    for file, count in ((0, 480), (2, 120)):
        (idx_folder / IDX_FILES[file]).write_bytes(gzip.compress(idx_bytes(np.zeros((count, 3, 8)))))
    status, _, err = run_here("train_digits", "--data", idx_folder, "--out", tmp_path)
    assert status == 2
    assert "the images are (3, 8), the two pools need 4x4 or larger" in err


def test_train_digits_refuses_empty_files(run_here, tmp_path: Path, idx_folder: Path) -> None:
    (idx_folder / IDX_FILES[2]).write_bytes(gzip.compress(idx_bytes(np.zeros((0, 8, 8)))))
    (idx_folder / IDX_FILES[3]).write_bytes(gzip.compress(idx_bytes(np.zeros(0))))
    status, _, err = run_here("train_digits", "--data", idx_folder, "--out", tmp_path)
    assert status == 2
    assert "t10k-labels-idx1-ubyte.gz: holds no labels" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--epochs", "0"], "--epochs 0: expected 1 or more"),
        (["--seed", "-1"], "--seed -1: expected 0 to 4294967295"),
        (["--out", "nowhere/digits.png"], "--out nowhere/digits.png: there is no folder nowhere"),
        (["--out", "digits.doc"], "--out digits.doc: neither an existing folder nor a picture"),
        pytest.param(
            ["--out", "/proc/digits.png"],
            "--out /proc/digits.png: cannot write in /proc",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody can write"),
        ),
    ],
)
def test_train_digits_refuses_wrong_arguments(
    run_here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run_here("train_digits", *arguments)
    assert status == 2 and out == ""
    assert err.startswith(f"train_digits: {message}") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_train_digits_exits_with_2(tmp_path: Path) -> None:
    result = run_python(tmp_path, str(EXAMPLES / "train_digits.py"), "--data", "nowhere")
    assert result.returncode == 2
    assert result.stderr == "train_digits: nowhere: no such folder\n"
    assert result.stdout == "" and list(tmp_path.iterdir()) == []


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A training that would take far longer than any test waits."""
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "train_digits.py"), "--epochs", "10000"],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process
        process.kill()


@pytest.mark.exhaustive
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_reports_what_was_learnt_so_far(tmp_path: Path, training: subprocess.Popen[str]) -> None:
    process = training
    progress = ""
    while "images/s" not in progress:
        character = process.stderr.read(1)
        assert character, "the program ended by itself"
        progress += character
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert re.search(r"^stopped after step [\d,]+ of 440,000: the results so far$", out, re.MULTILINE)
    assert re.search(r"test accuracy +[\d.]+ % +[\d.]+ %", out)
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["digits.png"]


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_before_the_first_step_writes_nothing(tmp_path: Path, training: subprocess.Popen[str]) -> None:
    process = training
    while "device" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "train_digits: stopped, nothing written" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.exhaustive
def test_backward_rules_learn_and_share_out(tmp_path: Path) -> None:
    result = run_python(tmp_path, str(EXAMPLES / "backward_rules.py"), "--epochs", "5", "--seed", "1")
    assert result.returncode == 0, result.stderr
    percent = {name: float(value) for name, value in re.findall(r"^  (\w[\w ]+?) +([\d.]+) %$", result.stdout, re.M)}
    assert percent["backpropagation"] >= 94 and percent["feedback alignment"] >= 75 > 40 > percent["untrained"]
    angles = re.findall(r"dense +([\d.]+) degrees before, +([\d.]+) after", result.stdout)
    before, after = map(float, angles[0])
    assert after < before - 3
    shared = re.findall(r"LRP, \S+ +(-?[\d.]+) of +(-?[\d.]+)", result.stdout)
    assert len(shared) == 2
    assert all(abs(float(got) - float(given)) <= 0.02 * abs(float(given)) for got, given in shared)
    assert (tmp_path / "backward_rules.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.exhaustive
def test_private_digits_learn_and_agree_with_vmap(tmp_path: Path) -> None:
    result = run_python(tmp_path, str(EXAMPLES / "private_digits.py"), "--epochs", "3", "--out", "norms.png")
    assert result.returncode == 0, result.stdout + result.stderr
    accuracies = [float(value) for value in re.findall(r"epoch +3: +([\d.]+) %", result.stdout)]
    assert len(accuracies) == 2 and min(accuracies) > 40
    assert "noise multiplier 1.1, 33 steps, 8.9 % of the digits in a sample" in result.stdout
    (difference,) = re.findall(r"largest difference: (\S+) of the largest entry", result.stdout)
    assert float(difference) <= 1e-5
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.exhaustive
def test_private_digits_finds_a_mistake(run_here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = jaxbp.clipped_grad

    def wrong(*args, **keywords):
        clipped = right(*args, **keywords)
        return lambda *a: (jax.tree.map(lambda g: 1.001 * g, (found := clipped(*a))[0]), found[1])

    monkeypatch.setattr(jaxbp, "clipped_grad", wrong)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import private_digits

    monkeypatch.setattr(private_digits, "train", lambda *_: pytest.fail("it does not train here"))
    data = private_digits.digits_cnn.load_digits()
    params = private_digits.digits_cnn.init(jax.random.key(0), data.train_images.shape[1:])
    sample = private_digits.draw_sample(np.random.default_rng(0), data)
    assert private_digits.compare(params, sample, 1.0) is False


@pytest.mark.parametrize(
    ("example", "arguments", "message"),
    [
        ("backward_rules", ["--epochs", "0"], "backward_rules: --epochs 0 must be 1 or more"),
        ("backward_rules", ["--out", "rules.doc"], "backward_rules: --out rules.doc"),
        ("private_digits", ["--clip", "0"], "private_digits: --clip 0.0 must be more than 0"),
        ("private_digits", ["--noise", "-1"], "private_digits: --noise -1.0 must be 0 or more"),
    ],
)
def test_rules_and_privacy_refuse_wrong_arguments(run_here, example: str, arguments: list[str], message: str) -> None:
    status, out, err = run_here(example, *arguments)
    assert status == 2 and out == ""
    assert err.startswith(message) and err.count("\n") == 1
