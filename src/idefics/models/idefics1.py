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
    CacheLayout,
    CrossConfig,
    ImagePlan,
    ModelConfig,
    PromptStyle,
    ResamplerConfig,
    TextConfig,
    VisionConfig,
)
from idefics.errors import UnsupportedModel
from idefics.models.family import DIALOGUE, TURN_END, Family, Raw, activation, filter_name, rope, stop_ids
from idefics.nn.attention import Attn, LayerMemory, Memory
from idefics.nn.decoder import DecoderLayer, GatedMLP
from idefics.nn.kernels import Attending
from idefics.nn.norm import RMSNorm
from idefics.nn.resampler import Resampler
from idefics.nn.rope import rotary_tables
from idefics.nn.stack import Cross, Stack
from idefics.nn.stored import TokenEmbedding, widened
from idefics.nn.vit import ClipEmbeddings, VisionEncoder
from idefics.weights import KeyRules


class VisionTower(nn.Module):
    """CLIP's transformer up to its last block: the class vector stays, `post_layernorm` is in the files but unused."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, eps=config.norm_epsilon)  # spelt so in the checkpoints
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.norm_epsilon)

    def forward(self, frames: Tensor) -> Tensor:  # (P, 3, side, side) -> (P, 1 + S, D)
        out: Tensor = self.encoder(self.pre_layrnorm(self.embeddings(frames)))
        return out


class DecoupledEmbedding(TokenEmbedding):
    """A vocabulary in two tables: ids from `vocabulary` on index `additional_embedding`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config.vocabulary, config.width)
        if config.additional_vocabulary:
            self.additional_embedding = TokenEmbedding(config.additional_vocabulary, config.width)
        self.additional = config.additional_vocabulary

    def forward(self, ids: Tensor) -> Tensor:  # (...) -> (..., D)
        if not self.additional:
            return super().forward(ids)
        base = functional.embedding(ids.clamp(max=self.num_embeddings - 1), self.weight)
        extra = self.additional_embedding((ids - self.num_embeddings).clamp(min=0))
        return torch.where(ids[..., None] < self.num_embeddings, base, extra)


