"""The page of `explain` in a real browser: its numbers, its controls, keys and touch, and what a reader needs.

Needs Chromium and its driver (`apt-get install chromium chromium-driver`); without them every test is skipped.
Screenshots of every tab are kept in the folder that the environment variable JAXBP_SCREENSHOTS names.
"""

import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from browser import look, needs_browser, start
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import jaxbp
from jaxbp import _explain
from jaxbp._explain._case import uses, window_of
from jaxbp._explain._examples import article_case, drawn_case

pytestmark = [needs_browser]
TABS = ("input", "kernel", "bias", "max", "avg", "dense")
# Which of jaxbp's arrays each matrix on the page shows.
MATRICES = {
    "input": {
        "input": "input_grad", "z": "output", "w": "kernel", "x": "x", "delta": "delta",
        "padded": "padded_delta", "rotated": "rotated_kernel",
    },
    "kernel": {
        "kernel": "kernel_grad", "kx": "padded_x", "kdelta": "delta", "kpadded": "kernel_padded_delta",
        "before": "before_rotation", "after": "kernel_grad",
    },
    "bias": {"bias": "delta", "bz": "output"},
    "max": {"max": "input_grad", "x": "x", "z": "output", "delta": "delta", "winners": "winners"},
    "avg": {"avg": "input_grad", "x": "x", "z": "output", "delta": "delta"},
    "dense": {
        "x": "x", "w": "kernel", "b": "bias", "z": "output", "dx": "input_grad", "delta": "delta", "wrow": "kernel",
        "dw": "kernel_grad", "xcol": "x", "dcol": "delta", "db": "bias_grad", "below": "delta_below",
    },
}  # fmt: skip
OP_OF_TAB = {"input": "conv", "kernel": "conv", "bias": "conv", "max": "max_pool", "avg": "avg_pool", "dense": "dense"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One headless Chromium for the file."""
    driver = start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(autouse=True)
def no_console_errors(browser):
    """Every test fails on anything that the page wrote to the console."""
    browser.get_log("browser")
    yield
    assert browser.get_log("browser") == []


def show(browser, explanation, folder, change=lambda page: page):
    """Open an explanation's page from a file."""
    path = Path(folder) / "case.html"
    path.write_text(change(explanation.html()), encoding="utf-8")
    look(browser)
    browser.get(path.as_uri())
    return explanation


def drawn(op="conv", *settings, **keywords):
    """A drawn case with the companions that the command line gives it."""
    case = drawn_case(op, *settings, **keywords)
    companions = tuple(drawn_case(other) for other in _explain.OPS if other != op)
    return _explain.Explanation(case, _explain._chosen_pixel(case, None), companions)


def article():
    """The article's case."""
    case = article_case("conv")
    return _explain.Explanation(case, (1, 1), tuple(article_case(op) for op in _explain.OPS if op != "conv"))


def case_of(explanation, op):
    """The explanation's case of an op."""
    return next(case for case in (explanation.case, *explanation.companions) if case.op == op)


def by_id(browser, name):
    """The element with this id."""
    return browser.find_element(By.ID, name)


def open_tab(browser, tab):
    """Click a tab."""
    by_id(browser, f"tab-{tab}").click()


def numbers(browser, matrix):
    """A matrix as the page holds it, and as it prints it."""
    script = """return [...document.getElementById(arguments[0]).rows].map(
        (row) => [...row.cells].map((cell) => [cell.dataset.value, cell.firstChild.textContent]))"""
    cells = browser.execute_script(script, f"m-{matrix}")
    values = np.array([[float(value) for value, _ in row] for row in cells])
    printed = np.array([[float(text.replace("−", "-")) for _, text in row] for row in cells])
    assert np.all(np.abs(values - printed) <= np.maximum(0.0005, np.abs(values) / 2000))
    return values


def lit(browser, matrix):
    """The lit pixels of a matrix with their labels and colours, in reading order."""
    script = """return [...document.querySelectorAll(`#${arguments[0]} td.lit`)].map((cell) => [
        +cell.dataset.row, +cell.dataset.column, cell.querySelector("small")?.textContent,
        getComputedStyle(cell).backgroundColor])"""
    return [
        ((row, column), label, colour) for row, column, label, colour in browser.execute_script(script, f"m-{matrix}")
    ]


def check_numbers(browser, tab, case):
    """Every matrix of the open tab against jaxbp's numbers."""
    values = case.given | case.manual
    for matrix, key in MATRICES[tab].items():
        expected = np.atleast_2d(values[key])
        np.testing.assert_allclose(
            numbers(browser, matrix), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=f"{tab} {matrix}"
        )


def pick(browser, grid, pixel):
    """Click a pixel of a grid."""
    by_id(browser, f"{grid}-{pixel[0]}-{pixel[1]}").click()


def label(letter, pixel):
    """A pixel's name on the page."""
    return f"{letter}{pixel[0] + 1}{pixel[1] + 1}"


def result(browser, name="sum"):
    """The value at the end of a sum."""
    return float(browser.find_element(By.CSS_SELECTOR, f"#{name} strong").get_attribute("data-value"))


CASES = {
    "article": article,
    "drawn": drawn,
    "stride and padding": lambda: drawn("conv", 6, 3, 2, "SAME"),
    "dilation": lambda: drawn("conv", 7, 2, 2, 1, 2),
    "own numbers": lambda: jaxbp.explain(
        "conv", np.random.default_rng(0).normal(size=(4, 6)), np.random.default_rng(1).normal(size=(3, 2)), [0.5],
        strides=(1, 2), padding=((1, 0), (0, 2)), kernel_dilation=(1, 2),
    ),
    "overlapping max pool": lambda: drawn("max_pool", 5, 3, 1, 1),
    "average without padding": lambda: jaxbp.explain(
        "avg_pool", np.arange(12.0).reshape(3, 4), window_shape=(2, 3), padding="SAME", count_include_pad=False
    ),
    "dense": lambda: drawn("dense"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_number_is_jaxbp_s(browser, tmp_path, name):
    explanation = show(browser, CASES[name](), tmp_path)
    selected = browser.find_element(By.CSS_SELECTOR, "[role=tab][aria-selected=true]").get_attribute("id")
    assert OP_OF_TAB[selected.removeprefix("tab-")] == explanation.case.op
    assert by_id(browser, "check").get_attribute("class") == "good"
    cases = (explanation.case, *explanation.companions)
    assert (
        f"{sum(value.size for case in cases for value in case.manual.values())} numbers" in by_id(browser, "check").text
    )
    for tab in TABS:
        open_tab(browser, tab)
        check_numbers(browser, tab, case_of(explanation, OP_OF_TAB[tab]))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
def test_every_tab_fits_has_contrast_and_is_photographed(browser, tmp_path, width, dark):
    show(browser, drawn("conv", 6, 3, 2, "SAME"), tmp_path)
    folder = Path(os.environ.get("JAXBP_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for tab in TABS:
        look(browser, width, dark=dark)
        open_tab(browser, tab)
        height = browser.execute_script("return document.documentElement.scrollHeight")
        look(browser, width, height, dark)
        shot = browser.get_screenshot_as_png()
        (folder / f"{tab}-{width}-{'dark' if dark else 'light'}.png").write_bytes(shot)
        assert struct.unpack(">II", shot[16:24]) == (width, height) and len(shot) > 20_000
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        low = browser.execute_script(CONTRAST)
        assert low == [], f"{tab}: too little contrast"
        small = browser.execute_script(
            "return [...document.querySelectorAll('button, select, summary, [data-pick]')]"
            ".filter(e => e.getBoundingClientRect().width < 24 || e.getBoundingClientRect().height < 24).map(e => e.id)"
        )
        assert small == [], f"{tab}: too small to tap"


CONTRAST = """
const parse = (c) => {
  const v = c.match(/[\\d.]+/g).map(Number);
  return { rgb: v.slice(0, 3), a: v.length > 3 ? v[3] : 1 };
};
const light = (rgb) => rgb.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; })
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const paint = parse(getComputedStyle(e).backgroundColor);
    if (paint.a === 1) return paint.rgb;
  }
  return [255, 255, 255];
};
const low = [];
for (const e of document.querySelectorAll('body *')) {
  const says = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!says || !e.checkVisibility() || e.closest('script, .unseen')) continue;
  const style = getComputedStyle(e), [a, b] = [light(parse(style.color).rgb), light(behind(e))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) low.push([e.tagName, e.className, e.textContent.slice(0, 30), ratio.toFixed(2)]);
}
return low;
"""


def test_picking_lights_the_outputs_with_the_weights_that_joined_them(browser, tmp_path):
    explanation = show(browser, drawn("conv", 5, 3, 1, 1), tmp_path)
    case = explanation.case
    window, kernel = window_of(case), case.given["kernel"]
    for pixel in [(0, 0), (2, 2), (1, 4), (4, 3)]:
        pick(browser, "input", pixel)
        used = uses(window, pixel)
        expected = [(use.output, label("w", use.place)) for use in used]
        assert [(at, name) for at, name, _ in lit(browser, "z")] == expected
        assert [(at, name) for at, name, _ in lit(browser, "delta")] == expected
        colours = {name: colour for _, name, colour in lit(browser, "w")}
        assert len(set(colours.values())) == kernel.size
        for matrix in ("z", "delta", "padded", "rotated"):
            assert all(colours[name] == colour for _, name, colour in lit(browser, matrix)), matrix
        assert result(browser) == case.manual["input_grad"][pixel]
        assert by_id(browser, f"input-{pixel[0]}-{pixel[1]}").get_attribute("aria-selected") == "true"
        window_pixels = [at for at, _, _ in lit(browser, "padded")]
        assert window_pixels == [(pixel[0] + a, pixel[1] + b) for a in range(3) for b in range(3)]
        names = [name for _, name, _ in lit(browser, "padded")]
        assert names == [label("w", (a, b)) for a in (2, 1, 0) for b in (2, 1, 0)]
        assert names == [name for _, name, _ in lit(browser, "rotated")]
        slid = sum(
            case.manual["padded_delta"][at] * kernel[2 - i // 3, 2 - i % 3] for i, at in enumerate(window_pixels)
        )
        assert slid == result(browser)


@pytest.mark.parametrize(("tab", "grid"), [("conv", "input"), ("max_pool", "max"), ("avg_pool", "avg")])
def test_a_click_on_the_input_picks_its_gradient(browser, tmp_path, tab, grid):
    """The text says "pick an input", so that the input itself must answer."""
    show(browser, drawn(tab), tmp_path)
    for pixel in [(0, 1), (2, 2)]:
        browser.find_element("css selector", f"#m-x [data-row='{pixel[0]}'][data-column='{pixel[1]}']").click()
        assert by_id(browser, f"{grid}-{pixel[0]}-{pixel[1]}").get_attribute("aria-selected") == "true"


def test_the_chips_read_the_kernel_backwards_and_say_what_is_missing(browser, tmp_path):
    show(browser, drawn("conv", 6, 3, 2, "SAME"), tmp_path)
    pick(browser, "input", (2, 2))
    chips = [chip.text.split("\n") for chip in browser.find_elements(By.CSS_SELECTOR, "#chips li")]
    assert [chip[0] for chip in chips] == ["w33", "w32", "w31", "w23", "w22", "w21", "w13", "w12", "w11"]
    assert [chip[0] for chip in chips if chip[1].startswith("in z")] == ["w33", "w31", "w13", "w11"]
    assert chips[1][1].startswith("skipped")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".mini")) == 4
    pick(browser, "input", (0, 0))
    chips = [chip.text.replace("\n", " ") for chip in browser.find_elements(By.CSS_SELECTOR, "#chips li")]
    assert chips[-1] == "w11 in z11" and chips[0] == "w33 no such output"


def test_the_kernel_gradient_in_both_forms(browser, tmp_path):
    case = show(browser, drawn("conv", 6, 2, 2, 1, 2), tmp_path).case
    delta, padded_x, laid = case.given["delta"], case.manual["padded_x"], case.manual["kernel_padded_delta"]
    open_tab(browser, "kernel")
    for pixel in np.ndindex(2, 2):
        pick(browser, "kernel", pixel)
        assert result(browser) == case.manual["kernel_grad"][pixel]
        inputs = [(at, name) for at, name, _ in lit(browser, "kx")]
        assert [name for _, name in inputs] == [label("δ", at) for at in np.ndindex(*delta.shape)]
        assert sum(padded_x[at] * d for (at, _), d in zip(inputs, delta.flat, strict=True)) == result(browser)
        marked = browser.find_element(By.CSS_SELECTOR, "#m-before td.on")
        assert (int(marked.get_attribute("data-row")), int(marked.get_attribute("data-column"))) == (
            1 - pixel[0],
            1 - pixel[1],
        )
        assert float(marked.get_attribute("data-value")) == result(browser)
        frame = browser.find_elements(By.CSS_SELECTOR, "#m-kpadded td.ring")
        framed = [(int(td.get_attribute("data-row")), int(td.get_attribute("data-column"))) for td in frame]
        start = framed[0]
        assert len(framed) == padded_x.size
        assert sum(laid[at] * padded_x[at[0] - start[0], at[1] - start[1]] for at in framed) == result(browser)


def test_the_bias_tab_adds_up_delta(browser, tmp_path):
    case = show(browser, article(), tmp_path).case
    open_tab(browser, "bias")
    assert result(browser) == case.manual["bias_grad"][0] == 124
    assert "19 + 25 + 37 + 43" in by_id(browser, "sum").text
    pick(browser, "bias", (1, 0))
    assert "z21" in by_id(browser, "panel").text


def test_max_pooling_shows_winners_losers_and_ties(browser, tmp_path):
    x = [[1, 3, 0, 0], [3, 2, 0, 5], [7, 0, 1, 1], [0, 0, 1, 1]]
    show(browser, jaxbp.explain("max_pool", x, window_shape=(2, 2), strides=2), tmp_path)
    stories = {}
    for pixel in [(0, 1), (1, 0), (1, 1), (2, 2)]:
        pick(browser, "max", pixel)
        stories[pixel] = by_id(browser, "story").text
        assert result(browser) == numbers(browser, "max")[pixel]
    assert "z11 = 3 is x12: it won, so δ11 = 3" in stories[0, 1]
    assert "x21 ties with x12, which comes first" in stories[1, 0]
    assert "x22 = 2 lost" in stories[1, 1]
    assert "z22 = 1 is x33: it won" in stories[2, 2]
    stars = browser.find_elements(By.XPATH, "//table[@id='m-x']//td[contains(., '★')]")
    assert [star.get_attribute("data-value") for star in stars] == ["3", "5", "7", "1"]
    assert "the first of equal maxima wins" in by_id(browser, "panel").text


def test_average_pooling_shares_delta_out(browser, tmp_path):
    case = show(browser, drawn("avg_pool", 4, 3, 1), tmp_path).case
    for pixel in [(0, 0), (1, 2)]:
        pick(browser, "avg", pixel)
        assert [at for at, _, _ in lit(browser, "delta")] == [use.output for use in uses(window_of(case), pixel)]
        assert {name for _, name, _ in lit(browser, "delta")} == {"÷9"}
        assert result(browser) == pytest.approx(case.manual["input_grad"][pixel], rel=1e-5)


def test_the_dense_chain_rule_lights_a_row_and_a_column(browser, tmp_path):
    case = show(browser, drawn("dense"), tmp_path).case
    pick(browser, "dx", (1, 2))
    assert result(browser) == case.manual["input_grad"][1, 2]
    assert [at for at, _, _ in lit(browser, "delta")] == [(1, 0), (1, 1)]
    assert [at for at, _, _ in lit(browser, "wrow")] == [(2, 0), (2, 1)]
    pick(browser, "dw", (2, 1))
    assert result(browser, "sum2") == case.manual["kernel_grad"][2, 1]
    assert [at for at, _, _ in lit(browser, "xcol")] == [(0, 2), (1, 2)]
    assert [at for at, _, _ in lit(browser, "dcol")] == [(0, 1), (1, 1)]
    assert result(browser) == case.manual["input_grad"][1, 2]


CHANGES = {
    "input": [("size", "7"), ("window", "2"), ("stride", "2"), ("padding", "SAME"), ("dilation", "2"), ("size", "4")],
    "kernel": [("padding", "2"), ("stride", "3"), ("dilation", "2"), ("window", "4")],
    "max": [("size", "5"), ("window", "3"), ("stride", "2"), ("padding", "1"), ("dilation", "2")],
    "avg": [("padding", "1"), ("count", "pixels inside"), ("stride", "1"), ("window", "3")],
    "dense": [("rows", "4"), ("size", "6"), ("outputs", "1")],
}


@pytest.mark.parametrize("tab", CHANGES)
def test_controls_recompute_what_jaxbp_computes(browser, tmp_path, tab):
    show(browser, drawn(), tmp_path)
    open_tab(browser, tab)
    for step in [*CHANGES[tab], "numbers"]:
        if step == "numbers":
            before = numbers(browser, MATRIX_OF_X[tab]).tolist()
            by_id(browser, "numbers").click()
            assert numbers(browser, MATRIX_OF_X[tab]).tolist() != before
        else:
            Select(by_id(browser, f"set-{step[0]}")).select_by_visible_text(step[1])
            assert Select(by_id(browser, f"set-{step[0]}")).first_selected_option.text == step[1]
        assert by_id(browser, "complaint").text == ""
        assert by_id(browser, "check").get_attribute("class") == "good"
        assert "Your own settings" in by_id(browser, "check").text
        check_numbers(browser, tab, repeated(browser))
    by_id(browser, "reset").click()
    assert "Checked just now" in by_id(browser, "check").text
    check_numbers(browser, tab, drawn_case(OP_OF_TAB[tab]))


MATRIX_OF_X = {"input": "x", "kernel": "kx", "max": "x", "avg": "x", "dense": "x"}


def repeated(browser):
    """The case on the screen, computed by jaxbp from the Python that the page shows."""
    names = {}
    exec(by_id(browser, "python").get_attribute("textContent").replace("print(case)", ""), names)
    return names["case"].case


def test_article_numbers_grow_with_the_input(browser, tmp_path):
    show(browser, article(), tmp_path)
    Select(by_id(browser, "set-size")).select_by_visible_text("4")
    assert numbers(browser, "x")[:3, :3].tolist() == np.arange(9).reshape(3, 3).tolist()
    assert repeated(browser).given["delta"].tolist() == numbers(browser, "z").tolist()
    check_numbers(browser, "input", repeated(browser))


def test_settings_that_cannot_be_are_refused_in_words(browser, tmp_path):
    show(browser, drawn(), tmp_path)
    Select(by_id(browser, "set-dilation")).select_by_visible_text("3")
    assert "The kernel spans 7 pixels, but the padded input has only 5" in by_id(browser, "complaint").text
    assert by_id(browser, "complaint").get_attribute("role") == "alert"
    assert Select(by_id(browser, "set-dilation")).first_selected_option.text == "1"
    check_numbers(browser, "input", drawn_case("conv"))
    for key, value in (("size", "8"), ("window", "1"), ("padding", "1")):
        Select(by_id(browser, f"set-{key}")).select_by_visible_text(value)
    assert "The output would have 10 × 10 pixels; at most 8 × 8 are drawn" in by_id(browser, "complaint").text
    open_tab(browser, "max")
    assert by_id(browser, "complaint").text == ""
    Select(by_id(browser, "set-padding")).select_by_visible_text("3")
    assert "wholly in the padding" in by_id(browser, "complaint").text


@pytest.mark.parametrize("key", ["manual", "automatic"])
def test_a_number_that_disagrees_is_said_loudly(browser, tmp_path, key):
    def tamper(page):
        changed = re.sub(
            rf'("{key}":{{.*?"input_grad":\[\[)(-?\d+)', lambda found: f"{found[1]}{int(found[2]) + 1}", page, count=1
        )
        assert changed != page
        return changed

    show(browser, drawn(), tmp_path, tamper)
    check = by_id(browser, "check")
    assert check.get_attribute("class") == "bad"
    who = "jaxbp" if key == "manual" else "JAX's automatic VJP"
    assert (
        "✗ These numbers do not agree" in check.text and f"conv input_grad: 1 numbers differ from {who}" in check.text
    )
    open_tab(browser, "max")
    assert by_id(browser, "check").get_attribute("class") == "bad"


def test_a_wrong_formula_in_the_page_is_said_loudly(browser, tmp_path):
    def tamper(page):
        changed = page.replace("pad(spread, inputPads(axes))", "rot180(pad(spread, inputPads(axes)))")
        assert changed != page
        return changed

    show(browser, drawn(), tmp_path, tamper)
    assert "one window of rot180(W) differs" in by_id(browser, "check").text


def test_everything_can_be_done_with_the_keyboard(browser, tmp_path):
    show(browser, drawn(), tmp_path)

    def press(*keys):
        ActionChains(browser).send_keys(*keys).perform()
        return browser.switch_to.active_element.get_attribute("id")

    settings = [f"set-{key}" for key in ("size", "window", "stride", "padding", "dilation")]
    order = [press(Keys.TAB) for _ in range(10)]
    assert order == ["theme", "tab-input", *settings, "numbers", "input-2-2", ""]
    assert browser.switch_to.active_element.tag_name == "summary"
    by_id(browser, "input-2-2").click()
    assert press(Keys.ARROW_RIGHT) == "input-2-3" and press(Keys.ARROW_UP) == "input-1-3"
    assert press(Keys.ARROW_LEFT) == "input-1-2" and press(Keys.ARROW_DOWN) == "input-2-2"
    assert press(Keys.HOME) == "input-2-0" and press(Keys.ARROW_LEFT) == "input-2-0"
    assert press(Keys.END) == "input-2-4" and press(Keys.UP) == "input-1-4"
    ActionChains(browser).key_down(Keys.CONTROL).send_keys(Keys.HOME).key_up(Keys.CONTROL).perform()
    assert browser.switch_to.active_element.get_attribute("id") == "input-0-0"
    assert result(browser) == drawn_case("conv").manual["input_grad"][0, 0]
    by_id(browser, "tab-input").click()
    for tab in [*TABS[1:], "input"]:
        assert press(Keys.ARROW_RIGHT) == f"tab-{tab}"
        assert by_id(browser, "panel").get_attribute("aria-labelledby") == f"tab-{tab}"
    assert press(Keys.ARROW_LEFT) == "tab-dense" and press(Keys.HOME) == "tab-input" and press(Keys.END) == "tab-dense"


def test_a_tap_on_a_phone_picks_a_pixel(browser, tmp_path):
    show(browser, drawn(), tmp_path)
    look(browser, 380, 800)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    cell = by_id(browser, "input-1-1")
    place = browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center'}); const box = arguments[0].getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]",
        cell,
    )
    point = {"x": place[0], "y": place[1]}
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert by_id(browser, "input-1-1").get_attribute("aria-selected") == "true"


def test_a_screen_reader_finds_names_roles_and_the_arithmetic(browser, tmp_path):
    show(browser, article(), tmp_path)
    pick(browser, "input", (0, 1))
    assert "dJ/dx12 = δ11·w12 + δ12·w11" in by_id(browser, "say").get_attribute("textContent")
    assert "in reading order: w12 w11" in by_id(browser, "say").get_attribute("textContent")
    assert by_id(browser, "say").get_attribute("aria-live") == "polite"
    browser.execute_cdp_cmd("Accessibility.enable", {})
    for tab in TABS:
        open_tab(browser, tab)
        tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        nodes = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
        roles = {role for role, _ in nodes}
        assert {"tablist", "tab", "tabpanel", "grid", "gridcell", "combobox", "button", "heading", "status"} <= roles
        nameless = [
            role
            for role, name in nodes
            if not name and role in ("tab", "grid", "gridcell", "cell", "table", "button", "combobox")
        ]
        assert nameless == []
    open_tab(browser, "input")
    cell = by_id(browser, "input-0-1")
    assert cell.accessible_name == "Gradient of the input, dJ/dx, row 1, column 2: 19"
    assert "used x12 through w12" in browser.find_element(By.CSS_SELECTOR, "#m-z td").accessible_name


def test_the_theme_button_overrules_the_system(browser, tmp_path):
    show(browser, drawn(), tmp_path)
    background = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(background)
    by_id(browser, "theme").click()
    dark = browser.execute_script(background)
    look(browser, dark=True)
    assert light != dark and browser.execute_script(background) == dark
    by_id(browser, "theme").click()
    assert browser.execute_script(background) == light


def test_the_theme_outlives_a_reload(browser, tmp_path):
    show(browser, drawn(), tmp_path)
    background = "return getComputedStyle(document.body).backgroundColor"
    by_id(browser, "theme").click()
    chosen = browser.execute_script(background)
    browser.refresh()
    kept = browser.execute_script(background)
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    assert kept == chosen != browser.execute_script(background)


def test_every_tab_has_a_title_of_its_own_and_lies_in_a_landmark(browser, tmp_path):
    show(browser, article(), tmp_path)
    titles = []
    for tab in TABS:
        open_tab(browser, tab)
        titles.append(by_id(browser, "title").text)
    assert len(set(titles)) == len(TABS)
    assert "rotate" in titles[0] and not any("rotate" in title for title in titles[1:])
    assert browser.find_elements(By.CSS_SELECTOR, "main [role=tablist]")


def test_a_matrix_that_scrolls_says_so(browser, tmp_path):
    show(browser, drawn("conv", 8, 4), tmp_path)
    look(browser, width=380, height=800)
    browser.refresh()
    sign = "return [...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth > e.clientWidth, getComputedStyle(e, '::after').content])"
    boxes = browser.execute_script(sign)
    assert any(scrolls for scrolls, _ in boxes)
    assert all(scrolls == ("scroll" in content) for scrolls, content in boxes)


def test_the_page_loads_nothing_and_can_start_on_a_tab(browser, tmp_path):
    show(browser, drawn(), tmp_path)
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    browser.get("about:blank")
    browser.get((tmp_path / "case.html").as_uri() + "#avg")
    assert by_id(browser, "tab-avg").get_attribute("aria-selected") == "true"
