"""`generate`: what the caller gives becomes prompts, settings and criteria; a search chooses ids until all have ended.

B prompts, n answers or beams of each, R = B * n rows, T ids so far, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from idefics.compat.generation_config import NAMES, GenerationConfig
from idefics.compat.generation_reader import Model, Reader
from idefics.compat.generation_search import GenerateOutput, Steps, beam_search, sample
from idefics.compat.logits_process import Processor, processors
from idefics.compat.stopping import (
    Criterion,
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
)
from idefics.compat.streamers import BaseStreamer
from idefics.errors import BadPrompt, BadSetting, UnknownArgument

# Arguments of a model's call that are `generate`'s own affair.
NOT_FOR_THE_CALLER = {"labels", "return_dict", "logits_to_keep"}
OWN_ARGUMENTS = ("inputs", "generation_config", "logits_processor", "stopping_criteria", "streamer")


class GenerationMixin:
    """Gives a model `generate`. The model is callable as `generation_reader.Model` says."""

    generation_config: GenerationConfig

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[Processor] | None = None,
        stopping_criteria: Sequence[Criterion] | None = None,
        streamer: BaseStreamer | None = None,
        **kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Continues prompts.

        Greedy unless `do_sample` or `num_beams` is set; draws come from torch's own generator, which
        `torch.manual_seed` seeds. A setting is looked for in `kwargs`, `generation_config`, the model's own
        `generation_config`, and has a default else. The prompts of a batch are padded on the left.

        Args:
            inputs: (B, T) ids of the prompts; `input_ids` is another name for it. Without any, prompts are
                `bos_token_id`.
            generation_config: settings.
            logits_processor: called with ids (R, T) and scores (R, V) before each choice; gives other scores.
            stopping_criteria: called with ids (R, T) and the scores so far after each choice; says what ends.
            streamer: is given the prompt's ids, then each id as it is chosen, and told when there are no more:
                also by an error. For one answer without beams.
            **kwargs: settings of `GenerationConfig`, and what the model's call takes: `attention_mask`, pictures.

        Returns:
            (R, T + longest answer) ids; or with `return_dict_in_generate` an object whose `sequences` they are.

        Raises:
            UnknownArgument: neither the settings nor the model have it.
            BadSetting: a setting out of its range, or two that contradict each other.
            BadPrompt: ids of a wrong shape, or padded on the right.
        """
        try:
            answers = self._generate(
                inputs, generation_config, logits_processor or (), stopping_criteria or (), streamer, kwargs
            )
        finally:  # whoever waits for the text shall not wait for ever
            if streamer is not None:
                streamer.end()
        return answers

    def _generate(
        self: Any,
        inputs: Tensor | None,
        generation_config: GenerationConfig | None,
        logits_processor: Sequence[Processor],
        stopping_criteria: Sequence[Criterion],
        streamer: BaseStreamer | None,
        kwargs: dict[str, Any],
    ) -> Tensor | GenerateOutput:
        settings = {name: kwargs[name] for name in kwargs if name in NAMES}
        given = _known(self, {name: kwargs[name] for name in kwargs if name not in NAMES})
        config = self.generation_config
        if generation_config is not None:
            config = GenerationConfig(**vars(config) | _set(generation_config))
        config = config.switch(**settings)
        _check(config, streamer)

        ids = _prompts(inputs, given, config)
        mask = _mask(ids, given, config)
        prompt = given["inputs_embeds"].shape[1] if "inputs_embeds" in given else ids.shape[1]
        room = _room(config, prompt)
        answers = max(config.num_beams, config.num_return_sequences)

        criteria: list[Criterion] = [MaxLengthCriteria(ids.shape[1] + room), *stopping_criteria]
        if config.max_time is not None:
            criteria.append(MaxTimeCriteria(config.max_time))
        if config.stop_ids:
            criteria.append(EosTokenCriteria(config.stop_ids))
        reader = Reader(
            self,
            {**given, "attention_mask": mask},
            answers=answers,
            use_cache=config.use_cache or not given.keys().isdisjoint({"inputs_embeds", "past_key_values"}),
            extras=_extras(config),
        )
        if streamer is not None:
            streamer.put(ids.repeat_interleave(answers, dim=0).cpu())

        least = config.min_length - prompt if config.min_new_tokens is None else config.min_new_tokens
        starts = mask.ne(0).int().argmax(1) if mask.shape == ids.shape else mask.new_zeros(len(mask))
        logits = reader.prompts(ids)  # (R, V)
        process = processors(
            config,
            logits_processor,
            least=ids.shape[1] + least,
            starts=starts.repeat_interleave(answers),
            vocabulary=logits.shape[1],
        )
        steps = Steps(config, process, StoppingCriteriaList(criteria))
        out: GenerateOutput
        if config.num_beams == 1:
            out = sample(reader, ids, logits, steps, streamer)
        else:
            out = beam_search(reader, ids, logits, steps, room)
        return out if config.return_dict_in_generate else out.sequences


