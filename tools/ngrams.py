"""N-gram baselines of recorded trials: python -m tools.ngrams [CORPUS=PATH ...].

Records of earlier versions lack modified Kneser-Ney and the best counting. This counts what the trials of the ladder's
top read, and appends a line for each to results/ngrams.jsonl, where the report takes them from. A corpus that the
cache does not have is named with its path: tinystories=../tinystories/train.bin.
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
from hectogpt.lab.ngram import NgramModels
from hectogpt.lab.record import Record, parse_run, read_records
from hectogpt.serialization import dump
from hectogpt.training.evaluate import SEQ_LEN
from hectogpt.training.setup import training_tokens
from tools import ROOT
from tools.best_counting import mixture_losses
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


def count(record: Record, corpus: Corpus) -> dict[str, object]:
    """The line of one trial. Raises UserError if the corpus is not the one that the trial read."""
    run = parse_run(record.run)
    if run is None or corpus.sha256 != record.corpus_sha256:
        raise UserError(f"{record.corpus}: not the text that seed {record.seed} read")
    split = record.ngram_split or "dev"
    tokens, fit_on = training_tokens(replace(run, seed=record.seed), corpus), None if split == "dev" else corpus.dev
    held_out = corpus.tokens[split].astype(np.int64)
    found = NgramModels(tokens, corpus.n_vocab).losses(held_out)
    found["mkn5"], found["best"] = mixture_losses(tokens, held_out, corpus.n_vocab, SEQ_LEN, fit_on)
    levels = {name: round(loss, DIGITS) for name, loss in found.items()}
    about = {"corpus": record.corpus, "train_sha256": corpus.sha256["train"], "seed": record.seed, "split": split}
    return {**about, "steps": run.steps, "data": dump(run.data), **levels}


def main(arguments: list[str]) -> int:
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
