"""What the families share that read pictures in the text (Idefics 2, Idefics 3, SmolVLM): all but the connector.

SigLIP encodes a frame, the family's connector turns its patches into vectors of the decoder's width, and those take
the places of `<image>` tokens. Source: arXiv 2405.02246, arXiv 2408.12637 and the released configs.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from idefics.config import KVCacheLayout, ModelConfig, VisionConfig
from idefics.nn.attention import Attn
from idefics.nn.attention_backends import AttentionModule
from idefics.nn.decoder import DecoderLayer, LlamaDecoder
from idefics.nn.decoder_parts import DecoderParts
from idefics.nn.vit import SiglipEmbeddings, VisionEncoder
from idefics.weights import ConcatRule, KeyRules


class SiglipVisionTower(nn.Module):
    """SigLIP's transformer; here `post_layernorm` is applied."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)

    def forward(self, frames: Tensor) -> Tensor:  # (P, 3, h, w) -> (P, S, D)
        out: Tensor = self.post_layernorm(self.encoder(self.embeddings(frames)))
        return out


class InlineImageBackbone(nn.Module):
    """Everything but the head, under the names that checkpoints use.

    Attributes:
        vision_tower_class: what `vision_model` is made of; `compat` has its own.

    Args:
        connector: (P, S, D') patches of the vision tower -> (P, M, D).
    """

    vision_tower_class: ClassVar[type[SiglipVisionTower]] = SiglipVisionTower

    def __init__(self, config: ModelConfig, connector: nn.Module) -> None:
        super().__init__()
        self.vision_model = self.vision_tower_class(config.vision)
        self.connector = connector
        self.text_model = LlamaDecoder(config.text)

    def encode(self, frames: Tensor) -> Tensor:  # (P, 3, h, w) -> (P, M, D)
        out: Tensor = self.connector(self.vision_model(frames))
        return out

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.text_model.embed_tokens(ids)
        return out.to(self.text_model.norm.weight.dtype)

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:  # (N, D), (N,) -> (N, D)
        out: Tensor = self.text_model(x, positions, attn)
        return out


class InlineImageModel(AttentionModule):
    """The model as the engine sees it (`VLM`). N tokens, P frames, M places a frame, D width, V vocabulary.

    Args:
        backbone: everything but the head.
    """

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
        """In which it computes: that of a norm, whose weights are never stored in fewer bits."""
        return self.model.text_model.norm.weight.dtype

    def encode(self, frames: Tensor) -> Tensor:  # (P, 3, h, w) -> (P, M, D)
        return self.model.encode(frames)

    def compute_cross_kv(self, features: Tensor) -> None:
        """None: features stand in the text."""

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.embed(ids)

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:  # (N, D), (N,) -> (N, D)
        out: Tensor = self.model(x, positions, attn)
        return out

    def logits(self, h: Tensor) -> Tensor:  # (R, D) -> (R, V)
        out: Tensor = self.lm_head(h)
        return out

    def decoder_parts(self) -> DecoderParts:
        """The decoder's own modules."""
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
    # The names of the code that these checkpoints were first trained with.
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
    ignore=(
        (r".*\.rotary_emb\.inv_freq", "recomputed; old files stored it"),
        (r".*\.embeddings\.position_ids", "recomputed; stored in bfloat16 it would be wrong"),
        (r"model\.vision_model\.head\..*", "SigLIP's pooling head, never used"),
    ),
)
