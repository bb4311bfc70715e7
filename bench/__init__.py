"""Side-by-side timings of this repository: `python -m bench` (or `make bench`), one question a file.

A question is a module with

    PACKAGES                        the packages whose versions belong in its records
    SETTINGS                        its settings by name; "tiny" takes seconds, and its figures mean nothing
    measure(setting, rounds)        yields the name of what was asked, and a row of figures for each contender
    prepare(setting, contender)     where memory is measured: returns the work whose peak counts (race.peak_memory)
"""

QUESTIONS = {
    "start": "seconds until a command answers and until its first training step",
    "tokens": "text to token files: ours, tiktoken, Hugging Face's tokenizers",
    "roofline": "the peaks of this machine, and how near to them a training step comes",
    "step": "one training step: ours, the textbook, Hugging Face, x-transformers, PyTorch's layers",
    "head": "the vocabulary head: ours, F.cross_entropy, F.linear_cross_entropy",
    "decode": "tokens per second: ours, Hugging Face's generate, CTranslate2, llama.cpp, the textbook's way",
    "parallel": "a step in leaves, and shared by 1 and 2 processes of torchrun; by name only",
    "recipes": "seconds of a hundred steps of every recipe, for `python -m tools.report`, eight minutes; by name only",
}
BY_NAME_ONLY = ("parallel", "recipes")  # they train, for minutes
