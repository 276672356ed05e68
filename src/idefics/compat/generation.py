"""`generate`: what the caller gives becomes prompts, settings and criteria; a search chooses ids until all have ended.

B prompts, n answers or beams of each, R = B * n rows, T ids so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from idefics.compat.generation_arguments import (
    merge_generation_configs,
    pop_attention_mask,
    pop_prompt_ids,
    split_generate_kwargs,
)
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.generation_padding import RightPadding, pad_left
from idefics.compat.generation_runner import GenerationRunner
from idefics.compat.generation_strategies import DecodingSteps, GenerateOutput, beam_search, sample
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
from idefics.compat.streamers import BaseStreamer, TokenDecoder
from idefics.errors import BadSetting


class GenerationMixin:
    """Gives a model `generate`. The model is callable as `generation_reader.Model` says."""

    generation_config: GenerationConfig

    @property
    def image_token_ids(self) -> Sequence[int]:
        """The ids whose places are filled with pictures, in their order."""
        return ()

    def prepare_inputs_for_generation(
        self, input_ids: Tensor | None = None, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """What the model is called with at one step of `generate`; a subclass, or peft, may change it.

        Args:
            input_ids: (R, T) ids that have not been read yet.
            past_key_values: what has been read; None at the first step.
            **kwargs: `attention_mask` of all ids, pictures at the first step, `inputs_embeds`, ...
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
        tokenizer: TokenDecoder | None = None,
        use_model_defaults: bool | None = None,
        **kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Continues prompts.

        Greedy unless `do_sample` or `num_beams` is set; draws come from torch's own generator, which
        `torch.manual_seed` seeds. A setting is looked for in `kwargs`, `generation_config`, the model's own
        `generation_config`, and has a default else. Prompts may be padded on either side: padding on the right stands
        before the prompt while ids are chosen, where processors and criteria see it, and where it was in what is given
        back; answers follow the last place of the longest prompt.

        Args:
            inputs: (B, T) ids of the prompts; `input_ids` is another name for it. Without any, prompts are
                `bos_token_id`.
            generation_config: settings, of this package or of transformers.
            logits_processor: called with ids (R, T) and scores (R, V) before each choice; gives other scores.
            stopping_criteria: called with ids (R, T) and the scores so far after each choice; says what ends.
            prefix_allowed_tokens_fn: called with the index of a prompt and the ids (T,) so far; gives the ids that
                may follow.
            synced_gpus, assistant_model: as `generation_arguments` has it.
            streamer: is given the prompt's ids, then each id as it is chosen, and told when there are no more:
                also by an error. For one answer without beams.
            negative_prompt_ids, negative_prompt_attention_mask: (B, T'), what `guidance_scale` draws away from.
            tokenizer: decodes ids, for `stop_strings`.
            use_model_defaults: False: settings that `generation_config` does not set have the defaults of the class,
                not those of the model.
            **kwargs: settings of `GenerationConfig`, and what the model's call takes: `attention_mask`, pictures.

        Returns:
            (R, T + longest answer) ids; or with `return_dict_in_generate` an object whose `sequences` they are.

        Raises:
            UnknownArgument: neither the settings nor the model have it.
            BadSetting: a setting out of its range, or two that contradict each other.
            BadPrompt: ids of a wrong shape, or nothing but padding.
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
            answers = self._generate(
                inputs,
                config,
                model_inputs,
                tokenizer=tokenizer,
                logits_processors=logits_processor or (),
                criteria=stopping_criteria or (),
                streamer=streamer,
                prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
                negative_prompt_ids=negative_prompt_ids,
                negative_prompt_attention_mask=negative_prompt_attention_mask,
            )
        finally:  # whoever waits for the text shall not wait for ever
            if streamer is not None:
                streamer.end()
        return answers

    def _generate(
        self: Any,
        inputs: Tensor | None,
        config: GenerationConfig,
        model_inputs: dict[str, Any],
        *,
        tokenizer: TokenDecoder | None,
        logits_processors: Sequence[LogitsProcessorFn],
        criteria: Sequence[StoppingCriterionFn],
        streamer: BaseStreamer | None,
        prefix_allowed_tokens_fn: PrefixAllowedTokensFn | None,
        negative_prompt_ids: Tensor | None,
        negative_prompt_attention_mask: Tensor | None,
    ) -> Tensor | GenerateOutput:
        ids = pop_prompt_ids(inputs, model_inputs, config)
        original_ids, mask = ids, pop_attention_mask(ids, model_inputs, config)
        padding = RightPadding(mask).check(ids, model_inputs, self.image_token_ids)
        negative_prompt_ids, negative_prompt_attention_mask = pad_left(
            negative_prompt_ids, negative_prompt_attention_mask
        )
        ids, mask, model_inputs = (
            padding.to_left(ids),
            padding.to_left(mask),
            padding.inputs_to_left(model_inputs),
        )
        prompt_length = (
            model_inputs["inputs_embeds"].shape[1] if "inputs_embeds" in model_inputs else ids.shape[1]
        )
        max_new_tokens = _resolve_max_new_tokens(config, prompt_length)
        num_answers = max(config.num_beams, config.num_return_sequences)
        runner = GenerationRunner(
            self,
            {**model_inputs, "attention_mask": mask},
            answers_per_prompt=num_answers,
            use_cache=config.use_cache
            or not model_inputs.keys().isdisjoint({"inputs_embeds", "past_key_values"}),
            output_names=_requested_outputs(config),
        )
        if streamer is not None:
            streamer.put(original_ids.repeat_interleave(num_answers, dim=0).cpu())

        def repeat_rows(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(num_answers, dim=0)

        min_new_tokens = (
            config.min_length - prompt_length if config.min_new_tokens is None else config.min_new_tokens
        )
        prompt_starts = mask.ne(0).int().argmax(1) if mask.shape == ids.shape else mask.new_zeros(len(mask))
        logits = runner.prefill(ids)  # (R, V)
        context = GenerateContext(
            model=self,
            prompt_ids=repeat_rows(ids),
            prompt_starts=repeat_rows(prompt_starts),
            vocab_size=logits.shape[1],
            max_length=ids.shape[1] + max_new_tokens,
            min_length=ids.shape[1] + min_new_tokens,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            negative_prompt_ids=None if negative_prompt_ids is None else repeat_rows(negative_prompt_ids),
            negative_prompt_mask=None
            if negative_prompt_attention_mask is None
            else repeat_rows(negative_prompt_attention_mask),
        )
        stopping_criteria = [*_make_stopping_criteria(config, context.max_length, tokenizer), *criteria]
        steps = DecodingSteps(
            config,
            make_logits_processors(config, logits_processors, context),
            StoppingCriteriaList(stopping_criteria),
        )
        out: GenerateOutput
        if config.num_beams == 1:
            out = sample(runner, ids, logits, steps, streamer)
        else:
            out = beam_search(runner, ids, logits, steps, max_new_tokens)
        padding.restore_right_padding(out, original_ids)
        return out if config.return_dict_in_generate else out.sequences


def _make_stopping_criteria(
    config: GenerationConfig, max_length: int, tokenizer: TokenDecoder | None
) -> list[StoppingCriterionFn]:
    """What ends an answer by the settings."""
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


def _requested_outputs(config: GenerationConfig) -> list[str]:
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
    """How many ids may be generated after so many of the prompt."""
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
