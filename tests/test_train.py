"""The training room: schedules, groups, Muon against its twin, the loop's laws, and agreement with the textbook."""

from __future__ import annotations

import copy
import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hectogpt import errors
from hectogpt.data import Corpus, open_corpus
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.model import Init, ModelConfig, Transformer
from hectogpt.model.inputs import NgramHash, Smear
from hectogpt.model.parts import Head, RMSNorm, Rotary
from hectogpt.train import loop, machine
from hectogpt.train.optim import (
    AdamW,
    Muon,
    Optimizer,
    Rates,
    SOAPMuon,
    kinds,
    orthogonalize,
)
from hectogpt.train.run import Data, Run
from hectogpt.train.schedules import Constant, Cosine, Linear

TINY = ModelConfig(d_model=16, n_heads=2, n_layers=2, context_length=32, vocab_size=50257)


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of a few hundred small ids with something to learn: each id is often its predecessor plus one."""
    generator = np.random.default_rng(0)
    documents = []
    for _ in range(120):
        steps = np.where(generator.random(200) < 0.8, 1, generator.integers(0, 300, 200))
        documents.append(np.append(np.cumsum(steps) % 300, 50256))
    path = tmp_path_factory.mktemp("text") / "train.bin"
    np.concatenate(documents).astype("<u2").tofile(path)
    return path


@pytest.fixture(scope="module")
def corpus(token_file: Path) -> Corpus:
    return open_corpus(str(token_file))


def small_run(**changes: object) -> Run:
    run = Run(
        model=TINY,
        data=Data(batch_size=8, window=32),
        optim=AdamW(lr=3e-3, weight_decay=0.0),
        schedule=Linear(warmup=2),
        steps=6,
        device="cpu",
        dtype="float32",
        head_dtype="float32",
        threads=1,
    )
    return replace(run, **changes)


def train(run: Run, corpus: Corpus) -> tuple[Transformer, list[loop.Step]]:
    chosen = machine.choose(run)
    model = loop.build_model(run, chosen, corpus)
    return model, list(loop.steps(run, model, run.optim.build(model), corpus, chosen))


# --- schedules ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(0, 40), st.floats(0, 0.9), st.floats(0, 1))
def test_schedules_stay_between_zero_and_one(steps: int, warmup: int, hold: float, final: float) -> None:
    for schedule in (Constant(), Linear(warmup, hold, final), Cosine(warmup, final)):
        factors = [schedule.factor(step, steps) for step in range(steps)]
        assert all(0 <= f <= 1 + 1e-12 and math.isfinite(f) for f in factors)
        assert factors[0] > 0  # a first step at rate 0 is a step thrown away
        falling = factors[warmup:]
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))


def test_linear_reaches_its_marks() -> None:
    factors = [Linear(warmup=5).factor(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[99] == pytest.approx(1 / 95)
    held = [Linear(hold=0.5).factor(step, 100) for step in range(100)]
    assert held[:51] == [1.0] * 51
    assert held[75] == pytest.approx(0.5)


# --- groups and optimizers ----------------------------------------------------------------------------------------


def departed() -> Transformer:
    config = replace(
        TINY, norm=RMSNorm(gain=True), inputs=(NgramHash(2, 64), Smear()), heads=(Rotary(),), head=Head(bias=True)
    )
    return Transformer(config)


@pytest.mark.parametrize(
    "optim",
    [
        AdamW(),
        AdamW(decay_all=False, rates=Rates(head=1.0)),
        AdamW(row_fall=0.5, touches=Rates(head=1e-4)),
        Muon(),
        SOAPMuon(rest=AdamW(row_fall=1.0)),
    ],
)
@pytest.mark.parametrize("make", [lambda: Transformer(TINY), departed], ids=["gpt2", "departed"])
def test_every_parameter_is_in_one_group(optim: AdamW | Muon, make) -> None:
    model = make()
    stepped = [id(p) for p in optim.build(model).parameters()]
    assert len(stepped) == len(set(stepped))
    assert set(stepped) == {id(p) for p in model.parameters()}


def test_kinds() -> None:
    found = kinds(departed())
    assert (found["embeddings.weight"], found["inputs.0.table.weight"]) == ("embedding", "table")
    assert found["position_embeddings.weight"] == "position"
    assert found["backbone.0.attention.W_qkv.weight"] == found["backbone.1.mlp.fc2.weight"] == "matrix"
    assert found["backbone.0.mlp.fc1.bias"] == found["inputs.1.shares"] == found["final_layer_norm.weight"] == "scalar"
    assert (found["lm_head.weight"], found["lm_head.bias"]) == ("head", "head_bias")
    tied = kinds(Transformer(replace(TINY, head=Head(tied=True))))
    assert tied["embeddings.weight"] == "embedding"
    assert "lm_head.weight" not in tied


def test_rates_and_epsilons_reach_their_kinds() -> None:
    model = departed()
    optimizer = AdamW(lr=0.5, rates=Rates(head_bias=0.0, head=0.25)).build(model)
    rate = {id(p): g["base_lr"] for part in optimizer.parts for g in part.param_groups for p in g["params"]}
    assert rate[id(model.lm_head.bias)] == 0.0
    assert rate[id(model.lm_head.weight)] == 0.25
    assert rate[id(model.embeddings.weight)] == 0.5
    optimizer = AdamW(eps=1e-9, epsilons=Rates(head=1e-5)).build(model)
    eps = {id(p): g["eps"] for part in optimizer.parts for g in part.param_groups for p in g["params"]}
    assert eps[id(model.lm_head.weight)] == 1e-5
    assert eps[id(model.embeddings.weight)] == 1e-9


def test_a_rate_that_rises_with_visits_is_refused() -> None:
    with pytest.raises(UserError, match="row_fall"):
        AdamW(row_fall=-0.5)


@pytest.mark.parametrize(("name", "faint"), [("embeddings.weight", 0.0), ("lm_head.weight", 1e-4)])
def test_a_row_keeps_its_rate_until_it_has_been_visited(name: str, faint: float) -> None:
    """With row_fall every row moves as torch's Adam moves it alone at max(the schedule's rate, the highest n^-p)."""
    factors, touched = [0.5, 1.0, 0.5, 0.1, 0.0], {0: range(5), 1: [1, 4], 2: [4], 3: []}
    model = Transformer(replace(TINY, vocab_size=len(touched)))
    adamw = AdamW(lr=0.1, eps=1e-4, weight_decay=0.01, row_fall=0.5, touches=Rates(head=1e-6))
    optimizer = adamw.build(model)
    table = model.get_parameter(name)
    alone = [torch.nn.Parameter(row.clone()) for row in table.detach()]
    adams = [torch.optim.AdamW([row], eps=1e-4, weight_decay=0.0) for row in alone]
    for step, factor in enumerate(factors):
        gradient = torch.randn(table.shape, generator=torch.Generator().manual_seed(step)) * 1e-3
        for row, steps in touched.items():
            gradient[row] *= 1.0 if step in steps else faint
            visits = sum(s <= step for s in steps)
            alone[row].grad = gradient[row].clone()
            alone[row].data *= 1 - 0.1 * factor * 0.01
            adams[row].param_groups[0]["lr"] = 0.1 * max(factor, max(factors[: step + 1]) * max(visits, 1) ** -0.5)
            adams[row].step()
        for p in model.parameters():
            p.grad = gradient if p is table else torch.zeros_like(p)
        optimizer.step(step, factor)
    torch.testing.assert_close(table.detach(), torch.stack([row.detach() for row in alone]))


@pytest.mark.parametrize("optim", [AdamW(row_fall=0.5), Muon(momentum_steps=4), SOAPMuon()])
def test_saved_state_is_the_whole_state(optim: AdamW | Muon) -> None:
    """An optimizer that has loaded another's states goes on as the other does, to the last bit."""

    def steps(model: Transformer, optimizer: Optimizer, numbers: range) -> None:
        for step in numbers:
            generator = torch.Generator().manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator) * 1e-3
            optimizer.step(step, 1 - step / 6)

    one, other = departed(), departed()
    first, second = optim.build(one), optim.build(other)
    steps(one, first, range(3))
    other.load_state_dict(one.state_dict())
    for part, loaded in zip(first.parts, second.parts, strict=True):
        loaded.load_state_dict(copy.deepcopy(part.state_dict()))
    steps(one, first, range(3, 6))
    steps(other, second, range(3, 6))
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 100))
def test_orthogonalized_matrices_have_singular_values_near_one(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed)) + 0.1
    values = torch.linalg.svdvals(orthogonalize(matrix, steps=10))
    original = torch.linalg.svdvals(matrix)
    clear = original > 1e-2 * original[:, :1]  # directions that are nearly absent need more steps
    assert ((values > 0.6) & (values < 1.3))[clear].all()


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_its_twin_in_torch(nesterov: bool) -> None:
    config = replace(TINY, n_layers=1, vocab_size=50)
    ours, twin = Transformer(config), Transformer(config)
    twin.load_state_dict(ours.state_dict())
    optim = Muon(lr=0.05, momentum=0.9, nesterov=nesterov, rest=AdamW(lr=0.0, weight_decay=0.0))
    mine = optim.build(ours)
    # The twin takes each of q, k and v as a matrix of its own.
    matrices = {}
    for name, p in twin.named_parameters():
        if kinds(twin)[name] == "matrix":
            chunks = p.detach().chunk(3 if "qkv" in name else 1)
            matrices[name] = [torch.nn.Parameter(c.clone()) for c in chunks]
    flat = [p for parts in matrices.values() for p in parts]
    theirs = torch.optim.Muon(flat, lr=0.05, weight_decay=0.0, momentum=0.9, nesterov=nesterov, adjust_lr_fn="original")
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for name, p in ours.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator)
            for part, gradient in zip(matrices.get(name, []), p.grad.chunk(len(matrices.get(name, [0]))), strict=False):
                part.grad = gradient.clone()
        mine.step(step, 1.0)
        theirs.step()
    for name, parts in matrices.items():
        got = dict(ours.named_parameters())[name]
        # Theirs iterates in bf16 (8 bits of mantissa), ours in float32.
        torch.testing.assert_close(got, torch.cat([p.data for p in parts]), rtol=0, atol=0.05 * 4 * 0.05)


