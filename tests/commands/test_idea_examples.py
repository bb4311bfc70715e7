"""Ideas end to end: the examples, parts and optimizers of a user's own, a strange run folder; each function of the
example `literature` trained, resumed, scored, continued, shown; exported or refused."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from command import TINY, Here, assert_good_error
from experiments import make_corpus
from exported_models import difference, open_theirs
from helpers import ROOT

import hectogpt as public
from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.idea_file import read_idea
from hectogpt.lab import ideas
from hectogpt.lab.ideas import find_run
from hectogpt.serialization import idea_module
from hectogpt.training.run import sections_changed
from hectogpt.training.run_folder import read_steps

KINDS = ("schedule", "optimizer", "attention", "input", "data", "rates", "loss")
EXAMPLES = {kind: ROOT / "hectogpt" / "lab" / "examples" / f"{kind}.py" for kind in KINDS}
SMALL = [*TINY[:-1], "2", "--corpus", "tokens"]
SWEEP = ["model.d_model=16", "model.n_heads=2", "model.n_layers=1", "model.context_length=64"]
SWEEP += ["data.seq_len=64", "data.batch_size=4"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokens").mkdir()
    make_corpus(tmp_path / "tokens")
    return tmp_path


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_file_and_says_what_to_type(here: Here, tmp_path: Path) -> None:
    done = here("idea")
    assert done.stdout.splitlines()[-2:] == [
        "  hectogpt train my_idea.py:idea",
        "  hectogpt compare top my_idea.py:idea",
    ]
    for kind, example in EXAMPLES.items():
        assert here("idea", f"my {kind}.py", "--kind", kind).stdout.endswith(f"compare top 'my {kind}.py:idea'\n")
        assert (tmp_path / f"my {kind}.py").read_bytes() == example.read_bytes()
    assert (tmp_path / "my_idea.py").read_bytes() == EXAMPLES["schedule"].read_bytes()
    assert here("idea", "many.py", "--kind", "literature").stdout.endswith("compare top many.py:swiglu\n")


def test_the_command_never_overwrites(here: Here, tmp_path: Path) -> None:
    (tmp_path / "my_idea.py").write_text("mine")
    assert_good_error(here("idea"), errors.USAGE, "my_idea.py exists")
    assert (tmp_path / "my_idea.py").read_text() == "mine"
    assert_good_error(here("idea", "mine"), errors.USAGE, "mine.py")
    assert_good_error(here("idea", "absent/mine.py"), errors.STORAGE, "absent/mine.py")
    assert here("idea", "mine.py", "--kind", "magic").returncode == errors.USAGE


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_short_and_changes_what_it_says(kind: str) -> None:
    source = EXAMPLES[kind].read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 45
    assert source.startswith('"""Idea: ')
    assert "Expected: " in source
    run, top = find_run(f"{EXAMPLES[kind]}:idea"), public.recipe("top")
    sections = {"attention": "model", "input": "model", "rates": "optim", "optimizer": "optim"}
    assert sections_changed(top, run) == {sections.get(kind, kind), "ideas"}


# --- the kinds ----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_every_kind_trains_is_compared_and_generates(here: Here, folder: Path) -> None:
    """In one comparison, which prints JSON and nothing else although one of the files prints as well."""
    for kind in KINDS:
        here("idea", f"{kind}.py", "--kind", kind)
    with open("input.py", "a") as file:
        file.write("\nprint('noise')\nForward = RecentMeanLayer.forward\n")
        file.write("RecentMeanLayer.forward = lambda *given: print('noise') or Forward(*given)\n")
    options = ["--steps", "2", "--seeds", "1", "--threads", "1", "--corpus", "tokens", "--json", "--sweep", *SWEEP]
    done = here.ok("compare", *(f"{kind}.py:idea" for kind in KINDS), *options)
    found = json.loads(done.stdout)
    losses = {arm["arm"].partition(":")[0]: arm["dev"]["mean"] for arm in found["arms"]}
    assert [name.removesuffix(".py") for name in losses] == list(KINDS)
    # After 2 steps all are near each other; the schedules have been equal so far.
    assert all(abs(loss - losses["schedule.py"]) < 0.5 for loss in losses.values())
    assert len(set(losses.values())) == len(KINDS)
    assert len(list(Path("runs/ideas").iterdir())) == len(KINDS)
    for kind in KINDS:
        done = here.ok("train", f"{kind}.py:idea", *SMALL, "--json")
        assert json.loads(done.stdout)["recipe"] == f"{kind}.py:idea"
        run = folder / "runs" / f"{kind}-idea"
        assert (run / "idea.py").read_text() == (folder / f"{kind}.py").read_text()
        done = here.ok("generate", run, "The", "--max-new-tokens", "3", "--json")
        assert len(json.loads(done.stdout)["texts"][0]["ids"]) == 3


