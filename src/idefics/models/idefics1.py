"""Idefics (9b, 80b and their instruct versions): pictures are read beside the text.

CLIP's vision tower and a perceiver turn a picture into a few feature rows, once. Before every `interval`-th layer of a
Llama decoder stands a gated block whose queries meet the keys and values of the one picture that a token sees, the
latest before it. Source: OBELICS (arXiv 2306.16527), Flamingo (arXiv 2204.14198) and the released configs.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics.config import (
    CrossAttentionConfig,
    ImageProcessorConfig,
    KVCacheLayout,
    ModelConfig,
    PromptFormat,
    ResamplerConfig,
    TextConfig,
    VisionConfig,
)
from idefics.errors import UnsupportedModel
from idefics.models.family import (
    DEFAULT_CHAT_TEMPLATE,
    END_OF_UTTERANCE,
    ModelFamily,
    RawConfig,
    check_activation,
    read_rope_config,
    read_stop_ids,
    resample_filter_name,
)
from idefics.nn.attention import Attn, CrossKV, LayerCrossKV
from idefics.nn.attention_backends import AttentionModule
from idefics.nn.decoder import DecoderLayer, GatedMLP
from idefics.nn.decoder_parts import CrossAttentionBlock, DecoderParts
from idefics.nn.norm import RMSNorm
from idefics.nn.resampler import Resampler
from idefics.nn.rope import rotary_cos_sin
from idefics.nn.upcast import TokenEmbedding, upcast_linear
from idefics.nn.vit import ClipEmbeddings, VisionEncoder
from idefics.weights import KeyRules


class ClipVisionTower(nn.Module):
    """CLIP's transformer up to its last block: the class vector stays, `post_layernorm` is in the files but unused."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(
            config.hidden_size, eps=config.norm_epsilon
        )  # spelt so in the checkpoints
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)

    def forward(self, frames: Tensor) -> Tensor:  # (P, 3, side, side) -> (P, 1 + S, D)
        out: Tensor = self.encoder(self.pre_layrnorm(self.embeddings(frames)))
        return out


class DecoupledEmbedding(TokenEmbedding):
    """A vocabulary in two tables: ids from `vocabulary` on index `additional_embedding`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config.vocab_size, config.hidden_size)
        if config.additional_vocab_size:
            self.additional_embedding = TokenEmbedding(config.additional_vocab_size, config.hidden_size)
        self.num_additional_embeddings = config.additional_vocab_size

    def forward(self, ids: Tensor) -> Tensor:  # (...) -> (..., D)
        if not self.num_additional_embeddings:
            return super().forward(ids)
        base = functional.embedding(ids.clamp(max=self.num_embeddings - 1), self.weight)
        extra = self.additional_embedding((ids - self.num_embeddings).clamp(min=0))
        return torch.where(ids[..., None] < self.num_embeddings, base, extra)


class DecoupledHead(nn.Linear):
    """Logits of both tables side by side."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        if config.additional_vocab_size:
            self.additional_fc = nn.Linear(config.hidden_size, config.additional_vocab_size, bias=False)
        self.num_additional_outputs = config.additional_vocab_size

    def forward(self, h: Tensor) -> Tensor:  # (R, D) -> (R, V + A)
        logits = upcast_linear(h, self.weight)
        return torch.cat((logits, self.additional_fc(h)), dim=-1) if self.num_additional_outputs else logits


