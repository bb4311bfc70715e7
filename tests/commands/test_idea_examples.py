"""Ideas end to end: the example, a part of a user's own, a strange run folder. laws/test_ideas.py has each idea of
docs/literature/."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from command import TINY, Here, assert_good_error
from experiments import make_corpus
from helpers import ROOT, sections_changed

import hectogpt as public
from hectogpt import errors
from hectogpt.idea_file import read_idea
from hectogpt.lab.ideas import find_run
from hectogpt.serialization import idea_module

EXAMPLE = ROOT / "hectogpt" / "lab" / "examples" / "schedule.py"
SMALL = [*TINY[:-1], "2", "--corpus", "tokens"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokens").mkdir()
    make_corpus(tmp_path / "tokens")
    return tmp_path


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_file_says_what_to_type_and_never_overwrites(here: Here, tmp_path: Path) -> None:
    assert sections_changed(public.recipe("top"), find_run(f"{EXAMPLE}:idea")) == {"schedule", "ideas"}
    shown = here.ok("idea").stdout.splitlines()
    assert shown[-2:] == ["  hectogpt train my_idea.py:idea", "  hectogpt compare top my_idea.py:idea"]
    assert (tmp_path / "my_idea.py").read_bytes() == EXAMPLE.read_bytes()
    assert here("idea", "my own.py").stdout.endswith("compare top 'my own.py:idea'\n")
    (tmp_path / "my_idea.py").write_text("mine")
    assert_good_error(here("idea"), errors.USAGE, "my_idea.py exists")
    assert (tmp_path / "my_idea.py").read_text() == "mine"
    assert_good_error(here("idea", "mine"), errors.USAGE, "mine.py")
    assert_good_error(here("idea", "absent/mine.py"), errors.STORAGE, "absent/mine.py")


@pytest.mark.thorough
def test_an_idea_that_prints_is_trained_compared_and_continued(here: Here, folder: Path) -> None:
    """What is printed as JSON is JSON and nothing else."""
    here("idea", "mine.py")
    with open("mine.py", "a") as file:
        file.write("\nprint('noise')\nfactor = SqrtCooldown.factor\n")
        file.write("SqrtCooldown.factor = lambda *given: print('noise') or factor(*given)\n")
    assert json.loads(here.ok("train", "mine.py:idea", *SMALL, "--json").stdout)["recipe"] == "mine.py:idea"
    run = folder / "runs" / "mine-idea"
    assert (run / "idea.py").read_text() == (folder / "mine.py").read_text()
    done = here.ok("generate", run, "The", "--max-new-tokens", "3", "--json")
    assert len(json.loads(done.stdout)["texts"][0]["ids"]) == 3
    here.ok("export", run, "exported")  # the file made the run, not its model
    sweep = ["model.d_model=16", "model.n_heads=2", "data.seq_len=64", "data.batch_size=4"]
    options = ["--steps", "2", "--seeds", "1", "--threads", "1", "--corpus", "tokens", "--json", "--sweep", *sweep]
    (arm,) = json.loads(here.ok("compare", "mine.py:idea", *options).stdout)["arms"]
    assert arm["seeds"] == {"0": "ok"}
    assert len(list(Path("runs/ideas").iterdir())) == 1


# --- errors while it trains -------------------------------------------------------------------------------------------

LATE = """
from dataclasses import dataclass
from hectogpt import Run, Schedule, replace

@dataclass(frozen=True)
class Late(Schedule):
    def factor(self, step, steps):
        return 1.0 if step < 1 else {work}

def idea(run: Run) -> Run:
    return replace(run, schedule=Late())
"""


@pytest.mark.parametrize(("work", "told"), [("[][1]", "IndexError: list index"), ("exit(0)", "it called exit()")])
def test_an_error_in_training_is_one_message_with_the_line(here: Here, folder: Path, work: str, told: str) -> None:
    (folder / "mine.py").write_text(LATE.format(work=work))
    done = here("train", "mine.py:idea", *SMALL, "--quiet")
    assert_good_error(done, errors.USAGE, "mine.py: Late.factor failed", told, "mine.py, line 8", "--debug")


# --- somebody else's run folder ---------------------------------------------------------------------------------------


@pytest.fixture
def strange(here: Here, folder: Path) -> Path:
    """A run folder that was made elsewhere, with a part of a user; its idea.py writes a file when it is imported."""
    canary = f"from pathlib import Path\nPath({str(folder / 'canary')!r}).touch()\n"
    part = (ROOT / "tests" / "programs" / "fault.py").read_text().replace("Fault", "Strange")
    (folder / "mine.py").write_text(part + canary)
    here.ok("train", "mine.py:faulty@muon", *SMALL, "--quiet", "--save-every", "1", "--out", "made")
    sys.modules.pop(idea_module(read_idea(folder / "mine.py").sha256))
    for name in ("canary", "mine.py"):
        (folder / name).unlink()
    shutil.rmtree(folder / "cache" / "ideas")
    return folder / "made"


def test_nothing_of_somebody_elses_folder_is_executed(here: Here, strange: Path) -> None:
    canary, advice = strange.parent / "canary", "made/idea.py, and if you trust it, --idea "
    export = ["explore", "export", "model", "--model", "made", "--out", "page.html"]
    for command in (["generate", "made", "The"], export):
        assert_good_error(here(*command), errors.CHECKPOINT, "made uses classes from mine.py", advice)
    (strange.parent / "mine.py").write_text("print('another version')\n")
    done = here("generate", "made", "The", "--idea", "mine.py")
    assert_good_error(done, errors.CHECKPOINT, "mine.py is not the file that made it", "--idea made/idea.py")
    assert not canary.exists()

    here.ok("generate", "made", "The", "--max-new-tokens", "2", "--idea", "made/idea.py")
    assert canary.exists()
    here.ok(*export, "--idea", "made/idea.py")
    done = here("export", "made", "exported", "--idea", "made/idea.py")
    assert_good_error(done, errors.USAGE, "cannot be exported", "mine.py, which other")
    replayed = here.ok("check", "made", "--replay", "--idea", "made/idea.py", "--json")
    assert json.loads(replayed.stdout)["equal"] is True
    model, _ = public.load("made", idea="made/idea.py")
    assert type(model.config.inputs[0]).__name__ == "Strange"
    assert public.generate("made", "The", max_new_tokens=0, idea="made/idea.py") == "The"
    assert public.attention_maps("made", "The", "made/idea.py").shape[0] == 1
    assert here("generate", "made", "The").returncode == errors.CHECKPOINT, "not remembered: it was named, not run"
