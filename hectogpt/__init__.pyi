"""Types of the public names, which __init__.py imports when they are used.

tests/commands/test_api.py compares the lists.
"""

from dataclasses import replace

from hectogpt.data import Corpus, DataOrder, Shuffled, Tokenizer, open_corpus
from hectogpt.errors import UserError
from hectogpt.generation.decode import Sampling
from hectogpt.lab.losses import verdict
from hectogpt.lab.verdict import ComparisonResult, Verdict
from hectogpt.model.attention import CausalAttention
from hectogpt.model.config import MLP, Attention, Block, Init, ModelConfig
from hectogpt.model.inputs import (
    EmbeddingNorm,
    Induction,
    InputPart,
    NgramHash,
    Smear,
    Spelling,
    TokenTable,
    shift,
)
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import (
    GELU,
    Activation,
    AttentionPart,
    LayerNorm,
    LearnedPositions,
    NoPositions,
    Norm,
    Positions,
    QKNorm,
    QKPart,
    ReLU2,
    RMSNorm,
    Rotary,
    ScoreBias,
    SinusoidalPositions,
)
from hectogpt.model.pointer import PointerHead
from hectogpt.model.transformer import DecoderBlock, Transformer
from hectogpt.python import attention_maps, compare, generate, load, recipe, train
from hectogpt.training.evaluate import EvalResult, RunResult
from hectogpt.training.loop import Step
from hectogpt.training.losses import CrossEntropy, Loss, Predictions
from hectogpt.training.optim import AdamW, Muon, Optim, OptimizerGroup, PerKind, SOAPMuon, kinds
from hectogpt.training.run import AfterStep, Constant, Cosine, Data, LinearDecay, Run, Schedule
from hectogpt.training.session import Session

__version__: str

__all__ = [
    "GELU",
    "MLP",
    "Activation",
    "AdamW",
    "AfterStep",
    "Attention",
    "AttentionPart",
    "Block",
    "CausalAttention",
    "ComparisonResult",
    "Constant",
    "Corpus",
    "Cosine",
    "CrossEntropy",
    "Data",
    "DataOrder",
    "DecoderBlock",
    "EmbeddingNorm",
    "EvalResult",
    "Induction",
    "Init",
    "InputPart",
    "LMHeadConfig",
    "LayerNorm",
    "LearnedPositions",
    "LinearDecay",
    "Loss",
    "ModelConfig",
    "Muon",
    "NgramHash",
    "NoPositions",
    "Norm",
    "Optim",
    "OptimizerGroup",
    "PerKind",
    "PointerHead",
    "Positions",
    "Predictions",
    "QKNorm",
    "QKPart",
    "RMSNorm",
    "ReLU2",
    "Rotary",
    "Run",
    "RunResult",
    "SOAPMuon",
    "Sampling",
    "Schedule",
    "ScoreBias",
    "Session",
    "Shuffled",
    "SinusoidalPositions",
    "Smear",
    "Spelling",
    "Step",
    "TokenTable",
    "Tokenizer",
    "Transformer",
    "UserError",
    "Verdict",
    "attention_maps",
    "compare",
    "generate",
    "kinds",
    "load",
    "open_corpus",
    "recipe",
    "replace",
    "shift",
    "train",
    "verdict",
]