# --- parts of a user's own --------------------------------------------------------------------------------------------

MY_ALIBI = """
from dataclasses import dataclass
import torch
from hectogpt import ALiBi, Run, ScoreBias, replace

@dataclass(frozen=True)
class MyALiBi(ScoreBias):
    def build(self, n_heads, d_head):
        return MyALiBiLayer(n_heads)

class MyALiBiLayer(torch.nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        slopes = torch.tensor([2.0 ** (-8 * head / n_heads) for head in range(1, n_heads + 1)])
        self.register_buffer("slopes", slopes[:, None, None], persistent=False)

    def forward(self, query_positions, key_positions):
        return -self.slopes * (query_positions - key_positions)

def mine(run: Run) -> Run:
    return replace(run, model=replace(run.model, attention_parts=(MyALiBi(),)))

def ours(run: Run) -> Run:
    return replace(run, model=replace(run.model, attention_parts=(ALiBi(),)))
"""


def test_alibi_by_the_score_bias_seam_is_ours_to_the_bit(here: Here, folder: Path) -> None:
    (folder / "alibi.py").write_text(MY_ALIBI)
    summaries = {}
    for name in ("mine", "ours"):
        done = here.ok("train", f"alibi.py:{name}@rotary_positions", *SMALL, "--steps", "6", "--json", "--out", name)
        summaries[name] = json.loads(done.stdout)
    for number in ("dev_loss", "train_loss_first", "train_loss_last"):
        assert summaries["mine"][number] == summaries["ours"][number]
    texts = [here("generate", name, "The", "--max-new-tokens", "20", "--quiet").stdout for name in ("mine", "ours")]
    assert texts[0] == texts[1] != ""


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
    """A run folder that was made elsewhere; its idea.py writes a file when it is imported."""
    canary = f"from pathlib import Path\nPath({str(folder / 'canary')!r}).touch()\n"
    (folder / "mine.py").write_text(MY_ALIBI + canary)
    here.ok("train", "mine.py:mine@rotary_positions", *SMALL, "--quiet", "--out", "made")
    sys.modules.pop(idea_module(read_idea(folder / "mine.py").sha256))
    for name in ("canary", "mine.py"):
        (folder / name).unlink()
    shutil.rmtree(folder / "cache" / "ideas")
    return folder / "made"


def test_nothing_of_somebody_elses_folder_is_executed(here: Here, strange: Path) -> None:
    canary, advice = strange.parent / "canary", "made/idea.py, and if you trust it, --idea "
    export = ["explore", "export", "model", "--model", "made", "--out", "page.html"]
    for command in (["generate", "made", "The"], export):
        assert_good_error(here(*command), errors.CHECKPOINT, "made has classes of mine.py", advice)
    with pytest.raises(UserError, match=r"classes of mine\.py"):
        public.load("made")
    (strange.parent / "mine.py").write_text("print('another version')\n")
    done = here("generate", "made", "The", "--idea", "mine.py")
    assert_good_error(done, errors.CHECKPOINT, "mine.py is not the file that made made", "--idea made/idea.py")
    assert not canary.exists()

    here.ok("generate", "made", "The", "--max-new-tokens", "2", "--idea", "made/idea.py")
    assert canary.exists()
    here.ok(*export, "--idea", "made/idea.py")
    model, _ = public.load("made", idea="made/idea.py")
    assert type(model.config.attention_parts[0]).__name__ == "MyALiBi"
    assert here("generate", "made", "The").returncode == errors.CHECKPOINT, "not remembered: it was named, not run"


