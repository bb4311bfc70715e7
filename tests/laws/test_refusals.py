"""Values that cannot be are refused where they are given, by the name of their field: one error, in words that every
interface can use."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY, fused_loss, small_run
from model_kinds import GPT2, build
from torch import nn

from hectogpt.data import Batches, Tokenizer, load_tokenizer
from hectogpt.errors import UserError
from hectogpt.generation import Sampling, generate
from hectogpt.lab import recipes
from hectogpt.lab.ideas import check_causal
from hectogpt.lab.ladder import TOP
from hectogpt.lab.ngram import NgramModels
from hectogpt.lab.plan import plan
from hectogpt.lab.tracks import find_track
from hectogpt.model import SIZES, Init, Transformer
from hectogpt.model.inputs import InputPart, NgramHash
from hectogpt.model.parts import Norm, Rotary, SinusoidalPositions
from hectogpt.serialization import dump
from hectogpt.training.parallel import choose_leaves
from hectogpt.training.run import Data, load_run


def sample(**options: Any) -> Sampling:
    return Sampling(do_sample=True, **options)


def swept(sweep: str) -> object:
    return plan(["baseline"], sweep=[sweep])


def loaded(**change: Any) -> object:
    """load_run leaves out the classes of users' files that other tests have loaded."""
    return load_run(dump(recipes.recipe("adamw_128")) | change)


def counted(train: list[int], held_out: list[int]) -> object:
    return NgramModels(np.array(train, dtype=np.int64), 5).losses(np.array(held_out))


def loss_of(targets: list[int]) -> object:
    return fused_loss(torch.ones(len(targets), 3), torch.ones(20, 3), torch.tensor(targets, dtype=torch.int64))


@dataclass(frozen=True)
class Peek(InputPart):
    """Adds the next token's vector, in training only if it is told so."""

    in_training: bool = False

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return PeekLayer(self.in_training)


class PeekLayer(nn.Module):
    def __init__(self, in_training: bool) -> None:
        super().__init__()
        self.in_training = in_training

    def forward(self, x: torch.Tensor, ids: torch.Tensor, cache: object = None) -> torch.Tensor:
        return x + x.roll(-1, 1) if self.training or not self.in_training else x


def peeking(in_training: bool) -> None:
    check_causal(small_run(model=replace(TINY, inputs=(Peek(in_training),))))


def continued(ids: list[int], seed: int = 0) -> object:
    return generate(build(GPT2), ids, sample(num_return_sequences=2), seed=seed)


