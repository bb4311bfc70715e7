"""Each function of the example `literature` through the commands: trained, resumed, scored, continued, shown; exported
or refused in a sentence that names the file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from command import Here, assert_good_error
from exported_models import difference, open_theirs
from helpers import ROOT

import hectogpt
from hectogpt import errors
from hectogpt.idea_file import read_idea
from hectogpt.lab import ideas
from hectogpt.training.run_folder import read_steps

LITERATURE = ROOT / "hectogpt" / "lab" / "examples" / "literature.py"
NAMES = ideas.functions_of(read_idea(LITERATURE))
DEFAULT = ("distilled", "grouped", "short_first")  # a loss, a part of the model, a data order
SMALL = """
from hectogpt import Run, replace

def small(run: Run) -> Run:
    model = replace(run.model, d_model=16, n_heads=2, n_layers=2, context_length=32)
    return replace(run, model=model, data=replace(run.data, batch_size=4, seq_len=32), steps=4, threads=1)
"""


@pytest.fixture
def small(here: Here, tmp_path: Path) -> Path:
    """A working folder with the examples, a small base, and a folder of two texts."""
    here("idea", "literature.py", "--kind", "literature")
    (tmp_path / "small.py").write_text(SMALL)
    (tmp_path / "texts").mkdir()
    for name, words in (("a", "alpha beta gamma"), ("b", "one two three four")):
        some = [" ".join(random.Random(n).choices(words.split(), k=60)) for n in range(300)]
        (tmp_path / "texts" / f"{name}.txt").write_text("\n\n".join(some))
    assert here("data", "build", "texts").returncode == 0
    return tmp_path


@pytest.mark.parametrize("name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.thorough) for n in NAMES])
def test_a_function_of_the_literature_goes_through_the_commands(
    here: Here, small: Path, name: str, request: pytest.FixtureRequest
) -> None:
    idea, more = f"literature.py:{name}@small.py:small@minute", ["--corpus", "texts", "--quiet"]
    if name == "distilled":
        assert here("train", "small.py:small@minute", *more, "--out", "runs/teacher").returncode == 0
    done = here("train", idea, *more, "--save-every", "1", "--out", "run")
    assert done.returncode == 0, done.stderr
    tokens = [step.tokens for step in read_steps(Path("run"))]
    assert tokens == ([64, 128, 256, 384] if name == "small_first" else [128, 256, 384, 512])
    done = here("check", "run", "--replay", "--step", "2", "--json")
    assert json.loads(done.stdout)["weights_equal"] is True, done.stderr
    done = here("train", idea, *more, "--resume", "run", "--extend", "1")
    assert done.returncode == 0, done.stderr
    done = here("generate", "run", "alpha beta", "--max-new-tokens", "3", "--json")
    assert len(json.loads(done.stdout)["texts"][0]["ids"]) == 3, done.stderr
    done = here("score", "run", "--corpus", "texts")
    assert done.returncode == 0, done.stderr
    model, tokenizer = hectogpt.load("run")
    own = any(type(part).__module__.startswith("hectogpt_idea") for _, part in ideas.parts_of(model.config))
    # Ten seconds for what each head is worth, which a model without parts of its own has elsewhere.
    if name == "grouped" or (own and request.config.getoption("--thorough")):
        done = here("explore", "export", "model", "--model", "run", "--prompt", "one two three", "--out", "page.html")
        assert done.returncode == 0, done.stderr

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
def test_all_functions_of_the_literature_are_compared(here: Here, small: Path) -> None:
    base = "small.py:small@minute"
    assert here("train", base, "--corpus", "texts", "--quiet", "--out", "runs/teacher").returncode == 0
    arms = [f"literature.py:{name}@{base}" for name in NAMES]
    options = ["--steps", "2", "--seeds", "1", "--threads", "1", "--corpus", "texts", "--json"]
    done = here("compare", base, *arms, *options)
    assert done.returncode == 0, done.stderr
    losses = {arm["arm"]: arm["dev"]["mean"] for arm in json.loads(done.stdout)["arms"]}
    assert len(losses) == len(NAMES) + 1
    assert len(set(losses.values())) > len(NAMES) - 3
