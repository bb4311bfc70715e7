"""The report: LADDER.md, pictures, one page, and the written answer with its numbers filled in.

Everything is made from the records, byte for byte the same from the same file. Refuses a template that names a
number which cannot exist; what is not measured yet says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.lab.compare import failures
from hectogpt.lab.page import render_page
from hectogpt.lab.pictures import plot_ladder, plot_rung
from hectogpt.lab.standings import ANCHORS, WITHOUT, Entry, Standing, gain, standings
from hectogpt.lab.statistics import LEAST_DIFFERENCE, SIGNIFICANCE, Paired
from hectogpt.lab.tables import (
    Table,
    difference,
    ladder_table,
    loss,
    luck,
    number,
    others_table,
    p_value,
    without_table,
)
from hectogpt.lab.trials import identity, read_rows
from hectogpt.model.folder import write_text
from hectogpt.values import dump

UNMEASURED = "(not measured yet)"
TEMPLATE = "learning.template.md"


def ladder_descriptions() -> dict[str, str]:
    """Name -> description of every recipe there is, the ladder's rungs in order first."""
    return {name: f"{recipes.describe(name)}\n\n{recipes.explain(name)}".strip() for name in recipes.names()}


def ladder_names() -> list[str]:
    """The baseline and the ladder's steps in order."""
    return ["baseline", *(step.__name__ for step in recipes.LADDER)]


