"""Sorts the arguments of `generate`: settings, inputs of the model, and arguments without effect.

B prompts, T ids of a prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from idefics.compat.generation_config import ACCEPTED_FIELD_NAMES, FIELD_NAMES, GenerationConfig
from idefics.compat.keyword_arguments import NeutralKwargs, check_and_drop_neutral_kwargs, split_kwargs
from idefics.errors import BadPrompt, BadSetting, UnknownArgument

GENERATE_ARGUMENTS = (
    "inputs",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "streamer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "tokenizer",
)
# Ignored, whatever their value.
IGNORED_GENERATE_KWARGS = {
    "labels",  # in batches for training; there is no loss here
    "num_items_in_batch",  # there is no loss here
    "cache_position",  # the cache says how many tokens it holds
    "assistant_model",  # a second model changes how fast an answer comes, not the answer
    "assistant_tokenizer",  # a second model changes how fast an answer comes, not the answer
    "trust_remote_code",  # no code of a checkpoint is ever run
}
# Accepted at the values that ask for nothing, and why others are refused.
NEUTRAL_GENERATE_KWARGS: NeutralKwargs = {
    "synced_gpus": "several processes do not generate together",
    "custom_generate": "no other decoding loop is loaded",
    "return_dict": "`generate` reads the model's outputs by their names",
    "return_legacy_cache": "past_key_values has `to_legacy_cache`",
    "logits_to_keep": "`generate` needs the logits of the last token",
}


def split_generate_kwargs(model: Any, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits keyword arguments into settings and inputs of the model's `forward`; inputs that are None are dropped.

    Raises:
        UnknownArgument: an argument is neither a setting nor an input of the model.
        BadSetting: an argument asks for something that this package does not have.
    """
    settings, others = split_kwargs(kwargs, ACCEPTED_FIELD_NAMES)
    inputs = {
        name: value
        for name, value in others.items()
        if value is not None and name not in IGNORED_GENERATE_KWARGS
    }
    inputs = check_and_drop_neutral_kwargs("generate", inputs, NEUTRAL_GENERATE_KWARGS)
    unread_names = ACCEPTED_FIELD_NAMES | IGNORED_GENERATE_KWARGS | NEUTRAL_GENERATE_KWARGS.keys()
    known_names = sorted(forward_parameter_names(model) - unread_names)
    if unknown := [name for name in inputs if name not in known_names]:
        raise UnknownArgument("generate", unknown, [*known_names, *GENERATE_ARGUMENTS, *FIELD_NAMES])
    return settings, inputs


def forward_parameter_names(model: Any) -> set[str]:
    """The names of the arguments of a model's `forward`; with `**kwargs`, also those of the `forward` it overrides."""
    names: set[str] = set()
    for model_class in type(model).__mro__:
        if (forward := vars(model_class).get("forward")) is None:
            continue
        signature = inspect.signature(forward).parameters.values()
        names |= {one.name for one in signature if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
        if all(one.kind is not one.VAR_KEYWORD for one in signature):
            break
    return names - {"self"}


def merge_generation_configs(
    model_config: GenerationConfig,
    generation_config: object,
    settings: Mapping[str, Any],
    *,
    use_model_defaults: bool | None,
) -> GenerationConfig:
    """The settings of a call: the caller's, else those of `generation_config`, else the model's own.

    Args:
        use_model_defaults: False: settings that a given `generation_config` leaves out have the defaults of the class.

    Raises:
        BadSetting: settings contradict each other, or `generation_config` is not a config.
    """
    config = model_config
    if generation_config is not None:
        config = GenerationConfig.from_any(generation_config)
        if use_model_defaults is not False:
            config = GenerationConfig(**model_config.explicit_settings() | config.explicit_settings())
    config = config.with_overrides(**settings)
    num_answers, num_beams = config.num_return_sequences, config.num_beams
    if num_answers > num_beams > 1:
        raise BadSetting(
            f"num_return_sequences is {num_answers} and num_beams {num_beams}: give as many beams at least"
        )
    if num_answers > 1 == num_beams and not config.do_sample:
        raise BadSetting(
            f"num_return_sequences is {num_answers}, but the most likely ids are one answer: "
            f"give do_sample=True, or num_beams={num_answers}"
        )
    if config.do_sample and config.temperature == 0:
        raise BadSetting("temperature is 0 and do_sample True: give do_sample=False for the most likely ids")
    return config


def pop_prompt_ids(inputs: Tensor | None, model_inputs: dict[str, Any], config: GenerationConfig) -> Tensor:
    """Takes the ids of the prompts, (B, T), out of `model_inputs`; T is 0 where only embeddings are given.

    Raises:
        BadPrompt: there are no ids, or they have a wrong shape.
    """
    ids = model_inputs.pop("input_ids", None)
    if ids is not None and inputs is not None:
        raise BadPrompt("inputs and input_ids are two names for the same: give one of them")
    ids = inputs if ids is None else ids
    if ids is None:
        tensors = (value for value in model_inputs.values() if isinstance(value, Tensor))
        first = next(tensors, torch.empty(1))  # which has a row for each prompt
        if "inputs_embeds" in model_inputs:
            return first.new_empty((len(first), 0), dtype=torch.long)
        if config.bos_token_id is None:
            raise BadPrompt("there is no prompt: give input_ids, or bos_token_id to begin from nothing")
        return first.new_full((len(first), 1), config.bos_token_id, dtype=torch.long)
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        description = (
            f"a tensor of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        )
        raise BadPrompt(
            f"input_ids is {description}; give ids of shape (prompts, length), one id at least, "
            'as return_tensors="pt" does'
        )
    return ids


def pop_or_make_attention_mask(ids: Tensor, model_inputs: dict[str, Any], config: GenerationConfig) -> Tensor:
    """Takes `attention_mask`, (B, T), out of `model_inputs`, or computes it: 0 where an id is `pad_token_id`.

    Raises:
        BadPrompt: the mask has a wrong shape.
    """
    mask: Tensor | None = model_inputs.pop("attention_mask", None)
    if mask is None:
        if "inputs_embeds" in model_inputs:
            mask = torch.ones_like(model_inputs["inputs_embeds"][..., 0], dtype=torch.long)
        elif config.pad_token_id is None or config.pad_token_id in config.stop_ids:
            mask = torch.ones_like(ids)
        else:
            mask = ids.ne(config.pad_token_id).long()
    if mask.dim() != 2:
        raise BadPrompt(f"attention_mask has shape {tuple(mask.shape)}; give (prompts, length)")
    return mask
