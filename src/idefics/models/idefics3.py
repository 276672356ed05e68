"""Idefics 3 (8b), SmolVLM and SmolVLM2: inline-image models with square tiles and a pixel shuffle.

    tiles (P, 3, h, h) -> SigLIP -> (P, S, D') -> pixel shuffle by f -> (P, S/f/f, D'*f*f) -> linear -> (P, M, D)

The M = S/f/f features of a tile replace its `<image>` tokens in the input of a Llama decoder. All but the connector is
shared with Idefics 2: `inline`. Source: arXiv 2408.12637, arXiv 2504.05299 and the released configs.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

from idefics.config import (
    ImageProcessorConfig,
    ModelConfig,
    PromptFormat,
    VideoProcessorConfig,
)
from idefics.errors import UnsupportedModel
from idefics.models.family import (
    END_OF_UTTERANCE,
    ModelFamily,
    RawConfig,
    read_model_kwargs,
    read_resample_and_normalize_kwargs,
    read_text_config,
)
from idefics.models.vision_language_model import (
    INLINE_KEY_RULES,
    InlineImageBackbone,
    VisionLanguageModel,
    read_siglip_config,
)


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Concatenates each f x f block of neighbouring patches, row by row: (P, S, D) -> (P, S/f/f, D*f*f)."""
    frames, patches, width = x.shape
    side = math.isqrt(patches)
    x = x.view(frames, side // factor, factor, side // factor, factor, width).transpose(2, 3)
    return x.reshape(frames, patches // factor**2, width * factor**2)


class Idefics3Connector(nn.Module):
    """Joins neighbouring patches by a pixel shuffle, and maps them to the decoder's width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scale_factor = config.pixel_shuffle_factor
        num_inputs = config.vision.hidden_size * config.pixel_shuffle_factor**2
        projection = nn.Linear(num_inputs, config.text.hidden_size, bias=False)
        self.modality_projection = nn.Sequential(OrderedDict(proj=projection))  # named so in the checkpoints

    def forward(self, x: Tensor) -> Tensor:
        """Maps patches to image features: (P, S, D') -> (P, S/f/f, D)."""
        out: Tensor = self.modality_projection(pixel_shuffle(x, self.scale_factor))
        return out


class Idefics3Backbone(InlineImageBackbone):
    """Vision tower, connector and decoder of Idefics 3: everything but the head.

    Raises:
        UnsupportedModel: the patches of a tile cannot be shuffled by `pixel_shuffle_factor`.
    """

    connector_class = Idefics3Connector

    def __init__(self, config: ModelConfig) -> None:
        if config.vision.patches_per_side % config.pixel_shuffle_factor:
            raise UnsupportedModel(
                f"{config.vision.patches_per_side} patches a side cannot be shuffled by {config.pixel_shuffle_factor}: "
                "image_size / patch_size must be a multiple of scale_factor"
            )
        super().__init__(config)


class Idefics3(VisionLanguageModel):
    """Idefics 3 as the engine runs it (`VLM`)."""

    backbone_class = Idefics3Backbone


def read_config(raw: RawConfig, generation: RawConfig) -> ModelConfig:
    """Reads config.json as the hub or transformers 5 has it.

    Defaults are those of `LlamaConfig` and `Idefics3VisionConfig`.
    """
    # Without any text_config, the released class makes one that has another epsilon than Llama's.
    text: RawConfig = raw.get("text_config") or {"rms_norm_eps": 1e-5}
    return ModelConfig(
        text=read_text_config(
            raw,
            text,
            model_type="llama",
            intermediate_size=11008,
            num_kv_heads=None,
            max_positions=2048,
        ),
        vision=read_siglip_config(raw, hidden_size=1152, num_heads=16),
        pixel_shuffle_factor=raw.get("scale_factor", 2),
        **read_model_kwargs(raw, generation),
    )


def read_image_config(model: ModelConfig, raw: RawConfig) -> ImageProcessorConfig:
    """The settings for pictures: square tiles of the vision tower's size.

    Defaults are those of `Idefics3ImageProcessor`: split, Lanczos.
    """
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
        tokens_per_frame=(side // model.vision.patch_size // model.pixel_shuffle_factor) ** 2,
        video=read_video_config(raw["video_sampling"], side) if raw.get("video_sampling") else None,
        **read_resample_and_normalize_kwargs(raw, resample=1),
    )


def read_video_config(sampling: RawConfig, side: int) -> VideoProcessorConfig:
    """Reads `video_sampling` of SmolVLM2's preprocessor file.

    One second is skipped at both ends, as in the training code and in transformers' `apply_chat_template`.

    Args:
        side: the longest edge of a frame in pixels, if the file has none.
    """
    return VideoProcessorConfig(
        fps=sampling.get("fps", 1),
        max_frames=sampling.get("max_frames", 64),
        skip_seconds=1.0,
        longest_edge=(sampling.get("video_size") or {}).get("longest_edge", side),
    )


def read_prompt_format(template: str, added_tokens: frozenset[str]) -> PromptFormat:
    """The prompt format: for chat if the checkpoint has a chat template, else to continue documents.

    Special tokens that tokenizer.json adds by itself are kept.
    """
    return PromptFormat(
        kind="chat" if template else "base",
        chat_template=template,
        turn_end_token=END_OF_UTTERANCE if END_OF_UTTERANCE in added_tokens else "",
        image_tokens="inline_tiles",
    )


FAMILY = ModelFamily(
    name="Idefics3",
    read_config=read_config,
    build=Idefics3,
    key_rules=INLINE_KEY_RULES,
    read_image_config=read_image_config,
    read_prompt_format=read_prompt_format,
)