class DecoupledHead(nn.Linear):
    """Logits of both tables side by side."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config.width, config.vocabulary, bias=False)
        if config.additional_vocabulary:
            self.additional_fc = nn.Linear(config.width, config.additional_vocabulary, bias=False)
        self.additional = config.additional_vocabulary

    def forward(self, h: Tensor) -> Tensor:  # (R, D) -> (R, V + A)
        logits = widened(h, self.weight)
        return torch.cat((logits, self.additional_fc(h)), dim=-1) if self.additional else logits


class CrossAttention(nn.Module):
    """Queries from the text, keys and values from a picture; norms per head after the projections, no rotation."""

    def __init__(self, config: ModelConfig, cross: CrossConfig) -> None:
        super().__init__()
        text = config.text
        self.heads = text.heads
        inner = text.heads * text.head_size
        self.q_proj = nn.Linear(text.width, inner, bias=False)
        self.k_proj = nn.Linear(config.vision.width, inner, bias=False)
        self.v_proj = nn.Linear(config.vision.width, inner, bias=False)
        self.o_proj = nn.Linear(inner, text.width, bias=False)
        if cross.qk_norms:
            self.q_layer_norm: nn.Module = RMSNorm(text.head_size, text.norm_epsilon)
            self.k_layer_norm: nn.Module = RMSNorm(text.head_size, text.norm_epsilon)
        else:
            self.q_layer_norm = self.k_layer_norm = nn.Identity()

    def memory(self, features: Tensor) -> LayerMemory:  # (P, M, D') -> (P, M, H, K) twice
        keys, values = (p(features).unflatten(-1, (self.heads, -1)) for p in (self.k_proj, self.v_proj))
        return LayerMemory(self.k_layer_norm(keys), values)

    def forward(self, index: int, x: Tensor, attn: Attn) -> Tensor:  # (N, D) -> (N, D)
        queries = self.q_layer_norm(self.q_proj(x).unflatten(-1, (self.heads, -1)))
        out: Tensor = self.o_proj(attn.cross(index, queries).flatten(1))
        return out


class GatedBlock(nn.Module):
    """Cross-attention and an MLP, each added through a tanh gate.

    A token that sees no picture gets nothing from the attention half; the MLP half runs for every token.
    """

    def __init__(self, config: ModelConfig, cross: CrossConfig) -> None:
        super().__init__()
        text = config.text
        self.cross_attn = CrossAttention(config, cross)
        self.mlp = GatedMLP(text.width, text.inner, text.activation)
        self.input_layernorm = RMSNorm(text.width, text.norm_epsilon)
        self.post_attention_layernorm = RMSNorm(text.width, text.norm_epsilon)
        shape = (1, 1, text.width) if cross.gate == "vector" else (1,)
        self.alpha_cross_attn = nn.Parameter(torch.zeros(shape))
        self.alpha_dense = nn.Parameter(torch.zeros(shape))

    def forward(self, index: int, x: Tensor, attn: Attn) -> Tensor:
        seen = self.cross_attn(index, self.input_layernorm(x), attn)
        x = x + self.alpha_cross_attn.flatten().tanh() * seen
        out: Tensor = x + self.alpha_dense.flatten().tanh() * self.mlp(self.post_attention_layernorm(x))
        return out

    def laid_open(self) -> Cross:
        """Its modules, for a `Stack`."""
        attention = self.cross_attn
        return Cross(
            norm=self.input_layernorm,
            q=attention.q_proj,
            q_norm=attention.q_layer_norm if isinstance(attention.q_layer_norm, RMSNorm) else None,
            o=attention.o_proj,
            gate=self.alpha_cross_attn,
            mlp_norm=self.post_attention_layernorm,
            mlp=self.mlp,
            mlp_gate=self.alpha_dense,
        )


class Idefics1Model(nn.Module):
    """Everything but the head, under the names that checkpoints use."""

    tower_class: ClassVar[type[VisionTower]] = VisionTower  # what `vision_model` is made of

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.cross is not None
        self.text, self.interval = config.text, config.cross.interval
        if self.text.layers % self.interval:
            raise UnsupportedModel(
                f"{self.text.layers} layers cannot have a cross-attention block every {self.interval}: "
                "num_hidden_layers must be a multiple of cross_layer_interval"
            )
        self.embed_tokens = DecoupledEmbedding(self.text)
        self.vision_model = self.tower_class(config.vision)
        if config.resampler:
            self.perceiver_resampler: nn.Module = Resampler(config.vision.width, config.resampler)
        else:
            self.perceiver_resampler = nn.Identity()
        self.layers = nn.ModuleList(DecoderLayer(self.text) for _ in range(self.text.layers))
        self.gated_cross_attn_layers = nn.ModuleList(
            GatedBlock(config, config.cross) for _ in range(self.text.layers // self.interval)
        )
        self.norm = RMSNorm(self.text.width, self.text.norm_epsilon)

    def encode(self, frames: Tensor) -> Tensor:  # (P, 3, side, side) -> (P, M, D')
        out: Tensor = self.perceiver_resampler(self.vision_model(frames))
        return out

    def memory(self, features: Tensor) -> Memory:
        return [block.cross_attn.memory(features) for block in self.gated_cross_attn_layers]  # type: ignore

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.embed_tokens(ids)
        return out.to(self.norm.weight.dtype)

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:  # (N, D), (N,) -> (N, D)
        rotary = rotary_tables(positions, self.text.rope, self.text.head_size, x.dtype)
        for index, layer in enumerate(self.layers):
            if index % self.interval == 0:
                gate = index // self.interval
                x = self.gated_cross_attn_layers[gate](gate, x, attn)
            x = layer(index, x, rotary, attn)
        out: Tensor = self.norm(x)
        return out


class Idefics1(Attending):
    """The model as the engine sees it (`VLM`). N tokens, P pictures, M feature rows a picture, D width.

    `body`, everything but the head, is built by the config unless it is given.
    """

    def __init__(self, config: ModelConfig, body: Idefics1Model | None = None) -> None:
        super().__init__()
        text = config.text
        self.config = config
        self.model = Idefics1Model(config) if body is None else body
        self.layout = CacheLayout(
            layers=text.layers,
            kv_heads=text.kv_heads,
            head_size=text.head_size,
            cross_layers=len(self.model.gated_cross_attn_layers),
            max_positions=text.max_positions,
            vocabulary=text.vocabulary + text.additional_vocabulary,
        )
        self.lm_head = DecoupledHead(text)
        if text.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
            if text.additional_vocabulary:
                self.lm_head.additional_fc.weight = self.model.embed_tokens.additional_embedding.weight

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes: that of a norm, whose weights are never stored in fewer bits."""
        return self.model.norm.weight.dtype

    def encode(self, frames: Tensor) -> Tensor:  # (P, 3, side, side) -> (P, M, D')
        return self.model.encode(frames)

    def memory(self, features: Tensor) -> Memory:
        return self.model.memory(features)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.embed(ids)

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:  # (N, D), (N,) -> (N, D)
        out: Tensor = self.model(x, positions, attn)
        return out

    def logits(self, h: Tensor) -> Tensor:  # (R, D) -> (R, V + A)
        out: Tensor = self.lm_head(h)
        return out

    def stack(self) -> Stack:
        """The decoder's own modules."""
        model = self.model
        tables: tuple[nn.Embedding, ...] = (model.embed_tokens,)
        heads: tuple[nn.Linear, ...] = (self.lm_head,)
        if self.config.text.additional_vocabulary:
            tables += (model.embed_tokens.additional_embedding,)
            heads += (self.lm_head.additional_fc,)
        blocks = cast(Iterable[GatedBlock], model.gated_cross_attn_layers)
        crosses = ((block.laid_open(), *(None,) * (model.interval - 1)) for block in blocks)
        return Stack(
            config=self.config.text,
            tables=tables,
            layers=cast(tuple[DecoderLayer, ...], tuple(model.layers)),
            crosses=tuple(chain.from_iterable(crosses)),
            norm=model.norm,
            heads=heads,
        )


