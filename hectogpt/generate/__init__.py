"""Texts continued by a model: the cache of keys and values, decoding, sampling, and weights of fewer bytes."""

import sys

from hectogpt.generate.sampling import Sampling
from hectogpt.generate.text import Token, complete, generate
from hectogpt.upward import GeneratePackage

__all__ = ["Sampling", "Token", "complete", "generate"]

sys.modules[__name__].__class__ = GeneratePackage  # so that hectogpt.generate(model, text) works; upward.py says why
