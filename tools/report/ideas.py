"""`python -m tools.report.ideas`: results/ideas.md, the table of judged ideas, from results/judgements/."""

from __future__ import annotations

from hectogpt.lab.judgement import Judgement, read_judgement
from tools import ROOT

RECORDS = ROOT / "results" / "judgements"
TABLE = ROOT / "results" / "ideas.md"
HEAD = """\
# Judged ideas

Each row is a judgement of `hectogpt judge` ([how it works](../docs/judge.md)): the gain over the base on the test
texts, in nats per token, with an interval that is valid at every look. [judgements/](judgements) has the records, with
source, seeds and checks. `python -m tools.report.ideas` makes this page from them.

Judgements marked *first protocol* come from an earlier judge, which asked for single probabilities and did not seal its
processes. Their records can be read, but not replayed.

"""


def main() -> None:
    """Write the table."""
    judgements = [read_judgement(path) for path in sorted(RECORDS.glob("*.jsonl"))]
    TABLE.write_text(HEAD + table(judgements), encoding="utf-8")


def table(judgements: list[Judgement]) -> str:
    """A Markdown table, the largest gain first, ideas without trials last."""
    rows = [["idea", "base", "verdict", "gain", "each corpus", "seeds", "seconds, base", "judged", "record"]]
    for found in sorted(judgements, key=lambda one: -float(one.gains().mean()) if len(one.gains()) else 99.0):
        begin, seconds = found.begin, (found.cost("seconds", "idea"), found.cost("seconds", "base"))
        each = "; ".join(f"{name} {found.pair(name) or ''}" for name in begin["corpora"])
        rows.append(
            [
                f"`{begin['idea']}`",
                f"`{begin['base']}`",
                word_of(found),
                str(found.pair() or ""),
                each,
                str(len(found.gains())),
                ", ".join("" if one is None else f"{one:.0f}" for one in seconds),
                f"{begin['at'][:10]}, {begin['machine']}",
                f"[{begin['sha256'][:8]}](judgements/{found.path.name})",
            ]
        )
    rows.insert(1, ["---"] * len(rows[0]))
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def word_of(found: Judgement) -> str:
    """The verdict with its reasons, and a note if its processes were not sealed."""
    how = "" if found.is_sealed else ", unsealed" if "protocol" in found.begin else ", first protocol"
    return found.word + how + "".join(f": {reason}" for reason in found.reasons)


if __name__ == "__main__":
    main()
