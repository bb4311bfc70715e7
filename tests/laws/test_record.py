"""Records: a schema, an identity that names do not change, a file that survives kill -9; plans of comparisons: sweeps
are grids, fields and recipes go by today's names and by their old ones; tracks."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import hostile
import pytest
from experiments import small_run

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.lab import ladder, recipes
from hectogpt.lab.ladder import TOP, baseline
from hectogpt.lab.plan import override, parse_sweep, plan
from hectogpt.lab.record import Record, append_record, experiment_key, failures, parse_run, read_records, trial_key
from hectogpt.lab.tracks import TRACKS, broken_rules
from hectogpt.serialization import dump
from results import recipes as results_recipes

RESULTS = Path(__file__).resolve().parents[2] / "results"


def record(seed: int = 0, **more: Any) -> Record:
    return Record("c", "closed", "r", seed, dump(small_run()), **{"dev_loss": 3.0, **more})


# --- the file ---------------------------------------------------------------------------------------------------------


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    """Whatever names it has: those of files come into records."""
    path = tmp_path / "folder" / "r.jsonl"
    written = [record(0, losses=[3.1, 3.0], overrides={"optim.lr": 0.1}, status="diverged", error="a\nb"), record(1)]
    names = [name for name in hostile.TEXTS if name.strip()]
    written += [replace(record(n), corpus=name, recipe=name) for n, name in enumerate(names)]
    for each in written:
        append_record(path, each)
    assert [replace(r, arm="") for r in read_records(path)] == written
    assert read_records(tmp_path / "nothing.jsonl") == []


def test_half_a_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append_record(path, record(0))
    whole = path.read_bytes()
    append_record(path, record(1))
    for cut in (len(whole) + 1, len(whole) + 40, path.stat().st_size - 2):
        os.truncate(path, cut)
        assert [r.seed for r in read_records(path)] == [0]
        append_record(path, record(2))
        assert [r.seed for r in read_records(path)] == [0, 2]
    os.truncate(path, 40)
    append_record(path, record(3))
    assert [r.seed for r in read_records(path)] == [3]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/r\.jsonl") as caught:
        append_record(tmp_path / "file" / "r.jsonl", record(0))
    assert "--" not in caught.value.fix
    (tmp_path / "r.jsonl").write_text(caught.value.kept[caught.value.kept.index("{") :] + "\n")
    assert [r.seed for r in read_records(tmp_path / "r.jsonl")] == [0], "a trial of hours is not lost with it"


def test_failures_name_the_seeds() -> None:
    wrong = [record(seed, status="diverged", error="nan", rules_broken=["99 steps, not 100"]) for seed in (2, 1)]
    assert failures([record(0), *wrong]) == [
        "r: diverged, counted as a uniform guess: nan (seed 1, 2)",
        "r: breaks the rules of closed: 99 steps, not 100 (seed 1, 2)",
    ]


# --- identity ---------------------------------------------------------------------------------------------------------


def test_identity_is_the_run_the_texts_the_track_and_the_seed() -> None:
    texts = {split: split for split in ("train", "dev", "test")}
    one = record(corpus_sha256=texts)
    same = replace(one, run=one.run | {"seed": 9, "corpus": "/elsewhere/c"}, dev_loss=1.0)
    assert (same.key(), same.experiment()) == (one.key(), one.experiment())
    threads = replace(one, run=one.run | {"threads": 8})
    assert (threads.key() == one.key(), threads.experiment() == one.experiment()) == (False, True)
    assert one.key() == trial_key(dump(small_run()), texts, "closed", 0)
    others = [
        replace(one, seed=1),
        replace(one, track="open-cpu"),
        replace(one, corpus_sha256=texts | {"dev": "other"}),
        replace(one, run=dump(small_run(0.5))),
    ]
    assert len({r.key() for r in [one, *others]}) == 5
    assert [r.experiment() == one.experiment() for r in others] == [True, True, False, False]


def test_a_run_that_this_version_cannot_express_stands_for_itself(tmp_path: Path) -> None:
    strange = record().run | {"optim": {"type": "Lion", "lr": 0.1}}
    one, same, other = (replace(record(), run=run) for run in (strange, strange | {"seed": 3}, strange | {"steps": 4}))
    assert parse_run(one.run) is None
    assert one.key() == same.key() != other.key()
    append_record(tmp_path / "r.jsonl", one)
    assert read_records(tmp_path / "r.jsonl")[0].run == strange


def test_the_records_are_those_of_todays_recipes() -> None:
    """Every trial that this repository has recorded of a recipe that has not changed since is found done: all rungs on
    both texts, and the recipes beside them. So no refactoring changes a field of a recipe."""
    records = [*read_records(RESULTS / "ladder.jsonl"), *read_records(RESULTS / "positions.jsonl")]
    assert len(records) >= 292
    inexpressible = {r.recipe for r in records if parse_run(r.run) is None}
    assert inexpressible == {"ngram_memory", "minute", "counts"}, "a memory of n-grams, first weights from counts"
    texts = {r.corpus: r.corpus_sha256 for r in records}
    runs = {name: dump(recipes.recipe(name)) for name in recipes.RECIPES}
    parts = [c.__name__ for c in ladder.LADDER[: ladder.LADDER.index(ladder.soap_rare_tokens) + 1]]  # of that top
    runs |= {f.__name__: dump(recipes.compound([f], f.__name__)) for f in results_recipes.RECIPES}
    runs |= {f"without-{part}": dump(recipes.without(part, "soap_rare_tokens")) for part in parts}
    today = {experiment_key(run, texts[corpus]): (corpus, name) for corpus in texts for name, run in runs.items()}
    found: Counter[tuple[str, str, str]] = Counter()
    for key, r in {r.key(): r for r in records}.items():
        if (experiment := r.experiment()) in today:
            corpus, name = today[experiment]
            assert key == trial_key(runs[name] | {"threads": r.run["threads"]}, texts[corpus], r.track, r.seed)
            assert (r.corpus, r.recipe) == (corpus, name)
            found[corpus, r.track, name] += 1
    rungs = ["baseline", *(change.__name__ for change in ladder.LADDER)]
    assert all(found[corpus, "closed", rung] >= 3 for corpus in ("sotu", "tinystories") for rung in rungs)
    assert {name for _, _, name in found} == runs.keys() - {"adamw_128", "finetune", "browser"}
    # Counted with the version that wrote the records; each line more adds to it.
    assert sum(found.values()) >= 231


# --- plans and tracks -------------------------------------------------------------------------------------------------


def test_a_sweep_is_a_grid_of_overrides() -> None:
    arms = plan(["baseline"], sweep=["optim.lr=.001,3e-3", "model.d-model=6,9"], steps=7)
    grid = [(1e-3, 6), (1e-3, 9), (3e-3, 6), (3e-3, 9)]
    assert [(arm.overrides["optim.lr"], arm.run.model.d_model) for arm in arms] == grid
    assert all(arm.run.steps == 7 and arm.overrides["steps"] == 7 for arm in arms)
    assert len({arm.label for arm in arms}) == 4
    assert plan(["baseline"], steps=100)[0].overrides == {}, "the recipe's own number of steps is no change"
    run = baseline()
    assert override(run, {"gradient_clipping": None}) == replace(run, gradient_clipping=None)


def test_values_are_read_as_json_reads_them() -> None:
    assert parse_sweep("a.b=1,2.5,.5,true,None,auto") == [("a.b", v) for v in (1, 2.5, 0.5, True, None, "auto")]
    assert parse_sweep("optim.betas=[0.8,0.95],[0.9,0.99]") == [("optim.betas", v) for v in ([0.8, 0.95], [0.9, 0.99])]


def test_without_all_leaves_out_each_rung_once() -> None:
    arms = plan([], without=["all"])
    assert arms[0].label == TOP
    assert len(arms) == 1 + len(ladder.LADDER)
    assert all(arm.run.recipe == arm.label and not arm.overrides for arm in arms)


# --- tracks: which rules a trial breaks -------------------------------------------------------------------------------


def test_rules(corpus: Corpus) -> None:
    run = replace(small_run(), steps=100)
    facts = (61_000_000, 601.0, {"kind": "cpu", "threads": 3})
    assert broken_rules(TRACKS["closed"], run, corpus) == []
    assert len(broken_rules(TRACKS["closed"], run, corpus, *facts)) == 3
    assert len(broken_rules(TRACKS["open-cpu"], run, corpus, *facts)) == 2
    assert broken_rules(TRACKS["open-gpu"], run, corpus, *facts) == []
    assert broken_rules(TRACKS["minute"], run, corpus, 1, 61.0) == ["61 s, at most 60"]
    assert broken_rules(TRACKS["closed"], replace(run, steps=99), corpus) == ["99 steps, not 100"]
    big = replace(run, data=replace(run.data, batch_size=1025))
    assert len(broken_rules(TRACKS["closed"], big, corpus)) == 2, "too many tokens, and text read twice"
    assert broken_rules(TRACKS["open-cpu"], big, corpus) == []


def test_who_may_use_a_gpu(corpus: Corpus) -> None:
    run = replace(small_run(), steps=100)
    gpu = {"kind": "cuda", "threads": 1}
    on_gpu = [name for name, track in TRACKS.items() if broken_rules(track, run, corpus, machine=gpu)]
    assert on_gpu == ["closed", "minute", "closed+counting", "open-cpu"]
