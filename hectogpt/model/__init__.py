"""The transformer: GPT-2 and its departures, the vocabulary head and its loss, generation."""

from hectogpt.model.transformer import SIZES, Init, ModelConfig, Transformer

__all__ = ["SIZES", "Init", "ModelConfig", "Transformer"]
