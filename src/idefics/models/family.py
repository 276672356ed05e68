"""`ModelFamily`, the functions and rules that define an architecture, and helpers that families share.

Configs are read as the released classes of transformers read them: a field that a file leaves out has their default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from torch import nn

from idefics.config import (
    Activation,
    ImageProcessorConfig,
    ModelConfig,
    PromptFormat,
    ResampleFilter,
    RopeConfig,
    TextConfig,
)
from idefics.errors import BrokenCheckpoint, UnsupportedModel
from idefics.weights import KeyRules

RawConfig = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """One architecture: how to read its files, build it and prepare its inputs.

    Attributes:
        name: shown to users.
        read_config: (config.json, generation_config.json or {}) -> ModelConfig.
        build: ModelConfig -> the module (`VLM` of engine/model_interface.py), parameters named as in checkpoints.
        key_rules: the checkpoint's tensors to rename, concatenate or ignore.
        read_image_config: (ModelConfig, preprocessor_config.json or {}) -> ImageProcessorConfig.
        read_prompt_format: (chat template of the checkpoint or "", the tokenizer's added tokens that the embedding has
            rows for) -> PromptFormat.
    """

    name: str
    read_config: Callable[[RawConfig, RawConfig], ModelConfig]
    build: Callable[[ModelConfig], nn.Module]
    key_rules: KeyRules
    read_image_config: Callable[[ModelConfig, RawConfig], ImageProcessorConfig]
    read_prompt_format: Callable[[str, frozenset[str]], PromptFormat]


END_OF_UTTERANCE = "<end_of_utterance>"
# The dialogue of Idefics and Idefics 2 as their model cards show it, for checkpoints without a template file.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

# PIL.Image.Resampling by number, as preprocessor files write it.
RESAMPLE_FILTERS: tuple[ResampleFilter, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
HALF_PER_CHANNEL = (0.5, 0.5, 0.5)

# `KeyRules.ignore` for buffers that old files stored, and that are computed anew.
RECOMPUTED_BUFFERS = (
    r".*\.rotary_emb\.inv_freq",
    r".*\.embeddings\.position_ids",  # stored in bfloat16 it would be wrong
)


def resample_filter_name(number: int) -> ResampleFilter:
    """The name of the resampling filter that PIL has under a number. Raises UnsupportedModel if there is none."""
    if not 0 <= number < len(RESAMPLE_FILTERS):
        raise UnsupportedModel(
            f"the preprocessor's resample is {number}; PIL's filters are 0 to {len(RESAMPLE_FILTERS) - 1}"
        )
    return RESAMPLE_FILTERS[number]


def read_resample_and_normalize_kwargs(
    raw: RawConfig,
    *,
    resample: int,
    mean: tuple[float, ...] = HALF_PER_CHANNEL,
    std: tuple[float, ...] = HALF_PER_CHANNEL,
) -> dict[str, Any]:
    """The fields of `ImageProcessorConfig` that say how pixels are resampled, rescaled and normalised.

    Args:
        raw: preprocessor_config.json, or {}.
        resample, mean, std: the family's defaults.
    """
    return {
        "resample": resample_filter_name(raw.get("resample", resample)),
        "rescale_factor": raw.get("rescale_factor", 1 / 255),
        "mean": tuple(raw.get("image_mean", mean)),
        "std": tuple(raw.get("image_std", std)),
    }


def read_activation(raw: RawConfig, default: Activation) -> Activation:
    """The activation function that a config names; raises UnsupportedModel for an unknown one."""
    name = raw.get("hidden_act", default)
    if name not in get_args(Activation):
        raise UnsupportedModel(
            f"config.json names the activation {name!r}; known are {', '.join(get_args(Activation))}"
        )
    return cast(Activation, name)


def read_rope_config(text: RawConfig) -> RopeConfig:
    """The rotary embedding of a text config, plain or with Llama 3.1's scaling.

    Old files have `rope_theta` and `rope_scaling`, new ones `rope_parameters`.

    Raises:
        UnsupportedModel: another kind of scaling.
        BrokenCheckpoint: a number of the scaling is missing.
    """
    scaling: dict[str, Any] = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
    theta = float(scaling.get("rope_theta") or text.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind != "llama3":
        raise UnsupportedModel(f"config.json names the rotary scaling {kind!r}; known are default and llama3")
    try:
        return RopeConfig(
            theta=theta,
            factor=scaling["factor"],
            low_frequency_factor=scaling["low_freq_factor"],
            high_frequency_factor=scaling["high_freq_factor"],
            original_max_positions=scaling["original_max_position_embeddings"],
        )
    except KeyError as key:
        raise BrokenCheckpoint(f"config.json names llama3's rotary scaling without its {key}") from None


def read_stop_ids(raw: RawConfig, generation: RawConfig) -> tuple[int, ...]:
    """The ids that end an answer: of generation_config.json, else of config.json or its text_config, else 2.

    Raises:
        BrokenCheckpoint: `eos_token_id` is neither an id nor a list of ids.
    """
    text = raw.get("text_config") or {}
    for name, source in (("generation_config.json", generation), ("config.json", raw), ("config.json", text)):
        if (eos_token_id := source.get("eos_token_id")) is not None:
            ids = tuple(eos_token_id) if isinstance(eos_token_id, list) else (eos_token_id,)
            if not all(type(id) is int for id in ids):
                raise BrokenCheckpoint(
                    f"{name} sets eos_token_id to {eos_token_id!r}: it must be the id of a token, or a list of ids"
                )
            return ids
    return (2,)


def read_text_config(
    raw: RawConfig,
    text: RawConfig,
    *,
    model_type: str,
    intermediate_size: int,
    num_kv_heads: int | None,
    max_positions: int,
    sliding_window: int | None = None,
) -> TextConfig:
    """The decoder that a config describes.

    Args:
        raw, text: config.json, and its `text_config`.
        model_type: the one whose config class transformers would use.
        intermediate_size, num_kv_heads, max_positions, sliding_window: the defaults of that class; `num_kv_heads` None:
            as many as query heads.

    Raises:
        UnsupportedModel: the text_config is of another model_type.
    """
    if (decoder := text.get("model_type", model_type)) != model_type:
        raise UnsupportedModel(
            f"config.json's text_config is of model_type {decoder!r}; known is {model_type}"
        )
    width, heads = text.get("hidden_size", 4096), text.get("num_attention_heads", 32)
    return TextConfig(
        vocab_size=text.get("vocab_size", 32000),
        hidden_size=width,
        intermediate_size=text.get("intermediate_size", intermediate_size),
        num_layers=text.get("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=text.get("num_key_value_heads", num_kv_heads) or heads,
        head_size=text.get("head_dim") or width // heads,
        norm_epsilon=text.get("rms_norm_eps", 1e-6),
        max_positions=text.get("max_position_embeddings", max_positions),
        activation=read_activation(text, "silu"),
        rope=read_rope_config(text),
        sliding_window=sliding_window and text.get("sliding_window", sliding_window),
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
    )


def read_model_kwargs(raw: RawConfig, generation: RawConfig) -> dict[str, Any]:
    """Fields of `ModelConfig` that every family reads in the same way: keyword arguments for it."""
    text = raw.get("text_config") or {}
    return {
        "model_type": raw["model_type"],
        "stop_ids": read_stop_ids(raw, generation),
        "dtype": raw.get("dtype", raw.get("torch_dtype", text.get("torch_dtype"))),
    }