def test_muon_momentum_warms_up() -> None:
    model = Transformer(TINY)
    optimizer = Muon(momentum=0.95, momentum_start=0.85, momentum_steps=10).build(model)
    seen = []
    for step in (0, 5, 10, 50):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step(step, 1.0)
        seen.append(optimizer.parts[0].param_groups[0]["momentum"])
    assert seen == pytest.approx([0.85, 0.90, 0.95, 0.95])


def test_soap_does_not_depend_on_the_basis() -> None:
    """Turning every gradient by U and V turns the update by them: SOAP is Adam in a basis of the gradients' own."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    u, v = (torch.linalg.qr(draw(5, 5)).Q for _ in range(2))
    plain, turned = {}, {}
    for step in range(25):
        gradient, momentum = draw(2, 5, 5), draw(2, 5, 5)
        expected = u @ SOAPMuon().precondition(gradient, momentum, plain, step) @ v.T
        got = SOAPMuon().precondition(u @ gradient @ v.T, u @ momentum @ v.T, turned, step)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        assert got.square().sum((1, 2)).max() <= 2.5**2 * 25


# --- the loop -----------------------------------------------------------------------------------------------------


def test_it_learns_and_repeats_itself_bit_for_bit(corpus: Corpus) -> None:
    run = small_run(steps=30, optim=AdamW(lr=1e-2, weight_decay=0.0))
    model, steps = train(run, corpus)
    again, repeated = train(run, corpus)
    assert [s.loss for s in steps] == [s.loss for s in repeated]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert steps[0].loss == pytest.approx(math.log(50257), abs=0.05)
    assert steps[-1].loss < 7.5
    assert [s.step for s in steps] == list(range(1, 31))
    assert steps[-1].tokens == 30 * 8 * 32
    _, other = train(replace(run, seed=1), corpus)
    assert other[0].loss != steps[0].loss


def test_a_shared_head_learns_on_the_words_in_use(corpus: Corpus) -> None:
    run = small_run(model=replace(TINY, head=Head(shared=True)))
    model, steps = train(run, corpus)
    assert model.config.head.used == len(np.unique(corpus.train)) == model.lm_head.weight.shape[0] - 1
    assert loop.count_parameters(run, corpus) == sum(p.numel() for p in model.parameters())
    assert steps[0].loss == pytest.approx(math.log(50257), abs=0.05)
    assert steps[-1].loss < steps[0].loss


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_accumulated_gradients_are_the_batch_s(corpus: Corpus, micro_batch: int) -> None:
    run = small_run(dtype="float64", head_dtype="float64")
    chosen = machine.choose(run)
    model = loop.build_model(run, chosen, corpus)
    batch = torch.from_numpy(loop.Batches(corpus.train, 32, 8, 0).at(0))
    model.get_loss_on_batch(batch).backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = loop.accumulate(replace(run, data=replace(run.data, micro_batch=micro_batch)), model, batch, chosen)
    torch.testing.assert_close(loss, model.get_loss_on_batch(batch).double(), rtol=1e-12, atol=1e-12)
    for p, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_before_the_update(corpus: Corpus, poison: str) -> None:
    run = small_run()
    chosen = machine.choose(run)
    model = loop.build_model(run, chosen, corpus)
    steps = loop.steps(run, model, run.optim.build(model), corpus, chosen)
    next(steps)
    if poison == "loss":
        with torch.no_grad():
            model.final_layer_norm.bias[0] = float("nan")
    else:
        model.backbone[0].mlp.fc1.weight.register_hook(lambda g: g * float("inf"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError, match="step 2") as caught:
        next(steps)
    assert caught.value.code == errors.DIVERGED
    assert "kept: the weights after step 1" in str(caught.value)
    for name, p in model.named_parameters():
        assert torch.equal(p.detach().nan_to_num(), before[name].nan_to_num()), name


def test_clipping_bounds_the_gradient_and_none_leaves_it(corpus: Corpus) -> None:
    class Watched(Optimizer):
        norms: tuple[float, ...] = ()

        def step(self, step: int, factor: float) -> None:
            self.norms += (torch.nn.utils.get_total_norm([p.grad for p in self.parameters()]).item(),)
            super().step(step, factor)

    for bound in (0.01, None):
        run = small_run(gradient_clipping=bound, steps=2)
        chosen = machine.choose(run)
        model = loop.build_model(run, chosen, corpus)
        watched = Watched(run.optim.build(model).parts)
        norms = [s.grad_norm for s in loop.steps(run, model, watched, corpus, chosen)]
        assert watched.norms == pytest.approx([0.01, 0.01] if bound else norms, rel=1e-3)


def test_evaluation_scores_every_token_once_exactly(corpus: Corpus) -> None:
    model = Transformer(TINY, Init(head=0.5)).double()
    tokens = corpus.dev[: 32 * 9 + 7]  # eight full windows after the first token, and a short one
    nats = []
    stream = torch.from_numpy(tokens.astype(np.int64))
    for start in range(0, len(tokens) - 1, 32):
        stop = min(start + 32, len(tokens) - 1)
        logits = model(stream[start:stop][None])[0].log_softmax(-1)
        nats += [-logits[i, stream[start + i + 1]].item() for i in range(stop - start)]
    score = loop.evaluate(model, tokens, corpus.tokenizer.token_bytes)
    assert score.tokens == len(tokens) - 1 == len(nats)
    assert score.loss == pytest.approx(np.mean(nats), rel=1e-9)
    n_bytes = sum(len(corpus.tokenizer.decode_bytes([int(t)])) for t in tokens[1:] if t != 50256)
    assert score.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / n_bytes, rel=1e-9)


def test_a_corpus_that_does_not_fit_is_refused(corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size"):
        loop.check_corpus(small_run(model=replace(TINY, vocab_size=1000)), corpus)
    long = replace(TINY, context_length=10**6)
    with pytest.raises(UserError, match="one window takes"):
        loop.check_corpus(small_run(model=long, data=Data(8, 10**6)), corpus)


def test_absurd_sizes_are_refused_before_allocation() -> None:
    with pytest.raises(UserError, match="does not fit") as caught:
        machine.check_memory(replace(TINY, d_model=2 * 10**6), torch.device("cpu"))
    assert caught.value.code == errors.MEMORY


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed"),
        ({"gradient_clipping": 0.0}, "gradient_clipping"),
        ({"data": Data(8, 64)}, r"--data\.window 32"),
        ({"threads": -2}, "threads"),
    ],
)
def test_impossible_runs_are_refused(change: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        small_run(**change)
    for bad in ({"batch_size": 0}, {"window": 1}, {"micro_batch": 99}):
        with pytest.raises(UserError, match=r"data\."):
            Data(**bad)


COMPILED_RUN = """
import sys
from dataclasses import replace
from hectogpt.data import open_corpus
from hectogpt.lab import recipes
from hectogpt.train import loop, machine
from hectogpt.train.run import Data
corpus = open_corpus(sys.argv[1])
whole = recipes.recipe(recipes.DEFAULT)
model = replace(whole.model, d_model=32, context_length=32)
run = replace(whole, model=model, data=Data(4, 32), steps=3, threads=1, device="cpu", head_dtype="float32")
losses = []
for compile in (False, True):
    chosen = machine.choose(replace(run, compile=compile))
    built = loop.build_model(replace(run, compile=compile), chosen, corpus)
    losses.append([s.loss for s in loop.steps(run, built, run.optim.build(built), corpus, chosen)])
