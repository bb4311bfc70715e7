"""Generate text with a model: decoding with a cache, sampling, and weights of fewer bytes."""

from hectogpt.generation.decode import Sampling, Token, complete, generate

__all__ = ["Sampling", "Token", "complete", "generate"]
