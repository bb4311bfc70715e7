"""Text of the site's pages that is made from the code. A comment `<!-- made: NAME ARGUMENT -->` in a page stands for
the result of a function in MADE. GitHub shows nothing in its place, the site the result. docs/conf.py calls `fill`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import hectogpt
from hectogpt import cli, errors
from tools import ROOT

MARK = re.compile(r"^<!-- made: ([\w-]+)(?: ([\w.]+))? -->$", re.MULTILINE)
EXPLORED = ("attention", "positions", "train")  # pages of `hectogpt explore export` that the site has


def fill(text: str) -> str:
    """A page with each mark replaced by its text."""
    return MARK.sub(lambda found: MADE[found[1]](*filter(None, [found[2]])), text)


def run_command(*arguments: str) -> str:
    """The output of `hectogpt ARGUMENTS`, in 88 columns."""
    before, out = os.environ.get("COLUMNS"), io.StringIO()
    os.environ["COLUMNS"] = "88"
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            cli.main(list(arguments))
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return out.getvalue().rstrip()


def commands() -> str:
    """The --help of every command, a section each."""
    sections = []
    for name, what in cli.COMMANDS.items():
        help_text = block(run_command(*name.split(), "--help"))
        sections += [f"## hectogpt {name}", f"{what[0].upper()}{what[1:]}.", help_text]
    return "\n\n".join(sections)


def fields() -> str:
    """Every field of the run `top`, as `hectogpt train top --help-all` explains them."""
    return block(run_command("train", "top", "--help-all"))


def block(text: str) -> str:
    """A block of verbatim text in Markdown."""
    return f"```text\n{text}\n```"


def names() -> str:
    """The public names of `import hectogpt` with their docstrings, by the groups of the package's own docstring."""
    listed = re.split(r"\n\n", hectogpt.__doc__ or "")[-2]
    groups: dict[str, list[str]] = {}
    for line in listed.splitlines():
        if found := re.match(r"(\w[\w ]*?)  +(.*)", line):
            groups[found[1]] = []
        groups[list(groups)[-1]] += (found[2] if found else line).split()
    sections = []
    for group, members in groups.items():
        sections.append(f"## {group[0].upper()}{group[1:]}")
        sections += [f"```{{eval-rst}}\n{directive(name)}\n```" for name in members if name != "replace"]
    return "\n\n".join(sections)


def directive(name: str) -> str:
    """The autodoc directive for a public name."""
    if isinstance(getattr(hectogpt, name), type):
        return f".. autoclass:: hectogpt.{name}\n   :members:"
    return f".. autofunction:: hectogpt.{name}"


def exit_codes() -> str:
    """The exit codes as a table: number, name in hectogpt.errors, meaning."""
    known = {value: name for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    lines = ["| code | in `hectogpt.errors` | meaning |", "|--:|---|---|"]
    for number, meaning in re.findall(r"(\d+) ([^,.]+)", cli.EXIT_CODES.replace("\n", " ")):
        name = f"`{known[int(number)]}`" if int(number) in known else ""
        lines.append(f"| {number} | {name} | {meaning} |")
    return "\n".join(lines)


def traps() -> str:
    """The grader's known mistakes as a table for each part. Mistakes of the same description, which
    differ only in a number or in how the gradient is cut, appear once."""
    from hectogpt.assignment.parts import BY_NAME
    from hectogpt.grade.mistakes import GRADIENTS, MISTAKES, symptoms, words_of

    listed = {part: (*MISTAKES[part], *GRADIENTS.get(part, ())) for part in MISTAKES}
    tables = {
        part: [
            (one.name, (words_of("end") | words_of(part))[one.name].what, symptoms()[part][one.name]) for one in found
        ]
        for part, found in listed.items()
    }
    tables["train"] = [(name, one.what, symptoms()["loop"][name]) for name, one in words_of("loop").items()]
    sections = []
    for part, table in tables.items():
        rows = {what: f"| {cell(name)} | {cell(symptom)} | {cell(what)} |" for name, what, symptom in reversed(table)}
        head = "| mistake | what you see | what it is |\n|---|---|---|"
        sections += [f"## {BY_NAME[part].title}", "\n".join([head, *reversed(rows.values())])]
    return "\n\n".join(sections)


def cell(text: str) -> str:
    """Text for a table's cell, with Markdown escaped."""
    return re.sub(r"([|*_<>\[\]$\\])", r"\\\1", text[0].upper() + text[1:])


def usual_losses() -> str:
    """The dev losses of the recorded runs after 100 steps, as a table: recipe, mean and SD on each corpus."""
    bands = json.loads((ROOT / "hectogpt" / "lab" / "baselines" / "bands.json").read_text(encoding="utf-8"))
    from hectogpt.lab.ladder import LADDER

    lines = ["| recipe | TinyStories | runs | sotu | runs |", "|---|--:|--:|--:|--:|"]
    for recipe in ("baseline", *(rung.__name__ for rung in LADDER), "minute"):
        cells = []
        for corpus in ("tinystories", "sotu"):
            mean, deviation, runs = bands.get(f"{recipe} {corpus} 100", (None, None, None))
            cells += ["", ""] if mean is None else [f"{mean:.3f} ± {deviation:.3f}", str(runs)]
        lines.append(f"| `{recipe}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def tracks() -> str:
    """The rules of the tracks, as a table."""
    from hectogpt.lab.tracks import TRACKS

    lines = ["| track | " + " | ".join(list(vars(TRACKS["closed"]))[1:]).replace("_", " ") + " |", "|---" * 9 + "|"]
    for track in TRACKS.values():
        values = [
            "yes" if value is True else f"{value:,}" if type(value) is int else value or ""
            for value in vars(track).values()
        ]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def link_to_page(name: str) -> str:
    """A link to a page of `hectogpt explore`, or to the atlas, which the site has as files."""
    return f'<p><a href="../pages/{name}.html">Open the full page</a>: one file, which works without a network.</p>'


def textbook(name: str) -> str:
    """The lines of a class or method of reference/model_solution.py, as the source page numbers them."""
    options = f":language: python\n:pyobject: {name}\n:lineno-match:\n:dedent:\n"
    return f"```{{literalinclude}} ../reference/model_solution.py\n{options}```"


class Links(HTMLParser):
    """The targets that a page links to, shows or embeds, and the places in it that a link can name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            if name == "id" and value:
                self.places.add(value)


def broken_links(site: Path) -> list[str]:
    """ "page: link" for every link inside the site that names no file, or no place in a page. External
    addresses are not checked."""
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            found = pages[target].places if target in pages else {"", address.fragment}
            if not target.is_file() or unquote(address.fragment) not in found:
                broken.append(f"{path.relative_to(site)}: {link}")
    return sorted(broken)


MADE: dict[str, Callable[..., str]] = {
    "commands": commands,
    "fields": fields,
    "names": names,
    "exit-codes": exit_codes,
    "traps": traps,
    "usual-losses": usual_losses,
    "tracks": tracks,
    "page": link_to_page,
    "textbook": textbook,
}
