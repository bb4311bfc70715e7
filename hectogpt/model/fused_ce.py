"""Cross entropy over a large vocabulary without storing the logits: exact, in chunks of rows.

The gradients of a chunk are computed while the chunk's logits are in the CPU's cache, and the
backward pass only scales the gradients. The full matrix of logits never exists. Second derivatives
and targets out of range are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hectogpt import torch_private
from hectogpt.errors import DataError
from hectogpt.kernels import native
from hectogpt.kernels.dtypes import float32_by_onednn, prefers_onednn

# Bytes of one chunk of logits. Larger chunks do not fit the last-level cache; smaller ones repack
# the weight more often. Repacking costs time proportional to d, so chunks grow with d between 128
# and 512, up to fourfold. On the CPU bf16 chunks are larger, because the sum over each chunk is
# rounded to bf16.
CHUNK_BYTES = {torch.bfloat16: 52 << 20, torch.float32: 11 << 20}
CHUNK_BYTES_ON_GPU = 512 << 20
# From this d on, it is faster to compute the weight's gradient as [vocab, d] than as [d, vocab].
WIDE = 64
# Below this d, C++ also computes the products, on CPUs where that is faster. At or above it, bf16
# products are a tenth faster with the matrix in oneDNN's blocks.
IN_BLOCKS = 128
# Bytes that torch's operations process at a time. On a CPU with a slow last-level cache (Intel,
# 2 MB of second-level cache per core), blocks of 16 MB cost a fifth more CPU time. Below 2 MB the
# thread barriers of every operation cost more.
BLOCK_BYTES = 4 << 20
# With a soft cap, the C++ kernel subtracts (maximum of the raw logits) + (maximum of the bias).
# This exceeds the true maximum by at most the spread of the bias. If the spread were larger than
# this many nats, probabilities of 1e-12 would underflow.
BIAS_SPREAD = 60.0


class Mixture(NamedTuple):
    """A second distribution to mix with the softmax, reduced to what a loss needs.

    For each row: the probability that this distribution gives to the target, and its weight w in
    (1 - w) softmax + w other. Gradients flow into both.
    """

    probability: Float[Tensor, "*rows"]
    weight: Float[Tensor, "*rows"]


class Inputs(NamedTuple):
    """The tensors that may need gradients; p_other and w_other are a Mixture's tensors."""

    x: Float[Tensor, "rows d"]
    weight: Float[Tensor, "vocab d"]
    bias: Float[Tensor, " vocab"] | None
    p_other: Float[Tensor, " rows"] | None
    w_other: Float[Tensor, " rows"] | None


@dataclass(frozen=True)
class How:
    """Settings for computing losses.

    Attributes:
        soft_cap: c of cap(z) = c tanh(z / c).
        reduction: "mean" or "sum" of the targets' losses.
        precision: dtype of the matrix products; None uses that of the inputs.
        chunk_rows: rows whose logits exist at the same time; None chooses a number for the device.
        kernels: use the C++ kernel where it fits.
        converted: the result of `convert` for the weight, if already computed.
    """

    soft_cap: float | None = None
    reduction: Literal["mean", "sum"] = "mean"
    precision: torch.dtype | None = None
    chunk_rows: int | None = None
    kernels: bool = False
    converted: Tensor | None = None


