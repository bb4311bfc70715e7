"""Optimizers of a model whose weights are sharded over processes; their state is sharded as well.

AdamW needs no more than rows, so it updates each process's shard. Any other optimizer (Muon, SOAP, a user's own) needs
whole matrices: each matrix has an owner, which gathers its gradient, updates it with a state that only the owner keeps,
and gives the rows back. All processes own about as much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.model import Transformer
from hectogpt.model.weights import Places
from hectogpt.training.checkpoint_parts import PartFiles
from hectogpt.training.optim import OptimizerGroup
from hectogpt.training.optim.adamw import FusedAdamW, RowAdamW
from hectogpt.training.parallel import World, send_all
from hectogpt.training.sharded import Parts, gather_parts, local_part, rows_of, scatter_parts
from hectogpt.training.state import give_value, name_of_state, take_value

# rank -> number of the parameter -> key -> [dtype, whole shape, None] of a tensor, or ["", [], plain value]
Described = list[list[dict[str, list[Any]]]]

BY_ROWS = (FusedAdamW, RowAdamW)  # optimizers whose update of a row needs no other row


@dataclass(frozen=True)
class OwnRows:
    """What a process has of a tensor with this shape: rows from `begin` on; of one without dimensions its number."""

    tensor: Tensor
    begin: int
    shape: tuple[int, ...]


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
        """The rows that a process has."""
        return rows_of(len(self.parameter), rank, size)

    def parts(self, size: int, by_row: bool) -> Parts:
        """Who has which rows of a tensor of the parameter's state: of one that has a row for each of the parameter's,
        or of one that all that update the parameter have alike."""
        if self.owner is not None:
            return [(self.owner, slice(None))]
        rows = [(rank, self.rows(rank, size)) for rank in range(size)]
        return [(rank, own if by_row else slice(None)) for rank, own in rows if own.start < own.stop]


class ShardedOptimizer(OptimizerGroup):
    """The optimizers of a sharded model; their state is sharded with it."""

    def __init__(self, model: Transformer, world: World, built: OptimizerGroup) -> None:
        """built: optimizers over the sharded model's parameters, which come to step over what is held here."""
        super().__init__(built.optimizers)
        self.world = world
        names = {id(p): name for name, p in model.named_parameters()}
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
                entry = _Entry(names[id(p)], p, optimizer, None if by_rows else owners[id(p)], None)
                self._hold(entry)
                held_of[id(p)] = entry.held
                self.entries.append(entry)
            self._step_over(optimizer, held_of)

    def _hold(self, entry: _Entry) -> None:
        """Take what this process updates of a parameter."""
        local = local_part(entry.parameter.detach())
        entry.optimizer.state.pop(entry.parameter, None)
        if entry.owner is None and local.numel():
            entry.held = nn.Parameter(local, requires_grad=False)
        elif entry.owner == self.world.rank:
            entry.held = nn.Parameter(local.new_empty(entry.parameter.shape), requires_grad=False)

    def _step_over(self, optimizer: torch.optim.Optimizer, held_of: dict[int, nn.Parameter | None]) -> None:
        """Have the optimizer step over what is held here."""
        known = getattr(optimizer, "stacks", None)  # what Muon knows of each parameter
        if known is not None:
            optimizer.stacks = {h: n for p, n in known.items() if (h := held_of[id(p)]) is not None}  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            group["params"] = [h for p in group["params"] if (h := held_of[id(p)]) is not None]

    @torch.no_grad()
    def take_over(
        self, whole: tuple[Transformer, OptimizerGroup] | None, groups: bool, parts: PartFiles | None = None
    ) -> None:
        """Take the state that rank 0's whole optimizers have, and owners their whole matrices. All take part; others
        than rank 0 pass None. groups: whether the settings of groups of parameters may differ from first ones. parts:
        files from which every process reads its part; rank 0 then has the forms of the state."""
        world = self.world
        weights = {} if whole is None else dict(whole[0].named_parameters())
        states: list[dict[str, Any]] = [{} for _ in self.entries]
        if whole is not None:
            plain = dict(zip(map(id, self.optimizers), whole[1].optimizers, strict=True))
            states = [dict(plain[id(e.optimizer)].state.get(weights[e.name], {})) for e in self.entries]
        described = world.share(
            lambda: [{k: _described(v) for k, v in state.items()} for state in states] if any(states) else []
        )
        with world.guarded("sending the optimizer's state"):
            for entry, state, told in zip(self.entries, states, described or states, strict=True):
                if entry.owner is not None:
                    part = local_part(entry.parameter.detach()) if entry.held is None else entry.held.detach()
                    scatter_parts(world, weights.get(entry.name), part, entry.parts(world.size, by_row=True))
                own: dict[str, Any] = {}
                for key, (dtype, shape, value) in told.items():
                    if not dtype:
                        own[key] = value
                    elif parts is None:
                        own[key] = self._receive(entry, dtype, shape, state.get(key))
                    elif entry.held is not None:
                        own[key] = self._read(entry, key, shape, parts)
                if entry.held is not None and own:
                    entry.optimizer.state[entry.held] = own
        if groups:
            self._take_groups(None if whole is None else whole[1])

    def _receive(self, entry: _Entry, dtype: str, shape: list[int], value: Tensor | None) -> Tensor:
        """This process's part of a tensor of a parameter's state, of which rank 0 has the whole."""
        by_row = len(shape) > 0 and shape[0] == len(entry.parameter)
        parts = entry.parts(self.world.size, by_row)
        own = dict(parts).get(self.world.rank, slice(0))
        count = len(range(shape[0])[own]) if shape else 0
        local = local_part(entry.parameter.detach())
        part = torch.empty([count, *shape[1:]] if shape else [], dtype=getattr(torch, dtype), device=local.device)
        scatter_parts(self.world, value, part, parts)
        return part

    def _read(self, entry: _Entry, key: str, shape: list[int], parts: PartFiles) -> Tensor:
        """This process's part of a tensor of a parameter's state, from the files of a checkpoint. Raises UserError."""
        name = name_of_state(self.optimizers.index(entry.optimizer), entry.name, key)
        by_row = entry.owner is None and len(shape) > 0 and shape[0] == len(entry.parameter)
        rows = entry.rows(self.world.rank, self.world.size) if by_row else slice(0, None)
        try:
            return parts.read(name, rows.start, rows.stop).to(local_part(entry.parameter.detach()).device)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"cannot read {parts.folder}", why=str(error), code=errors.CHECKPOINT) from None

    def _take_groups(self, plain: OptimizerGroup | None) -> None:
        """Take the settings of rank 0's groups of parameters: learning rates, and what optimizers keep there."""
        tensors: dict[str, Tensor] = {}

        def taken() -> Any:
            assert plain is not None
            every = [[{k: v for k, v in g.items() if k != "params"} for g in o.param_groups] for o in plain.optimizers]
            return take_value(every, "groups", tensors)

        told = self.world.share(taken)
        tensors = send_all(self.world, tensors if self.world.is_first else None)
        for optimizer, groups in zip(self.optimizers, give_value(told, tensors), strict=True):
            for mine, its in zip(optimizer.param_groups, groups, strict=True):
                mine.update(its)

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
            local = local_part(grad if gather else entry.parameter.detach())
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

    def describe(self) -> Described:
        """What each process has of the optimizers' state. All take part."""
        return self.world.gather_texts([self._describe(entry) for entry in self.entries])

    def nbytes(self, described: Described) -> int:
        """Bytes of all weights that are updated and of the optimizers' state, over all processes."""
        found = sum(entry.parameter.numel() * entry.parameter.element_size() for entry in self.entries)
        for number, entry in enumerate(self.entries):
            for dtype, shape, _ in described[entry.owner or 0][number].values():
                found += math.prod(shape) * getattr(torch, dtype).itemsize if dtype else 0
        return found

    @torch.no_grad()
    def gather(self, whole: tuple[Transformer, OptimizerGroup] | None, described: Described | None) -> None:
        """Bring weights and optimizer state together in rank 0's whole model and optimizers. All take part; others than
        rank 0 pass None. described: what `describe` gave; None for the weights alone."""
        world = self.world
        weights = {} if whole is None else dict(whole[0].named_parameters())
        with world.guarded("gathering the run's state"):
            for number, entry in enumerate(self.entries):
                local = local_part(entry.parameter.detach())
                parts = [(rank, entry.rows(rank, world.size)) for rank in range(world.size)]
                gather_parts(world, weights.get(entry.name), local, parts, local.device)
                state: dict[str, Any] = {}
                told = {} if described is None else described[entry.owner or 0][number]
                for key, (dtype, shape, value) in told.items():
                    state[key] = self._collect(entry, key, dtype, shape, local.device) if dtype else value
                if whole is not None and state:
                    own = whole[1].optimizers[self.optimizers.index(entry.optimizer)]
                    own.state[weights[entry.name]] = state
        if whole is not None:
            self.give_groups(whole[1])

    def give_forms(self, whole: tuple[Transformer, OptimizerGroup], described: Described) -> None:
        """Give rank 0's whole optimizers their state with forms on the meta device in place of tensors."""
        weights = dict(whole[0].named_parameters())
        for number, entry in enumerate(self.entries):
            state = {
                key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") if dtype else value
                for key, (dtype, shape, value) in described[entry.owner or 0][number].items()
            }
            if state:
                whole[1].optimizers[self.optimizers.index(entry.optimizer)].state[weights[entry.name]] = state
        self.give_groups(whole[1])

    def give_groups(self, whole: OptimizerGroup) -> None:
        """Give rank 0's whole optimizers the settings of groups of parameters."""
        for mine, whole_one in zip(self.optimizers, whole.optimizers, strict=True):
            for group, its in zip(mine.param_groups, whole_one.param_groups, strict=True):
                its.update({key: value for key, value in group.items() if key != "params"})

    def own_state(self, described: Described) -> dict[str, OwnRows]:
        """What this process has of every tensor of the optimizers' state, by its name in checkpoints. What all have
        alike is with the first that has it."""
        found: dict[str, OwnRows] = {}
        for number, entry in enumerate(self.entries):
            if entry.held is None:
                continue
            state, which = entry.optimizer.state.get(entry.held, {}), self.optimizers.index(entry.optimizer)
            for key, (dtype, shape, _) in described[entry.owner or 0][number].items():
                parts = dict(entry.parts(self.world.size, by_row=True))
                first = min(parts)
                if dtype and (shape or first == self.world.rank):
                    begin = parts[self.world.rank].start if shape else 0
                    name = name_of_state(which, entry.name, key)
                    found[name] = OwnRows(state[key].detach(), begin or 0, tuple(shape))
        return found

    def own_weights(self, places: Places) -> dict[str, OwnRows]:
        """What this process has of every weight that is updated, by its name in files. places: of those in the
        parameters."""
        entries = {entry.name: entry for entry in self.entries}
        found: dict[str, OwnRows] = {}
        for name, (parameter, begin, end) in places.items():
            if parameter in entries:
                entry = entries[parameter]
                mine, local = entry.rows(self.world.rank, self.world.size), local_part(entry.parameter.detach())
                first, last = max(begin, mine.start), min(end, mine.stop)
                if first < last and local.numel():
                    rows = local[first - mine.start : last - mine.start]
                    found[name] = OwnRows(rows, first - begin, (end - begin, *local.shape[1:]))
        return found

    def _describe(self, entry: _Entry) -> dict[str, Any]:
        """key -> [dtype, whole shape, None], or ["", [], plain value]; {} where this process has no state."""
        state = {} if entry.held is None else entry.optimizer.state.get(entry.held, {})
        found = {key: _described(value) for key, value in state.items()}
        for _, shape, _ in found.values():
            if entry.owner is None and shape:
                shape[0] = len(entry.parameter)
        return found

    def _collect(self, entry: _Entry, key: str, dtype: str, shape: list[int], device: torch.device) -> Tensor | None:
        """One tensor of a parameter's state, whole at rank 0 and on the CPU."""
        world = self.world
        parts = entry.parts(world.size, by_row=True) if shape else entry.parts(world.size, by_row=False)[:1]
        part = None if entry.held is None else entry.optimizer.state[entry.held][key]
        whole = torch.empty(shape, dtype=getattr(torch, dtype)) if world.is_first else None
        gather_parts(world, whole, part, parts, device)
        return whole


def _described(value: Any) -> list[Any]:
    """[dtype, shape, None] of a tensor, or ["", [], plain value]."""
    if not isinstance(value, Tensor):
        return ["", [], value]
    return [str(value.dtype).removeprefix("torch."), list(value.shape), None]
