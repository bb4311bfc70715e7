"""Records of trials that somebody else has written or damaged: read, drawn, put on pages and printed.

Each is either read, and then every table, picture and page can be made of it, or refused in one clear error that names
its line. No text of a record becomes an element or attribute of a page, HTML in Markdown, or an escape on a terminal.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from odd_records import (
    ARMS,
    CHANGES,
    DRAWN_QUICKLY,
    ESCAPE,
    LINES,
    MUTATIONS,
    SEEDS,
    Row,
    good_row,
    random_changes,
)
from promises import Line

from hectogpt import cli, errors
from hectogpt.cli.compare_run import Outcome, show_results
from hectogpt.data import Corpus, open_corpus
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.lab.compare import Comparison
from hectogpt.lab.comparison_page import render_page as comparison_page
from hectogpt.lab.plan import Arm
from hectogpt.lab.record import Record, failures, read_records
from hectogpt.lab.tracks import TRACKS
from hectogpt.lab.verdict import give_verdicts
from tools.report import ladder_names, recipe_descriptions, write_report
from tools.report.ladder_page import ladder_page
from tools.report.leaderboard import build_leaderboards


@dataclass
class Tally:
    """Tries and failures by promise, with the first few failures in words."""

    tries: dict[str, int] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)

    def check(self, promise: str, held: bool, what: str) -> None:
        """Count one try."""
        self.tries[promise] = self.tries.get(promise, 0) + 1
        if not held:
            self.failures.setdefault(promise, []).append(what)


ANSWERED = "odd records: read or refused in one clear error, never a traceback"
DRAWN = "odd records: tables, pictures and pages of all that are read"
ON_PAGES = "odd records: no element or attribute of theirs on a page, no HTML in Markdown"
ON_TERMINALS = "odd records: no escape in what is printed or written"


def check(quick: bool) -> list[Line]:
    """Try every odd record; the long proof draws the pictures of all of them and adds random changes."""
    begun, tally = time.perf_counter(), Tally()
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name), tally)
        cases = {name: place.lines(change) for name, change in CHANGES.items()}
        cases |= {name: [line] for name, line in LINES.items()}
        for name, lines in cases.items():
            place.attempt(name, lines, pictures=not quick or name in DRAWN_QUICKLY)
        if not quick:
            for name, change in random_changes(MUTATIONS):
                place.attempt(name, place.lines(change), pictures=False)
        place.attempt_files()
    seconds = time.perf_counter() - begun
    found = []
    for promise, tries in tally.tries.items():
        wrong = tally.failures.get(promise, [])
        found.append(Line(promise, tries, len(wrong), seconds / len(tally.tries), "; ".join(wrong[:3])))
    return found


class Place:
    """A folder to draw in, a small corpus, and what pages are made of when nothing is odd."""

    def __init__(self, folder: Path, tally: Tally) -> None:
        self.folder, self.tally = folder, tally
        self.corpus = small_corpus(folder)
        self.ladder, self.descriptions = ladder_names(), recipe_descriptions()
        arms = [Arm(name, replace(recipes.recipe(name), threads=1), {}) for name in ARMS]
        self.comparison = Comparison(arms, range(SEEDS), self.corpus, TRACKS["closed"], folder / "r.jsonl")
        self.write(self.lines({}))
        boards = build_leaderboards(read_records(self.comparison.out), self.ladder)
        self.plain_markdown = ladder_page(boards, self.descriptions).count("<")
        self.template = elements(self.compared()[1])
        for rare in ({"rules_broken": ["x"]}, {"losses": [3.0]}):  # a note, and a curve that is a dot
            records = [replace(record, **rare) for record in self.comparison_records()]
            self.template |= elements(self.compared(records)[1])

    def lines(self, change: Row) -> list[bytes]:
        """The lines of a file in which every record has the change; those of a change of the recipe alone the first."""
        found = []
        for seed in range(SEEDS):
            for place, recipe in enumerate(ARMS):
                row = good_row(recipe, seed, self.corpus.sha256)
                mine = change if not place or "recipe" not in change else {}
                found.append(json.dumps(row | mine).encode())
        return found

    def write(self, lines: Sequence[bytes]) -> None:
        """Make the file of records hold these lines."""
        self.comparison.out.write_bytes(b"".join(line + b"\n" for line in lines))

    def comparison_records(self) -> list[Record]:
        """The records that the comparison finds in the file."""
        self.comparison.missing()
        return list(self.comparison.records.values())

    def compared(self, records: list[Record] | None = None) -> tuple[Outcome, str]:
        """What the comparison says of the records of the file, or of these, and its page; "" if there are none."""
        self.comparison.missing()
        if records is not None:
            self.comparison.records = {(r.arm, r.seed): r for r in records}
        results = self.comparison.results()
        outcome = Outcome(self.comparison, results, give_verdicts(self.comparison, results), False, "")
        notes = failures(record for result in results for record in result.records)
        page = comparison_page(self.comparison, results, outcome.verdicts, notes, "") if results else ""
        return outcome, page

    def attempt(self, name: str, lines: Sequence[bytes], pictures: bool) -> None:
        """Read a file of these lines, make everything of it that can be made, and look at the result."""
        records = self.read(name, lines)
        if records is None:
            return
        try:
            self.make(name, records, pictures)
        except Exception:
            self.tally.check(DRAWN, False, f"{name}: {traceback.format_exc(limit=-1)}")
        else:
            self.tally.check(DRAWN, True, name)

    def read(self, name: str, lines: Sequence[bytes]) -> list[Record] | None:
        """The records of a file of these lines; None if it is refused."""
        self.write(lines)
        try:
            records = read_records(self.comparison.out)
        except UserError as error:
            clear = error.code == errors.DATA and re.search(r"line \d+ is not a record", error.what) is not None
            self.tally.check(ANSWERED, clear and len(str(error)) < 2000, f"{name}: {error.what}")
            self.shown(name, str(error))
        except Exception:
            self.tally.check(ANSWERED, False, f"{name}: {traceback.format_exc(limit=-1)}")
        else:
            self.tally.check(ANSWERED, True, name)
            return records
        return None

    def make(self, name: str, records: list[Record], pictures: bool) -> None:
        """Tables, pages and, if asked for, pictures."""
        boards = build_leaderboards(records, self.ladder)
        if pictures:
            out = self.folder / "out"
            write_report(self.comparison.out, out, self.folder / "no answers", self.ladder, self.descriptions)
            markdown = (out / "LADDER.md").read_text(encoding="utf-8")
            pngs = list((out / "pictures").iterdir())
            whole = all(png.read_bytes().endswith(b"IEND\xaeB`\x82") for png in pngs)
            self.tally.check(DRAWN, whole and out.resolve() in (out / "pictures").resolve().parents, name)
        else:
            markdown = ladder_page(boards, self.descriptions)
        outcome, compared = self.compared()
        if html := compared:
            self.tally.check(ON_PAGES, elements(html) <= self.template, f"{name}: {elements(html) - self.template}")
            self.shown(name, texts(html))
        foreign = markdown.count("<") - self.plain_markdown or re.search(
            r"(?<!\\)\]\(javascript|^# head", markdown, re.M
        )
        self.tally.check(ON_PAGES, not foreign, f"{name}: LADDER.md")
        self.shown(name, markdown)
        if outcome.results:
            self.shown(name, printed(lambda: show_results(outcome)))

    def shown(self, name: str, text: str) -> None:
        """Look for control characters, and for text that no file can hold."""
        odd = [c for c in set(text) if not c.isprintable() and c not in "\n\t"]
        self.tally.check(ON_TERMINALS, not odd, f"{name}: {odd[:3]}")

    def attempt_files(self) -> None:
        """What is no file of records, through the command: nothing waits, and the name is told without escapes."""
        out, odd = self.folder / "command", self.folder / "\x1b]0;pwn\x07.jsonl"
        odd.mkdir()
        pipe = self.folder / "pipe"
        if hasattr(os, "mkfifo"):
            os.mkfifo(pipe)
        (self.folder / "empty").write_bytes(b"")
        names = (odd, pipe, self.folder / "empty", Path(os.devnull), Path("/dev/zero"), self.folder / "none")
        for path in names:
            code, told = self.report(path, out)
            self.tally.check(
                ANSWERED, code == errors.DATA and told.startswith("error: "), f"{path.name!r}: {code}, {told}"
            )
            self.shown(path.name, told)
        self.write(self.lines({"corpus": ESCAPE}))
        code, told = self.report(self.comparison.out, self.folder / "\x1b[31mo")
        self.tally.check(ANSWERED, code == 0, f"an odd --out: {code}, {told}")
        self.shown("an odd --out", told)

    def report(self, ladder: Path, out: Path) -> tuple[int, str]:
        """Exit code and message of a report; no written answer is touched."""
        try:
            write_report(ladder, out, self.folder / "none")
        except UserError as error:
            return error.code, str(error)
        return 0, ""


def small_corpus(folder: Path) -> Corpus:
    """A corpus of 600 made-up tokens a split."""
    draw = np.random.default_rng(0)
    (folder / "corpus").mkdir()
    for split in ("train", "dev", "test"):
        draw.integers(0, 50, 600).astype("<u2").tofile(folder / "corpus" / f"{split}.bin")
    return open_corpus(str(folder / "corpus"), cache=folder / "cache")


class _Elements(HTMLParser):
    """The elements of a page with their attributes, and its text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, str]] = set()
        self.words: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.found |= {(tag, name) for name, _ in [("", None), *attrs]}
        self.words += [value for _, value in attrs if value]

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.found.add(("a comment", data[:20]))


def _parsed(html: str) -> _Elements:
    parser = _Elements()
    parser.feed(html)
    parser.close()
    return parser


def elements(html: str) -> set[tuple[str, str]]:
    """(element, attribute) of everything on a page; ("script", "") for an element without attributes."""
    return _parsed(html).found


def texts(html: str) -> str:
    """What can be read on a page, and the values of its attributes."""
    return "\n".join(_parsed(html).words)


def printed(show: Callable[[], None]) -> str:
    """What a function prints."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
        show()
    return written.getvalue()


def command(*arguments: str) -> tuple[int, str]:
    """Exit code and output of a command that runs in this process."""
    code = 0

    def run() -> None:
        nonlocal code
        try:
            cli.main(list(arguments))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0

    text = printed(run)
    return code, text
