"""A headless Chromium, and pages that know what went wrong in them and where they wanted to go."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS = {"wide": (1280, 900), "phone": (390, 844)}  # pixels
NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Visit:
    """A page with what its console complained about, and the addresses that it asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def stays_within(self, *origins: str) -> bool:
        """Whether every request went to one of these, or to what the page itself holds."""
        return all(url.startswith((*origins, "data:", "blob:", "about:")) for url in self.requests)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the system's Chromium; installed from Debian's packages where that is ours to do."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    if not os.environ.get("CI") or os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip("needs Chromium: apt-get install chromium")
    install = ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]
    for command in (["apt-get", "update"], install):
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if done.returncode or not (found := shutil.which("chromium")):
        pytest.skip(f"Chromium could not be installed: {done.stderr.strip()[-200:]}")
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens an address: visit(url, width="wide"|"phone", dark=False) -> Visit."""
    contexts = []

    def open_page(url: str, width: str = "wide", dark: bool = False) -> Visit:
        w, h = WIDTHS[width]
        context = browser.new_context(
            viewport={"width": w, "height": h}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        visited = Visit(page)
        page.on("console", lambda m: visited.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: visited.complaints.append(str(error)))
        page.on("request", lambda request: visited.requests.append(request.url))
        page.goto(url)
        return visited

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of pages are kept: ACTSEARCH_SCREENSHOTS, or the session's temporary folder."""
    where = os.environ.get("ACTSEARCH_SCREENSHOTS")
    folder = Path(where) if where else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
