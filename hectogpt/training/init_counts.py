"""Initialises embeddings, head and head bias from bigram counts of exactly the tokens the run will read.

Not for the closed track: its models learn these counts too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from hectogpt.errors import UserError
from hectogpt.model import Transformer
from hectogpt.serialization import Value

ADDED = 0.1  # to every count of a token, so that none has probability 0


@dataclass(frozen=True)
class BigramInit(Value):
    """Head bias log p(y), and embedding and head from a truncated SVD of the bigrams' lift.

    With c counts and p the unigram, M_xy = log(1 + c_xy / (smoothing p_y)) are the logits, up to a constant per row, of
    a Dirichlet-smoothed bigram. diag(sqrt p) M diag(sqrt p) = U S V^T weighs each entry by how often it matters;
    E = diag(1 / sqrt p) U sqrt S and W = diag(1 / sqrt p) V sqrt S give E W^T ~ M at rank d. Rows of E get unit
    variance, since the norm after the embedding would take their lengths away anyway, and W is scaled by `head`.
    Tokens that never occur keep their random embedding, and a head row of zero.
    """

    old_names: ClassVar[tuple[str, ...]] = ("BigramStart",)

    smoothing: float = 30.0
    head: float = 0.3

    def apply(self, model: Transformer, tokens: np.ndarray) -> None:
        """Set the weights from `tokens` [rows, time]; no pair is counted across a row's edge.

        The same tokens give the same weights, but for texts so short or regular that singular values are equal: any
        rotation of their vectors is then as good. Raises UserError for a head without bias or tied to the embedding.
        """
        # Imported here: half a second that only this initialisation needs.
        from scipy.sparse import coo_array
        from scipy.sparse.linalg import svds

        head, vocab, d = model.lm_head, model.config.vocab_size, model.config.d_model
        if head.bias is None or model.config.lm_head.tied:
            raise UserError(
                "init_from_counts with a head that is tied or has no bias",
                why="the bias takes the tokens' frequencies, the head's rows what follows what",
                fix="set model.lm_head.bias to True",
            )
        rows = np.arange(vocab) if head.row_of_token is None else head.row_of_token.cpu().numpy()
        size = len(head.weight)
        counts = np.bincount(tokens.ravel(), minlength=vocab) + ADDED
        mass = np.bincount(rows, counts, minlength=size) / counts.sum()
        words = np.maximum(np.bincount(rows, minlength=size), 1)
        before, after = rows[tokens[:, :-1].ravel()], rows[tokens[:, 1:].ravel()]
        pairs = coo_array((np.ones(len(before)), (before, after)), shape=(size, size))
        pairs.sum_duplicates()
        x, y = pairs.coords
        root = np.sqrt(np.maximum(mass, 1e-30))
        lift = np.log1p(pairs.data / (self.smoothing * mass[y])) * root[x] * root[y]
        weighted = coo_array((lift, (x, y)), shape=(size, size)).tocsr()
        u, s, vt = svds(weighted, k=min(d, size - 1), v0=root)
        # What a singular vector leaves free comes out differently from run to run: its sign, and where there are fewer
        # pairs than dimensions also the directions without any weight (svds has them with an s of about 1e-8).
        s = np.where(s > 1e-6 * s.max(), s, 0.0)
        signs = np.sign(u[np.abs(u).argmax(axis=0), np.arange(len(s))])
        u, vt = u * signs, vt * signs[:, None]
        left, right = (np.zeros((size, d)) for _ in range(2))
        left[:, : len(s)], right[:, : len(s)] = u * np.sqrt(s) / root[:, None], vt.T * np.sqrt(s) / root[:, None]
        occurs = np.bincount(tokens.ravel(), minlength=vocab) > 0
        length = np.linalg.norm(left, axis=1, keepdims=True)
        left = left / np.maximum(length, 1e-12) * np.sqrt(d)
        used = np.zeros(size, bool)
        used[rows[occurs]] = True
        with torch.no_grad():
            device = head.weight.device
            head.bias.copy_(torch.from_numpy(np.log(mass / words)))
            head.weight.copy_(torch.from_numpy(right * self.head * used[:, None]))
            model.embeddings.weight[torch.from_numpy(occurs).to(device)] = torch.from_numpy(left[rows[occurs]]).to(
                head.weight
            )
