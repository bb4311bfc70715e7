"""Exams: a different but equally hard sheet for each student, a PDF to print, and marks."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hectogpt.errors import DataError, UserError, unreadable
from hectogpt.exam.labs import WORDS
from hectogpt.exam.questions import LETTERS, Question, draw, text_of

LINES = 90  # lines on a page


@dataclass(frozen=True)
class Sheet:
    """The sheet of a student. `code` identifies the exam and the sheet, not the student."""

    name: str
    code: str
    questions: tuple[Question, ...]

    @property
    def key(self) -> str:
        return "".join(LETTERS[one.answer] for one in self.questions)


def read_table(path: Path, *columns: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file.

    Raises UserError (DATA) if the file has no rows or lacks one of these columns.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None
    table = csv.DictReader(io.StringIO(text), restval="")
    rows = [{str(k).strip().lower(): str(v).strip(" '") for k, v in row.items()} for row in table]
    if not rows or not {*columns} <= {*rows[0]}:
        raise refusal("table", str(path), columns=",".join(columns))
    return rows


def refusal(name: str, what: str, **facts: str) -> UserError:
    """Return an error from the table `refusal` in questions.toml."""
    why, fix = (words.format(**facts) for words in WORDS["refusal"][name])
    return DataError(what, why=why, fix=fix, kept="nothing was written")


def make_sheets(names: list[str], secret: str, plan: list[tuple[str, int]]) -> list[Sheet]:
    """Return a sheet for each name.

    No question uses the lab of any of the six questions before it. The questions of a sheet depend
    only on the student's name, the secret and the plan.

    Args:
        names: the names of the students.
        secret: the seed of the exam.
        plan: (kind, level) of each question.

    Raises UserError for a name that is empty or occurs twice.
    """
    for name, times in Counter(names).items():
        if times > 1 or not name:
            raise refusal("name", f"the name {name!r}")
    digest = hashlib.sha256(f"{secret} {plan} {names}".encode()).digest()
    exam = "".join(chr(65 + byte % 26) for byte in digest[:4])
    made = []
    for number, name in enumerate(names, 1):
        asked: list[Question] = []
        for place, (kind, level) in enumerate(plan):
            recent = [one.lab for one in asked][-6:]
            asked.append(draw(f"{secret} {name} {place}", kind, level, recent))
        made.append(Sheet(name, f"{exam}-{number:03}", tuple(asked)))
    return made


def checksum(text: str) -> str:
    """Return three digits that change if a character changes or two are swapped.

    exam.js computes the same checksum.
    """
    return f"{sum((n + 1) * ord(c) for n, c in enumerate(text)) % 997:03}"


def record_of(sheet: Sheet) -> dict[str, Any]:
    """Return a sheet as JSON, with everything that marking needs."""
    asked = [
        {"names": [c.name for c in one.choices], "about": f"{one.kind}, {one.mistakes[0]}"}
        for one in sheet.questions
    ]
    return {"name": sheet.name, "code": sheet.code, "key": sheet.key, "questions": asked}


def write_pdf(path: Path, pages: list[list[str]]) -> None:
    """Write pages of text as a PDF. The same text gives the same bytes.

    With the standard fonts of PDF, a page takes 6 ms instead of 190. They have only Western
    European letters; other letters are shown as "?".
    """
    import matplotlib
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    with (
        matplotlib.rc_context({"pdf.use14corefonts": True}),
        PdfPages(path, metadata={"CreationDate": None}) as pdf,
    ):
        for lines in pages:
            figure = Figure((8.27, 11.69))  # A4
            font = {"family": "Courier", "weight": "medium", "size": 8.5, "va": "top"}
            figure.text(0.07, 0.96, "\n".join(lines), {**font, "parse_math": False})
            pdf.savefig(figure)


def pages_of(sheet: Sheet) -> list[list[str]]:
    """Return the lines of each page. No question is split between pages."""
    pages: list[list[str]] = []
    for number, one in enumerate(sheet.questions, 1):
        rule = f"{number}  ".ljust(80, "-") + "  answer: ______"
        lines = [rule, "", *text_of(one, 98), ""]
        if not pages or len(pages[-1]) + len(lines) > LINES:
            pages.append([f"{sheet.name}      sheet {sheet.code}, page {len(pages) + 1}", ""])
        pages[-1] += lines
    return pages


# --- marks


def letters_of(row: dict[str, str], sheet: dict[str, Any]) -> str:
    """Return a student's answers as letters, with "-" for no answer.

    The row has them as letters, such as "b-cad", or as the code that the page gives.

    Raises UserError (DATA) if the code is damaged or the answers do not fit the sheet.
    """
    what = f"the answers of {row['name']}: {row['answers'][:60]!r}"
    text = re.sub(r"\s", "", row["answers"]).upper()
    if found := re.fullmatch(r"([A-Z]{4}-\d{3,})-([A-F.]+)-(\d{3})", text):
        code, text, check = found.groups()
        if checksum(f"{code}-{text}") != check:
            raise refusal("torn", what)
        if code != sheet["code"]:
            raise refusal("other", what, code=code, own=sheet["code"])
    count = len(sheet["key"])
    text = text or "-" * count
    if not re.fullmatch(f"[A-F.-]{{{count}}}", text):
        raise refusal("letters", what, count=str(count))
    return text.lower().replace(".", "-")


def mark(rows: list[dict[str, str]], sheets: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return a row of marks for each row of answers: the points, and which answers are wrong.

    Raises UserError (DATA) for an unknown name, or for answers that do not fit the sheet.
    """
    known = {sheet["name"]: sheet for sheet in sheets}
    marks = []
    for row in rows:
        if row["name"] not in known:
            raise refusal("unknown", f"the answers of {row['name']!r}")
        sheet = known[row["name"]]
        letters = letters_of(row, sheet)
        wrong = []
        for n, (letter, right) in enumerate(zip(letters, sheet["key"], strict=True)):
            asked = sheet["questions"][n]
            if letter != right:
                names = {"-": "no answer", **dict(zip(LETTERS, asked["names"], strict=False))}
                took, was = (
                    names.get(one, "no such choice") or "no mistake" for one in letter + right
                )
                wrong.append(f"{n + 1}: {asked['about']}: {took} for {was}")
        points = str(len(letters) - len(wrong))
        confused = "; ".join(wrong)
        marks.append(
            {"name": row["name"], "points": points, "answers": letters, "confused": confused}
        )
    return marks
