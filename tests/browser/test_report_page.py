"""The report in a real browser: of a search that ended, of one that was killed half-way, and of a transfer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TINY = ["--space", "tiny", "--trainer.threads", "1", "--trainer.accelerator", "cpu"]
SIZES = [("wide", False), ("wide", True), ("phone", False), ("phone", True)]
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Nothing of the page may stand beyond its right edge, but what scrolls within itself.
BEYOND = """() => [...document.querySelectorAll("main *")].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !e.closest(".scroll, pre, svg");
}).map((e) => e.tagName + "." + e.className)"""


def actsearch(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "actsearch", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def done(*arguments: str | Path, cwd: Path) -> str:
    found = subprocess.run(
        actsearch(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=200
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    options = ["--search.epochs", "3", "--compare.seeds", "2", "--compare.epochs", "2"]
    text = done("search", *TINY, *options, cwd=root)
    (run,) = (root / "runs" / "tiny").iterdir()
    assert f"report       {run.relative_to(root)}/report.html" in text
    return run


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed by SIGKILL after two of many epochs; the report is asked for afterwards."""
    root = tmp_path_factory.mktemp("killed")
    command = actsearch("search", *TINY, "--search.epochs", "40")
    process = subprocess.Popen(command, cwd=root, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 200
        while len([*root.glob("runs/tiny/*/genotypes.jsonl")]) == 0 or _epochs(root) < 2:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline, "the search does not begin"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()
    (run,) = (root / "runs" / "tiny").iterdir()
    assert not (run / "report.html").exists()
    assert done("report", run, cwd=root) == f"report  {run}/report.html\n"
    return run


def _epochs(root: Path) -> int:
    (file,) = root.glob("runs/tiny/*/genotypes.jsonl")
    return file.read_text().count("\n")


def fits(page: Page) -> None:
    assert page.evaluate(OVERFLOW) <= 0
    assert page.evaluate(BEYOND) == []


def has_alternatives(page: Page) -> None:
    """Every drawing that is not mere decoration has words, and so has every figure."""
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('figure')].filter((f) => "
        "![...f.querySelectorAll('svg[role=img]')].some((s) => s.getAttribute('aria-label').length > 10)).length"
    )
    assert unnamed == 0
    loose = page.evaluate(
        "() => [...document.querySelectorAll('svg')].filter((s) => !s.closest('[role=img], [aria-hidden=true]')).length"
    )
    assert loose == 0


@pytest.mark.parametrize(("width", "dark"), SIZES, ids=[f"{w}-{'dark' if d else 'light'}" for w, d in SIZES])
def test_the_report_of_a_search(
    finished: Path, visit: Callable[..., Any], screenshots: Path, width: str, dark: bool
) -> None:
    visited = visit((finished / "report.html").as_uri(), width, dark)
    page = visited.page
    assert page.title().startswith("resnet8 on digits")
    for part in ("#top", "#function", "#way", "#comparison", "#cost", "#again", "#settings"):
        assert page.locator(part).is_visible(), part
    assert page.locator("#top math").is_visible()
    assert page.locator(".notices .caution", has_text="Few seeds").is_visible()
    assert page.locator("#comparison tbody tr").count() == 5
    assert page.locator("#comparison .boxes").is_visible()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(", "))) < 200) == dark
    fits(page)
    has_alternatives(page)
    page.screenshot(path=screenshots / f"report-{width}-{'dark' if dark else 'light'}.png", full_page=True)
    for folded in page.locator("details").all():
        folded.evaluate("e => { e.open = true; }")
    fits(page)
    assert visited.complaints == []
    assert visited.stays_within((finished / "report.html").as_uri())


@pytest.mark.parametrize("width", ["wide", "phone"])
def test_the_slider_moves_the_function_by_mouse_and_by_keys(
    finished: Path, visit: Callable[..., Any], width: str
) -> None:
    visited = visit((finished / "report.html").as_uri(), width)
    page = visited.page
    slider, label = page.locator("#stage"), page.locator("#stage-label")
    curve, formula = page.locator(".moving path"), page.locator(".stage-formula")

    def state() -> tuple[str, ...]:
        seen = (label.inner_text(), curve.get_attribute("d") or "", formula.inner_text())
        return (*seen, page.locator(".cursor").first.get_attribute("x1") or "")

    assert label.inner_text() == "at the end"
    end = state()
    slider.focus()
    page.keyboard.press("Home")
    start = state()
    assert start[0] == "epoch 1 of 3"
    assert slider.get_attribute("aria-valuetext") == f"epoch 1 of 3: {start[2]}"
    assert (start[1] != end[1], start[2] != end[2], start[3] != end[3]) == (True, True, True)
    page.keyboard.press("ArrowRight")
    assert label.inner_text() == "epoch 2 of 3"
    page.keyboard.press("End")
    assert state() == end
    box = slider.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 4, box["y"] + box["height"] / 2)
    assert state() == start
    assert page.locator(".choices .bar").count() >= 3
    assert visited.complaints == []


