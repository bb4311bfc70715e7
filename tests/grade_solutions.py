"""A right solution of the assignment as a student writes it, ways to edit it, and judging one in this process."""

# ruff: noqa: E501  # sources
from __future__ import annotations

import ast
import json
import linecache
import re
import sys
import textwrap
from types import ModuleType

from helpers import ROOT

from hectogpt.grade import laws
from hectogpt.grade.answer import Raised, Transcript
from hectogpt.grade.child import answer_of_error, replies
from hectogpt.grade.judge_part import judge_part
from hectogpt.grade.result import PartResult


def edited(source: str, *edits: tuple[str, str]) -> str:
    """The source with each (old, new) replaced; the old text has to be there exactly once."""
    for old, new in edits:
        assert source.count(old) == 1, (source.count(old), old)
        source = source.replace(old, new)
    return source


def body(source: str, method: str, new: str) -> str:
    """The source with another body of a method, given as "Class.name". The new one is indented by four blanks."""
    scope: list[ast.stmt] = ast.parse(source).body
    for name in method.split("."):
        (found,) = (n for n in scope if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)
        scope = found.body
    lines = source.splitlines(keepends=True)
    before, after = lines[: scope[0].lineno - 1], "".join(lines[found.end_lineno :]).lstrip("\n")
    return "".join(before) + textwrap.indent(new.strip("\n"), "    ") + "\n\n" + after


TEXTBOOK, TRAIN = (
    (ROOT / "reference" / name).read_text(encoding="utf-8") for name in ("model_solution.py", "train.py")
)
STUDENT = {
    "MLP.forward": """
    h = self.fc1(x)
    h = self.gelu(h)
    out = self.fc2(h)
    return out
""",
    "CausalAttention.forward": """
    B, T, C = x.shape
    H = C // self.d_attention
    q = self.W_q(x)
    k = self.W_k(x)
    v = self.W_v(x)
    q = q.view(B, T, H, self.d_attention).transpose(1, 2)
    k = k.view(B, T, H, self.d_attention).transpose(1, 2)
    v = v.view(B, T, H, self.d_attention).transpose(1, 2)
    scores = q @ k.transpose(-2, -1)
    scores = scores / math.sqrt(self.d_attention)
    mask = self.causal_mask[:, :, :T, :T]
    scores = scores.masked_fill(mask == 0, float("-inf"))
    weights = F.softmax(scores, dim=-1)
    z = weights @ v
    z = z.transpose(1, 2).contiguous().view(B, T, C)
    out = self.W_o(z)
    return out
""",
    "Transformer.forward": """
    B, T = x.shape
    tok = self.embeddings(x)
    pos = self.position_embeddings(torch.arange(T, device=x.device))
    h = tok + pos
    for block in self.backbone:
        h = block(h)
    h = self.final_layer_norm(h)
    logits = self.lm_head(h)
    return logits
""",
    "Transformer.generate": """
    for _ in range(num_new_tokens):
        context = x[:, -self.config.context_length:]
        logits = self.forward(context)
        last = logits[:, -1, :]
        token = torch.argmax(last, dim=-1, keepdim=True)
        x = torch.cat([x, token], dim=1)
    return x
""",
    "Transformer.get_loss_on_batch": """
    logits = self.forward(input_ids)
    logits = logits[:, :-1, :]
    targets = input_ids[:, 1:]
    loss = F.cross_entropy(logits.reshape(-1, logits.size(-1)), targets.reshape(-1))
    return loss
""",
}
# The textbook without docstrings, comments and annotations, and with the methods above.
BARE = re.sub(r'^ *""".*?"""\n', "", TEXTBOOK, flags=re.DOTALL | re.MULTILINE)
BARE = re.sub(
    r"^from __future__.*\n|^ *#.*\n|, eps=LAYER_NORM_EPS| ->.*(?=:\n)|: (Int|Float)\[.*?\](?=[,)])",
    "",
    BARE,
    flags=re.MULTILINE,
)
for method, new in STUDENT.items():
    BARE = body(BARE, method, new)
BASE = edited(
    BARE,
    ("        self.n_heads = config.n_heads\n", ""),
    ("future = torch.full((config.context_length, config.context_length), -math.inf).triu(diagonal=1)", "ones = torch.ones(config.context_length, config.context_length)"),
    ('rearrange(future, "query key -> 1 1 query key")', "torch.tril(ones)[None, None]"),
    ("nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layers))", "nn.ModuleList([DecoderBlock(config) for _ in range(config.n_layers)])"),
)  # fmt: skip


def module(name: str, source: str) -> ModuleType:
    """The source as a module, whose lines tracebacks can show."""
    file = f"{name}.py"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    made = ModuleType(name)
    sys.modules[name] = made
    exec(compile(source, file, "exec"), made.__dict__)
    return made


def transcript(source: str, parts: tuple[str, ...] = (), **others: str) -> Transcript:
    """What the child would report, made in this process. parts: those to run, () for all. others: train=, utils=."""
    found = Transcript({"model_solution", *others})
    before = {name: sys.modules.get(name) for name in ("model_solution", "train", "utils")}
    modules: dict[str, ModuleType] = {}
    errors: dict[str, Raised] = {}
    try:
        for name, text in {"model_solution": source, **others}.items():
            try:
                modules[name] = module(name, text)
            except Exception as error:
                errors[name] = answer_of_error(error)
    finally:
        for name, old in before.items():
            sys.modules.pop(name, None)
            if old is not None:
                sys.modules[name] = old
    settings = [setting for setting in laws.SETTINGS.values() if not parts or setting.part in parts]
    asked = [(one.name, variant) for variant in ("patched", "own") for one in settings]
    found.begin(asked)
    for header, body in replies(asked, modules, errors, set()):
        found.receive(json.loads(json.dumps(header)), body)
    return found


def judged(source: str, *parts: str, **others: str) -> dict[str, PartResult]:
    """The results of these parts (of all, if none is named)."""
    found = transcript(source, parts, **others)
    return {part: judge_part(part, found) for part in parts or laws.GRADED}
