"""Mistakes in the kit's own files, whose mask is added, as somebody made them who had not read the known ones."""

from __future__ import annotations

import re

import pytest
from grade_solutions import KIT, judged
from helpers import ROOT

from hectogpt.assignment.parts import PARTS
from hectogpt.assignment.regions import with_stubs

MASKED, CROP = "score + self.causal_mask[:, :, :t, :t]", "self(x[:, -self.config.context_length:])[:, -1]"
POSITIONS, HEAD = (
    " + self.position_embeddings(torch.arange(seq, device=x.device))",
    "self.lm_head(self.final_layer_norm(h))",
)
CUT = ".view(b, t, self.n_heads, self.d_attention).transpose(1, 2)"
LOSS = "logits = self({})\nreturn F.cross_entropy({}, {})"

# part, what is written instead of the right lines (or old and new text of them), the name that is to be found
CASES: tuple[tuple[str, str | tuple[str, str], str], ...] = (
    ("gelu", "return F.gelu(x)", "erf GELU"),
    ("gelu", "return x * torch.sigmoid(1.702 * x)", "sigmoid GELU"),
    ("gelu", ("(x + 0.044715 * x**3)", "x + 0.044715 * x**3"), "bracket misplaced in GELU"),
    ("mlp", "return self.fc2(self.fc1(x))", "no GELU"),
    ("mlp", "return self.gelu(self.fc2(self.fc1(x)))", "GELU after fc2 only"),
    ("attention", (MASKED, "score.masked_fill(self.causal_mask[:, :, :t, :t] == 0, -math.inf)"), "mask inverted"),
    ("attention", (MASKED, "score * self.causal_mask[:, :, :t, :t]"), "additive mask multiplied"),
    ("attention", (MASKED, "score + self.causal_mask"), "mask not sliced"),
    ("attention", (MASKED, "score - self.causal_mask[:, :, :t, :t]"), "mask of plus infinity"),
    ("attention", (MASKED, "score"), "no causal mask"),
    (
        "attention",
        (f"({MASKED}, dim=-1)", "(score, dim=-1) + self.causal_mask[:, :, :t, :t]"),
        "minus infinity after softmax",
    ),
    (
        "attention",
        (f"({MASKED}, dim=-1)", "(score, dim=-1) * (self.causal_mask[:, :, :t, :t] == 0)"),
        "mask after softmax",
    ),
    ("attention", ("dim=-1", "dim=1"), "softmax over heads"),
    ("attention", ("math.sqrt(self.d_attention)", "math.sqrt(d)"), "scale by d_model"),
    ("attention", ("math.sqrt(self.d_attention)", "self.d_attention"), "scale twice"),
    ("attention", (".transpose(1, 2).reshape(b, t, d)", ".reshape(b, t, d)"), "heads joined without transposing"),
    ("attention", (CUT, ".view(b, self.n_heads, t, self.d_attention)"), "heads cut by view without transposing"),
    ("attention", ("self.W_o(", "("), "no output projection"),
    ("attention", ("pattern @ v", "pattern @ k"), "W_k for values too"),
    (
        "block",
        "return x + self.mlp(self.post_layer_norm(x + self.attention(self.pre_layer_norm(x))))",
        "second residual from the block's input",
    ),
    (
        "block",
        "a = self.attention(self.pre_layer_norm(x))\nreturn x + a + self.mlp(self.post_layer_norm(a))",
        "MLP reads attention alone",
    ),
    ("block", ("self.post_layer_norm(x)", "x"), "MLP not normalised"),
    ("forward", (HEAD, "self.lm_head(h)"), "no final norm"),
    ("forward", (HEAD, f"torch.softmax({HEAD}, -1)"), "softmax returned"),
    ("forward", (POSITIONS, ""), "no position embeddings"),
    ("forward", ("arange(seq", "arange(x.shape[0]"), "position embeddings of another shape"),
    ("generate", (CROP, CROP.removesuffix("[:, -1]")), "the new token lacks an axis"),
    ("generate", (", keepdim=True", ""), "the new token lacks an axis"),
    (
        "loss",
        LOSS.format("input_ids", "logits[:, 1:].flatten(0, 1)", "input_ids[:, :-1].flatten()"),
        "shift the wrong way",
    ),
    (
        "loss",
        LOSS.format("input_ids[:, :-1]", "logits.flatten(0, 1)", "input_ids[:, :-1].flatten()"),
        "no shift, last position left out",
    ),
    (
        "loss",
        LOSS.format("input_ids[:, 1:]", "logits.flatten(0, 1)", "input_ids[:, 1:].flatten()"),
        "no shift, first token left out",
    ),
    (
        "loss",
        LOSS.format("input_ids[:, :-1]", "logits.softmax(-1).flatten(0, 1)", "input_ids[:, 1:].flatten()"),
        "softmax before cross entropy",
    ),
    ("loss", LOSS.format("input_ids[:, :-1]", "logits", "input_ids[:, 1:]"), "cross entropy over the wrong axis"),
)


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
def test_a_mistake_in_the_kit_is_named(part: str, change: str | tuple[str, str], name: str) -> None:
    body = change if isinstance(change, str) else KIT[part].replace(*change)
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
