"""From text to token batches: tokenizer, sources of text, splits, cached token files, batches.

Needs numpy and tiktoken, and never imports torch. Text is kept byte for byte, or refused.
"""

from hectogpt.data.batches import Batches, DataOrder, Shuffled
from hectogpt.data.corpus import Corpus, open_corpus
from hectogpt.data.token_files import find_tokenizer
from hectogpt.data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "Batches",
    "Corpus",
    "DataOrder",
    "Shuffled",
    "Tokenizer",
    "find_tokenizer",
    "load_tokenizer",
    "open_corpus",
]
