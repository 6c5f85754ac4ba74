"""explain: the numbers, the text, the page's data, the figures and the command line."""

import argparse
import functools
import json
import os
import re
import shlex
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp
from jaxbp import _explain
from jaxbp._explain._case import make_case, uses, window_of
from jaxbp._explain._examples import article_case, drawn_case
from jaxbp._explain._page import SCRIPTS

GEOMETRIES = {
    "plain": {"padding": "VALID"},
    "same": {"padding": "SAME"},
    "same, even kernel": {"padding": "SAME_LOWER", "kernel": (2, 4)},
    "stride": {"padding": "VALID", "strides": 2},
    "stride and same": {"padding": "SAME", "strides": (2, 3)},
    "stride larger than the kernel": {"padding": "VALID", "strides": 3, "kernel": (2, 1)},
    "dilation": {"padding": "SAME", "kernel_dilation": 2},
    "all at once": {"padding": [(2, 0), (1, 3)], "strides": (2, 1), "kernel_dilation": (1, 2)},
    "negative padding": {"padding": [(-1, 0), (0, -1)]},
    "more padding than the kernel reaches": {"padding": [(2, 1), (1, 2)], "kernel": (1, 2), "size": (5, 4)},
    "one row": {"padding": "VALID", "size": (1, 7), "kernel": (1, 3)},
}


@functools.cache
def conv_case(name):
    """The named geometry with numbers that float32 holds exactly."""
    keywords = dict(GEOMETRIES[name])
    size, kernel = keywords.pop("size", (6, 5)), keywords.pop("kernel", (3, 3))
    rng = np.random.default_rng(3)
    x, w = rng.integers(-5, 6, size), rng.integers(-5, 6, kernel)
    output = make_case("conv", [x, w], keywords=keywords).manual["output"]
    return make_case("conv", [x, w, [2.0]], rng.integers(-5, 6, output.shape), keywords)


