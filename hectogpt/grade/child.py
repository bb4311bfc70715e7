"""The child process of a grading: shuts itself in, imports the submission, and sends what its code returns.

`hectogpt.grade.runner` starts it in a temporary folder that holds a copy of the submission. It is given names of
settings, makes weights and inputs itself, and knows no right value. This keeps accidents out, not attackers.
"""

from __future__ import annotations

import sys
from pathlib import Path


def prepare_everything() -> None:
    """Load libraries and make weights and inputs now: before the limits, which count what is taken from then on, before
    foreign code can change what torch does, and as a spare child does it while nobody waits."""
    import matplotlib.pyplot  # noqa: F401
    import torch

    from hectogpt.grade import laws, run_train, train_case  # noqa: F401  run_train loads what is needed later
    from hectogpt.grade.laws import prepare

    torch.set_num_threads(1)
    for setting in (*laws.SETTINGS.values(), train_case.model_setting()):
        prepare(setting)
    torch.nn.Linear(1, 1, device="meta")(torch.empty(1, 1, device="meta"))  # the first call there takes a second
    torch.ones(1, requires_grad=True).sum().backward()  # starts the threads of autograd


def main() -> None:
    """Prepare; read the request {"settings": [names], "modules": [names], "memory": bytes}; send frames; end."""
    from hectogpt import hardware, process

    frames = process.frames()
    prepare_everything()

    from hectogpt.assignment.parts import BY_NAME
    from hectogpt.grade import confine, imports, laws
    from hectogpt.grade.run_part import every_answer
    from hectogpt.grade.run_train import data_file

    request = frames.receive()
    folder = Path.cwd()
    data_file(folder / "datasets")
    settings = [laws.SETTINGS[name] for name in request["settings"]]
    finder = imports.Finder(folder)
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, str(folder))
    hardware.limit_this_process(request["memory"], 1 << 28)
    confine.shut_in(folder)
    frames.send({"ready": True})

    modules, errors = imports.import_submission(folder, request["modules"])
    failed = {name: error.frame()[0] for name, error in errors.items()}
    empty, lacking = imports.empty_functions(modules), imports.lacking_keywords(modules)
    frames.send({"failed": failed, "missing": sorted(finder.missing), "empty": empty, "keywords": lacking})
    # Our lower parts first: what dies there is the part's own fault, and what dies later costs nothing.
    for variant in ("patched", "own"):
        for setting in (s for s in settings if BY_NAME[s.part].module in modules):
            frames.send({"begin": setting.name, "variant": variant})
            for dtype, answers in every_answer(setting, modules, variant):
                for answer in answers:
                    header, body = answer.frame()
                    frames.send({"setting": setting.name, "variant": variant, "dtype": dtype, **header}, body)
    frames.done()


if __name__ == "__main__":
    main()
