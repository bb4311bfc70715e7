"""Models with bf16 or int8 weights for generation, which reads every weight once per token.

The C++ kernels (hectogpt/kernels) compute products where they are available. With int8 weights,
they round each row of x to 8 bits, scaled by the row's maximum. With bf16 or float32 weights, they
compute only products of a few rows, and x is not rounded. oneDNN or torch computes all other
products, in bf16 if the weights are rounded and the CPU multiplies bf16. Norms, attention and
cache stay in float32.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn

from hectogpt import torch_private
from hectogpt.kernels import build, native
from hectogpt.kernels.dtypes import prefers_bf16
from hectogpt.model.transformer import DecoderBlock, Transformer

WeightFormat = Literal["float32", "bfloat16", "int8"]
FEW_ROWS = 2  # up to this many rows, a blocked copy of the weights does not pay off
# From this many rows on, bf16 weights are widened if float32 products are faster.
MANY_ROWS = 128


def round_rows(
    weight: Float[Tensor, "out in"],
) -> tuple[Int8[Tensor, "out in"], Float[Tensor, "out 1"]]:
    """Round each row to int8 multiples of a scale, max|row| / 127. Return the integers and scales.

    A weight changes by at most max|row| / 254.
    """
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
    return (weight / scale).round().to(torch.int8), scale


class PackedLinear(nn.Module):
    """x -> x W^T + b with W [out, in] in float32, bfloat16 or int8.

    int8 weights have a float32 scale per row (round_rows) and, if the C++ kernels are available,
    are stored in the order in which the kernels read them.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        form: WeightFormat,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.own_code = weight.device.type == "cpu" and build.find().library is not None
        self.packed: native.Packed | None = None
        self.blocked: Tensor | None = None
        weight = weight.detach().float()
        scale = None
        if form == "int8":
            weight, scale = round_rows(weight)
            if self.own_code:
                self.packed = native.pack(weight, scale)
                weight, scale, _ = self.packed
        elif form == "bfloat16":
            weight = weight.bfloat16()
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows out"]:
        rows = x.numel() // self.in_features
        if self.packed or (self.own_code and rows <= native.most_rows(self.weight.dtype)):
            y = native.linear(x, self.packed or self.weight, self.bias)
        else:
            y = self._gemm(x, rows)
            y = y if self.scale is None else y * self.scale[:, 0]
            y = y if self.bias is None else y + self.bias
        return y.to(x.dtype)

    def _gemm(self, x: Tensor, rows: int) -> Tensor:
        """Multiply by the matrix, with oneDNN on the CPU.

        In float32 on AMD CPUs, oneDNN is faster than MKL (106 GFLOP/s compared with 89).
        """
        slow = not torch_private.onednn_has_bf16() or (rows > MANY_ROWS and not prefers_bf16())
        exact = self.weight.dtype == torch.float32 or (x.device.type == "cpu" and slow)
        x, weight = (t.to(torch.float32 if exact else torch.bfloat16) for t in (x, self.weight))
        if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
            one_token = x.dim() == 2 or x.shape[-2] == 1
            if one_token and FEW_ROWS < x.shape[0] <= 64 and self.weight.dtype != torch.int8:
                # A second copy of the weights, in blocks, pays off because every token of the
                # batch reads it.
                if self.blocked is None:
                    self.blocked = torch_private.onednn_blocks(weight, x.shape[0])
                weight = self.blocked
            return torch_private.onednn_linear(x, weight).float()
        return F.linear(x, weight).float()


def quantize(model: Transformer, form: WeightFormat = "float32") -> Transformer:
    """A copy of the model for generation, with linear maps and head in a smaller format.

    The embedding tables stay in float32, because a token reads only one row of them. They, and
    everything else that is not replaced, share memory with `model`. Without the C++ kernels, int8
    saves memory but no time.
    """
    # The memo makes deepcopy share tensors; those of replaced modules are dropped below.
    shared: dict[int, object] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    light = copy.deepcopy(model, shared)
    matrix = model.lm_head.matrix(model.token_vectors())
    head = light.lm_head
    head.packed = PackedLinear(matrix, None, form)  # includes the embedding map
    head.weight = None  # type: ignore[assignment]
    head.embedding_map = None
    for module in list(light.backbone.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child.weight, child.bias, form))
    for block in light.backbone:
        assert isinstance(block, DecoderBlock)
        block.attention.reads_cache_natively = head.packed.own_code
    return light.eval()
