"""Results as pages that work offline: one for each submission, and an overview of a class. Foreign text is escaped."""

from __future__ import annotations

import re
from html import escape

from hectogpt.assignment.parts import BY_NAME
from hectogpt.display import printable
from hectogpt.grade import laws
from hectogpt.grade.classroom import counts
from hectogpt.grade.report import hints, one
from hectogpt.grade.result import PartResult, Result

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #8886; vertical-align: top; }
.n { text-align: right !important; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { overflow-wrap: anywhere; }
.passed { color: #1a7f37; } .wrong { color: #cf222e; } .other { color: #9a6700; }
@media (prefers-color-scheme: dark) {
  .passed { color: #3fb950; } .wrong { color: #ff7b72; } .other { color: #d29922; }
}
dl { margin: 0; display: grid; grid-template-columns: max-content 1fr; gap: 0 .8rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
.bar { background: #0969da; height: .8rem; display: inline-block; }
"""


def pages(found: list[Result], level: int) -> dict[str, str]:
    """File name -> page. index.html is the submission itself if there is one, else the overview."""
    if len(found) == 1:
        return {"index.html": submission_page(found[0], level, alone=True)}
    ordered = sorted(found, key=lambda result: result.name)
    names = file_names(ordered)
    made = {name: submission_page(result, level) for name, result in zip(names, ordered, strict=True)}
    return {"index.html": class_page(ordered, names), **made}


def file_names(found: list[Result]) -> list[str]:
    """A name for each, made of harmless letters, all different."""
    taken: set[str] = {"index"}
    names = []
    for result in found:
        base = re.sub(r"[^A-Za-z0-9_-]+", "-", result.name).strip("-")[:60] or "submission"
        name, count = base, 1
        while name.lower() in taken:
            count += 1
            name = f"{base}-{count}"
        taken.add(name.lower())
        names.append(f"{name}.html")
    return names


def text(said: str) -> str:
    return escape(printable(one(said)))


def document(title: str, content: str) -> str:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{text(title)}</title>"
    head += f"<style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{content}\n</body></html>\n'


def colour(outcome: str) -> str:
    return (
        "passed"
        if outcome == "passed"
        else "other"
        if outcome in ("not handed in", "changed", "grader fault")
        else "wrong"
    )


def submission_page(result: Result, level: int, alone: bool = False) -> str:
    """One submission: a row a part, with its hints."""
    back = "" if alone else '<p><a href="index.html">all submissions</a></p>'
    if result.fault:
        return document(
            result.name, f"{back}<h1>{text(result.name)}</h1><p class='wrong'>not graded: {text(result.fault)}</p>"
        )
    rows = "".join(part_row(part, level) for part in result.parts)
    head = "<tr><th>part</th><th>outcome</th><th class='n'>points</th><th>what was seen</th></tr>"
    notes = [f"<li>{text(p.title)}: {text(n.law)}: {text(n.symptom)}</li>" for p in result.parts for n in p.notes]
    beyond = f"<h2>Notes</h2><p>Beyond the tests: no points are lost.</p><ul>{''.join(notes)}</ul>" if notes else ""
    points = f"<p>{result.points} of {result.max_points} points</p>"
    return document(result.name, f"{back}<h1>{text(result.name)}</h1>{points}<table>{head}{rows}</table>{beyond}")


def part_row(part: PartResult, level: int) -> str:
    said = [] if part.outcome == "passed" else list(hints(part, level))
    listed = "".join(f"<dt>{text(kind)}</dt><dd>{text(sentence)}</dd>" for kind, sentence in said)
    if not said and part.error:
        listed = f"<dt>largest relative error</dt><dd>{part.error:.0e}, allowed {part.tolerance or 0:.0e}</dd>"
    points = f"{part.points}/{part.max_points}" if part.max_points else ""
    return (
        f"<tr><td>{text(part.title)}</td><td class='{colour(part.outcome)}'>{text(part.outcome)}</td>"
        f"<td class='n'>{points}</td><td><dl>{listed}</dl></td></tr>\n"
    )


def class_page(found: list[Result], names: list[str]) -> str:
    """The overview: mistakes by frequency, what each part came out as, and every submission."""
    graded = [result for result in found if not result.fault]
    mean = sum(result.points for result in graded) / max(1, len(graded))
    full = sum(result.points == result.max_points for result in graded)
    told = f"{len(graded)} graded, {full} with full points, {mean:.1f} points on average."
    intro = f"<h1>{len(found)} submissions</h1><p>{told}</p>"
    largest = max((n for *_, n in counts(found)), default=1)
    mistakes = "".join(
        f"<tr><td>{text(part)}</td><td>{text(what)}</td><td class='n'>{n}</td>"
        f"<td><span class='bar' style='width:{8 * n / largest:.2f}rem'></span></td></tr>"
        for part, what, n in counts(found)
    )
    by_part = "".join(part_line(name, graded) for name in BY_NAME if name in laws.GRADED)
    rows = "".join(student_row(result, name) for result, name in zip(found, names, strict=True))
    content = (
        intro
        + table("Mistakes", ("part", "mistake or outcome", "#submissions", ""), mistakes)
        + table("Parts", ("part", "#passed", "#wrong", "#not started or blocked"), by_part)
        + table("Submissions", ("name", "#points", "wrong"), rows)
    )
    return document(f"{len(found)} submissions", content)


def table(title: str, header: tuple[str, ...], rows: str) -> str:
    """header: names of columns, with # in front of those that hold numbers."""
    cells = "".join(f"<th class='n'>{cell[1:]}</th>" if cell[:1] == "#" else f"<th>{cell}</th>" for cell in header)
    return f"<h2>{title}</h2><table><tr>{cells}</tr>{rows}</table>\n"


def part_line(name: str, graded: list[Result]) -> str:
    outcomes = [part.outcome for result in graded for part in result.parts if part.part == name]
    passed = sum(outcome == "passed" for outcome in outcomes)
    waiting = sum(outcome in ("not started", "blocked") for outcome in outcomes)
    wrong = sum(colour(outcome) == "wrong" for outcome in outcomes) - waiting
    numbers = "".join(f"<td class='n'>{n}</td>" for n in (passed, wrong, waiting))
    return f"<tr><td>{text(BY_NAME[name].title)}</td>{numbers}</tr>"


def student_row(result: Result, name: str) -> str:
    wrong = result.wrongs_in_words()
    points = "" if result.fault else f"{result.points}/{result.max_points}"
    return (
        f"<tr><td><a href='{escape(name)}'>{text(result.name)}</a></td><td class='n'>{points}</td>"
        f"<td>{text(result.fault or wrong)}</td></tr>\n"
    )
