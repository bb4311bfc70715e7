"""What every room's tests share: options, the path to the textbook, one thread.

`--slow` and `--network` run the tests marked so; `gpu` tests run where there is a CUDA device. Skipped otherwise.
`--reference FOLDER` tests the three files in that folder, an unzipped submission say, in place of the checkout's.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook

CHECKOUT = Path(__file__).resolve().parent.parent

# One thread: sums come out in one order, and tests that run side by side do not fight over cores.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow: minutes rather than seconds")
    parser.addoption("--network", action="store_true", help="run the tests marked network: they need the hub")
    parser.addoption("--reference", type=Path, default=CHECKOUT / "reference", help="folder of the textbook's files")


def pytest_configure(config: pytest.Config) -> None:
    # The textbook is three flat files, imported by their bare names, as its graders do. Its shapes are checked too.
    sys.path.insert(0, str(config.getoption("--reference").resolve()))
    install_import_hook(["model_solution", "utils", "train"], "beartype.beartype")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {
        "slow": None if config.getoption("--slow") else "minutes rather than seconds; run with --slow",
        "network": None if config.getoption("--network") else "needs the hub; run with --network",
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def reference(request: pytest.FixtureRequest) -> Path:
    """The folder of the textbook under test."""
    return request.config.getoption("--reference").resolve()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder that developers have beside the checkout; skips where there is none."""
    folder = CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all of a process's tests: a second one of Playwright's loops cannot run beside the first."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium: the program `chromium` is not on the PATH")
    flags = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=[*flags.split(), "--no-first-run"])
        yield started
        started.close()
