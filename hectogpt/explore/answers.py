"""`python -m hectogpt.explore.answers`: draw the figures, check every quoted number, print one PDF.

Markdown becomes one HTML page with MathML and embedded figures, which a headless Chromium prints. Nothing is fetched.
A text whose numbers disagree with the code is refused, so an out-of-date PDF cannot be built.
"""

import argparse
import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from hectogpt.errors import STORAGE, USAGE, UserError

FOLDER = Path(__file__).parents[2] / "answers"
ORDER = ("attention.md", "positions.md", "learning.md")
IMAGES = {"svg": "svg+xml", "png": "png"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

# A number, optionally "× 10⁻⁵" or " %", then comments that name it: `n:` equal to the digits shown, `n<` at most.
NUMBER = r"(?P<number>-?(?:\d[\d,]*(?:\.\d+)?(?: × 10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?|10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))(?P<percent> %)?"
NAME = re.compile(r"<!-- n([:<])([\w.]+) -->")
QUOTE = re.compile(rf"{NUMBER}(?P<names>(?:{NAME.pattern})+)")
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


class Quote(NamedTuple):
    """A number as a text shows it: its value, half a unit of its last digit, and the name of what it quotes."""

    shown: str
    value: float
    tolerance: float
    relation: str
    name: str

    def agrees(self, numbers: Mapping[str, float]) -> bool:
        """True when the computed number rounds to the digits shown, or is at most it for a bound."""
        if self.name not in numbers:
            return False
        if self.relation == "<":
            return numbers[self.name] <= self.value
        return abs(numbers[self.name] - self.value) <= self.tolerance * (1 + 1e-9)


def quotes(text: str) -> Iterator[Quote]:
    """Every number of a text that carries a name."""
    for match in QUOTE.finditer(text):
        shown = match["number"].replace(",", "").translate(SUPERSCRIPTS)
        if " × 10" in shown:
            digits, exponent = shown.split(" × 10")
        else:
            digits, exponent = ("1", shown[2:]) if match["number"][-1] in "⁰¹²³⁴⁵⁶⁷⁸⁹" else (shown, "0")
        scale = 10.0 ** int(exponent) * (0.01 if match["percent"] else 1)
        decimals = len(digits.partition(".")[2])
        for relation, name in NAME.findall(match["names"]):
            yield Quote(match[0], float(digits) * scale, 0.5 * 10.0**-decimals * scale, relation, name)


def unnamed(text: str) -> list[str]:
    """Decimals, percentages and powers of ten that carry no name and are not among the text's given values.

    Given values are inputs, listed in a comment `<!-- given: 0.99 10⁻² -->`. Code, links and images are skipped.
    """
    given = set(" ".join(re.findall(r"<!-- given: (.*?) -->", text)).split())
    rest = QUOTE.sub(" ", re.sub(r"<!-- given:.*?-->", " ", text))
    rest = re.sub(r"```.*?```|`[^`\n]*`|!?\[[^\]]*\]\([^)]*\)", " ", rest, flags=re.DOTALL)
    found = re.findall(r"\d+\.\d+|\d+ ?%|10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+|\d+e-?\d+|10\^\{[-\d]+\}", rest)
    return [number for number in found if number.replace(" ", "") not in given]


def check(paths: list[Path], numbers: Mapping[str, float]) -> None:
    """Raise UserError naming every number that the code does not give."""
    wrong = []
    for path in paths:
        text = path.read_text()
        for quote in quotes(text):
            if not quote.agrees(numbers):
                wrong.append(f"{path.name}: {quote.shown} is {numbers.get(quote.name, 'unknown')}")
        wrong += [f"{path.name}: {number} has no name" for number in unnamed(text)]
    if wrong:
        raise UserError(
            f"{len(wrong)} numbers of the answers disagree with the code",
            why="; ".join(wrong[:20]),
            fix="correct the text, or the code",
            code=USAGE,
        )


STYLE = """
@page { size: A4; margin: 18mm 17mm 20mm;
  @bottom-center { content: counter(page); font: 9pt sans-serif; color: #555; } }
body { font: 10.5pt/1.42 "Liberation Serif", "Times New Roman", serif; color: #111; }
math { font-family: "STIX Two Math", "Latin Modern Math", "DejaVu Math TeX Gyre", math; font-size: 95%; }
h1, h2, h3 { font-family: "Liberation Sans", Arial, sans-serif; break-after: avoid; line-height: 1.2; }
h1 { font-size: 21pt; margin: 0 0 10pt; }
h2 { font-size: 14.5pt; margin: 18pt 0 5pt; }
h3 { font-size: 12pt; margin: 12pt 0 4pt; }
article + article { break-before: page; }
p { margin: 6pt 0; orphans: 3; widows: 3; } li { margin: 3pt 0; }
img { width: 100%; break-inside: avoid; margin: 4pt 0; }
table { border-collapse: collapse; margin: 8pt auto; font-size: 9pt; line-height: 1.25; break-inside: avoid; }
th, td { padding: 2.5pt 6pt; text-align: right; border-bottom: 0.5pt solid #bbb; vertical-align: bottom; }
th { border-bottom: 1pt solid #333; font-weight: bold; } th:first-child, td:first-child { text-align: left; }
a { color: #0b4f8a; text-decoration: none; } code { font: 9pt "Liberation Mono", monospace; }
div.math { margin: 7pt 0; text-align: center; break-inside: avoid; }
"""


def page(paths: list[Path]) -> str:
    """One HTML document of the texts: formulas as MathML, figures as data, nothing left to fetch."""
    try:
        from latex2mathml.converter import convert
        from markdown_it import MarkdownIt
        from mdit_py_plugins.dollarmath import dollarmath_plugin
    except ImportError as error:
        raise UserError(
            f"the PDF needs {error.name}",
            why="it belongs to the extra `explore`",
            fix="pip install 'hectogpt[explore]'",
            code=USAGE,
        ) from None

    def formula(latex: str, options: dict[str, bool]) -> str:
        return _mended(convert(latex.strip(), display="block" if options["display_mode"] else "inline"))

    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    dollarmath_plugin(parser, renderer=formula)
    articles = []
    for path in paths:
        body = parser.render(path.read_text())
        for image, kind in set(re.findall(r'src="([^":]+\.(svg|png))"', body)):
            data = base64.b64encode((path.parent / image).read_bytes()).decode()
            body = body.replace(f'src="{image}"', f'src="data:image/{IMAGES[kind]};base64,{data}"')
        body = re.sub(r'href="(?!https?:)[^"]*"', "", body)  # paths of the repository lead nowhere from a PDF
        articles.append(f"<article>{body}</article>")
    head = f'<meta charset="utf-8"><title>Answers</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(articles)}</body></html>'


def _mended(mathml: str) -> str:
    """Three things Chromium needs said: bars do not stretch, names of functions have space, a bold 1 is a character."""
    mathml = re.sub(r"<mo>(&#x02016;|&#x0007C;)</mo>", r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>', mathml)
    mathml = re.sub(
        r"<mi>(ln|sin|cos|tanh)</mi>(?!<mo[^>]*>(?:\(|&#x00028;))",
        r'<mo form="infix" lspace="0.17em" rspace="0.17em">\1</mo>',
        mathml,
    )
    return mathml.replace('<mn mathvariant="bold">1</mn>', "<mn>&#x1D7CF;</mn>")


def print_pdf(html: str, target: Path) -> None:
    """Print a page with headless Chromium; equal pages give equal files."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
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
        source.write_text(html)
        flags = ["--headless", "--disable-gpu", "--no-pdf-header-footer", f"--user-data-dir={folder}/profile"]
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
        target.write_bytes(_settled(printed.read_bytes()))


def _settled(pdf: bytes) -> bytes:
    """Blank the dates and renumber the tags, which start anywhere; lengths stay, so offsets stay true."""
    pdf = re.sub(rb"(/(?:CreationDate|ModDate) \(D:)\d{14}", rb"\g<1>20000101000000", pdf)
    tag = re.compile(rb"node\d{8}")
    names = {old: b"node%08d" % i for i, old in enumerate(sorted(set(tag.findall(pdf))))}
    return tag.sub(lambda match: names[match[0]], pdf)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hectogpt.explore.answers", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the Markdown texts are")
    parser.add_argument("--no-pdf", action="store_true", help="only draw the figures and check the numbers")
    options = parser.parse_args(arguments)
    from hectogpt.explore.figures import draw
    from hectogpt.explore.numbers import numbers

    try:
        paths = [options.folder / name for name in ORDER if (options.folder / name).exists()]
        if not paths:
            raise UserError(f"{options.folder}: no answers", why=f"expected {', '.join(ORDER)}", fix="--folder PATH")
        for figure in draw(options.folder / "figures"):
            print(figure)
        check([path for path in paths if path.name != "learning.md"], numbers())
        if not options.no_pdf:
            print_pdf(page(paths), options.folder / "answers.pdf")
            print(options.folder / "answers.pdf")
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
