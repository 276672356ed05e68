"""Shared by the inline-image families (Idefics 2, Idefics 3, SmolVLM): everything but the connector.

    pixels (P, 3, h, w) -> SigLIP -> patches (P, S, D') -> connector -> image features (P, M, D)
    token ids (N,) -> embeddings (N, D), those of `<image>` tokens replaced by image features -> Llama layers -> logits

P frames (images or tiles of an image), S patches and M features of a frame, D' width of SigLIP, D width of the decoder.
Source: arXiv 2405.02246, arXiv 2408.12637 and the released configs.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from idefics.config import KVCacheLayout, ModelConfig, TextConfig, VisionConfig
from idefics.errors import UnsupportedModel
from idefics.models.family import RECOMPUTED_BUFFERS, RawConfig, read_rope_config, validate_activation_name
from idefics.nn.attention import Attn
from idefics.nn.attention_backends import HasAttentionBackend
from idefics.nn.decoder import DecoderLayer, LlamaDecoder
from idefics.nn.decoder_parts import DecoderParts
from idefics.nn.vit import SiglipEmbeddings, VisionEncoder
from idefics.weights import ConcatRule, KeyRules


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


class InlineImageBackbone(nn.Module):
    """Vision tower, connector and decoder: everything but the head, under the names that checkpoints use.

    Args:
        connector: (P, S, D') patches -> (P, M, D) image features.

    Attributes:
        vision_tower_class: class of `vision_model`; `compat` has a subclass of its own.
    """

    vision_tower_class: ClassVar[type[SiglipVisionTower]] = SiglipVisionTower

    def __init__(self, config: ModelConfig, connector: nn.Module) -> None:
        super().__init__()
        self.vision_model = self.vision_tower_class(config.vision)
        self.connector = connector
        self.text_model = LlamaDecoder(config.text)

    def encode(self, frames: Tensor) -> Tensor:
        """(P, 3, h, w) normalised pixels -> (P, M, D) image features."""
        out: Tensor = self.connector(self.vision_model(frames))
        return out

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (...) -> embeddings (..., D), in the dtype that the model computes in."""
        out: Tensor = self.text_model.embed_tokens(ids)
        return out.to(self.text_model.norm.weight.dtype)

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """The decoder: embeddings (N, D) at positions (N,) -> hidden states (N, D) after the last norm."""
        out: Tensor = self.text_model(x, positions, attn)
        return out


class InlineImageModel(HasAttentionBackend):
    """Backbone and head: an inline-image model as the engine runs it (`VLM`). V vocabulary."""

    def __init__(self, config: ModelConfig, backbone: InlineImageBackbone) -> None:
        super().__init__()
        self.config = config
        text = config.text
        self.layout = KVCacheLayout(
            num_layers=text.num_layers,
            num_kv_heads=text.num_kv_heads,
            head_size=text.head_size,
            num_cross_attention_layers=0,
            max_positions=text.max_positions,
            vocab_size=text.vocab_size,
            sliding_window=text.sliding_window,
        )
        self.model = backbone
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        if text.tie_word_embeddings:
            self.lm_head.weight = self.model.text_model.embed_tokens.weight

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in: that of a norm, whose weights are never quantised."""
        return self.model.text_model.norm.weight.dtype

    def encode(self, frames: Tensor) -> Tensor:
        """(P, 3, h, w) normalised pixels -> (P, M, D) image features."""
        return self.model.encode(frames)

    def compute_cross_kv(self, features: Tensor) -> None:
        """None: there is no cross-attention; image features replace embeddings."""

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
        text = self.model.text_model
        layers = cast(tuple[DecoderLayer, ...], tuple(text.layers))
        return DecoderParts(
            config=self.config.text,
            embeddings=(text.embed_tokens,),
            layers=layers,
            cross_blocks=(None,) * len(layers),
            norm=text.norm,
            lm_heads=(self.lm_head,),
        )


INLINE_KEY_RULES = KeyRules(
    # The names in the code that these checkpoints were trained with.
    rename=(
        (r"^model\.(layers|norm)\.", r"model.text_model.\1."),
        (r"^model\.(modality_projection|perceiver_resampler)\.", r"model.connector.\1."),
    ),
    concat=(
        ConcatRule(
            "model.text_model.embed_tokens.weight",
            ("model.embed_tokens.weight", "model.embed_tokens.additional_embedding.weight"),
        ),
        ConcatRule(
            "lm_head.weight", ("lm_head.weight", "lm_head.additional_fc.weight", "additional_fc.weight")
        ),
    ),
    ignore=(*RECOMPUTED_BUFFERS, (r"model\.vision_model\.head\..*", "SigLIP's pooling head, not used")),
)


def read_text_config(
    text: RawConfig,
    *,
    model_type: str,
    intermediate_size: int,
    num_kv_heads: int | None,
    max_positions: int,
    sliding_window: int | None = None,
    tie_word_embeddings: bool,
) -> TextConfig:
    """The decoder that a `text_config` describes.

    Args:
        model_type: the one whose config class transformers would use.
        intermediate_size, num_kv_heads, max_positions, sliding_window: the defaults of that class; `num_kv_heads` None:
            as many as query heads.
        tie_word_embeddings: of the whole model's config.

    Raises:
        UnsupportedModel: the text_config is of another model_type.
    """
    if (decoder := text.get("model_type", model_type)) != model_type:
        raise UnsupportedModel(
            f"config.json's text_config is of model_type {decoder!r}; known is {model_type}"
        )
    width, heads = text.get("hidden_size", 4096), text.get("num_attention_heads", 32)
    return TextConfig(
        vocab_size=text.get("vocab_size", 32000),
        hidden_size=width,
        intermediate_size=text.get("intermediate_size", intermediate_size),
        num_layers=text.get("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=text.get("num_key_value_heads", num_kv_heads) or heads,
        head_size=text.get("head_dim") or width // heads,
        norm_epsilon=text.get("rms_norm_eps", 1e-6),
        max_positions=text.get("max_position_embeddings", max_positions),
        activation=validate_activation_name(text.get("hidden_act", "silu")),
        rope=read_rope_config(text),
        sliding_window=sliding_window and text.get("sliding_window", sliding_window),
        tie_word_embeddings=tie_word_embeddings,
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


def read_dtype_name(raw: RawConfig, text: RawConfig) -> str | None:
    """The dtype that config.json names in any of its fields; None if it names none. `text` is its text_config."""
    dtype: str | None = raw.get("dtype", raw.get("torch_dtype", text.get("torch_dtype")))
    return dtype
