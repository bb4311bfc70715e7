"""The transformer: GPT-2 and its departures, the vocabulary head and its loss, generation."""

from hectogpt.model.config import SIZES, Init, ModelConfig
from hectogpt.model.transformer import Transformer

__all__ = ["SIZES", "Init", "ModelConfig", "Transformer"]
