"""The site's own steps: pages from outside of docs, an API reference, the explain pages, and links that lead to them.

Documents link to each other, to source files and to pictures as a repository does. On the site a document at the root
becomes a page, a source file becomes a page that shows it, a picture is copied, and every such link leads there.
"""

import argparse
import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import jaxbp
from jaxbp import _explain

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "BENCHMARKS.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/backpropagation.ipynb": "lesson.md",
}
PICTURES = (".png", ".gif", ".svg")
LANGUAGES = {".py": "python", ".json": "json", ".yml": "yaml"}
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
# Which files of the package a page of the reference is about; what no other page has is a tool.
REFERENCE = {
    "convolution": ("_conv", "_conv_lax"),
    "pooling": ("_max_pool", "_avg_pool", "_adaptive_pool", "_pool"),
    "layers": ("_dense", "_activation", "_loss"),
    "tools": (),
}
ADAPTERS = ("flax.linen", "flax.nnx", "equinox", "haiku")


def repository_path(uri: str) -> str:
    """Where a page's text lies in the repository."""
    return next((path for path, page in PAGES.items() if page == uri), f"docs/{uri}")


def site_path(path: str) -> str:
    """Where the site has a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}" if path.endswith(PICTURES) else f"source/{path}.md"


def linked_files(text: str, place: str) -> set[str]:
    """The files of the repository that a document links to."""
    found = {posixpath.normpath(posixpath.join(posixpath.dirname(place), link[2])) for link in LINK.finditer(text)}
    return {path for path in found if (ROOT / path).is_file()}


def with_site_links(text: str, uri: str) -> str:
    """A page's text, its links those of the site."""
    place = repository_path(uri)

    def rewrite(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), link[2]))
        if "://" in link[2] or not (ROOT / path).is_file():
            return link[0]
        return f"{link[1]}{posixpath.relpath(site_path(path), posixpath.dirname(uri) or '.')}{link[3]}"

    return LINK.sub(rewrite, text)


def as_markdown(path: str) -> str:
    """A document as Markdown: a notebook's cells one after the other."""
    text = (ROOT / path).read_text()
    if not path.endswith(".ipynb"):
        return text
    cells = [("".join(cell["source"]), cell["cell_type"]) for cell in json.loads(text)["cells"]]
    return "\n\n".join(source if kind == "markdown" else f"```python\n{source}\n```" for source, kind in cells)


def source_page(path: str) -> str:
    """A page that shows a file."""
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n````` {language}\n{(ROOT / path).read_text()}\n`````\n"


def reference_pages() -> dict[str, str]:
    """The pages of the reference: a directive for each public name."""
    names = {name: getattr(jaxbp, name).__module__.split(".")[1] for name in functions()}
    elsewhere = {module for modules in REFERENCE.values() for module in modules}
    pages = {}
    for page, modules in REFERENCE.items():
        chosen = [
            name for name, module in names.items() if module in modules or (not modules and module not in elsewhere)
        ]
        pages[page] = "\n\n".join([f"# {page.capitalize()}", *(f"::: jaxbp.{name}" for name in chosen)])
    members = "\n    options: {members: true, show_root_heading: true}"
    pages["tools"] += "\n\n" + "\n\n".join(f"::: jaxbp.{module}" for module in ADAPTERS)
    pages["tools"] += f"\n\n::: jaxbp.automatic{members}\n"
    return pages


def functions() -> list[str]:
    """The public functions."""
    return [name for name in jaxbp.__all__ if callable(getattr(jaxbp, name))]


def explain_pages() -> dict[str, str]:
    """The interactive pages by name: the article's case, and one with a stride and padding."""
    parser = argparse.ArgumentParser()
    _explain.add_arguments(parser)
    commands = {"article": "conv --article", "strides": "conv --input 5 --stride 2 --padding 1"}
    return {name: _explain.asked_for(parser.parse_args(line.split())).html() for name, line in commands.items()}


def frame(name: str, uri: str) -> str:
    """An explain page inside of another page."""
    address = posixpath.relpath(f"explain/{name}.html", posixpath.dirname(uri) or ".")
    style = "width:100%;height:900px;border:0"
    return f'<iframe title="jaxbp explain" src="{address}" style="{style}" loading="lazy"></iframe>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that lie outside of docs, the reference, and the explain pages."""

    def add(uri: str, **content: Any) -> None:
        files.append(File.generated(config, uri, **content))

    texts = {path: as_markdown(path) for path in PAGES}
    texts |= {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    for path, uri in PAGES.items():
        add(uri, content=texts[path])
    linked = set().union(*(linked_files(text, path) for path, text in texts.items()))
    for path in sorted(path for path in linked if path not in PAGES and not path.startswith("docs/")):
        uri = site_path(path)
        if uri.startswith("files/"):
            add(uri, abs_src_path=os.fspath(ROOT / path))
        else:
            add(uri, content=source_page(path))
    for name, text in reference_pages().items():
        add(f"reference/{name}.md", content=text)
    for name, page in explain_pages().items():
        add(f"explain/{name}.html", content=page)
    frames = "\n\n".join(frame(name, "explain.md") for name in ("article", "strides"))
    add(
        "explain.md",
        content=f"# See it\n\nPick a pixel: which outputs used it, and through which weight?\n\n{frames}\n",
    )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the site, and an explain page where a document has a place for it."""
    text = with_site_links(markdown, page.file.src_uri)
    return text.replace("<!-- explain: conv -->", frame("article", page.file.src_uri))
