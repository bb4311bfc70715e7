"""What a submission's train.py does in a few steps, and the picture it draws: the child's work."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hectogpt.grade import train_case
from hectogpt.grade.answer import Answer, answer_of_error
from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import Setting
from hectogpt.grade.run_part import config, load, no_first_weights, patch


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
    replaced = {
        "Transformer": lambda *_, **__: watched_model(solution, batches),
        "plot_results": lambda losses=None, grad_norms=None, *_, **__: recorded.append((losses, grad_norms)),
        "get_chunked_tinystories": lambda *_, **__: train_case.chunks(),
    }
    before = {name: getattr(train, name) for name in replaced if hasattr(train, name)}
    facts: dict[str, Any] = {}
    result: Any = None
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
        if not recorded:
            return [answer_of_error(error)]
        facts = after(error)
    finally:
        for name, value in before.items():
            setattr(train, name, value)
    try:
        losses, norms = recorded[-1] if recorded else returned(result)
    except BaseException as error:
        return [answer_of_error(error)]
    if losses is None:
        return [nothing(result, "neither returned nor given to plot_results")]
    return [numbers(losses, facts), numbers(norms, {}), Answer("tensor", train_case.padded(batches))]


def watched_model(solution: ModuleType, batches: list[list[int]]) -> Any:
    """A transformer with our weights, blocks and loss, which adds to `batches` the rows that it is trained on."""
    setting = train_case.model_setting()
    with no_first_weights(solution):
        made = solution.Transformer(config(solution, setting.size))
    load(made, setting, torch.float32, patched=True)
    patch(made, setting, {})
    forward = made.forward

    def note(ids: Tensor) -> None:
        if torch.is_grad_enabled() and len(batches) < 1000:
            batches.append(train_case.rows_of(ids))

    def loss(input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        note(input_ids)
        own = dict(made.named_parameters(remove_duplicate=False))
        return Computation(own, setting.size).loss(input_ids.long())

    def noted(ids: Tensor, *_: Any, **__: Any) -> Tensor:
        note(ids)
        return forward(ids)

    made.get_loss_on_batch, made.forward = loss, noted
    made._init_weights = lambda *_, **__: None  # train() may draw again after a seed of its own
    return made


def takes(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments, those that the function has a name for."""
    known = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in known}


def after(error: BaseException) -> dict[str, Any]:
    """An error after what counts, as a fact."""
    answer = answer_of_error(error)
    return {"after": f"{answer.error}: {answer.text[:200]}, at {answer.line}"}


def nothing(result: Any, what: str) -> Answer:
    """The answer where what counts is missing."""
    return Answer("other", text="None" if result is None else f"a {type(result).__name__}", facts={"lacks": what})


def returned(result: Any) -> tuple[Any, Any]:
    """Losses and gradient norms in what train returned."""
    if isinstance(result, tuple | list) and len(result) >= 2:
        return result[0], result[1]
    named = result.items() if isinstance(result, dict) else ()
    losses, norms = (next((v for k, v in named if word in str(k)), None) for word in ("loss", "norm"))
    return losses, norms


def numbers(values: Any, facts: dict[str, Any]) -> Answer:
    try:
        kept = [isinstance(value, Tensor) and value.requires_grad for value in values]
        listed = [float(v.detach() if isinstance(v, Tensor) else v) for v in list(values)[:1000]]
    except BaseException as error:
        return answer_of_error(error)
    return Answer("tensor", torch.tensor(listed, dtype=torch.float64), facts=facts | {"graph kept": any(kept)})


CURVE, OTHER = [3.0, 2.5, 2.2, 2.0], [9.0, 1.0, 8.0, 2.0]


def picture(setting: Setting, modules: dict[str, ModuleType]) -> list[Answer]:
    """The pictures that plot_results saves, as small tensors of grey values: of one run, of one with other losses, of
    one with other gradient norms; or an error or `other` if there is none."""
    runs = ((CURVE, CURVE), (OTHER, CURVE), (CURVE, OTHER))
    made = [drawn(modules["train"], losses, norms) for losses, norms in runs]
    return made if made[0].kind == "tensor" else made[:1]


def drawn(train: ModuleType, losses: list[float], norms: list[float]) -> Answer:
    """The picture of one run. An error after it was saved is a fact."""
    facts: dict[str, Any] = {}
    result: Any = None
    try:
        for old in Path().glob("*.png"):
            old.unlink()
        plot = train.plot_results
        arguments: dict[str, Any] = {
            "losses": list(losses),
            "grad_norms": list(norms),
            "save_path": "graded_picture.png",
        }
        wanted = takes(plot, arguments)
        result = plot(**wanted) if len(wanted) > 1 else plot(*arguments.values())
    except BaseException as error:
        if not any(Path().glob("*.png")):
            return answer_of_error(error)
        facts = after(error)
    try:
        saved = max(Path().glob("*.png"), key=lambda path: path.stat().st_mtime, default=None)
        if saved is None:
            return nothing(result, "no picture was saved")
        from matplotlib import image

        grey = torch.as_tensor(image.imread(str(saved))[..., :3].mean(-1))
        step = [max(1, length // 200) for length in grey.shape]
        return Answer("tensor", grey[:: step[0], :: step[1]].double().contiguous(), facts=facts)
    except BaseException as error:
        return answer_of_error(error)
