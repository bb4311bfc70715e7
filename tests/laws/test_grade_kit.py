"""Mistakes in the kit's own files, whose mask is added, as somebody made them who had not read the known ones."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import re

import pytest
from grade_solutions import KIT, judged
from helpers import ROOT

from hectogpt.assignment.parts import PARTS
from hectogpt.assignment.regions import with_stubs

MASKED, CROP = "score + self.causal_mask[:, :, :t, :t]", "self(x[:, -self.config.context_length:])[:, -1]"

# part, what is written instead of the right lines (or old and new text of them), the name that is to be found
CASES: tuple[tuple[str, tuple[str, str], str], ...] = (
    ("attention", (MASKED, "score.masked_fill(self.causal_mask[:, :, :t, :t] == 0, -math.inf)"), "mask inverted"),
    ("attention", (MASKED, "score * self.causal_mask[:, :, :t, :t]"), "additive mask multiplied"),
    ("attention", (MASKED, "score + self.causal_mask"), "mask not sliced"),
    ("attention", (MASKED, "score - self.causal_mask[:, :, :t, :t]"), "mask of plus infinity"),
    ("attention", (f"({MASKED}, dim=-1)", "(score, dim=-1) + self.causal_mask[:, :, :t, :t]"), "minus infinity after softmax"),
    ("attention", (f"({MASKED}, dim=-1)", "(score, dim=-1) * (self.causal_mask[:, :, :t, :t] == 0)"), "mask after softmax"),
    ("generate", (CROP, CROP.removesuffix("[:, -1]")), "the new token lacks an axis"),
    ("generate", (", keepdim=True", ""), "the new token lacks an axis"),
    ("forward", ("arange(seq", "arange(x.shape[0]"), "positions from the batch axis"),
)  # fmt: skip


def filled(**changes: str) -> str:
    """The kit's model_solution.py with all parts written, some of them in another way."""
    names = [part.name for part in PARTS]
    source = with_stubs((ROOT / "reference" / "model_solution.py").read_text(encoding="utf-8"), names)
    for part, body in {**KIT, **changes}.items():
        found = re.search(rf'( *)raise NotImplementedError\("exercise {part}: .*\n', source)
        assert found is not None
        lines = "".join(f"{found[1]}{line}\n" for line in body.strip("\n").splitlines())
        source = source[: found.start()] + lines + source[found.end() :]
    return source


@pytest.mark.parametrize(
    ("part", "change", "name"),
    [pytest.param(*case, marks=[pytest.mark.thorough] if n % 6 else []) for n, case in enumerate(CASES)],
    ids=[f"{part}: {name} {n}" for n, (part, _, name) in enumerate(CASES)],
)
def test_a_mistake_in_the_kit_is_named(part: str, change: tuple[str, str], name: str) -> None:
    body = KIT[part].replace(*change)
    assert body != KIT[part]
    result = judged(filled(**{part: body}), part)[part]
    assert result.outcome == "failed"
    assert result.diagnosis is not None
    assert name in (result.diagnosis.id, *result.diagnosis.equivalent)
    told = " ".join([result.diagnosis.what, *result.diagnosis.alternatives])
    assert len(told.split()) >= 5


def test_a_kit_that_is_filled_in_rightly_passes() -> None:
    results = judged(filled(), "gelu", "mlp", "attention", "block", "forward", "generate", "loss")
    assert {result.outcome for result in results.values()} == {"passed"}
    assert [note for result in results.values() for note in result.notes] == []
