"""The site: built with --strict, and looked at in a real browser.

Needs the extra `docs`; without it every test is skipped. Screenshots are kept in the folder that the environment
variable JAXBP_SCREENSHOTS names.
"""

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("material", reason="the site's tests need the extra docs: pip install '.[docs]'")
pytest.importorskip("mkdocstrings", reason="the site's tests need the extra docs: pip install '.[docs]'")
from browser import look, needs_browser, start
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import jaxbp

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = ["-m", "mkdocs", "build", "--strict", "-f", str(ROOT / "docs" / "site" / "mkdocs.yml"), "-d", str(folder)]
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served: search needs a server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    driver = start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


def pages(site):
    """Every page's address."""
    return sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if path.name != "404.html")


def test_every_public_name_has_a_reference(site):
    text = "".join(path.read_text() for path in (site / "reference").glob("*.html"))
    for name in jaxbp.__all__:
        assert f'id="jaxbp.{name}"' in text, name
    for name in ("flax.linen", "flax.nnx", "equinox", "haiku", "automatic.conv"):
        assert f'id="jaxbp.{name}"' in text, name


def test_links_lead_to_the_site_s_own_pages(site):
    index = (site / "index.html").read_text()
    assert 'href="derivation.html"' in index and 'href="benchmarks.html"' in index
    assert 'src="files/examples/why_rot180.gif"' in index and (site / "files/examples/why_rot180.gif").is_file()
    assert (site / "results" / "cpu-suite.svg").is_file()


@needs_browser
def test_every_page_loads_without_an_error_and_is_readable_on_a_phone(site, address, chromium):
    found = pages(site)
    assert {"index.html", "derivation.html", "explain.html", "lesson.html", "reference/convolution.html"} <= {*found}
    chromium.get_log("browser")
    for page in found:
        for width in (1280, 380):
            look(chromium, width=width)
            chromium.get(f"{address}/{page}")
            assert chromium.find_element(By.TAG_NAME, "h1").text, page
            wide = chromium.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width, f"{page} is {wide} pixels wide at {width}"
            keep(chromium, f"{page}-{width}")
        assert chromium.get_log("browser") == [], page


@needs_browser
def test_search_finds_a_function(address, chromium):
    look(chromium)
    chromium.get(f"{address}/index.html")
    field = chromium.find_element(By.CSS_SELECTOR, "input.md-search__input")
    chromium.execute_script("arguments[0].focus()", field)
    field.send_keys("conv_input_grad")
    results = WebDriverWait(chromium, 30).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
    )
    assert any("reference/convolution.html" in link.get_attribute("href") for link in results)


@needs_browser
def test_the_explain_page_works_inside_the_site(address, chromium):
    look(chromium)
    chromium.get(f"{address}/derivation.html")
    frame = chromium.find_element(By.CSS_SELECTOR, "iframe")
    chromium.execute_script("arguments[0].scrollIntoView()", frame)
    chromium.switch_to.frame(frame)
    WebDriverWait(chromium, 30).until(lambda driver: driver.find_elements(By.ID, "tab-kernel"))
    assert "Checked just now" in chromium.find_element(By.ID, "check").text
    chromium.switch_to.default_content()


def keep(chromium, name):
    """Keep a screenshot where somebody wants to look."""
    if folder := os.environ.get("JAXBP_SCREENSHOTS"):
        path = Path(folder) / f"site-{name.replace('/', '-')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        chromium.save_screenshot(str(path))
