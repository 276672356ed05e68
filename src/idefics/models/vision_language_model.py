"""`VisionLanguageModel`: backbone and head, as the engine runs them (`VLM`); the base of every family's model.

P frames, M features of a frame, D' width of features, N tokens, D width of the decoder, R rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from idefics.config import KVCacheLayout, ModelConfig, TextConfig
from idefics.nn.attention import Attn, CrossKV
from idefics.nn.attention_backends import HasAttentionBackend
from idefics.nn.decoder_parts import DecoderParts


class ModelBackbone(nn.Module):
    """Vision tower and decoder: everything but the head, under the names that checkpoints use."""

    @property
    def decoder(self) -> Any:
        """The module that has the decoder's `embed_tokens`, `layers` and `norm`."""
        raise NotImplementedError

    def encode(self, frames: Tensor) -> Tensor:
        """(P, 3, h, w) normalised pixels -> (P, M, D') image features."""
        raise NotImplementedError

    def compute_cross_kv(self, features: Tensor) -> CrossKV | None:
        """(P, M, D') -> keys and values of each cross-attention layer, (P, M, H, K) each; None if there is none."""
        return None

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (...) -> embeddings (..., D), in the dtype that the model computes in."""
        out: Tensor = self.decoder.embed_tokens(ids)
        return out.to(self.decoder.norm.weight.dtype)


class VisionLanguageModel(HasAttentionBackend):
    """A model with its head.

    Args:
        backbone: everything but the head; None: built from the config.

    Attributes:
        backbone_class: the class of the backbone.
        model: the backbone, under the name that checkpoints use.
    """

    backbone_class: ClassVar[type[ModelBackbone]]
    model: ModelBackbone
    lm_head: nn.Linear

    def __init__(self, config: ModelConfig, backbone: ModelBackbone | None = None) -> None:
        super().__init__()
        text, cross_attention = config.text, config.cross_attention
        self.config = config
        self.model = self.backbone_class(config) if backbone is None else backbone
        self.layout = KVCacheLayout(
            num_layers=text.num_layers,
            num_kv_heads=text.num_kv_heads,
            head_size=text.head_size,
            num_cross_attention_layers=text.num_layers // cross_attention.layer_interval
            if cross_attention
            else 0,
            max_positions=text.max_positions,
            vocab_size=text.vocab_size + text.additional_vocab_size,
            sliding_window=text.sliding_window,
        )
        self.lm_head = self._build_lm_head(text)
        if text.tie_word_embeddings:
            self.lm_head.weight = self.model.decoder.embed_tokens.weight

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in: that of a norm, whose weights are never quantised."""
        dtype: torch.dtype = self.model.decoder.norm.weight.dtype
        return dtype

    def encode(self, frames: Tensor) -> Tensor:
        """(P, 3, h, w) normalised pixels -> (P, M, D') image features."""
        return self.model.encode(frames)

    def compute_cross_kv(self, features: Tensor) -> CrossKV | None:
        """(P, M, D') -> keys and values of each cross-attention layer, (P, M, H, K) each; None if there is none."""
        return self.model.compute_cross_kv(features)

    def embed(self, ids: Tensor) -> Tensor:
        """The embedding: token ids (...) -> vectors (..., D)."""
        return self.model.embed(ids)

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """The decoder: embeddings (N, D) at positions (N,) -> hidden states (N, D) after the last norm."""
        out: Tensor = self.model(x, positions, attn)
        return out

    def logits(self, h: Tensor) -> Tensor:
        """The head: hidden states (R, D) -> logits (R, V)."""
        out: Tensor = self.lm_head(h)
        return out

    def decoder_parts(self) -> DecoderParts:
        """The decoder's modules in the order in which they run, for the fused decode step."""
        decoder = self.model.decoder
        return DecoderParts(
            config=self.config.text,
            embeddings=(decoder.embed_tokens,),
            layers=tuple(decoder.layers),
            cross_blocks=(None,) * len(decoder.layers),
            norm=decoder.norm,
            lm_heads=(self.lm_head,),
        )

    def _build_lm_head(self, text: TextConfig) -> nn.Linear:
        """The head, which computes logits."""
        return nn.Linear(text.hidden_size, text.vocab_size, bias=False)
