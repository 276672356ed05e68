"""The trainer's two `Attn`: one looks among a row's own pictures only, one is taught where to look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from idefics.nn.attention import DenseAttn, Memory


class TrainingAttn(DenseAttn):
    """Sixteen rows of four pictures would else meet sixty keys for every one that they may see.

    Args:
        rows: B rows of T tokens.
        memory: for each cross layer the keys and values of all P pictures; a row's pictures are neighbours.
        sees: (B*T,) for each token the index of its picture among the P, or -1.
    """

    loss = 0.0

    def __init__(self, rows: int, memory: Memory, sees: Tensor) -> None:
        super().__init__(rows)
        self.memory = memory
        sees = sees.unflatten(0, (rows, -1))  # (B, T)
        places = memory[0].keys.shape[1]
        first = torch.where(sees >= 0, sees, sees.max()).amin(1, keepdim=True)
        most = int((sees.amax(1, keepdim=True) - first).max()) + 1
        pictures = first + torch.arange(most)  # (B, p): of the row, and perhaps of the next
        seen = sees[:, :, None] == pictures[:, None]  # (B, T, p)
        self.seeing = seen.any(-1)[:, None, :, None]  # (B, 1, T, 1)
        self.among = (seen | ~seen.any(-1, keepdim=True)).repeat_interleave(places, dim=2)[:, None]
        self.pictures = pictures.clamp(max=len(memory[0].keys) - 1)

    def cross(self, layer: int, q: Tensor) -> Tensor:
        keys, values = (x[self.pictures].flatten(1, 2).transpose(1, 2) for x in self.memory[layer])
        q = q.unflatten(0, (self.rows, -1)).transpose(1, 2)  # (B, H, T, K)
        out = scaled_dot_product_attention(q, keys, values, attn_mask=self.among)
        return (out * self.seeing).transpose(1, 2).flatten(0, 1)


class PointingAttn(DenseAttn):
    """Some heads of one layer are told where words point to. Else look-ups are found late: nothing asks for them alone.

    Args:
        rows: B rows of T tokens.
        pointers: for each such head the S tokens that point, (S,) of the N, and where in their row, (S, T).
    """

    LAYER = 1

    def __init__(self, rows: int, pointers: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__(rows)
        self.pointers = pointers
        self.loss = torch.zeros(())

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer == self.LAYER:
            self.loss = sum(
                (
                    self._missed(q[:, head], k[:, head], *pointer)
                    for head, pointer in enumerate(self.pointers)
                ),
                self.loss,
            )
        return super().self_(layer, q, k, v)

    def _missed(self, q: Tensor, k: Tensor, tokens: Tensor, pointed: Tensor) -> Tensor:
        """How little of a head's attention is where it should be: (N, K), (N, K) -> minus the mean log of its share."""
        length = pointed.shape[1]
        keys = k.unflatten(0, (self.rows, length))[tokens // length]  # (S, T, K)
        scores = torch.einsum("sk,stk->st", q[tokens], keys) * q.shape[-1] ** -0.5
        later = torch.arange(length) > (tokens % length)[:, None]
        scores = scores.masked_fill(later, -torch.inf)
        missed = scores.logsumexp(-1) - scores.masked_fill(~pointed, -torch.inf).logsumexp(-1)
        return missed.sum() / max(1, len(tokens))