print(max(abs(a - b) for a, b in zip(*losses)))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_blocks_compute_the_same(token_file: Path) -> None:
    # In a process without the type checks of the tests, which the compiler cannot trace.
    done = subprocess.run([sys.executable, "-c", COMPILED_RUN, str(token_file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4


# --- agreement with the textbook ----------------------------------------------------------------------------------


TEXTBOOK_RUN = """
import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])
from model_solution import ModelConfig; from train import train
train(1e-3, 1.0, ModelConfig(33, 3, 3, 64, 50257), 2, 6, data=sys.argv[2], log=Path(sys.argv[3]))
"""


def assert_same_run(run: Run, token_file: Path, log: Path) -> None:
    theirs = [json.loads(line) for line in log.read_text().splitlines()]
    corpus = open_corpus(str(token_file))
    whole = replace(corpus, train=np.fromfile(token_file, "<u2"))  # the textbook trains on all of a file
    _, ours = train(run, whole)
    assert len(theirs) == len(ours) == run.steps
    for step, line in zip(ours, theirs, strict=True):
        assert step.loss == pytest.approx(line["loss"], abs=1e-4)
        assert step.grad_norm == pytest.approx(line["grad_norm"], rel=1e-4)


def test_same_losses_and_norms_as_the_textbook_s_loop(token_file: Path, tmp_path: Path, reference: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-c", TEXTBOOK_RUN, str(reference), str(token_file), str(log)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    run = replace(recipes.recipe("baseline"), optim=AdamW(lr=1e-3), steps=6, data=Data(2, 64), device="cpu")
    assert_same_run(replace(run, model=replace(run.model, context_length=64)), token_file, log)


@pytest.mark.slow
def test_baseline_reproduces_the_textbook_s_hundred_steps(token_file: Path, tmp_path: Path, reference: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = [sys.executable, str(reference / "train.py"), "--data", str(token_file), "--log", str(log)]
    subprocess.run([*command, "--save-path", str(tmp_path / "p.png")], check=True, capture_output=True, cwd=tmp_path)
    assert_same_run(replace(recipes.recipe("baseline"), device="cpu"), token_file, log)
