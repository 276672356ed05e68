"""Attention as an argument of a model's forward pass, so that models are independent of KV caches and batching.

Decoders call `Attn.self_attention` and `Attn.cross_attention`. The trainer and the uncached reference pass `DenseAttn`;
the engine passes implementations that read its KV cache (`engine.prefill`, `engine.decode`).

Shapes: N packed tokens, H query heads, h key/value heads, K head size, P pictures, M image features of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from idefics.nn.attention_backends import AttentionBackend, sdpa_attention


class LayerCrossKV(NamedTuple):
    """Keys and values of all pictures for one cross-attention layer: (P, M, H, K) each."""

    keys: Tensor
    values: Tensor


CrossKV = Sequence[LayerCrossKV]


class Attn(Protocol):
    """Computes attention for a decoder's layers; `layer` counts self-attention or cross-attention layers from 0."""

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within each sequence: q (N, H, K), k and v (N, h, K) -> (N, H, K)."""
        ...

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        """Attention to the image features of each token's picture: q (N, H, K) -> (N, H, K).

        Exactly zero for a token without a picture.
        """
        ...


def causal_window_mask(query_positions: Tensor, key_positions: Tensor, sliding_window: int | None) -> Tensor:
    """Which keys a query attends to: positions of N queries and L keys -> (N, L) bool.

    True if the key is not after the query, and among the last `sliding_window` positions; None: no such limit.
    """
    distance = query_positions[:, None] - key_positions
    return distance >= 0 if sliding_window is None else (distance >= 0) & (distance < sliding_window)


class AttentionProjections(nn.Module):
    """The linear layers around an attention, without biases.

    Args:
        context_size: width of what keys and values are computed from; None: `hidden_size`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_size: int,
        context_size: int | None = None,
    ) -> None:
        super().__init__()
        self.head_size = head_size
        self.q_proj = nn.Linear(hidden_size, num_heads * head_size, bias=False)
        self.k_proj = nn.Linear(context_size or hidden_size, num_kv_heads * head_size, bias=False)
        self.v_proj = nn.Linear(context_size or hidden_size, num_kv_heads * head_size, bias=False)
        self.o_proj = nn.Linear(num_heads * head_size, hidden_size, bias=False)


class DenseAttn:
    """`Attn` without a KV cache, over `num_sequences` sequences of equal length, packed one after another.

    Shorter sequences are padded on the right, where causal attention ignores the padding.

    Args:
        num_sequences: number of sequences; N is a multiple of it.
        cross_kv: for each cross-attention layer the keys and values of all pictures; empty without pictures.
        image_index: (N,) for each token the index of its picture in `cross_kv`, or -1.
        sliding_window: number of positions that a token attends to, its own included, as in `KVCacheLayout`.
        backend: computes the attention.
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
        self.num_sequences, self.cross_kv = num_sequences, cross_kv
        self.sliding_window, self.backend = sliding_window, backend
        if cross_kv and image_index is not None:
            num_images, features_per_image = cross_kv[0].keys.shape[:2]
            is_visible = image_index[:, None] == torch.arange(num_images, device=image_index.device)  # (N, P)
            self.has_image = is_visible.any(dim=1)  # (N,)
            # A row that is masked completely would give NaN: unmask it here, zero it in `cross_attention`.
            image_mask = is_visible | ~self.has_image[:, None]
            self.image_mask = image_mask.repeat_interleave(features_per_image, dim=1)  # (N, P*M)

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within each sequence: q (N, H, K), k and v (N, h, K) -> (N, H, K); `layer` is not used."""
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
        """Attention to the image features of each token's picture: (N, H, K) -> (N, H, K); 0 for tokens without one."""
        if not self.cross_kv:
            return torch.zeros_like(q)
        keys, values = (x.flatten(0, 1).transpose(0, 1)[None] for x in self.cross_kv[layer])  # (1, H, P*M, K)
        mask = self.image_mask.to(q.device)
        out = self.backend(q.transpose(0, 1)[None], keys, values, mask=mask)[0]  # (H, N, K)
        return (out * self.has_image.to(q.device)[:, None]).transpose(0, 1)
