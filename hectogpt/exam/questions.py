"""Questions of three kinds about mistakes, drawn from a seed.

symptom     which mistake gives these numbers?
predict     which numbers does this mistake give?
experiment  which input tells two programs apart?

The answer is found by running all choices. In a question of level n, n choices remain for a reader
who sees which rows of numbers are wrong but not the numbers themselves. Whatever the kind, this
reader's guess is right one time in n.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import combinations

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
    unlike_cells,
    what,
)

KINDS: dict[str, int] = WORDS["kind"]  # kind -> number of choices
LETTERS = "abcdef"
Block = tuple[str, ...]  # the lines of a title and a table


@dataclass(frozen=True)
class Choice:
    """A possible answer.

    name: the name of the mistake or the input.
    words: the text to show. In `predict` it is a table or, if there are no numbers, a fault.
    reason: why it is right or wrong, with computed numbers.
    """

    name: str
    words: Block
    reason: str


@dataclass(frozen=True)
class Question:
    """A question.

    kind: a key of KINDS.
    lab: the name of its lab.
    level: the number of choices that remain for a reader who sees only which rows are wrong.
    about: the description of the model and its input.
    ask: the question itself.
    shown: tables to show before the question.
    choices: the possible answers.
    answer: the 0-based number of the right choice.
    mistakes: the names of the mistakes that the question is about.
    page: where to read more.
    """

    kind: str
    lab: str
    level: int
    about: str
    ask: str
    shown: tuple[Block, ...]
    choices: list[Choice]
    answer: int
    mistakes: tuple[str, ...]
    page: str


@dataclass(frozen=True)
class Draw:
    """Everything that determines a question, except the mistakes that it is about."""

    dice: random.Random
    lab: str
    variant: int
    kind: str
    level: int


def draw(seed: str, kind: str, level: int, without: Collection[str] = ()) -> Question:
    """Draw the question that belongs to a seed, from a lab that is not in `without`."""
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
    """Return the rows in which a mistake's outcome is wrong. A hasty reader sees nothing else.

    Returns None if there are no numbers.
    """
    made, right = (outcome(lab, n, shown_inputs(lab), variant) for n in (name, RIGHT))
    return None if made.fault else frozenset(row for row, _ in unlike_cells(lab, made, right))


def companions(now: Draw, name: str) -> list[str] | None:
    """Return the names to offer with a mistake; `level` - 1 of them are wrong in the same rows.

    All outcomes and sentences differ. At most one choice has numbers that cannot be worked out by
    hand. Returns None if this draw finds no such names.
    """
    opaque = LABS[now.lab]["opaque"]
    wanted = wrong_rows(now.lab, now.variant, name)
    left = {True: now.level - 1, False: KINDS[now.kind] - now.level}
    others = [one for one in mistakes_of(now.lab) if one or now.kind == "predict"]
    found = [name]
    for other in now.dice.sample(others, len(others)):
        near = wrong_rows(now.lab, now.variant, other) == wanted
        hidden = other in opaque and any(one in opaque for one in found)
        fair = not hidden and all(
            differ(now.lab, one, other, shown_inputs(now.lab), now.variant)
            and what(now.lab, one) != what(now.lab, other)
            for one in found
        )
        if left[near] and fair:
            left[near] -= 1
            found.append(other)
    return None if any(left.values()) else found[1:]


def of_outcomes(now: Draw, name: str) -> Question | None:
    """Return a `symptom` or `predict` question about a mistake, or None if this draw has none."""
    lab = now.lab
    predicts = now.kind == "predict"
    if not differ(lab, name, RIGHT, shown_inputs(lab), now.variant):
        return None
    if predicts and name in LABS[lab]["opaque"]:
        return None
    if (others := companions(now, name)) is None:
        return None
    offered = now.dice.sample([name, *others], KINDS[now.kind])
    made = {n: outcome(lab, n, shown_inputs(lab), now.variant) for n in (*offered, RIGHT)}
    choices = []
    for one in offered:
        if predicts:
            reason = f"That comes from a different program: {what(lab, one)}"
            reason = "The mistake gives exactly this when it is run." if one == name else reason
            choices.append(Choice(one, block_of(lab, "", made[one]), reason))
        else:
            reason = contrast(lab, made[one], made[name], "the mistake", "the program")
            choices.append(Choice(one, (what(lab, one),), reason))
    tables = [] if "places" in LABS[lab] else [block_of(lab, WORDS["right"], made[RIGHT])]
    tables += [] if predicts else [block_of(lab, WORDS["seen"], made[name])]
    return question(now, tables, choices, offered.index(name), (name,))


def contrast(lab: str, one: Outcome, two: Outcome, first: str, second: str) -> str:
    """Describe where two outcomes differ first, or say that they do not differ."""
    if one.fault != two.fault:
        faults = (made.fault or "the right shape" for made in (one, two))
        return f"{first}: {next(faults)}; {second}: {next(faults)}"
    cells = [] if one.fault else list(unlike_cells(lab, one, two))
    if not cells:
        return "It gives exactly the program's numbers when it is run."
    row, column = cells[0]
    a, b = (shown(lab, made.rows[row][column]) for made in (one, two))
    return f"in row {row + 1}, column {column + 1}, {first} gives {a}, and {second} {b}"


# --- experiment


def sorted_inputs(lab: str, one: str, two: str, variant: int) -> tuple[list[str], ...]:
    """Return three lists of inputs for two programs.

    Inputs in the first list tell the programs apart. On those in the second, both programs are
    wrong in the same way. On those in the third, both are right, so nobody expects a difference.
    """
    found: tuple[list[str], ...] = [], [], []
    for given in LABS[lab]["inputs"]:
        apart, *wrong = (
            differ(lab, *pair, (given,), variant)
            for pair in ((one, two), (one, RIGHT), (two, RIGHT))
        )
        found[0 if apart else 1 if any(wrong) else 2].append(given)
    return found


@cache
def experiments(lab: str, level: int, variant: int) -> list[tuple[str, str]]:
    """Return the pairs of programs that a question can be about.

    Each program shows its mistake on some input, except that the second may be the right program.
    """
    inputs = LABS[lab]["inputs"]
    count = KINDS["experiment"]
    if len(inputs) < count:
        return []
    visible = [
        name
        for name in mistakes_of(lab)
        if any(differ(lab, name, RIGHT, (given,), variant) for given in inputs)
    ]
    found = []
    for one, two in combinations([*visible, RIGHT], 2):
        tell, wrong, right = sorted_inputs(lab, one, two, variant)
        enough = tell and len(wrong) >= level - 1 and len(right) >= count - level
        if enough and what(lab, one) != what(lab, two):
            found.append((one, two))
    return found


def experiment(now: Draw, one: str, two: str) -> Question:
    """Return a question about a pair of programs from `experiments`."""
    count = KINDS["experiment"]
    tell, wrong, right = sorted_inputs(now.lab, one, two, now.variant)
    answer = now.dice.choice(tell)
    others = now.dice.sample(wrong, now.level - 1) + now.dice.sample(right, count - now.level)
    offered = now.dice.sample([answer, *others], count)
    choices = []
    for given in offered:
        a, b = (outcome(now.lab, name, (given,), now.variant) for name in (one, two))
        reason = "Both programs give the same numbers on it."
        if given == answer:
            reason = contrast(now.lab, a, b, "program 1", "program 2")
        choices.append(Choice(given, (LABS[now.lab]["inputs"][given]["words"],), reason))
    return question(now, [], choices, offered.index(answer), (one, two))


# --- display


def question(
    now: Draw,
    tables: list[Block],
    choices: list[Choice],
    answer: int,
    mistakes: tuple[str, ...],
) -> Question:
    spec = LABS[now.lab]
    tried = now.kind == "experiment"
    given = []
    if "given" in spec:
        numbers_of = scores(now.variant) if now.lab == "map" else numbers(spec, now.variant)
        rows = numbers_of.reshape(-1, numbers_of.shape[-1]).tolist()
        given = [aligned(spec["given"], [[f"{x:.3g}" for x in row] for row in rows])]
    facts = {f"t{n}": tuple(map(int, t.tolist())) for n, t in enumerate(targets(now.variant))}
    rule = spec.get("rules", "  ")[now.variant % 2]
    about = (spec["about"] + ("" if tried else spec.get("run", ""))).format(rule=rule, **facts)
    ask = WORDS["ask"][now.kind].format(*(what(now.lab, one) for one in mistakes))
    title = BY_NAME.get(spec["part"], BY_NAME["train"]).title
    page = f"docs/traps.md, {title}"
    shown_tables = (*given, *tables)
    return Question(
        now.kind, now.lab, now.level, about, ask, shown_tables, choices, answer, mistakes, page
    )


def shown(lab: str, x: float) -> str:
    return f"{x:.{LABS[lab]['digits']}f}".replace("nan", "NaN")


def block_of(lab: str, title: str, made: Outcome) -> Block:
    """Return an outcome as a table, or its fault."""
    if made.fault:
        return (f"{title} {made.fault}".strip(),)
    spec = LABS[lab]
    rows = zip(spec["rows"], made.rows, strict=True)
    table = [[name, *(shown(lab, x) for x in row)] for name, row in rows]
    return aligned(title, [["", *spec["columns"]], *table])


def aligned(title: str, rows: list[list[str]]) -> Block:
    """Format a title and a table as lines of text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return (
        *textwrap.wrap(title, 40),
        *(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ),
    )


