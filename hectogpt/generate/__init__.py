"""Texts continued by a model: the cache of keys and values, decoding, sampling, and weights of fewer bytes."""

from hectogpt.generate.sampling import Sampling
from hectogpt.generate.text import Token, complete, generate

__all__ = ["Sampling", "Token", "complete", "generate"]
