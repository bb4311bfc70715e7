"""A model with weights of fewer bytes, bf16 or int8, for generation, which reads every weight once per token.

For one or two rows only the weights are rounded; activations and sums stay in float32. For more rows (prompts, batches)
the products are oneDNN's, with activations rounded to bf16 (where the processor multiplies bf16), or to 8 bits per row
beside int8 weights. Norms, attention and cache stay in float32.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hectogpt.generate.compiled import FEW_ROWS, CompiledDecodeBlock
from hectogpt.model.lm_head import LMHead
from hectogpt.model.transformer import Transformer

WeightFormat = Literal["float32", "bfloat16", "int8"]


def _onednn_multiplies_bf16() -> bool:
    """Whether this processor has what oneDNN's bf16 products need (on x86 from AVX-512 on), which raise without it.
    Weights are then widened to float32 for a product."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """x -> x W^T + b with W [out, in] in float32, bfloat16, or int8 and one float32 scale per row of W.

    int8 rounds to multiples of max|row| / 127, so a weight is off by at most max|row| / 254.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None, form: WeightFormat) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.blocked: Tensor | None = None
        weight, scale = weight.detach().float(), None
        if form == "int8":
            scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127
            weight = (weight / scale[:, None]).round().to(torch.int8)
        elif form == "bfloat16":
            weight = weight.bfloat16()
        # Upper and lower half of the rows are read side by side, so their number is made even.
        self.register_buffer("weight", F.pad(weight, (0, 0, 0, self.out_features % 2)).contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows out"]:
        rows = x.numel() // self.in_features
        if torch.compiler.is_compiling() and rows <= FEW_ROWS:
            y = self._gemv(x, rows)
        elif self.weight.dtype == torch.int8 and rows > FEW_ROWS and x.device.type == "cpu":
            y = self._gemm_int8(x, rows)
        else:
            y = self._gemm(x)
        if self.scale is not None:
            y = y * self.scale
        return y if self.bias is None else y + self.bias

    def _gemm(self, x: Tensor) -> Tensor:
        """A matrix product by oneDNN, faster than MKL's in float32 on AMD processors (measured: 106 and 89 GFLOP/s)."""
        exact = self.weight.dtype == torch.float32 or (x.device.type == "cpu" and not _onednn_multiplies_bf16())
        x, weight = (t.to(torch.float32 if exact else torch.bfloat16) for t in (x, self.weight))
        if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
            one_token = x.dim() == 2 or x.shape[-2] == 1
            if one_token and FEW_ROWS < x.shape[0] <= 64 and self.weight.dtype != torch.int8:
                # A second copy of the weights, in blocks, pays where it is read again for every token of a batch.
                if self.blocked is None:
                    self.blocked = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
                weight = self.blocked
            y = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        else:
            y = F.linear(x, weight)
        return y[..., : self.out_features].float()

    def _gemm_int8(self, x: Tensor, rows: int) -> Tensor:
        """Integer products with each row of x rounded to 8 bits too (2208.07339, section 3.1), twice bf16's speed."""
        step = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127
        rounded = (x / step).round().to(torch.int8).reshape(rows, -1)
        y = torch._int_mm(rounded, self.weight.t())[:, : self.out_features]
        return y.view(*x.shape[:-1], -1).float() * step

    def _gemv(self, x: Tensor, rows: int) -> Tensor:
        """Written for the compiler: one loop over W that widens, multiplies and adds up, for all rows at once.

        Two independent sums per row hide the latency of an addition. as_strided makes the compiler store x first;
        otherwise it would compute the norm before this product again for each row of W.
        """
        stored = x.contiguous().as_strided((rows, self.in_features), (self.in_features, 1))
        wide = self.weight.view(2, -1, self.in_features).float()
        sums = [(half * row).sum(dim=-1) for row in stored.unbind(0) for half in wide.unbind(0)]
        y = torch.stack(sums).view(rows, -1)[:, : self.out_features]
        return y.reshape(*x.shape[:-1], self.out_features)


class QuantizedLMHead(LMHead):
    """The vocabulary head with its whole matrix, the embedding map included, in one PackedLinear."""

    def __init__(self, head: LMHead, embeddings: Tensor, form: WeightFormat, *, compile: bool) -> None:
        nn.Module.__init__(self)
        self.config, self.vocab_size, self.unused = head.config, head.vocab_size, head.unused
        self.packed = PackedLinear(head.matrix(embeddings), None, form)  # the bias is added outside the soft cap
        self.one_token = torch.compile(self.packed) if compile else self.packed
        self.bias, self.embedding_map = head.bias, None
        self.register_buffer("row_of_token", head.row_of_token)

    def products(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        few = hidden.numel() <= FEW_ROWS * hidden.shape[-1]
        # contiguous: code is generated for one layout
        return self.one_token(hidden.contiguous()) if few else self.packed(hidden)


class QuantizedTransformer(Transformer):
    """A copy for generation whose linear maps, vocabulary head included, hold their weights in a smaller format.

    The embedding tables stay in float32, since a token reads one row of them; they share memory with `model`.
    `compile` generates code for the one-token step at its first use (seconds, kept on disk by torch; needs a C++
    compiler on the CPU). Without it bf16 and int8 save memory but, for one or two texts, no time.
    """

    def __init__(self, model: Transformer, form: WeightFormat = "float32", *, compile: bool = False) -> None:
        nn.Module.__init__(self)
        self.config, self.form = model.config, form
        self.embeddings, self.position_embeddings = model.embeddings, model.position_embeddings
        self.inputs, self.value_embeddings = model.inputs, model.value_embeddings
        self.final_layer_norm, self.pointer = model.final_layer_norm, model.pointer
        # The memo keeps parameters shared until their linear map is replaced.
        shared: dict[int, object] = {id(p): p for p in model.parameters()}
        self.backbone = copy.deepcopy(model.backbone, shared)
        for module in list(self.backbone.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, PackedLinear(child.weight, child.bias, form))
        self.lm_head = QuantizedLMHead(model.lm_head, model.embeddings.weight, form, compile=compile)
        self.eval()
        if compile:
            self.backbone = nn.ModuleList(CompiledDecodeBlock(block) for block in self.backbone)


def weight_bytes(model: Transformer) -> int:
    """Bytes of weights that one decoded token reads: all but the embedding tables, of which it reads a row each (the
    whole embedding where the head's embedding map reads it)."""
    modules = [model.backbone, model.lm_head, *([model.embeddings] if model.lm_head.embedding_map is not None else [])]
    tensors = [t for m in modules for t in (*m.buffers(), *m.parameters())]
    return sum(t.numel() * t.element_size() for t in dict.fromkeys(tensors))