def fused_losses(
    x: Float[Tensor, "*rows d"],
    weight: Float[Tensor, "vocab d"],
    targets: Int[Tensor, "*rows"],
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    mixture: Mixture | None = None,
    weights: Float[Tensor, "*rows"] | None = None,
    how: How = How(),
) -> tuple[Float[Tensor, ""], Float[Tensor, "*rows"]]:
    """Cross entropy in nats of targets under softmax(cap(x weight^T) + bias).

    Returns the loss, and the loss of each target, which has no gradient.

    Args:
        x: hidden states.
        weight: the matrix of the head.
        targets: token ids.
        bias: added outside the soft cap (which comes from Gemma 2, 2408.00118), so that the cap
            does not limit a log-unigram prior.
        mixture: makes the loss -log((1 - w) softmax + w probability).
        weights: factors of the targets' losses, without gradients. A mean still divides by the
            number of targets.
        how: settings of the computation.

    The loss is summed in the widest dtype of the device and returned in float32 (float64 for
    float64 inputs). On the CPU, raises UserError (DATA) for a target outside [0, vocab) and for a
    mean over no targets. On CUDA, where checking would stall the queue, such a target triggers a
    device assert, and such a mean is NaN.
    """
    vocab, d = weight.shape
    target = targets.reshape(-1).long()
    check_targets(target, vocab)
    acc_dtype = (
        torch.float64
        if torch.promote_types(x.dtype, weight.dtype) == torch.float64
        else torch.float32
    )
    row_weight = torch.ones(target.shape, dtype=acc_dtype, device=x.device)
    if weights is not None:
        row_weight *= weights.detach().reshape(-1)
    if how.reduction == "mean":
        if x.device.type == "cpu" and not len(target):
            raise DataError(
                "the mean loss of no targets is undefined",
                why="it divides by their number",
            )
        row_weight /= len(target)
    matmul_dtype = how.precision or torch.promote_types(x.dtype, weight.dtype)
    by_kernel = x.device.type == "cpu" and acc_dtype == torch.float32
    by_kernel = by_kernel and how.kernels and softmax_fits(how.soft_cap, matmul_dtype, bias)
    p_other, w_other = (
        (None, None) if mixture is None else (t.reshape(-1).to(acc_dtype) for t in mixture)
    )
    inputs = Inputs(x.reshape(-1, d), weight, bias, p_other, w_other)
    chunk = max(
        1, min(how.chunk_rows or _rows_at_a_time(x.device, vocab, d, matmul_dtype), len(inputs.x))
    )
    needs_grad = tuple(
        torch.is_grad_enabled() and t is not None and t.requires_grad for t in inputs
    )
    direct = by_kernel and d < IN_BLOCKS and how.soft_cap is None and prefers_onednn()
    if direct and needs_grad[:3] == (True, True, False):
        other = [torch.empty_like(row_weight) if need else None for need in needs_grad[3:]]
        mix = partial(_mixed, inputs, other, row_weight)
        with torch.no_grad():
            rows, *found = native.cross_entropy(*inputs[:3], target, matmul_dtype, chunk, mix)
        loss = _WithGradients.apply(_mean(rows, row_weight), [*found, None, *other], *inputs)
        return loss, rows.view(targets.shape)
    # If several calls share a matrix, each call would have to store its own copy in blocks.
    blocks = how.converted is None and d >= IN_BLOCKS and matmul_dtype == torch.bfloat16
    blocks = blocks and x.device.type == "cpu" and torch_private.onednn_has_bf16()
    with torch.no_grad():
        # oneDNN's product with blocks allocates its own result, so then one row is enough here.
        logits = x.new_empty(1 if blocks else chunk, vocab, dtype=matmul_dtype).expand(chunk, -1)
        softmax = ChunkSoftmax(
            logits,
            acc_dtype,
            None if bias is None else bias.to(acc_dtype),
            how.soft_cap,
            by_kernel,
        )
        ready = convert(weight, matmul_dtype) if how.converted is None else how.converted
        loss, rows, grads = _loss_and_gradients(
            inputs, target, row_weight, softmax, ready, needs_grad, blocks
        )
    if any(needs_grad):
        loss = _WithGradients.apply(loss, grads, *inputs)
    return loss, rows.view(targets.shape)


def check_targets(target: Int[Tensor, " rows"], vocab: int) -> None:
    """Raise UserError (DATA) that names the first target outside the vocabulary.

    Call it only on the CPU, because it reads the values.
    """
    if target.device.type != "cpu":
        return
    wrong = (target < 0) | (target >= vocab)
    if bool(wrong.any()):
        where = int(wrong.nonzero()[0])
        raise DataError(
            f"target id {int(target[where])} at flat position {where} is outside the vocabulary",
            why=f"ids run from 0 to {vocab - 1}",
            fix="tokenise the text with the tokenizer of this model, or enlarge model.vocab_size",
        )


