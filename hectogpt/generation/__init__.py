"""Texts continued by a model: the cache of keys and values, decoding, sampling, and weights of
fewer bytes.
"""

from hectogpt.generation.decode import Sampling, Token, complete, generate

__all__ = ["Sampling", "Token", "complete", "generate"]
