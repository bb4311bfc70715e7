"""Where the cache lies, permissions, leftovers, and what Windows lacks. That files are whole or not at all, and locks:
`python tests/faults power_cut killed two_at_once`."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from command import environment
from helpers import ROOT

from hectogpt import files

PROGRAMS = ROOT / "tests" / "programs"

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking creates nothing."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for chosen, own, xdg, expected in (
        (None, "", "", "home/.cache/hectogpt"),
        (None, "", "relative/folder", "home/.cache/hectogpt"),
        (None, "", "/xdg", "/xdg/hectogpt"),
        (None, "~/own", "/xdg", "home/own"),
        ("/chosen", "/own", "/xdg", "/chosen"),
    ):
        monkeypatch.setenv("HECTOGPT_CACHE", own)
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert files.cache_dir(chosen) == tmp_path / expected
    assert not list(tmp_path.iterdir())


@posix
def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with files.replacing(tmp_path / "file") as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors creates its files
        assert os.umask(0o027) == 0o027, "and the umask is as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "[f]*"
    keep = [folder, tmp_path / "f.new-1", tmp_path / ".f.new-1", tmp_path / ".[f]*.other-1"]
    gone = [tmp_path / ".[f]*.new-12", tmp_path / ".[f]*.old-12"]
    for path in (*keep, *gone):
        path.mkdir()
    files.remove_leftovers(folder)
    assert sorted(tmp_path.iterdir()) == sorted(keep)


# --- Windows ----------------------------------------------------------------------------------------------------------

# What Windows lacks, taken away from this process and its children.
WINDOWS = """
import os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
lacks = "killpg", "getpgrp", "fork", "mkfifo", "sched_getaffinity", "geteuid"
for module, names in ((signal, ["SIGHUP"]), (os, lacks)):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""
PROGRAM = """
import os, pathlib, signal
from hectogpt import signals, process
from hectogpt.cli import main
from hectogpt.files import append_line, write_atomic
assert set(signals.CODES) == {signal.SIGINT, signal.SIGTERM}
with signals.stop_on_signal() as received:
    signal.raise_signal(signal.SIGTERM)
assert received == [signal.SIGTERM]
messages = []
receive = lambda message, _: messages.append(message)
assert process.Child("child").listen({"do": "echo"}, receive).error is None
assert messages[1] == {"bytes": {"do": "echo"}}
ended = process.Child("child").listen({"do": "hang"}, receive, total_seconds=1.0)
assert ended.error == "no answer in time", ended
append_line(pathlib.Path("l.jsonl"), "{}")
write_atomic(pathlib.Path("f"), "x")
main(["show"])
"""


def test_what_windows_lacks_is_not_needed(tmp_path: Path) -> None:
    """No SIGHUP, no process groups, no fork, no flock."""
    (tmp_path / "sitecustomize.py").write_text(WINDOWS, encoding="utf-8")
    path = os.pathsep.join(map(str, (tmp_path, ROOT, PROGRAMS)))
    known, program = environment(tmp_path, PYTHONPATH=path), [sys.executable, "-c", PROGRAM]
    done = subprocess.run(program, cwd=tmp_path, env=known, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "l.jsonl").read_bytes() == b"{}\n"
