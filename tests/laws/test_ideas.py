"""Recipes from a user's own file: names, what is refused, trials told apart by their source, what a trial survives. The
file is imported as it was read, its errors told with the line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from experiments import perform
from helpers import ROOT, peaked, sections_changed, shrunk, train

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.generation.decode import Decoder
from hectogpt.generation.model_view import trace
from hectogpt.generation.quantize import quantize
from hectogpt.idea_file import load_idea, read_idea, remember, remembered
from hectogpt.kernels.build import find
from hectogpt.lab import ideas, ladder, recipes
from hectogpt.lab.compare import Comparison
from hectogpt.lab.ideas import find_run
from hectogpt.lab.plan import arms_of, plan
from hectogpt.lab.tracks import TRACKS
from hectogpt.model.weights import load_model, save_model
from hectogpt.serialization import dump, idea_module
from hectogpt.training.run import Run, files_of, load_run
from hectogpt.training.session import Session
from tools.report import atlas

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
    find()  # kernels that are compiled already, which a cache of its own has not
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "cache"))

    def write_idea(body: str, name: str = "mine.py", head: str = HEAD) -> Path:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(head + body, encoding="utf-8")
        return tmp_path / name

    return write_idea


def refused(name: str, *told: str, base: str | Run = "top") -> UserError:
    with pytest.raises(UserError) as caught:
        find_run(name, base)
    for text in told:
        assert text in str(caught.value), str(caught.value)
    assert re.search("--[a-z]", str(caught.value)) is None, "only the command line spells options"
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
    assert find_run("mine.py:steps@without-muon").recipe == "mine.py:steps@without-muon"
    both = find_run("mine.py:steps@other.py:seeds")
    assert (both.steps, both.seed, both.recipe) == (107, 1, "mine.py:steps@other.py:seeds")
    assert [idea.path.name for idea in files_of(both)] == ["other.py", "mine.py"]
    assert find_run("mine.py:steps@mine.py:steps").ideas == run.ideas


def test_a_comparisons_first_recipe_is_what_its_ideas_are_applied_to(write: Write) -> None:
    write("def steps(run):\n    return replace(run, steps=7)\n\ndef more(run):\n    return replace(run, seed=8)\n")
    more = "mine.py:more@mine.py:steps"
    for arms, labels in (
        (plan(["copying", "mine.py:steps"]), ["copying", "mine.py:steps@copying"]),
        (plan(["mine.py:steps", "copying"]), ["mine.py:steps", "copying"]),
        (plan(["mine.py:steps", "mine.py:more"]), ["mine.py:steps", more]),
        (plan(["mine.py:steps@muon", "mine.py:more"]), ["mine.py:steps@muon", f"{more}@muon"]),
        (arms_of(["mine.py:steps", "mine.py:more"]), ["mine.py:steps", more]),
        (plan(["top", "mine.py:steps"], without=["muon"]), [ladder.TOP, "mine.py:steps", "without-muon"]),
        (plan(["mine.py:steps"], sweep=["steps=1,2"]), ["mine.py:steps steps=1", "mine.py:steps steps=2"]),
    ):
        assert [arm.label for arm in arms] == labels


# --- what is refused --------------------------------------------------------------------------------------------------


def test_names_that_name_nothing(write: Write) -> None:
    write("def double(run):\n    return run\n\ndef _hidden(run):\n    return run\n")
    refused("mine.py:dubble", "no function 'dubble'", "did you mean 'double'?")
    for name in ("mine.py", "mine.py:", "mine:double"):
        refused(name, f"{name}: which function?", "FILE.py:FUNCTION", "mine.py:")
    refused("mine.py:double@nothing", "unknown recipe 'nothing'")
    write("", "bytes.py").write_bytes(b"\xff\xfe\x00")
    write("", "folder.py").with_name("a.py").mkdir()
    for name in ("absent.py", "bytes.py", "a.py"):
        refused(f"{name}:x", name)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("pass", "returned nothing, not a Run"),
        ("return run.model", "returned ModelConfig, not a Run"),
        ("exit(1)", "it called exit() (mine.py, line 8: exit(1))"),
        ("return replace(run, stepz=3)", "Run has no field 'stepz'"),
        ("raise ValueError('no')", "ValueError: no (mine.py, line 8"),
        ("return replace(run, steps=0)", "steps = 0"),
        ("return replace(run, schedule=Wrong(torch.ones(2)))", "cannot write a Tensor into a run file"),
        ("return replace(run, schedule=Wrong(0.0))", "Wrong.factor(0, 100) is None"),
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
    refused("b.py:f@a.py:f", "two classes are called Part")
    arms = plan(["a.py:f", "b.py:f@top"], sweep=["steps=1,2"])
    assert len({json.dumps(dump(arm.run)) for arm in arms}) == 4
    assert all(load_run(dump(arm.run)) == arm.run for arm in arms)


# --- ideas from the literature ----------------------------------------------------------------------------------------

LITERATURE = ROOT / "docs" / "literature"
NAMES = {name: path for path in sorted(LITERATURE.glob("*/*.py")) for name in ideas.functions_of(read_idea(path))}
ONE_OF_EACH_SEAM = {"label_smoothing", "swiglu", "u_net", "forgetting", "window", "masked", "averaged", "sam"}
ONE_OF_EACH_SEAM |= {"by_kind", "orthogonal", "rare_twice", "small_first", "value_residual"}
# Three steps are all warm-up, the rows are shorter than the window, an average changes the model at the end alone.
AS_WITHOUT = {"linear", "cosine", "short_decay", "to_a_tenth", "window", "averaged", "lookahead", "no_clipping"}
SMALL_RUN = shrunk(recipes.recipe("minute"), layers=3)


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    """One of each seam is quick; what docs/add-an-idea.md names is thorough; all others take three minutes more."""
    if name in ONE_OF_EACH_SEAM:
        return []
    named = f"`{name}`" in (ROOT / "docs" / "add-an-idea.md").read_text(encoding="utf-8")
    return [pytest.mark.thorough] if named else [pytest.mark.thorough, pytest.mark.slow]


@pytest.fixture(scope="module")
def losses_without(corpus: Corpus) -> list[float]:
    return [step.loss for step in Session.open(SMALL_RUN, corpus).steps()]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in NAMES if name != "distilled"])
def test_an_idea_of_the_literature_trains_resumes_is_saved_decodes_and_is_explored(
    corpus: Corpus, losses_without: list[float], tmp_path: Path, name: str
) -> None:
    run = find_run(f"{NAMES[name]}:{name}", SMALL_RUN)
    assert len(sections_changed(SMALL_RUN, run) - {"ideas"}) == 1, "one seam"
    session = Session.open(run, corpus)
    steps = session.steps()
    first, at = next(steps), session.checkpoint()
    rest = [(step.loss, dict(session.metrics)) for step in steps]
    assert (first.tokens < 2 * 16) == (name == "small_first")
    again = Session.open(run, corpus, at)
    assert [(step.loss, dict(again.metrics)) for step in again.steps()] == rest
    assert len({first.loss, *(loss for loss, _ in rest)}) == 3
    assert name in AS_WITHOUT or [first.loss, *(loss for loss, _ in rest)] != losses_without
    assert [set(numbers) for _, numbers in rest] == [{"own/distance"} if name == "averaged" else set()] * 2
    model = peaked(session.model.eval(), scale=0.2)

    save_model(model, tmp_path)
    ids = torch.from_numpy(corpus.train[:14].astype(int))
    logits = model(ids[None]).detach()
    assert torch.allclose(load_model(tmp_path)(ids[None]), logits, atol=1e-5)
    for light in (model, quantize(model)):
        decoder = Decoder(light, ids[None, :9], 5)
        decoder.prefill()
        for end in range(10, 14):
            assert torch.allclose(decoder.decode(ids[end - 1 : end])[0], logits[0, end - 1], atol=1e-4)
    assert trace(model, ids.numpy()).losses.sum() == pytest.approx(
        model.loss(ids[None, :-1], ids[None, 1:], "sum").item(), rel=1e-4
    )
    changed = ids.clone()
    changed[9] += 1
    assert torch.allclose(model(changed[None])[0, :9], logits[0, :9], atol=1e-5), "the future changes nothing before it"


def test_an_idea_of_the_literature_says_its_source_its_claim_and_what_is_expected() -> None:
    told = atlas.ideas()
    assert {idea.name for idea in told} == set(NAMES) - {"distilled", "mixture"}
    for idea in told:
        assert all((idea.what, idea.source)), idea.name
        assert idea.claim.startswith(("better", "worse", "tie", "none")), idea.name
        assert idea.expected.startswith(("better", "worse", "tie")), idea.name


@pytest.mark.usefixtures("write")
def test_a_student_learns_from_its_teacher(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    teacher = train(SMALL_RUN, corpus)
    save_model(teacher.model, tmp_path / "runs" / "teacher")
    assert train(find_run(f"{NAMES['distilled']}:distilled", SMALL_RUN), corpus).losses[0] == teacher.losses[0]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("MLP", "Wrong: layer 0 gave (1, 2, 4) for (1, 2, 12)"),
        ("Attention", "Wrong.build returned Linear, why: it has to be a CausalAttention"),
    ],
)
def test_a_part_that_does_not_fit_is_named(write: Write, body: str, told: str) -> None:
    part = f"@dataclass(frozen=True)\nclass Wrong({body}):\n    def build(self, layer, config):\n"
    part += "        return nn.Linear(config.d_model, 4)\ndef f(run):\n"
    write(part + f"    return replace(run, model=replace(run.model, {body.lower()}=Wrong()))\n")
    error = " ".join(str(refused("mine.py:f", "do not fit together", base=SMALL_RUN)).split())
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
    first = comparison(corpus, "mine.py:f", "other.py:g@top")
    assert len(first.missing()) == 2
    write(body.format(1e6), head=SMALL)
    kept = [perform(first, trial) for trial in first.missing()]
    assert [(record.status, record.error) for record in kept] == [("ok", None)] * 2
    assert kept[0].run["schedule"] == {"type": "Halved", "by": 2.0}
    assert kept[0].losses[0] == kept[1].losses[0]
    assert kept[0].losses[1:] != kept[1].losses[1:], "half the learning rate"
    assert first.missing() == []

    edited = comparison(corpus, "mine.py:f", "other.py:g@top")
    assert [trial.arm.label for trial in edited.missing()] == ["mine.py:f"]
    write(body.format(2.0), head=SMALL)
    assert comparison(corpus, "mine.py:f", "other.py:g@top").missing() == []
    assert {path.stem for path in Path("records/ideas").iterdir()} == {kept[0].run["ideas"][0], kept[1].run["ideas"][0]}
    assert "Halved(2.0)" in Path("records/ideas", f"{kept[0].run['ideas'][0]}.py").read_text()


def test_a_build_that_gives_no_group_is_named(corpus: Corpus, write: Write) -> None:
    optim = "@dataclass(frozen=True)\nclass Plain(Optim):\n    def build(self, model):\n"
    optim += "        return torch.optim.SGD(model.parameters(), lr=0.1)\n"
    write(optim + "def f(run):\n    return replace(small(run), optim=Plain())\n", head=SMALL)
    with pytest.raises(UserError, match=r"optim: Plain.build returned SGD, not an OptimizerGroup"):
        train(find_run("mine.py:f"), corpus)


# --- the file itself --------------------------------------------------------------------------------------------------


def test_the_source_that_was_read_is_imported_and_once(tmp_path: Path, write: Write) -> None:
    idea = read_idea(write("from beside import number\nvalues = []\nsource = 'as it was read'\n", head=""))
    (tmp_path / "beside.py").write_text("number = 7\n")
    idea.path.write_text("raise ValueError('edited meanwhile')\n")
    module = load_idea(idea)
    assert (module.source, module.number, module.__file__) == ("as it was read", 7, str(idea.path))
    assert load_idea(idea).values is module.values
    assert not list(tmp_path.rglob("__pycache__/mine*")), "an import leaves nothing beside the file"


def test_what_the_file_prints_goes_to_standard_error(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    source = "import sys\nprint('one')\nsys.stdout.write('two\\n')\ndef later():\n    print('three')\n"
    load_idea(read_idea(write(source, head=""))).later()
    told = capsys.readouterr()
    assert (told.out, told.err.split()) == ("", ["one", "two", "three"])


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax (mine.py, line 2: def f(:)"),
        ("def f():\n    return 1 / 0\n\nx = f()\n", "division by zero (mine.py, line 2: return 1 / 0)"),
        ("import no_such_module_at_all\n", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("import sys\nsys.exit()\n", "it called exit() (mine.py, line 2: sys.exit())"),
    ],
)
def test_a_file_that_does_not_import_is_told_with_its_line(write: Write, source: str, why: str) -> None:
    idea = read_idea(write(source, head=""))
    with pytest.raises(UserError, match=r"mine.py cannot be imported") as caught:
        load_idea(idea)
    assert idea_module(idea.sha256) not in sys.modules
    assert why in caught.value.why + caught.value.fix


def test_a_file_is_remembered_while_it_stays_as_it_is(tmp_path: Path, write: Write) -> None:
    idea = read_idea(write("x = 1\n", head=""))
    assert remembered(idea.sha256) is None
    remember(idea)
    for content, found in (("x = 1\n", idea), ("x = 2\n", None), ("x = 1\n", idea)):
        idea.path.write_text(content)
        assert remembered(idea.sha256) == found
    idea.path.rename(tmp_path / "moved.py")
    assert remembered(idea.sha256) is None
