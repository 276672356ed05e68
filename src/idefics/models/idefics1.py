"""Idefics 1 (9b, 80b and their instruct versions): a cross-attention model.

    pixels (P, 3, h, h) -> CLIP -> patches (P, 1 + S, D') -> resampler -> image features (P, M, D')
    image features -> keys and values (P, M, H, K) of each cross-attention layer, computed once for an image
    token ids (N,) -> embeddings (N, D) -> Llama layers, a gated cross-attention layer before every n-th -> logits

A token attends to one image: the last one before it. P images, S patches and M features of an image, N tokens, H heads
of size K, D' width of CLIP, D width of the decoder, V vocabulary, A additional tokens in matrices of their own.
Source: OBELICS (arXiv 2306.16527), Flamingo (arXiv 2204.14198) and the released configs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics.config import CrossAttentionConfig, ModelConfig, TextConfig, VisionConfig
from idefics.errors import UnsupportedModel
from idefics.models.family import RECOMPUTED_BUFFERS, ModelFamily
from idefics.models.idefics1_config import read_config, read_image_config, read_prompt_format
from idefics.models.vision_language_model import ModelBackbone, VisionLanguageModel
from idefics.nn.adapter_terms import GatedLayer
from idefics.nn.attention import AttentionProjections, Attn, CrossKV, LayerCrossKV
from idefics.nn.decoder import CrossAttentionBlock, DecoderLayer, DecoderParts, GatedMLP
from idefics.nn.norm import RMSNorm
from idefics.nn.perceiver import Resampler
from idefics.nn.rope import rotary_cos_sin
from idefics.nn.upcast import TokenEmbedding, upcast_linear
from idefics.nn.vit import ClipEmbeddings, VisionEncoder
from idefics.weights import KeyRules


class ClipVisionTower(nn.Module):
    """CLIP's transformer without its last norm and pooling: `post_layernorm` is in the files but not used here."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(config)
        # Spelt so in the checkpoints.
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)

    def forward(self, frames: Tensor) -> Tensor:
        """Encodes images: (P, 3, h, h) normalised pixels -> (P, 1 + S, D'), the class vector and then the patches."""
        out: Tensor = self.encoder(self.pre_layrnorm(self.embeddings(frames)))
        return out


class DecoupledEmbedding(TokenEmbedding):
    """An embedding in two matrices: ids from `vocab_size` on are rows of `additional_embedding`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config.vocab_size, config.hidden_size)
        if config.additional_vocab_size:
            self.additional_embedding = TokenEmbedding(config.additional_vocab_size, config.hidden_size)
        self.num_additional_embeddings = config.additional_vocab_size

    def forward(self, ids: Tensor) -> Tensor:
        """The embedding: token ids (...) -> vectors (..., D)."""
        if not self.num_additional_embeddings:
            return super().forward(ids)
        base = functional.embedding(ids.clamp(max=self.num_embeddings - 1), self.weight)
        extra = self.additional_embedding((ids - self.num_embeddings).clamp(min=0))
        return torch.where(ids[..., None] < self.num_embeddings, base, extra)


class DecoupledHead(nn.Linear):
    """A head in two matrices: the logits of the A additional tokens come after those of the vocabulary."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        if config.additional_vocab_size:
            self.additional_fc = nn.Linear(config.hidden_size, config.additional_vocab_size, bias=False)
        self.num_additional_outputs = config.additional_vocab_size

    def forward(self, h: Tensor) -> Tensor:
        """Hidden states (R, D) -> logits (R, V + A)."""
        logits = upcast_linear(h, self.weight)
        return torch.cat((logits, self.additional_fc(h)), dim=-1) if self.num_additional_outputs else logits


