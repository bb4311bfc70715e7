"""The strongest n-gram baselines of recorded trials: python -m tools.research.ngrams [CORPUS=PATH ...], or --check.

`hectogpt compare` does not compute mkn5 and the best counting, which take minutes. This computes them from what the
trials of the ladder's top read, and adds them to the records of these trials in results/ladder.jsonl, and to those of
other trials that read the same. A corpus that is not in the cache needs its path: tinystories=../tinystories/train.bin.
--check counts one trial on sotu again, compares, and writes nothing.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np

from hectogpt.data import Corpus, open_corpus
from hectogpt.errors import UserError
from hectogpt.files import write_atomic
from hectogpt.lab.best_counting import Mixture, held_out_losses
from hectogpt.lab.ngram import NgramModels
from hectogpt.lab.record import Record, parse_run, read_records
from hectogpt.training.evaluate import SEQ_LEN
from hectogpt.training.setup import training_tokens
from tools import ROOT
from tools.report import ladder_names
from tools.report.leaderboard import build_leaderboards

RECORDS = ROOT / "results" / "ladder.jsonl"
DIGITS = 5  # of a loss; the last digits depend on the processor


def what_was_read(record: Record) -> str:
    """The training text, the order and number of its batches, and the text that was scored."""
    run, text = record.run, record.corpus_sha256.get("train")
    return json.dumps([text, record.ngram_split, record.seed, run["steps"], run["data"]])


def count(record: Record, corpus: Corpus) -> tuple[float, float, float]:
    """kn3, mkn5 and best of what a trial read. Raises UserError if the corpus is not the one that the trial read."""
    run = parse_run(record.run)
    if run is None or corpus.sha256 != record.corpus_sha256:
        raise UserError(f"{record.corpus}: not the text that seed {record.seed} read")
    tokens, split = training_tokens(replace(run, seed=record.seed), corpus), record.ngram_split or "dev"
    held_out = corpus.tokens[split].astype(np.int64)
    kn3 = NgramModels(tokens, corpus.n_vocab).losses(held_out)["kn3"]
    fit_on = None if split == "dev" else corpus.dev
    mkn5, best = held_out_losses(Mixture(tokens, corpus.n_vocab), held_out, SEQ_LEN, fit_on)
    return round(kn3, DIGITS), round(mkn5, DIGITS), round(best, DIGITS)


def main(arguments: list[str]) -> int:
    """Complete the records, or check one. Returns the exit code, 1 if the check finds a difference."""
    records = read_records(RECORDS)
    if arguments == ["--check"]:
        corpus = open_corpus("sotu")
        known = next(r for r in records if r.ngram_best and r.corpus_sha256 == corpus.sha256 and parse_run(r.run))
        recorded = (known.ngram_kn3 or 0.0, known.ngram_mkn5 or 0.0, known.ngram_best or 0.0)
        counted = count(known, corpus)
        print(f"{known.recipe} on sotu, seed {known.seed}: recorded {recorded}, counted again {counted}")
        return int(not np.allclose(recorded, counted, rtol=0, atol=1e-4))
    paths = dict(argument.split("=", 1) for argument in arguments)
    tops = [board.top.records for board in build_leaderboards(records, ladder_names()) if board.top]
    for top in [record for several in tops for record in several if record.ngram_best is None]:
        kn3, mkn5, best = count(top, open_corpus(paths.get(top.corpus, top.corpus)))
        same = [one.ngram_best is None and what_was_read(one) == what_was_read(top) for one in records]
        records = [
            replace(one, ngram_mkn5=mkn5, ngram_best=best) if is_same else one
            for one, is_same in zip(records, same, strict=True)
        ]
        lines = RECORDS.read_text(encoding="utf-8").splitlines()
        for place in np.flatnonzero(same):
            lines[place] = json.dumps(json.loads(lines[place]) | {"ngram_mkn5": mkn5, "ngram_best": best})
        write_atomic(RECORDS, "\n".join(lines) + "\n")
        print(f"{top.corpus}, seed {top.seed}: kn3 {kn3}, mkn5 {mkn5}, best {best}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
