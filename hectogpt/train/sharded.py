"""Training with weights and optimizer state sharded over processes: FSDP2 around the model, which knows nothing of it.

Blocks are sharded one by one, then the rest. AdamW needs no more than rows, so it updates each process's shard. Any
other optimizer (Muon, SOAP, a user's own) needs whole matrices: each matrix has an owner, which gathers its gradient,
updates it with a state that only the owner keeps, and gives the rows back. All processes own about as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from hectogpt.data import Batches
from hectogpt.model import Transformer
from hectogpt.train.leaves import add_in_tree
from hectogpt.train.loop import Gradients, backward
from hectogpt.train.optim import OptimizerGroup
from hectogpt.train.optim.adamw import FusedAdamW, RowAdamW
from hectogpt.train.parallel import World
from hectogpt.train.precision import Machine
from hectogpt.train.run import Run
from hectogpt.train.sums import TreeExchange

BY_ROWS = (FusedAdamW, RowAdamW)  # optimizers whose update of a row needs no other row


def shard_model(model: Transformer, world: World, machine: Machine, recompute: bool) -> None:
    """Shard the model's weights over the processes, in place. recompute: whether blocks are computed again in the
    backward pass, so that their activations need not be kept."""
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
                _local(p.grad).mul_(factor)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that is here; in place."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass
class _Entry:
    """A parameter of an optimizer. held: what the optimizer updates here: the local rows, the whole matrix at its
    owner, or None. owner: None for one that is updated by rows."""

    name: str
    parameter: nn.Parameter
    optimizer: torch.optim.Optimizer
    owner: int | None
    held: nn.Parameter | None

    def rows(self, rank: int, size: int) -> slice:
        """The rows that a process has: those of torch.chunk."""
        count = len(self.parameter)
        each = -(-count // size)
        return slice(min(rank * each, count), min((rank + 1) * each, count))


class ShardedOptimizer(OptimizerGroup):
    """The optimizers of a sharded model, made of those of the whole one; their state is sharded with them."""

    def __init__(self, model: Transformer, world: World, plain: Transformer, built: OptimizerGroup) -> None:
        """model: sharded. plain, built: the whole model and its optimizers in the same state, which are not changed."""
        super().__init__(built.optimizers)
        self.world, self.device = world, next(plain.parameters()).device
        names = {id(p): name for name, p in plain.named_parameters()}
        sharded = dict(model.named_parameters())
        load = [0.0] * world.size
        self.entries: list[_Entry] = []
        for optimizer in self.optimizers:
            by_rows = isinstance(optimizer, BY_ROWS)
            whole = [p for group in optimizer.param_groups for p in group["params"]]
            owners: dict[int, int] = {}
            for p in sorted(whole, key=lambda p: -p.numel() * min(p.shape)):  # the largest first, each to who has least
                owners[id(p)] = load.index(min(load))
                load[owners[id(p)]] += 0 if by_rows else p.numel() * min(p.shape)
            held_of = {}
            for p in whole:
                owner = None if by_rows else owners[id(p)]
                entry = _Entry(names[id(p)], sharded[names[id(p)]], optimizer, owner, None)
                self._hold(entry, p)
                held_of[id(p)] = entry.held
                self.entries.append(entry)
            self._take_over(optimizer, held_of)

    def _hold(self, entry: _Entry, whole: Tensor) -> None:
        """Take what this process updates of a parameter, and the state that goes with it."""
        rows = entry.rows(self.world.rank, self.world.size)
        old = entry.optimizer.state.pop(whole, {})
        if entry.owner is None and rows.start < rows.stop:
            entry.held = nn.Parameter(_local(entry.parameter.detach()), requires_grad=False)
            entry.optimizer.state[entry.held] = {
                key: value[rows].clone() if _is_by_row(value, whole) else value for key, value in old.items()
            }
        elif entry.owner == self.world.rank:
            entry.held = nn.Parameter(whole.detach().clone(), requires_grad=False)
            entry.optimizer.state[entry.held] = old
        if entry.held is not None and not old:
            del entry.optimizer.state[entry.held]

    def _take_over(self, optimizer: torch.optim.Optimizer, held_of: dict[int, nn.Parameter | None]) -> None:
        """Have the optimizer step over what is held here."""
        stacks = getattr(optimizer, "stacks", None)  # Muon's: how many matrices a parameter has in its rows
        if stacks is not None:
            optimizer.stacks = {h: n for p, n in stacks.items() if (h := held_of[id(p)]) is not None}  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            group["params"] = [h for p in group["params"] if (h := held_of[id(p)]) is not None]

    def step(self, step: int, factor: float) -> None:
        world = self.world
        with world.guarded("the exchange of gradients"):
            self._exchange(gather=True)
        super().step(step, factor)
        with world.guarded("the exchange of weights"):
            self._exchange(gather=False)

    @torch.no_grad()
    def _exchange(self, gather: bool) -> None:
        """Bring every gradient to who updates it; or every updated matrix back to who has its rows."""
        rank, size = self.world.rank, self.world.size
        operations = []
        for entry in self.entries:
            grad = entry.parameter.grad
            if grad is None:
                continue
            local = _local(grad if gather else entry.parameter.detach())
            if entry.owner is None:
                if gather and entry.held is not None:
                    entry.held.grad = local
                continue
            mine = entry.rows(rank, size)
            if entry.owner != rank:
                if mine.start < mine.stop:
                    operations.append(dist.P2POp(dist.isend if gather else dist.irecv, local, entry.owner))
                continue
            assert entry.held is not None
            if gather:
                entry.held.grad = torch.empty_like(entry.held)
            whole = cast(Tensor, entry.held.grad if gather else entry.held.detach())
            for other in range(size):
                rows = entry.rows(other, size)
                if other != rank and rows.start < rows.stop:
                    operations.append(dist.P2POp(dist.irecv if gather else dist.isend, whole[rows], other))
            if mine.start < mine.stop:
                if gather:
                    whole[mine] = local
                else:
                    local.copy_(whole[mine])
        if operations:
            for work in dist.batch_isend_irecv(operations):
                work.wait()

    def zero_grad(self) -> None:
        super().zero_grad()
        for entry in self.entries:
            entry.parameter.grad = None

    @torch.no_grad()
    def gather(self, plain: Transformer, built: OptimizerGroup) -> None:
        """Bring weights and optimizer state together in the whole model and optimizers of rank 0. All take part."""
        world = self.world
        with world.guarded("gathering the run's state"):
            parameters = dict(plain.named_parameters())
            for entry in self.entries:
                whole = _whole(entry.parameter.detach())
                if world.is_first:
                    parameters[entry.name].copy_(whole)
        described = world.gather_texts([self._describe(entry) for entry in self.entries])
        with world.guarded("gathering the run's state"):
            for number, entry in enumerate(self.entries):
                source = entry.owner or 0
                state = {}
                for key, (dtype, shape, value) in described[source][number].items():
                    state[key] = self._collect(entry, key, dtype, shape) if dtype else value
                if world.is_first:
                    own = built.optimizers[self.optimizers.index(entry.optimizer)]
                    if state:
                        own.state[parameters[entry.name]] = state
        if world.is_first:
            for mine, whole_one in zip(self.optimizers, built.optimizers, strict=True):
                for group, its in zip(mine.param_groups, whole_one.param_groups, strict=True):
                    its.update({key: value for key, value in group.items() if key != "params"})

    def _describe(self, entry: _Entry) -> dict[str, Any]:
        """key -> [dtype, whole shape, None], or ["", [], plain value]; {} where this process has no state."""
        state = {} if entry.held is None else entry.optimizer.state.get(entry.held, {})
        return {key: _described(value, entry) for key, value in state.items()}

    def _collect(self, entry: _Entry, key: str, dtype: str, shape: list[int]) -> Tensor:
        """One tensor of a parameter's state, whole at rank 0."""
        rank, size, state = self.world.rank, self.world.size, {}
        if entry.held is not None:
            state = entry.optimizer.state[entry.held]
        sharded = entry.owner is None and len(shape) > 0
        whole = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
        parts = {r: entry.rows(r, size) for r in range(size)} if sharded else {entry.owner or 0: slice(None)}
        for other, rows in parts.items():
            into = whole[rows] if shape else whole
            if not into.numel():
                continue
            if other == 0:
                if rank == 0:
                    into.copy_(state[key])
            elif rank == other:
                dist.send(state[key].to(self.device).contiguous(), 0)
            elif rank == 0:
                dist.recv(into, other)
        return whole


def _is_by_row(value: Any, parameter: Tensor) -> bool:
    """Whether a value of a parameter's state has a row for each of the parameter's."""
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(parameter)


def _described(value: Any, entry: _Entry) -> list[Any]:
    if not isinstance(value, Tensor):
        return ["", [], value]
    shape = list(value.shape)
    if entry.owner is None and shape:
        shape[0] = len(entry.parameter)
    return [str(value.dtype).removeprefix("torch."), shape, None]
