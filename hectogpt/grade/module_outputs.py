"""The outputs of every module of a model on given tokens, for `hectogpt bisect`.

Grading does not use them. Run as a program, this module computes the outputs of a
model_solution.py, under the restrictions of a graded submission.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from hectogpt import process
from hectogpt.errors import DataError
from hectogpt.grade import laws
from hectogpt.grade.child import DTYPES, answer_of_error, construct, import_submission, shut_in
from hectogpt.grade.laws import Size
from hectogpt.grade.runner import RUBBISH, Limits, private_folder, start
from hectogpt.grade.submission import read_submission

Named = dict[str, Tensor]
WEIGHTS = "weights.safetensors"
TOKENS = "tokens"


def outputs(model: nn.Module, ids: Tensor) -> dict[str, Named]:
    """Return dtype -> module -> its output, in the order of computation.

    The output of the whole model is called "logits". The model is left in float32.
    """
    found: dict[str, Named] = {}
    model.eval()
    for name, dtype in DTYPES.items():
        own: Named = {}

        def keep(into: Named, module: str, owner: Any, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and module not in into:
                into[module] = output.detach().clone().contiguous()

        model.to(dtype)
        hooks = [
            m.register_forward_hook(partial(keep, own, n)) for n, m in model.named_modules() if n
        ]
        try:
            with torch.no_grad():
                own["logits"] = model(ids).contiguous()
        finally:
            for hook in hooks:
                hook.remove()
        found[name] = own
    return found


def drawn_weights() -> tuple[Size, Named]:
    """Return the sizes and weights that the grader uses because they reveal mistakes."""
    setting = laws.SETTINGS["forward"]
    return setting.size, laws.weights(setting)


def outputs_of_file(path: Path, size: Size, state: Named, ids: Tensor) -> dict[str, Named]:
    """Return the `outputs` of the Transformer in a model_solution.py, run in a sandbox.

    Args:
        path: the file, or a folder that contains it.
        size: the model's sizes.
        state: its weights, by the textbook's names.
        ids: token ids [rows, tokens].

    Raises UserError (DATA) with the original message if it cannot be read, built or run.
    """
    submission = read_submission(path, path.name)
    if submission.fault:
        raise DataError(f"cannot use {path}", why=submission.fault)
    limits = Limits(seconds=60)
    received: list[tuple[dict[str, Any], bytes]] = []
    with private_folder(submission) as folder:
        save_file(state | {TOKENS: ids}, folder / WEIGHTS)
        ending = start(__name__, folder).listen(
            {
                "size": vars(size),
                "memory": limits.memory + 8 * sum(t.nbytes for t in state.values()),
            },
            lambda message, body: received.append((message, body)),
            first_seconds=limits.start_seconds,
            seconds=limits.seconds,
            output_bytes=limits.output,
            body_bytes=1 << 30,
        )
    try:
        fault = next((m["error"] for m, _ in received if "error" in m), "")
        found = {m["dtype"]: m["names"] for m, _ in received if "dtype" in m}
        tensors = {m["dtype"]: load(body) for m, body in received if "dtype" in m}
        if not fault and set(found) == set(DTYPES):
            return {dtype: {n: tensors[dtype][n] for n in names} for dtype, names in found.items()}
    except RUBBISH as error:
        fault = str(error)
    why = fault or f"its process ended ({ending.how}, exit code {ending.code})"
    fix = f"hectogpt grade {path}"
    raise DataError(f"{path} does not run", why=why[:500], fix=fix)


def main() -> None:
    """Answer a request {"size": fields, "memory": bytes} with a frame for each dtype."""
    frames = process.frames()
    request = frames.receive()
    torch.set_num_threads(1)
    state = load_file(WEIGHTS)
    ids = state.pop(TOKENS)
    finder = shut_in(request["memory"])
    modules, failed = import_submission(["model_solution"], finder)
    try:
        if failed:
            raise ImportError(failed["model_solution"].words)
        model = construct(modules["model_solution"], "Transformer", Size(**request["size"]))
        model.to(torch.float64)
        model.load_state_dict(state)
        for dtype, own in outputs(model, ids).items():
            frames.send({"dtype": dtype, "names": list(own)}, save(own))
    except BaseException as error:
        frames.send({"error": answer_of_error(error).words})
    frames.done()


if __name__ == "__main__":
    main()
