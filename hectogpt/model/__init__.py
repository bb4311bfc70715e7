"""The transformer: GPT-2 and its departures, its first weights, the vocabulary head and the
loss.
"""

from hectogpt.model.config import SIZES, Init, ModelConfig
from hectogpt.model.transformer import Transformer

__all__ = ["SIZES", "Init", "ModelConfig", "Transformer"]
