"""The site is built without a warning, every link leads somewhere, and nothing in it asks another server."""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent.parent
LOOKED_AT = ["index.html", "tour.html", "ops/grafs.html", "zoo.html", "api/search.html", "notebooks/own_model.html"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # notebooks are run, too


@dataclass
class Content(HTMLParser):
    """What a page refers to: links to follow, resources that are loaded with it, and its own anchors."""

    links: list[str] = field(default_factory=list)
    resources: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif "href" in given and tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.resources.append(given["href"])
        if "src" in given:
            self.resources.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Content]:
    found = {}
    for path in site.rglob("*.html"):
        found[path] = Content()
        found[path].feed(path.read_text(encoding="utf-8"))
    assert len(found) > 30
    return found


def test_make_docs_builds_it_so() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ndocs:")[2].splitlines()[1]
    assert recipe.strip().endswith("$(PYTHON) -m mkdocs build --strict")


def test_every_link_and_anchor_leads_somewhere(site: Path, pages: dict[Path, Content]) -> None:
    for page, content in pages.items():
        if page.name == "404.html":  # its addresses are those of a server's root
            continue
        for link in (*content.links, *content.resources):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("https", "data", "mailto"), f"{page}: {link}"
                assert parts.netloc or parts.scheme == "data", f"{page}: {link}"
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_relative_to(site), f"{page}: {link}"
            assert target.is_file(), f"{page}: {link}"
            if parts.fragment and target in pages and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[target].anchors, f"{page}: {link}"


def test_no_resource_is_of_another_server(site: Path, pages: dict[Path, Content]) -> None:
    for page, content in pages.items():
        for resource in content.resources:
            parts = urlsplit(resource)
            assert not parts.netloc, f"{page}: {resource}"
            assert parts.scheme in ("", "data"), f"{page}: {resource}"
    for style in site.rglob("*.css"):
        addresses = re.findall(r"url\(\s*[\"']?([^\"')]+)", style.read_text(encoding="utf-8"))
        assert not [a for a in addresses if re.match(r"(https?:)?//", a)], style


def test_formulas_are_mathml_without_rest(pages: dict[Path, Content]) -> None:
    n_formulas = 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert 'class="arithmatex"' not in text, page
        formulas = re.findall(r"<math .*?</math>", text, re.DOTALL)
        n_formulas += len(formulas)
        assert not [formula for formula in formulas if "\\" in formula], page
    assert n_formulas > 100


def test_notebooks_were_run(site: Path) -> None:
    for name in ("tour", "own_model"):
        text = (site / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
        assert "found:" in text
        assert "discovered" in text
        assert len(re.findall(r'<img[^>]* src="data:image/png', text)) >= 2
        assert "Figure size" not in text  # what stands there in place of a picture
        assert "Traceback" not in text


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", LOOKED_AT)
@pytest.mark.parametrize(("width", "dark"), [("wide", False), ("phone", True)], ids=["wide", "phone"])
def test_a_page_fits_and_asks_nobody_else(
    name: str, width: str, dark: bool, address: str, visit: Callable[..., Any], screenshots: Path
) -> None:
    seen = visit(address + name, width, dark)
    seen.page.wait_for_load_state("load")
    assert seen.complaints == []
    assert seen.stays_within(address)
    fits = seen.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert fits
    seen.page.screenshot(path=screenshots / f"site-{name.replace('/', '-')}-{width}.png")


def test_the_search_of_the_site_finds_an_operation(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address + "index.html").page
    page.locator("input.md-search__input").fill("softplus")
    page.wait_for_selector(".md-search-result__item a[href*='softplus'], .md-search-result__item a")
    assert "softplus" in page.locator(".md-search-result__list").inner_text()
