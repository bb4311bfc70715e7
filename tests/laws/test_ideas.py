"""Recipes from a user's own file: names, what is refused, trials told apart by their source, what a trial survives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiments import make_corpus, perform, run_trial, small_run
from helpers import ROOT, peaked

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.generation.decode import Decoder
from hectogpt.generation.model_view import trace
from hectogpt.generation.quantize import quantize
from hectogpt.idea_file import read_idea
from hectogpt.lab import ideas, ladder, recipes
from hectogpt.lab.compare import Comparison
from hectogpt.lab.ideas import find_run
from hectogpt.lab.plan import plan
from hectogpt.lab.tracks import TRACKS
from hectogpt.model.weights import load_model, save_model
from hectogpt.serialization import dump
from hectogpt.training.run import load_run, sections_changed
from hectogpt.training.session import Session, train
from tools.report import write_report

HEAD = """\
from dataclasses import dataclass
import torch
from torch import nn
from hectogpt import *
from hectogpt import replace

"""
# A run of three steps over GPT-2's ids, whatever it is applied to.
SMALL = (
    HEAD
    + """\
def small(run, **changes):
    model = ModelConfig(d_model=4, n_heads=1, n_layers=1, context_length=16, vocab_size=50257)
    data = Data(batch_size=2, seq_len=16)
    return Run(model=model, data=data, optim=AdamW(lr=0.01), head_dtype="float32", steps=3, device="cpu", threads=1)

@dataclass(frozen=True)
class Halved(Schedule):
    by: float = 2.0
    def factor(self, step, steps):
        return 1 / self.by

