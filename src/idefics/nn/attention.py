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

from idefics.nn.attention_backends import AttentionBackend, sdpa_attention


class LayerCrossKV(NamedTuple):
    """Keys and values of all pictures for one cross-attention layer: (P, M, H, K) each."""

    keys: Tensor
    values: Tensor


CrossKV = Sequence[LayerCrossKV]


class Attn(Protocol):
    """How a block's queries meet keys and values."""

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within each sequence: (N, H, K), (N, h, K), (N, h, K) -> (N, H, K)."""
        ...

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        """Attention to the one picture that a token sees: (N, H, K) -> (N, H, K).

        Exactly zero for a token that sees no picture.
        """
        ...


def causal_window_mask(query_positions: Tensor, key_positions: Tensor, sliding_window: int | None) -> Tensor:
    """Which keys a query sees by their positions, (N,) and (L,) -> (N, L): those up to its own, within the window."""
    distance = query_positions[:, None] - key_positions
    return distance >= 0 if sliding_window is None else (distance >= 0) & (distance < sliding_window)


class DenseAttn:
    """Uncached attention over `num_sequences` sequences of equal length, packed row after row.

    Shorter sequences are padded on the right: causality keeps the padding out of sight.

    Args:
        num_sequences: number of sequences; N is a multiple of it.
        cross_kv: for each cross layer the keys and values of all pictures; empty where there are none.
        image_index: (N,) for each token the index of its picture in `cross_kv`, or -1.
        sliding_window: how far back a token sees in its sequence, as in `KVCacheLayout`.
    """

    def __init__(
        self,
        num_sequences: int,
        cross_kv: CrossKV = (),
        image_index: Tensor | None = None,
        *,
        sliding_window: int | None = None,
        backend: AttentionBackend = sdpa_attention,
    ) -> None:
        self.num_sequences, self.cross_kv, self.sliding_window, self.backend = (
            num_sequences,
            cross_kv,
            sliding_window,
            backend,
        )
        if cross_kv and image_index is not None:
            num_images, features_per_image = cross_kv[0].keys.shape[:2]
            is_visible = image_index[:, None] == torch.arange(num_images, device=image_index.device)  # (N, P)
            self.has_image = is_visible.any(dim=1)  # (N,)
            # A row that may look nowhere would be NaN: let it look everywhere, then close the gate.
            self.image_mask = (is_visible | ~self.has_image[:, None]).repeat_interleave(
                features_per_image, dim=1
            )  # (N, P*M)

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            x.unflatten(0, (self.num_sequences, -1)).transpose(1, 2) for x in (q, k, v)
        )  # (B, H, T, K)
        mask = None
        if self.sliding_window is not None and q.shape[2] > self.sliding_window:
            positions = torch.arange(q.shape[2], device=q.device)
            mask = causal_window_mask(positions, positions, self.sliding_window)
        out = self.backend(q, k, v, mask=mask, causal=mask is None)
        return out.transpose(1, 2).flatten(0, 1)

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        if not self.cross_kv:
            return torch.zeros_like(q)
        keys, values = (x.flatten(0, 1).transpose(0, 1)[None] for x in self.cross_kv[layer])  # (1, H, P*M, K)
        out = self.backend(q.transpose(0, 1)[None], keys, values, mask=self.image_mask.to(q.device))[
            0
        ]  # (H, N, K)
        return (out * self.has_image.to(q.device)[:, None]).transpose(0, 1)