class CrossAttention(AttentionProjections):
    """Attention of tokens to image features: optional norms of each head's queries and keys, no rotary embedding."""

    def __init__(self, config: ModelConfig, cross: CrossAttentionConfig) -> None:
        text = config.text
        super().__init__(
            text.hidden_size, text.num_heads, text.num_heads, text.head_size, config.vision.hidden_size
        )
        if cross.has_qk_norms:
            self.q_layer_norm: nn.Module = RMSNorm(text.head_size, text.norm_epsilon)
            self.k_layer_norm: nn.Module = RMSNorm(text.head_size, text.norm_epsilon)
        else:
            self.q_layer_norm = self.k_layer_norm = nn.Identity()

    def compute_cross_kv(self, features: Tensor) -> LayerCrossKV:
        """Image features (P, M, D') -> keys and values, (P, M, H, K) each."""
        keys, values = (p(features).unflatten(-1, (-1, self.head_size)) for p in (self.k_proj, self.v_proj))
        return LayerCrossKV(self.k_layer_norm(keys), values)

    def forward(self, index: int, x: Tensor, attn: Attn) -> Tensor:
        """Attends from tokens to the image features of their pictures: (N, D) -> (N, D).

        Args:
            index: number of the cross-attention layer, from 0, which selects the keys and values.
            attn: computes the attention.
        """
        queries = self.q_layer_norm(self.q_proj(x).unflatten(-1, (-1, self.head_size)))
        out: Tensor = self.o_proj(attn.cross_attention(index, queries).flatten(1))
        return out


class GatedCrossAttentionLayer(GatedLayer):
    """x + tanh(alpha_cross_attn) * attention(norm(x)), then x + tanh(alpha_dense) * MLP(norm(x)).

    The attention is zero for a token before the first image; the MLP runs for every token.
    """

    def __init__(self, config: ModelConfig, cross: CrossAttentionConfig) -> None:
        super().__init__()
        text = config.text
        self.cross_attn = CrossAttention(config, cross)
        self.mlp = GatedMLP(text.hidden_size, text.intermediate_size, text.activation)
        self.input_layernorm = RMSNorm(text.hidden_size, text.norm_epsilon)
        self.post_attention_layernorm = RMSNorm(text.hidden_size, text.norm_epsilon)
        shape = (1, 1, text.hidden_size) if cross.alpha_type == "vector" else (1,)
        self.alpha_cross_attn = nn.Parameter(torch.zeros(shape))
        self.alpha_dense = nn.Parameter(torch.zeros(shape))

    def forward(self, index: int, x: Tensor, attn: Attn) -> Tensor:
        """Runs the layer on N tokens: (N, D) hidden states -> (N, D); arguments as in `CrossAttention.forward`."""
        cross_attention_output = self.cross_attn(index, self.input_layernorm(x), attn)
        factor = self.gate_factor("alpha_cross_attn", self.alpha_cross_attn, x)
        x = x + factor * cross_attention_output
        factor = self.gate_factor("alpha_dense", self.alpha_dense, x)
        out: Tensor = x + factor * self.mlp(self.post_attention_layernorm(x))
        return out

    def to_cross_attention_block(self) -> CrossAttentionBlock:
        """The layer's modules as a part of `DecoderParts`."""
        attention = self.cross_attn
        adapter_gates = {} if self.adapter_gates is None else self.adapter_gates.gates
        return CrossAttentionBlock(
            norm=self.input_layernorm,
            q=attention.q_proj,
            q_norm=attention.q_layer_norm if isinstance(attention.q_layer_norm, RMSNorm) else None,
            o=attention.o_proj,
            gate=self.alpha_cross_attn,
            mlp_norm=self.post_attention_layernorm,
            mlp=self.mlp,
            mlp_gate=self.alpha_dense,
            adapter_gates=tuple(adapter_gates.get("alpha_cross_attn", ())),
            adapter_mlp_gates=tuple(adapter_gates.get("alpha_dense", ())),
        )