"""
)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file of an idea into a folder that is the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "cache"))

    def write_idea(body: str, name: str = "mine.py", head: str = HEAD) -> Path:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(head + body, encoding="utf-8")
        return tmp_path / name

    return write_idea


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("tiny"))


def ignore(step: int, loss: float) -> None:
    pass


def refused(name: str, *told: str) -> UserError:
    with pytest.raises(UserError) as caught:
        find_run(name)
    for text in told:
        assert text in str(caught.value), str(caught.value)
    assert "--" not in str(caught.value), "only the command line spells options"
    return caught.value


# --- names ------------------------------------------------------------------------------------------------------------


def test_an_idea_is_applied_to_the_top_or_to_what_is_named(write: Write) -> None:
    write(
        "def steps(run):\n    return replace(run, steps=run.steps + 7)\ndef twice(run):\n    return steps(steps(run))\n"
    )
    write("def seeds(run):\n    return replace(run, seed=run.seed + 1)\n", "other.py")
    top, base = recipes.recipe("top"), recipes.recipe("baseline")
    run = find_run("mine.py:steps")
    assert run == replace(top, steps=107, recipe="mine.py:steps", ideas=run.ideas)
    assert len(run.ideas) == 1
    assert find_run("mine.py:twice").ideas == run.ideas
    assert find_run("./mine.py:steps@baseline").model == base.model
    assert find_run("mine.py:steps@baseline").recipe == "mine.py:steps@baseline"
    assert find_run("mine.py:steps", "copying") == find_run("mine.py:steps@copying")
    assert find_run("mine.py:steps@wide").recipe == "mine.py:steps@width_256", "an old name"
    assert find_run("mine.py:steps@without-muon").recipe == "mine.py:steps@without-muon"
    both = find_run("mine.py:steps@other.py:seeds")
    assert (both.steps, both.seed, both.recipe) == (107, 1, "mine.py:steps@other.py:seeds")
    assert [idea.path.name for idea in ideas.files_of(both)] == ["other.py", "mine.py"]
    assert find_run("mine.py:steps@mine.py:steps").ideas == run.ideas


def test_a_comparisons_first_recipe_is_what_its_ideas_are_applied_to(write: Write) -> None:
    write("def steps(run):\n    return replace(run, steps=7)\n")

    def labels(*names: str, **more: Any) -> list[str]:
        return [arm.label for arm in plan(names, **more)]

    assert labels("copying", "mine.py:steps") == ["copying", "mine.py:steps@copying"]
    assert labels("mine.py:steps", "copying") == ["mine.py:steps", "copying"]
    assert labels("top", "mine.py:steps", without=("muon",)) == [ladder.TOP, "mine.py:steps", "without-muon"]
    assert labels("mine.py:steps", sweep=("seed=1,2", "data.seq_len=64")) == [
        "mine.py:steps seed=1 data.seq_len=64",
        "mine.py:steps seed=2 data.seq_len=64",
    ]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_names_that_name_nothing(write: Write) -> None:
    write("def double(run):\n    return run\n\ndef _hidden(run):\n    return run\n")
    refused("mine.py:dubble", "no function 'dubble'", "its functions: double", "did you mean 'double'?")
    refused("mine.py", "names no function", "mine.py:double")
    refused("mine.py:", "names no function", "mine.py:double")
    refused("mine:double", "no recipe mine:double", "FILE.py:FUNCTION")
    refused("absent.py:double", "no file absent.py", "hectogpt idea")
    refused("mine.py:double@nothing", "unknown recipe 'nothing'")
    write("x = 1\n", "empty.py", head="")
    refused("empty.py", "write a function in empty.py")
    refused("empty.py:x", "no function 'x'", "its functions: none")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("pass", "returned nothing, not a Run"),
        ("return run.model", "returned ModelConfig, not a Run"),
        ("exit(1)", "it called exit() (mine.py, line 8: exit(1))"),
        ("return replace(run, stepz=3)", "unexpected keyword argument 'stepz'"),
        ("raise ValueError('no')", "ValueError: no (mine.py, line 8"),
        ("return replace(run, model=replace(run.model, n_heads=7))", "model.n_heads = 7"),
        ("return replace(run, steps=0)", "steps = 0"),
        ("return replace(run, schedule=Wrong(torch.ones(2)))", "schedule.value is of type Tensor"),
        ("return replace(run, schedule=Wrong(0.0))", "Wrong.factor(0, 100) is None"),
        ("return replace(run, model=replace(run.model, attention_parts=(QKNorm(), Bad())))", "model.attention_parts.1"),
        ("return replace(run, model=replace(run.model, attention_parts=(Bad(4),)))", "Bad.build returned int"),
    ],
)
def test_what_a_function_may_not_do(write: Write, body: str, told: str) -> None:
    """One error that names the field or the line."""
    classes = """
@dataclass(frozen=True)
class Wrong(Schedule):
    value: float
    def factor(self, step, steps):
        return None
@dataclass(frozen=True)
class Bad(ScoreBias):
    value: int = 0
    def build(self, n_heads, d_head):
        return self.value or [][1]
"""
    write(f"def f(run):\n    {body}\n{classes}")
    error = refused("mine.py:f", told)
    assert "mine.py" in str(error)


def test_two_classes_of_one_name_in_one_run_are_refused(write: Write) -> None:
    part = "@dataclass(frozen=True)\nclass Part(InputPart):\n    {}: int = 1\n"
    part += "    def build(self, d_model, vocab_size, norm):\n        return nn.Identity()\n"
    part += "def f(run):\n    return replace(run, model=replace(run.model, inputs=(*run.model.inputs, Part())))\n"
    write(part.format("a"), "a.py")
    write(part.format("b"), "b.py")
    refused("b.py:f@a.py:f", "a second class called Part")
    arms = plan(["a.py:f", "b.py:f"], sweep=["seed=1,2"])
    assert len({json.dumps(dump(arm.run)) for arm in arms}) == 4
    assert all(load_run(dump(arm.run)) == arm.run for arm in arms)


# --- ideas from the literature ----------------------------------------------------------------------------------------

LITERATURE = ROOT / "hectogpt" / "lab" / "examples" / "literature.py"
NAMES = [name for name in ideas.functions_of(read_idea(LITERATURE)) if name not in ("distilled",)]
LAYERS = """
def layers(run):
    model = replace(run.model, d_model=16, n_heads=2, n_layers=3, context_length=16)
    return replace(run, model=model, data=replace(run.data, batch_size=2, seq_len=16), steps=3, threads=1)