def write_report(
    records: Path,
    out: Path,
    answers: Path,
    names: Sequence[str] | None = None,
    descriptions: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write everything and return the paths. Raises UserError (DATA) without records or at one that is damaged.

    names and descriptions are those of the ladder in recipes.py unless given.
    """
    rows = read_rows(records)
    if not rows:
        raise UserError(
            f"no records in {records}",
            why="the file is missing or empty",
            fix=f"hectogpt compare baseline {recipes.DEFAULT} --out {records}",
            code=errors.DATA,
        )
    names = ladder_names() if names is None else names
    descriptions = ladder_descriptions() if descriptions is None else descriptions
    found = standings(rows, names)
    pictures = out / "pictures"
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        written = _draw(found, pictures)
        write_text(out / "LADDER.md", ladder_page(found, descriptions))
        write_text(out / "ladder.html", render_page(found, descriptions))
        written += [out / "LADDER.md", out / "ladder.html"]
        if (answers / TEMPLATE).exists():
            template = (answers / TEMPLATE).read_text(encoding="utf-8")
            to_pictures = Path(os.path.relpath(pictures, answers)).as_posix()
            text = fill(template, found, names, descriptions, to_pictures, answers / TEMPLATE)
            written.append(answers / TEMPLATE.replace(".template", ""))
            write_text(written[-1], text)
    except OSError as error:
        raise UserError(f"cannot write to {out}", why=error.strerror or str(error), code=errors.STORAGE) from None
    return written


def _draw(found: Sequence[Standing], folder: Path) -> list[Path]:
    """Every picture; those of rungs that are no more are removed."""
    written = []
    for standing in found:
        for place in range(len(standing.rungs)):
            written.append(folder / picture_name(standing, place))
            plot_rung(written[-1], standing, place)
        if standing.rungs:
            written.append(folder / f"{standing.slug}-ladder.png")
            plot_ladder(written[-1], standing)
    for old in folder.glob("*.png"):
        if old not in written and re.search(r"-(ladder|\d\d-\w+)\.png$", old.name):
            old.unlink()
    return written


def picture_name(standing: Standing, place: int) -> str:
    """The file of a rung's curves."""
    return f"{standing.slug}-{place:02}-{standing.rungs[place].name}.png"


# --- LADDER.md --------------------------------------------------------------------------------------------------------

LEGEND = f"""Nats per token over every held-out token once, in windows of 512, mean ± SD over n seeds; a seed changes
the first weights and the order of the data, and every rung has the same seeds. Gains are paired by seed, with a 95 %
interval and a one-sided p, on the test text where both rungs were tested, else on dev. A **tie** is within the noise
(2 SD of the differences / sqrt(n)) or {LEAST_DIFFERENCE}; **unproven** is lower beyond both with p >= {SIGNIFICANCE}
or one seed. A run that diverged or failed counts as a uniform guess. Seconds and memory are those of training.
"batch 100" is the assignment's own number, the training loss of the last batch before its update, and "last 10" the
mean of the last ten: recorded, never ranked. The count models have seen exactly the tokens that a run reads.
"""


def ladder_page(found: Sequence[Standing], descriptions: Mapping[str, str]) -> str:
    """The text of LADDER.md."""
    parts = ["# The ladder\n", "<!-- made by `hectogpt report` from ladder.jsonl; edit nothing here -->\n", LEGEND]
    for standing in found:
        parts.append(f"## {standing.name}\n")
        top = standing.top
        if top:
            parts += [_headline(standing), ladder_table(standing, descriptions).markdown()]
            parts.append(f"![The ladder](pictures/{standing.slug}-ladder.png)\n")
        # A track that has no ladder of its own is compared with the closed ladder's top on the same text.
        closed = next((s for s in found if s.corpus == standing.corpus and s.track == "closed"), standing)
        reference = top or closed.top
        if standing.beside:
            parts += ["### Beside the ladder\n", others_table(standing.beside, reference, descriptions).markdown()]
        left_out = _left_out(standing)
        for rung in standing.rungs:
            if rung.name in left_out:
                parts += [f"### {rung.name} without one part\n", without_table(left_out[rung.name], rung).markdown()]
        for steps in sorted({entry.steps for entry in standing.longer}):
            same = [entry for entry in standing.longer if entry.steps == steps]
            parts += [f"### {steps} steps\n", others_table(same, same[-1], descriptions).markdown()]
        if standing.swept:
            table = others_table(standing.swept, reference, descriptions)
            parts += ["### Recorded sweeps\n", table.markdown(), luck(standing.swept) + "\n"]
        notes = failures(row for entry in standing.entries() for row in entry.rows)
        notes += [f"{e.label}: {e.older} records of earlier settings left aside" for e in standing.entries() if e.older]
        shown = [entry for entries in left_out.values() for entry in entries]
        notes += [f"{e.label}: left out of a ladder that is no more" for e in standing.without if e not in shown]
        aside = [entry for entry in standing.entries() if entry.untested]
        notes += [f"{e.label}: {e.untested} seeds scored on dev only left aside" for e in aside]
        if notes:
            parts += ["### To be known\n", "".join(f"* {note}\n" for note in notes)]
    return "\n".join(parts)


def _left_out(standing: Standing) -> dict[str, list[Entry]]:
    """Rung -> the entries that are the ladder up to it without one part: parts may have been left out of a top that
    has rungs above it by now."""
    found: dict[str, list[Entry]] = {}
    for entry in standing.without:
        row, part = entry.rows[-1], entry.name.removeprefix(WITHOUT)
        same = identity(row["run"], row["corpus_sha256"], "", 0)
        for rung in standing.rungs:
            with suppress(UserError):  # not a part, or not a rung, of this version's ladder
                if identity(dump(recipes.without(part, rung.name)), row["corpus_sha256"], "", 0) == same:
                    found.setdefault(rung.name, []).append(entry)
                    break
    return found


def _headline(standing: Standing) -> str:
    top = standing.rungs[-1]
    text = f"Lowest: **{value(standing, top, 'loss')}** nats per token ({top.split}, {top.name}, {_n(top)})"
    summary, trigram = top.summary(top.split), standing.anchors.get(top.split, {}).get("kn3")
    if summary is not None and trigram is not None:
        side = "below" if summary.mean < trigram else "above"
        text += f", {abs(trigram - summary.mean):.3f} {side} the Kneser-Ney trigram of the same tokens"
    if len(standing.rungs) > 1:
        text += f"; {value(standing, top, 'total')} below the baseline"
    return text + ".\n"


def _n(entry: Entry) -> str:
    return "1 seed" if len(entry.rows) == 1 else f"{len(entry.rows)} seeds"


# --- the written answer -----------------------------------------------------------------------------------------------

FIELDS: tuple[str, ...] = (
    "loss",
    "dev",
    "test",
    "bpb",
    "gain",
    "total",
    "p",
    "verdict",
    "n",
    "params",
    "seconds",
    "memory",
    "train",
)
FIELDS += ("train10", "steps", "below_kn3", *ANCHORS)


def value(standing: Standing, entry: Entry, field: str) -> str:
    """A number of an entry as the text shows it; UNMEASURED where there is none. Fields: those of FIELDS.

    loss: on test where every seed was tested, else dev. gain, p, verdict: against the rung below; total: the paired
    gain over the baseline; below_kn3: how far under the trigram; train, train10: the assignment's number and the mean
    of the last ten batches.
    """
    place = standing.rungs.index(entry) if entry in standing.rungs else 0
    below: Paired | None = gain(entry, standing.rungs[place - 1])[0] if place else None
    levels = standing.anchors.get(entry.split, {})
    summary = entry.summary(entry.split)
    if field in ("dev", "test"):
        text = loss(entry.summary(field))
    elif field in ("gain", "total"):
        text = difference(below if field == "gain" else gain(entry, standing.rungs[0])[0] if place else None, -1)
        text = text.replace("+", "") if "-" not in text else text
    elif field == "below_kn3":
        text = number(levels["kn3"] - summary.mean, 3) if summary and "kn3" in levels else ""
    elif field in ANCHORS:
        text = number(levels.get(field), 3)
    else:
        text = {
            "loss": f"{summary.mean:.3f}" if summary else "",
            "bpb": number(entry.mean(f"{entry.split}_bpb"), 3),
            "p": p_value(below),
            "verdict": below.verdict if below else "",
            "n": str(len(entry.rows)),
            "params": number(entry.mean("params")),
            "seconds": number(entry.mean("seconds")),
            "memory": number(entry.mean("peak_mb")),
            "train": number(entry.mean("train_loss_last"), 3),
            "train10": number(entry.mean("train_loss_last10"), 3),
            "steps": str(entry.steps),
        }[field]
    return text or UNMEASURED


def fill(
    template: str,
    found: Sequence[Standing],
    names: Sequence[str],
    descriptions: Mapping[str, str],
    pictures: str,
    where: Path,
) -> str:
    """The template with every {{...}} replaced.

    {{CORPUS/TRACK/RECIPE/FIELD}} is a number (RECIPE may be `top`); {{table/CORPUS/TRACK}} a short ladder;
    {{picture/CORPUS/TRACK}} its picture; {{rung/NAME}} a rung's description, picture and gains; {{rungs}} all those
    that are not named so elsewhere. Raises UserError naming file and line of anything else.
    """
    standing_of = {(s.corpus, s.track): s for s in found}
    named = set(re.findall(r"\{\{rung/([^}]+)\}\}", template))

    def one(key: str) -> str | None:
        match key.split("/"):
            case ["rungs"]:
                return "\n\n".join(_rung(n, found, names, descriptions, pictures) for n in names if n not in named)
            case ["rung", name] if name in names:
                return _rung(name, found, names, descriptions, pictures)
            case ["table", corpus, track]:
                standing = standing_of.get((corpus, track))
                return _short(standing).markdown().rstrip() if standing and standing.rungs else UNMEASURED
            case ["picture", corpus, track]:
                standing = standing_of.get((corpus, track))
                picture = (
                    f"![The ladder on {corpus}, {track}]({pictures}/{standing.slug}-ladder.png)" if standing else ""
                )
                return picture if standing and standing.rungs else UNMEASURED
            case [corpus, track, name, field] if field in FIELDS and (name in descriptions or name == "top"):
                standing = standing_of.get((corpus, track))
                entry = (standing.top if name == "top" else standing.find(name)) if standing else None
                return value(standing, entry, field) if standing and entry else UNMEASURED
        return None

    def replacement(match: re.Match[str]) -> str:
        text = one(match[1])
        if text is None:
            line = template.count("\n", 0, match.start()) + 1
            raise UserError(
                f"{where}, line {line}: {{{{{match[1]}}}}} names nothing",
                why=f"it is CORPUS/TRACK/RECIPE/FIELD with a field among {', '.join(FIELDS)}, or table/CORPUS/TRACK, "
                "picture/CORPUS/TRACK, rung/NAME, rungs",
            )
        return text

    note = "<!-- made by `hectogpt report` from learning.template.md: write there, not here -->\n\n"
    return note + re.sub(r"\{\{([^{}\s]+)\}\}", replacement, template)


def _short(standing: Standing) -> Table:
    rows = []
    for place, entry in enumerate(standing.rungs):
        below = gain(entry, standing.rungs[place - 1])[0] if place else None
        rows.append([str(place), entry.name, loss(entry.summary(entry.split)), difference(below, -1), p_value(below)])
    split = standing.rungs[-1].split
    for name, level in standing.anchors.get(split, {}).items():
        rows.append(["", f"*{name}*", number(level, 3), "", ""])
    return Table(["#", "rung", f"loss ({split})", "gain [95 %]", "p"], rows, left=2)


def _rung(
    name: str, found: Sequence[Standing], names: Sequence[str], descriptions: Mapping[str, str], pictures: str
) -> str:
    """A rung's heading, description, gains on every closed ladder and curves on the first."""
    parts = [f"### {list(names).index(name)} {name}", descriptions.get(name, "")]
    measured, picture = [], ""
    for standing in found:
        entry = standing.find(name)
        if entry is None or entry not in standing.rungs:
            continue
        place = standing.rungs.index(entry)
        text = f"*{standing.name}*: {value(standing, entry, 'loss')} nats per token ({entry.split}, {_n(entry)})"
        if place:
            pair, split = gain(entry, standing.rungs[place - 1])
            if pair:
                text += f"; gained {difference(pair, -1)} over {standing.rungs[place - 1].name} ({split}"
                text += f", p {p_value(pair)}" if pair.p is not None else ""
                text += f", {pair.verdict})" if pair.verdict != "better" else ")"
        measured.append(f"* {text}.")
        picture = picture or f"![{name}]({pictures}/{picture_name(standing, place)})"
    parts += ["\n".join(measured) or UNMEASURED, picture]
    return "\n\n".join(part for part in parts if part)
