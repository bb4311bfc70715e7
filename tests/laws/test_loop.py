"""The training loop: it repeats itself bit for bit, adds up gradients exactly, clips, and stops before a bad update;
held-out loss is that of every token once; the module in which numbers stop being finite is named; the command line, a
trial and Python give one definition of every number."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command import TINY as TINY_OPTIONS
from command import Here
from experiments import run_trial
from helpers import TINY, small_run, tiny_corpus, train
from model_kinds import KINDS, build, random_ids
from torch import Tensor, nn

import hectogpt
from hectogpt import InputPart, Norm, hardware
from hectogpt.data import Corpus, Shuffled
from hectogpt.errors import UserError
from hectogpt.model import Init, Transformer
from hectogpt.training import setup
from hectogpt.training.diagnose import diagnose
from hectogpt.training.evaluate import evaluate
from hectogpt.training.losses import CrossEntropy, Loss, Predictions
from hectogpt.training.optim import AdamW, OptimizerGroup
from hectogpt.training.run import Data
from hectogpt.training.run_folder import read_run
from hectogpt.training.session import Session


def test_it_learns_and_repeats_itself_bit_for_bit(corpus: Corpus) -> None:
    run = small_run(steps=20, optim=AdamW(lr=2e-2, weight_decay=0.0), data=Data(batch_size=4, seq_len=32))
    one, again = Session.open(run, corpus), Session.open(run, corpus)
    steps = list(one.steps())
    assert [(s.loss, s.grad_norm) for s in steps] == [(s.loss, s.grad_norm) for s in again.steps()]
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), again.model.parameters(), strict=True))
    assert steps[0].loss == pytest.approx(math.log(50257), abs=0.05)
    assert steps[-1].loss < 7.5
    assert [s.number for s in steps] == list(range(1, 21))
    assert [s.tokens for s in steps] == [n * 4 * 32 for n in range(1, 21)]
    assert [s.lr for s in steps] == [2e-2 * run.schedule.factor(n, 20) for n in range(20)]
    assert next(Session.open(replace(run, seed=1), corpus).steps()).loss != steps[0].loss


@dataclass(frozen=True)
class FourQuarters(Shuffled):
    """Rows of a quarter of the length in the first step, half the rows in the second."""

    def cut(self, rows: np.ndarray, step: int, steps: int) -> np.ndarray:
        return [rows.reshape(-1, rows.shape[1] // 4), rows[:4], rows][min(step, 2)]


@pytest.mark.parametrize("leaves", [None, 8])
def test_a_batch_that_is_cut_counts_the_tokens_that_are_there(corpus: Corpus, leaves: int | None) -> None:
    """Each target weighs the same, however the batch is computed; a resumed run has counted the same."""
    data = Data(batch_size=8, seq_len=32, order=FourQuarters(), leaves=leaves)
    run = small_run(dtype="float64", head_dtype="float64", data=data, steps=3, gradient_clipping=None)
    session = Session.open(run, corpus)
    assert diagnose(session).sequences == ()
    batches = setup.make_batches(run, corpus)
    assert [batches.at(step).shape for step in range(3)] == [(32, 8), (4, 32), (8, 32)]
    assert np.array_equal(np.sort(batches.at(0), axis=None), np.sort(batches.rows(0), axis=None))
    steps = session.steps()
    for number in range(2):
        expected = session.model.get_loss_on_batch(torch.from_numpy(batches.at(number)))
        gradients = torch.autograd.grad(expected, list(session.model.parameters()))
        step = next(steps)
        assert step.loss == pytest.approx(expected.item(), rel=1e-12)
        assert step.grad_norm == pytest.approx(torch.nn.utils.get_total_norm(gradients).item(), rel=1e-9)
    again = Session.open(run, corpus, session.checkpoint())
    list(again.steps())
    assert [(step.tokens, step.own_tokens) for step in again.done] == [(256, 256), (384, 128), (640, 256)]
    assert again.result().train_tokens == 640


@pytest.mark.parametrize(
    ("cut", "told"),
    [
        (lambda rows: rows[:0], "int64 of shape (0, 32) for int64 of shape (8, 32)"),
        (lambda rows: rows.reshape(4, 64), "int64 of shape (4, 64)"),
        (lambda rows: rows[:, :1], "shape (8, 1)"),
        (lambda rows: rows / 2, "float64 of shape"),
        (lambda rows: rows + 1000, "tokens that the batch"),
        (lambda rows: None, "object of shape ()"),
    ],
)
def test_what_is_no_batch_names_its_class(
    corpus: Corpus, cut: Callable[[np.ndarray], np.ndarray], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FourQuarters, "cut", lambda self, rows, step, steps: cut(rows))
    run = small_run(data=Data(batch_size=8, seq_len=32, order=FourQuarters()))
    with pytest.raises(UserError, match=r"step 1: FourQuarters\.cut") as caught:
        next(Session.open(run, corpus).steps())
    assert told in caught.value.why


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_before_the_update(corpus: Corpus, poison: str) -> None:
    session = Session.open(small_run(), corpus)
    model, steps = session.model, session.steps()
    next(steps)
    if poison == "loss":
        with torch.no_grad():
            model.get_parameter("final_layer_norm.bias")[0] = float("nan")
    else:
        model.get_parameter("backbone.0.mlp.fc1.weight").register_hook(lambda g: g * float("inf"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError, match="step 2") as caught:
        next(steps)
    assert "kept: the weights after step 1" in str(caught.value)
    if poison == "gradient":
        assert "backbone.0.mlp.fc1.weight" in str(caught.value)
    for name, p in model.named_parameters():
        assert torch.equal(p.detach().nan_to_num(), before[name].nan_to_num()), name


def test_clipping_bounds_the_gradient_and_none_leaves_it(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[float] = []

    def step(group: OptimizerGroup, *_: object) -> None:
        found = (p.grad for each in group.optimizers for one in each.param_groups for p in one["params"])
        applied.append(torch.nn.utils.get_total_norm([grad for grad in found if grad is not None]).item())

    monkeypatch.setattr(OptimizerGroup, "step", step)
    for bound in (0.01, None):
        (taken,) = Session.open(small_run(gradient_clipping=bound, steps=1), corpus).steps()
        assert applied.pop() == pytest.approx(bound or taken.grad_norm, rel=1e-3)


# --- what is minimised: a user's loss is the textbook's of the same logits; plain cross entropy is reported -----------


@dataclass(frozen=True)
class HalfLoss(Loss):
    by: float = 0.5

    def total(self, predictions: Predictions) -> torch.Tensor:
        return self.by * predictions.sum(lambda logits, targets: F.cross_entropy(logits, targets, reduction="none"))


@dataclass(frozen=True)
class PerToken(Loss):
    def total(self, predictions: Predictions) -> torch.Tensor:
        return predictions.hidden.sum(-1)


@pytest.mark.parametrize("kind", ["gpt2", "embedding map", "pointer", "everything else"])
def test_sums_are_those_of_the_logits(kind: str) -> None:
    model = build(KINDS[kind])
    ids = random_ids(3, 9)
    made = Predictions(model, ids[:, :-1], ids[:, 1:])
    logits, targets = model(ids[:, :-1]), ids[:, 1:]
    each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    assert made.plain.item() == pytest.approx(each.sum().item())
    weights = torch.rand(3, 8, dtype=torch.float64)
    found = [made.cross_entropy(weights), made.cross_entropy(ahead=2)]
    further = F.cross_entropy(logits[:, :-2].transpose(1, 2), targets[:, 2:], reduction="sum")
    for ours, theirs in zip(found, [(weights * each).sum(), further], strict=True):
        assert ours.item() == pytest.approx(theirs.item())
        gradients = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in (ours, theirs)]
        for a, b in zip(*gradients, strict=True):
            assert torch.allclose(a, b, atol=1e-9)
    if model.pointer is None:
        smooth = made.sum(lambda logits, targets, w: -w * logits.log_softmax(-1).mean(-1), weights)
        assert smooth.item() == pytest.approx(-(weights * logits.log_softmax(-1).mean(-1)).sum().item(), rel=1e-5)
    assert made.plain.item() == pytest.approx(each.sum().item()), "further losses leave it"


def test_a_loss_trains_and_the_plain_one_is_reported(corpus: Corpus) -> None:
    run = small_run(steps=3, gradient_clipping=None, data=Data(batch_size=2, seq_len=32, leaves=2))
    plain, halved, same = (
        [(step.loss, step.grad_norm) for step in Session.open(one, corpus).steps()]
        for one in (run, replace(run, loss=HalfLoss()), replace(run, loss=CrossEntropy()))
    )
    assert halved[0][0] == plain[0][0]
    assert halved[0][1] == pytest.approx(plain[0][1] / 2, rel=1e-4)
    losses = [[loss for loss, _ in steps] for steps in (halved, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3), "Adam does not see the factor"
    assert same == plain
    with pytest.raises(UserError, match=r"loss: PerToken.total returned of shape \(1, 31\)"):
        next(Session.open(replace(run, loss=PerToken()), corpus).steps())


# --- the held-out loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 32, 33, 34, 65, 32 * 9 + 7])
def test_evaluation_scores_every_token_once_exactly(corpus: Corpus, n: int) -> None:
    """A last row of any length, and none."""
    model = Transformer(TINY, Init(head=0.5)).double()
    tokens = corpus.dev[:n]
    nats = []
    stream = torch.from_numpy(tokens.astype(np.int64))
    for start in range(0, len(tokens) - 1, 32):
        stop = min(start + 32, len(tokens) - 1)
        logits = model(stream[start:stop][None])[0].log_softmax(-1)
        nats += [-logits[i, stream[start + i + 1]].item() for i in range(stop - start)]
    score = evaluate(model, tokens, corpus.tokenizer.token_bytes, rows=2)
    assert score.losses == pytest.approx(nats, rel=1e-6)
    assert score.tokens == len(tokens) - 1 == len(nats)
    assert score.loss == pytest.approx(np.mean(nats), rel=1e-9)
    n_bytes = sum(len(corpus.tokenizer.decode_bytes([int(t)])) for t in tokens[1:] if t != 50256)
    assert score.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / n_bytes, rel=1e-9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("vocab", [50257, 3])  # of 3 ids, which raises
def test_the_mode_is_restored_whatever_happens(corpus: Corpus, training: bool, vocab: int) -> None:
    model = Transformer(replace(TINY, vocab_size=vocab)).train(training)
    with pytest.raises(Exception, match="out of range") if vocab == 3 else nullcontext():
        evaluate(model, corpus.dev[:40], corpus.tokenizer.token_bytes)
    assert all(module.training is training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


# --- `diagnose` names the module in which numbers stop being finite, and the text that does it ------------------------

HUGE = 3e38  # finite in float32; sums of it are not


def begun(corpus: Corpus) -> Session:
    """After two steps."""
    session = Session.open(small_run(), corpus)
    list(zip(range(2), session.steps(), strict=False))
    return session


def fill(name: str) -> Callable[[Session], None]:
    """Make a weight so large that the output of its module is not finite."""

    def poison(session: Session) -> None:
        with torch.no_grad():
            weight = dict(session.model.named_parameters())[name]
            weight.copy_(HUGE * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).sign())

    return poison


def only_backward(session: Session) -> None:
    """Finite outputs whose gradient is not."""

    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * math.nan)

    session.model.backbone[1].mlp.activation.register_forward_hook(hook)


@pytest.mark.parametrize(
    ("poison", "stage", "module"),
    [
        (fill("backbone.0.mlp.fc1.weight"), "forward", "backbone.0.mlp.fc1"),
        (fill("backbone.1.attention.W_qkv.weight"), "forward", "backbone.1.attention.W_qkv"),
        (fill("lm_head.weight"), "forward", "lm_head"),
        (fill("position_embeddings.weight"), "forward", "backbone.0.pre_layer_norm"),
        (only_backward, "backward", "backbone.1.mlp.activation"),
    ],
)
def test_the_first_bad_module_is_named(
    corpus: Corpus, poison: Callable[[Session], None], stage: str, module: str
) -> None:
    session = begun(corpus)
    poison(session)
    before = [p.clone() for p in session.model.parameters()]
    found = diagnose(session)
    assert (found.stage, found.module, found.step) == (stage, module, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, session.model.parameters(), strict=True))
    assert all(p.grad is None for p in session.model.parameters())


def test_the_text_is_named(tmp_path: Path) -> None:
    """A token that stands in one row of the batch alone makes that row's loss infinite."""
    corpus = tiny_corpus(tmp_path)
    session, row = begun(corpus), 3
    batches = setup.make_batches(session.run, corpus)
    batch = batches.at(2)
    others = set(batch[[r for r in range(8) if r != row]].ravel().tolist())
    (token, *_) = [token for token in batch[row, :-1].tolist() if token not in others]
    with torch.no_grad():
        session.model.embeddings.weight[token] = HUGE
    found = diagnose(session)
    assert found.rows == (row,)
    sequence = found.sequences[0]
    assert (corpus.train[sequence * 32 : (sequence + 1) * 32] == batch[row]).all()


