"""A memory of n-grams: a learned number for each n-gram of the text that a run reads, added to the probabilities.

A network needs many visits before a rare word follows the right context. A number that belongs to one context and one
next token is of use after a single one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.model.inputs import Cache, shift
from hectogpt.serialization import Value

LARGEST_SCALE = 8.0  # of log s: no gradient step may make the memory infinite
LEAST_MASS = 0.01  # added to a mass before its logarithm


@dataclass(frozen=True)
class NgramMemory(Value):
    """Direct connections from contexts to next tokens, as in RNNME (Mikolov and others, 2011), as probabilities.

        p(y) = (q(y) + sum_k s_k W_k[c_k, y]) / (1 + sum_k s_k M_k[c_k])

    q: the network's distribution. c_k: the last k tokens, for each k of `context_lengths`. W_k[c, y] >= 0: a number for
    each context c and next token y that the run reads together, 0 at the start. M_k[c]: the sum of W_k over the
    context. s_k = exp(g_k . h + b_k + m_k log(M_k + 0.01)), learned, with h the final hidden state; no gradient flows
    through this M_k.

    The memory learns from the loss of p, the network from its own, as if there were no memory: what the memory knows
    already would not be learned by the network otherwise, and a memory is no use in contexts that are new.
    """

    context_lengths: tuple[int, ...] = (2, 3)

    def __post_init__(self) -> None:
        lengths = self.context_lengths
        if not lengths or not all(1 <= k <= 4 for k in lengths) or not all(a < b for a, b in pairwise(lengths)):
            raise UserError(
                f"model.memory.context_lengths = {lengths}", why="they are different numbers from 1 to 4, ascending"
            )

    def build(self, d_model: int, vocab_size: int) -> NgramMemoryLayer:
        return NgramMemoryLayer(d_model, vocab_size, self.context_lengths)


class NgramMemoryLayer(nn.Module):
    """The tables of all context lengths, and their learned scales.

    learns: whether losses give it gradients. It should learn from text that is read for the first time alone: what it
    has seen once it knows by heart, so a second reading would only raise its scales.
    """

    def __init__(self, d_model: int, vocab_size: int, context_lengths: tuple[int, ...]) -> None:
        super().__init__()
        if vocab_size ** max(context_lengths) >= 1 << 63:
            raise UserError(
                f"model.memory.context_lengths = {context_lengths} with model.vocab_size = {vocab_size}",
                why=f"{max(context_lengths)} tokens do not fit a number of 64 bits",
            )
        self.learns = True
        self.tables = nn.ModuleList(NgramTable(k, vocab_size) for k in context_lengths)
        self.gate = nn.Parameter(torch.zeros(len(context_lengths), d_model))
        self.gate_bias = nn.Parameter(torch.zeros(len(context_lengths)))
        self.mass_power = nn.Parameter(torch.zeros(len(context_lengths)))

    def fit(self, rows: Int[Tensor, "row time"]) -> None:
        """Make room for the n-grams of these rows of tokens. All numbers become 0."""
        for table in self._tables():
            table.fit(rows)

    def fit_like(self, state: dict[str, Tensor], prefix: str) -> None:
        """Take the n-grams of a saved memory, if `state` has any. Raises UserError (CHECKPOINT) if they are damaged."""
        for number, table in enumerate(self._tables()):
            place = f"{prefix}tables.{number}."
            if {place + "contexts", place + "entries"} <= state.keys():
                table.fit_like(state[place + "contexts"], state[place + "entries"])

    def sizes(self) -> list[list[int]]:
        """Contexts and entries of each table."""
        return [[len(table.contexts), len(table.entries)] for table in self._tables()]

    def _tables(self) -> list[NgramTable]:
        return [table for table in self.tables if isinstance(table, NgramTable)]

    def _scale(self, number: int, hidden: Tensor, mass: Tensor) -> Tensor:
        """s of one context length, as the mass."""
        score = hidden @ self.gate[number] + self.gate_bias[number]
        score = score + self.mass_power[number] * (mass.detach() + LEAST_MASS).log()
        return score.to(mass.dtype).clamp(max=LARGEST_SCALE).exp()

    def losses(
        self,
        network: Float[Tensor, "batch time"],
        hidden: Float[Tensor, "batch time d"],
        ids: Int[Tensor, "batch time"],
        targets: Int[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time"]:
        """-log p of each target. network: -log q of them. Gradients reach the memory alone, if it learns."""
        hidden, added, mass = hidden.detach(), torch.zeros_like(network), torch.ones_like(network)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.learns):
            for number, table in enumerate(self._tables()):
                place, known = table.find(ids)
                of_target, of_context = table.look_up(place, known, targets)
                scale = self._scale(number, hidden, of_context)
                added, mass = added + scale * of_target, mass + scale * of_context
            return mass.log() - ((-network.detach()).exp() + added).log()

    def mix_log_probs(
        self,
        log_probs: Float[Tensor, "batch rows vocab"],
        hidden: Float[Tensor, "batch time d"],
        ids: Int[Tensor, "batch time"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch rows vocab"]:
        """log p at the last `rows` positions, from log q there. While texts are decoded, ids are those of this call."""
        batch, rows, vocab = log_probs.shape
        hidden, added = hidden[:, -rows:], log_probs.new_zeros(batch * rows, vocab)
        mass = log_probs.new_ones(batch, rows)
        for number, table in enumerate(self._tables()):
            place, known = table.find(ids, cache)
            place, known = place[:, -rows:], known[:, -rows:]
            _, of_context = table.look_up(place, known, torch.zeros_like(place))
            scale = self._scale(number, hidden, of_context).to(log_probs.dtype)
            mass = mass + scale * of_context
            row, token, weight = table.entries_of(place.reshape(-1), known.reshape(-1))
            added = added.index_put((row, token), (scale.reshape(-1)[row] * weight).to(added.dtype), accumulate=True)
        added = added.view_as(log_probs).clamp_min(torch.finfo(log_probs.dtype).tiny)
        return torch.logaddexp(log_probs, added.log()) - mass.log()[..., None]


class NgramTable(nn.Module):
    """The numbers W of one context length.

    contexts: int64 [contexts], ascending, each the tokens of a context as the digits of a number. entries: int64
    [entries], ascending, place of the context * vocab + next token. weight: [entries].
    """

    contexts: Tensor
    entries: Tensor

    def __init__(self, length: int, vocab_size: int) -> None:
        super().__init__()
        self.length, self.vocab_size = length, vocab_size
        self.weight = nn.Parameter(torch.zeros(0))
        self.register_buffer("contexts", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("entries", torch.zeros(0, dtype=torch.int64))

    @property
    def context_of_entry(self) -> Int[Tensor, " entries"]:
        """The place of each entry's context."""
        return self.entries // self.vocab_size

    def fit(self, rows: Int[Tensor, "row time"]) -> None:
        """Make room for the n-grams of these rows. Targets and contexts lie in the same row."""
        keys, known = self._keys(rows[:, :-1].long())
        contexts, place = torch.unique(keys[known], return_inverse=True)
        self._set(contexts, torch.unique(place * self.vocab_size + rows[:, 1:].long()[known]))

    def fit_like(self, contexts: Tensor, entries: Tensor) -> None:
        """Take the n-grams of a saved table. Raises UserError (CHECKPOINT) if they are none."""
        sound = all(t.dtype == torch.int64 and t.dim() == 1 and bool((t.diff() > 0).all()) for t in (contexts, entries))
        limits = ((contexts, self.vocab_size**self.length), (entries, len(contexts) * self.vocab_size))
        if not sound or not all(not len(t) or (int(t[0]) >= 0 and int(t[-1]) < most) for t, most in limits):
            raise UserError(
                "the saved n-grams of the memory are damaged",
                why="contexts and entries should be ascending numbers of tokens of the vocabulary",
                code=errors.CHECKPOINT,
            )
        self._set(contexts, entries)

    def _set(self, contexts: Tensor, entries: Tensor) -> None:
        # On the meta device a weight is a form for one that comes later; the n-grams are there at once.
        device = contexts.device if self.weight.is_meta else self.weight.device
        self.contexts, self.entries = contexts.to(device), entries.to(device)
        self.weight = nn.Parameter(self.weight.new_zeros(len(entries)))

    def _keys(
        self, ids: Int[Tensor, "batch time"], cache: Cache | None = None
    ) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
        """The last tokens at each position as one number, and whether there are so many."""
        keys, known = ids, torch.ones_like(ids, dtype=torch.bool)
        for back in range(1, self.length):
            earlier = shift(ids + 1, back, (self, back), cache)  # 0 where there is no text
            keys, known = keys + (earlier - 1) * self.vocab_size**back, known & (earlier > 0)
        return keys, known

    def find(
        self, ids: Int[Tensor, "batch time"], cache: Cache | None = None
    ) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
        """The place of each position's context, and whether the table has it (the place is 0 otherwise)."""
        keys, known = self._keys(ids, cache)
        return _find(self.contexts, keys, known)

    def look_up(
        self, place: Int[Tensor, "batch time"], known: Bool[Tensor, "batch time"], tokens: Int[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """W of these tokens in these contexts, and the sum of W over each context; 0 where the table has nothing."""
        weight = self.weight.clamp(min=0)
        at, hit = _find(self.entries, place * self.vocab_size + tokens, known)
        zero = weight.new_zeros(())
        if not len(self.entries):
            return (zero.expand(place.shape),) * 2
        masses = weight.new_zeros(len(self.contexts)).index_add(0, self.context_of_entry, weight)
        return torch.where(hit, weight[at], zero), torch.where(known, masses[place], zero)

    def entries_of(
        self, place: Int[Tensor, " rows"], known: Bool[Tensor, " rows"]
    ) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"], Float[Tensor, " found"]]:
        """Of every entry of these contexts: the row, the next token, and W."""
        rows = known.nonzero().squeeze(1)
        first, end = (torch.searchsorted(self.entries, (place[rows] + n) * self.vocab_size) for n in (0, 1))
        count = end - first
        row = torch.repeat_interleave(torch.arange(len(rows), device=place.device), count)
        at = torch.arange(len(row), device=place.device) - (count.cumsum(0) - count)[row] + first[row]
        return rows[row], self.entries[at] % self.vocab_size, self.weight[at].clamp(min=0)


def _find(ascending: Tensor, wanted: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The places of valid wanted numbers, and whether they are there (place 0 otherwise)."""
    if not len(ascending):
        return torch.zeros_like(wanted), torch.zeros_like(valid)
    at = torch.searchsorted(ascending, wanted.contiguous()).clamp(max=len(ascending) - 1)
    hit = valid & (ascending[at] == wanted)
    return torch.where(hit, at, 0), hit
