"""`generate`: sorts the caller's arguments, and generates answers.

B prompts, n answers or beams of each, R = B * n rows, T ids so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from idefics.compat.generate_call import (
    GenerateCall,
    GenerationRunner,
    LogitsProcessorFn,
    PrefixAllowedTokensFn,
)
from idefics.compat.generation_arguments import (
    merge_generation_configs,
    pop_or_make_attention_mask,
    pop_prompt_ids,
    split_generate_kwargs,
)
from idefics.compat.generation_callbacks import BaseStreamer, StoppingCriterionFn, TokenizerLike
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.generation_padding import LeftPaddedPrompts
from idefics.compat.generation_strategies import GenerateOutput, generate_answers


class GenerationMixin:
    """Gives a model transformers' `generate`: a loop in plain torch, not the engine.

    The model has what `GenerativeModel` lists.
    """

    generation_config: GenerationConfig

    @property
    def image_token_ids(self) -> Sequence[int]:
        """The ids of image tokens, whose embeddings are replaced by image features; empty: the model has none."""
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
        with ExitStack() as stack:
            if streamer is not None:  # a thread that waits for the text must not wait for ever
                stack.callback(streamer.end)
            settings, model_inputs = split_generate_kwargs(
                self, {**kwargs, "synced_gpus": synced_gpus, "assistant_model": assistant_model}
            )
            config = merge_generation_configs(
                self.generation_config, generation_config, settings, use_model_defaults=use_model_defaults
            )
            call = GenerateCall(
                config=config,
                runner=self._make_runner(inputs, config, model_inputs),
                streamer=streamer,
                tokenizer=tokenizer,
                logits_processors=logits_processor or (),
                stopping_criteria=stopping_criteria or (),
                prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
                negative_prompt_ids=negative_prompt_ids,
                negative_prompt_attention_mask=negative_prompt_attention_mask,
            )
            out = generate_answers(call)
            return out if config.return_dict_in_generate else out.sequences

    def _make_runner(
        self: Any, inputs: Tensor | None, config: GenerationConfig, model_inputs: dict[str, Any]
    ) -> GenerationRunner:
        """Makes the runner of a call: takes the prompts out of the arguments, and moves their padding to the left."""
        ids = pop_prompt_ids(inputs, model_inputs, config)
        mask = pop_or_make_attention_mask(ids, model_inputs, config)
        recorded_names = [
            name
            for name in ("scores", "logits", "attentions", "hidden_states")
            if config.return_dict_in_generate and config.to_dict()[f"output_{name}"]
        ]
        return GenerationRunner(
            self,
            LeftPaddedPrompts(ids, mask, model_inputs, self.image_token_ids),
            answers_per_prompt=max(config.num_beams, config.num_return_sequences),
            use_cache=config.use_cache
            or not model_inputs.keys().isdisjoint(("inputs_embeds", "past_key_values")),
            recorded_names=recorded_names,
        )
