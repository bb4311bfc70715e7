"""Text becomes token batches: tokenizer, named corpora, cached token shards, batches as f(seed, step).

Needs numpy and tiktoken only; torch is never imported here. Refuses text it cannot keep byte for byte.
"""

from hectogpt.data.batches import Batches, tokens_read
from hectogpt.data.corpus import Corpus, build, cache_folder, open_corpus, repair, verify
from hectogpt.data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "Batches",
    "Corpus",
    "Tokenizer",
    "build",
    "cache_folder",
    "load_tokenizer",
    "open_corpus",
    "repair",
    "tokens_read",
    "verify",
]
