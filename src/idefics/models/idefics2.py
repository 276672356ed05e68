"""Idefics2-8B, its base and chatty: pictures of their native size are read in the text.

SigLIP encodes each frame with NaViT positions, a gated MLP maps patches to the decoder's width, a perceiver reads them
into a few vectors, and those take the places of `<image>` tokens of a Mistral decoder. Source: arXiv 2405.02246 and the
released configs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idefics.config import (
    ImageProcessorConfig,
    ModelConfig,
    PerceiverConfig,
    PromptFormat,
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
from idefics.models.inline import INLINE_KEY_RULES, InlineImageBackbone, InlineImageModel
from idefics.nn.decoder import GatedMLP
from idefics.nn.perceiver import Perceiver


class Idefics2Connector(nn.Module):
    """A gated MLP to the decoder's width, then the perceiver: (P, S, D') -> (P, M, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.perceiver is not None
        text = config.text
        self.modality_projection = GatedMLP(
            config.vision.hidden_size, text.intermediate_size, text.activation, text.hidden_size
        )
        self.perceiver_resampler = Perceiver(text.hidden_size, config.perceiver)

    def forward(self, x: Tensor) -> Tensor:
        # One frame after another: the MLP is twelve times as wide as a patch, and 4900 patches fill any device.
        return torch.cat([self.perceiver_resampler(self.modality_projection(frame)) for frame in x.split(1)])


class Idefics2Backbone(InlineImageBackbone):
    """Everything but the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, Idefics2Connector(config))


class Idefics2(InlineImageModel):
    """The model as the engine sees it (`VLM`). `backbone` is everything but the head; None: built by the config."""

    def __init__(self, config: ModelConfig, backbone: InlineImageBackbone | None = None) -> None:
        super().__init__(config, Idefics2Backbone(config) if backbone is None else backbone)


def read_config(raw: RawConfig, generation: RawConfig) -> ModelConfig:
    """config.json as the hub or transformers 5 writes it: the released files leave most of it out.

    Defaults are those of `MistralConfig`, `Idefics2VisionConfig` and `Idefics2PerceiverConfig`, but for the perceiver's
    epsilon: the release took the decoder's, and so does this where the file is silent.
    """
    # Where there is no text_config at all, the released class makes one that differs from Mistral's in two numbers.
    text: RawConfig = raw.get("text_config") or {"rms_norm_eps": 1e-5, "max_position_embeddings": 32768}
    vision: RawConfig = raw.get("vision_config") or {}
    perceiver: RawConfig = raw.get("perceiver_config") or {}
    if (decoder := text.get("model_type", "mistral")) != "mistral":
        raise UnsupportedModel(f"config.json's text_config is of model_type {decoder!r}; known is mistral")
    width, heads = text.get("hidden_size", 4096), text.get("num_attention_heads", 32)
    norm_epsilon = text.get("rms_norm_eps", 1e-6)
    return ModelConfig(
        model_type=raw["model_type"],
        text=TextConfig(
            vocab_size=text.get("vocab_size", 32000),
            hidden_size=width,
            intermediate_size=text.get("intermediate_size", 14336),
            num_layers=text.get("num_hidden_layers", 32),
            num_heads=heads,
            num_kv_heads=text.get("num_key_value_heads", 8) or heads,
            head_size=text.get("head_dim") or width // heads,
            norm_epsilon=norm_epsilon,
            max_positions=text.get("max_position_embeddings", 131072),
            activation=check_activation(text.get("hidden_act", "silu")),
            rope=read_rope_config(text),
            sliding_window=text.get("sliding_window", 4096),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
        ),
        vision=VisionConfig(
            hidden_size=vision.get("hidden_size", 768),
            intermediate_size=vision.get("intermediate_size", 3072),
            num_layers=vision.get("num_hidden_layers", 12),
            num_heads=vision.get("num_attention_heads", 12),
            image_size=vision.get("image_size", 224),
            patch_size=vision.get("patch_size", 32),
            norm_epsilon=vision.get("layer_norm_eps", 1e-6),
            activation=check_activation(vision.get("hidden_act", "gelu_pytorch_tanh")),
        ),
        perceiver=PerceiverConfig(
            depth=perceiver.get("resampler_depth", 3),
            num_heads=perceiver.get("resampler_n_heads", 16),
            num_kv_heads=perceiver.get("num_key_value_heads", 4),
            head_size=perceiver.get("resampler_head_dim", 96),
            num_latents=perceiver.get("resampler_n_latents", 64),
            norm_epsilon=perceiver.get("rms_norm_eps", norm_epsilon),
            activation=check_activation(perceiver.get("hidden_act", "silu")),
        ),
        stop_ids=read_stop_ids(raw, generation, default=2),
        dtype=raw.get("dtype", raw.get("torch_dtype", text.get("torch_dtype"))),
    )


def read_image_config(model: ModelConfig, raw: RawConfig) -> ImageProcessorConfig:
    """Frames of native size. Defaults: `Idefics2ImageProcessor` (whole, bilinear, mean and deviation one half)."""
    assert model.perceiver is not None
    size: RawConfig = raw.get("size") or {"longest_edge": 980, "shortest_edge": 378}
    if (
        not size.keys() >= {"longest_edge", "shortest_edge"}
        or size["shortest_edge"] < model.vision.patch_size
    ):
        raise UnsupportedModel(
            f"the preprocessor's size is {dict(size)}; give a longest_edge, and a shortest_edge of "
            f"{model.vision.patch_size} pixels or more"
        )
    return ImageProcessorConfig(
        frame_size=model.vision.image_size,
        longest_edge=size["longest_edge"],
        shortest_edge=size["shortest_edge"],
        do_image_splitting=raw.get("do_image_splitting", False),
        resample=resample_filter_name(raw.get("resample", 2)),
        rescale_factor=raw.get("rescale_factor", 1 / 255),
        mean=tuple(raw.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(raw.get("image_std", (0.5, 0.5, 0.5))),
        tokens_per_frame=model.perceiver.num_latents,
    )


def read_prompt_format(template: str, added_tokens: frozenset[str]) -> PromptFormat:
    """Base's tokenizer has `<end_of_utterance>` too, but its model has no row for it: it continues documents."""
    is_chat = END_OF_UTTERANCE in added_tokens
    return PromptFormat(
        kind="chat" if is_chat else "base",
        chat_template=template or (DEFAULT_CHAT_TEMPLATE if is_chat else ""),
        turn_end_token=END_OF_UTTERANCE if is_chat else "",
        image_tokens="inline",
        strips_text=False,
        prompt_prefix="",
        add_special_tokens=True,
    )


FAMILY = ModelFamily(
    name="Idefics2",
    read_config=read_config,
    build=Idefics2,
    key_rules=INLINE_KEY_RULES,
    read_image_config=read_image_config,
    read_prompt_format=read_prompt_format,
)
