"""Idefics3-8B, SmolVLM and SmolVLM2: pictures are read in the text.

SigLIP encodes each tile, a pixel shuffle folds neighbouring patches into one vector, one matrix maps it to the
decoder's width, and it takes the place of an `<image>` token. Source: arXiv 2408.12637, arXiv 2504.05299 and the
released configs.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from idefics.config import ImagePlan, ModelConfig, PromptStyle, TextConfig, VideoPlan, VisionConfig
from idefics.errors import UnsupportedModel
from idefics.models.family import TURN_END, Family, Raw, activation, filter_name, rope, stop_ids
from idefics.models.in_text import IN_TEXT_KEYS, Body, InTextModel


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


class Idefics3Body(Body):
    """Everything but the head."""

    def __init__(self, config: ModelConfig) -> None:
        if config.vision.grid % config.shuffle:
            raise UnsupportedModel(
                f"{config.vision.grid} patches a side cannot be shuffled by {config.shuffle}: "
                "image_size / patch_size must be a multiple of scale_factor"
            )
        super().__init__(config, Connector(config))


class Idefics3(InTextModel):
    """The model as the engine sees it (`VLM`). `body` is everything but the head; None: built by the config."""

    def __init__(self, config: ModelConfig, body: Body | None = None) -> None:
        super().__init__(config, Idefics3Body(config) if body is None else body)


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
        video=video_plan(raw["video_sampling"], side) if raw.get("video_sampling") else None,
    )


def video_plan(sampling: Raw, side: int) -> VideoPlan:
    """SmolVLM2's. The second left out at both ends is that of its training code and of transformers' template call."""
    return VideoPlan(
        fps=sampling.get("fps", 1),
        most_frames=sampling.get("max_frames", 64),
        skip_seconds=1.0,
        longest=(sampling.get("video_size") or {}).get("longest_edge", side),
    )


def prompt(template: str, added: frozenset[str]) -> PromptStyle:
    """Chat checkpoints ship a template; what `tokenizer.json` adds by itself is added too."""
    return PromptStyle(
        kind="chat" if template else "base",
        template=template,
        turn_end=TURN_END if TURN_END in added else "",
        marks="tiles",
        strip_items=False,
        start="",
        adds_special=True,
    )


FAMILY = Family(
    name="Idefics3",
    config=config,
    build=Idefics3,
    keys=IN_TEXT_KEYS,
    images=images,
    prompt=prompt,
)
