"""LADDER.md: every leaderboard in full, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.lab.recipes import WITHOUT
from hectogpt.lab.record import experiment_key, failures
from hectogpt.lab.statistics import LEAST_DIFFERENCE, SIGNIFICANCE
from hectogpt.serialization import dump
from tools.report import front as fronts
from tools.report.front import Front
from tools.report.leaderboard import SCORED, Entry, Leaderboard, compare_entries
from tools.report.seconds import NO_SECONDS, Seconds
from tools.report.tables import (
    ONE_MACHINE,
    Table,
    ablation_table,
    comparison_table,
    format_gain,
    format_loss,
    format_number,
    ladder_table,
    markdown_text,
    selection_bias_note,
)

WITHOUT_ONE_PART = """\
A part **helps** if the loss is higher without it. Nothing is tuned again when a part is left out. Without Muon, AdamW
trains the hidden matrices at the 0.005 of the first rungs, which is not its best learning rate at this size.
"""
NEAR_DUPLICATE = """\
One test document (1945-Roosevelt-2) is a near duplicate of a training document: 62 % of its sequences of eight tokens
occur there. Without its 3,765 tokens as targets the test loss rises by 0.002 to 0.003 for a network alone, by 0.008 to
0.014 for a network mixed with n-grams of order 5, and by 0.013 to 0.020 for order 5 alone ([LOG.md](LOG.md), "Near
duplicates of held-out documents"). So the network leads counting by more than the tables say, and mixing in counts
gains less.
"""
INTRODUCTION = """\
The ladder is a list of recipes for a run of one hundred steps. It starts at the baseline of the assignment. Each
recipe, a *rung*, keeps the rungs below it, unless it sets the same field again, and adds one change, or a few that were
measured together. The last rung is the *top*. `tinystories` is a text of short stories for children, `sotu` the State
of the Union addresses.

A *track* is a set of rules. In *closed*, a run takes 100 steps and at most 10 minutes on two cores, reads 819,200
tokens, none of them twice, has at most 60 million parameters, and is scored by its own probabilities.
[Statistics](../docs/statistics.md) has the other tracks.
"""
LEGEND = f"""\
## How to read the tables

* **Loss** is in nats per token, over every held-out token once, in sequences of 512 tokens. It is shown as mean ±
  standard deviation (SD) over n seeds. A seed decides the initial weights and the order of the data. Rungs may have
  different seeds.
* **Gain** is the loss of the other recipe minus that of the row, so positive is better. It is a mean over the seeds
  that both recipes ran with the same number of threads ("pairs" counts them), with a 95 % interval and a one-sided p.
  It is measured on the test text if both recipes were scored on it, otherwise on dev.
* **Tie**: the gain is within the noise (2 SD of the gains / sqrt(pairs)) or within {LEAST_DIFFERENCE} of 0. **Better**
  and **worse** are beyond both. **Unproven** is a gain with p >= {SIGNIFICANCE}, or from a single pair. On sotu,
  width_128_shared_row, linear_decay, smear_3, width_256 and layers_4 got more seeds because three pairs had not
  given p < {SIGNIFICANCE}, which makes their p too small. A run that diverged counts as a uniform guess. A trial that
  crashed is left out and listed under Notes.
* **{ONE_MACHINE}** is the time of 100 steps of the recipe as it was at the commit named under "Loss against seconds".
* **s** and **MiB** are the seconds and memory of the trials' training, without scoring. The trials ran on different
  machines, so these seconds cannot be compared with each other.
* **parameters** is the mean over the trials. In older trials the head has a row for each token of the whole training
  text. Today it has a row only for each token that its run reads, up to 1.3 million parameters fewer.
* **batch 100** is the figure that the assignment asks for: the training loss of the last batch before its update.
  **last 10** is the mean of the last ten batches. Neither is used for ranking.

In today's version, runs with d_model = 128 or more compute their blocks in bf16 on a CPU that can multiply bf16, and
so does the head of every recipe except the baseline. Everything else, and every score, is float32. The notes list seeds
whose threads or dtypes differ from the rest of their rung, because sums then round in a different order. SOAP enlarges
such differences: from one thread to two, the loss of one seed of soap_rare_tokens changed by 0.004 (dev) and 0.006
(test), about as much as from seed to seed. Recipes with a memory of n-grams are left out (LOG.md has their figures).

**N-gram baselines** count exactly the tokens that a run reads, here those of the highest rung's seeds. The Kneser-Ney
bigram and trigram (kn2, kn3) have one discount of 0.75. kn5, mkn5 and best see what a network sees: the tokens before
the target in its sequence. kn5 is modified Kneser-Ney of order 5, with discounts computed by formula; the runs of
*closed+counting* below are mixed with it. mkn5 has discounts fitted on dev. The **best counting** mixes mkn5 with
n-grams whose contexts have gaps, and with caches of the sequence; its weights are fitted on dev. When dev itself is
scored, each half uses the weights fitted on the other.
"""


def ladder_page(
    boards: Sequence[Leaderboard],
    descriptions: Mapping[str, str],
    found: Sequence[Front] = (),
    seconds: Seconds = NO_SECONDS,
) -> str:
    """The text of LADDER.md. found: the front of each corpus, drawn from these seconds."""
    parts = [
        "# The ladder\n",
        "<!-- generated by `python -m tools.report` from ladder.jsonl; do not edit -->\n",
        INTRODUCTION,
        _summary(boards).markdown(),
        LEGEND,
    ]
    for board in boards:
        parts.append(f"## {markdown_text(board.name)}\n")
        if not board.alone:
            parts.append(SCORED[board.track] + "\n")
        if board.top:
            parts += [_headline(board), ladder_table(board, descriptions, seconds).markdown()]
        if board.top and board.alone:
            parts.append(f"![The ladder](pictures/{board.slug}-ladder.png)\n")
        if board.top and (board.corpus, board.track) == ("sotu", "closed"):
            parts += ["### Without the near duplicate\n", NEAR_DUPLICATE]
        # `minute` has no ladder of its own and is compared with the top of the closed one on the same text.
        closed = next((b for b in boards if b.corpus == board.corpus and b.track == "closed"), board)
        reference = board.top or (closed.top if board.track in fronts.RANKED else None)
        if board.others:
            parts += [
                "### Other recipes\n",
                comparison_table(board.others, reference, descriptions, seconds).markdown(),
            ]
        ablations = _ablations_by_rung(board)
        for rung in board.rungs:
            if rung.name in ablations:
                parts += [f"### {rung.name} without one part\n", ablation_table(ablations[rung.name], rung).markdown()]
                parts.append(WITHOUT_ONE_PART)
        for steps in sorted({entry.steps for entry in board.longer_runs}):
            same = [entry for entry in board.longer_runs if entry.steps == steps]
            parts += [f"### {steps} steps\n", comparison_table(same, same[-1], descriptions).markdown()]
        if board.sweeps:
            table = comparison_table(board.sweeps, reference, descriptions)
            parts += ["### Sweeps\n", table.markdown(), selection_bias_note(board.sweeps) + "\n"]
        notes = _notes(board, [entry for entries in ablations.values() for entry in entries])
        if notes:
            parts += ["### Notes\n", "".join(f"* {markdown_text(note)}\n" for note in notes)]
    if found:
        parts += ["## Loss against seconds\n", fronts.introduction(seconds)]
    for front in found:
        parts.append(f"### {markdown_text(front.corpus)}, loss against seconds\n")
        if front.drawn:
            parts.append(f"![Loss against seconds](pictures/{front.slug}.png)\n")
        parts.append(fronts.front_table(front).markdown())
    return "\n".join(parts)


def _summary(boards: Sequence[Leaderboard]) -> Table:
    """The baseline and the top of each corpus in the track closed, with the losses of n-gram models."""
    header = ["test loss, nats per token", "baseline", "top", "gain of the last rung", "trigram", "best counting"]
    rows = []
    for board in (board for board in boards if board.track == "closed" and len(board.rungs) > 1):
        losses = [format_loss(rung.summary("test")) for rung in (board.rungs[0], board.rungs[-1])]
        losses.append(format_gain(compare_entries(*board.rungs[:-3:-1])[0]))
        losses += [format_number(board.ngrams.get("test", {}).get(name), 3) for name in ("kn3", "best")]
        rows.append([board.corpus, *losses])
    return Table(header, rows)


def _headline(board: Leaderboard) -> str:
    top = board.rungs[-1]
    summary, levels = top.summary(top.split), board.ngrams.get(top.split, {})
    assert summary is not None  # `split` names a text that the entry was scored on
    text = f"The top of the ladder: **{summary.mean:.3f}** nats per token ({top.split}, {top.name}, {top.seeds})"
    models = {"kn3": "the Kneser-Ney trigram", "best": "the best counting of the same tokens"}
    sides = [
        f"{abs(levels[name] - summary.mean):.3f} {'below' if summary.mean < levels[name] else 'above'} {model}"
        for name, model in models.items()
        if name in levels
    ]
    return ", ".join([text, *filter(None, [" and ".join(sides)])]) + ".\n"


def _ablations_by_rung(board: Leaderboard) -> dict[str, list[Entry]]:
    """Rung -> the entries of the ladder up to that rung, each without one part.

    A part may have been left out when this rung was the top, though it has rungs above it now.
    """
    found: dict[str, list[Entry]] = {}
    for entry in board.ablations:
        record, part = entry.records[-1], entry.name.removeprefix(WITHOUT)
        for rung in board.rungs:
            with suppress(UserError):  # not a part, or not a rung, of this version's ladder
                run = dump(recipes.without(part, rung.name))
                if experiment_key(run, record.corpus_sha256) == record.experiment():
                    found.setdefault(rung.name, []).append(entry)
                    break
    return found


def _notes(board: Leaderboard, shown: Sequence[Entry]) -> list[str]:
    """Notes on failed and irregular trials, and on omissions from the tables. shown: ablations that have a table."""
    entries = board.entries()
    notes = failures([*board.crashed, *(record for entry in entries for record in entry.records)])
    notes += [f"{e.label}: {note}" for e in entries for note in _mixed(e)]
    notes += [f"{e.label}: records of earlier settings, left out: {e.superseded}" for e in entries if e.superseded]
    named = [(e, e.records[-1]) for e in entries if e.name in recipes.RECIPES and not e.overrides]
    keys = {e.name: experiment_key(dump(recipes.recipe(e.name)), r.corpus_sha256) for e, r in named}
    old = [e for e, record in named if record.experiment() != keys[e.name]]
    notes += [f"{e.label}: an earlier recipe of this name, not the one described" for e in old]
    notes += [f"{e.label}: not an ablation of any rung of today's ladder" for e in board.ablations if e not in shown]
    notes += [f"{e.label}: seeds scored only on dev, left out: {e.dev_only}" for e in entries if e.dev_only]
    return notes


def _mixed(entry: Entry) -> list[str]:
    """Notes on seeds of an entry that ran with different numbers of threads, or dtypes of blocks or head."""
    notes = []
    kinds = {"threads": "numbers of threads", "dtype": "dtypes of the blocks", "head_dtype": "dtypes of the head"}
    for name, label in kinds.items():
        seeds: dict[str, list[int]] = {}
        for record in entry.records:
            seeds.setdefault(str((record.machine or {}).get(name)), []).append(record.seed)
        if len(seeds) > 1:
            told = [f"{value} (seed {', '.join(map(str, sorted(which)))})" for value, which in sorted(seeds.items())]
            notes.append(f"different {label}: {' and '.join(told)}")
    return notes
