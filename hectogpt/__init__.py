"""hectoGPT: understand, build and speed up a GPT-2 style transformer in 100 gradient steps.

    import hectogpt
    result = hectogpt.train(hectogpt.recipe("top"), out="runs/mine")
    print(hectogpt.generate(result, "The state of", max_new_tokens=40))

docs/python.md explains these names in ten minutes; docs/architecture.md says where things are.

to use     recipe train generate attention_maps compare verdict load open_corpus replace
results    RunResult EvalResult Step ComparisonResult Verdict UserError
a run      Run ModelConfig Init Data DataOrder Shuffled Session Corpus Tokenizer
           Sampling
model      Transformer AttentionPart QKPart ScoreBias Rotary QKNorm InputPart shift
           EmbeddingNorm Smear TokenTable Spelling NgramHash Induction Norm LayerNorm RMSNorm
           Activation GELU ReLU2 Positions NoPositions LearnedPositions SinusoidalPositions
           LMHeadConfig PointerHead Block DecoderBlock Attention CausalAttention MLP
training   AfterStep Loss CrossEntropy Predictions Schedule Constant LinearDecay Cosine Optim
           OptimizerGroup PerKind kinds AdamW Muon SOAPMuon

A name is imported when it is first used, so `import hectogpt` loads neither torch nor numpy.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# module -> the public names that come from it
_MODULES = {
    "hectogpt.python": ("attention_maps", "compare", "generate", "load", "recipe", "train"),
    "hectogpt.lab.verdict": ("Verdict", "ComparisonResult"),
    "hectogpt.lab.losses": ("verdict",),
    "hectogpt.errors": ("UserError",),
    "hectogpt.serialization": ("replace",),
    "hectogpt.data": ("open_corpus", "Corpus", "Tokenizer", "DataOrder", "Shuffled"),
    "hectogpt.generation.decode": ("Sampling",),
    "hectogpt.model.transformer": ("Transformer", "DecoderBlock"),
    "hectogpt.model.attention": ("CausalAttention",),
    "hectogpt.model.config": ("ModelConfig", "Init", "Block", "Attention", "MLP"),
    "hectogpt.model.inputs": (
        "InputPart",
        "shift",
        "EmbeddingNorm",
        "Smear",
        "TokenTable",
        "Spelling",
        "NgramHash",
        "Induction",
    ),
    "hectogpt.model.lm_head": ("LMHeadConfig",),
    "hectogpt.model.pointer": ("PointerHead",),
    "hectogpt.model.parts": (
        *("AttentionPart", "QKPart", "ScoreBias", "Rotary", "QKNorm"),
        *("Norm", "LayerNorm", "RMSNorm", "Activation", "GELU", "ReLU2"),
        *("Positions", "NoPositions", "LearnedPositions", "SinusoidalPositions"),
    ),
    "hectogpt.training.run": (
        "Run",
        "Data",
        "Schedule",
        "Constant",
        "LinearDecay",
        "Cosine",
        "AfterStep",
    ),
    "hectogpt.training.optim": (
        "Optim",
        "OptimizerGroup",
        "PerKind",
        "kinds",
        "AdamW",
        "Muon",
        "SOAPMuon",
    ),
    "hectogpt.training.losses": ("Loss", "CrossEntropy", "Predictions"),
    "hectogpt.training.loop": ("Step",),
    "hectogpt.training.evaluate": ("EvalResult", "RunResult"),
    "hectogpt.training.session": ("Session",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module 'hectogpt' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
