"""The table of docs/grading.md: for each wrong solution, whether plain tests on fresh weights would have caught it.

`python tests/grade_table.py` writes it. The plain tests are those of a course: a fresh initialisation, inputs of one
shape, results compared within 1e-5.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from grade_solutions import BASE, judged, module
from grade_wrong import WRONG

from hectogpt.assignment.parts import BY_NAME

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "grading.md"
BEGIN, END = "<!-- table: made by `python tests/grade_table.py` -->", "<!-- end of table -->"
PLAIN = {"d_model": 48, "n_heads": 2, "n_layers": 2, "context_length": 16, "vocab_size": 16}


def plain_results(solution: ModuleType, part: str) -> Tensor | None:
    """What a part gives in the plain test; None if it raises or gives no tensor. Weights by name, the same for all."""
    torch.manual_seed(0)
    try:
        config = solution.ModelConfig(**PLAIN)
        model: Any = solution.Transformer(config)
        fresh(model)
        model.eval()
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(2, 16, 48, generator=generator)
        ids = torch.randint(16, (2, 14), generator=generator)
        with torch.no_grad():
            if part == "gelu":
                return solution.GELU()(torch.linspace(-0.3, 0.3, 100))
            if part == "mlp":
                return model.backbone[0].mlp(x)
            if part == "attention":
                return model.backbone[0].attention(x)
            if part == "block":
                return model.backbone[0](x)
            if part == "forward":
                return model(ids)
            if part == "generate":
                return model.generate(torch.tensor([[1], [1]]), 2)
            return model.get_loss_on_batch(torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]))
    except Exception:
        return None


def fresh(model: Any) -> None:
    """A fresh initialisation as the course's starter makes it: N(0, 0.02), biases 0, norms 1 and 0."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "norm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def caught_by_plain_tests(source: str, part: str) -> bool:
    """Whether the plain test of the part fails."""
    right = plain_results(module("model_solution", BASE), part)
    made = plain_results(module("model_solution", source), part)
    assert right is not None
    if not isinstance(made, Tensor) or made.shape != right.shape:
        return True
    return not torch.allclose(made.double(), right.double(), rtol=0, atol=1e-5)


def table() -> str:
    """The table, and above it what it sums up to."""
    rows, plain, named = [], 0, 0
    cases = [case for case in WRONG if case.part != "init"]
    for case in cases:
        result = judged(case.source, case.part)[case.part]
        caught = caught_by_plain_tests(case.source, case.part)
        found = result.diagnosis
        right = found is not None and bool({found.id, *found.equivalent} & set(case.names))
        plain += caught
        named += right
        title = BY_NAME[case.part].title.removeprefix("Transformer.")
        told = found.id if found else result.outcome
        rows.append(f"| {title} | {case.names[0]} | {'yes' if caught else '**no**'} | {told} |")
    head = (
        f"Of {len(cases)} wrong solutions plain tests on fresh weights catch {plain}. `hectogpt grade` fails all of\n"
        f"them, and names {named}, first or among names for the same results.\n\n"
        "| part | mistake | caught by plain tests | named here |\n|---|---|---|---|\n"
    )
    return head + "\n".join(rows)


def with_table(document: str) -> str:
    """The document with today's table."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
