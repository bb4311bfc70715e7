"""Plain words: no phrase that has to be read twice, and no docstring that begins with "What" or "Whether"."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from helpers import ROOT

# phrase -> what the field says
PHRASES = {
    r"(?:go|goes|going|went|gone) on": "resume; continue",
    r"what is none|(?:that|which) (?:is|are) none": "invalid; not a ...",
    r"all but|but for": "all except",
    r"another one|anew|under way": "a different one; again; running",
    r"a \w+ of (?:yours|ours)": "your ..., our ...",
    r"first (?:weights|numbers)|likeliest|(?<!@)beside(?! the checkout)": "initial; most likely; next to",
    r"mend(?:s|ed|ing)?|by heart|some (?:minutes|seconds)": "fix; memorise; a few minutes",
    r"rests? on|so many (?:steps|seconds|bytes)": "depends on; this many",
}
PLAIN = re.compile("|".join(rf"\b(?:{phrase})\b" for phrase in PHRASES), re.IGNORECASE)
THREE_NAMED = re.compile(r"(?:\b[a-z_]+: [^.:;`]{3,80}[.;] ?){3}")
CLAUSE = re.compile(r"\s*(?:What|Whether|The same)\b")
CODE = re.compile(r"^( *)```.*?^\1```$|<!--.*?-->|`[^`\n]*`", re.MULTILINE | re.DOTALL)
# Folder of the package -> how many offences its docstrings and comments still have. The number may only fall.
STILL = {
    **{"hectogpt": 44, "hectogpt/cli": 42, "hectogpt/lab": 57, "hectogpt/grade": 57, "hectogpt/training": 68},
    **{"hectogpt/training/optim": 7, "hectogpt/model": 26, "hectogpt/interop": 22, "hectogpt/generation": 15},
    **{"hectogpt/data": 13, "hectogpt/kernels": 11, "hectogpt/web": 4, "hectogpt/assignment": 3},
}


def offences(text: str) -> Iterator[tuple[int, str]]:
    """Lines, counted from 0, with the words that offend."""
    joined = text.replace("\n", " ")
    for pattern in (PLAIN, THREE_NAMED):
        yield from ((text.count("\n", 0, found.start()), found[0]) for found in pattern.finditer(joined))


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Each docstring and comment of a module with its line; a docstring that begins with a clause says so first."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
    for number, line in enumerate(source.splitlines(), 1):
        if comment := re.search(r"(?:^|  )# .*", line):
            yield number, comment[0]


def found_in(path: Path) -> list[str]:
    """FILE:LINE: OFFENCE of a module."""
    found = []
    for first, text in prose_of(path):
        found += [f"{path.relative_to(ROOT)}:{first + line}: {words}" for line, words in offences(text)]
        if begins := CLAUSE.match(text):
            found.append(f"{path.relative_to(ROOT)}:{first}: begins with {begins[0].strip()!r}")
    return found


def test_pages_say_it_plainly() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "assignment").glob("*.md")]
    found = []
    for path in pages:
        prose = CODE.sub(lambda code: "\n" * code[0].count("\n"), path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(ROOT)}:{line + 1}: {words}" for line, words in offences(prose)]
    assert found == []


def test_docstrings_say_it_more_plainly_than_before() -> None:
    found = [(path, line) for path in sorted((ROOT / "hectogpt").rglob("*.py")) for line in found_in(path)]
    counts = Counter(path.relative_to(ROOT).parent.as_posix() for path, _ in found)
    assert {folder: n for folder, n in counts.items() if n > STILL.get(folder, 0)} == {}, "\n".join(
        line for _, line in found
    )
