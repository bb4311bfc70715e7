"""Text becomes token batches: tokenizer, named corpora, cached token shards, batches as f(seed, step).

Needs numpy and tiktoken only; torch is never imported here. Refuses text it cannot keep byte for byte.
"""

from hectogpt.data.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
