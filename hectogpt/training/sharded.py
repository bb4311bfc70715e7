"""Training with weights sharded over processes: FSDP2 around the model, which knows nothing of it.

Blocks are sharded one by one, then the rest. Only rank 0 has the run's whole state, on the CPU, when a checkpoint or a
score needs it. Tensors go one by one from it to the processes that hold their parts, and back, so no other process ever
has more than one whole tensor of it.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from hectogpt.data import Batches
from hectogpt.model import Transformer
from hectogpt.training.leaves import add_in_tree
from hectogpt.training.loop import Gradients, backward
from hectogpt.training.parallel import World
from hectogpt.training.precision import Machine
from hectogpt.training.run import Run
from hectogpt.training.sums import TreeExchange

Parts = list[tuple[int, slice]]  # of a tensor: a rank, and the rows that it has


def rows_of(count: int, rank: int, size: int) -> slice:
    """The rows that a process has of a matrix with so many: those of torch.chunk."""
    each = -(-count // size)
    return slice(min(rank * each, count), min((rank + 1) * each, count))


def scatter_parts(world: World, whole: Tensor | None, part: Tensor, parts: Parts) -> None:
    """Give every rank its part of rank 0's tensor, into `part`. whole: None at other ranks."""
    for rank, rows in parts:
        if whole is not None:
            own = whole[rows] if whole.dim() else whole
            if rank == 0:
                part.copy_(own)
            elif own.numel():
                dist.send(own.to(part.device).contiguous(), rank)
        elif rank == world.rank and part.numel():
            dist.recv(part, 0)


def gather_parts(world: World, whole: Tensor | None, part: Tensor | None, parts: Parts, device: torch.device) -> None:
    """Bring all parts together in rank 0's tensor. part: this rank's, if it has one. device: where tensors travel."""
    for rank, rows in parts:
        if whole is not None:
            into = whole[rows] if whole.dim() else whole
            if rank == 0:
                assert part is not None
                into.copy_(part)
            elif into.numel():
                received = torch.empty(into.shape, dtype=into.dtype, device=device)
                dist.recv(received, rank)
                into.copy_(received)
        elif rank == world.rank and part is not None and part.numel():
            dist.send(part.contiguous(), 0)


def shard_model(model: Transformer, world: World, machine: Machine, recompute: bool) -> Transformer:
    """Shard a model whose parameters are on the meta device; then each process's rows are there, without numbers.
    recompute: whether blocks are computed again in the backward pass, so that their activations need not be kept."""
    mesh = init_device_mesh(machine.device.type, (world.size,))
    # Products are in bf16 by autocast, as in one process; what travels and is added up stays float32.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32 if machine.dtype != torch.float64 else None)
    for block in model.backbone:
        if recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "loss")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
            module.set_gradient_divide_factor(1.0)  # losses are shares of the whole batch's already
    rows: dict[nn.Parameter, nn.Parameter] = {}  # of those on the meta device; modules may share one
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if p not in rows:
                rows[p] = nn.Parameter(torch.empty_like(p, device=machine.device), p.requires_grad)
            setattr(module, name, rows[p])
    return cast(Transformer, model.to(machine.device))  # FSDP2 looks for its new rows


@torch.no_grad()
def fill_shards(model: Transformer, world: World, plain: Transformer | None) -> None:
    """Give every process its rows of rank 0's weights, and rank 0's buffers. plain: rank 0's whole model, else None."""
    weights = {} if plain is None else dict(plain.named_parameters())
    buffers = {} if plain is None else dict(plain.named_buffers())
    with world.guarded("sending the weights"):
        for name, p in model.named_parameters():
            parts = [(rank, rows_of(len(p), rank, world.size)) for rank in range(world.size)]
            scatter_parts(world, weights.get(name), local_part(p.detach()), parts)
        for name, buffer in model.named_buffers():
            if plain is not None:
                buffer.copy_(buffers[name])
            flat = buffer.contiguous().view(-1)
            dist.broadcast(flat.view(torch.uint8) if flat.dtype == torch.bool else flat, 0)
            buffer.copy_(flat.view_as(buffer))


class ShardedGradients(Gradients):
    """Gradients of this process's leaves, added to the others' and sharded by FSDP2."""

    def __init__(self, run: Run, model: Transformer, batches: Batches, machine: Machine, world: World) -> None:
        super().__init__(run, model, batches, machine)
        self.world, self.exchange = world, TreeExchange(world)
        self.leaf_rows = run.data.batch_size // (run.data.leaves or 1)
        self.own = (run.data.leaves or 1) // world.size

    def compute(self, step: int) -> Tensor:
        run, world = self.run, self.world
        world.begin(step)
        first = world.rank * self.own
        batch = self.batches.rows(step, first * self.leaf_rows, (first + self.own) * self.leaf_rows)
        ids = torch.from_numpy(batch).to(self.machine.device, non_blocking=True)
        n_targets = run.data.batch_size * (run.data.seq_len - 1)
        with world.guarded("the exchange of shards", mark=False):
            losses = [
                backward(run, self.model, rows, self.machine, step, first + number, n_targets).double()
                for number, rows in enumerate(ids.split(self.leaf_rows))
            ]
        loss = add_in_tree(losses)
        wishes = torch.tensor([float(wish) for wish in self.wishes()], dtype=loss.dtype, device=loss.device)
        total = self.exchange.total(torch.cat((loss[None], wishes)))
        stop, gather = (total[1:] > 0).tolist()
        self.agreed = (stop, gather)
        return total[0]

    def norm(self) -> Tensor:
        with self.world.guarded("the gradient norm"):
            return _whole(self.model.gradient_norm())

    def clip(self, most: float, norm: Tensor) -> None:
        factor = (most / (norm + 1e-6)).clamp(max=1.0)
        for p in self.parameters:
            if p.grad is not None:
                local_part(p.grad).mul_(factor)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that is here; in place."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
