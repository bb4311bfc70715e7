"""What a submission's train.py does in a few steps, and the picture it draws: the child's work."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hectogpt.grade import train_case
from hectogpt.grade.answers import Answer, answer_of_error, takes
from hectogpt.grade.built import config, load, no_first_weights, patch
from hectogpt.grade.computation import Computation
from hectogpt.grade.settings import Setting


def data_file(folder: Path) -> None:
    """Write the file that the starter's get_chunked_tinystories finds instead of downloading the text."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(train_case.chunks(), folder / f"tinystories_10pct_chunk_size_{train_case.SIZE.context_length}.pt")


def training(setting: Setting, modules: dict[str, ModuleType]) -> list[Answer]:
    """Three tensors: losses and gradient norms, as train() gives them to plot_results, or returns them; and the rows of
    each batch. An error after they were given is a fact of the first."""
    train, solution = modules["train"], modules.get("model_solution")
    if solution is None:
        return [Answer("error", text="model_solution.py cannot be imported", facts={"building": True})]
    recorded: list[tuple[Any, Any]] = []
    batches: list[list[int]] = []

    def model(*_: Any, **__: Any) -> Any:
        with no_first_weights(solution):
            made = solution.Transformer(config(solution, train_case.SIZE))
        load(made, train_case.model_setting(), torch.float32, patched=True)
        patch(made, train_case.model_setting(), {})
        forward = made.forward

        def loss(input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
            note(input_ids)
            own = dict(made.named_parameters(remove_duplicate=False))
            return Computation(own, train_case.SIZE).loss(input_ids.long())

        def noted(ids: Tensor, *_: Any, **__: Any) -> Tensor:
            note(ids)
            return forward(ids)

        made.get_loss_on_batch, made.forward = loss, noted
        made._init_weights = lambda *_, **__: None  # train() may draw again after a seed of its own
        return made

    def note(ids: Tensor) -> None:
        if torch.is_grad_enabled() and len(batches) < 1000:
            batches.append(train_case.rows_of(ids))

    def record(losses: Any = None, grad_norms: Any = None, *_: Any, **__: Any) -> None:
        recorded.append((losses, grad_norms))

    replaced = {
        "Transformer": model,
        "plot_results": record,
        "get_chunked_tinystories": lambda *_, **__: train_case.chunks(),
    }
    before = {name: getattr(train, name) for name in replaced if hasattr(train, name)}
    result: Any = None
    facts: dict[str, Any] = {}
    try:
        torch.manual_seed(0)
        for name, value in replaced.items():
            setattr(train, name, value)
        arguments = {
            "learning_rate": train_case.RATE,
            "gradient_clipping": train_case.clip_of(setting),
            "model_config": config(solution, train_case.SIZE),
            "batch_size": train_case.BATCH,
            "max_steps": train_case.STEPS,
        }
        result = train.train(**takes(train.train, arguments))
    except BaseException as error:
        answer = answer_of_error(error)
        if not recorded:
            return [answer]
        facts["after"] = f"{answer.error}: {answer.text[:200]}, at {answer.line}"
    finally:
        for name, value in before.items():
            setattr(train, name, value)
    try:
        losses, norms = losses_and_norms(result, recorded)
    except BaseException as error:
        return [answer_of_error(error)]
    if losses is None:
        text = "None" if result is None else f"a {type(result).__name__}"
        return [Answer("other", text=text, facts={"losses": "neither returned nor given to plot_results"})]
    return [numbers(losses, facts), numbers(norms, {}), Answer("tensor", train_case.padded(batches))]


def losses_and_norms(result: Any, recorded: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Of the last call of plot_results, else what train returned."""
    if recorded:
        return recorded[-1]
    if isinstance(result, tuple | list) and len(result) >= 2:
        return result[0], result[1]
    if isinstance(result, dict):
        losses = next((v for k, v in result.items() if "loss" in str(k)), None)
        return losses, next((v for k, v in result.items() if "norm" in str(k)), None)
    return None, None


def numbers(values: Any, facts: dict[str, Any]) -> Answer:
    try:
        kept = [isinstance(value, Tensor) and value.requires_grad for value in values]
        listed = [float(v.detach() if isinstance(v, Tensor) else v) for v in list(values)[:1000]]
    except BaseException as error:
        return answer_of_error(error)
    return Answer("tensor", torch.tensor(listed, dtype=torch.float64), facts=facts | {"graph kept": any(kept)})


CURVE, OTHER = [3.0, 2.5, 2.2, 2.0], [9.0, 1.0, 8.0, 2.0]


def picture(modules: dict[str, ModuleType]) -> list[Answer]:
    """The pictures that plot_results saves, as small tensors of grey values: of one run, of one with other losses, of
    one with other gradient norms; or an error or `other` if there is none."""
    made = [
        drawn(modules["train"], losses, norms) for losses, norms in ((CURVE, CURVE), (OTHER, CURVE), (CURVE, OTHER))
    ]
    return made if made[0].kind == "tensor" else made[:1]


def drawn(train: ModuleType, losses: list[float], norms: list[float]) -> Answer:
    """The picture of one run. An error after it was saved is a fact."""
    path = Path("graded_picture.png")
    facts: dict[str, Any] = {}
    try:
        for old in Path().glob("*.png"):
            old.unlink()
        plot = train.plot_results
        arguments: dict[str, Any] = {"losses": list(losses), "grad_norms": list(norms), "save_path": str(path)}
        wanted = takes(plot, arguments)
        result = plot(**wanted) if len(wanted) > 1 else plot(*arguments.values())
    except BaseException as error:
        answer, result = answer_of_error(error), None
        facts["after"] = f"{answer.error}: {answer.text[:200]}, at {answer.line}"
        if not any(Path().glob("*.png")):
            return answer
    saved = path if path.is_file() else next(iter(sorted(Path().glob("*.png"), key=os.path.getmtime)[-1:]), None)
    if saved is None:
        text = "None" if result is None else f"a {type(result).__name__}"
        return Answer("other", text=text, facts={"files": "no picture was saved"})
    try:
        from matplotlib import image

        grey = torch.as_tensor(image.imread(str(saved))[..., :3].mean(-1))
        step = [max(1, length // 200) for length in grey.shape]
        return Answer("tensor", grey[:: step[0], :: step[1]].double().contiguous(), facts=facts)
    except BaseException as error:
        return answer_of_error(error)