class _WithGradients(torch.autograd.Function):
    """The loss with gradients computed in advance; the backward pass only scales them."""

    @staticmethod
    def forward(ctx, loss, grads, *inputs):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*grads)
        return loss.clone()

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        # torch's once_differentiable would let loss.backward(create_graph=True) pass, and second
        # derivatives would then silently lack this loss's part.
        native.refuse_second_derivatives("the fused cross entropy")
        # On the CPU a factor of 1 is skipped; on CUDA reading it would synchronise.
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
    weight: Tensor,
    needs_grad: tuple[bool, ...],
    blocks: bool,
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Compute the loss, each row's loss, and the gradients that are needed, chunk by chunk.

    Each chunk takes three products: z = x W^T; then, with dz the gradient with respect to z up to
    a factor per row, grad_x = (dz W) * factor and grad_W += dz^T (x * factor), or its transpose.
    The factor combines the row's weight, the C++ kernel's 1 / sum(exp) and the mixture's scale, so
    that no extra pass over the logits is needed.
    """
    acc_dtype = row_weight.dtype
    logits = softmax.logits
    dtype = logits.dtype
    chunk = len(logits)
    x = convert(inputs.x, dtype)
    grads = _Gradients(inputs, acc_dtype, dtype, needs_grad)
    losses = torch.empty_like(row_weight)
    back = partial(torch.mm, mat2=weight)
    if blocks:
        upright = torch_private.onednn_blocks(weight, chunk)
        if grads.x is not None:
            flat = torch_private.onednn_blocks(weight.t().contiguous(), chunk)
            back = partial(torch_private.onednn_linear, weight=flat)
    with float32_by_onednn(dtype):
        for start in range(0, len(target), chunk):
            rows = slice(start, min(start + chunk, len(target)))
            if blocks:
                z = torch_private.onednn_linear(x[rows], upright)
            else:
                z = torch.mm(x[rows], weight.t(), out=logits[: rows.stop - start])
            target_logit = None
            if dtype != acc_dtype:
                # bf16 rounds a logit to 8 bits, so the target's logit is computed again in a wider
                # dtype. The softmax's sum uses this value as well.
                target_logit = (
                    inputs.x[rows].to(acc_dtype) * inputs.weight[target[rows]].to(acc_dtype)
                ).sum(1)
            losses[rows], scale, dz, dz_bias = softmax(z, target[rows], target_logit)
            factor = _mixed(inputs, grads.other, row_weight, rows, losses[rows])
            factor = factor if scale is None else factor * scale
            grads.add(rows, inputs.x[rows], factor, dz, dz_bias, back)
            del z, dz, dz_bias
    return _mean(losses, row_weight), losses, grads.result()


def _mean(losses: Tensor, row_weight: Tensor) -> Tensor:
    return torch.dot(losses.double(), row_weight.double()).to(row_weight.dtype)


def _rows_at_a_time(device: torch.device, vocab: int, d: int, dtype: torch.dtype) -> int:
    """The number of rows whose logits make a chunk of a good size on this device."""
    chunk_bytes = CHUNK_BYTES.get(dtype, 52 << 20) if device.type == "cpu" else CHUNK_BYTES_ON_GPU
    return max(16, chunk_bytes * min(max(d, 128), 512) // 128 // (vocab * dtype.itemsize))


def convert(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor to the dtype and width of the products.

    bf16 numbers are multiplied in pairs: at d = 33 the three products take 0.48 s per step, or
    0.34 s if padded to 34.
    """
    t = t.to(dtype)
    return F.pad(t, (0, 1)) if dtype == torch.bfloat16 and t.shape[1] % 2 else t


