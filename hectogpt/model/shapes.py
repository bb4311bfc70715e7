"""Tensor shapes that many signatures share. `rows` is 1 or the number of texts."""

from jaxtyping import Float, Int
from torch import Tensor

Ids = Int[Tensor, "batch time"]
Places = Int[Tensor, "rows time"]  # positions of tokens in their texts
Vectors = Float[Tensor, "batch time d"]
Heads = Float[Tensor, "batch head time d_head"]
Keys = Float[Tensor, "batch kv_head time d_head"]
Slots = Float[Tensor, "batch head slot d_head"]
