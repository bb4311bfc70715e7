"""`python -m tools.research.judge_proof [nulls] [claims] [honest]`: how often the judge is wrong, on which ideas.

nulls: 200 ideas that change nothing, on tiny runs: another seed, initial weights shuffled within each tensor, or
only another name. Each is judged as `hectogpt judge` would: seed by seed, until it is decided or 12 seeds are run. No
two verdicts share a training run.
claims: every rung of the ladder against the one below, and the published stacks against AdamW, decided from the seeds
in results/ladder.jsonl that both have, in the order of the seeds.
honest: unusual ideas (honest.py here, docs/literature/) on a tiny base, one seed each: none may be called dishonest.

Writes results/judge_proof.json, and resumes from there. `--tiny` does a little of nulls and honest, and writes nothing.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hectogpt import AdamW, Data
from hectogpt.data import Corpus, open_corpus
from hectogpt.idea_file import read_idea
from hectogpt.lab import recipes
from hectogpt.lab.ideas import functions_of
from hectogpt.lab.judge import MOST_SEEDS, judge
from hectogpt.lab.judgement import Judgement, find_entrant
from hectogpt.lab.ladder import LADDER, baseline
from hectogpt.lab.record import read_records
from hectogpt.training.evaluate import evaluate
from hectogpt.training.run import Run
from hectogpt.training.session import Session
from tools import ROOT
from tools.report.leaderboard import build_leaderboards

OUT = ROOT / "results" / "judge_proof.json"
HONEST = ROOT / "tools" / "research" / "honest.py"
LITERATURE = sorted((ROOT / "docs" / "literature").glob("*/*.py"))
NULLS = 200
KINDS = ("another seed", "first weights shuffled", "another name")
TOKENS = 1025  # of the test text, for each tiny run
STEPS = 100  # of a recorded run
STACKS = ("modded_nanogpt", "nanochat", "soap_muon")  # recorded to be compared with adamw_gpt2


def tiny() -> Run:
    """Twenty steps of two rows of 32 tokens. The losses of two seeds differ by 0.033 (SD)."""
    run = recipes.recipe("baseline")
    model = replace(run.model, d_model=8, n_heads=1, n_layers=1, context_length=32)
    return replace(run, model=model, data=Data(batch_size=2, seq_len=32), optim=AdamW(lr=0.003), steps=20, threads=1)


def train(corpus: Corpus, seed: int, shuffled: bool = False) -> float:
    """The test loss of a tiny run."""
    session = Session.open(replace(tiny(), seed=seed), corpus)
    if shuffled:
        torch.manual_seed(seed)
        for parameter in session.model.parameters():
            parameter.data = parameter.data.flatten()[torch.randperm(parameter.numel())].view_as(parameter)
    for _ in session.steps():
        pass
    return evaluate(session.model, corpus.tokens["test"][:TOKENS], corpus.tokenizer.token_bytes).loss


def judged(gains: Iterator[dict[str, float]]) -> dict[str, Any]:
    """The judge's decision from gains by corpus, one dict for each seed."""
    found, word = Judgement(ROOT, {"corpora": []}), "unproven"
    for number, each in enumerate(gains):
        found.begin["corpora"] = list(each)
        for corpus, gain in each.items():
            found.trials[corpus, number, "base"] = {"loss": gain}
            found.trials[corpus, number, "idea"] = {"loss": 0.0}
        word = found.decided()
        if word != "unproven" or number + 1 == MOST_SEEDS:
            break
    by_seed = found.gains()
    return {"word": word, "seeds": len(by_seed), "gain": float(by_seed.mean())}


def null_gains(corpus: Corpus, kind: str, number: int) -> Iterator[dict[str, float]]:
    """Yield gains of an idea that changes nothing, with seeds that no other null has."""
    for seed in itertools.count(1 + 1000 * number):
        other = seed + 500 if kind == "another seed" else seed
        base = train(corpus, seed)
        yield {"sotu": base - (base if kind == "another name" else train(corpus, other, kind.endswith("shuffled")))}


