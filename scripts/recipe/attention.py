"""The trainer's two `Attn`, for pictures beside the text and within it. Some heads of both are taught where to look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from idefics.nn.attention import DenseAttn, Memory


class Pointing(NamedTuple):
    """What one head of one layer is told: that S tokens look at certain cells of a picture, and at its spot of rest.

    Of n cells and the spot each gets 1/(n + 1) of the attention, so that what the spot gets says how many there are.

    Attributes:
        tokens: (S,) of all.
        pictures: (S,) of all pictures.
        cells: (S, 9) which of the nine.
    """

    layer: int
    head: int
    tokens: Tensor
    pictures: Tensor
    cells: Tensor


def missed(scores: Tensor, pointed: Tensor) -> Tensor:
    """How far from equal shares of the places pointed to attention is: (S, T), (S, T) -> the mean divergence."""
    number = pointed.sum(-1)
    shares = scores.masked_fill(~pointed, 0.0).sum(-1) / number - scores.logsumexp(
        -1
    )  # mean of their logarithms
    return (-shares - number.log()).mean()


class TrainingAttn(DenseAttn):
    """Attention to pictures beside the text, told by `pointings` where to look; the latent after the cells is the rest.

    Sixteen rows of four pictures would else meet sixty keys for every one that they may see.

    Args:
        rows: B rows of T tokens.
        memory: for each cross layer the keys and values of all P pictures; a row's pictures are neighbours.
        sees: (B*T,) for each token the index of its picture among the P, or -1.
    """

    def __init__(self, rows: int, memory: Memory, sees: Tensor, pointings: Sequence[Pointing] = ()) -> None:
        super().__init__(rows)
        self.memory, self.pointings = memory, pointings
        self.loss = torch.zeros(())
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
        for pointing in self.pointings:
            if pointing.layer == layer and len(pointing.tokens):
                self.loss = self.loss + self._missed(layer, q[:, pointing.head], pointing)
        keys, values = (x[self.pictures].flatten(1, 2).transpose(1, 2) for x in self.memory[layer])
        q = q.unflatten(0, (self.rows, -1)).transpose(1, 2)  # (B, H, T, K)
        out = scaled_dot_product_attention(q, keys, values, attn_mask=self.among)
        return (out * self.seeing).transpose(1, 2).flatten(0, 1)

    def _missed(self, layer: int, q: Tensor, pointing: Pointing) -> Tensor:
        keys = self.memory[layer].keys[:, :, pointing.head][pointing.pictures]  # (S, M, K)
        scores = torch.einsum("sk,smk->sm", q[pointing.tokens], keys) * q.shape[-1] ** -0.5
        pointed = torch.zeros_like(scores, dtype=torch.bool)
        pointed[:, :9], pointed[:, 9] = pointing.cells, True
        return missed(scores, pointed)


class PointingAttn(DenseAttn):
    """Attention of a decoder in whose text the pictures stand, told by `pointings` where to look.

    Args:
        rows: B rows of T tokens.
        marks: (P,) the place in its row of the token before each picture's nine cells: the spot of rest.
    """

    def __init__(self, rows: int, pointings: Sequence[Pointing], marks: Tensor) -> None:
        super().__init__(rows)
        self.pointings, self.marks = pointings, marks
        self.loss = torch.zeros(())

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for pointing in self.pointings:
            if pointing.layer == layer and len(pointing.tokens):
                self.loss = self.loss + self._missed(q[:, pointing.head], k[:, pointing.head], pointing)
        return super().self_(layer, q, k, v)

    def _missed(self, q: Tensor, k: Tensor, pointing: Pointing) -> Tensor:
        tokens, length = pointing.tokens, len(q) // self.rows
        keys = k.unflatten(0, (self.rows, length))[tokens // length]  # (S, T, K)
        scores = torch.einsum("sk,stk->st", q[tokens], keys) * q.shape[-1] ** -0.5
        later = torch.arange(length) > (tokens % length)[:, None]
        ten = torch.cat((torch.ones(len(tokens), 1, dtype=torch.bool), pointing.cells), dim=1)
        places = self.marks[pointing.pictures][:, None] + torch.arange(10)
        pointed = torch.zeros(len(tokens), length, dtype=torch.bool).scatter(1, places, ten)
        return missed(scores.masked_fill(later, -torch.inf), pointed)
