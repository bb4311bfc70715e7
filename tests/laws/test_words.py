"""Plain words: no phrase that has to be read twice, and no docstring that begins with "What" or "Whether"."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

from helpers import ROOT

from tools import layers

PHRASES = {  # what the field does not say -> what it says
    r"(?:go|goes|going|went|gone) on": "resume; continue",
    r"what is none|(?:that|which) (?:is|are) none": "invalid; not a ...",
    r"all but|but for": "all except",
    r"another one|anew|under way": "a different one; again; running",
    r"a \w+ of (?:yours|ours)": "your ..., our ...",
    r"first (?:weights|numbers)|likeliest|beside": "initial; most likely; next to",
    r"mend(?:s|ed|ing)?|by heart|some (?:minutes|seconds)": "fix; memorise; a few minutes",
    r"rests? on|so many (?:steps|seconds|bytes)": "depends on; this many",
}
PLAIN = re.compile("|".join(rf"\b(?:{phrase})\b" for phrase in PHRASES), re.IGNORECASE)
THREE_NAMED = re.compile(r"(?:\b[a-z_]+: [^.:;`]{3,160}[.;] ){2}[a-z_]+: ")
CLAUSE = re.compile(r"\A\s*(?:What|Whether|The same)\b")
CODE = re.compile(r"^( *)```.*?^\1```$|<!--.*?-->|`[^`\n]*`", re.MULTILINE | re.DOTALL)
# Folder of the package -> how many offences its docstrings and comments still have. A number may only fall.
STILL = {"hectogpt/data": 1}


def offences(text: str, first: int, *patterns: re.Pattern[str]) -> list[str]:
    """LINE: WORDS for every place where a pattern is found."""
    joined = text.replace("\n", " ")
    found = [match for pattern in patterns for match in pattern.finditer(joined)]
    return [f"{first + text.count(chr(10), 0, match.start())}: {match[0]}" for match in found]


def found_in(path: Path) -> list[str]:
    """The offences of a module, in docstrings (also of fields) and comments."""
    source, found = path.read_text(encoding="utf-8"), []
    for node in ast.walk(layers.tree_of(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found += offences(node.value.value, node.lineno, CLAUSE, PLAIN, THREE_NAMED)
    for number, line in enumerate(source.splitlines(), 1):
        found += offences(line[line.find("# ") :], number, PLAIN) if re.search(r"(?:^|  )# ", line) else []
    return found


def test_pages_say_it_plainly() -> None:
    found = {}
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "assignment").glob("*.md")):
        prose = CODE.sub(lambda code: "\n" * code[0].count("\n"), path.read_text(encoding="utf-8"))
        found[path.name] = offences(prose, 1, PLAIN, THREE_NAMED)
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_docstrings_say_it_more_plainly_than_before() -> None:
    found = {path: found_in(path) for path in sorted((ROOT / "hectogpt").rglob("*.py"))}
    counts = Counter(path.relative_to(ROOT).parent.as_posix() for path, lines in found.items() for _ in lines)
    more = {folder: n for folder, n in counts.items() if n > STILL.get(folder, 0)}
    assert more == {}, "\n".join(f"{path.relative_to(ROOT)}:{line}" for path, lines in found.items() for line in lines)
