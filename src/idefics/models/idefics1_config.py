"""Reads the files of Idefics 1: every layout of config.json, the preprocessor settings, the chat template."""

from __future__ import annotations

from dataclasses import replace

from idefics.config import (
    CrossAttentionConfig,
    ImageProcessorConfig,
    ModelConfig,
    PromptFormat,
    ResamplerConfig,
    VisionConfig,
)
from idefics.models.family import (
    DEFAULT_CHAT_TEMPLATE,
    END_OF_UTTERANCE,
    RawConfig,
    read_activation,
    read_model_kwargs,
    read_resample_and_normalize_kwargs,
    read_text_config,
)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the images that CLIP was trained with, for each channel
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def read_config(raw: RawConfig, generation: RawConfig) -> ModelConfig:
    """Reads config.json, whether nested, nested with defaults left out, or flat (`vision_embed_dim`, ...).

    Defaults are those of the released `IdeficsConfig` and its parts.
    """
    text = read_text_config(
        raw,
        raw,
        model_type=raw["model_type"],
        intermediate_size=11008,
        num_kv_heads=None,
        max_positions=raw.get("max_sequence_length", 2048),
    )
    return ModelConfig(
        text=replace(text, additional_vocab_size=raw.get("additional_vocab_size", 0)),
        vision=_read_vision_config(raw),
        resampler=_read_resampler_config(raw) if raw.get("use_resampler", False) else None,
        cross_attention=CrossAttentionConfig(
            layer_interval=raw.get("cross_layer_interval", 1),
            has_qk_norms=raw.get("qk_layer_norms", False),
            alpha_type=raw.get("alpha_type", "float"),
        ),
        **read_model_kwargs(raw, generation),
    )


def _read_vision_config(raw: RawConfig) -> VisionConfig:
    """CLIP's sizes, from `vision_config` or from flat `vision_...` fields."""
    vision: RawConfig = raw.get("vision_config") or {}

    def field(key: str, default: int) -> int:
        return int(vision.get(key, raw.get(f"vision_{key}", default)))

    return VisionConfig(
        hidden_size=field("embed_dim", 768),
        intermediate_size=field("intermediate_size", 5120),
        num_layers=field("num_hidden_layers", 32),
        num_heads=field("num_attention_heads", 16),
        image_size=field("image_size", 224),
        patch_size=field("patch_size", 14),
        norm_epsilon=vision.get("layer_norm_eps", 1e-5),
        activation=read_activation(vision, "gelu"),
    )


def _read_resampler_config(raw: RawConfig) -> ResamplerConfig:
    """The resampler's sizes, from `perceiver_config` or from flat `resampler_...` fields."""
    fields: RawConfig = {**raw, **(raw.get("perceiver_config") or {})}
    return ResamplerConfig(
        depth=int(fields.get("resampler_depth", 6)),
        num_heads=int(fields.get("resampler_n_heads", 16)),
        head_size=int(fields.get("resampler_head_dim", 96)),
        num_latents=int(fields.get("resampler_n_latents", 64)),
        has_qk_norms=bool(fields.get("qk_layer_norms_perceiver", False)),
    )


def read_image_config(model: ModelConfig, raw: RawConfig) -> ImageProcessorConfig:
    """The settings for pictures: each becomes one square frame, without keeping its aspect ratio.

    Defaults: bicubic, CLIP's mean and std.
    """
    return ImageProcessorConfig(
        frame_size=raw.get("image_size", model.vision.image_size),
        longest_edge=None,
        do_image_splitting=False,
        tokens_per_frame=1,
        **read_resample_and_normalize_kwargs(raw, resample=3, mean=CLIP_MEAN, std=CLIP_STD),
    )


def read_prompt_format(template: str, added_tokens: frozenset[str]) -> PromptFormat:
    """The prompt format: for chat if the tokenizer has `<end_of_utterance>` (instruct), else to continue documents."""
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