def correlate(large, small, step, stride):
    """Slide `small` over `large`, in float64 and loops: an oracle that knows nothing of jaxbp."""
    span = [(n - 1) * d + 1 for n, d in zip(small.shape, step, strict=True)]
    shape = [(n - s) // t + 1 for n, s, t in zip(large.shape, span, stride, strict=True)]
    out = np.zeros(shape)
    for i, j in np.ndindex(*shape):
        for a, b in np.ndindex(*small.shape):
            out[i, j] += float(small[a, b]) * large[i * stride[0] + a * step[0], j * stride[1] + b * step[1]]
    return out


def test_the_article_s_convolution_comes_out_exactly():
    case = article_case("conv")
    assert case.manual["output"].tolist() == [[19, 25], [37, 43]]
    assert case.manual["input_grad"].tolist() == [[0, 19, 25], [38, 144, 118], [74, 197, 129]]
    assert case.manual["kernel_grad"].tolist() == [[308, 432], [680, 804]]
    assert case.manual["before_rotation"].tolist() == [[804, 680], [432, 308]]
    assert case.manual["bias_grad"].tolist() == [124]
    assert case.manual["rotated_kernel"].tolist() == [[3, 2], [1, 0]]
    assert case.manual["padded_delta"].tolist() == [[0, 0, 0, 0], [0, 19, 25, 0], [0, 37, 43, 0], [0, 0, 0, 0]]


def test_the_article_s_pools_come_out_exactly():
    most, mean = article_case("max_pool"), article_case("avg_pool")
    assert most.manual["output"].tolist() == [[5, 7], [13, 15]]
    assert most.manual["input_grad"].tolist() == [[0, 0, 0, 0], [0, 5, 0, 7], [0, 0, 0, 0], [0, 13, 0, 15]]
    assert most.manual["winners"].tolist() == [[3, 3], [3, 3]]
    assert mean.manual["output"].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    quarters = np.kron([[0.625, 1.125], [2.625, 3.125]], np.ones((2, 2)))
    assert np.array_equal(mean.manual["input_grad"], quarters)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_picture_of_a_convolution_is_the_gradient(name):
    case = conv_case(name)
    window, manual, given = window_of(case), case.manual, case.given
    slid = correlate(manual["padded_delta"], manual["rotated_kernel"], window.dilation, (1, 1))
    assert np.array_equal(slid, manual["input_grad"])
    assert np.array_equal(manual["before_rotation"][::-1, ::-1], manual["kernel_grad"])
    laid = correlate(manual["padded_x"], given["delta"], window.strides, window.dilation)
    rows, columns = given["kernel"].shape
    assert np.array_equal(laid[:rows, :columns], manual["kernel_grad"])
    assert np.array_equal(
        correlate(manual["padded_x"], given["kernel"], window.dilation, window.strides) + 2, manual["output"]
    )
    for pixel in np.ndindex(*given["x"].shape):
        total = sum(given["delta"][use.output] * given["kernel"][use.place] for use in uses(window, pixel))
        assert total == manual["input_grad"][pixel]
    for key, value in case.automatic.items():
        assert np.array_equal(value, manual[key]), key


@pytest.mark.parametrize("name", GEOMETRIES)
def test_weights_are_met_in_the_reverse_order_of_the_kernel(name):
    case = conv_case(name)
    for pixel in np.ndindex(*case.given["x"].shape):
        met = [use.place for use in uses(window_of(case), pixel)]
        assert met == sorted(met, reverse=True)
        assert [use.output for use in uses(window_of(case), pixel)] == sorted(
            use.output for use in uses(window_of(case), pixel)
        )


@pytest.mark.parametrize("op", _explain.OPS)
@pytest.mark.parametrize("seed", range(3))
def test_jaxbp_and_jax_agree_on_every_drawn_case(op, seed):
    case = drawn_case(op, seed=seed)
    assert set(case.automatic) <= set(case.manual)
    for key, value in case.automatic.items():
        np.testing.assert_allclose(case.manual[key], value, rtol=1e-6, err_msg=key)


def test_text_of_the_article_s_case():
    x, kernel = np.arange(9).reshape(3, 3), np.arange(4).reshape(2, 2)
    lines = str(jaxbp.explain(jaxbp.conv, x, kernel, padding="VALID")).splitlines()
    text = "\n".join(lines)
    assert " 0 19 25  0    1 0          38 144 118" in lines
    assert "  z11 used it through w22: d11 w22 = 19 * 3 = 57" in lines
    assert "  dJ/dx22 = 57 + 50 + 37 + 0 = 144" in lines
    assert "The weights read w22 w21 w12 w11: the kernel from its last entry to its first." in text
    assert " 0 19 25  0    432 308               680 804" in lines
    assert "Gradient of the bias: the sum of delta = 124" in lines
    assert lines[-1] == "jaxbp's rule and JAX's automatic VJP give the same numbers, bit for bit."


def test_text_says_so_when_the_two_rules_disagree():
    case = article_case("conv")
    wrong = case._replace(automatic=case.automatic | {"kernel_grad": case.automatic["kernel_grad"] + 1})
    text = str(_explain.Explanation(wrong, (1, 1), ()))
    assert text.endswith("differ by at most: kernel_grad 1.0e+00.")


def test_text_of_a_border_pixel_a_tie_and_an_unused_pixel():
    x, kernel = np.arange(9).reshape(3, 3), np.arange(4).reshape(2, 2)
    corner = str(jaxbp.explain("conv", x, kernel, padding="VALID", pixel=(0, 0)))
    assert corner == str(jaxbp.explain("conv", x, kernel, padding="VALID", cell=(0, 0)))
    assert "The weights read w11:" in corner and "padded delta has zeros there" in corner
    unused = str(jaxbp.explain("conv", x, kernel, padding="VALID", strides=2, pixel=(2, 2)))
    assert "No output used it: its gradient is 0." in unused
    tie = str(jaxbp.explain("max_pool", np.ones((2, 2)), window_shape=2, pixel=(0, 1)))
    assert "z11 = 1: it equals the maximum, but an earlier pixel won" in tie
    mean = str(
        jaxbp.explain("avg_pool", np.ones((2, 2)), window_shape=2, padding=1, count_include_pad=False, pixel=(0, 0))
    )
    assert "z11: d11 / 1 = 1 / 1 = 1" in mean and "z22: d22 / 4 = 1 / 4 = 0.25" in mean
    dense = str(jaxbp.explain(jaxbp.dense, [[1.0, -2.0]], [[3.0], [4.0]], pixel=(0, 1)))
    assert "dJ/dx12 = (-5)*4 = -20" in dense and "dJ/dw21 = (-2)*(-5) = 10" in dense


def test_channels_and_batch_of_length_one_are_dropped_and_dtypes_are_accepted():
    x, kernel = jnp.arange(9.0).reshape(1, 3, 3, 1).astype(jnp.bfloat16), jnp.arange(4).reshape(2, 2, 1, 1)
    case = jaxbp.explain(jaxbp.conv, x, kernel, padding="VALID").case
    assert case.manual["input_grad"].tolist() == [[0, 19, 25], [38, 144, 118], [74, 197, 129]]


def embedded(page):
    """The data that a page carries."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_carries_jaxbp_s_and_jax_s_numbers_and_nothing_from_outside():
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)
    explanation = jaxbp.explain(jaxbp.conv, x, kernel, strides=(2, 1), padding="SAME")
    page = explanation.html()
    assert len(page.encode()) < 64_000
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bfetch\(|XMLHttpRequest|<link rel=.stylesheet|src=", page)
    data = embedded(page)
    assert data["start"] == "conv" and set(data["cases"]) == set(_explain.OPS)
    for key, value in explanation.case.manual.items():
        np.testing.assert_allclose(data["cases"]["conv"]["manual"][key], np.atleast_2d(value), rtol=1e-6)
    for key, value in explanation.case.automatic.items():
        np.testing.assert_allclose(data["cases"]["conv"]["automatic"][key], np.atleast_2d(value), rtol=1e-6)


def test_the_largest_page_stays_small_and_the_smallest_case_has_one():
    rng = np.random.default_rng(0)
    large = jaxbp.explain("conv", rng.normal(size=(8, 8)), rng.normal(size=(8, 8)), padding="SAME")
    assert len(large.html().encode()) < 64_000
    small = jaxbp.explain("conv", [[2.0]], [[3.0]])
    assert embedded(small.html())["cases"]["conv"]["manual"]["input_grad"] == [[18]]


def test_pool_pages_show_both_pools_of_the_same_numbers():
    data = embedded(jaxbp.explain("avg_pool", np.arange(16).reshape(4, 4), window_shape=(2, 2), strides=2).html())
    assert data["cases"]["max_pool"]["given"]["x"] == data["cases"]["avg_pool"]["given"]["x"]
    assert data["cases"]["max_pool"]["manual"]["output"] == [[5, 7], [13, 15]]


def test_notebooks_show_the_page_in_a_frame():
    shown = jaxbp.explain("conv", [[1.0, 2.0]], [[1.0]])._repr_html_()
    assert shown.startswith("<iframe") and "&lt;!DOCTYPE html&gt;" in shown and "<script" not in shown


def test_the_page_s_files_are_in_the_package():
    folder = _explain.__file__.rsplit("/", 1)[0]
    for name in ("page.html", "page.css", *SCRIPTS):
        with open(f"{folder}/{name}", encoding="utf-8") as file:
            assert len(file.read()) > 1000


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (("softmax", [[1.0]]), {}, TypeError, "op='softmax' cannot be drawn; use conv, max_pool"),
        ((jaxbp.relu, [[1.0]]), {}, TypeError, "op='relu' cannot be drawn"),
        (("conv", [[1.0]]), {}, TypeError, "conv takes x, kernel, bias, but got 1 arrays"),
        (
            ("conv", [[1.0]], [[1.0]]),
            {"feature_group_count": 2},
            TypeError,
            "cannot be drawn with feature_group_count=2",
        ),
        (("max_pool", [[1.0]]), {}, TypeError, "max_pool needs window_shape"),
        (("max_pool", [[1.0]]), {"window_shape": (1,)}, ValueError, "has 1 entries; a matrix has 2"),
        (("conv", np.ones((28, 28)), [[1.0]]), {}, ValueError, r"shape \(28, 28\).*at most 8 x 8"),
        (("conv", np.ones((8, 8)), [[1.0]]), {"padding": 1}, ValueError, r"output has shape \(10, 10\)"),
        (("conv", np.ones((4, 4, 3)), [[1.0]]), {}, ValueError, r"shape \(4, 4, 3\).*one image of one channel"),
        (("conv", [[np.nan]], [[1.0]]), {}, ValueError, "x must hold finite numbers only"),
        (("conv", [[1j]], [[1.0]]), {}, TypeError, "x is complex"),
        (("conv", "abc", [[1.0]]), {}, TypeError, "x must be an array of real numbers, but got str"),
        (("conv", [[1.0]], [[1.0]], [1.0, 2.0]), {}, ValueError, "one output channel has one finite bias"),
        (
            ("conv", [[1.0]], [[1.0]]),
            {"delta": [[1.0, 2.0]]},
            ValueError,
            r"delta has shape \(1, 2\), but the output .* \(1, 1\)",
        ),
        (("conv", [[1.0]], [[1.0]]), {"pixel": (1, 0)}, ValueError, r"pixel=\(1, 0\) lies outside"),
        (("conv", np.ones((2, 2)), np.ones((3, 3))), {"padding": "VALID"}, ValueError, "window spans 3 pixels"),
        (("max_pool", [[1.0]]), {"window_shape": 1, "padding": 1}, ValueError, "wholly in the padding"),
        (("dense", [[1.0]], [[1.0], [2.0]]), {}, ValueError, r"x has shape \(1, 1\) and kernel \(2, 1\)"),
        (("dense", [[1.0]], [[1.0]], [1.0, 2.0]), {}, ValueError, r"bias has shape \(2,\)"),
    ],
)
def test_errors_name_what_was_wrong(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        jaxbp.explain(*arguments, **keywords)


def command(*words):
    """Run the command in this process, as `python -m jaxbp explain` does."""
    parser = argparse.ArgumentParser()
    _explain.add_arguments(parser)
    return _explain.run(parser.parse_args(words))


def test_the_command_prints_the_article_s_case(capsys):
    assert command("conv", "--article") == 0
    assert "dJ/dx22 = 57 + 50 + 37 + 0 = 144" in capsys.readouterr().out


@pytest.mark.parametrize("pixel", ["--pixel", "--cell"])
def test_the_command_draws_the_case_that_was_asked_for(pixel, capsys):
    words = f"conv --input 6 --kernel 2 --stride 2 --padding 1 --dilation 2 --seed 4 {pixel} 1 1"
    assert command(*shlex.split(words)) == 0
    expected = _explain.Explanation(drawn_case("conv", 6, 2, 2, 1, 2, 4), (1, 1), ())
    assert capsys.readouterr().out == f"{expected}\n"
    assert "strides (2, 2), padding ((1, 1), (1, 1)), dilation (2, 2)" in str(expected)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("op", _explain.OPS)
def test_the_command_writes_files(op, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    files = {kind: tmp_path / f"case.{kind}" for kind in ("html", "png", "gif")}
    assert (
        command(op, "--input", "3", *(word for kind, file in files.items() for word in (f"--{kind}", str(file)))) == 0
    )
    assert capsys.readouterr().out.splitlines() == [f"wrote {file}" for file in files.values()]
    assert files["html"].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert files["png"].read_bytes().startswith(b"\x89PNG") and files["gif"].read_bytes().startswith(b"GIF89a")
    assert sorted(tmp_path.iterdir()) == sorted(files.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("conv --input 2", "window spans 3 pixels"),
        ("conv --input 0", "--input 0 must be at least 1"),
        ("conv --seed -1", "--seed -1 must be at least 0"),
        ("conv --input 40", "at most 8 x 8"),
        ("conv --padding EVEN", "padding='EVEN'"),
        ("conv --article --stride 2", "leave out --stride"),
        ("dense --kernel 2", "--kernel means nothing for dense"),
        ("conv --pixel 9 9", "lies outside"),
        ("conv --html case.htm", "must be a file name that ends in .html"),
        ("conv --png nowhere/case.png", "there is no folder 'nowhere'"),
        ("max_pool --padding 3", "wholly in the padding"),
    ],
)
def test_wrong_input_is_one_line_and_status_2_and_writes_nothing(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(*words.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("jaxbp explain: ")
    assert message in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "case.html"
    path.write_text("old", encoding="utf-8")

    def half_write(self, text, encoding):
        with open(self, "w", encoding=encoding) as file:
            file.write(text[:10])
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "write_text", half_write)
    with pytest.raises(OSError, match="disk full"):
        jaxbp.explain("conv", [[1.0]], [[1.0]]).save(path)
    monkeypatch.undo()
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]


def test_save_knows_four_kinds(tmp_path):
    case = jaxbp.explain("conv", [[1.0]], [[1.0]])
    assert case.save(tmp_path / "case.txt").read_text(encoding="utf-8") == f"{case}\n"
    with pytest.raises(ValueError, match=r"must end in .html, .png, .gif or .txt"):
        case.save(tmp_path / "case.pdf")


def test_matplotlib_is_imported_only_for_pictures():
    code = "import sys, jaxbp; jaxbp.explain('conv', [[1.0]], [[1.0]]).html(); print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_figure_shows_the_numbers_and_joins_them_by_label():
    pytest.importorskip("matplotlib")
    case = jaxbp.explain("conv", np.arange(9).reshape(3, 3), np.arange(4).reshape(2, 2), padding="VALID")
    words = [text.get_text() for text in case.figure().axes[0].texts]
    for value in (0, 19, 25, 38, 144, 118, 74, 197, 129):
        assert str(value) in words
    assert words.count("w22") == 4 and words[1].endswith("w22 w21 w12 w11")


@pytest.mark.parametrize("window", [3, 5])
def test_the_windows_that_a_pixel_won_stay_inside_the_pixel(window):
    """Overlapping windows have winners in common: their names are broken into lines, or counted."""
    pytest.importorskip("matplotlib")
    figure = jaxbp.explain(
        "max_pool", (np.arange(49) % 5 == 0).reshape(7, 7), window_shape=window, padding="SAME"
    ).figure()
    figure.canvas.draw()
    axes = figure.axes[0]
    side = abs(axes.transData.transform((1, 1)) - axes.transData.transform((0, 0))).min()
    labels = [text for text in axes.texts if re.match(r"z\d|\d+ windows", text.get_text())]
    assert any("\n" in text.get_text() for text in labels) and len(labels) > 2 * 49
    for text in labels:
        extent = text.get_window_extent()
        assert extent.width <= side and extent.height <= 0.6 * side, text.get_text()


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe that is closed at its other end")
def test_a_reader_who_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "jaxbp", "explain", "dense"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_the_film_fills_the_gradient_pixel_by_pixel(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    path = jaxbp.explain("conv", np.arange(9).reshape(3, 3), np.arange(4).reshape(2, 2), padding="VALID").save(
        tmp_path / "a.gif"
    )
    with image.open(path) as film:
        assert film.n_frames >= 9
        assert film.info["duration"] >= 1000
        first, last = film.convert("L"), None
        film.seek(film.n_frames - 1)
        last = film.convert("L")
    assert np.mean(np.asarray(first) < 90) < np.mean(np.asarray(last) < 90)


@pytest.mark.exhaustive
def test_the_film_of_a_large_case_is_short(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    path = jaxbp.explain("max_pool", np.arange(64.0).reshape(8, 8), window_shape=(2, 2)).save(tmp_path / "a.gif")
    with image.open(path) as film:
        assert film.n_frames <= 18


def test_padding_is_dotted_and_minus_is_a_minus():
    pytest.importorskip("matplotlib")
    kernel = np.array([[1.0, -2.0], [0.0, 3.0]])
    (axes,) = jaxbp.explain("conv", np.arange(9.0).reshape(3, 3), kernel, padding="VALID").figure().axes
    texts = [text.get_text() for text in axes.texts]
    assert "\N{MINUS SIGN}2" in texts and not any(text.startswith("-") for text in texts)
    styles = [patch.get_linestyle() for patch in axes.patches]
    assert styles.count("dotted") == 16 - 4  # delta of 2x2, padded to 4x4


@pytest.mark.parametrize("name", ["png", "gif"])
def test_a_picture_names_the_extra_that_it_needs(tmp_path, monkeypatch, name):
    monkeypatch.delitem(sys.modules, "jaxbp._explain._figure", raising=False)
    monkeypatch.delattr("jaxbp._explain._figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs matplotlib, which is not installed: pip install 'jaxbp\[plot\]'"
    ):
        jaxbp.explain("dense", np.ones((1, 2)), np.ones((2, 2))).save(tmp_path / f"a.{name}")
    assert list(tmp_path.iterdir()) == []


def test_a_pool_that_jax_cannot_differentiate_is_shown_by_jaxbp_alone():
    explanation = jaxbp.explain("max_pool", np.arange(16.0).reshape(4, 4), window_shape=2, window_dilation=2)
    assert explanation.case.manual["input_grad"][2:, 2:].tolist() == [[10, 11], [14, 15]]
    assert set(explanation.case.automatic) == {"output"}
    assert "JAX has no automatic VJP for this case" in str(explanation)
    assert "window dilation" in embedded(explanation.html())["cases"]["max_pool"]["refusal"]
