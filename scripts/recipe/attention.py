"""The trainer's `Attn`: as `DenseAttn`, but a row looks among its own pictures only."""

from __future__ import annotations

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