def config(raw: Raw, generation: Raw) -> ModelConfig:
    """config.json in any of its three layouts: nested, diff-only nested (4.3x) or flat (`vision_embed_dim`, ...).

    Defaults are those of the released `IdeficsConfig` and its parts. The top-level `use_resampler` decides.
    """
    vision: Raw = raw.get("vision_config") or {}
    resampler: Raw = raw.get("perceiver_config") or {}

    def seen(key: str, flat: str, default: int) -> int:
        return int(vision.get(key, raw.get(flat, default)))

    def resampled(key: str, default: int) -> int:
        return int(resampler.get(key, raw.get(key, default)))

    width, heads = raw.get("hidden_size", 4096), raw.get("num_attention_heads", 32)
    perceiver_norms = resampler.get("qk_layer_norms_perceiver", raw.get("qk_layer_norms_perceiver", False))
    return ModelConfig(
        model_type=raw["model_type"],
        text=TextConfig(
            vocabulary=raw.get("vocab_size", 32000),
            additional_vocabulary=raw.get("additional_vocab_size", 0),
            width=width,
            inner=raw.get("intermediate_size", 11008),
            layers=raw.get("num_hidden_layers", 32),
            heads=heads,
            kv_heads=heads,
            head_size=width // heads,
            norm_epsilon=raw.get("rms_norm_eps", 1e-6),
            max_positions=raw.get("max_position_embeddings", raw.get("max_sequence_length", 2048)),
            activation=activation(raw.get("hidden_act", "silu")),
            rope=rope(raw),
            tied=raw.get("tie_word_embeddings", False),
        ),
        vision=VisionConfig(
            width=seen("embed_dim", "vision_embed_dim", 768),
            inner=seen("intermediate_size", "vision_intermediate_size", 5120),
            layers=seen("num_hidden_layers", "vision_num_hidden_layers", 32),
            heads=seen("num_attention_heads", "vision_num_attention_heads", 16),
            side=seen("image_size", "vision_image_size", 224),
            patch=seen("patch_size", "vision_patch_size", 14),
            norm_epsilon=vision.get("layer_norm_eps", 1e-5),
            activation=activation(vision.get("hidden_act", "gelu")),
        ),
        resampler=ResamplerConfig(
            depth=resampled("resampler_depth", 6),
            heads=resampled("resampler_n_heads", 16),
            head_size=resampled("resampler_head_dim", 96),
            latents=resampled("resampler_n_latents", 64),
            qk_norms=bool(perceiver_norms),
        )
        if raw.get("use_resampler", False)
        else None,
        cross=CrossConfig(
            interval=raw.get("cross_layer_interval", 1),
            qk_norms=raw.get("qk_layer_norms", False),
            gate=raw.get("alpha_type", "float"),
        ),
        stop_ids=stop_ids(raw, generation, default=2),
        dtype=raw.get("dtype", raw.get("torch_dtype")),
    )


def images(model: ModelConfig, raw: Raw) -> ImagePlan:
    """One square frame, straight to the tower's side, bicubic; CLIP's mean and deviation unless the file says else."""
    return ImagePlan(
        side=raw.get("image_size", model.vision.side),
        longest=None,
        splitting=False,
        resample=filter_name(raw.get("resample", 3)),
        scale=raw.get("rescale_factor", 1 / 255),
        mean=tuple(raw.get("image_mean", (0.48145466, 0.4578275, 0.40821073))),
        std=tuple(raw.get("image_std", (0.26862954, 0.26130258, 0.27577711))),
        tokens=1,
    )


def prompt(template: str, added: frozenset[str]) -> PromptStyle:
    """Instruct checkpoints are those whose tokenizer has `<end_of_utterance>`; the others continue documents."""
    instructed = TURN_END in added
    return PromptStyle(
        kind="chat" if instructed else "base",
        template=template or DIALOGUE,
        turn_end=TURN_END if instructed else "",
        marks="beside",
        strip_items=True,
        start="<s>",
        adds_special=False,
    )


FAMILY = Family(
    name="Idefics",
    config=config,
    build=Idefics1,
    keys=KeyRules(
        ignore=(
            (r".*\.rotary_emb\.inv_freq", "recomputed; old files stored it"),
            (r".*\.embeddings\.position_ids", "recomputed; stored in bfloat16 it would be wrong"),
        ),
        rename=((r"^additional_fc\.", "lm_head.additional_fc."),),
    ),
    images=images,
    prompt=prompt,
)
