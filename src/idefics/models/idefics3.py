"""Idefics3-8B, SmolVLM and SmolVLM2: pictures are read in the text.

SigLIP encodes each tile, a pixel shuffle folds neighbouring patches into one vector, one matrix maps it to the
decoder's width, and it takes the place of an `<image>` token. Source: arXiv 2408.12637, arXiv 2504.05299 and the
released configs.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from idefics.config import (
    CacheLayout,
    ImagePlan,
    ModelConfig,
    PromptStyle,
    TextConfig,
    VisionConfig,
)
from idefics.errors import UnsupportedModel
from idefics.models.family import Family, Raw, activation, filter_name, rope, stop_ids
from idefics.nn.attention import Attn
from idefics.nn.decoder import Decoder
from idefics.nn.vit import SiglipEmbeddings, VisionEncoder
from idefics.weights import Join, KeyRules


class VisionTower(nn.Module):
    """SigLIP's transformer; here `post_layernorm` is applied."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.norm_epsilon)

    def forward(self, frames: Tensor) -> Tensor:  # (P, 3, h, w) -> (P, S, D)
        out: Tensor = self.post_layernorm(self.encoder(self.embeddings(frames)))
        return out


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Folds factor x factor neighbouring patches into channels, row in block first: (P, S, D) -> (P, S/f/f, D*f*f)."""
    frames, patches, width = x.shape
    side = math.isqrt(patches)
    x = x.view(frames, side // factor, factor, side // factor, factor, width).transpose(2, 3)
    return x.reshape(frames, patches // factor**2, width * factor**2)


class Projection(nn.Module):
    """One matrix, no bias."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inner, outer, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


class Connector(nn.Module):
    """Pixel shuffle, then the projection: (P, S, D') -> (P, S/f/f, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.factor = config.shuffle
        self.modality_projection = Projection(config.vision.width * config.shuffle**2, config.text.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.modality_projection(pixel_shuffle(x, self.factor))
        return out


class Idefics3Model(nn.Module):
    """Everything but the head, under the names that checkpoints use."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vision_model = VisionTower(config.vision)
        self.connector = Connector(config)
        self.text_model = Decoder(config.text)


