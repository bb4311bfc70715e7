"""Questions: which mistake gives this (symptom), what does this mistake give (predict), and which
input tells two programs apart (experiment).

The answer to each is found by running all that is offered. A question of level n leaves n choices
to a reader who sees only which rows of numbers are wrong, and not what they are: this reader
guesses right once in n times, whatever the kind. Everything follows from the seed."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, zip_longest

from hectogpt.assignment.parts import BY_NAME
from hectogpt.exam.labs import (
    LABS,
    RIGHT,
    VARIANTS,
    WORDS,
    Outcome,
    differ,
    mistakes_of,
    numbers,
    outcome,
    scores,
    shown_inputs,
    targets,
    tells_apart,
    unlike_cells,
    what,
)
from hectogpt.grade.mistakes import symptoms

LEVELS = (1, 2, 3)
KINDS: dict[str, int] = WORDS["kind"]  # kind -> number of choices
LETTERS = "abcdef"


@dataclass(frozen=True)
class Panel:
    """A small table: titles of columns, and rows that begin with a label.

    shade: the numbers are percent, and may be drawn as shades.
    """

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    shade: bool = False


@dataclass(frozen=True)
class Choice:
    """A possible answer.

    name: of the mistake, or of the input.
    words: what is read; with a table in `predict`, unless there are no numbers.
    reason: why it is right or wrong, with numbers that were computed.
    """

    name: str
    words: str
    reason: str
    panel: Panel | None = None


@dataclass(frozen=True)
class Question:
    """A question.

    answer: the place of the right choice.
    mistakes: what it is about.
    effect: what else the mistake does, in training say; "" if that is not known.
    page: where to read more.
    """

    kind: str
    lab: str
    level: int
    about: str
    ask: str
    shown: tuple[Panel, ...]
    choices: tuple[Choice, ...]
    answer: int
    mistakes: tuple[str, ...]
    effect: str
    page: str


@dataclass(frozen=True)
class Draw:
    """The choices that decide a question, together with the mistakes that it is about."""

    dice: random.Random
    lab: str
    variant: int
    kind: str
    level: int

    def outcome(self, name: str) -> Outcome:
        return outcome(self.lab, name, shown_inputs(self.lab), self.variant)


def draw(seed: str, kind: str, level: int, without: Collection[str] = ()) -> Question:
    """Return the question of a seed, on a lab that is not one of `without`."""
    dice = random.Random(f"{seed} {kind} {level}")
    labs = [lab for lab in LABS if lab not in without]
    while True:
        now = Draw(dice, dice.choice(labs), dice.randrange(VARIANTS), kind, level)
        if kind != "experiment":
            if found := of_outcomes(now, dice.choice(list(mistakes_of(now.lab)))):
                return found
        elif pairs := experiments(now.lab, level, now.variant):
            return experiment(now, *dice.choice(pairs))


# --- symptom and predict


@cache
def wrong_rows(lab: str, variant: int, name: str) -> frozenset[int] | None:
    """Return the rows in which a mistake's outcome is wrong: all that a hasty reader sees; None if
    there are no numbers."""
    made, right = (outcome(lab, n, shown_inputs(lab), variant) for n in (name, RIGHT))
    return None if made.fault else frozenset(row for row, _ in unlike_cells(lab, made, right))


def companions(now: Draw, name: str) -> list[str] | None:
    """Return the names to offer with a mistake: level - 1 of them are wrong in the same rows. No
    two outcomes are alike, no two sentences equal, and the numbers of at most one cannot be found
    by hand. None if these dice find none."""
    opaque = LABS[now.lab]["opaque"]
    wanted = wrong_rows(now.lab, now.variant, name)
    left = {True: now.level - 1, False: KINDS[now.kind] - now.level}
    others = [one for one in mistakes_of(now.lab) if one or now.kind == "predict"]
    found = [name]
    for other in now.dice.sample(others, len(others)):
        near = wrong_rows(now.lab, now.variant, other) == wanted
        hidden = other in opaque and any(one in opaque for one in found)
        if left[near] and not hidden and all(is_fair(now, other, one) for one in found):
            left[near] -= 1
            found.append(other)
    return None if any(left.values()) else found[1:]


def is_fair(now: Draw, one: str, two: str) -> bool:
    """True if two mistakes may be choices of one question."""
    unlike = differ(now.lab, one, two, shown_inputs(now.lab), now.variant)
    return unlike and what(now.lab, one) != what(now.lab, two)


def of_outcomes(now: Draw, name: str) -> Question | None:
    """Return a question of the kind `symptom` or `predict`; None if the mistake cannot be asked
    about."""
    lab = LABS[now.lab]
    predicts = now.kind == "predict"
    if not differ(now.lab, name, RIGHT, shown_inputs(now.lab), now.variant):
        return None
    if (predicts and name in lab["opaque"]) or (others := companions(now, name)) is None:
        return None
    offered = now.dice.sample([name, *others], KINDS[now.kind])
    seen = now.outcome(name)
    choices = []
    for one in offered:
        made = now.outcome(one)
        if predicts:
            panel = None if made.fault else panel_of(now.lab, "", made)
            reason = f"That comes from another program: {what(now.lab, one)}"
            reason = "Run, the mistake gives exactly this." if one == name else reason
            choices.append(Choice(one, made.fault, reason, panel))
        else:
            reason = contrast(now.lab, made, seen, ("it gives", "the program gave"))
            choices.append(Choice(one, what(now.lab, one), reason))
    panels = [] if "places" in lab else [panel_of(now.lab, WORDS["right"], now.outcome(RIGHT))]
    panels += [] if predicts else [panel_of(now.lab, WORDS["seen"], seen)]
    return question(now, panels, choices, offered.index(name), (name,))


def contrast(
    lab: str, one: Outcome, two: Outcome, who: tuple[str, str], alone: bool = False
) -> str:
    """Say where two outcomes differ most, or that they do not differ.

    alone: they are those of a single input, not of all that are shown.
    """
    if one.fault != two.fault:
        pairs = zip(who, (one, two), strict=True)
        return "; ".join(f"{name}: {made.fault}" for name, made in pairs if made.fault)
    cells = [] if one.fault else list(unlike_cells(lab, one, two))
    if not cells:
        return "Run, it gives exactly what the program gave."

    def gap(at: tuple[int, int]) -> float:
        a, b = (made.rows[at[0]][at[1]] for made in (one, two))
        return abs(a - b) if abs(a - b) < 1e30 else 1e30

    row, column = max(cells, key=gap)
    spec = LABS[lab]
    rows = spec.get("alone", spec["rows"]) if alone else spec["rows"]
    columns = "" if len(spec["columns"]) == 1 else spec["columns"]
    place = ", ".join(filter(None, (label(rows, row), label(columns, column))))
    a, b = (shown(lab, made.rows[row][column]) for made in (one, two))
    return f"{place}{': ' if place else ''}{who[0]} {a}, {who[1]} {b}"


# --- experiment


def sorted_inputs(lab: str, one: str, two: str, variant: int) -> tuple[list[str], ...]:
    """Return the inputs that tell two programs apart, those on which both are wrong alike, and
    those on which both are right, where nobody expects to tell them apart."""

    def those(first: str, second: str, is_so: bool) -> list[str]:
        inputs = LABS[lab]["inputs"]
        return [x for x in inputs if tells_apart(lab, first, second, x, variant) is is_so]

    same = set(those(one, two, False))
    wrong, right = ([x for x in those(one, RIGHT, so) if x in same] for so in (True, False))
    return those(one, two, True), wrong, right


@cache
def experiments(lab: str, level: int, variant: int) -> list[tuple[str, str]]:
    """Return the pairs of programs that a question can be about: each shows a mistake on some
    input, or the second is right."""
    inputs = LABS[lab]["inputs"]
    count = KINDS["experiment"]
    if len(inputs) < count:
        return []
    visible = [
        name
        for name in mistakes_of(lab)
        if any(tells_apart(lab, name, RIGHT, given, variant) for given in inputs)
    ]
    found = []
    for one, two in combinations([*visible, RIGHT], 2):
        tell, wrong, right = sorted_inputs(lab, one, two, variant)
        enough = tell and len(wrong) >= level - 1 and len(right) >= count - level
        if enough and what(lab, one) != what(lab, two):
            found.append((one, two))
    return found


def experiment(now: Draw, one: str, two: str) -> Question:
    """Return a question about two programs that `experiments` has."""
    count = KINDS["experiment"]
    tell, wrong, right = sorted_inputs(now.lab, one, two, now.variant)
    answer = now.dice.choice(tell)
    others = now.dice.sample(wrong, now.level - 1) + now.dice.sample(right, count - now.level)
    offered = now.dice.sample([answer, *others], count)
    choices = []
    for given in offered:
        a, b = (outcome(now.lab, name, (given,), now.variant) for name in (one, two))
        reason = "Run on it, both programs give the same."
        if given == answer:
            reason = contrast(now.lab, a, b, ("program 1 gives", "program 2 gives"), True)
        choices.append(Choice(given, LABS[now.lab]["inputs"][given]["words"], reason))
    return question(now, [], choices, offered.index(answer), (one, two))


# --- how it is shown


def question(
    now: Draw,
    panels: Sequence[Panel],
    choices: Sequence[Choice],
    answer: int,
    mistakes: tuple[str, ...],
) -> Question:
    spec = LABS[now.lab]
    tried = now.kind == "experiment"
    given = []
    if "given" in spec and not (tried and "hidden" in spec):
        table = scores(now.variant) if "hidden" in spec else numbers(spec, now.variant)
        rows = table.reshape(-1, table.shape[-1]).tolist()
        cells = tuple(("", *(f"{x:.3g}" for x in row)) for row in rows)
        given = [Panel(spec["given"], (), cells)]
    facts = {f"t{n}": tuple(map(int, t.tolist())) for n, t in enumerate(targets(now.variant))}
    rule = spec.get("rules", [""])[now.variant % len(spec.get("rules", [""]))]
    about = (spec["about"] + ("" if tried else spec.get("run", ""))).format(rule=rule, **facts)
    ask = WORDS["ask"][now.kind].format(*(what(now.lab, one) for one in mistakes))
    title = BY_NAME.get(spec["part"], BY_NAME["train"])
    part, _, name = mistakes[0].rpartition(": ")
    effect = "" if tried else symptoms()[part or title.name].get(name, "")
    page = f"docs/traps.md, {title.title}"
    return Question(
        *(now.kind, now.lab, now.level, about, ask, (*given, *panels)),
        *(tuple(choices), answer, mistakes, effect, page),
    )


def label(words: str | list[str], number: int) -> str:
    """Return the name of a row or column, from a list or a pattern."""
    return words.format(number) if isinstance(words, str) else words[number]


def shown(lab: str, x: float) -> str:
    return f"{x:.{LABS[lab]['digits']}f}".replace("nan", "NaN")


def panel_of(lab: str, title: str, made: Outcome) -> Panel:
    """Return an outcome as a table, or its fault in the title of an empty one."""
    if made.fault:
        return Panel(f"{title}: {made.fault}")
    spec = LABS[lab]
    columns = (label(spec["columns"], c) for c in range(len(made.rows[0])))
    rows = (
        (label(spec["rows"], r), *(shown(lab, x) for x in row)) for r, row in enumerate(made.rows)
    )
    return Panel(title, ("", *columns), tuple(rows), "shade" in spec)


def table_lines(panel: Panel) -> list[str]:
    """Return a table as lines of text."""
    rows = [row for row in (panel.columns, *panel.rows) if row]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(w) if c else cell.ljust(w) for c, (cell, w) in enumerate(pairs))
        for pairs in (zip(row, widths, strict=True) for row in rows)
    ]


def side_by_side(panels: Sequence[Panel], width: int) -> list[str]:
    """Return tables as lines of text, next to each other where they fit."""
    groups: list[list[list[str]]] = []
    room = 0
    for panel in panels:
        block = [*textwrap.wrap(panel.title, min(width, 40)), *table_lines(panel)]
        needed = max(map(len, block)) + 4
        if not groups or room + needed > width + 4:
            groups.append([])
            room = 0
        groups[-1].append([line.ljust(needed) for line in block])
        room += needed
    lines: list[str] = []
    for group in groups:
        blank = [" " * len(block[0]) for block in group]
        for parts in zip_longest(*group):
            cells = (part or space for part, space in zip(parts, blank, strict=True))
            lines.append("".join(cells).rstrip())
        lines.append("")
    return lines


def text_of(question: Question, width: int = 100) -> list[str]:
    """Return a question as lines of text, with letters before its choices."""
    lines = [*textwrap.wrap(question.about, width), "", *side_by_side(question.shown, width)]
    lines += [*textwrap.wrap(question.ask, width), ""]
    tables = []
    for letter, choice in zip(LETTERS, question.choices, strict=False):
        first = f"{letter}) {choice.words}"
        if question.kind == "predict":
            tables.append(replace(choice.panel or Panel(""), title=first))
        else:
            lines += textwrap.wrap(first, width, subsequent_indent="   ")
    return lines + side_by_side(tables, width)