class CrossAttention(nn.Module):
    """Queries from the text, keys and values from a picture; norms per head after the projections, no rotation."""

    def __init__(self, config: ModelConfig, cross: CrossAttentionConfig) -> None:
        super().__init__()
        text = config.text
        self.num_heads = text.num_heads
        inner = text.num_heads * text.head_size
        self.q_proj = nn.Linear(text.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(config.vision.hidden_size, inner, bias=False)
        self.v_proj = nn.Linear(config.vision.hidden_size, inner, bias=False)
        self.o_proj = nn.Linear(inner, text.hidden_size, bias=False)
        if cross.has_qk_norms:
            self.q_layer_norm: nn.Module = RMSNorm(text.head_size, text.norm_epsilon)
            self.k_layer_norm: nn.Module = RMSNorm(text.head_size, text.norm_epsilon)
        else:
            self.q_layer_norm = self.k_layer_norm = nn.Identity()

    def compute_cross_kv(self, features: Tensor) -> LayerCrossKV:  # (P, M, D') -> (P, M, H, K) twice
        keys, values = (p(features).unflatten(-1, (self.num_heads, -1)) for p in (self.k_proj, self.v_proj))
        return LayerCrossKV(self.k_layer_norm(keys), values)

    def forward(self, index: int, x: Tensor, attn: Attn) -> Tensor:  # (N, D) -> (N, D)
        queries = self.q_layer_norm(self.q_proj(x).unflatten(-1, (self.num_heads, -1)))
        out: Tensor = self.o_proj(attn.cross_attention(index, queries).flatten(1))
        return out


class GatedCrossAttentionLayer(nn.Module):
    """Cross-attention and an MLP, each added through a tanh gate.

    A token that sees no picture gets nothing from the attention half; the MLP half runs for every token.
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
        cross_attention_output = self.cross_attn(index, self.input_layernorm(x), attn)
        x = x + self.alpha_cross_attn.flatten().tanh() * cross_attention_output
        out: Tensor = x + self.alpha_dense.flatten().tanh() * self.mlp(self.post_attention_layernorm(x))
        return out

    def cross_attention_parts(self) -> CrossAttentionBlock:
        """Its modules, for a `DecoderParts`."""
        attention = self.cross_attn
        return CrossAttentionBlock(
            norm=self.input_layernorm,
            q=attention.q_proj,
            q_norm=attention.q_layer_norm if isinstance(attention.q_layer_norm, RMSNorm) else None,
            o=attention.o_proj,
            gate=self.alpha_cross_attn,
            mlp_norm=self.post_attention_layernorm,
            mlp=self.mlp,
            mlp_gate=self.alpha_dense,
        )


class Idefics1Backbone(nn.Module):
    """Everything but the head, under the names that checkpoints use."""

    vision_tower_class: ClassVar[type[ClipVisionTower]] = ClipVisionTower  # what `vision_model` is made of

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.cross_attention is not None
        self.text_config, self.cross_layer_interval = config.text, config.cross_attention.layer_interval
        if self.text_config.num_layers % self.cross_layer_interval:
            raise UnsupportedModel(
                f"{self.text_config.num_layers} layers cannot have a cross-attention block every {self.cross_layer_interval}: "
                "num_hidden_layers must be a multiple of cross_layer_interval"
            )
        self.embed_tokens = DecoupledEmbedding(self.text_config)
        self.vision_model = self.vision_tower_class(config.vision)
        if config.resampler:
            self.perceiver_resampler: nn.Module = Resampler(config.vision.hidden_size, config.resampler)
        else:
            self.perceiver_resampler = nn.Identity()
        self.layers = nn.ModuleList(
            DecoderLayer(self.text_config) for _ in range(self.text_config.num_layers)
        )
        self.gated_cross_attn_layers = nn.ModuleList(
            GatedCrossAttentionLayer(config, config.cross_attention)
            for _ in range(self.text_config.num_layers // self.cross_layer_interval)
        )
        self.norm = RMSNorm(self.text_config.hidden_size, self.text_config.norm_epsilon)

    def encode(self, frames: Tensor) -> Tensor:  # (P, 3, side, side) -> (P, M, D')
        out: Tensor = self.perceiver_resampler(self.vision_model(frames))
        return out

    def compute_cross_kv(self, features: Tensor) -> CrossKV:
        return [block.cross_attn.compute_cross_kv(features) for block in self.gated_cross_attn_layers]  # type: ignore

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.embed_tokens(ids)
        return out.to(self.norm.weight.dtype)

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:  # (N, D), (N,) -> (N, D)
        rotary = rotary_cos_sin(positions, self.text_config.rope, self.text_config.head_size, x.dtype)
        for index, layer in enumerate(self.layers):
            if index % self.cross_layer_interval == 0:
                block_index = index // self.cross_layer_interval
                x = self.gated_cross_attn_layers[block_index](block_index, x, attn)
            x = layer(index, x, rotary, attn)
        out: Tensor = self.norm(x)
        return out


class Idefics1(AttentionModule):
    """The model as the engine sees it (`VLM`). N tokens, P pictures, M feature rows a picture, D width.

    `backbone`, everything but the head, is built by the config unless it is given.
    """

    def __init__(self, config: ModelConfig, backbone: Idefics1Backbone | None = None) -> None:
        super().__init__()
        text = config.text
        self.config = config
        self.model = Idefics1Backbone(config) if backbone is None else backbone
        self.layout = KVCacheLayout(
            num_layers=text.num_layers,
            num_kv_heads=text.num_kv_heads,
            head_size=text.head_size,
            num_cross_attention_layers=len(self.model.gated_cross_attn_layers),
            max_positions=text.max_positions,
            vocab_size=text.vocab_size + text.additional_vocab_size,
        )
        self.lm_head = DecoupledHead(text)
        if text.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
            if text.additional_vocab_size:
                self.lm_head.additional_fc.weight = self.model.embed_tokens.additional_embedding.weight

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes: that of a norm, whose weights are never stored in fewer bits."""
        return self.model.norm.weight.dtype

    def encode(self, frames: Tensor) -> Tensor:  # (P, 3, side, side) -> (P, M, D')
        return self.model.encode(frames)

    def compute_cross_kv(self, features: Tensor) -> CrossKV:
        return self.model.compute_cross_kv(features)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.embed(ids)

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:  # (N, D), (N,) -> (N, D)
        out: Tensor = self.model(x, positions, attn)
        return out

    def logits(self, h: Tensor) -> Tensor:  # (R, D) -> (R, V + A)
        out: Tensor = self.lm_head(h)
        return out

    def decoder_parts(self) -> DecoderParts:
        """The decoder's own modules."""
        model = self.model
        embeddings: tuple[nn.Embedding, ...] = (model.embed_tokens,)
        lm_heads: tuple[nn.Linear, ...] = (self.lm_head,)
        if self.config.text.additional_vocab_size:
            embeddings += (model.embed_tokens.additional_embedding,)
            lm_heads += (self.lm_head.additional_fc,)
        blocks = cast(Iterable[GatedCrossAttentionLayer], model.gated_cross_attn_layers)
        cross_blocks = (
            (block.cross_attention_parts(), *(None,) * (model.cross_layer_interval - 1)) for block in blocks
        )
        return DecoderParts(
            config=self.config.text,
            embeddings=embeddings,
            layers=cast(tuple[DecoderLayer, ...], tuple(model.layers)),
            cross_blocks=tuple(chain.from_iterable(cross_blocks)),
            norm=model.norm,
            lm_heads=lm_heads,
        )


def read_config(raw: RawConfig, generation: RawConfig) -> ModelConfig:
    """config.json in any of its three layouts: nested, diff-only nested (4.3x) or flat (`vision_embed_dim`, ...).

    Defaults are those of the released `IdeficsConfig` and its parts. The top-level `use_resampler` decides.
    """
    vision: RawConfig = raw.get("vision_config") or {}
    resampler: RawConfig = raw.get("perceiver_config") or {}

    def vision_field(key: str, flat: str, default: int) -> int:
        return int(vision.get(key, raw.get(flat, default)))

    def resampler_field(key: str, default: int) -> int:
        return int(resampler.get(key, raw.get(key, default)))

    width, heads = raw.get("hidden_size", 4096), raw.get("num_attention_heads", 32)
    perceiver_norms = resampler.get("qk_layer_norms_perceiver", raw.get("qk_layer_norms_perceiver", False))
    return ModelConfig(
        model_type=raw["model_type"],
        text=TextConfig(
            vocab_size=raw.get("vocab_size", 32000),
            additional_vocab_size=raw.get("additional_vocab_size", 0),
            hidden_size=width,
            intermediate_size=raw.get("intermediate_size", 11008),
            num_layers=raw.get("num_hidden_layers", 32),
            num_heads=heads,
            num_kv_heads=heads,
            head_size=width // heads,
            norm_epsilon=raw.get("rms_norm_eps", 1e-6),
            max_positions=raw.get("max_position_embeddings", raw.get("max_sequence_length", 2048)),
            activation=check_activation(raw.get("hidden_act", "silu")),
            rope=read_rope_config(raw),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
        ),
        vision=VisionConfig(
            hidden_size=vision_field("embed_dim", "vision_embed_dim", 768),
            intermediate_size=vision_field("intermediate_size", "vision_intermediate_size", 5120),
            num_layers=vision_field("num_hidden_layers", "vision_num_hidden_layers", 32),
            num_heads=vision_field("num_attention_heads", "vision_num_attention_heads", 16),
            image_size=vision_field("image_size", "vision_image_size", 224),
            patch_size=vision_field("patch_size", "vision_patch_size", 14),
            norm_epsilon=vision.get("layer_norm_eps", 1e-5),
            activation=check_activation(vision.get("hidden_act", "gelu")),
        ),
        resampler=ResamplerConfig(
            depth=resampler_field("resampler_depth", 6),
            num_heads=resampler_field("resampler_n_heads", 16),
            head_size=resampler_field("resampler_head_dim", 96),
            num_latents=resampler_field("resampler_n_latents", 64),
            has_qk_norms=bool(perceiver_norms),
        )
        if raw.get("use_resampler", False)
        else None,
        cross_attention=CrossAttentionConfig(
            layer_interval=raw.get("cross_layer_interval", 1),
            has_qk_norms=raw.get("qk_layer_norms", False),
            alpha_type=raw.get("alpha_type", "float"),
        ),
        stop_ids=read_stop_ids(raw, generation, default=2),
        dtype=raw.get("dtype", raw.get("torch_dtype")),
    )


def read_image_config(model: ModelConfig, raw: RawConfig) -> ImageProcessorConfig:
    """One square frame, straight to the tower's side, bicubic; CLIP's mean and deviation unless the file says else."""
    return ImageProcessorConfig(
        frame_size=raw.get("image_size", model.vision.image_size),
        longest_edge=None,
        do_image_splitting=False,
        resample=resample_filter_name(raw.get("resample", 3)),
        rescale_factor=raw.get("rescale_factor", 1 / 255),
        mean=tuple(raw.get("image_mean", (0.48145466, 0.4578275, 0.40821073))),
        std=tuple(raw.get("image_std", (0.26862954, 0.26130258, 0.27577711))),
        tokens_per_frame=1,
    )


def read_prompt_format(template: str, added_tokens: frozenset[str]) -> PromptFormat:
    """Instruct checkpoints are those whose tokenizer has `<end_of_utterance>`; the others continue documents."""
    is_chat = END_OF_UTTERANCE in added_tokens
    return PromptFormat(
        kind="chat" if is_chat else "base",
        chat_template=template or DEFAULT_CHAT_TEMPLATE,
        turn_end_token=END_OF_UTTERANCE if is_chat else "",
        image_tokens="cross_attention",
        strips_text=True,
        prompt_prefix="<s>",
        add_special_tokens=False,
    )


FAMILY = ModelFamily(
    name="Idefics",
    read_config=read_config,
    build=Idefics1,
    key_rules=KeyRules(
        ignore=(
            (r".*\.rotary_emb\.inv_freq", "recomputed; old files stored it"),
            (r".*\.embeddings\.position_ids", "recomputed; stored in bfloat16 it would be wrong"),
        ),
        rename=((r"^additional_fc\.", "lm_head.additional_fc."),),
    ),
    read_image_config=read_image_config,
    read_prompt_format=read_prompt_format,
)