def test_a_step_that_is_well_has_no_bad_module(corpus: Corpus) -> None:
    session = begun(corpus)
    found = diagnose(session)
    assert (found.stage, found.module) == (None, None)
    step = next(iter(session.steps()))
    assert (found.loss, found.grad_norm) == (step.loss, step.grad_norm)
    assert list(found.row_losses) == sorted(found.row_losses, reverse=True)


# --- numbers of a run: the command line, a trial and Python give the same ---------------------------------------------


def numbers(summary: dict[str, object]) -> dict[str, object]:
    """What must not depend on who drives the run."""
    own = ("seconds", "peak_mb", "losses", "grad_norms", "status", "error", "version", "commit", "dirty")
    return {key: value for key, value in summary.items() if key not in own}


def test_command_line_trial_and_python_give_one_definition(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    begun = time.perf_counter()
    options = ["--dtype", "float32", "--head-dtype", "float32", "--out", "out", "--quiet"]
    here.ok("train", "baseline", "--corpus", corpus.name, *TINY_OPTIONS, *options)
    wall = time.perf_counter() - begun
    monkeypatch.undo()
    run = read_run(tmp_path / "out")
    commanded = json.loads((tmp_path / "out" / "summary.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "train/loss" in row]
    ours = train(run, corpus)
    seen: list[tuple[int, float]] = []
    tried = run_trial(run, corpus, lambda step, loss: seen.append((step, loss)))

    assert seen == list(enumerate(ours.losses, start=1))
    summary = json.loads(json.dumps(ours.summary()))
    assert numbers(tried) == numbers(summary)
    for name, value in numbers(summary).items():
        assert commanded[name] == value, name
    assert [row["train/loss"] for row in steps] == list(ours.losses)
    assert [row["train/grad_norm"] for row in steps] == list(ours.grad_norms)
    assert tried["losses"] == [float(f"{loss:.5g}") for loss in ours.losses]
    training = sum(row["train/dt"] for row in steps)
    assert training < commanded["seconds"] < wall, "scoring and the picture are not in it"
    assert all(0 < seconds < 100 for seconds in (tried["seconds"], ours.seconds))
    for peak in (commanded["peak_mb"], tried["peak_mb"], ours.peak_mb):
        assert 50 < peak <= hardware.peak_memory_mb() + 500


def test_a_result_says_what_the_run_came_to(corpus: Corpus) -> None:
    run = small_run(steps=12, data=Data(batch_size=2, seq_len=32))
    session = Session.open(run, corpus)
    assert (session.result().losses, session.result().dev_loss) == ((), None)
    steps = list(session.steps())
    score = session.evaluate("dev")
    result = session.result()
    assert result.train_tokens == 12 * 2 * 32
    assert (result.dev_loss, result.scores) == (score.loss, {"dev": score})
    assert result.train_loss_last == steps[-1].loss
    assert result.train_loss_last10 == pytest.approx(np.mean([step.loss for step in steps[2:]]))
    assert result.params == sum(p.numel() for p in result.model.parameters())
    summary = result.summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert (summary["dev_loss"], summary["dev_bpb"]) == (score.loss, score.bits_per_byte)


def test_scores_on_the_way_change_no_bit(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a folder too; the last step is scored anyway."""
    plain, scored = (hectogpt.train(small_run(steps=2), corpus=corpus, eval_every=every) for every in (0, 1))
    assert plain.losses == scored.losses
    assert plain.scores == scored.scores
    for one, two in zip(plain.model.parameters(), scored.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert capsys.readouterr().err.count(": held-out loss") == 1


@dataclass(frozen=True)
class Idle(InputPart):
    """A part with a weight that no loss reaches."""

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return IdleLayer()


class IdleLayer(nn.PReLU):
    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:  # type: ignore[override]
        return x


def test_a_part_that_never_moves_is_named(corpus: Corpus) -> None:
    session = Session.open(small_run(steps=2, model=replace(TINY, inputs=(Idle(),))), corpus)
    assert "lm_head.weight" in session.unmoved()
    list(session.steps())
    assert session.unmoved() == ["inputs.0.weight"]