def side_by_side(blocks: Iterable[Block], width: int) -> list[str]:
    """Format tables as lines of text, next to each other if they fit."""
    groups: list[list[list[str]]] = []
    room = width
    for block in blocks:
        needed = max(map(len, block)) + 4
        if room + needed > width + 4:
            groups.append([])
            room = 0
        groups[-1].append([line.ljust(needed) for line in block])
        room += needed
    lines: list[str] = []
    for group in groups:
        height = max(map(len, group))
        filled = [block + [" " * len(block[0])] * (height - len(block)) for block in group]
        lines += ["".join(parts).rstrip() for parts in zip(*filled, strict=True)]
        lines.append("")
    return lines


def text_of(question: Question, width: int = 100) -> list[str]:
    """Format a question as lines of text, with a letter before each choice."""
    lines = [*textwrap.wrap(question.about, width), "", *side_by_side(question.shown, width)]
    lines += [*textwrap.wrap(question.ask, width), ""]
    tables = []
    for letter, choice in zip(LETTERS, question.choices, strict=False):
        if question.kind == "predict":
            tables.append((f"{letter})", *choice.words))
        else:
            words = f"{letter}) {choice.words[0]}"
            lines += textwrap.wrap(words, width, subsequent_indent="   ")
    return lines + side_by_side(tables, width)
