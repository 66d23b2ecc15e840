"""Shared by all tests: the torchvision shim first, one thread a worker, and the place of the development data."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path

import actsearch._torchvision  # noqa: F401

import postgresql_server
import pytest
import torch

# xdist runs one worker a core; more threads than that only wait for each other.
torch.set_num_threads(1)

REPOSITORY = Path(__file__).parent.parent
STARTED = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, metavar="N", help="skip tests that have not begun after so many seconds")


def pytest_runtest_setup(item: pytest.Item) -> None:
    limit = item.config.getoption("--seconds")
    if limit is not None and time.monotonic() - STARTED > limit:
        pytest.skip(f"not begun within {limit:g} seconds (--seconds)")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with real data for development; a test that needs it is skipped where it is missing."""
    root = Path(os.environ.get("ACTSEARCH_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no development data: set ACTSEARCH_DATA or put it at {root.name}")
    return root


@pytest.fixture
def postgresql(request: pytest.FixtureRequest) -> Iterator[postgresql_server.Server]:
    """A server of our own, which goes away after the test; one that asks for a password if the parameter is true."""
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("no driver of PostgreSQL: pip install 'actsearch[postgresql]'")
    programs = postgresql_server.programs()
    if programs is None:
        pytest.skip("no server of PostgreSQL: install the distribution's package postgresql")
    server = postgresql_server.Server(programs, getattr(request, "param", False))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