REFUSED: list[tuple[Callable[[], object], str]] = [
    # runs and their data
    (lambda: small_run(steps=0), "steps"),
    (lambda: small_run(seed=-1), "seed"),
    (lambda: small_run(gradient_clipping=0.0), "gradient_clipping"),
    (lambda: small_run(data=Data(8, 64)), "set data.seq_len to 32"),
    (lambda: small_run(seed=2**63), "seed = "),
    (lambda: small_run(threads=-2), "threads"),
    (lambda: small_run(threads=4096), "threads = "),
    (lambda: Data(batch_size=0), "data.batch_size"),
    (lambda: Data(seq_len=1), "data.seq_len"),
    (lambda: Data(leaves=0), "set data.leaves to 1"),
    (lambda: Data(batch_size=10**6, leaves=10**6), "set data.leaves to 10000"),
    (lambda: Data(batch_size=16, seq_len=8, leaves=3), "set data.leaves to 2"),
    (lambda: choose_leaves(Data(batch_size=12, seq_len=8), 5), "their number must be 1, 2, 3, 4, 6 or 12"),
    (lambda: choose_leaves(Data(batch_size=16, seq_len=8, leaves=8), 3), "their number must be 1, 2, 4 or 8"),
    (lambda: Batches(np.arange(7), seq_len=65), "set data.seq_len to 7"),
    # models and generation
    (lambda: replace(SIZES["tiny"], n_heads=4), "n_heads: one of 1, 3, 11, 33"),
    (lambda: replace(TINY, d_model=0), "d_model"),
    (lambda: replace(TINY, n_layers=-1), "n_layers"),
    (lambda: Transformer(replace(SIZES["tiny"], positions=SinusoidalPositions())), "even"),
    (lambda: Rotary(fraction=float("nan")), "Rotary.fraction"),
    (lambda: NgramHash(rows=2**62), "NgramHash."),
    (lambda: NgramHash(64, common=10**5), "it must lie between 1 and 10,000"),
    (lambda: Init(head=float("inf")), "init.head = "),
    (lambda: sample(temperature=float("nan")), "temperature"),
    (lambda: sample(min_p=float("nan")), "min_p"),
    (lambda: sample(top_p=1.1), "top_p"),
    (lambda: sample(num_return_sequences=0), "num_return_sequences"),
    (lambda: sample(stop_strings=("",)), "stop_strings"),
    (lambda: continued([1, 2, 40]), "the prompt: id 40 at position 2"),
    (lambda: continued([-1]), "the prompt: id -1 at position 0"),
    (lambda: continued([1], seed=2**63), "it must lie between -2^63"),
    (lambda: continued([1], seed=2**63 - 1), "it must lie between -2^63"),  # the second text's would be larger
    (lambda: loss_of([]), "no targets"),
    (lambda: loss_of([1, 2, 20]), "target id 20 at flat position 2"),
    (lambda: peeking(False), "sees the future"),
    (lambda: peeking(True), "sees the future"),
    # texts
    (lambda: load_tokenizer().encode("ab\ud83d"), "U+D83D at character 2"),
    (lambda: load_tokenizer().encode(" " * 1_500_000 + "a"), "cannot be cut into words"),
    (lambda: load_tokenizer().decode([1, 2, 50_257, 99_999]), "id 50257 at position 2"),
    (lambda: load_tokenizer().decode([-1]), "id -1 at position 0"),
    (lambda: Tokenizer(b"#version: 0.2\na b\na b c\n"), "merge 2 is malformed"),
    (lambda: Tokenizer(b"#version: 0.2\na b\na b\n"), "merge 2 is malformed"),
    (lambda: counted([], [1, 2]), "0 tokens"),
    (lambda: counted([1, 2], [1]), "1 tokens"),
    (lambda: counted([1, 9], [1, 2]), "id 9"),
    (lambda: counted([1, 2], [1, 9]), "id 9"),
    # names and run files
    (lambda: recipes.recipe("rotery"), "did you mean 'rotary'"),
    (lambda: recipes.recipe("without-adamw_128"), "is not on the ladder"),
    (lambda: plan([]), "no recipe"),
    (lambda: plan(["basline"]), "basline"),
    (lambda: plan([], without=["foo"]), "foo"),
    (lambda: plan(["top", TOP]), "twice"),
    (lambda: find_track("close"), "did you mean 'closed'"),
    (lambda: swept("model.dmodel=32"), "did you mean 'd_model'"),
    (lambda: swept("optimum.lr=1"), "no field"),
    (lambda: swept("optim.lr"), "FIELD=VALUE"),
    (lambda: swept("optim.lr=fast"), "does not fit"),
    (lambda: swept("steps.n=2"), "no field"),
    (lambda: loaded(steps="100"), "steps"),
    (lambda: loaded(stepz=3), "did you mean 'steps'?"),
    (lambda: loaded(optim={"type": "AdamV"}), "did you mean 'AdamW'?"),
    (lambda: loaded(optim={"type": "AdamW", "betas": [0.9]}), "optim.betas"),
    (lambda: loaded(optim={"type": "AdamW", "betas": [0.9, 1.5]}), "optim.betas = (0.9, 1.5)"),
    (lambda: loaded(model={"d_model": 33, "n_heads": 4}), "model"),
    (lambda: loaded(schedule={"type": "Schedule"}), "Constant, Cosine, LinearDecay"),
    (lambda: loaded(schedule={"type": "RMSNorm"}), "unknown type 'RMSNorm'"),
    (lambda: loaded(schedule={"type": ["Constant"]}), "schedule: unknown type"),
]


@pytest.mark.parametrize(("do", "named"), REFUSED)
def test_what_cannot_be_is_refused_by_name(do: Callable[[], object], named: str) -> None:
    with pytest.raises(UserError) as caught:
        do()
    assert named in str(caught.value)
    assert caught.value.why or caught.value.fix
    assert re.search("--[a-z]", str(caught.value)) is None, "only the command line spells options"
