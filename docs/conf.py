"""Sphinx's settings for the site: `make site` writes it to build/site.

Its pages are the Markdown files of the repository where they lie, so that links between them work on GitHub and on the
site. The texts made from the code are in tools/site.py.
"""

from __future__ import annotations

import json
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
from tools.research.answers import formula  # noqa: E402
from tools.site import EXPLORED, broken_links, fill, run_command  # noqa: E402

# caption -> page -> the pages that the side bar folds below it. The course is first, and is read in this order.
CONTENTS: dict[str, dict[str, list[str]]] = {
    "Course": {
        "docs/start": [],
        "docs/transformer": ["docs/attention-and-positions", "answers/attention", "answers/positions"],
        "docs/assignment-student": [
            *("assignment/README", "answers/baseline", "docs/grading", "docs/traps", "docs/drill", "assignment/AGENTS"),
        ],
    },
    "Use": {
        "docs/own-text": ["docs/fine-tune"],
        "docs/resume": ["docs/time-machine", "docs/watch", "docs/run-files"],
        "docs/python": ["docs/python-names"],
        "docs/interop": ["docs/transformer-lens", "docs/nnsight", "docs/serving", "docs/coming-from"],
        "docs/command-line": ["docs/exit-codes", "docs/platforms"],
    },
    "Teach": {"docs/grading-teacher": ["docs/exam"]},
    "Research": {
        "docs/add-an-idea": ["docs/atlas"],
        "docs/compare": ["docs/verdict", "docs/yardstick", "docs/bisect", "docs/judge", "docs/statistics"],
        "results/LADDER": ["answers/learning", "results/LOG"],
        "docs/performance": ["docs/parallel", "docs/scale"],
        "docs/reliability": [],
    },
    "Contribute": {
        "CONTRIBUTING": [
            *("docs/architecture", "docs/where-to-put", "docs/rules", "AGENTS", "SECURITY", "CHANGELOG"),
        ],
    },
}
# Short names for the side bar, of pages whose titles are questions or sentences.
SHORT = {
    "docs/transformer": "The transformer",
    "docs/assignment-student": "The assignment",
    "docs/grading-teacher": "Grade a class",
    "docs/exam": "An exam",
    "docs/drill": "The drill",
    "docs/python": "From Python",
    "docs/reliability": "Reliability",
    "docs/performance": "Performance",
    "docs/scale": "Limits",
    "docs/transformer-lens": "TransformerLens",
    "docs/nnsight": "nnsight",
    "docs/yardstick": "Is my loss normal?",
    "docs/bisect": "Where runs part",
    "docs/atlas": "The atlas of ideas",
    "docs/time-machine": "Any step of a run",
    "answers/attention": "Attention, derived",
    "answers/positions": "Positions, derived",
    "answers/baseline": "The baseline run",
    "answers/learning": "What each rung does",
    "assignment/README": "The questions",
    "assignment/AGENTS": "Rules for AI assistants",
}
GROUPS = [group for groups in CONTENTS.values() for group in groups.items()]
PAGES = ["README", *(page for parent, children in GROUPS for page in (parent, *children))]
# What readers search for -> the page that the search shows first.
KEYWORDS = {
    "docs/start": "install, installation, first run",
    "docs/assignment-student": "assignment, stubs, homework",
    "docs/own-text": "own text, own data, corpus, tokenizer, vocabulary",
    "docs/fine-tune": "fine-tune, finetune, fine-tuning, pretrained",
    "docs/resume": "resume, Ctrl-C, interrupt, checkpoint, stop",
    "docs/watch": "watch, TensorBoard",
    "docs/python": "python, notebook, Jupyter",
    "docs/interop": "gguf, llama.cpp, export, import, transformers, Hugging Face, GPT-2",
    "docs/transformer-lens": "TransformerLens, hooks, interpretability",
    "docs/nnsight": "nnsight",
    "docs/serving": "serve, vLLM, deploy",
    "docs/grading": "grade, grader, hints",
    "docs/grading-teacher": "grade a class, Gradescope, Canvas, teacher",
    "docs/exam": "exam, oral exam, questions, roster, key",
    "docs/drill": "drill, practice, questions",
    "docs/add-an-idea": "idea, own optimizer, own schedule, own loss",
    "docs/compare": "compare, seeds",
    "docs/atlas": "atlas, papers, literature, SwiGLU",
    "docs/verdict": "verdict, own losses",
    "docs/bisect": "bisect, not reproducible, runs differ",
    "docs/yardstick": "yardstick, is my loss normal, normal loss, bits per byte, nanoGPT",
    "docs/judge": "judge",
    "docs/parallel": "torchrun, GPU, several processes, DDP",
    "results/LADDER": "ladder, rung, results",
    "docs/performance": "speed, benchmark, performance",
}
# "name: what it is" in a docstring, at the beginning of a paragraph or after a sentence.
HEADINGS = ("Args", "Attributes", "Raises", "Returns", "Yields")  # of lists in docstrings
ITEM = re.compile(r"(?:^|(?<=[.;] ))([a-z_]\w*(?:, [a-z_]\w*)*): ")
INLINE = re.compile(r"`([^`]+)`|([*|\\]|_(?!\w))")  # code, or a character that has a meaning in reStructuredText
PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img src="(?P<light>[^"]+)"\s+alt="(?P<alt>[^"]+)">\s*</picture>'
)
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
html_static_path = ["site.css", "fonts"]
html_css_files = ["site.css"]
html_search_scorer = "docs/search.js"
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
    """Fill in what is made from the code, and end the page with its part of the side bar and its keywords."""
    if page not in PAGES:
        return
    source[0] = PICTURE.sub(two_images, fill(source[0]))
    if page == root_doc:
        for caption, pages in CONTENTS.items():
            source[0] += toctree(list(pages), f":caption: {caption}\n")
    source[0] += toctree(dict(GROUPS).get(page, []))
    entries = "\n".join(f"   ! single: {word}" for word in KEYWORDS.get(page, "").split(", ") if word)
    if entries:
        source[0] += f"\n```{{eval-rst}}\n.. index::\n{entries}\n```\n"


def toctree(pages: list[str], option: str = "") -> str:
    """A hidden table of contents, which becomes a part of the side bar; "" for no pages."""
    lines = "\n".join(f"{SHORT[page]} </{page}>" if page in SHORT else f"/{page}" for page in pages)
    return f"\n```{{toctree}}\n:hidden:\n{option}\n{lines}\n```\n" if pages else ""


def two_images(picture: re.Match[str]) -> str:
    """An HTML picture with a dark variant as two images, of which the site's own switch shows one."""
    kinds = (("only-dark", picture["dark"]), ("only-light", picture["light"]))
    return "\n".join(
        f"```{{image}} {path}\n:class: {kind}\n:width: 640px\n:alt: {picture['alt']}\n```" for kind, path in kinds
    )


def inline(text: str) -> str:
    """A paragraph on one line, its code marked as reStructuredText has it."""
    return INLINE.sub(lambda found: f"``{found[1]}``" if found[1] else f"\\{found[2]}", " ".join(text.split()))


def rewrite_docstring(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text: "name: what it is" begins an item, indented lines are shown as they are."""
    rewritten: list[str] = []
    for paragraph in "\n".join(lines).strip().split("\n\n"):
        heading, _, rest = paragraph.partition(":\n")
        if heading in HEADINGS:
            rewritten += [f"**{heading}**", ""]
            for item in re.split(r"\n(?=    \S)", rest):
                name, _, meaning = inline(item.strip()).partition(": ")
                rewritten += [f"{name}", f"    {meaning}", ""] if meaning else [name, ""]
            continue
        if paragraph.startswith("    "):
            rewritten += ["::", "", *paragraph.splitlines(), ""]
            continue
        opening, *items = ITEM.split(inline(paragraph))
        rewritten += [opening, ""]
        for item, meaning in zip(items[::2], items[1::2], strict=True):
            rewritten += [f"``{item}``", f"    {meaning}", ""]
    lines[:] = rewritten


def add_to_page(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Each page names its Markdown form, for readers that are programs. The page of the search gets the first paragraph
    of every page, which it shows where it cannot read the page itself: in a file."""
    if page == "search":
        app.add_js_file(None, body=f"const OPENINGS = {json.dumps(openings(app), sort_keys=True)};")
    if page in PAGES:
        markdown = f"{page.rpartition('/')[2]}.md"
        context["metatags"] += f'<link rel="alternate" type="text/markdown" href="{markdown}">'
        context["body"] += f'<p class="as-markdown"><a href="{markdown}">This page as Markdown</a></p>'


def openings(app: Sphinx) -> dict[str, str]:
    """Page -> its first paragraph."""
    found = {page: app.env.get_doctree(page).next_node(nodes.paragraph) for page in PAGES}
    return {page: " ".join(first.astext().split()) for page, first in found.items() if first is not None}


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
    for name in EXPLORED:
        (site / "pages" / f"{name}.html").unlink(missing_ok=True)
        run_command("explore", "export", name, "--out", str(site / "pages" / f"{name}.html"))
    shutil.copy(ROOT / "docs" / "atlas.html", site / "pages")
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
    app.connect("html-page-context", add_to_page)
    app.connect("build-finished", finish)
