"""Models and tokenizers from elsewhere: GPT-2 in Hugging Face's layout. `open_model` opens every
model folder.
"""

from hectogpt.interop.open import open_model

__all__ = ["open_model"]
