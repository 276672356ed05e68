"""Idefics 2 (8b, its base and chatty versions): an inline-image model with images of native size and a perceiver.

    frames (P, 3, h, w) -> SigLIP with NaViT positions -> (P, S, D') -> gated MLP -> (P, S, D) -> perceiver -> (P, M, D)

The M features of a frame replace its `<image>` tokens in the input of a Mistral decoder. All but the connector is
shared with Idefics 3: `inline`. Source: arXiv 2405.02246 and the released configs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idefics.config import (
    ImageProcessorConfig,
    ModelConfig,
    PerceiverConfig,
    PromptFormat,
)
from idefics.errors import UnsupportedModel
from idefics.models.family import (
    DEFAULT_CHAT_TEMPLATE,
    END_OF_UTTERANCE,
    ModelFamily,
    RawConfig,
    read_activation,
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
from idefics.nn.decoder import GatedMLP
from idefics.nn.perceiver import Perceiver


class Idefics2Connector(nn.Module):
    """Maps patches to the decoder's width by a gated MLP, then to a few features a frame by a perceiver."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.perceiver is not None
        text = config.text
        self.modality_projection = GatedMLP(
            config.vision.hidden_size, text.intermediate_size, text.activation, text.hidden_size
        )
        self.perceiver_resampler = Perceiver(text.hidden_size, config.perceiver)

    def forward(self, x: Tensor) -> Tensor:
        """Maps patches to image features: (P, S, D') -> (P, M, D), frame by frame.

        The MLP is twelve times as wide as a patch: the activations of all frames at once would fill the device.
        """
        return torch.cat([self.perceiver_resampler(self.modality_projection(frame)) for frame in x.split(1)])


class Idefics2Backbone(InlineImageBackbone):
    """Vision tower, connector and decoder of Idefics 2: everything but the head."""

    connector_class = Idefics2Connector


class Idefics2(VisionLanguageModel):
    """Idefics 2 as the engine runs it (`VLM`)."""

    backbone_class = Idefics2Backbone


def read_config(raw: RawConfig, generation: RawConfig) -> ModelConfig:
    """Reads config.json as the hub or transformers 5 has it; the released files leave most fields out.

    Defaults are those of `MistralConfig`, `Idefics2VisionConfig` and `Idefics2PerceiverConfig`. The perceiver's epsilon
    is the decoder's where the file has none, as in the release.
    """
    # Without any text_config, the released class makes one that differs from Mistral's in two numbers.
    raw_text: RawConfig = raw.get("text_config") or {"rms_norm_eps": 1e-5, "max_position_embeddings": 32768}
    perceiver: RawConfig = raw.get("perceiver_config") or {}
    text = read_text_config(
        raw,
        raw_text,
        model_type="mistral",
        intermediate_size=14336,
        num_kv_heads=8,
        max_positions=131072,
        sliding_window=4096,
    )
    return ModelConfig(
        text=text,
        vision=read_siglip_config(raw, hidden_size=768, num_heads=12),
        perceiver=PerceiverConfig(
            depth=perceiver.get("resampler_depth", 3),
            num_heads=perceiver.get("resampler_n_heads", 16),
            num_kv_heads=perceiver.get("num_key_value_heads", 4),
            head_size=perceiver.get("resampler_head_dim", 96),
            num_latents=perceiver.get("resampler_n_latents", 64),
            norm_epsilon=perceiver.get("rms_norm_eps", text.norm_epsilon),
            activation=read_activation(perceiver, "silu"),
        ),
        **read_model_kwargs(raw, generation),
    )


def read_image_config(model: ModelConfig, raw: RawConfig) -> ImageProcessorConfig:
    """The settings for pictures: frames of native size within a shortest and a longest edge, in pixels.

    Defaults are those of `Idefics2ImageProcessor`: not split, bilinear.

    Raises:
        UnsupportedModel: `size` has no such edges, or the shortest is below one patch.
    """
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
        tokens_per_frame=model.perceiver.num_latents,
        **read_resample_and_normalize_kwargs(raw, resample=2),
    )


def read_prompt_format(template: str, added_tokens: frozenset[str]) -> PromptFormat:
    """The prompt format: for chat if the embedding has a row for `<end_of_utterance>`, else to continue documents.

    The base checkpoint has no such row, though its tokenizer has the token.
    """
    is_chat = END_OF_UTTERANCE in added_tokens
    return PromptFormat(
        kind="chat" if is_chat else "base",
        chat_template=template or (DEFAULT_CHAT_TEMPLATE if is_chat else ""),
        turn_end_token=END_OF_UTTERANCE if is_chat else "",
        image_tokens="inline",
    )


FAMILY = ModelFamily(
    name="Idefics2",
    read_config=read_config,
    build=Idefics2,
    key_rules=INLINE_KEY_RULES,
    read_image_config=read_image_config,
    read_prompt_format=read_prompt_format,
)
