"""Side-by-side timings of this repository: `python -m bench` (or `make bench`), one question a file.

A question is a module with

    PACKAGES                                the packages whose versions belong in its records
    SETTINGS                                its settings by name; "tiny" takes seconds, and its figures mean nothing
    prepare(setting, contender, folder)     in the contender's own process: its laps by name, see bench/race.py
    measure(setting, race)                  lets contenders race; yields the name of each measurement, and its rows
"""

QUESTIONS = {
    "start": "seconds until a command answers and until its first training step",
    "roofline": "the peaks of this machine, and how near to them a training step comes",
    "step": "one training step: ours, the textbook, Hugging Face, x-transformers, PyTorch's layers",
    "peers": "one training step: ours, PyTorch compiled, Hugging Face, litgpt, JAX, MLX, Keras, tinygrad, two dtypes",
    "head": "the vocabulary head: ours, F.cross_entropy, F.linear_cross_entropy",
    "decode": "tokens per second: ours, Hugging Face's generate, CTranslate2, llama.cpp, the textbook's way",
    "recipes": "seconds of a hundred steps of every recipe, for `python -m tools.report`, 15 minutes; by name only",
}
BY_NAME_ONLY = ("peers", "recipes")  # one needs packages of its own, the other trains for minutes
COMPUTES = ("hectogpt/model", "hectogpt/kernels", "hectogpt/training")
# The code that a question's figures depend on, besides its own file. Figures older than its last change are marked.
DEPENDS = {
    "start": ("hectogpt",),
    "roofline": COMPUTES,
    "step": COMPUTES,
    "peers": COMPUTES,
    "head": ("hectogpt/model", "hectogpt/kernels"),
    "decode": ("hectogpt/model", "hectogpt/kernels", "hectogpt/generation"),
}