"""


@pytest.mark.parametrize("name", NAMES)
def test_an_idea_of_the_literature_trains_resumes_is_saved_decodes_and_is_explored(
    corpus: Corpus, write: Write, tmp_path: Path, name: str
) -> None:
    write(LAYERS, "small.py")
    run = find_run(f"{LITERATURE}:{name}@small.py:layers@minute")
    small = find_run("small.py:layers@minute")
    assert len(sections_changed(small, run) - {"ideas"}) == 1, "one seam"
    session = Session.open(run, corpus)
    steps = session.steps()
    first, at = next(steps), session.checkpoint()
    rest = [(step.loss, dict(session.metrics)) for step in steps]
    again = Session.open(run, corpus, at)
    assert [(step.loss, dict(again.metrics)) for step in again.steps()] == rest
    assert len({first.loss, *(loss for loss, _ in rest)}) == 3
    assert [set(numbers) for _, numbers in rest] == [{"own/distance"} if name == "averaged" else set()] * 2
    model = peaked(session.model.eval(), scale=0.2)

    save_model(model, tmp_path)
    ids = torch.from_numpy(corpus.train[:14].astype(int))
    logits = model(ids[None]).detach()
    assert torch.allclose(load_model(tmp_path)(ids[None]), logits, atol=1e-5)
    for light in (model, quantize(model)):
        decoder = Decoder(light, [ids[:9].tolist(), ids[2:9].tolist()], 5)
        decoder.prefill()
        for end in range(10, 14):
            found = decoder.decode([int(ids[end - 1])] * 2)
            for row, start in enumerate((0, 2)):
                assert torch.allclose(found[row], model.next_logits(ids[None, start:end])[0], atol=1e-4)
    assert trace(model, ids.numpy()).losses.sum() == pytest.approx(
        model.loss(ids[None, :-1], ids[None, 1:], "sum").item(), rel=1e-4
    )
    changed = ids.clone()
    changed[9] += 1
    assert torch.allclose(model(changed[None])[0, :9], logits[0, :9], atol=1e-5), "the future changes nothing before it"


def test_a_mixture_draws_its_share_from_the_rows_of_the_first_text() -> None:
    order = find_run(f"{LITERATURE}:mixture@minute").data.order
    numbers = order.order(np.zeros((1000, 4)), 0, 0)
    assert (numbers < 500).mean() == pytest.approx(0.8, abs=0.04)
    assert 990 < numbers.max() < 1000


def test_a_student_learns_from_its_teacher(corpus: Corpus, write: Write, tmp_path: Path) -> None:
    write(LAYERS, "small.py")
    run = find_run("small.py:layers@minute")
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    save_model(train(run, corpus).model, tmp_path / "runs" / "teacher")
    assert train(find_run(f"{LITERATURE}:distilled", run), corpus).losses[0] == train(run, corpus).losses[0]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("MLP", "Wrong: layer 0 makes (1, 2, 4) of (1, 2, 16)"),
        ("Block", "Wrong.build returned Linear, why: it has to be a DecoderBlock"),
        ("Attention", "Wrong.build returned Linear, why: it has to be a CausalAttention"),
    ],
)
def test_a_part_that_does_not_fit_is_named(write: Write, body: str, told: str) -> None:
    part = f"@dataclass(frozen=True)\nclass Wrong({body}):\n    def build(self, layer, config):\n"
    part += "        return nn.Linear(config.d_model, 4)\ndef f(run):\n"
    write(LAYERS + part + f"    return replace(run, model=replace(run.model, {body.lower()}=Wrong()))\n", "small.py")
    error = " ".join(str(refused("small.py:f@small.py:layers@minute", "do not fit together")).split())
    assert told.replace(", why:", " why:") in error


# --- trials -----------------------------------------------------------------------------------------------------------


def comparison(corpus: Corpus, *names: str) -> Comparison:
    return Comparison(plan(names), [0], corpus, TRACKS["closed"], Path("records/compare.jsonl"))


@pytest.mark.thorough
def test_trials_are_told_apart_by_the_source_that_they_ran(corpus: Corpus, write: Write) -> None:
    """An edit is another trial, undoing it finds the old one. The file may be edited while trials wait: each runs, and
    keeps, what was planned. Two files may define classes of one name."""
    body = "def f(run):\n    return replace(small(run), schedule=Halved({}))\n"
    write(body.format(2.0), head=SMALL)
    write(
        "def g(run):\n    return replace(small(run), schedule=Halved(1.0))\n", "other.py", SMALL.replace("by:", "by :")
    )
    first = comparison(corpus, "mine.py:f", "other.py:g")
    assert len(first.missing()) == 2
    write(body.format(1e6), head=SMALL)
    kept = [perform(first, trial) for trial in first.missing()]
    assert [(record.status, record.error) for record in kept] == [("ok", None)] * 2
    assert kept[0].run["schedule"] == {"type": "Halved", "by": 2.0}
    assert kept[0].losses[0] == kept[1].losses[0]
    assert kept[0].losses[1:] != kept[1].losses[1:], "half the learning rate"
    assert first.missing() == []

    edited = comparison(corpus, "mine.py:f", "other.py:g")
    assert [trial.arm.label for trial in edited.missing()] == ["mine.py:f"]
    write(body.format(2.0), head=SMALL)
    assert comparison(corpus, "mine.py:f", "other.py:g").missing() == []
    assert {path.stem for path in Path("records/ideas").iterdir()} == {kept[0].run["ideas"][0], kept[1].run["ideas"][0]}
    assert "Halved(2.0)" in Path("records/ideas", f"{kept[0].run['ideas'][0]}.py").read_text()

    # A report of these records needs no file, and imports none.
    Path("mine.py").unlink()
    canary = "from pathlib import Path\nPath('canary').touch()\n"
    for path in [*Path("records/ideas").iterdir(), Path("other.py")]:
        path.write_text(canary)
    write_report(Path("records/compare.jsonl"), Path("report"), Path("none"), Path("bands.json"))
    assert "mine.py:f" in Path("report/LADDER.md").read_text(encoding="utf-8")
    assert not Path("canary").exists()


@pytest.mark.thorough
def test_an_idea_that_prints_and_changes_the_process_harms_no_other_trial(corpus: Corpus, write: Write) -> None:
    write(
        """