class Idefics1Backbone(ModelBackbone):
    """Vision tower, resampler and decoder: everything but the head, under the names that checkpoints use.

    Attributes:
        vision_tower_class: class of `vision_model`; `compat` has a subclass of its own.

    Raises:
        UnsupportedModel: the number of layers is not a multiple of the interval of cross-attention layers.
    """

    connector_name = "perceiver_resampler"
    vision_tower_class: ClassVar[type[ClipVisionTower]] = ClipVisionTower

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.cross_attention is not None
        text, interval = config.text, config.cross_attention.layer_interval
        if text.num_layers % interval:
            raise UnsupportedModel(
                f"{text.num_layers} layers cannot have a cross-attention layer every {interval}: "
                "num_hidden_layers must be a multiple of cross_layer_interval"
            )
        self.text_config, self.cross_layer_interval = text, interval
        self.embed_tokens = DecoupledEmbedding(text)
        self.vision_model = self.vision_tower_class(config.vision)
        self.perceiver_resampler = (
            Resampler(config.vision.hidden_size, config.resampler) if config.resampler else nn.Identity()
        )
        self.layers = nn.ModuleList(DecoderLayer(text) for _ in range(text.num_layers))
        self.gated_cross_attn_layers = nn.ModuleList(
            GatedCrossAttentionLayer(config, config.cross_attention)
            for _ in range(text.num_layers // interval)
        )
        self.norm = RMSNorm(text.hidden_size, text.norm_epsilon)

    @property
    def decoder(self) -> Idefics1Backbone:
        """The backbone itself, which has embedding, decoder layers and norm as its own modules."""
        return self

    def compute_cross_kv(self, features: Tensor) -> CrossKV:
        """Image features (P, M, D') -> keys and values of each cross-attention layer, (P, M, H, K) each."""
        return [block.cross_attn.compute_cross_kv(features) for block in self.gated_cross_attn_layers]  # type: ignore

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """The decoder: embeddings (N, D) at positions (N,) -> hidden states (N, D) after the last norm."""
        rotary = rotary_cos_sin(positions, self.text_config.rope, self.text_config.head_size, x.dtype)
        for index, layer in enumerate(self.layers):
            if index % self.cross_layer_interval == 0:
                block_index = index // self.cross_layer_interval
                x = self.gated_cross_attn_layers[block_index](block_index, x, attn)
            x = layer(index, x, rotary, attn)
        out: Tensor = self.norm(x)
        return out


class Idefics1(VisionLanguageModel):
    """Idefics 1 as the engine runs it (`VLM`)."""

    backbone_class = Idefics1Backbone
    model: Idefics1Backbone
    lm_head: DecoupledHead

    def __init__(self, config: ModelConfig, backbone: Idefics1Backbone | None = None) -> None:
        super().__init__(config, backbone)
        if config.text.tie_word_embeddings and config.text.additional_vocab_size:
            self.lm_head.additional_fc.weight = self.model.embed_tokens.additional_embedding.weight

    def decoder_parts(self) -> DecoderParts:
        """The decoder's modules in the order in which they run, for the fused decode step."""
        model, parts = self.model, super().decoder_parts()
        if self.config.text.additional_vocab_size:
            parts = replace(
                parts,
                embeddings=(*parts.embeddings, model.embed_tokens.additional_embedding),
                lm_heads=(*parts.lm_heads, self.lm_head.additional_fc),
            )
        blocks = cast(Iterable[GatedCrossAttentionLayer], model.gated_cross_attn_layers)
        cross_blocks = (
            (block.to_cross_attention_block(), *(None,) * (model.cross_layer_interval - 1))
            for block in blocks
        )
        return replace(parts, cross_blocks=tuple(chain.from_iterable(cross_blocks)))

    def _build_lm_head(self, text: TextConfig) -> DecoupledHead:
        """The LM head of the Idefics 1 architecture: for the vocabulary and for additional tokens."""
        return DecoupledHead(text)


FAMILY = ModelFamily(
    name="Idefics",
    read_config=read_config,
    build=Idefics1,
    key_rules=KeyRules(
        ignore=RECOMPUTED_BUFFERS,
        rename=((r"^additional_fc\.", "lm_head.additional_fc."),),
    ),
    read_image_config=read_image_config,
    read_prompt_format=read_prompt_format,
)