class Idefics3(nn.Module):
    """The model as the engine sees it (`VLM`). N tokens, P frames, M places a frame, D width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vision.grid % config.shuffle:
            raise UnsupportedModel(
                f"{config.vision.grid} patches a side cannot be shuffled by {config.shuffle}: "
                "image_size / patch_size must be a multiple of scale_factor"
            )
        self.config = config
        text = config.text
        self.layout = CacheLayout(
            layers=text.layers,
            kv_heads=text.kv_heads,
            head_size=text.head_size,
            cross_layers=0,
            max_positions=text.max_positions,
            vocabulary=text.vocabulary,
        )
        self.model = Idefics3Model(config)
        self.lm_head = nn.Linear(text.width, text.vocabulary, bias=False)
        if text.tied:
            self.lm_head.weight = self.model.text_model.embed_tokens.weight

    def encode(self, frames: Tensor) -> Tensor:  # (P, 3, side, side) -> (P, M, D)
        out: Tensor = self.model.connector(self.model.vision_model(frames))
        return out

    def memory(self, features: Tensor) -> None:
        """None: features stand in the text."""

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.model.text_model.embed_tokens(ids)
        return out

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:  # (N, D), (N,) -> (N, D)
        out: Tensor = self.model.text_model(x, positions, attn)
        return out

    def logits(self, h: Tensor) -> Tensor:  # (R, D) -> (R, V)
        out: Tensor = self.lm_head(h)
        return out


def config(raw: Raw, generation: Raw) -> ModelConfig:
    """config.json as the hub or transformers 5 writes it.

    Defaults are those of `LlamaConfig` and `Idefics3VisionConfig`.
    """
    # Where there is no text_config at all, the released class makes one that has another epsilon than Llama's.
    text: Raw = raw.get("text_config") or {"rms_norm_eps": 1e-5}
    vision: Raw = raw.get("vision_config") or {}
    if (decoder := text.get("model_type", "llama")) != "llama":
        raise UnsupportedModel(f"config.json's text_config is of model_type {decoder!r}; known is llama")
    width, heads = text.get("hidden_size", 4096), text.get("num_attention_heads", 32)
    return ModelConfig(
        model_type=raw["model_type"],
        text=TextConfig(
            vocabulary=text.get("vocab_size", 32000),
            width=width,
            inner=text.get("intermediate_size", 11008),
            layers=text.get("num_hidden_layers", 32),
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_size=text.get("head_dim") or width // heads,
            norm_epsilon=text.get("rms_norm_eps", 1e-6),
            max_positions=text.get("max_position_embeddings", 2048),
            activation=activation(text.get("hidden_act", "silu")),
            rope=rope(text),
            tied=raw.get("tie_word_embeddings", False),
        ),
        vision=VisionConfig(
            width=vision.get("hidden_size", 1152),
            inner=vision.get("intermediate_size", 3072),
            layers=vision.get("num_hidden_layers", 12),
            heads=vision.get("num_attention_heads", 16),
            side=vision.get("image_size", 224),
            patch=vision.get("patch_size", 32),
            norm_epsilon=vision.get("layer_norm_eps", 1e-6),
            activation=activation(vision.get("hidden_act", "gelu_pytorch_tanh")),
        ),
        shuffle=raw.get("scale_factor", 2),
        stop_ids=stop_ids(raw, generation, default=2),
        dtype=raw.get("dtype", raw.get("torch_dtype", text.get("torch_dtype"))),
    )


def images(model: ModelConfig, raw: Raw) -> ImagePlan:
    """Tiles of the tower's side. Defaults: `Idefics3ImageProcessor` (split, LANCZOS, mean and deviation one half)."""
    tile: Raw = raw.get("max_image_size") or {}
    # An older revision of Idefics3-8B's file says `vision_encoder_max_size`.
    side = int(tile.get("longest_edge") or raw.get("vision_encoder_max_size") or model.vision.side)
    longest = (raw.get("size") or {}).get("longest_edge", 4 * side)
    return ImagePlan(
        side=side,
        longest=longest,
        splitting=raw.get("do_image_splitting", True),
        resample=filter_name(raw.get("resample", 1)),
        scale=raw.get("rescale_factor", 1 / 255),
        mean=tuple(raw.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(raw.get("image_std", (0.5, 0.5, 0.5))),
        tokens=(side // model.vision.patch // model.shuffle) ** 2,
    )


def prompt(template: str, added: frozenset[str]) -> PromptStyle:
    """Chat checkpoints ship a template; what `tokenizer.json` adds by itself is added too."""
    turn_end = "<end_of_utterance>"
    return PromptStyle(
        kind="chat" if template else "base",
        template=template,
        turn_end=turn_end if turn_end in added else "",
        marks="tiles",
        strip_items=False,
        start="",
        adds_special=True,
    )


FAMILY = Family(
    name="Idefics3",
    config=config,
    build=Idefics3,
    keys=KeyRules(
        # The names of the code that these checkpoints were first trained with.
        rename=(
            (r"^model\.(layers|norm)\.", r"model.text_model.\1."),
            (r"^model\.modality_projection\.", "model.connector.modality_projection."),
        ),
        join=(
            Join(
                "model.text_model.embed_tokens.weight",
                ("model.embed_tokens.weight", "model.embed_tokens.additional_embedding.weight"),
            ),
            Join(
                "lm_head.weight", ("lm_head.weight", "lm_head.additional_fc.weight", "additional_fc.weight")
            ),
        ),
        ignore=(
            (r".*\.rotary_emb\.inv_freq", "recomputed; old files stored it"),
            (r".*\.embeddings\.position_ids", "recomputed; stored in bfloat16 it would be wrong"),
            (r"model\.vision_model\.head\..*", "SigLIP's pooling head, never used"),
        ),
    ),
    images=images,
    prompt=prompt,
)
