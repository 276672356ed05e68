"""Idefics3-8B, SmolVLM and SmolVLM2: pictures are read in the text.

SigLIP encodes each tile, a pixel shuffle folds neighbouring patches into one vector, one matrix maps it to the
decoder's width, and it takes the place of an `<image>` token. Source: arXiv 2408.12637, arXiv 2504.05299 and the
released configs.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from idefics.config import (
    ImageProcessorConfig,
    ModelConfig,
    PromptFormat,
    TextConfig,
    VideoProcessorConfig,
    VisionConfig,
)
from idefics.errors import UnsupportedModel
from idefics.models.family import (
    END_OF_UTTERANCE,
    ModelFamily,
    RawConfig,
    check_activation,
    read_rope_config,
    read_stop_ids,
    resample_filter_name,
)
from idefics.models.inline import INLINE_KEY_RULES, InlineImageBackbone, InlineImageModel


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


class Idefics3Connector(nn.Module):
    """Pixel shuffle, then the projection: (P, S, D') -> (P, S/f/f, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scale_factor = config.pixel_shuffle_factor
        self.modality_projection = Projection(
            config.vision.hidden_size * config.pixel_shuffle_factor**2, config.text.hidden_size
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.modality_projection(pixel_shuffle(x, self.scale_factor))
        return out


class Idefics3Backbone(InlineImageBackbone):
    """Everything but the head."""

    def __init__(self, config: ModelConfig) -> None:
        if config.vision.patches_per_side % config.pixel_shuffle_factor:
            raise UnsupportedModel(
                f"{config.vision.patches_per_side} patches a side cannot be shuffled by {config.pixel_shuffle_factor}: "
                "image_size / patch_size must be a multiple of scale_factor"
            )
        super().__init__(config, Idefics3Connector(config))


class Idefics3(InlineImageModel):
    """The model as the engine sees it (`VLM`). `backbone` is everything but the head; None: built by the config."""

    def __init__(self, config: ModelConfig, backbone: InlineImageBackbone | None = None) -> None:
        super().__init__(config, Idefics3Backbone(config) if backbone is None else backbone)


def read_config(raw: RawConfig, generation: RawConfig) -> ModelConfig:
    """config.json as the hub or transformers 5 writes it.

    Defaults are those of `LlamaConfig` and `Idefics3VisionConfig`.
    """
    # Where there is no text_config at all, the released class makes one that has another epsilon than Llama's.
    text: RawConfig = raw.get("text_config") or {"rms_norm_eps": 1e-5}
    vision: RawConfig = raw.get("vision_config") or {}
    if (decoder := text.get("model_type", "llama")) != "llama":
        raise UnsupportedModel(f"config.json's text_config is of model_type {decoder!r}; known is llama")
    width, heads = text.get("hidden_size", 4096), text.get("num_attention_heads", 32)
    return ModelConfig(
        model_type=raw["model_type"],
        text=TextConfig(
            vocab_size=text.get("vocab_size", 32000),
            hidden_size=width,
            intermediate_size=text.get("intermediate_size", 11008),
            num_layers=text.get("num_hidden_layers", 32),
            num_heads=heads,
            num_kv_heads=text.get("num_key_value_heads") or heads,
            head_size=text.get("head_dim") or width // heads,
            norm_epsilon=text.get("rms_norm_eps", 1e-6),
            max_positions=text.get("max_position_embeddings", 2048),
            activation=check_activation(text.get("hidden_act", "silu")),
            rope=read_rope_config(text),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
        ),
        vision=VisionConfig(
            hidden_size=vision.get("hidden_size", 1152),
            intermediate_size=vision.get("intermediate_size", 3072),
            num_layers=vision.get("num_hidden_layers", 12),
            num_heads=vision.get("num_attention_heads", 16),
            image_size=vision.get("image_size", 224),
            patch_size=vision.get("patch_size", 32),
            norm_epsilon=vision.get("layer_norm_eps", 1e-6),
            activation=check_activation(vision.get("hidden_act", "gelu_pytorch_tanh")),
        ),
        pixel_shuffle_factor=raw.get("scale_factor", 2),
        stop_ids=read_stop_ids(raw, generation, default=2),
        dtype=raw.get("dtype", raw.get("torch_dtype", text.get("torch_dtype"))),
    )


def read_image_config(model: ModelConfig, raw: RawConfig) -> ImageProcessorConfig:
    """Tiles of the tower's side. Defaults: `Idefics3ImageProcessor` (split, LANCZOS, mean and deviation one half)."""
    max_image_size: RawConfig = raw.get("max_image_size") or {}
    # An older revision of Idefics3-8B's file says `vision_encoder_max_size`.
    side = int(
        max_image_size.get("longest_edge") or raw.get("vision_encoder_max_size") or model.vision.image_size
    )
    longest_edge = (raw.get("size") or {}).get("longest_edge", 4 * side)
    return ImageProcessorConfig(
        frame_size=side,
        longest_edge=longest_edge,
        do_image_splitting=raw.get("do_image_splitting", True),
        resample=resample_filter_name(raw.get("resample", 1)),
        rescale_factor=raw.get("rescale_factor", 1 / 255),
        mean=tuple(raw.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(raw.get("image_std", (0.5, 0.5, 0.5))),
        tokens_per_frame=(side // model.vision.patch_size // model.pixel_shuffle_factor) ** 2,
        video=read_video_config(raw["video_sampling"], side) if raw.get("video_sampling") else None,
    )


def read_video_config(sampling: RawConfig, side: int) -> VideoProcessorConfig:
    """SmolVLM2's. The second left out at both ends is that of its training code and of transformers' template call."""
    return VideoProcessorConfig(
        fps=sampling.get("fps", 1),
        max_frames=sampling.get("max_frames", 64),
        skip_seconds=1.0,
        longest_edge=(sampling.get("video_size") or {}).get("longest_edge", side),
    )


def read_prompt_format(template: str, added_tokens: frozenset[str]) -> PromptFormat:
    """Chat checkpoints ship a template; what `tokenizer.json` adds by itself is added too."""
    return PromptFormat(
        kind="chat" if template else "base",
        chat_template=template,
        turn_end_token=END_OF_UTTERANCE if END_OF_UTTERANCE in added_tokens else "",
        image_tokens="inline_tiles",
        strips_text=False,
        prompt_prefix="",
        add_special_tokens=True,
    )


FAMILY = ModelFamily(
    name="Idefics3",
    read_config=read_config,
    build=Idefics3,
    key_rules=INLINE_KEY_RULES,
    read_image_config=read_image_config,
    read_prompt_format=read_prompt_format,
)