import os, sys
os.environ["OMP_NUM_THREADS"] = "no number"
@dataclass(frozen=True)
class Rude(Schedule):
    def factor(self, step, steps):
        print("{}")
        sys.stdout.write('{"step": 7, "loss": 1.0}\\n')
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(0)
        return 1.0
def f(run):
    print("{}")
    return replace(small(run), schedule=Rude())
""",
        head=SMALL,
    )
    seen: list[int] = []
    run = find_run("mine.py:f")
    rude = run_trial(run, corpus, ("dev",), lambda step, loss: seen.append(step))
    assert (rude["status"], rude["error"], seen) == ("ok", None, [1, 2, 3])
    torch.set_num_threads(1)
    assert run_trial(small_run(), corpus, ("dev",), ignore)["dev_loss"] == train(small_run(), corpus).dev_loss


def test_a_build_that_gives_no_group_is_named(corpus: Corpus, write: Write) -> None:
    optim = "@dataclass(frozen=True)\nclass Plain(Optim):\n    def build(self, model):\n"
    optim += "        return torch.optim.SGD(model.parameters(), lr=0.1)\n"
    write(optim + "def f(run):\n    return replace(small(run), optim=Plain())\n", head=SMALL)
    with pytest.raises(UserError, match=r"optim: Plain.build returned SGD, not an OptimizerGroup"):
        train(find_run("mine.py:f"), corpus)
