"""`generate`: sorts the caller's arguments, reads the prompts, and chooses ids until every answer has ended.

B prompts, n answers or beams of each, R = B * n rows, T ids so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idefics.compat.generation_arguments import (
    merge_generation_configs,
    pop_or_make_attention_mask,
    pop_prompt_ids,
    split_generate_kwargs,
)
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.generation_padding import RightPadding, move_padding_left_and_repeat
from idefics.compat.generation_runner import GenerationRunner
from idefics.compat.generation_strategies import (
    GenerateOutput,
    StepProcessorsAndRecords,
    beam_search,
    sample_or_greedy,
)
from idefics.compat.logits_constraints import PrefixAllowedTokensFn
from idefics.compat.logits_process import GenerateContext, LogitsProcessorFn, make_logits_processors
from idefics.compat.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StoppingCriterionFn,
    StopStringCriteria,
)
from idefics.compat.streamers import BaseStreamer, TokenizerLike
from idefics.errors import BadSetting


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateHooks:
    """The arguments of `generate` that are neither settings nor inputs of the model; see there."""

    tokenizer: TokenizerLike | None
    streamer: BaseStreamer | None
    logits_processors: Sequence[LogitsProcessorFn]
    stopping_criteria: Sequence[StoppingCriterionFn]
    prefix_allowed_tokens_fn: PrefixAllowedTokensFn | None
    negative_prompt_ids: Tensor | None
    negative_prompt_attention_mask: Tensor | None


class GenerationMixin:
    """Gives a model transformers' `generate`: a loop in plain torch, not the engine.

    The model has what `GenerativeModel` lists.
    """

    generation_config: GenerationConfig

    @property
    def image_token_ids(self) -> Sequence[int]:
        """The ids of placeholders, where image features stand."""
        return ()

    def prepare_inputs_for_generation(
        self, input_ids: Tensor | None = None, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The arguments of the model at one step of `generate`; a subclass, or peft, may change them.

        Args:
            input_ids: (R, T) ids that are not in the cache.
            past_key_values: the cache; None at the first step.
            **kwargs: `attention_mask` of all ids, images at the first step, `inputs_embeds`, ...
        """
        return {"input_ids": input_ids, "past_key_values": past_key_values, **kwargs}

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[LogitsProcessorFn] | None = None,
        stopping_criteria: Sequence[StoppingCriterionFn] | None = None,
        prefix_allowed_tokens_fn: PrefixAllowedTokensFn | None = None,
        synced_gpus: bool | None = None,
        assistant_model: Any = None,
        streamer: BaseStreamer | None = None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        *,
        tokenizer: TokenizerLike | None = None,
        use_model_defaults: bool | None = None,
        **kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Continues prompts.

        Greedy unless `do_sample` or `num_beams` is set; sampling uses torch's default generator, which
        `torch.manual_seed` seeds. Settings are taken from `kwargs`, else `generation_config`, else the model's own
        `generation_config`. Prompts may be padded on either side. Padding on the right is moved to the left while ids
        are chosen, where processors and criteria see it, and is back on the right in what is returned; answers begin
        after the last position of the longest prompt.

        Args:
            inputs: (B, T) ids of the prompts, also as `input_ids`. None: the prompt is `bos_token_id`.
            generation_config: settings, of this package or of transformers.
            logits_processor: functions of ids (R, T) and scores (R, V) that return the scores to choose by.
            stopping_criteria: functions of ids (R, T) and the scores so far that say which answers end.
            prefix_allowed_tokens_fn: function of the index of a prompt and its ids (T,) so far that returns the ids
                that may follow.
            synced_gpus, assistant_model: without effect, as `generation_arguments` says.
            streamer: receives the prompt's ids, then each id as it is chosen, and the end, even after an error. For
                one answer without beams.
            negative_prompt_ids, negative_prompt_attention_mask: (B, T'), what `guidance_scale` steers away from.
            tokenizer: decodes ids, for `stop_strings`.
            use_model_defaults: False: settings that `generation_config` leaves out have the defaults of the class, not
                those of the model.
            **kwargs: settings of `GenerationConfig`, and inputs of the model: `attention_mask`, images.

        Returns:
            (R, T + longest answer) ids; with `return_dict_in_generate` an object that has them as `sequences`.

        Raises:
            UnknownArgument: an argument is neither a setting nor an input of the model.
            BadSetting: a setting is out of its range, or two contradict each other.
            BadPrompt: ids have a wrong shape, or a prompt is only padding.
        """
        try:
            settings, model_inputs = split_generate_kwargs(
                self, {**kwargs, "synced_gpus": synced_gpus, "assistant_model": assistant_model}
            )
            config = merge_generation_configs(
                self.generation_config, generation_config, settings, use_model_defaults=use_model_defaults
            )
            if streamer is not None and config.num_beams > 1:
                raise BadSetting(
                    f"num_beams is {config.num_beams}, and beams are not known before the end: "
                    "stream with num_beams=1"
                )
            hooks = GenerateHooks(
                tokenizer=tokenizer,
                streamer=streamer,
                logits_processors=logits_processor or (),
                stopping_criteria=stopping_criteria or (),
                prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
                negative_prompt_ids=negative_prompt_ids,
                negative_prompt_attention_mask=negative_prompt_attention_mask,
            )
            answers = self._generate(inputs, config, model_inputs, hooks)
        finally:  # a thread that waits for the text must not wait for ever
            if streamer is not None:
                streamer.end()
        return answers

    def _generate(
        self: Any,
        inputs: Tensor | None,
        config: GenerationConfig,
        model_inputs: dict[str, Any],
        hooks: GenerateHooks,
    ) -> Tensor | GenerateOutput:
        """Moves padding to the left, reads the prompts, and runs the search."""
        original_ids = pop_prompt_ids(inputs, model_inputs, config)
        mask = pop_or_make_attention_mask(original_ids, model_inputs, config)
        padding = RightPadding(mask).require_movable(original_ids, model_inputs, self.image_token_ids)
        ids, mask = padding.rotate_to_left(original_ids), padding.rotate_to_left(mask)
        model_inputs = padding.inputs_to_left(model_inputs)
        prompt_length = model_inputs.get("inputs_embeds", ids).shape[1]
        max_new_tokens = _resolve_max_new_tokens(config, prompt_length)
        num_answers = max(config.num_beams, config.num_return_sequences)
        runner = GenerationRunner(
            self,
            {**model_inputs, "attention_mask": mask},
            answers_per_prompt=num_answers,
            use_cache=config.use_cache
            or "inputs_embeds" in model_inputs
            or "past_key_values" in model_inputs,
            output_names=_requested_extra_output_names(config),
        )
        if hooks.streamer is not None:
            hooks.streamer.put(original_ids.repeat_interleave(num_answers, dim=0).cpu())
        logits = runner.prefill(ids)  # (R, V)
        prompt_starts = mask.ne(0).int().argmax(1) if mask.shape == ids.shape else mask.new_zeros(len(mask))
        negative_ids, negative_mask = move_padding_left_and_repeat(
            hooks.negative_prompt_ids, hooks.negative_prompt_attention_mask, num_answers
        )
        context = GenerateContext(
            model=self,
            prompt_ids=ids.repeat_interleave(num_answers, dim=0),
            prompt_starts=prompt_starts.repeat_interleave(num_answers, dim=0),
            vocab_size=logits.shape[1],
            max_length=ids.shape[1] + max_new_tokens,
            min_length=ids.shape[1] + _resolve_min_new_tokens(config, prompt_length),
            prefix_allowed_tokens_fn=hooks.prefix_allowed_tokens_fn,
            negative_prompt_ids=negative_ids,
            negative_prompt_mask=negative_mask,
        )
        criteria = _make_stopping_criteria(config, context.max_length, hooks.tokenizer)
        steps = StepProcessorsAndRecords(
            config,
            make_logits_processors(config, hooks.logits_processors, context),
            StoppingCriteriaList([*criteria, *hooks.stopping_criteria]),
        )
        out: GenerateOutput
        if config.num_beams == 1:
            out = sample_or_greedy(runner, ids, logits, steps, hooks.streamer)
        else:
            out = beam_search(runner, ids, logits, steps, max_new_tokens)
        padding.restore_right_padding(out, original_ids)
        return out if config.return_dict_in_generate else out.sequences


def _make_stopping_criteria(
    config: GenerationConfig, max_length: int, tokenizer: TokenizerLike | None
) -> list[StoppingCriterionFn]:
    """The criteria that the settings ask for."""
    criteria: list[StoppingCriterionFn] = [MaxLengthCriteria(max_length)]
    if config.max_time is not None:
        criteria.append(MaxTimeCriteria(config.max_time))
    if config.stop_strings:
        if tokenizer is None:
            raise BadSetting(
                f"stop_strings is {config.stop_strings!r}, and there is no tokenizer to read answers with: "
                "give generate(tokenizer=processor.tokenizer)"
            )
        criteria.append(StopStringCriteria(tokenizer, config.stop_strings))
    if config.stop_ids:
        criteria.append(EosTokenCriteria(config.stop_ids))
    return criteria


def _requested_extra_output_names(config: GenerationConfig) -> list[str]:
    is_requested_by_output = {
        "attentions": config.output_attentions,
        "hidden_states": config.output_hidden_states,
    }
    return [
        name
        for name, is_asked in is_requested_by_output.items()
        if is_asked and config.return_dict_in_generate
    ]


def _resolve_max_new_tokens(config: GenerationConfig, prompt_length: int) -> int:
    """The largest number of generated ids. Raises BadSetting where the prompt is longer than `max_length`."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if not config.is_field_set("max_length"):
        return config.max_length  # the default counts generated ids
    if config.max_length <= prompt_length:
        raise BadSetting(
            f"max_length is {config.max_length}, and the prompt has {prompt_length} ids, which it counts: "
            "give max_new_tokens, or a greater max_length"
        )
    return config.max_length - prompt_length


def _resolve_min_new_tokens(config: GenerationConfig, prompt_length: int) -> int:
    """The number of generated ids before which no answer ends; below 1: no such limit."""
    return config.min_length - prompt_length if config.min_new_tokens is None else config.min_new_tokens
