"""The seam between models and whoever runs them: attention is an argument.

Models call `self_` and `cross`; the trainer and the slow twin bring `DenseAttn`, the engine brings its own.
Shapes: N packed tokens, H query heads, h key/value heads, K head size, P pictures, M feature rows a picture.
Does not know layers' weights, tokens or caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from idefics.nn.kernels import Kernel, fused


class LayerMemory(NamedTuple):
    """Keys and values of all pictures for one cross-attention layer: (P, M, H, K) each."""

    keys: Tensor
    values: Tensor


Memory = Sequence[LayerMemory]


class Attn(Protocol):
    """How a block's queries meet keys and values."""

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within each sequence: (N, H, K), (N, h, K), (N, h, K) -> (N, H, K)."""
        ...

    def cross(self, layer: int, q: Tensor) -> Tensor:
        """Attention to the one picture that a token sees: (N, H, K) -> (N, H, K).

        Exactly zero for a token that sees no picture.
        """
        ...


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which keys a query sees by their positions, (N,) and (L,) -> (N, L): those up to its own, within the window."""
    back = queries[:, None] - keys
    return back >= 0 if window is None else (back >= 0) & (back < window)


class DenseAttn:
    """Uncached attention over `rows` sequences of equal length, packed row after row.

    Shorter sequences are padded on the right: causality keeps the padding out of sight.

    Args:
        rows: number of sequences; N is a multiple of it.
        memory: for each cross layer the keys and values of all pictures; empty where there are none.
        sees: (N,) for each token the index of its picture in `memory`, or -1.
        window: how far back a token sees in its sequence, as in `CacheLayout`.
    """

    def __init__(
        self,
        rows: int,
        memory: Memory = (),
        sees: Tensor | None = None,
        *,
        window: int | None = None,
        kernel: Kernel = fused,
    ) -> None:
        self.rows, self.memory, self.window, self.kernel = rows, memory, window, kernel
        if memory and sees is not None:
            pictures, places = memory[0].keys.shape[:2]
            seen = sees[:, None] == torch.arange(pictures, device=sees.device)  # (N, P)
            self.gate = seen.any(dim=1)  # (N,)
            # A row that may look nowhere would be NaN: let it look everywhere, then close the gate.
            self.mask = (seen | ~self.gate[:, None]).repeat_interleave(places, dim=1)  # (N, P*M)

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (self.rows, -1)).transpose(1, 2) for x in (q, k, v))  # (B, H, T, K)
        mask = None
        if self.window is not None and q.shape[2] > self.window:
            places = torch.arange(q.shape[2], device=q.device)
            mask = visible(places, places, self.window)
        out = self.kernel(q, k, v, mask=mask, causal=mask is None)
        return out.transpose(1, 2).flatten(0, 1)

    def cross(self, layer: int, q: Tensor) -> Tensor:
        if not self.memory:
            return torch.zeros_like(q)
        keys, values = (x.flatten(0, 1).transpose(0, 1)[None] for x in self.memory[layer])  # (1, H, P*M, K)
        out = self.kernel(q.transpose(0, 1)[None], keys, values, mask=self.mask.to(q.device))[0]  # (H, N, K)
        return (out * self.gate.to(q.device)[:, None]).transpose(0, 1)
