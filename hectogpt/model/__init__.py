"""The transformer: GPT-2, departures from it, initial weights, vocabulary head and loss."""

from hectogpt.model.config import SIZES, Init, ModelConfig
from hectogpt.model.transformer import Transformer

__all__ = ["SIZES", "Init", "ModelConfig", "Transformer"]
