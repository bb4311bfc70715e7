"""The report: the same bytes twice and on any processor, partial records, the committed files, errors that name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from reports import (
    ANSWERS,
    DESCRIPTIONS,
    LADDER,
    NAMES,
    ROOT,
    WIDTH,
    boards_of,
    crash,
    make_row,
    make_rows,
    whole_report,
    write_all,
    write_rows,
)

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.lab.record import read_records
from tools.report import TEMPLATE, ladder_names, recipe_descriptions, write_report
from tools.report.__main__ import main as report
from tools.report.front import build_fronts
from tools.report.ladder_page import ladder_page
from tools.report.leaderboard import build_leaderboards, compare_entries
from tools.report.ngram_file import NgramFile
from tools.report.seconds import read_seconds
from tools.report.template import UNMEASURED, Filler

TIMINGS = ROOT / "results" / "seconds.jsonl"
COUNTED = ROOT / "results" / "ngrams.jsonl"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_report(tmp_path_factory)


@pytest.mark.thorough
def test_the_same_bytes_twice(made: Path, tmp_path: Path) -> None:
    paths = write_all(made / "l.jsonl", tmp_path)
    assert len(paths) == len(NAMES) + 2 + 2
    for path in paths:
        assert path.read_bytes() == (made / path.relative_to(tmp_path)).read_bytes(), path.name


DRAW = """
import sys
from pathlib import Path
from hectogpt.lab.record import read_records
from tools.report import ladder_names
from tools.report.leaderboard import build_leaderboards
from tools.report.plots import plot_ladder, plot_rung
for board in build_leaderboards(read_records(Path(sys.argv[1])), ladder_names()):
    if board.track == "closed":
        for place in (0, 7):
            plot_rung(Path(sys.argv[2]) / f"{board.corpus}-{place}.png", board, place)
        plot_ladder(Path(sys.argv[2]) / f"{board.corpus}.png", board)