def nulls(done: list[dict[str, Any]]) -> None:
    """Judge the remaining null ideas, and add each result to `done`, which is saved."""
    corpus = open_corpus("sotu")
    for number in range(len(done), NULLS):
        kind = KINDS[0] if number % 5 < 2 else KINDS[1] if number % 5 < 4 else KINDS[2]
        done.append({"kind": kind} | judged(null_gains(corpus, kind, number)))
        save("nulls", done)
        print(number + 1, done[-1], flush=True)


def claims() -> list[dict[str, Any]]:
    """The verdict on every published claim, from the recorded seeds that both sides have."""
    losses: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    names = [baseline.__name__, *(rung.__name__ for rung in LADDER)]
    for board in build_leaderboards(read_records(ROOT / "results" / "ladder.jsonl"), names):
        for entry in board.entries():
            if not entry.overrides and entry.steps == STEPS:
                scored = {r.seed: r.test_loss for r in entry.records if r.test_loss is not None}
                losses[entry.name, board.corpus].update(scored)
    found = []
    for old, new in [*itertools.pairwise(names), *(("adamw_gpt2", stack) for stack in STACKS)]:
        by_corpus = {}
        for corpus in ("sotu", "tinystories"):
            before, after = losses[old, corpus], losses[new, corpus]
            if gains := [before[seed] - after[seed] for seed in sorted(before.keys() & after.keys())]:
                by_corpus[corpus] = gains
        verdict = judged(dict(zip(by_corpus, row, strict=True)) for row in zip(*by_corpus.values(), strict=False))
        means = {corpus: round(float(np.mean(gains)), 4) for corpus, gains in by_corpus.items()}
        found.append({"claim": f"{new} over {old}", "recorded": means} | verdict)
        print(found[-1])
    return found


def honest(done: list[dict[str, Any]], most: int | None = None) -> None:
    """Judge the remaining honest ideas, at most `most`. Adds the results to `done`; saves them if `most` is None."""
    corpus, base = open_corpus("sotu"), f"{HONEST}:tiny"
    names = [f"{path}:{name}" for path in (HONEST, *LITERATURE) for name in functions_of(read_idea(path))]
    known = {"tiny", "with_part", *(one["idea"].rpartition(":")[2] for one in done)}
    chosen = [name for name in names if name.rpartition(":")[2] not in known][:most]
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            found = judge(find_entrant(name, base), [corpus], Path(folder), most_seeds=1, threads=1)
            done.append({"idea": Path(name).name, "word": found.word, "reasons": list(found.reasons)})
            print(done[-1], flush=True)
            if most is None:
                save("honest", done)
    if dishonest := [one for one in done if one["word"] == "dishonest"]:
        sys.exit(f"honest ideas are called dishonest: {dishonest}")


def read() -> dict[str, Any]:
    """The results so far."""
    content: dict[str, Any] = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    return content


def save(name: str, rows: list[dict[str, Any]]) -> None:
    """Write one part, with how often each verdict was given."""
    words = dict(Counter(row["word"] for row in rows))
    OUT.write_text(json.dumps(read() | {name: {"verdicts": words, "each": rows}}, indent=1) + "\n", encoding="utf-8")


def main(parts: list[str]) -> None:
    """Do the parts named, or all."""
    if parts == ["--tiny"]:
        print([judged(itertools.islice(null_gains(open_corpus("sotu"), kind, 0), 2)) for kind in KINDS])
        honest([], most=1)
        return
    if "honest" in parts or not parts:
        honest(read().get("honest", {}).get("each", []))
    if "claims" in parts or not parts:
        save("claims", claims())
    if "nulls" in parts or not parts:
        nulls(read().get("nulls", {}).get("each", []))


if __name__ == "__main__":
    main(sys.argv[1:])
