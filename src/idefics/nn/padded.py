"""Attention over padded batches and what came before them: the way of trainers and of callers who bring whole batches.

B rows, T new tokens a row, L positions in all (those of the past included), H query heads, h key/value heads, K head
size, S feature rows that stand beside a row's text, P pictures. Packed tokens are row after row: N is B * T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from idefics.nn.attention import Memory, visible
from idefics.nn.kernels import Kernel, fused


class KeysValues(NamedTuple):
    """What one layer attends to: (B, h, L, K) each, keys after rotation; beside the text (B, H, S, K)."""

    keys: Tensor
    values: Tensor


class Sight(NamedTuple):
    """What the new tokens see of their rows.

    Attributes:
        mask: (B, 1, T, L), or None where all rows see alike.
        causal: with no mask: whether a token sees those up to itself, or all.
        blind: (B, T) padding, which sees nothing; None where there is none among the new tokens.
    """

    mask: Tensor | None
    causal: bool
    blind: Tensor | None


def sight(tokens: Tensor | None, new: int, past: int, window: int | None, device: torch.device) -> Sight:
    """What `new` tokens see after `past` others.

    Args:
        tokens: (B, past + new), true where a token stands and false for padding; None: no padding.
        window: a token sees so many tokens, itself the last of them; None: all before it.
    """
    total = past + new
    narrow = window is not None and total > window
    padded = tokens is not None and not bool(tokens.all())
    if not padded and not narrow and (past == 0 or new == 1):
        return Sight(None, causal=new > 1, blind=None)
    places = torch.arange(total, device=device)
    mask = visible(places[past:], places, window)[None, None]  # (1, 1, T, L)
    if not padded or tokens is None:
        return Sight(mask, causal=False, blind=None)
    mask = mask & tokens[:, None, None].bool()
    blind = ~mask.any(dim=-1)  # (B, 1, T)
    # A row of a softmax that may look nowhere would be NaN: it looks everywhere, and what it saw is dropped.
    return Sight(mask | blind[..., None], causal=False, blind=blind[:, 0] if bool(blind.any()) else None)


class Beside(NamedTuple):
    """Pictures beside the text.

    Attributes:
        memory: (B, H, S, K) keys and values for each cross layer; S is P pictures of equally many feature rows.
        sees: (B, T, P), which pictures a token sees.
    """

    memory: Sequence[KeysValues]
    sees: Tensor


def by_rows(memory: Memory, rows: int) -> tuple[KeysValues, ...]:
    """Keys and values of all pictures, those of one row after those of another, laid out by rows.

    (B*P, M, H, K) for each cross layer -> (B, H, P*M, K).
    """

    def laid_out(x: Tensor) -> Tensor:
        out: Tensor = x.unflatten(0, (rows, -1)).flatten(1, 2).transpose(1, 2)
        return out

    return tuple(KeysValues(laid_out(keys), laid_out(values)) for keys, values in memory)


class PaddedAttn:
    """Rows of one length, padded on either side, after their past.

    Attributes:
        present: for each layer the keys and values of past and new tokens.

    Args:
        rows: how many; N is a multiple of it.
        past: for each layer what came before; empty where nothing did.
        beside: the pictures of cross layers; None where there are none.
        drop: probability with which a weight is dropped, in training.
    """

    def __init__(
        self,
        rows: int,
        sight: Sight,
        past: Sequence[KeysValues] = (),
        beside: Beside | None = None,
        *,
        kernel: Kernel = fused,
        drop: float = 0.0,
    ) -> None:
        self.rows, self.sight, self.past, self.kernel, self.drop = rows, sight, past, kernel, drop
        self.present: dict[int, KeysValues] = {}
        self.memory: Sequence[KeysValues] = ()
        if beside is not None:
            self.memory = beside.memory
            places = beside.memory[0].keys.shape[2] // beside.sees.shape[2]
            self.gate = beside.sees.any(dim=2)  # (B, T)
            seen = (beside.sees | ~self.gate[..., None])[:, None]  # no row may look nowhere
            self.looks = seen.repeat_interleave(places, dim=3)  # (B, 1, T, S)

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = self._rows(q), self._rows(k), self._rows(v)
        if self.past:
            k = torch.cat((self.past[layer].keys, k), dim=2)
            v = torch.cat((self.past[layer].values, v), dim=2)
        self.present[layer] = KeysValues(k, v)
        mask, causal, blind = self.sight
        mask = mask if mask is None else mask.to(q.device)  # layers may lie on several devices
        out = self.kernel(q, k, v, mask=mask, causal=causal, drop=self.drop).transpose(1, 2)  # (B, T, H, K)
        if blind is not None:
            out = out.masked_fill(blind.to(q.device)[..., None, None], 0)
        return out.flatten(0, 1)

    def cross(self, layer: int, q: Tensor) -> Tensor:
        if not self.memory:
            return torch.zeros_like(q)
        keys, values = self.memory[layer]
        q = self._rows(q)
        out = fused(q, keys, values, mask=self.looks.to(q.device), causal=False, drop=self.drop)
        out = out.transpose(1, 2) * self.gate.to(q.device)[..., None, None]
        return out.flatten(0, 1)

    def _rows(self, x: Tensor) -> Tensor:
        """(N, H, K) -> (B, H, T, K)."""
        out: Tensor = x.unflatten(0, (self.rows, -1)).transpose(1, 2)
        return out
