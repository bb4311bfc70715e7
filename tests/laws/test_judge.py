"""The judge: no planted cheat gains anything, a record holds only as it was written. That an honest idea passes every
check is held by commands/test_judge_command.py."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT

from hectogpt import sandbox
from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.lab import contestant, judge
from hectogpt.lab.ideas import find_run
from hectogpt.lab.judgement import Entrant, Judgement, draw, draw_seed, hash_of, read_judgement, weights_in
from hectogpt.serialization import dump

CHEATS = ROOT / "tests" / "data" / "cheats.py"
SOURCE = CHEATS.read_text(encoding="utf-8")
BASE = f"{CHEATS}:tiny"
MINE = Entrant("my.py:idea", "minute", hash_of(""), "", None)
SEALED = pytest.mark.skipif(sandbox.bubblewrap() is None, reason="needs bubblewrap and namespaces")
SANDBOX = "stays in its sandbox"
BITS = "gives the same bits again"
ALONE = "scores each row by itself"
NOTHING = ""  # it passes every check, and gains nothing
LIMIT = "may gain"  # docs/judge.md says so, under "What it does not stop"
# the check that names it, or a part of what refuses it: functions
EXPECTED = {
    SANDBOX: """
        reads_the_text_that_comes_with_a_package asks_the_network starts_a_program leaves_a_note kills_the_judge
    """,
    "is the same run each time": "draws_its_learning_rate",
    BITS: "looks_at_the_clock looks_at_the_clock_late",
    ALONE: "uses_the_batch normalises_over_the_row chance_when_scored knows_that_it_is_alone",
    "5 steps, not 4": "more_steps",
    "256 training tokens, at most 128": "more_tokens",
    "computes gradients more than once a step": "computes_twice",
    "its weights start from another model": "weights_of_another_model",
    "parameters, at most 60,000,000": "a_table_of_a_hundred_million eighty_million_in_a_buffer",
    "nothing works here": "crashes",
    "is read 2 times": "same_four_rows",
    "an invalid answer": """
        plans_rows_that_are_not_there speaks_for_itself complex_distributions too_few one_row two_answers
        huge_weights weights_of_no_kind weights_of_nothing no_weights weights_with_more_behind no_context
        less_than_nothing
    """,
    "times the processor time of its base": "trains_beside_the_hook takes_the_hook_away computes_in_copies",
    "tokens have no probability": "one_lie no_numbers nothing_at_all",
    "its process ended (broken": "rubbish nests_deeply",
    "its process ended (late": "keeps_its_answer_back",
    "its process ended (done": "ends_early",
    "its process ended (ended, exit code 0": "exits_well",
    NOTHING: """
        says_that_it_shuffles reads_the_test_text reads_through_c reads_through_python_s_c exchanges_the_hook
        looks_at_the_judge wipes_its_attempts thread_that_is_free starts_a_program_unseen leaves_a_daemon
        fills_its_folder finds_a_note_in_sysv_memory finds_a_note_in_its_folder weights_are_a_link
        reads_text_ahead replaces_the_score replaces_the_code_of_a_method sees_the_next_token
        reports_half_of_its_loss reports_the_likeliest learns_while_it_is_scored writes_its_scores_itself
        peeks_in_full_rows peeks_at_two_percent keeps_state_between_calls slack sums_to_two changes_the_kernels
        leaves_a_note_in_its_weights chooses_its_seed guesses_among_one
    """,
    "No such file": "reads_through_torch",
    LIMIT: "trains_before_it_begins",
}
CASES = {name: expected for expected, names in EXPECTED.items() for name in names.split()}
# In `make test`, and in CI's long chains; the others with --slow.
QUICK = ("more_steps",)  # refused in its first process; the others take three or four
# (test_judge_command.py has one that passes every check there.)
CHAINS = {"reads_the_text_that_comes_with_a_package", "two_answers", "same_four_rows", "crashes"}


def cases() -> list[Any]:
    marks = {name: pytest.mark.thorough if name in CHAINS else pytest.mark.slow for name in CASES if name not in QUICK}
    return [pytest.param(name, marks=marks.get(name, ())) for name in CASES]


def start(function: str, corpus: Corpus, out: Path, file: str = "secrets.py") -> judge.Judging:
    """A judgement of this function, in a file that is named like one that Python itself imports; its base's process has
    described its run."""
    found = Entrant(f"{file}:{function}", "cheats.py:tiny", hash_of(SOURCE), SOURCE, SOURCE)
    record = Judgement(out / f"{function}.jsonl")
    record.write("begin", asdict(found) | {"corpora": ["tokens"], "threads": 1, "commitment": hash_of("secret")})
    judging = judge.Judging({"tokens": corpus}, record, "secret", print)
    judging.check_run("base", dump(find_run(BASE)))
    return judging


def scored(judging: judge.Judging, corpus: Corpus, again: bool = False) -> float:
    """The idea's loss on some rows, after all checks."""
    trained = judging.train("idea", 1, corpus)
    if again:
        judging.check_bits(1, corpus, trained)
    rows = judging.draw_rows("tokens", 0)
    (losses,) = judging.score(1, {"idea": trained}, rows)
    judging.check_alone(1, trained, rows[5:7], losses[5:7])
    return float(losses.mean())


