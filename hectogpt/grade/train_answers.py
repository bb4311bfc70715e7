"""What a submission's train.py does in a few steps, and the picture it draws: the child's work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hectogpt.grade import train_case
from hectogpt.grade.answers import Answer, takes, told
from hectogpt.grade.built import config, load, no_first_weights, patch
from hectogpt.grade.settings import Setting


def data_file(folder: Path) -> None:
    """Write the file that the starter's get_chunked_tinystories finds instead of downloading the text."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(train_case.chunks(), folder / f"tinystories_10pct_chunk_size_{train_case.SIZE.context_length}.pt")


def training(setting: Setting, modules: dict[str, ModuleType]) -> list[Answer]:
    """Two tensors: losses and gradient norms. Taken from what train() gives to plot_results, or returns."""
    train, solution = modules["train"], modules.get("model_solution")
    if solution is None:
        return [Answer("error", text="model_solution.py cannot be imported", facts={"building": True})]
    recorded: list[tuple[Any, Any]] = []

    def model(*_: Any, **__: Any) -> Any:
        with no_first_weights(solution):
            made = solution.Transformer(config(solution, train_case.SIZE))
        load(made, train_case.model_setting(), torch.float32, patched=True)
        patch(made, train_case.model_setting(), {})
        made.get_loss_on_batch = loss_of(made)
        made._init_weights = lambda *_, **__: None  # train() may draw again after a seed of its own
        return made

    def record(losses: Any = None, grad_norms: Any = None, *_: Any, **__: Any) -> None:
        recorded.append((losses, grad_norms))

    replaced = {
        "Transformer": model,
        "plot_results": record,
        "get_chunked_tinystories": lambda *_, **__: train_case.chunks(),
    }
    before = {name: getattr(train, name) for name in replaced if hasattr(train, name)}
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
        losses, norms = found(result, recorded)
    except BaseException as error:
        return [told(error)]
    finally:
        for name, value in before.items():
            setattr(train, name, value)
    if losses is None:
        text = "None" if result is None else f"a {type(result).__name__}"
        return [Answer("other", text=text, facts={"losses": "neither returned nor given to plot_results"})]
    return [numbers(losses), numbers(norms)]


def loss_of(model: Any) -> Callable[[Tensor], Tensor]:
    """Our loss on the model's own parameters."""
    from hectogpt.grade.computation import Computation

    def loss(input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return Computation(dict(model.named_parameters(remove_duplicate=False)), train_case.SIZE).loss(input_ids.long())

    return loss


def found(result: Any, recorded: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Losses and norms: of the last call of plot_results, else what train returned."""
    if recorded:
        return recorded[-1]
    if isinstance(result, tuple | list) and len(result) >= 2:
        return result[0], result[1]
    if isinstance(result, dict):
        losses = next((v for k, v in result.items() if "loss" in str(k)), None)
        return losses, next((v for k, v in result.items() if "norm" in str(k)), None)
    return None, None


def numbers(values: Any) -> Answer:
    try:
        kept = [isinstance(value, Tensor) and value.requires_grad for value in values]
        listed = [float(v.detach() if isinstance(v, Tensor) else v) for v in list(values)[:1000]]
    except BaseException as error:
        return told(error)
    return Answer("tensor", torch.tensor(listed, dtype=torch.float64), facts={"graph kept": any(kept)})


def picture(modules: dict[str, ModuleType]) -> list[Answer]:
    """The picture that plot_results saves, as a small tensor of grey values; an error or `other` if there is none."""
    path = Path("graded_picture.png")
    try:
        path.unlink(missing_ok=True)
        plot = modules["train"].plot_results
        arguments: dict[str, Any] = {
            "losses": [3.0, 2.5, 2.2, 2.0],
            "grad_norms": [1.0, 0.8, 0.9, 0.7],
            "save_path": str(path),
        }
        wanted = takes(plot, arguments)
        result = plot(**wanted) if len(wanted) > 1 else plot(*arguments.values())
    except BaseException as error:
        return [told(error)]
    made = path if path.is_file() else next(iter(sorted(Path().glob("*.png"), key=os.path.getmtime)[-1:]), None)
    if made is None:
        return [
            Answer(
                "other",
                text="None" if result is None else f"a {type(result).__name__}",
                facts={"files": "no picture was saved"},
            )
        ]
    try:
        from matplotlib import image

        grey = torch.as_tensor(image.imread(str(made))[..., :3].mean(-1))
        return [
            Answer(
                "tensor", grey[:: max(1, grey.shape[0] // 200), :: max(1, grey.shape[1] // 200)].double().contiguous()
            )
        ]
    except BaseException as error:
        return [told(error)]
