"""All that the engine knows of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from idefics.config import KVCacheLayout
from idefics.nn.attention import Attn, CrossKV
from idefics.nn.attention_backends import AttentionBackend
from idefics.nn.decoder_parts import DecoderParts


class VLM(Protocol):
    """A vision-language model as the engine sees it.

    N packed tokens, P frames, M feature rows a frame, D width, R rows, V vocabulary.
    """

    layout: KVCacheLayout
    attention_backend: AttentionBackend  # with which the engine's ways to attend compute

    def encode(self, frames: Tensor) -> Tensor:
        """(P, 3, h, w) -> (P, M, D'): once a picture. Frames of one call have one size; none is padding."""
        ...

    def compute_cross_kv(self, features: Tensor) -> CrossKV | None:
        """(P, M, D') -> keys and values for each cross layer; None where features stand in the text."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """(N,) -> (N, D)."""
        ...

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """(N, D), (N,) -> (N, D), after the last norm."""
        ...

    def logits(self, h: Tensor) -> Tensor:
        """(R, D) -> (R, V): only the rows that are sampled."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of all that is computed; weights may be stored in another."""
        ...

    def decoder_parts(self) -> DecoderParts | None:
        """The decoder's own modules; None where its steps cannot be told in them."""
        ...

    def parameters(self) -> Iterator[Parameter]:
        """As `nn.Module` has it: where they lie is where the engine computes."""
        ...
