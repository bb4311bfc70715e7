"""Models and tokenizers from elsewhere. `open_model` opens every kind of model folder."""

from hectogpt.interop.open import open_model

__all__ = ["open_model"]