"""


@pytest.mark.thorough
def test_the_same_bytes_on_a_simpler_processor(tmp_path: Path) -> None:
    """numpy picks its loops by the processor: two committed pictures once differed by a grey level in a few pixels."""
    from numpy._core._multiarray_umath import __cpu_dispatch__

    drawn = []
    for name, without in (("here", ""), ("simpler", " ".join(__cpu_dispatch__))):
        folder = tmp_path / name
        folder.mkdir()
        environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": without}
        subprocess.run([sys.executable, "-W", "ignore", "-c", DRAW, LADDER, folder], env=environment, check=True)
        drawn.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(drawn[0]) == 6
    assert drawn[0] == drawn[1]


@pytest.mark.thorough
def test_drawing_changes_no_global_state() -> None:
    """Importing the report chooses no backend for matplotlib, and does not load pyplot."""
    program = "import sys, tools.report, matplotlib\n"
    program += "print({'matplotlib.pyplot'} & set(sys.modules))\n"
    program += "print(isinstance(dict.__getitem__(matplotlib.rcParams, 'backend'), str))"
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    assert done.stdout.split() == ["set()", "False"]


def test_pictures_carry_no_date_and_no_version(made: Path) -> None:
    pictures = sorted((made / "results" / "pictures").glob("*.png"))
    assert [p.name for p in pictures][:2] == [
        "tinystories-closed-00-baseline.png",
        "tinystories-closed-01-learning_rate.png",
    ]
    for picture in pictures:
        assert not {b"tEXt", b"tIME", b"iTXt"} & set(re.findall(rb"tEXt|tIME|iTXt", picture.read_bytes()))


def test_every_kind_of_record_has_its_place(made: Path) -> None:
    page = (made / "results" / "LADDER.md").read_text()
    for heading in ("Other recipes", f"{WIDTH} without one part", "### 20 steps", "Sweeps", "Notes"):
        assert heading in page
    assert "schedule: diverged, counted as a uniform guess: step 3: loss nan (seed 3)" in page
    assert f"{WIDTH}: against the rules of closed: 700 s, at most 600 (seed 3)" in page
    assert f"{WIDTH}: failed, not counted: SIGKILL (seed 4)" in page
    assert re.search(r"\| learning_rate \| 6.100 ± 0.000 \|.*\| helps \|", page)
    assert "without-schedule: not an ablation of any rung of today's ladder" in page


def test_partial_records(tmp_path: Path) -> None:
    """One seed, no test scores, a rung missing in between, a run that diverged at once, a rung that only crashed."""
    rows = [make_row("baseline", 0, tested=False), make_row("schedule", 0, tested=False)]
    rows.append(make_row(WIDTH, 1, tested=False, status="diverged", error="step 1", losses=[], grad_norms=[]))
    rows[2]["params"] = None
    rows.append(crash(make_row("learning_rate", 0)))
    write_all(write_rows(tmp_path / "l.jsonl", rows), tmp_path)
    assert UNMEASURED in (tmp_path / "answers" / "learning.md").read_text()
    [board] = boards_of(rows)
    pair, split = compare_entries(board.rungs[1], board.rungs[0])
    assert split == "dev"
    assert pair is not None
    assert pair.p is None
    assert compare_entries(board.rungs[2], board.rungs[1])[0] is None, "no seed in common"


def test_pictures_of_rungs_that_are_no_more_go(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "l.jsonl", [make_row("baseline", 0), make_row("schedule", 0)])
    write_report(path, tmp_path, tmp_path, NAMES, DESCRIPTIONS)
    (tmp_path / "pictures" / "photo.png").write_bytes(b"")
    write_rows(path, [make_row("baseline", 0)])
    write_report(path, tmp_path, tmp_path, NAMES, DESCRIPTIONS)
    left = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert left == [
        "photo.png",
        "tinystories-closed-00-baseline.png",
        "tinystories-closed-curves.png",
        "tinystories-closed-ladder.png",
    ]


# --- the committed files ----------------------------------------------------------------------------------------------


def test_descriptions_are_the_docstrings_of_the_recipes() -> None:
    """The first paragraph says what, the others why."""
    from hectogpt.lab import recipes

    assert ladder_names() == recipes.names()[: len(ladder_names())]
    for name, text in recipe_descriptions().items():
        assert text.partition("\n\n")[0] == recipes.describe(name)


def test_the_committed_report_is_of_todays_ladder() -> None:
    page = (ROOT / "results" / "LADDER.md").read_text(encoding="utf-8")
    answer = (ANSWERS / "learning.md").read_text(encoding="utf-8")
    for place, name in enumerate(ladder_names()):
        assert page.count(f"\n| {place} | {name} | ") == 4, "on both corpora, in the ladder and against seconds"
        assert answer.count(f"\n### {place} {name}\n") == 1
    for text, folder in ((page, ROOT / "results"), (answer, ANSWERS)):
        pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
        assert pictures
        for picture in pictures:
            assert (folder / picture).is_file(), picture
    assert "{{" not in answer
    assert UNMEASURED not in answer


def test_the_committed_texts_are_what_the_committed_records_give() -> None:
    """Byte for byte; `python -m tools.report` writes them."""
    seconds = read_seconds(TIMINGS)
    boards = build_leaderboards(NgramFile.read(COUNTED).complete(read_records(LADDER)), ladder_names())
    page = ladder_page(boards, recipe_descriptions(), build_fronts(boards, seconds, ladder_names()), seconds)
    assert (ROOT / "results" / "LADDER.md").read_text(encoding="utf-8") == page
    template = ANSWERS / TEMPLATE
    filler = Filler(boards, ladder_names(), recipe_descriptions(), "../results/pictures")
    answer = filler.fill(template.read_text(encoding="utf-8"), template)
    assert (ANSWERS / "learning.md").read_text(encoding="utf-8") == answer


@pytest.mark.thorough
def test_the_committed_pictures_are_what_the_committed_records_give(tmp_path: Path) -> None:
    written = write_report(LADDER, tmp_path, tmp_path, timings=TIMINGS, ngrams=COUNTED)
    pictures = {path.name: path.read_bytes() for path in written if path.suffix == ".png"}
    committed = ROOT / "results" / "pictures"
    assert {path.name for path in committed.glob("*.png")} == set(pictures)
    assert [name for name, content in pictures.items() if (committed / name).read_bytes() != content] == []


def test_no_number_of_the_committed_text_is_missing(made: Path) -> None:
    text = (made / "answers" / "learning.md").read_text()
    assert "{{" not in text
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (made / "answers" / picture).is_file()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "", '{"corpus": "half a li'])
def test_no_records(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "l.jsonl").write_text(content)
    with pytest.raises(UserError, match="no records") as caught:
        write_report(tmp_path / "l.jsonl", tmp_path / "out", tmp_path, NAMES, DESCRIPTIONS)
    assert caught.value.code == errors.DATA
    assert caught.value.why == ("there is no such file" if content is None else "it has no whole line")
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "l.jsonl", make_rows(1))
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:50]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="line 3") as caught:
        write_report(path, tmp_path / "out", tmp_path, NAMES, DESCRIPTIONS)
    assert caught.value.code == errors.DATA


def test_the_command_prints_the_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", make_rows())
    monkeypatch.setattr(sys, "argv", ["report", "--ladder", "rows.jsonl", "--out", "out"])
    assert report() == 0
    files = capsys.readouterr().out.split()
    assert "out/LADDER.md" in files
    assert all((tmp_path / file).is_file() for file in files)
    monkeypatch.setattr(sys, "argv", ["report", "--ladder", "none.jsonl"])
    assert report() == errors.DATA
