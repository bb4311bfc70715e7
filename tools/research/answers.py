"""The written answers as one PDF: python -m tools.research.answers (make answers).

It draws the figures, checks every quoted number, makes one HTML page of the Markdown texts with MathML and embedded
figures, and prints it with a headless Chromium. Every question of the assignment starts a new page and has an entry in
the PDF's outline. Nothing is fetched. A text whose numbers disagree with the code is refused, so an out-of-date PDF
cannot be built.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from hectogpt.errors import STORAGE, UserError
from tools import ROOT
from tools.research.quotes import check_quotes, read_reference_run, read_trained

FOLDER = ROOT / "answers"
TRAINED = ROOT / "results" / "positions.jsonl"
REFERENCE_RUN = ROOT / "results" / "reference_run.jsonl"
ORDER = ("attention.md", "positions.md", "baseline.md", "learning.md")
GENERATED = ("learning.md",)  # by `python -m tools.report`, from the records: its numbers have no names
IMAGES = {"svg": "svg+xml", "png": "png"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

STYLE = """
@page { size: A4; margin: 18mm 17mm 20mm;
  @bottom-center { content: counter(page); font: 9pt sans-serif; color: #555; } }
body { font: 10.5pt/1.42 "Liberation Serif", "Times New Roman", serif; color: #111; }
math { font-family: "STIX Two Math", "Latin Modern Math", "DejaVu Math TeX Gyre", math; font-size: 95%; }
h1, h2, h3 { font-family: "Liberation Sans", Arial, sans-serif; break-after: avoid; line-height: 1.2; }
h1 { font-size: 21pt; margin: 0 0 10pt; }
h2 { font-size: 14.5pt; margin: 18pt 0 5pt; }
h3 { font-size: 12pt; margin: 12pt 0 4pt; }
article + article, h2.question { break-before: page; } h2.question:first-of-type { break-before: auto; }
p { margin: 6pt 0; orphans: 3; widows: 3; } li { margin: 3pt 0; }
p:has(+ ul) { break-after: avoid; }
p:has(> img) { break-inside: avoid; break-before: avoid; text-align: center; }
p:has(> img) + p:has(> img) { break-before: auto; }
section { break-inside: avoid; }
img { width: 88%; margin: 2pt 0; }
section img { width: 86%; }
table { border-collapse: collapse; margin: 8pt auto; font-size: 9pt; line-height: 1.25; break-inside: avoid; }
th, td { padding: 2.5pt 6pt; text-align: right; border-bottom: 0.5pt solid #bbb; vertical-align: bottom; }
th { border-bottom: 1pt solid #333; font-weight: bold; } th:first-child, td:first-child { text-align: left; }
a { color: #0b4f8a; text-decoration: none; } code { font: 9pt "Liberation Mono", monospace; }
div.math { margin: 7pt 0; text-align: center; break-inside: avoid; }
.number { white-space: nowrap; }
"""


def make_page(paths: list[Path]) -> str:
    """One HTML document of the texts: formulas as MathML, figures as data, nothing left to fetch."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    dollarmath_plugin(parser, renderer=lambda latex, options: formula(latex, options["display_mode"]))
    articles = []
    for path in paths:
        body = _keep_sections(_keep_numbers(parser.render(path.read_text(encoding="utf-8"))))
        body = re.sub(r"<h2>(?=\d\()", '<h2 class="question">', body)
        for image, kind in set(re.findall(r'src="([^":]+\.(svg|png))"', body)):
            data = base64.b64encode((path.parent / image).read_bytes()).decode()
            body = body.replace(f'src="{image}"', f'src="data:image/{IMAGES[kind]};base64,{data}"')
        body = re.sub(r'href="(?!https?:)[^"]*"', "", body)  # paths of the repository lead nowhere from a PDF
        articles.append(f"<article>{body}</article>")
    head = f'<meta charset="utf-8"><title>Answers</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(articles)}</body></html>'


# "p 4e-08", "-0.02", "2.8 × 10⁻⁶", "7 %", "[+0.24, +0.29]", "(0.1 to 0.2)", "4.13 ± 0.02": browsers break
# lines inside of them.
_FIGURE = r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?: × 10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?(?: %)?"
_UNBREAKABLE = re.compile(rf"(?:\bp )?{_FIGURE}(?: ± {_FIGURE})?|\[{_FIGURE}, {_FIGURE}\]|\({_FIGURE} to {_FIGURE}\)")
_ATOMS = re.compile(r"(<math.*?</math>|<code.*?</code>|<[^>]*>)", re.DOTALL)


def _keep_numbers(html: str) -> str:
    """Prevent line breaks inside numbers and intervals, and remove comments."""

    def mark(match: re.Match[str]) -> str:
        return match[0] if match[0].isdigit() else f'<span class="number">{match[0]}</span>'

    html = re.sub(r"<!--.*?-->", "", html, flags=re.DOTALL)  # names of numbers may be inside intervals
    pieces = _ATOMS.split(html)  # every second one is a tag, a formula or code
    return "".join(piece if i % 2 else _UNBREAKABLE.sub(mark, piece) for i, piece in enumerate(pieces))


def _keep_sections(html: str) -> str:
    """Keep a short section with a picture, such as that of a rung, on one page."""
    pieces = re.split(r"(?=<h[123]>)", html)
    short = [p.startswith("<h3>") and p.count("<img") == 1 and len(re.sub("<[^>]*>", "", p)) < 2000 for p in pieces]
    return "".join(f"<section>{p}</section>" if keep else p for p, keep in zip(pieces, short, strict=True))


def formula(latex: str, display: bool) -> str:
    """A formula as MathML. Chromium needs three hints: bars do not stretch, names of functions have space around
    them, a bold 1 is a letter."""
    mathml: str = convert(latex.strip(), display="block" if display else "inline")
    mathml = re.sub(r"<mo>(&#x02016;|&#x0007C;)</mo>", r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>', mathml)
    mathml = re.sub(
        r"<mi>(ln|sin|cos|tanh)</mi>(?!<mo[^>]*>(?:\(|&#x00028;))",
        r'<mo form="infix" lspace="0.17em" rspace="0.17em">\1</mo>',
        mathml,
    )
    return mathml.replace('<mn mathvariant="bold">1</mn>', "<mn>&#x1D7CF;</mn>")


def find_browser() -> str | None:
    """The path of the Chromium that prints; None if there is none on the PATH."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def print_pdf(html: str, target: Path) -> None:
    """Print a page with headless Chromium. Raises UserError (STORAGE)."""
    browser = find_browser()
    if browser is None:
        raise UserError(
            f"{target} not made: no Chromium found",
            why=f"looked for {', '.join(BROWSERS)} on the PATH",
            fix="install Chromium (Debian: apt-get install chromium)",
            kept="figures are drawn and the numbers checked",
            code=STORAGE,
        )
    with tempfile.TemporaryDirectory() as folder:
        source, printed = Path(folder) / "answers.html", Path(folder) / "answers.pdf"
        source.write_text(html, encoding="utf-8")
        flags = ["--headless", "--disable-gpu", "--no-pdf-header-footer", "--generate-pdf-document-outline"]
        flags += [f"--user-data-dir={folder}/profile"]
        if os.geteuid() == 0:  # Chromium's sandbox does not run as root
            flags.append("--no-sandbox")
        command = [browser, *flags, f"--print-to-pdf={printed}", source.as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            why = done.stderr[-400:]
        except subprocess.TimeoutExpired:
            why = "it ran for more than two minutes"
        if not printed.exists():
            raise UserError(f"{target} not made: {browser} failed", why=why, fix="run it by hand", code=STORAGE)
        shutil.copy(printed, target)


def read_numbers() -> dict[str, float]:
    """Every number that the answers may quote: computed, or from the records of training runs."""
    from tools.research.numbers import numbers

    return numbers() | read_trained(TRAINED) | read_reference_run(REFERENCE_RUN)


def main() -> int:
    """Make the PDF. Returns the exit code."""
    from tools.research.answer_figures import draw

    try:
        for figure in draw(FOLDER / "figures"):
            print(figure)
        check_quotes([FOLDER / name for name in ORDER if name not in GENERATED], read_numbers())
        print_pdf(make_page([FOLDER / name for name in ORDER]), FOLDER / "answers.pdf")
        print(FOLDER / "answers.pdf")
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