# --- ideas from the literature ----------------------------------------------------------------------------------------

LITERATURE = ROOT / "hectogpt" / "lab" / "examples" / "literature.py"
NAMES = ideas.functions_of(read_idea(LITERATURE))
USUAL = ("grouped", "short_first")  # a part of the model, a data order
SMALL_IDEA = """
from hectogpt import Run, replace

def small(run: Run) -> Run:
    model = replace(run.model, d_model=16, n_heads=2, n_layers=2, context_length=32)
    return replace(run, model=model, data=replace(run.data, batch_size=4, seq_len=32), steps=4, threads=1)
"""


@pytest.fixture
def small(here: Here, tmp_path: Path) -> Path:
    """A working folder with the examples, a small base, and a folder of two texts."""
    here("idea", "literature.py", "--kind", "literature")
    (tmp_path / "small.py").write_text(SMALL_IDEA)
    (tmp_path / "texts").mkdir()
    for name, words in (("a", "alpha beta gamma"), ("b", "one two three four")):
        some = [" ".join(random.Random(n).choices(words.split(), k=60)) for n in range(300)]
        (tmp_path / "texts" / f"{name}.txt").write_text("\n\n".join(some))
    here.ok("data", "build", "texts")
    return tmp_path


@pytest.mark.parametrize("name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.thorough) for n in NAMES])
def test_a_function_of_the_literature_goes_through_the_commands(
    here: Here, small: Path, name: str, request: pytest.FixtureRequest
) -> None:
    idea, more = f"literature.py:{name}@small.py:small@minute", ["--corpus", "texts", "--quiet"]
    if name == "distilled":
        here.ok("train", "small.py:small@minute", *more, "--out", "runs/teacher")
    here.ok("train", idea, *more, "--save-every", "1", "--out", "run")
    tokens = [step.tokens for step in read_steps(Path("run"))]
    assert tokens == ([64, 128, 256, 384] if name == "small_first" else [128, 256, 384, 512])
    done = here("check", "run", "--replay", "--step", "2", "--json")
    assert json.loads(done.stdout)["weights_equal"] is True, done.stderr
    here.ok("train", idea, *more, "--resume", "run", "--extend", "1")
    done = here("generate", "run", "alpha beta", "--max-new-tokens", "3", "--json")
    assert len(json.loads(done.stdout)["texts"][0]["ids"]) == 3, done.stderr
    here.ok("score", "run", "--corpus", "texts")
    model, tokenizer = public.load("run")
    own = any(type(part).__module__.startswith("hectogpt_idea") for _, part in ideas.parts_of(model.config))
    if own and request.config.getoption("--thorough"):  # twenty seconds, for what each head is worth
        here.ok("explore", "export", "model", "--model", "run", "--prompt", "one two three", "--out", "page.html")

    done = here("export", "run", "exported", "--quiet")
    if own:
        assert_good_error(
            done, errors.USAGE, "the model in run cannot be exported", "literature.py, which other programs"
        )
        return
    assert done.returncode == 0, done.stderr
    rows = torch.from_numpy(tokenizer.encode("one two three").astype(int))[None]
    with torch.no_grad():
        assert difference(model(rows), open_theirs(Path("exported"))(rows).logits) < 1e-4


@pytest.mark.thorough
def test_functions_of_the_literature_are_compared(here: Here, small: Path) -> None:
    base = "small.py:small@minute"
    here.ok("train", base, "--corpus", "texts", "--quiet", "--out", "runs/teacher")
    arms = [f"literature.py:{name}@{base}" for name in {"distilled", *NAMES[::4]}]
    options = ["--steps", "2", "--seeds", "1", "--threads", "1", "--corpus", "texts", "--json"]
    done = here.ok("compare", base, *arms, *options)
    losses = {arm["arm"]: arm["dev"]["mean"] for arm in json.loads(done.stdout)["arms"]}
    assert len(losses) == len(arms) + 1
    assert len(set(losses.values())) >= len(arms)
