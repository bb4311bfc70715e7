"""A model with weights of fewer bytes, bf16, int8 or int4, for generation, which reads every weight once per token.

int8 and int4 products are our own where they can be compiled (native.py): the rows of x are rounded to 8 bits, each by
its own maximum, and every weight is read once for all rows. Elsewhere, and in bf16, only the weights are rounded for
one or two rows; for more rows (prompts, batches) the products are oneDNN's, with activations rounded to bf16 (where the
processor multiplies bf16), or to 8 bits per row beside int8 weights. Norms, attention and cache stay in float32.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn

from hectogpt import torch_private
from hectogpt.generation import native
from hectogpt.generation.compiled import FEW_ROWS, CompiledDecodeBlock, OwnAttention
from hectogpt.model.lm_head import LMHead
from hectogpt.model.transformer import DecoderBlock, Transformer

WeightFormat = Literal["float32", "bfloat16", "int8", "int4"]
BITS: dict[str, native.Bits] = {"int8": 8, "int4": 4}


def round_rows(weight: Float[Tensor, "out in"]) -> tuple[Int8[Tensor, "out in"], Float[Tensor, "out 1"]]:
    """int8: multiples of max|row| / 127, and this scale. A weight is off by at most max|row| / 254."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
    return (weight / scale).round().to(torch.int8), scale


def round_groups(weight: Float[Tensor, "out in"]) -> tuple[Int8[Tensor, "out in"], Float[Tensor, "out groups"]]:
    """int4: numbers from -8 to 7 and a float16 scale for each 32 weights of a row. A scale may be negative, so that the
    largest weight of a group is -8 times it."""
    groups = F.pad(weight, (0, -weight.shape[1] % native.GROUP)).unflatten(1, (-1, native.GROUP))
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    scale = (largest / -8).half().float()
    numbers = (groups / torch.where(scale == 0, 1.0, scale)).round_().clamp_(-8, 7)
    return numbers.to(torch.int8).flatten(1)[:, : weight.shape[1]], scale[..., 0]


def widen_groups(numbers: Int8[Tensor, "out in"], scale: Float[Tensor, "out groups"]) -> Float[Tensor, "out in"]:
    """The weights that int4 numbers and their scales stand for."""
    return numbers * scale.repeat_interleave(native.GROUP, dim=1)[:, : numbers.shape[1]]


