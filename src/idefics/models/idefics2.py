"""Idefics2-8B, its base and chatty: pictures of their native size are read in the text.

SigLIP encodes each frame with NaViT positions, a gated MLP maps patches to the decoder's width, a perceiver reads them
into a few vectors, and those take the places of `<image>` tokens of a Mistral decoder. Source: arXiv 2405.02246 and the
released configs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idefics.config import ImagePlan, ModelConfig, PerceiverConfig, PromptStyle, TextConfig, VisionConfig
from idefics.errors import UnsupportedModel
from idefics.models.family import DIALOGUE, TURN_END, Family, Raw, activation, filter_name, rope, stop_ids
from idefics.models.in_text import IN_TEXT_KEYS, Body, InTextModel
from idefics.nn.decoder import GatedMLP
from idefics.nn.perceiver import Perceiver


class Connector(nn.Module):
    """A gated MLP to the decoder's width, then the perceiver: (P, S, D') -> (P, M, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.perceiver is not None
        text = config.text
        self.modality_projection = GatedMLP(config.vision.width, text.inner, text.activation, text.width)
        self.perceiver_resampler = Perceiver(text.width, config.perceiver)

    def forward(self, x: Tensor) -> Tensor:
        # One frame after another: the MLP is twelve times as wide as a patch, and 4900 patches fill any device.
        return torch.cat([self.perceiver_resampler(self.modality_projection(frame)) for frame in x.split(1)])


class Idefics2Body(Body):
    """Everything but the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, Connector(config))


class Idefics2(InTextModel):
    """The model as the engine sees it (`VLM`). `body` is everything but the head; None: built by the config."""

    def __init__(self, config: ModelConfig, body: Body | None = None) -> None:
        super().__init__(config, Idefics2Body(config) if body is None else body)


def config(raw: Raw, generation: Raw) -> ModelConfig:
    """config.json as the hub or transformers 5 writes it: the released files leave most of it out.

    Defaults are those of `MistralConfig`, `Idefics2VisionConfig` and `Idefics2PerceiverConfig`, but for the perceiver's
    epsilon: the release took the decoder's, and so does this where the file is silent.
    """
    # Where there is no text_config at all, the released class makes one that differs from Mistral's in two numbers.
    text: Raw = raw.get("text_config") or {"rms_norm_eps": 1e-5, "max_position_embeddings": 32768}
    vision: Raw = raw.get("vision_config") or {}
    perceiver: Raw = raw.get("perceiver_config") or {}
    if (decoder := text.get("model_type", "mistral")) != "mistral":
        raise UnsupportedModel(f"config.json's text_config is of model_type {decoder!r}; known is mistral")
    width, heads = text.get("hidden_size", 4096), text.get("num_attention_heads", 32)
    norm_epsilon = text.get("rms_norm_eps", 1e-6)
    return ModelConfig(
        model_type=raw["model_type"],
        text=TextConfig(
            vocabulary=text.get("vocab_size", 32000),
            width=width,
            inner=text.get("intermediate_size", 14336),
            layers=text.get("num_hidden_layers", 32),
            heads=heads,
            kv_heads=text.get("num_key_value_heads", 8) or heads,
            head_size=text.get("head_dim") or width // heads,
            norm_epsilon=norm_epsilon,
            max_positions=text.get("max_position_embeddings", 131072),
            activation=activation(text.get("hidden_act", "silu")),
            rope=rope(text),
            window=text.get("sliding_window", 4096),
            tied=raw.get("tie_word_embeddings", False),
        ),
        vision=VisionConfig(
            width=vision.get("hidden_size", 768),
            inner=vision.get("intermediate_size", 3072),
            layers=vision.get("num_hidden_layers", 12),
            heads=vision.get("num_attention_heads", 12),
            side=vision.get("image_size", 224),
            patch=vision.get("patch_size", 32),
            norm_epsilon=vision.get("layer_norm_eps", 1e-6),
            activation=activation(vision.get("hidden_act", "gelu_pytorch_tanh")),
        ),
        perceiver=PerceiverConfig(
            depth=perceiver.get("resampler_depth", 3),
            heads=perceiver.get("resampler_n_heads", 16),
            kv_heads=perceiver.get("num_key_value_heads", 4),
            head_size=perceiver.get("resampler_head_dim", 96),
            latents=perceiver.get("resampler_n_latents", 64),
            norm_epsilon=perceiver.get("rms_norm_eps", norm_epsilon),
            activation=activation(perceiver.get("hidden_act", "silu")),
        ),
        stop_ids=stop_ids(raw, generation, default=2),
        dtype=raw.get("dtype", raw.get("torch_dtype", text.get("torch_dtype"))),
    )


def images(model: ModelConfig, raw: Raw) -> ImagePlan:
    """Frames of native size. Defaults: `Idefics2ImageProcessor` (whole, bilinear, mean and deviation one half)."""
    assert model.perceiver is not None
    size: Raw = raw.get("size") or {"longest_edge": 980, "shortest_edge": 378}
    if not size.keys() >= {"longest_edge", "shortest_edge"} or size["shortest_edge"] < model.vision.patch:
        raise UnsupportedModel(
            f"the preprocessor's size is {dict(size)}; give a longest_edge, and a shortest_edge of "
            f"{model.vision.patch} pixels or more"
        )
    return ImagePlan(
        side=model.vision.side,
        longest=size["longest_edge"],
        shortest=size["shortest_edge"],
        splitting=raw.get("do_image_splitting", False),
        resample=filter_name(raw.get("resample", 2)),
        scale=raw.get("rescale_factor", 1 / 255),
        mean=tuple(raw.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(raw.get("image_std", (0.5, 0.5, 0.5))),
        tokens=model.perceiver.latents,
    )


def prompt(template: str, added: frozenset[str]) -> PromptStyle:
    """Base's tokenizer has `<end_of_utterance>` too, but its model has no row for it: it continues documents."""
    instructed = TURN_END in added
    return PromptStyle(
        kind="chat" if instructed else "base",
        template=template or (DIALOGUE if instructed else ""),
        turn_end=TURN_END if instructed else "",
        marks="frames",
        strip_items=False,
        start="",
        adds_special=True,
    )


FAMILY = Family(
    name="Idefics2",
    config=config,
    build=Idefics2,
    keys=IN_TEXT_KEYS,
    images=images,
    prompt=prompt,
)
