"""The child process of a grading: shuts itself in, imports the submission, and sends what its code returns.

`hectogpt.grade.runner` starts it in a temporary folder that holds a copy of the submission. It is given names of
settings, makes weights and inputs itself, and knows no right value. This keeps accidents out, not attackers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def prepare_everything() -> None:
    """Load libraries and make weights and inputs now: before the limits, which count what is taken from then on, before
    foreign code can change what torch does, and as a spare child does it while nobody waits."""
    import matplotlib.pyplot  # noqa: F401
    import torch

    from hectogpt.grade import laws, train_case
    from hectogpt.grade.settings import hugging_face_names, prepare

    torch.set_num_threads(1)
    for setting in (*laws.SETTINGS.values(), train_case.model_setting()):
        prepare(setting)
    hugging_face_names(1)
    torch.nn.Linear(1, 1, device="meta")(torch.empty(1, 1, device="meta"))  # the first call there takes a second
    torch.ones(1, requires_grad=True).sum().backward()  # starts the threads of autograd


def main() -> None:
    """Prepare; read the request {"settings": [names], "modules": [names], "memory": bytes}; send frames; end."""
    from hectogpt import hardware, process

    frames = process.frames()
    prepare_everything()

    from hectogpt.assignment.parts import BY_NAME
    from hectogpt.grade import answers, confine, imports, laws
    from hectogpt.grade.settings import version
    from hectogpt.grade.train_answers import data_file

    request = frames.receive()
    folder = Path.cwd()
    data_file(folder / "datasets")
    settings = [laws.SETTINGS[name] for name in request["settings"]]
    last = imports.Finder(folder, first=False)
    sys.meta_path[:] = [imports.Finder(folder, first=True), *sys.meta_path, last]
    sys.path.insert(0, str(folder))
    hardware.limit_this_process(request["memory"], 1 << 28)
    confine.shut_in(folder)
    frames.send({"ready": version()})

    modules, errors = imports.import_submission(request["modules"])
    for name, error in errors.items():
        send(frames, {"import": name}, error)
    empty, lacking = imports.empty_functions(modules), imports.lacking_keywords(modules)
    known = {"imported": sorted(modules), "missing": sorted(last.missing), "empty": empty, "keywords": lacking}
    frames.send(known)
    # Our lower parts first: what dies there is the part's own fault, and what dies later costs nothing.
    for variant in ("patched", "own"):
        for setting in (s for s in settings if BY_NAME[s.part].module in modules):
            frames.send({"begin": setting.name, "variant": variant})
            for dtype, made in answers.every_answer(setting, modules, variant):
                for number, answer in enumerate(made):
                    place = {"setting": setting.name, "variant": variant, "dtype": dtype, "number": number}
                    send(frames, place, answer)
    frames.done()


def send(frames: Any, place: dict[str, Any], answer: Any) -> None:
    """One answer as a frame: what it is in the header; its numbers, and its gradient in float64, as raw bytes."""
    header = {**place, "kind": answer.kind, "text": answer.text[:2000], "error": answer.error, "line": answer.line}
    header["facts"] = answer.facts
    body = b""
    if answer.tensor is not None:
        tensor = answer.tensor.contiguous()
        if str(tensor.dtype) in ("torch.bfloat16", "torch.complex64", "torch.complex128"):
            tensor = tensor.float()
        header |= {"dtype_of": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        body = tensor.numpy().tobytes()
    if answer.gradient is not None:
        header["gradient"] = answer.gradient.numel()
        body += answer.gradient.numpy().tobytes()
    frames.send(header, body)


if __name__ == "__main__":
    main()