def test_commands_are_copied(finished: Path, visit: Callable[..., Any]) -> None:
    page = visit((finished / "report.html").as_uri()).page
    command = page.locator(".command", has_text="Write it as Python")
    command.locator("button").click()
    page.wait_for_function("() => [...document.querySelectorAll('.copy')].some((b) => b.textContent !== 'Copy')")
    shown = command.locator("code").inner_text()
    assert shown.startswith("actsearch export")
    assert shown.endswith("--to all")


def test_without_a_script_the_stages_stand_side_by_side(finished: Path, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((finished / "report.html").as_uri())
    assert page.locator(".stills figure").count() == 4
    assert page.locator(".stills figure").first.is_visible()
    assert not page.locator(".player").is_visible()
    context.close()


def test_on_paper_nothing_is_folded_or_cut(finished: Path, visit: Callable[..., Any], screenshots: Path) -> None:
    page = visit((finished / "report.html").as_uri(), "wide", dark=True).page
    assert len(page.pdf(format="A4", path=screenshots / "report.pdf")) > 20_000
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})
    assert page.locator("details:not([open])").count() == 0
    assert page.locator(".stills").is_visible()
    assert not page.locator(".player").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(OVERFLOW) <= 0


@pytest.mark.parametrize("width", ["wide", "phone"])
def test_the_report_of_a_search_that_was_killed_says_so(
    killed: Path, visit: Callable[..., Any], screenshots: Path, width: str
) -> None:
    visited = visit((killed / "report.html").as_uri(), width)
    page = visited.page
    assert page.locator(".badge").inner_text() == "not finished"
    warning = page.locator(".notices .serious").first.inner_text()
    assert "The search stands after epoch" in warning
    assert "of 40" in warning
    assert "actsearch search --resume" in warning
    assert page.locator(".hero .label").inner_text() == "The best function so far"
    assert page.locator("#function .histogram").count() == 3, "inputs are kept every epoch"
    assert page.locator("#comparison").count() == 0
    fits(page)
    has_alternatives(page)
    page.screenshot(path=screenshots / f"report-killed-{width}.png", full_page=True)
    assert visited.complaints == []
    assert visited.stays_within((killed / "report.html").as_uri())


def test_a_search_that_is_told_to_end_leaves_its_report(killed: Path, tmp_path: Path) -> None:
    command = actsearch("search", "--resume", killed, "--trainer.threads", "1")
    before = _epochs(killed.parents[2])
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 200
        while _epochs(killed.parents[2]) <= before + 1:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline, "the search does not go on"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    done_epochs = _epochs(killed.parents[2])
    assert f"after epoch {done_epochs} of 40" in (killed / "report.html").read_text()


@pytest.mark.parametrize("width", ["wide", "phone"])
def test_the_report_of_a_transfer(finished: Path, visit: Callable[..., Any], screenshots: Path, width: str) -> None:
    few = ["--seeds", "2", "--epochs", "1", "--compare.activations", "[relu]", "--compare.random", "1"]
    folder = finished / "transfer" / "own"
    if not folder.exists():
        assert f"report       {folder}/report.html" in done("transfer", finished, *few, cwd=finished)
    visited = visit((folder / "report.html").as_uri(), width)
    page = visited.page
    assert page.locator("h1").inner_text() == "resnet8 on digits"
    assert page.locator("#comparison tbody tr").count() == 3
    assert f"actsearch transfer {finished}" in page.locator("#again").inner_text()
    assert page.locator("#settings").get_by_text("Versions and machine").is_visible()
    fits(page)
    has_alternatives(page)
    page.screenshot(path=screenshots / f"report-transfer-{width}.png", full_page=True)
    assert visited.complaints == []
    assert visited.stays_within((folder / "report.html").as_uri())