class PackedLinear(nn.Module):
    """x -> x W^T + b with W [out, in] in float32, bfloat16, int8 with a float32 scale per row (round_rows), or int4
    with a float16 scale per 32 weights (round_groups).

    own_code: int8 and int4 are laid out for native.py, on the CPU; `excess` then belongs to the layout. Without it int4
    weights, rounded as they are, are held in bf16.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    excess: Tensor | None

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        form: WeightFormat,
        *,
        own_code: bool = False,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed: native.PackedWeights | None = None
        self.blocked: Tensor | None = None
        weight, scale, excess = weight.detach().float(), None, None
        if form in BITS:
            weight, scale = (round_rows if form == "int8" else round_groups)(weight)
        bias = None if bias is None else bias.detach().float()
        if own_code and form in BITS:
            assert scale is not None
            self.packed = native.pack(BITS[form], weight, scale)._replace(bias=bias)
            _, weight, scale, excess, bias = self.packed
        elif form == "int4":
            assert scale is not None
            weight, scale = widen_groups(weight, scale).bfloat16(), None
        elif form == "bfloat16":
            weight = weight.bfloat16()
        if self.packed is None:
            # Upper and lower half of the rows are read side by side, so their number is made even.
            weight = F.pad(weight, (0, 0, 0, self.out_features % 2)).contiguous()
            scale = None if scale is None else scale[:, 0]
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("excess", excess)
        self.register_buffer("bias", bias)

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows out"]:
        if self.packed is not None:
            return native.linear(x, self.out_features, self.packed)
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
        exact = self.weight.dtype == torch.float32 or (x.device.type == "cpu" and not torch_private.onednn_has_bf16())
        x, weight = (t.to(torch.float32 if exact else torch.bfloat16) for t in (x, self.weight))
        if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
            one_token = x.dim() == 2 or x.shape[-2] == 1
            if one_token and FEW_ROWS < x.shape[0] <= 64 and self.weight.dtype != torch.int8:
                # A second copy of the weights, in blocks, pays where it is read again for every token of a batch.
                if self.blocked is None:
                    self.blocked = torch_private.onednn_blocks(weight, x.shape[0])
                weight = self.blocked
            y = torch_private.onednn_linear(x, weight)
        else:
            y = F.linear(x, weight)
        return y[..., : self.out_features].float()

    def _gemm_int8(self, x: Tensor, rows: int) -> Tensor:
        """Integer products with each row of x rounded to 8 bits too (2208.07339, section 3.1), twice bf16's speed."""
        step = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127
        rounded = (x / step).round().to(torch.int8).reshape(rows, -1)
        y = torch_private.int8_product(rounded, self.weight.t())[:, : self.out_features]
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

    def __init__(self, head: LMHead, packed: PackedLinear, *, compile: bool) -> None:
        nn.Module.__init__(self)
        self.config, self.vocab_size, self.unused = head.config, head.vocab_size, head.unused
        self.packed = packed
        self.one_token = torch.compile(packed) if compile else packed
        self.bias, self.embedding_map = head.bias, None  # the bias is added outside the soft cap
        self.register_buffer("row_of_token", head.row_of_token)

    def products(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        few = hidden.numel() <= FEW_ROWS * hidden.shape[-1]
        # contiguous: code is generated for one layout
        return self.one_token(hidden.contiguous()) if few else self.packed(hidden)


class QuantizedTransformer(Transformer):
    """A copy for generation whose linear maps, vocabulary head included, hold their weights in a smaller format.

    The embedding tables stay in float32, since a token reads one row of them; they share memory with `model`. With
    int4 the vocabulary head is int8.
    `compile` uses machine code that is made here once (seconds) and kept on disk, and needs a C++ compiler on the CPU:
    for int8 and int4 that of native.py where it works (`own_code` then says so), otherwise torch's, for the one-token
    step. Without either the small formats save memory but, for one or two texts, no time.
    """

    def __init__(self, model: Transformer, form: WeightFormat = "float32", *, compile: bool = False) -> None:
        nn.Module.__init__(self)
        self.config, self.form = model.config, form
        self.embeddings, self.position_embeddings = model.embeddings, model.position_embeddings
        self.inputs, self.value_embeddings = model.inputs, model.value_embeddings
        self.final_layer_norm, self.pointer = model.final_layer_norm, model.pointer
        on_cpu = model.embeddings.weight.device.type == "cpu"
        self.own_code = compile and form in BITS and on_cpu and native.fault() is None
        # The memo keeps parameters shared until their linear map is replaced.
        shared: dict[int, object] = {id(p): p for p in model.parameters()}
        self.backbone = copy.deepcopy(model.backbone, shared)
        for module in list(self.backbone.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, PackedLinear(child.weight, child.bias, form, own_code=self.own_code))
        if self.own_code:
            for block in self.backbone:
                assert isinstance(block, DecoderBlock)
                block.attention = OwnAttention(block.attention)  # type: ignore[assignment]
        # In 4 bits the head alone changes most of the tokens that int4 changes, so it keeps 8.
        head_form: WeightFormat = "int8" if form == "int4" else form
        head = PackedLinear(model.lm_head.matrix(model.embeddings.weight), None, head_form, own_code=self.own_code)
        compile = compile and not self.own_code
        self.lm_head = QuantizedLMHead(model.lm_head, head, compile=compile)
        self.eval()
        if compile:
            self.backbone = nn.ModuleList(CompiledDecodeBlock(block) for block in self.backbone)


def weight_bytes(model: Transformer) -> int:
    """Bytes of weights that one decoded token reads: all but the embedding tables, of which it reads a row each (the
    whole embedding where the head's embedding map reads it)."""
    modules = [model.backbone, model.lm_head, *([model.embeddings] if model.lm_head.embedding_map is not None else [])]
    tensors = [t for m in modules for t in (*m.buffers(), *m.parameters())]
    return sum(t.numel() * t.element_size() for t in dict.fromkeys(tensors))
