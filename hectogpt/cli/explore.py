"""`hectogpt explore`: pages that open without a network; `explore export VIEW` saves one."""

from __future__ import annotations

import tempfile
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from hectogpt.cli.console import remarks
from hectogpt.cli.help import Idea, Step
from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.files import write_atomic

View = Literal["train", "attention", "positions", "model"]


@dataclass(frozen=True)
class Options:
    """Open a page in the browser: training on your text, in the page. With a model's folder: its attention, and what
    each head is worth. The other pages are linked below it.

    `hectogpt explore export --help` says more of pages that are saved.

    Examples
      hectogpt explore
      hectogpt explore runs/minute --prompt "The state of the Union"
      hectogpt explore export train --out train.html --text mine.txt --weights runs/baseline
      hectogpt explore export attention --out page.html
    """

    model: Positional[str | None] = None
    """Folder of a run, or of a GPT-2 in Hugging Face's layout."""
    prompt: str | None = None
    """For a model: the text to read."""
    idea: Idea = ()
    no_browser: bool = False
    """Print where the page is and open nothing."""


@dataclass(frozen=True)
class ExportOptions:
    """Save a page as one HTML file that opens offline: train (trains in the page), attention, positions, or model."""

    view: Positional[View]
    out: Path
    """File to write."""
    text: Path | None = None
    """For train: a text file that stands first. For model: the text on which effects of heads are measured."""
    weights: Path | None = None
    """For train: folder of a run whose weights it begins with."""
    model: str | None = None
    """For model: its folder (default: the run below ./runs that finished last)."""
    prompt: str | None = None
    """For model: the text to read."""
    step: Step = None
    idea: Idea = ()


SUBCOMMANDS = {"export": ExportOptions}


def main(options: Options | ExportOptions) -> None:
    """Write a page to a file; or write pages into a new folder, and open the first."""
    if isinstance(options, ExportOptions):
        content = make(options).encode("utf-8")
        write_atomic(options.out, content)
        return print(printable(f"{options.out} ({len(content):,} bytes)"))
    folder = Path(tempfile.mkdtemp(prefix="hectogpt-pages-"))
    views: list[View] = ["train", "attention", "positions"] if options.model is None else ["model"]
    files = [folder / f"{view}.html" for view in views]
    for view, file in zip(views, files, strict=True):
        page = make(ExportOptions(view, file, model=options.model, prompt=options.prompt, idea=options.idea))
        file.write_text(page, encoding="utf-8")
    print(printable("\n".join(map(str, files))))
    print("Each is one file that needs no server: keep it, or mail it.")
    if not options.no_browser:
        webbrowser.open(files[0].as_uri())


def make(a: ExportOptions) -> str:
    """The page as HTML. Raises UserError."""
    from hectogpt.data.documents import read_text
    from hectogpt.web.page import fill

    text = None if a.text is None else read_text(a.text)
    if a.view == "train":
        from hectogpt.web.train_page import train_page

        return train_page(None if a.text is None or text is None else (a.text.name, text), a.weights)
    if a.view != "model":
        return fill(a.view, None)
    from hectogpt.generation.model_view import find_newest_run
    from hectogpt.web.model_page import PROMPT, model_page

    folder = a.model or find_newest_run(Path("runs"))
    if folder is None:
        raise UserError(
            "no trained model", why="no run below ./runs has finished", fix="hectogpt train, or --model FOLDER"
        )
    return model_page(folder, a.prompt or PROMPT, held_out_of(Path(folder), text), a.idea, a.step, remarks())


def held_out_of(folder: Path, text: str | None) -> Any:
    """What effects of heads are measured on: the text; without one, the token ids of the dev split of the run's corpus
    if that is at hand; else None."""
    from hectogpt.data import open_corpus
    from hectogpt.run_records import read_record

    if text is not None:
        return text
    try:
        return open_corpus(str(read_record(folder).run.get("corpus"))).tokens["dev"]
    except UserError:  # no run, or its text is elsewhere: effects are then those on the prompt, which the page says
        return None