def _mix(loss: Tensor, p_other: Tensor, w_other: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows' losses under the mixture and their derivatives.

    The derivatives are with respect to the softmax's loss, p_other and w_other. The computation is
    in logarithms, because the softmax may give a target a probability too small for float32.
    """
    own = torch.log1p(-w_other) - loss
    mixed = -torch.logaddexp(own, (w_other * p_other).log())
    inverse = mixed.clamp(
        max=80.0
    ).exp()  # 1 / probability; beyond e^80 it is only multiplied by a probability of 0
    return mixed, (own + mixed).exp(), -w_other * inverse, (mixed - loss).exp() - p_other * inverse


def _mixed(
    inputs: Inputs, grads: Sequence[Tensor | None], factor: Tensor, rows: slice, losses: Tensor
) -> Tensor:
    """Mix some rows' losses, in place, with the other distribution if there is one.

    Sets the gradients of the mixture's two tensors for these rows. Returns the factors of the
    rows' gradients.
    """
    factor = factor[rows]
    if inputs.p_other is None or inputs.w_other is None:
        return factor
    mixed, slope, *slopes = _mix(losses, inputs.p_other[rows], inputs.w_other[rows])
    losses.copy_(mixed)
    for grad, other in zip(grads, slopes, strict=True):
        if grad is not None:
            grad[rows] = factor * other
    return factor * slope


class _Gradients:
    """The gradients that are needed, summed over the chunks. The others stay None."""

    def __init__(
        self,
        inputs: Inputs,
        acc_dtype: torch.dtype,
        matmul_dtype: torch.dtype,
        needs_grad: tuple[bool, ...],
    ) -> None:
        rows, d = inputs.x.shape
        vocab = len(inputs.weight)
        device = inputs.x.device
        self.acc_dtype = acc_dtype
        self.matmul_dtype = matmul_dtype
        self.pad = d % 2  # columns of zeros, see `convert`
        need_x, need_weight, need_bias, *need_other = needs_grad
        self.x = torch.empty_like(inputs.x) if need_x else None
        mixed = matmul_dtype != acc_dtype
        self.upright = not mixed and d >= WIDE  # True if the weight's gradient is [vocab, d]
        shape = (vocab, d) if self.upright else (d, vocab)
        self.weight = torch.zeros(shape, dtype=acc_dtype, device=device) if need_weight else None
        self.bias = torch.zeros(1, vocab, dtype=acc_dtype, device=device) if need_bias else None
        self.other = [
            torch.empty(rows, dtype=acc_dtype, device=device) if need else None
            for need in need_other
        ]
        # The sum over one chunk, in the products' dtype, if the total has a wider dtype.
        self.partial = (
            inputs.x.new_empty(d + self.pad, vocab, dtype=matmul_dtype)
            if need_weight and mixed
            else None
        )

    def add(
        self,
        rows: slice,
        x: Tensor,
        factor: Tensor,
        dz: Tensor,
        dz_bias: Tensor,
        back: Callable[[Tensor], Tensor],
    ) -> None:
        """Add the contribution of some rows of logits."""
        if self.bias is not None:
            self.bias.add_(torch.mm(factor[None].to(self.matmul_dtype), dz_bias))
        if self.x is not None:
            self.x[rows] = back(dz)[:, : x.shape[1]] * factor[:, None]
        if self.weight is not None:
            scaled = (x.to(self.acc_dtype) * factor[:, None]).to(self.matmul_dtype)
            if self.upright:
                self.weight.addmm_(dz.t(), scaled)
            elif self.partial is None:
                self.weight.addmm_(scaled.t(), dz)
            else:
                torch.mm(F.pad(scaled, (0, self.pad)).t(), dz, out=self.partial)
                self.weight.add_(self.partial[: x.shape[1]])

    def result(self) -> list[Tensor | None]:
        """The gradients in the order of the inputs."""
        weight = self.weight
        if weight is not None and not self.upright:
            weight = weight.t().contiguous()
        return [self.x, weight, None if self.bias is None else self.bias[0], *self.other]


# --- the softmax of a chunk of logits

# One pass computes the losses of the rows and the gradient with respect to the logits. It uses
# torch's operations over blocks of rows that fit the last-level cache, or the C++ kernel. For bf16
# logits the target's own logit is passed in float32, because the one in the chunk is rounded.


class ChunkSoftmax:
    """The softmax of chunks of logits, with buffers that all chunks of a call share.

    New buffers for every chunk would cost a page fault per 4 KiB.

    Args:
        logits: [rows, vocab], the buffer for the chunks' products.
        acc_dtype: the dtype of sums.
        bias: [vocab], in acc_dtype.
        soft_cap: as in `fused_losses`.
        by_kernel: use the C++ kernel.
    """

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
        """Compute losses and gradients from logits z, which are replaced by dz.

        Returns the losses of the rows, the factor that dz lacks (1 / sum, or None), dz, and the
        gradient with respect to the bias.
        """
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
        """Losses of the rows; z becomes dz, and dz_bias the gradient with respect to the bias."""
        losses = torch.empty(len(z), dtype=self.acc_dtype, device=z.device)
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
        """Loss of each row, from raw logits z.

        z becomes (softmax - onehot) (1 - tanh^2), the gradient with respect to the raw logits. If
        given, dz_bias becomes softmax - onehot, the gradient with respect to the bias. `here`
        holds row numbers and targets.
        """
        tanh = None
        if self.soft_cap and self.spare is not None:
            tanh = torch.div(z, self.soft_cap, out=self.spare[: len(z)]).tanh_()
            torch.mul(tanh, self.soft_cap, out=z)
        if self.bias is not None:
            z.add_(self.bias)
        top = z.amax(1)
        target_logit = z[here]
        torch_private.softmax_(z)
        # The first two terms are the log-sum-exp, because the largest p is exp(top) / sum.
        loss = top - z.amax(1).log() - target_logit
        z[here] += -1  # not scatter_, which copies the whole matrix twice
        if dz_bias is not None:
            dz_bias.copy_(z)
        if tanh is not None:
            z.mul_(torch.mul(tanh, tanh, out=tanh).neg_().add_(1))
        return loss


def softmax_fits(soft_cap: float | None, dtype: torch.dtype, bias: Tensor | None) -> bool:
    """True if the C++ kernel supports such logits.

    With a soft cap, the spread of the bias must be small enough.
    """
    return dtype in native.DTYPES and (
        soft_cap is None or bias is None or bool(bias.amax() - bias.amin() <= BIAS_SPREAD)
    )
