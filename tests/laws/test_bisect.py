"""Differences planted in runs and in models are named, all of them; two that are equal are said to be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import TINY, Here, assert_good_error
from grade_solutions import BASE, TEXTBOOK, edited
from grade_solutions import module as module_of
from helpers import one_in, peaked, small_run, tiny_corpus
from model_folders import MERGES, VOCAB, make_gpt2, write_model, write_vocabulary
from model_kinds import GPT2
from safetensors.torch import load_file, save_file
from test_loop import HalfLoss
from torch import Tensor, nn

from hectogpt import errors
from hectogpt.data import Corpus, Shuffled
from hectogpt.grade.module_outputs import drawn_weights, outputs
from hectogpt.interop.export import export
from hectogpt.lab.bisect import Open, Parting, bisect_models, bisect_runs
from hectogpt.model import Init, ModelConfig, Transformer
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import GELU, Activation, LayerNorm, ReLU2
from hectogpt.training.events import events
from hectogpt.training.optim import AdamW
from hectogpt.training.run import AfterStep, Constant, LinearDecay, Run
from hectogpt.training.session import Session


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@dataclass(frozen=True)
class Nudge(AfterStep):
    """Changes the last bits of a row of a weight after a step."""

    step: int
    tensor: str
    row: int

    def after_step(self, session: Any) -> Mapping[str, float] | None:
        if session.step == self.step:
            p = session.model.get_parameter(self.tensor)
            p[self.row] = torch.nextafter(p[self.row], torch.tensor(9.0))
        return None


@dataclass(frozen=True)
class Swapped(Shuffled):
    """Two sequences in each other's places."""

    places: tuple[int, int]

    def order(self, sequences: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        found = super().order(sequences, seed, epoch)
        found[list(self.places)] = found[list(self.places[::-1])]
        return found


class Steeper(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 1.001


@dataclass(frozen=True)
class Bent(Activation):
    """GELU whose gradient is wrong."""

    def build(self) -> nn.Module:
        return BentLayer()


class BentLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gelu = GELU().build()

    def forward(self, x: Tensor) -> Tensor:
        return self.gelu(Steeper.apply(x))


RUN = small_run(steps=4)


def model(**changes: Any) -> Run:
    return replace(RUN, model=replace(RUN.model, **changes))


def adam(**changes: Any) -> Run:
    return replace(RUN, optim=AdamW(**{"lr": 3e-3, "weight_decay": 0.0} | changes))


FORWARD, GRADIENT, UPDATE = "forward", "gradient", "update"
# The run's change; the step; the tensor and row, None for any; the stage and module.
RUNS: dict[str, tuple[Run, int, str | None, int | None, str | None, str]] = {
    "seed": (replace(RUN, seed=1), 0, "embeddings.weight", 0, None, "embeddings"),
    "first positions": (
        replace(RUN, init=Init(position=0.03)),
        0,
        "position_embeddings.weight",
        0,
        None,
        "position_embeddings",
    ),
    "learning rate": (adam(lr=0.0031), 1, "embeddings.weight", None, UPDATE, "embeddings"),
    "weight decay": (adam(weight_decay=0.1), 1, "embeddings.weight", 0, UPDATE, "embeddings"),
    "eps": (adam(eps=1e-4), 1, "embeddings.weight", None, UPDATE, "embeddings"),
    "clipping": (replace(RUN, gradient_clipping=1e-3), 1, "embeddings.weight", None, UPDATE, "embeddings"),
    "schedule": (replace(RUN, schedule=Constant()), 1, "embeddings.weight", None, UPDATE, "embeddings"),
    "schedule's end": (
        replace(RUN, schedule=LinearDecay(warmup=2, hold=0.75)),
        4,
        "embeddings.weight",
        None,
        UPDATE,
        "embeddings",
    ),
    "activation": (model(activation=ReLU2()), 1, None, None, FORWARD, "backbone.0.mlp.activation"),
    "norm": (model(norm=LayerNorm(eps=1e-3)), 1, None, None, FORWARD, "backbone.0.pre_layer_norm"),
    "scale": (model(attention_scale=0.9), 1, None, None, FORWARD, "backbone.0.attention.W_o"),
    "soft cap": (model(lm_head=LMHeadConfig(soft_cap=0.5)), 1, None, None, FORWARD, "lm_head"),
    "order": (replace(RUN, data=replace(RUN.data, order=Swapped((17, 90)))), 3, None, None, FORWARD, "embeddings"),
    "loss": (replace(RUN, loss=HalfLoss()), 1, None, None, GRADIENT, "final_layer_norm"),  # the plain loss is equal
    "gradient": (model(activation=Bent()), 1, None, None, GRADIENT, "backbone.1.mlp.fc1"),
    **{
        f"{tensor} after {step}": (
            replace(RUN, after_step=(Nudge(step, tensor, row),)),
            step,
            tensor,
            row,
            UPDATE,
            tensor.rpartition(".")[0],
        )
        for step, tensor, row in (
            (1, "lm_head.weight", 50_000),
            (2, "backbone.1.mlp.fc2.weight", 5),
            (3, "backbone.0.attention.W_o.bias", 2),
            (4, "final_layer_norm.weight", 15),
            (2, "backbone.0.post_layer_norm.bias", 0),
        )
    },
}


def opener(run: Run, corpus: Corpus) -> Open:
    return lambda at: events(run, corpus, at)


def test_twenty_differences_are_planted() -> None:
    assert (len(RUNS), len(EDITS)) == (20, 20)


@pytest.mark.parametrize("case", one_in(4, RUNS))
def test_where_two_runs_part(corpus: Corpus, case: str) -> None:
    run, step, tensor, row, stage, module = RUNS[case]
    found = bisect_runs(opener(RUN, corpus), opener(run, corpus))
    assert (found.equal, found.step, found.stage, found.module) == (False, step, stage, module)
    assert tensor in (None, found.tensor)
    assert row in (None, found.row)
    assert found.batch_row == (1 if case == "order" else None)


def test_a_run_is_equal_to_itself_also_from_a_checkpoint_on(corpus: Corpus) -> None:
    assert bisect_runs(opener(RUN, corpus), opener(RUN, corpus)) == Parting(True, 4)
    session = Session.open(RUN, corpus)
    next(session.steps())
    other = RUNS["lm_head.weight after 1"][0]
    later: list[Open] = [lambda at: opener(RUN, corpus)(at or session.checkpoint())] * 2
    assert bisect_runs(*later) == Parting(True, 4)
    assert bisect_runs(opener(RUN, corpus), opener(other, corpus)).step == 1
    lost = replace(RUN, loss=HalfLoss(float("nan")))  # it diverges; nothing is updated
    assert not bisect_runs(opener(lost, corpus), opener(RUN, corpus)).equal
    assert bisect_runs(opener(lost, corpus), opener(lost, corpus)) == Parting(True, 0)


# --- models -----------------------------------------------------------------------------------------------------------

LAYER = "backbone.0."
# The edit of a solution, and the first module whose output differs.
EDITS: dict[str, tuple[tuple[str, str], str]] = {
    "erf GELU": (("h = self.gelu(h)", "h = F.gelu(h)"), LAYER + "mlp.fc2"),
    "no GELU": (("h = self.gelu(h)", "pass"), LAYER + "mlp.fc2"),
    "GELU's factor": (("0.044715", "0.044"), LAYER + "mlp.gelu"),
    "GELU of half": (("return 0.5 * x", "return 0.51 * x"), LAYER + "mlp.gelu"),
    "no scale": (("scores = scores / math.sqrt(self.d_attention)", "pass"), LAYER + "attention.W_o"),
    "no mask": (('scores = scores.masked_fill(mask == 0, float("-inf"))', "pass"), LAYER + "attention.W_o"),
    "softmax of queries": (("F.softmax(scores, dim=-1)", "F.softmax(scores, dim=-2)"), LAYER + "attention.W_o"),
    "heads not joined": (("z = z.transpose(1, 2)", "z = z"), LAYER + "attention.W_o"),
    "queries are keys": (("q = self.W_q(x)", "q = self.W_k(x)"), LAYER + "attention.W_o"),
    "keys are queries": (("k = self.W_k(x)", "k = self.W_q(x)"), LAYER + "attention.W_o"),
    "values are keys": (("v = self.W_v(x)", "v = self.W_k(x)"), LAYER + "attention.W_o"),
    "no output projection": (("out = self.W_o(z)", "out = z"), LAYER + "attention"),
    "no first norm": (("self.attention(self.pre_layer_norm(x))", "self.attention(x)"), LAYER + "attention.W_q"),
    "no second norm": (("self.mlp(self.post_layer_norm(x))", "self.mlp(x)"), LAYER + "mlp.fc1"),
    "no residual": (("x = x + self.mlp(", "x = self.mlp("), LAYER[:-1]),
    "no positions": (
        ("pos = self.position_embeddings(", "pos = 0 * self.position_embeddings("),
        LAYER + "pre_layer_norm",
    ),
    "positions from one": (
        ("torch.arange(T, device=x.device)", "torch.arange(1, T + 1, device=x.device) % T"),
        "position_embeddings",
    ),
    "no last norm": (("h = self.final_layer_norm(h)", "pass"), "lm_head"),
    "a softmax at the end": (("logits = self.lm_head(h)\n", "logits = self.lm_head(h).softmax(-1)\n"), "logits"),
    "the last layer twice": (
        ("h = self.final_layer_norm(h)", "h = self.final_layer_norm(block(h))"),
        "final_layer_norm",
    ),
}


def outputs_of(source: str) -> dict[str, dict[str, Tensor]]:
    """Of a solution, in this process."""
    size, state = drawn_weights()
    solution = module_of("model_solution", source)
    model = solution.Transformer(solution.ModelConfig(**vars(size))).double()
    model.load_state_dict(state)
    return outputs(model, torch.randint(size.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("case", EDITS)
def test_where_a_solution_leaves_the_textbook(case: str) -> None:
    edit, module = EDITS[case]
    found = bisect_models(outputs_of(TEXTBOOK), outputs_of(edited(BASE, edit)), exact=False)
    assert (found.equal, found.stage, found.module) == (False, FORWARD, module)
    assert min(found.largest.values()) > 1e-6


def test_a_right_solution_differs_by_rounding_alone() -> None:
    assert bisect_models(outputs_of(TEXTBOOK), outputs_of(BASE), exact=False).equal
    same = bisect_models(outputs_of(TEXTBOOK), outputs_of(TEXTBOOK), exact=True)
    assert (same.equal, set(same.largest.values())) == (True, {0.0})


def test_a_changed_bit_of_any_weight_is_found_in_its_module() -> None:
    model = peaked(Transformer(ModelConfig(16, 2, 2, 10, 40)))
    ids = torch.arange(20).reshape(2, 10)
    before = outputs(deepcopy(model), ids)
    for name, _ in model.named_parameters():
        other = deepcopy(model)
        with torch.no_grad():
            p = other.get_parameter(name)
            p.view(-1)[0] = torch.nextafter(p.view(-1)[0], torch.tensor(9.0))
        found = bisect_models(before, outputs(other, ids), exact=True)
        assert found.module == name.rpartition(".")[0]


# --- the command ------------------------------------------------------------------------------------------------------


def test_folders_of_gpt2(here: Here) -> None:
    """A model equals its export to the last bit, and a model of transformers its copy; a changed number is named."""
    write_model(Path("run"), GPT2, torch.float32)
    export(Path("run"), Path("exported"))
    theirs = make_gpt2(vocab_size=VOCAB)
    for name, tensor, module in (
        ("exported", "transformer.h.0.attn.c_proj.bias", "backbone.0.attention.W_o"),
        ("theirs", "transformer.h.1.mlp.c_fc.weight", "backbone.1.mlp.fc1"),
    ):
        if name == "theirs":
            theirs.save_pretrained(name)
            write_vocabulary(Path(name), MERGES)
        shutil.copytree(name, f"{name}-2")
        same = json.loads(here.ok("bisect", "run" if name == "exported" else name, f"{name}-2", "--json").stdout)
        assert (same["equal"], set(same["largest"].values())) == (True, {0.0})
        state = load_file(f"{name}-2/model.safetensors")
        state[tensor].view(-1)[5] += 1e-3
        save_file(state, f"{name}-2/model.safetensors", metadata={"format": "pt"})
        done = here("bisect", name, f"{name}-2", "--json")
        assert (done.returncode, json.loads(done.stdout)["module"]) == (1, module)
    assert_good_error(here("bisect", "run", "theirs"), errors.DATA, "different shapes")
    assert_good_error(here("bisect", "run", "run/merges.txt"), errors.CHECKPOINT)


@pytest.mark.thorough
def test_runs_and_their_models_by_command(here: Here, tmp_path: Path) -> None:
    tokens = str(tiny_corpus(tmp_path).folder)
    words = ("train", "baseline", *TINY, "--corpus", tokens, "--quiet")
    for name, more in {
        "a": [],
        "b": ["--save-every", "2"],
        "c": ["--optim.lr", "0.01"],
        "d": ["--model.d-model", "8"],
    }.items():
        here.ok(*words, *more, "--out", name)
    assert json.loads(here.ok("bisect", "a", "b", "--json").stdout)["equal"]
    assert "last bit" in here.ok("bisect", "a", "b", "--models").stdout
    done = here("bisect", "a", "c", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["step"], found["stage"]) == (1, 1, UPDATE)
    assert here("bisect", "a", "c", "--models").returncode == 1
    assert_good_error(here("bisect", "a", "d"), errors.DATA)
    assert_good_error(here("bisect", "a", "nothing"), errors.CHECKPOINT)
    rows = Path("b/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(rows[2])
    rows[2] = json.dumps(row | {"train/loss": row["train/loss"] + 1})
    Path("b/metrics.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    done = here("bisect", "a", "b", "--json")  # recorded otherwise than it computes
    assert (done.returncode, json.loads(done.stdout)["step"]) == (1, row["step"])


@pytest.mark.thorough
def test_a_solution_runs_shut_in_and_gets_the_models_weights(here: Here, tmp_path: Path) -> None:
    tokens = str(tiny_corpus(tmp_path).folder)
    here.ok("train", "baseline", *TINY, "--corpus", tokens, "--quiet", "--out", "run")
    Path("model_solution.py").write_text(BASE, encoding="utf-8")
    assert json.loads(here.ok("bisect", "run", "model_solution.py", "--json").stdout)["equal"]
    Path("model_solution.py").write_text(BASE + "\nopen('../stolen', 'w')\n", encoding="utf-8")
    assert_good_error(here("bisect", "textbook", "model_solution.py"), errors.DATA)
    Path("model_solution.py").write_text("import os\nos._exit(3)\n", encoding="utf-8")
    assert_good_error(here("bisect", "textbook", "model_solution.py"), errors.DATA)
    here.ok("train", "minute", *TINY, "--corpus", tokens, "--quiet", "--out", "other")
    assert_good_error(here("bisect", "other", "model_solution.py"), errors.USAGE)
