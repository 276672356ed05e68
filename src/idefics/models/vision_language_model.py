"""`VisionLanguageModel`: backbone and head, as the engine runs them (`VLM`); and what the inline-image families share.

Inline-image families (Idefics 2, Idefics 3, SmolVLM) differ in their connector only:

    pixels (P, 3, h, w) -> SigLIP -> patches (P, S, D') -> connector -> image features (P, M, D)
    token ids (N,) -> embeddings (N, D), those of `<image>` tokens replaced by image features -> Llama layers -> logits

P frames (images or tiles), S patches and M features of a frame, D' width of the vision tower or of features,
N tokens, D width of the decoder, R rows, V vocabulary. Source: arXiv 2405.02246, arXiv 2408.12637, released configs.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from idefics.config import KVCacheLayout, ModelConfig, TextConfig, VisionConfig
from idefics.models.family import RECOMPUTED_BUFFERS, RawConfig, read_activation
from idefics.nn.attention import Attn, CrossKV
from idefics.nn.attention_backends import HasAttentionBackend
from idefics.nn.decoder import DecoderParts, LlamaDecoder
from idefics.nn.vit import SiglipEmbeddings, VisionEncoder
from idefics.weights import KeyRules


class ModelBackbone(nn.Module):
    """Vision tower and decoder: everything but the head, under the names that checkpoints use.

    Attributes:
        connector_name: of `connector_module` in checkpoints.
    """

    connector_name: ClassVar[str] = "connector"
    vision_model: nn.Module

    @property
    def decoder(self) -> Any:
        """The module that has the decoder's `embed_tokens`, `layers` and `norm`."""
        raise NotImplementedError

    @property
    def connector_module(self) -> nn.Module:
        """The module between the vision tower and the decoder: (P, S, D') patches -> (P, M, D') image features."""
        return self.get_submodule(self.connector_name)

    def encode(self, frames: Tensor) -> Tensor:
        """Encodes images: (P, 3, h, w) normalised pixels -> (P, M, D') image features."""
        out: Tensor = self.connector_module(self.vision_model(frames))
        return out

    def compute_cross_kv(self, features: Tensor) -> CrossKV | None:
        """Image features (P, M, D') -> keys and values of each cross-attention layer, (P, M, H, K) each.

        None if the model has no cross-attention.
        """
        return None

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (...) -> embeddings (..., D), in the dtype that the model computes in."""
        out: Tensor = self.decoder.embed_tokens(ids)
        return out.to(self.decoder.norm.weight.dtype)


class VisionLanguageModel(HasAttentionBackend):
    """Base of the models that the engine runs: a backbone (vision tower and decoder) and an LM head.

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
        """The dtype that the model computes in: that of its norms, whose weights are never quantised."""
        dtype: torch.dtype = self.model.decoder.norm.weight.dtype
        return dtype

    def encode(self, frames: Tensor) -> Tensor:
        """Encodes images: (P, 3, h, w) normalised pixels -> (P, M, D') image features, in the decoder's dtype."""
        return self.model.encode(frames).to(self.dtype)

    def compute_cross_kv(self, features: Tensor) -> CrossKV | None:
        """Image features (P, M, D') -> keys and values of each cross-attention layer, (P, M, H, K) each.

        None if the model has no cross-attention.
        """
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
        """Builds the head, hidden states (R, D) -> logits (R, V); overridden where it is not a plain linear layer."""
        return nn.Linear(text.hidden_size, text.vocab_size, bias=False)


class SiglipVisionTower(nn.Module):
    """SigLIP's transformer, with the norm after its last layer and without its pooling head."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)

    def forward(self, frames: Tensor) -> Tensor:
        """Encodes images: (P, 3, h, w) normalised pixels -> (P, S, D') patches."""
        out: Tensor = self.post_layernorm(self.encoder(self.embeddings(frames)))
        return out


class InlineImageBackbone(ModelBackbone):
    """Vision tower, connector and decoder: everything but the head, under the names that checkpoints use.

    Attributes:
        vision_tower_class: class of `vision_model`; `compat` has a subclass of its own.
        connector_class: class of `connector`, which maps (P, S, D') patches to (P, M, D) image features.
    """

    vision_tower_class: ClassVar[type[SiglipVisionTower]] = SiglipVisionTower
    connector_class: ClassVar[type]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vision_model = self.vision_tower_class(config.vision)
        self.connector: nn.Module = self.connector_class(config)
        self.text_model = LlamaDecoder(config.text)

    @property
    def decoder(self) -> LlamaDecoder:
        """The decoder: embedding, layers and norm."""
        return self.text_model

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """The decoder: embeddings (N, D) at positions (N,) -> hidden states (N, D) after the last norm."""
        out: Tensor = self.text_model(x, positions, attn)
        return out


INLINE_KEY_RULES = KeyRules(
    # The names in the code that these checkpoints were trained with.
    rename=(
        (r"^model\.(layers|norm)\.", r"model.text_model.\1."),
        (r"^model\.(modality_projection|perceiver_resampler)\.", r"model.connector.\1."),
    ),
    concat={
        "model.text_model.embed_tokens.weight": (
            "model.embed_tokens.weight",
            "model.embed_tokens.additional_embedding.weight",
        ),
        "lm_head.weight": ("lm_head.weight", "lm_head.additional_fc.weight", "additional_fc.weight"),
    },
    ignore=(*RECOMPUTED_BUFFERS, r"model\.vision_model\.head\..*"),  # SigLIP's pooling head is not used
)


def read_siglip_config(raw: RawConfig, *, hidden_size: int, num_heads: int) -> VisionConfig:
    """The vision tower of a config.json; `hidden_size` and `num_heads` are the family's defaults."""
    vision: RawConfig = raw.get("vision_config") or {}
    return VisionConfig(
        hidden_size=vision.get("hidden_size", hidden_size),
        intermediate_size=vision.get("intermediate_size", 3072),
        num_layers=vision.get("num_hidden_layers", 12),
        num_heads=vision.get("num_attention_heads", num_heads),
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 32),
        norm_epsilon=vision.get("layer_norm_eps", 1e-6),
        activation=read_activation(vision, "gelu_pytorch_tanh"),
    )
