"""`hectogpt explore`: pages that open without a network; `explore export VIEW` saves one."""

from __future__ import annotations

import difflib
import tempfile
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from hectogpt.cli.console import remarks
from hectogpt.cli.options import ExploreExportOptions, ExploreOptions, View
from hectogpt.data import open_corpus
from hectogpt.data.sources import read_text
from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.files import write_atomic
from hectogpt.run_records import find_runs, read_record
from hectogpt.web.page import fill


def main(options: ExploreOptions | ExploreExportOptions) -> None:
    """Write a page to a file; or write pages into a new folder and open the first."""
    view = getattr(options, "view", None)
    name = view or str(options.model)
    near = difflib.get_close_matches(name, get_args(View), 1, 0.75)
    if near and near != [view] and not Path(name).exists():
        fix = f"hectogpt explore export {near[0]} {near[0]}.html"
        raise UserError(f"cannot explore {name}", fix=fix)
    if isinstance(options, ExploreExportOptions):
        if (out := options.out or options.file) is None:
            fix = f"hectogpt explore export {options.view} page.html"
            raise UserError("no file to write", why="a page is saved as one HTML file", fix=fix)
        if options.view not in get_args(View):  # then it is a run's folder
            options = replace(options, view="model", model=options.view)
        content = make(options).encode("utf-8")
        write_atomic(out, content)
        print(printable(f"{out} ({len(content):,} bytes)"))
        return
    folder = Path(tempfile.mkdtemp(prefix="hectogpt-pages-"))
    views: list[View] = ["train", "attention", "positions"] if options.model is None else ["model"]
    for view in views:
        out = folder / f"{view}.html"
        page = ExploreExportOptions(
            view,
            model=options.model,
            prompt=options.prompt,
            step=options.step,
            idea=options.idea,
        )
        out.write_text(make(page), encoding="utf-8")
        print(printable(str(out)))
    print("Each page is one file that needs no server: keep it, or mail it.")
    if not options.no_browser:
        webbrowser.open((folder / f"{views[0]}.html").as_uri())


def make(options: ExploreExportOptions) -> str:
    """Make the page as HTML. Raises UserError."""
    text = None if options.text is None else read_text(options.text)
    if options.view == "train":
        from hectogpt.web.train_page import train_page

        return train_page(
            None if options.text is None or text is None else (options.text.name, text),
            options.weights,
            remarks(),
        )
    if options.view != "model":
        return fill(options.view, None)
    from hectogpt.training.history import open_at
    from hectogpt.web.model_page import model_page

    done = [str(run.folder) for run in find_runs(Path("runs"))[0] if run.state == "done"]
    folder = options.model or next(reversed(done), None)
    if folder is None:
        why = "no run below ./runs has finished"
        fix = "hectogpt train, or --model FOLDER"
        raise UserError("no trained model", why=why, fix=fix)
    held_out = held_out_of(Path(folder), text)
    step = options.step
    note = remarks()
    opened = None if step is None else open_at(folder, step, options.idea, note)
    return model_page(folder, options.prompt, held_out, options.idea, step, note, opened)


def held_out_of(folder: Path, text: str | None) -> Any:
    """The text on which effects of heads are measured.

    It is `text`, otherwise the token ids of the dev split of the run's corpus if that is on this
    machine, otherwise None.
    """
    if text is not None:
        return text
    try:
        return open_corpus(str(read_record(folder).run.get("corpus"))).tokens["dev"]
    # No run, or its text is not here: the page then measures effects on the prompt, and says so.
    except UserError:
        return None
