"""Cross entropy of a large vocabulary without its logits: exact, in chunks of rows, with its own
backward pass.

The gradients of a chunk are computed while its logits are in the cache, and only scaled in the
backward pass. The full matrix of logits never exists. Second derivatives are refused, and so are
targets out of range."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hectogpt import torch_private
from hectogpt.errors import DATA, UserError
from hectogpt.kernels import native
from hectogpt.kernels.dtypes import float32_by_onednn

# Bytes of one chunk of logits: larger ones leave the last-level cache, smaller ones repack the
# weight more often, which costs in proportion to d. Up to four times as much from d = 512 on. On
# the CPU bf16 logits take more: sums over chunks are rounded to bf16.
CHUNK_BYTES = {torch.bfloat16: 52 << 20, torch.float32: 11 << 20}
CHUNK_BYTES_ON_GPU = 512 << 20
# From this d on the products with a gradient [vocab, d] are faster than those with [d, vocab].
WIDE = 64
# The eager form works on this much at a time. On a processor whose last-level cache is slow
# (Intel, 2 MB of second level a core) 16 MB cost a fifth more processor time. Below 2 MB the
# thread barriers of every operation cost more.
BLOCK_BYTES = 4 << 20
# With a soft cap the C++ kernel subtracts (maximum of the raw logits) + (maximum of the bias),
# which is at most the spread of the bias above the true maximum: beyond this many nats
# probabilities of 1e-12 would underflow.
BIAS_SPREAD = 60.0


class Mixture(NamedTuple):
    """A second distribution beside the softmax, as far as a loss needs it: for each row the
    probability it gives to the target, and its weight w in (1 - w) softmax + w other. Gradients
    flow into both."""

    probability: Float[Tensor, "*rows"]
    weight: Float[Tensor, "*rows"]


class Inputs(NamedTuple):
    """The tensors that may need gradients. p_other, w_other: the two tensors of a Mixture."""

    x: Float[Tensor, "rows d"]
    weight: Float[Tensor, "vocab d"]
    bias: Float[Tensor, " vocab"] | None
    p_other: Float[Tensor, " rows"] | None
    w_other: Float[Tensor, " rows"] | None


def fused_losses(
    x: Float[Tensor, "*rows d"],
    weight: Float[Tensor, "vocab d"],
    targets: Int[Tensor, "*rows"],
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    mixture: Mixture | None = None,
    weights: Float[Tensor, "*rows"] | None = None,
    soft_cap: float | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    precision: torch.dtype | None = None,
    chunk_rows: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "*rows"]]:
    """Cross entropy in nats of targets under softmax(cap(x weight^T) + bias), and that of each
    target, which has no gradient.

    soft_cap: c of cap(z) = c tanh(z / c). The bias stays outside the cap (Gemma 2's, 2408.00118),
    so that a log-unigram prior keeps its range. With a mixture the loss is -log((1 - w) softmax +
    w probability). weights, which get no gradient, multiply the targets' losses in the sum, or in
    a mean that still divides by their number. precision: dtype of the matrix products (None: that
    of the inputs). chunk_rows: rows whose logits exist at a time (None: what suits the device).
    The loss is summed in the widest dtype that the device has and returned in float32 (float64 for
    float64 inputs).

    Raises UserError (DATA) for a target outside [0, vocab) and for a mean over no target, on the
    CPU. On CUDA, where looking would stall the queue, the first is a device assert and the second
    gives NaN."""
    vocab, d = weight.shape
    target = targets.reshape(-1)
    check_targets(target, vocab)
    acc_dtype = (
        torch.float64
        if torch.promote_types(x.dtype, weight.dtype) == torch.float64
        else torch.float32
    )
    row_weight = torch.ones(target.shape, dtype=acc_dtype, device=x.device)
    if weights is not None:
        row_weight *= weights.detach().reshape(-1)
    if reduction == "mean":
        if x.device.type == "cpu" and not len(target):
            raise UserError(
                "the mean loss over no targets does not exist",
                why="it divides by their number",
                code=DATA,
            )
        row_weight /= len(target)
    matmul_dtype = precision or torch.promote_types(x.dtype, weight.dtype)
    by_kernel = x.device.type == "cpu" and acc_dtype == torch.float32
    by_kernel = by_kernel and native_softmax_fits(soft_cap, matmul_dtype, bias)
    p_other, w_other = (
        (None, None) if mixture is None else (t.reshape(-1).to(acc_dtype) for t in mixture)
    )
    inputs = Inputs(x.reshape(-1, d), weight, bias, p_other, w_other)
    chunk = max(
        1, min(chunk_rows or _rows_at_a_time(x.device, vocab, d, matmul_dtype), len(inputs.x))
    )
    needs_grad = tuple(
        torch.is_grad_enabled() and t is not None and t.requires_grad for t in inputs
    )
    with torch.no_grad():
        logits = x.new_empty(chunk, vocab, dtype=matmul_dtype)
        softmax = ChunkSoftmax(
            logits, acc_dtype, None if bias is None else bias.to(acc_dtype), soft_cap, by_kernel
        )
        loss, rows, grads = _loss_and_gradients(inputs, target, row_weight, softmax, needs_grad)
    if any(needs_grad):
        loss = _WithGradients.apply(loss, grads, *inputs)
    return loss, rows.view(targets.shape)


def check_targets(target: Int[Tensor, " rows"], vocab: int) -> None:
    """Name the first target outside the vocabulary; on the CPU only, since it needs the values."""
    if target.device.type != "cpu":
        return
    wrong = (target < 0) | (target >= vocab)
    if bool(wrong.any()):
        where = int(wrong.nonzero()[0])
        raise UserError(
            f"target id {int(target[where])} at flat position {where} is outside the vocabulary",
            why=f"ids run from 0 to {vocab - 1}",
            fix="tokenise the text with the tokenizer of this model, or enlarge model.vocab_size",
            code=DATA,
        )


class _WithGradients(torch.autograd.Function):
    """The loss, whose gradients with respect to the inputs are known already; backward only scales
    them.
    """

    @staticmethod
    def forward(ctx, loss, grads, *inputs):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*grads)
        return loss.clone()

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        # Not torch's once_differentiable: it lets a plain loss.backward(create_graph=True) pass,
        # whose second derivatives would then lack this loss's part without a word.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the fused cross entropy has no second derivatives: leave out create_graph=True"
            )
        # On the CPU a factor of 1 costs no pass; on CUDA looking at it would be a sync.
        unit = grad_output.device.type == "cpu" and grad_output.item() == 1.0
        scaled = (
            g if g is None or unit else g * grad_output.to(g.dtype) for g in ctx.saved_tensors
        )
        return (None, None, *scaled)


def _loss_and_gradients(
    inputs: Inputs,
    target: Tensor,
    row_weight: Tensor,
    softmax: ChunkSoftmax,
    needs_grad: tuple[bool, ...],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The loss, that of every row, and the wanted gradients, chunk by chunk.

    Three products a chunk: z = x W^T; then, with dz the gradient with respect to z up to a factor
    per row, grad_x = (dz W) * factor and grad_W += dz^T (x * factor), or its transpose. The factor
    holds the row's weight, the C++ kernel's 1 / sum(exp) and the mixture's scale, so that no pass
    over the logits has to apply them."""
    acc_dtype = row_weight.dtype
    logits = softmax.logits
    dtype = logits.dtype
    chunk = len(logits)
    x = _convert(inputs.x, dtype)
    weight = _convert_weight(inputs.weight, dtype)
    grads = _Gradients(inputs, acc_dtype, dtype, needs_grad)
    losses = torch.empty(len(target), dtype=acc_dtype, device=target.device)
    with float32_by_onednn(dtype):
        for start in range(0, len(target), chunk):
            rows = slice(start, min(start + chunk, len(target)))
            z = logits[: rows.stop - start]
            torch.mm(x[rows], weight.t(), out=z)
            target_logit = None
            if dtype != acc_dtype:
                # bf16 rounds a logit to 8 bits: the target's own is recomputed, and used in the
                # sum as well.
                target_logit = (
                    inputs.x[rows].to(acc_dtype) * inputs.weight[target[rows]].to(acc_dtype)
                ).sum(1)
            losses[rows], scale, dz, dz_bias = softmax(z, target[rows], target_logit)
            factor = row_weight[rows]
            if inputs.p_other is not None and inputs.w_other is not None:
                losses[rows], softmax_slope, *slopes = _mix(
                    losses[rows], inputs.p_other[rows], inputs.w_other[rows]
                )
                grads.add_mixture(rows, factor, slopes)
                factor = factor * softmax_slope
            factor = factor if scale is None else factor * scale
            grads.add(rows, inputs.x[rows], factor, dz, dz_bias, weight)
    wide = torch.float64
    loss = torch.dot(losses.to(wide), row_weight.to(wide)).to(row_weight.dtype)
    return loss, losses, grads.result(inputs)


def _rows_at_a_time(device: torch.device, vocab: int, d: int, dtype: torch.dtype) -> int:
    chunk_bytes = CHUNK_BYTES.get(dtype, 52 << 20) if device.type == "cpu" else CHUNK_BYTES_ON_GPU
    return max(16, chunk_bytes * min(max(d, 128), 512) // 128 // (vocab * dtype.itemsize))


def _padding(d: int, dtype: torch.dtype) -> int:
    """Columns of zeros to add. bf16 is multiplied in pairs: at d = 33 the three products take 0.48
    s a step, padded to 34 only 0.34 s."""
    return d % 2 if dtype == torch.bfloat16 else 0


def _convert(t: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as the products want it."""
    t, pad = t.to(dtype), _padding(t.shape[1], dtype)
    return F.pad(t, (0, pad)) if pad else t


_converted: list[tuple[Tensor, Tensor]] | None = (
    None  # the last weight and its result, inside `unchanging_weights`
)


@contextmanager
def unchanging_weights() -> Iterator[None]:
    """Within the context no weight changes, so that several losses in turn convert the same weight
    once.
    """
    global _converted
    before = _converted
    _converted = []
    try:
        yield
    finally:
        _converted = before


def _convert_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    for last, result in _converted or ():
        if (
            last.data_ptr() == weight.data_ptr()
            and last.shape == weight.shape
            and result.dtype == dtype
        ):
            return result
    result = _convert(weight, dtype)
    if _converted is not None:
        _converted[:] = [(weight, result)]
    return result


def _mix(loss: Tensor, p_other: Tensor, w_other: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows' losses under the mixture, and their derivatives with respect to the softmax's loss,
    p_other and w_other.

    In logarithms, because a softmax alone may give a target less than float32 can hold.
    """
    own = torch.log1p(-w_other) - loss
    mixed = -torch.logaddexp(own, (w_other * p_other).log())
    inverse = mixed.clamp(
        max=80.0
    ).exp()  # 1 / probability; beyond e^80 only a probability of 0 multiplies it
    return mixed, (own + mixed).exp(), -w_other * inverse, (mixed - loss).exp() - p_other * inverse


class _Gradients:
    """Sums of the wanted gradients over the chunks; None for those that nobody asked for."""

    def __init__(
        self,
        inputs: Inputs,
        acc_dtype: torch.dtype,
        matmul_dtype: torch.dtype,
        needs_grad: tuple[bool, ...],
    ) -> None:
        (rows, d), vocab, device = inputs.x.shape, len(inputs.weight), inputs.x.device
        self.acc_dtype = acc_dtype
        self.matmul_dtype = matmul_dtype
        self.pad = _padding(d, matmul_dtype)
        need_x, need_weight, need_bias, *need_other = needs_grad
        self.x = torch.empty_like(inputs.x) if need_x else None
        mixed = matmul_dtype != acc_dtype
        self.upright = not mixed and d >= WIDE  # whether the weight's gradient is [vocab, d]
        shape = (vocab, d) if self.upright else (d, vocab)
        self.weight = torch.zeros(shape, dtype=acc_dtype, device=device) if need_weight else None
        self.bias = torch.zeros(1, vocab, dtype=acc_dtype, device=device) if need_bias else None
        self.other = [
            torch.empty(rows, dtype=acc_dtype, device=device) if need else None
            for need in need_other
        ]
        # Of one chunk, in the products' dtype, if that is not the sum's.
        self.partial = (
            inputs.x.new_empty(d + self.pad, vocab, dtype=matmul_dtype)
            if need_weight and mixed
            else None
        )

    def add_mixture(self, rows: slice, factor: Tensor, slopes: list[Tensor]) -> None:
        """Set the gradients of the mixture's two tensors for some rows."""
        for grad, slope in zip(self.other, slopes, strict=True):
            if grad is not None:
                grad[rows] = factor * slope

    def add(
        self, rows: slice, x: Tensor, factor: Tensor, dz: Tensor, dz_bias: Tensor, weight: Tensor
    ) -> None:
        """Add what the logits of some rows contribute."""
        if self.bias is not None:
            self.bias.add_(torch.mm(factor[None].to(self.matmul_dtype), dz_bias))
        if self.x is not None:
            self.x[rows] = torch.mm(dz, weight)[:, : x.shape[1]] * factor[:, None]
        if self.weight is not None:
            scaled = (x.to(self.acc_dtype) * factor[:, None]).to(self.matmul_dtype)
            if self.upright:
                self.weight.addmm_(dz.t(), scaled)
            elif self.partial is None:
                self.weight.addmm_(scaled.t(), dz)
            else:
                torch.mm(F.pad(scaled, (0, self.pad)).t(), dz, out=self.partial)
                self.weight.add_(self.partial[: x.shape[1]])

    def result(self, inputs: Inputs) -> list[Tensor | None]:
        """The gradients in the order and the dtypes of the inputs."""
        weight = (
            self.weight if self.weight is None or self.upright else self.weight.t().contiguous()
        )
        weight = None if weight is None else weight.to(inputs.weight.dtype)
        bias = (
            None
            if self.bias is None or inputs.bias is None
            else self.bias[0].to(inputs.bias.dtype)
        )
        return [self.x, weight, bias, *self.other]


# --- the softmax of a chunk of logits
# ---

# Losses of its rows and the gradient with respect to the logits, in one pass, by torch's
# operations over blocks of rows that fit the last-level cache, or by the C++ kernel. For bf16
# logits the target's own comes in float32, because the one in the chunk is rounded.


class ChunkSoftmax:
    """The softmax of chunks of logits, and the buffers that all chunks of a call share: fresh ones
    would cost a page fault per 4 KiB. logits: [rows, vocab], where the chunks' products go; bias:
    [vocab], in acc_dtype."""

    def __init__(
        self,
        logits: Tensor,
        acc_dtype: torch.dtype,
        bias: Tensor | None,
        soft_cap: float | None,
        by_kernel: bool,
    ) -> None:
        self.logits = logits
        self.acc_dtype = acc_dtype
        self.by_kernel = by_kernel
        self.bias = bias
        self.soft_cap = soft_cap
        self.bias_buffer = torch.empty_like(logits) if soft_cap and bias is not None else None
        rows, vocab = logits.shape
        on_cpu = logits.device.type == "cpu"
        self.block = (
            min(rows, max(1, BLOCK_BYTES // (vocab * acc_dtype.itemsize))) if on_cpu else rows
        )
        self.rows = torch.arange(rows, device=logits.device)
        block = (self.block, vocab)
        self.work = (
            logits.new_empty(block, dtype=acc_dtype)
            if logits.dtype != acc_dtype and not by_kernel
            else None
        )
        self.spare = (
            logits.new_empty(block, dtype=acc_dtype) if soft_cap and not by_kernel else None
        )

    def __call__(
        self, z: Tensor, target: Tensor, target_logit: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Losses of the rows of `logits` in z, the factor that dz lacks (1 / sum, or None), dz in
        place of the logits, and dz with respect to the bias."""
        dz_bias = None if self.bias_buffer is None else self.bias_buffer[: len(z)]
        scale = None
        if self.by_kernel:
            losses, scale = native.head_softmax(
                z, dz_bias, target.contiguous(), target_logit, self.bias, self.soft_cap
            )
        else:
            losses = self._by_torch(z, dz_bias, target, target_logit)
        return losses, scale, z, z if dz_bias is None else dz_bias

    def _by_torch(
        self, z: Tensor, dz_bias: Tensor | None, target: Tensor, target_logit: Tensor | None
    ) -> Tensor:
        """Losses of the rows; z becomes dz, dz_bias dz with respect to the bias."""
        losses = torch.empty(
            len(z), dtype=z.dtype if self.work is None else torch.float32, device=z.device
        )
        for start in range(0, len(z), self.block):
            rows = slice(start, min(start + self.block, len(z)))
            f = z[rows] if self.work is None else self.work[: rows.stop - start].copy_(z[rows])
            here = (self.rows[: len(f)], target[rows])
            if target_logit is not None:
                f[here] = target_logit[rows]
            losses[rows] = self._rows_by_torch(f, here, None if dz_bias is None else dz_bias[rows])
            if self.work is not None:
                z[rows].copy_(f)
        return losses

    def _rows_by_torch(
        self, z: Tensor, here: tuple[Tensor, Tensor], dz_bias: Tensor | None
    ) -> Tensor:
        """Loss of each row; z, the raw logits, becomes (softmax - onehot) (1 - tanh^2), the
        gradient with respect to them. here: row numbers and targets. dz_bias, if there, gets
        softmax - onehot, the gradient of the bias."""
        tanh = None
        if self.soft_cap and self.spare is not None:
            tanh = torch.div(z, self.soft_cap, out=self.spare[: len(z)]).tanh_()
            torch.mul(tanh, self.soft_cap, out=z)
        if self.bias is not None:
            z.add_(self.bias)
        top = z.amax(1)
        target_logit = z[here]
        torch_private.softmax_(z)
        loss = top - z.amax(1).log() - target_logit  # log-sum-exp: the largest p is exp(top) / sum
        z[here] += -1  # indexing: scatter_ copies the whole matrix twice
        if dz_bias is not None:
            dz_bias.copy_(z)
        if tanh is not None:
            z.mul_(torch.mul(tanh, tanh, out=tanh).neg_().add_(1))
        return loss


def native_softmax_fits(soft_cap: float | None, dtype: torch.dtype, bias: Tensor | None) -> bool:
    """Whether the C++ kernel is in use and takes such logits; with a cap the spread of this bias
    must allow it.
    """
    if not (native.in_use() and dtype in native.DTYPES):
        return False
    return (
        soft_cap is None
        or bias is None
        or bool(bias.detach().amax() - bias.detach().amin() <= BIAS_SPREAD)
    )