def _known(model: Model, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is for the model, without what is None. Raises UnknownArgument."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD}
    known = sorted(named - NOT_FOR_THE_CALLER - set(NAMES))
    if unknown := [name for name in given if name not in known]:
        raise UnknownArgument("generate", unknown, [*known, *OWN_ARGUMENTS, *NAMES])
    return {name: value for name, value in given.items() if value is not None}


def _set(config: GenerationConfig) -> dict[str, Any]:
    """What the caller's settings set."""
    if not isinstance(config, GenerationConfig):
        raise BadSetting(f"generation_config is a {type(config).__name__}; give a GenerationConfig")
    return vars(config)


def _check(config: GenerationConfig, streamer: BaseStreamer | None) -> None:
    """Refuses settings that contradict each other."""
    answers, beams = config.num_return_sequences, config.num_beams
    if answers > beams > 1:
        raise BadSetting(
            f"num_return_sequences is {answers} and num_beams {beams}: give as many beams at least"
        )
    if answers > 1 == beams and not config.do_sample:
        raise BadSetting(
            f"num_return_sequences is {answers}, but the most likely ids are one answer: "
            f"give do_sample=True, or num_beams={answers}"
        )
    if config.do_sample and config.temperature == 0:
        raise BadSetting("temperature is 0 and do_sample True: give do_sample=False for the most likely ids")
    if streamer is not None and beams > 1:
        raise BadSetting(
            f"num_beams is {beams}, and beams are not known before the end: stream with num_beams=1"
        )


def _extras(config: GenerationConfig) -> list[str]:
    asked = {"attentions": config.output_attentions, "hidden_states": config.output_hidden_states}
    return [name for name, is_asked in asked.items() if is_asked and config.return_dict_in_generate]


def _prompts(inputs: Tensor | None, given: dict[str, Any], config: GenerationConfig) -> Tensor:
    """(B, T) the ids of the prompts, taken out of what is `given`; T is 0 beside embeddings without ids."""
    ids = given.pop("input_ids", None)
    if ids is not None and inputs is not None:
        raise BadPrompt("inputs and input_ids are two names for the same: give one of them")
    ids = inputs if ids is None else ids
    if ids is None:
        tensors = [value for value in given.values() if isinstance(value, Tensor)]
        rows, device = (len(tensors[0]), tensors[0].device) if tensors else (1, None)
        if "inputs_embeds" in given:
            return torch.empty(rows, 0, dtype=torch.long, device=device)
        if config.bos_token_id is None:
            raise BadPrompt("there is no prompt: give input_ids, or bos_token_id to begin from nothing")
        return torch.full((rows, 1), config.bos_token_id, device=device)
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        what = (
            f"a tensor of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        )
        raise BadPrompt(
            f'input_ids is {what}; give ids of shape (prompts, length), as return_tensors="pt" does'
        )
    if not ids.numel():
        raise BadPrompt(f"input_ids has shape {tuple(ids.shape)}: give at least one id")
    return ids


def _mask(ids: Tensor, given: dict[str, Any], config: GenerationConfig) -> Tensor:
    """(B, T) which ids are no padding, taken out of what is `given`, else by `pad_token_id`."""
    mask: Tensor | None = given.pop("attention_mask", None)
    if mask is None:
        places = given["inputs_embeds"][..., 0] if "inputs_embeds" in given else ids
        mask = torch.ones_like(places, dtype=torch.long)
        if places is ids and config.pad_token_id is not None and config.pad_token_id not in config.stop_ids:
            mask = ids.ne(config.pad_token_id).long()
    if mask.dim() != 2:
        raise BadPrompt(f"attention_mask has shape {tuple(mask.shape)}; give (prompts, length)")
    if not mask[:, -1].all():
        raise BadPrompt(
            'a prompt is padded on the right, where its answer belongs: set the tokenizer\'s padding_side to "left"'
        )
    return mask


def _room(config: GenerationConfig, prompt: int) -> int:
    """How many ids may be generated after so many of the prompt."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if not config.is_set("max_length"):
        return config.max_length  # the default counts generated ids
    if config.max_length <= prompt:
        raise BadSetting(
            f"max_length is {config.max_length}, and the prompt has {prompt} ids, which it counts: "
            "give max_new_tokens, or a greater max_length"
        )
    return config.max_length - prompt
