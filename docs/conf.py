"""Sphinx's settings for the site: `make site` writes it to build/site.

Its pages are the Markdown files of the repository where they lie, so that links between them work on GitHub and on the
site. The texts made from the code are in tools/site.py.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.parsers import Parser

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hectogpt import __version__  # noqa: E402
from hectogpt.lab.record import read_records  # noqa: E402
from tools.answers import formula  # noqa: E402
from tools.report import build_leaderboards, ladder_names, recipe_descriptions  # noqa: E402
from tools.report.web_page import web_page  # noqa: E402
from tools.site import EMBEDDED, broken_links, fill, run_command  # noqa: E402

CONTENTS = {
    "Start": ["docs/start", "docs/all-of-hectogpt", "docs/coming-from"],
    "Understand": [
        *("docs/transformer", "docs/attention-and-positions", "answers/attention", "answers/positions"),
        *("answers/baseline", "answers/learning"),
    ],
    "Do": [
        *(
            "docs/own-text",
            "docs/add-an-idea",
            "docs/compare",
            "docs/verdict",
            "docs/judge",
            "docs/resume",
            "docs/python",
            "docs/watch",
        ),
        *("docs/parallel", "docs/fine-tune", "docs/interop", "docs/serving"),
    ],
    "The assignment": [
        *(
            "docs/assignment-student",
            "assignment/README",
            "docs/grading",
            "docs/traps",
            "docs/grading-teacher",
            "assignment/AGENTS",
        ),
    ],
    "Reference": [
        *("docs/command-line", "docs/python-names", "docs/exit-codes", "docs/run-files", "docs/platforms"),
    ],
    "Why to believe it": [
        *("results/LADDER", "docs/statistics", "docs/reliability", "docs/performance", "docs/scale", "results/LOG"),
    ],
    "Contribute": [
        *("CONTRIBUTING", "docs/architecture", "docs/where-to-put", "docs/rules"),
        *("AGENTS", "SECURITY", "CHANGELOG"),
    ],
}
# What pages that are known by a question's number, or by a sentence, are called in the table of contents.
SHORT = {
    "answers/attention": "Attention, derived",
    "answers/positions": "Positions, derived",
    "answers/baseline": "The assignment's own run",
    "answers/learning": "What each rung does",
    "assignment/README": "The assignment",
    "assignment/AGENTS": "Rules for AI assistants",
}
PAGES = ["README", *(page for pages in CONTENTS.values() for page in pages)]
# "name: what it is" in a docstring, at the beginning of a paragraph or after a sentence.
ITEM = re.compile(r"(?:^|(?<=[.;] ))([a-z_]\w*(?:, [a-z_]\w*)*): ")
INLINE = re.compile(r"`([^`]+)`|([*|\\]|_(?!\w))")  # code, or a character that has a meaning in reStructuredText
LINK = re.compile(r"\]\(([^)#\s]+\.py)\)|^\[[^\]]+\]: (\S+\.py)$", re.MULTILINE)


def linked_sources() -> list[str]:
    """The Python files that pages link to: they become pages too."""
    found = set()
    for page in PAGES:
        path = ROOT / f"{page}.md"
        for link in LINK.findall(path.read_text(encoding="utf-8")):
            found.add(str((path.parent / "".join(link)).resolve().relative_to(ROOT)))
    return sorted(found)


project = "hectoGPT"
copyright = "the hectoGPT authors, MIT licence"
version = release = __version__
html_title = f"hectoGPT {version}"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
source_suffix = {".md": "markdown", ".py": "python-source"}
include_patterns = [*(f"{page}.md" for page in PAGES), *linked_sources()]
exclude_patterns = [".*", "build", "dist", "runs", "*.egg-info"]
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = html_show_sphinx = html_use_index = False
html_math_renderer = "mathml"
highlight_language = "text"
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page of ours may leave out a level of headings

# What furo and docutils leave out for readers with a keyboard or a screen reader: written -> as it should be.
MENDED = {
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer': '<aside aria-label="This page" class="toc-drawer',
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    '<div id="search-results">': '<h1>Search</h1><div id="search-results">',
}


class PythonSource(Parser):
    """Parser of a Python file as a page: its path as the title, then its lines, numbered."""

    supported = ("python-source",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        env = document.settings.env
        env.metadata[env.docname]["orphan"] = True
        name = f"{env.docname}.py"
        page = nodes.section("", nodes.title(text=name), ids=[nodes.make_id(name)], names=[name])
        page += nodes.literal_block(inputstring, inputstring, language="python", linenos=True)
        document += page


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Fills in what is made from the code, and ends the first page with the table of contents."""
    if page in PAGES:
        source[0] = fill(source[0])
    if page == root_doc:
        for caption, pages in CONTENTS.items():
            lines = "\n".join(f"{SHORT[page]} </{page}>" if page in SHORT else f"/{page}" for page in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def rewrite_docstring(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text: "name: what it is" begins an item, indented lines are shown as they are."""
    rewritten: list[str] = []
    for paragraph in "\n".join(lines).strip().split("\n\n"):
        if paragraph.startswith("    "):
            rewritten += ["::", "", *paragraph.splitlines(), ""]
            continue
        text = INLINE.sub(lambda found: f"``{found[1]}``" if found[1] else f"\\{found[2]}", " ".join(paragraph.split()))
        opening, *items = ITEM.split(text)
        rewritten += [opening, ""]
        for item, meaning in zip(items[::2], items[1::2], strict=True):
            rewritten += [f"``{item}``", f"    {meaning}", ""]
    lines[:] = rewritten


def add_markdown(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Each page names its Markdown form, for readers that are programs."""
    if page in PAGES:
        markdown = f"{page.rpartition('/')[2]}.md"
        context["metatags"] += f'<link rel="alternate" type="text/markdown" href="{markdown}">'
        context["body"] += f'<p class="as-markdown"><a href="{markdown}">This page as Markdown</a></p>'


def finish(app: Sphinx, error: Exception | None) -> None:
    """Writes index.html, each page's Markdown, and the pages of `hectogpt explore`; then every link is checked."""
    if error is not None:
        return
    site = Path(app.outdir)
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for written, mended in MENDED.items():
            text = text.replace(written, mended)
        path.write_text(text, encoding="utf-8")
    shutil.copy(site / f"{root_doc}.html", site / "index.html")
    for page in PAGES:
        target = site / f"{page}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(fill((ROOT / f"{page}.md").read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copy(ROOT / "llms.txt", site)
    (site / "pages").mkdir(exist_ok=True)
    for name in EMBEDDED:
        (site / "pages" / f"{name}.html").unlink(missing_ok=True)
        run_command("explore", "export", name, "--out", str(site / "pages" / f"{name}.html"))
    boards = build_leaderboards(read_records(ROOT / "results" / "ladder.jsonl"), ladder_names())
    (site / "pages" / "ladder.html").write_text(web_page(boards, recipe_descriptions()), encoding="utf-8")
    if broken := broken_links(site):
        raise ExtensionError("links that lead nowhere:\n" + "\n".join(broken))


def setup(app: Sphinx) -> None:
    def inline(translator: Any, node: nodes.math) -> None:
        translator.body.append(formula(node.astext(), display=False))
        raise nodes.SkipNode

    def displayed(translator: Any, node: nodes.math_block) -> None:
        translator.body.append(f'<div class="math" tabindex="0">{formula(node.astext(), display=True)}</div>')
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
    app.add_source_parser(PythonSource)
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", rewrite_docstring)
    app.connect("html-page-context", add_markdown)
    app.connect("build-finished", finish)
