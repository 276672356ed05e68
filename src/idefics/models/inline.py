"""Shared by the inline-image families (Idefics 2, Idefics 3, SmolVLM): everything but the connector.

    pixels (P, 3, h, w) -> SigLIP -> patches (P, S, D') -> connector -> image features (P, M, D)
    token ids (N,) -> embeddings (N, D), those of `<image>` tokens replaced by image features -> Llama layers -> logits

P frames (images or tiles of an image), S patches and M features of a frame, D' width of SigLIP, D width of the decoder.
Source: arXiv 2405.02246, arXiv 2408.12637 and the released configs.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from idefics.config import ModelConfig, VisionConfig
from idefics.models.family import RECOMPUTED_BUFFERS, RawConfig, validate_activation_name
from idefics.models.vision_language_model import ModelBackbone
from idefics.nn.attention import Attn
from idefics.nn.decoder import LlamaDecoder
from idefics.nn.vit import SiglipEmbeddings, VisionEncoder
from idefics.weights import KeyRules


class SiglipVisionTower(nn.Module):
    """SigLIP's transformer, with the norm after its last layer and without its pooling head."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)

    def forward(self, frames: Tensor) -> Tensor:
        """(P, 3, h, w) normalised pixels -> (P, S, D') patches."""
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
        """Embedding, decoder layers and norm."""
        return self.text_model

    def encode(self, frames: Tensor) -> Tensor:
        """(P, 3, h, w) normalised pixels -> (P, M, D) image features."""
        out: Tensor = self.connector(self.vision_model(frames))
        return out

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
    ignore=(*RECOMPUTED_BUFFERS, (r"model\.vision_model\.head\..*", "SigLIP's pooling head, not used")),
)


def read_siglip_config(vision: RawConfig, *, hidden_size: int, num_heads: int) -> VisionConfig:
    """The vision tower that a `vision_config` describes; `hidden_size` and `num_heads` are the family's defaults."""
    return VisionConfig(
        hidden_size=vision.get("hidden_size", hidden_size),
        intermediate_size=vision.get("intermediate_size", 3072),
        num_layers=vision.get("num_hidden_layers", 12),
        num_heads=vision.get("num_attention_heads", num_heads),
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 32),
        norm_epsilon=vision.get("layer_norm_eps", 1e-6),
        activation=validate_activation_name(vision.get("hidden_act", "gelu_pytorch_tanh")),
    )
