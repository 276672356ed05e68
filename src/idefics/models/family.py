"""The record that is all anyone knows about a family of checkpoints."""

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
)
from idefics.errors import BrokenCheckpoint, UnsupportedModel
from idefics.weights import KeyRules

RawConfig = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """One architecture: how to read its files, build it and feed it.

    Attributes:
        read_config: config.json (and generation_config.json, or {}) -> ModelConfig, with this family's defaults.
        build: ModelConfig -> the module (a `VLM` of engine/contract.py), parameter names as in checkpoints.
        key_rules: what to rename, join or ignore when a checkpoint is loaded.
        read_image_config: ModelConfig and preprocessor settings (or {}) -> ImagePlan.
        read_prompt_format: the checkpoint's own chat template ("" if none), and those of its tokenizer's added tokens that the
            model has rows for -> PromptStyle.
    """

    name: str
    read_config: Callable[[RawConfig, RawConfig], ModelConfig]
    build: Callable[[ModelConfig], nn.Module]
    key_rules: KeyRules
    read_image_config: Callable[[ModelConfig, RawConfig], ImageProcessorConfig]
    read_prompt_format: Callable[[str, frozenset[str]], PromptFormat]


END_OF_UTTERANCE = "<end_of_utterance>"
# The dialogue of Idefics and Idefics 2, for checkpoints without a template file: what their cards show.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

# PIL.Image.Resampling by number, as preprocessor files write it.
RESAMPLE_FILTERS: tuple[ResampleFilter, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


def resample_filter_name(number: int) -> ResampleFilter:
    """PIL's resampling filter by its number."""
    if not 0 <= number < len(RESAMPLE_FILTERS):
        raise UnsupportedModel(
            f"the preprocessor's resample is {number}; PIL's filters are 0 to {len(RESAMPLE_FILTERS) - 1}"
        )
    return RESAMPLE_FILTERS[number]


def check_activation(name: str) -> Activation:
    """An activation's name, checked."""
    if name not in get_args(Activation):
        raise UnsupportedModel(
            f"config.json asks for the activation {name!r}; known are {', '.join(get_args(Activation))}"
        )
    return cast(Activation, name)


def read_rope_config(text: RawConfig) -> RopeConfig:
    """Rotary positions from `rope_theta` and `rope_scaling` of old files or `rope_parameters` of new ones.

    Plain or Llama 3.1's kind.
    """
    scaling: dict[str, Any] = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
    theta = float(scaling.get("rope_theta") or text.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind != "llama3":
        raise UnsupportedModel(
            f"config.json asks for the rotary scaling {kind!r}; known are default and llama3"
        )
    try:
        return RopeConfig(
            theta=theta,
            factor=scaling["factor"],
            low_frequency_factor=scaling["low_freq_factor"],
            high_frequency_factor=scaling["high_freq_factor"],
            original_max_positions=scaling["original_max_position_embeddings"],
        )
    except KeyError as key:
        raise BrokenCheckpoint(f"config.json asks for llama3's rotary scaling without its {key}") from None


def read_stop_ids(raw: RawConfig, generation: RawConfig, default: int) -> tuple[int, ...]:
    """Ids that end an answer: generation_config.json's, else config.json's (top or text), else the class default.

    Raises:
        BrokenCheckpoint: what they say are no ids.
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
    return (default,)