@pytest.fixture(scope="module")
def honest_loss(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> float:
    return scored(start("honest", corpus, tmp_path_factory.mktemp("honest")), corpus)


@SEALED
@pytest.mark.parametrize("cheat", cases())
def test_a_cheat_gains_nothing(
    cheat: str, corpus: Corpus, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contestant, "HANGS", 60.0 if cheat == "keeps_its_answer_back" else contestant.HANGS)
    judging, expected = start(cheat, corpus, tmp_path), CASES[cheat]
    if expected in (NOTHING, LIMIT):
        gain = request.getfixturevalue("honest_loss") - scored(judging, corpus)
        assert gain < 0.02 or expected == LIMIT
        return
    with pytest.raises(judge.EndedError) as caught:
        scored(judging, corpus, again=expected == BITS)
    assert expected in str(caught.value)
    assert (judging.record.decided(["why"]) == "dishonest") == str(caught.value).startswith(f"{expected}:")


def test_a_source_can_hold_no_text_and_no_weights() -> None:
    text = "".join(map(chr, np.random.default_rng(0).integers(0x4E00, 0x9FFF, 40_000)))
    for source in (f"# {text}", f"names_{text[:20_000]} = 0", f"w = {list(np.random.default_rng(0).random(2000))}"):
        assert "; at most " in weights_in(source)[0]
    assert weights_in(SOURCE)[0] == ""


def written(path: Path, gains: list[list[float]]) -> Judgement:
    """A record of trials with these gains [seeds][corpora]."""
    record = Judgement(path)
    names = [f"text{place}" for place in range(len(gains[0]))]
    record.write("begin", asdict(MINE) | {"corpora": names, "commitment": hash_of("secret")})
    for number, row in enumerate(gains):
        seed = draw_seed("secret", number)
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


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (0, {"idea": "/home/me/.bashrc:f"}),
        (0, {"idea": "../my.py:idea"}),
        (0, {"base": "WRITTEN.txt:tiny"}),
        (0, {"base": "a/b.py:tiny"}),
        (0, {"source": "another"}),
        (2, {"arm": "base"}),
        (2, {"arm": "third"}),
        (2, {"seed": 1}),
        (2, {"loss": "nan"}),
    ],
)
def test_a_forged_record_is_refused(place: int, change: dict[str, Any], tmp_path: Path) -> None:
    """Its hashes are computed anew, as a forger would."""
    whole = written(tmp_path / "record.jsonl", [[0.1], [0.12]])
    lines = [json.loads(line) for line in whole.path.read_text().splitlines()]
    lines[place] |= change
    previous, forged = lines[0]["previous"], []
    for line in lines:
        forged.append(json.dumps(line | {"previous": previous}))
        previous = hash_of(forged[-1])
    (tmp_path / "forged.jsonl").write_text("\n".join(forged) + "\n")
    with pytest.raises(UserError):
        read_judgement(tmp_path / "forged.jsonl")


def test_a_replay_fails_beyond_the_rounding_of_other_machines(tmp_path: Path) -> None:
    old = written(tmp_path / "old", [[0.1], [0.12]])
    for apart, faults in ((0.0, 0), (0.019, 0), (0.021, 1)):
        found = judge.differences(old, written(tmp_path / f"{apart}", [[0.1], [0.12 - apart]]))
        assert (len(found.faults), round(found.largest, 9)) == (faults, apart)
    assert len(judge.differences(old, written(tmp_path / "one", [[0.1]])).faults) == 2  # trials that are not there


def test_the_commitment_is_told_before_anything_runs(corpus: Corpus, tmp_path: Path) -> None:
    def tell(line: str) -> None:
        raise InterruptedError(line)

    with pytest.raises(InterruptedError, match=r"commitment [0-9a-f]{64}"):
        judge.judge(MINE, [corpus], tmp_path, tell=tell)
    assert not list(tmp_path.iterdir())


def test_seeds_and_rows_follow_from_the_secret(corpus: Corpus, tmp_path: Path) -> None:
    assert draw_seed("a", 0) == draw_seed("a", 0) != draw_seed("a", 1)
    assert draw_seed("a", 0) != draw_seed("b", 0)
    assert 0 <= draw_seed("a", 0) < 2**48
    assert (draw("a", "x").permutation(99) == draw("a", "x").permutation(99)).all()
    text = replace(corpus, tokens=corpus.tokens | {"test": np.arange(2000, dtype=np.uint16)})
    judging = start("honest", text, tmp_path)
    rows = np.concatenate([judging.draw_rows("tokens", number) for number in range(2)])
    assert len(set(rows[:, 0])) == 124  # all that there are, before one comes again
    gains = np.random.default_rng(0).normal(size=16)  # there are as many as their noise asks for
    assert judge.are_enough(gains / 100) > judge.are_enough(gains / 10)
    judging.runs["idea"] = judging.runs["base"]
    with pytest.raises(judge.EndedError, match="601 s, at most 600"):
        judging.check_rules("idea", seconds=601)
