"""What every room's tests share: options, the path to the textbook, one thread.

`--slow`, `--thorough` and `--network` run the tests marked so; `gpu` tests run where there is a CUDA device, `browser`
tests where there is a Chromium. Skipped otherwise. Caches and settings go to a temporary home, never to the user's own.
`--reference FOLDER` tests the three files in that folder, an unzipped submission say, in place of the checkout's.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

CHECKOUT = Path(__file__).resolve().parent.parent

NO_BROWSER = "no Chromium; Debian: apt-get install chromium"

# Where this package, torch, matplotlib, Hugging Face, marimo and browsers keep things, below a session's own home.
# Child processes inherit it. All are named, because a variable that the user has set would win over HOME. TMPDIR is
# for what children leave in it, such as torch's compiler; this process has chosen its own by then, so tmp_path stays.
KEPT_AT_HOME = {
    "HOME": "",
    "TMPDIR": "",
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "XDG_STATE_HOME": ".local/state",
    "HECTOGPT_CACHE": ".cache/hectogpt",
    "MPLCONFIGDIR": ".cache/matplotlib",
    "HF_HOME": ".cache/huggingface",
}

BUILT = {"build", "dist", "runs", "hectogpt.egg-info"}  # folders that tests of a package and users of a checkout fill
FILES_BEFORE = pytest.StashKey[set[str]]()

# One thread: sums come out in one order, and tests that run side by side do not fight over cores.
torch.set_num_threads(1)

# No limit of Hypothesis's on an example's time (200 ms): on a busy machine it fails tests whose answers are right.
settings.register_profile("any machine", deadline=None, max_examples=50)
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow: minutes rather than seconds")
    parser.addoption("--thorough", action="store_true", help="run the tests marked thorough, which .ci/run does")
    parser.addoption("--network", action="store_true", help="run the tests marked network: they need the hub")
    parser.addoption("--reference", type=Path, default=CHECKOUT / "reference", help="folder of the textbook's files")


def pytest_configure(config: pytest.Config) -> None:
    # Here and not in a fixture: test files import matplotlib, which asks for its folder before any fixture runs.
    # The workers of pytest-xdist inherit the environment, so they share one folder, and what one builds both use.
    if not hasattr(config, "workerinput"):
        home = Path(tempfile.mkdtemp(prefix="hectogpt-tests-"))
        config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
        os.environ.update({name: str(home / folder) for name, folder in KEPT_AT_HOME.items()})
        # Compiled kernels stay from one session to the next: their names hold the hash of all that they are made of.
        kernels, cache = CHECKOUT / "build" / "kernels", home / KEPT_AT_HOME["HECTOGPT_CACHE"]
        for folder in (kernels, cache):
            folder.mkdir(parents=True, exist_ok=True)
        (cache / "kernels").symlink_to(kernels)
    # tools/ and bench/ are not installed; pytest may have been started anywhere, or as a program of its own.
    # Modules of tests/faults are programs of their own (`make proof`), and some other tests use them.
    sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests" / "faults")]
    # The textbook is three flat files, imported by their bare names, as its graders do. Its shapes are checked too.
    sys.path.insert(0, str(config.getoption("--reference").resolve()))
    install_import_hook(["model_solution", "utils", "train"], "beartype.beartype")


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[FILES_BEFORE] = list_files()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if the tests left a file in the checkout."""
    left = sorted(list_files() - session.config.stash[FILES_BEFORE])
    if left and not hasattr(session.config, "workerinput"):
        print(f"\nnew in the checkout, though tests write below tmp_path only: {', '.join(left)}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def list_files() -> set[str]:
    """The files of the checkout, except those of environments, builds and caches."""
    files = set()
    for folder, folders, names in os.walk(CHECKOUT):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__")) and name not in BUILT]
        files |= {os.path.relpath(os.path.join(folder, name), CHECKOUT) for name in names}
    return files


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {
        "slow": None if config.getoption("--slow") else "minutes rather than seconds; run with --slow",
        "thorough": None if config.getoption("--thorough") else "long chains of commands; run with --thorough",
        "network": None if config.getoption("--network") else "needs the hub; run with --network",
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "browser": None if find_browser() else NO_BROWSER,
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


def find_browser() -> str | None:
    """The Chromium that the package itself would print with."""
    from tools.research.answers import (
        find_browser as find,  # not above: run-time type checks come with pytest_configure
    )

    return find()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs commands in this process, in the test's own folder."""
    from command import Here  # not above: run-time type checks come with pytest_configure

    return Here(tmp_path, monkeypatch, capsys)


@pytest.fixture(scope="session")
def reference(request: pytest.FixtureRequest) -> Path:
    """The folder of the textbook under test."""
    return request.config.getoption("--reference").resolve()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small corpus with some order in it."""
    from experiments import make_corpus

    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tokens, for commands."""
    from helpers import write_tokens

    return write_tokens(tmp_path_factory.mktemp("tokens") / "stories")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all of a process's tests: a second one of Playwright's loops cannot run beside the first."""
    sync_api = pytest.importorskip("playwright.sync_api")
    flags = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_browser(), args=[*flags.split(), "--no-first-run"])
        yield started
        started.close()
