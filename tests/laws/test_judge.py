"""The judge: each planted cheat is named, a record holds only as it was written. That an honest idea passes every check
is held by commands/test_judge_command.py."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grade_hostile import LANDLOCK
from helpers import ROOT

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.lab import judge, judgement
from hectogpt.lab.ideas import find_run
from hectogpt.lab.judgement import Judgement, draw_positions, draw_seed, hash_of, read_judgement
from hectogpt.serialization import dump

CHEATS = ROOT / "tests" / "data" / "cheats.py"
BASE = f"{CHEATS}:tiny"
READS = "reads its file and the training text alone"
BITS = "gives the same bits again"
OWN = "reports the loss of its own probabilities, without the future"
# function -> the check that names it, or a part of the rule that refuses it
DISHONEST = {
    "reads_the_test_text": READS,
    "reads_the_text_that_comes_with_a_package": READS,
    "asks_the_network": READS,
    "starts_a_program": READS,
    "leaves_a_note": READS,
    "reads_through_c": READS,
    "reads_through_python_s_c": READS,
    "kills_the_judge": READS,
    "replaces_the_score": OWN,
    "replaces_the_code_of_a_method": OWN,
    "trains_before_it_begins": "takes the steps and tokens that it announces",
    "looks_at_the_clock": BITS,
    "looks_at_its_folder": BITS,
    "draws_its_learning_rate": "is the same run each time",
    "sees_the_next_token": OWN,
    "normalises_over_the_row": OWN,
    "reports_half_of_its_loss": OWN,
    "reports_the_likeliest": OWN,
    "learns_while_it_is_scored": OWN,
    "writes_its_scores_itself": OWN,
}
REFUSED = {
    "more_steps": "5 steps, its base has 4",
    "more_tokens": "256 training tokens, its base has 128",
    "computes_twice": "computes gradients more than once a step",
    "counts_of_the_text": "init_from_counts is set",
    "a_table_of_a_hundred_million": "parameters, at most 60,000,000",
    "crashes": "nothing works here",
}
REFUSED |= {"reads_through_torch": "Permission denied"} if LANDLOCK else {}
# In `make test`, and in CI's long chains; the others with --slow.
QUICK = ("more_steps",)  # refused in its first process; the others take three or four
CHAINS = {"reads_the_test_text", "replaces_the_score", "trains_before_it_begins", "looks_at_the_clock", "crashes"}
CHAINS |= {"reports_half_of_its_loss", "more_tokens", "sees_the_next_token"}


def cases(table: dict[str, str]) -> list[Any]:
    marks = {name: pytest.mark.thorough if name in CHAINS else pytest.mark.slow for name in table if name not in QUICK}
    return [pytest.param(name, marks=marks.get(name, ())) for name in table]


def start(function: str, corpus: Corpus, out: Path) -> judge.Judging:
    """A judgement of this function whose base's process has said its run."""
    found = judgement.find_entrant(f"{CHEATS}:{function}", BASE)
    record = Judgement(out / f"{function}.jsonl")
    record.write("begin", asdict(found) | {"corpora": ["tokens"], "threads": 1, "commitment": hash_of("secret")})
    judging = judge.Judging({"tokens": corpus}, record, "secret", print)
    judging.runs["base"] = dump(find_run(BASE))
    return judging


@pytest.mark.parametrize("cheat", cases(DISHONEST))
def test_a_cheat_is_named(cheat: str, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(judge.EndedError, match=f"{DISHONEST[cheat]}: ") as caught:  # the first trial is computed twice
        start(cheat, corpus, tmp_path).trial("idea", "tokens", 1, int(DISHONEST[cheat] != BITS))
    assert caught.value.word == "dishonest"


@pytest.mark.parametrize("cheat", cases(REFUSED))
def test_what_breaks_a_rule_is_refused(cheat: str, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(judge.EndedError, match=REFUSED[cheat]) as caught:
        start(cheat, corpus, tmp_path).trial("idea", "tokens", 1, 0)
    assert caught.value.word == "refused"


def test_numbers_and_long_texts_in_a_source_are_weights(tmp_path: Path) -> None:
    for name, body in {"text": f"w = {'x' * 3000!r}", "numbers": f"w = {list(range(3000))}"}.items():
        (tmp_path / f"{name}.py").write_text(f"{body}\ndef idea(run):\n    return run\n")
        found = judgement.find_entrant(f"{tmp_path / name}.py:idea")
        assert "at most 2,000" in judgement.weights_in_source(found.source)[0]
    fault, sizes = judgement.weights_in_source(judgement.find_entrant(f"{CHEATS}:honest").source)
    assert (fault, "characters in one text" in sizes) == ("", True)


# --- the record -------------------------------------------------------------------------------------------------------


def written(path: Path, gains: list[list[float]]) -> Judgement:
    """A record of trials with these gains [seeds][corpora]."""
    record = Judgement(path)
    names = [f"text{place}" for place in range(len(gains[0]))]
    record.write("begin", {"corpora": names, "commitment": hash_of("secret")})
    for seed, row in enumerate(gains):
        for name, gain in zip(names, row, strict=True):
            record.write("trial", {"arm": "base", "corpus": name, "seed": seed, "loss": 3.0})
            record.write("trial", {"arm": "idea", "corpus": name, "seed": seed, "loss": 3.0 - gain})
    record.write("verdict", {"word": record.decided(), "reasons": [], "ended": "", "secret": "secret"})
    assert vars(read_judgement(path)) == vars(record) | {"reasons": ()}
    return record


def test_gains_on_all_corpora_decide(tmp_path: Path) -> None:
    clear = [[0.1, 0.2], [0.11, 0.21], [0.09, 0.2], [0.1, 0.19]]
    assert written(tmp_path / "a", clear).word == "better"
    assert written(tmp_path / "b", [[-a, -b] for a, b in clear]).word == "worse"
    assert written(tmp_path / "c", [[a, -b / 3] for a, b in clear]).word == "unproven"  # worse on one of them
    assert written(tmp_path / "d", [[0.0, 0.0]] * 4).word == "tie"
    assert written(tmp_path / "e", clear[:1]).word == "unproven"


def test_a_record_that_was_changed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    written(path, [[0.1], [0.12]])
    lines = path.read_text().splitlines()
    for place in range(len(lines)):
        changed = json.loads(lines[place]) | {"more": 1}
        for bad in (lines[:place] + lines[place + 1 :], [*lines[:place], json.dumps(changed), *lines[place + 1 :]]):
            path.write_text("\n".join(bad) + "\n")
            if bad != lines[:-1] and place != len(lines) - 1:  # without its last line it is unfinished
                with pytest.raises(UserError):
                    read_judgement(path)
    path.write_text("\n".join(lines[:-1]) + "\n")
    assert read_judgement(path).word == "unfinished"
    other = json.loads(lines[-1]) | {"secret": "0" * 64}
    path.write_text("\n".join([*lines[:-1], json.dumps(other)]) + "\n")
    with pytest.raises(UserError, match="commits"):
        read_judgement(path)
    path.write_text("\n".join([*lines[:-1], lines[-1].replace("unproven", "better")]) + "\n")
    with pytest.raises(UserError, match="do not say 'better'"):
        read_judgement(path)


def test_seeds_and_questions_follow_from_the_secret() -> None:
    assert draw_seed("a", 0) == draw_seed("a", 0) != draw_seed("a", 1)
    assert draw_seed("a", 0) != draw_seed("b", 0)
    assert 0 <= draw_seed("a", 0) < 2**48
    positions = draw_positions("a", "x", 1000, 64)
    assert positions.max() < 1000
    assert (np.diff(positions) > 0).all()
