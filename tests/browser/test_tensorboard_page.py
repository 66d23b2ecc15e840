"""TensorBoard on a real run, opened by the verb and looked at in a browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from .conftest import Visit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
# TensorBoard's own words, on every page or on that of the hyper-parameters, whatever it shows.
ITS_OWN = {
    "WARNING: Multiple instances of Three.js being imported.",
    "cannot process domain type %s without discrete domain values DATA_TYPE_STRING",
    "paper-header-panel is deprecated. Please use app-layout instead!",
    "paper-toolbar is deprecated. Please use app-layout instead!",
}
PATIENCE = 30_000  # ms


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small search with a comparison by one seed."""
    folder = tmp_path_factory.mktemp("searched")
    settings = ["--space", "tiny", "--search.epochs", "3", "--compare.seeds", "1", "--compare.random", "1"]
    command = [sys.executable, "-m", "actsearch", "search", *settings, "--compare.activations", "[relu]"]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs" / "tiny").iterdir()
    return run


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return int(one.getsockname()[1])


def start(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """The verb, and the addresses that it printed."""
    command = [sys.executable, "-m", "actsearch", "tensorboard", *arguments]
    process = subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Ctrl-C is ignored by whatever a shell starts in the background, and by its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    found: dict[str, str] = {}
    too_late = threading.Timer(100, process.kill)
    too_late.start()
    try:
        for line in process.stdout:
            if "Ctrl-C" in line:
                return process, found
            name, _, address = line.rpartition(" ")
            found[name.strip()] = address.strip()
    finally:
        too_late.cancel()
    pytest.fail(f"no address was printed: {process.communicate()}")


@pytest.fixture(scope="module")
def board(run: Path) -> Iterator[dict[str, str]]:
    process, addresses = start(str(run.parents[1]), "--port", str(free_port()))
    yield addresses
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "closed" in out
    assert "Traceback" not in err


def check(visited: Visit, address: str) -> None:
    assert set(visited.complaints) <= ITS_OWN
    assert visited.stays_within(address.rpartition("/")[0])


def settled(page: Page) -> None:
    """Wait until nothing is fetched any more, and the charts have moved to their places."""
    page.wait_for_load_state("networkidle", timeout=PATIENCE)
    page.wait_for_timeout(1500)


@pytest.mark.parametrize("width", ["wide", "phone"])
def test_the_slots_stand_side_by_side_with_every_candidate(
    width: str, board: dict[str, str], visit: Callable[..., Visit], screenshots: Path
) -> None:
    visited = visit(board["slots"], width)
    page = visited.page
    page.get_by_text("Matches (7)").first.wait_for(timeout=PATIENCE)  # candidates of u1
    settled(page)
    titles = page.locator("tf-custom-scalar-multi-line-chart-card").evaluate_all("all => all.map(one => one.title)")
    assert titles[:3] == ["u1", "u2", "b1"]
    assert "train, arch and val" in titles
    assert page.evaluate("localStorage.getItem('_ignoreYOutliers')") == "false"
    tops = [box["y"] for box in map(boxes, page.locator("tf-custom-scalar-multi-line-chart-card").all()[:2])]
    if width == "wide":
        assert tops[0] == tops[1]
    page.screenshot(path=screenshots / f"tensorboard-slots-{width}.png")
    check(visited, board["slots"])


def boxes(element: Any) -> dict[str, float]:
    found = element.bounding_box()
    assert found is not None
    return found


@pytest.mark.parametrize("width", ["wide", "phone"])
def test_final_scores_are_in_the_table_of_runs(
    width: str, run: Path, board: dict[str, str], visit: Callable[..., Visit], screenshots: Path
) -> None:
    visited = visit(board["final scores"], width)
    page = visited.page
    page.get_by_text("test − random").first.wait_for(state="attached", timeout=PATIENCE)
    settled(page)
    for heading in ("space", "strategy", "search loss", "discrete loss", "test", "test − ReLU", "test − random"):
        assert page.get_by_text(heading, exact=True).count(), heading
    rows = {row["name"]: row["mean"] for row in json.loads((run / "comparison.json").read_text())["rows"]}
    assert page.get_by_text(f"{100 * rows['discovered']:#.5g}", exact=True).count()
    page.screenshot(path=screenshots / f"tensorboard-scores-{width}.png")
    check(visited, board["final scores"])


@pytest.mark.parametrize("width", ["wide", "phone"])
def test_pictures_load(width: str, board: dict[str, str], visit: Callable[..., Visit], screenshots: Path) -> None:
    visited = visit(board["pictures"], width)
    images = visited.page.locator("tf-image-loader img")
    images.first.wait_for(timeout=PATIENCE)
    settled(visited.page)
    assert images.count() == 4  # the function, and the probabilities of three slots
    assert images.evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 300)")
    visited.page.screenshot(path=screenshots / f"tensorboard-pictures-{width}.png")
    check(visited, board["pictures"])


def test_text_is_a_table_and_losses_are_filtered(
    board: dict[str, str], visit: Callable[..., Visit], screenshots: Path
) -> None:
    visited = visit(board["text"])
    visited.page.get_by_text("smoothness").first.wait_for(timeout=PATIENCE)
    settled(visited.page)
    assert visited.page.locator("tf-text-loader table").count() >= 2  # facts, and the comparison
    visited.page.screenshot(path=screenshots / "tensorboard-text-wide.png")
    check(visited, board["text"])
    visited = visit(board["losses"])
    visited.page.get_by_text("loss/val", exact=True).first.wait_for(timeout=PATIENCE)
    settled(visited.page)
    assert visited.page.get_by_text("probability/", exact=False).count() == 0
    visited.page.screenshot(path=screenshots / "tensorboard-losses-wide.png")
    check(visited, board["losses"])


def test_a_run_that_begins_later_is_shown_too(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "runs" / "first")
    process, addresses = start(str(tmp_path / "runs"), "--port", str(free_port()))
    try:
        shutil.copytree(run, tmp_path / "runs" / "second")
        server = addresses["slots"].rpartition("/")[0]
        end = time.monotonic() + 40
        while "second" not in (found := json.load(urllib.request.urlopen(f"{server}/data/runs", timeout=10))):
            assert time.monotonic() < end, found
            time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
