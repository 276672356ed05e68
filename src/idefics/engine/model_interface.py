"""The protocol that a model implements to be run by the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from idefics.config import KVCacheLayout
from idefics.nn.attention import Attn, CrossKV
from idefics.nn.attention_backends import AttentionBackend
from idefics.nn.decoder import DecoderParts


class VLM(Protocol):
    """A vision-language model, as the engine calls it.

    N packed tokens, P frames, M feature rows a frame, D' width of features, D width of the decoder, R rows,
    V vocabulary.

    Attributes:
        layout: the sizes of its KV cache.
        attention_backend: computes attention for the engine's `Attn` implementations.
    """

    layout: KVCacheLayout
    attention_backend: AttentionBackend

    def encode(self, frames: Tensor) -> Tensor:
        """Encodes frames of one size, without padding: (P, 3, h, w) -> (P, M, D') image features."""
        ...

    def compute_cross_kv(self, features: Tensor) -> CrossKV | None:
        """Keys and values for each cross-attention layer: (P, M, D') -> (P, M, H, K) twice; None for inline images."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """The embeddings of tokens: (N,) ids -> (N, D)."""
        ...

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """Runs the decoder: embeddings (N, D) at positions (N,) -> hidden states (N, D) after the last norm."""
        ...

    def logits(self, h: Tensor) -> Tensor:
        """Applies the LM head: (R, D) hidden states -> (R, V) next-token logits."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations; weights may be stored in another."""
        ...

    def decoder_parts(self) -> DecoderParts | None:
        """The decoder's modules, for fused and native decode steps; None if it is not built of `nn.decoder` layers."""
        ...

    def parameters(self) -> Iterator[Parameter]:
        """The model's parameters, as `nn.Module.parameters`; the engine reads device and dtype from them."""
        ...
