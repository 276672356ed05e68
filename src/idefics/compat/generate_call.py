"""One call of `generate`: its settings and prompts; and the runner of the model, which chooses no ids.

B prompts, n answers or beams of each, R = B * n rows, T ids so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from idefics.compat.generation_callbacks import BaseStreamer, StoppingCriterionFn, TokenizerLike
from idefics.compat.generation_config import GenerationConfig
from idefics.compat.generation_padding import LeftPaddedPrompts
from idefics.compat.kv_cache import KeyValueCache
from idefics.errors import BadPrompt, BadSetting

# Outputs of the model that are recorded as they are.
RECORDED_MODEL_OUTPUTS = {"attentions", "hidden_states"}

# Inputs with a value for each id -> the value of the next id from that of the last, (R, 1, ...) -> (R, 1, ...).
NEXT_VALUE_BY_INPUT: dict[str, Callable[[Tensor], Tensor]] = {
    "attention_mask": torch.ones_like,
    "position_ids": lambda last: last + 1,
    "image_attention_mask": lambda last: last,  # a new id attends to the images of the last
}


class GenerativeModel(Protocol):
    """A model that `generate` can run.

    A call takes `input_ids` (R, T) or `inputs_embeds`, `attention_mask` (R, cached ids + T), `past_key_values`,
    `use_cache`, `logits_to_keep` and the images of the prompts. It returns an object with `logits`
    (R, logits_to_keep, V), `past_key_values` and, where asked for, `attentions` and `hidden_states`. The cache holds
    the images too: later calls do not give them.
    """

    forward: Callable[..., Any]
    prepare_inputs_for_generation: Callable[..., dict[str, Any]]

    def __call__(self, **inputs: Any) -> Any:
        """Runs the model once."""
        ...


class GenerationRunner:
    """Runs a model on prompts and then on one more id of each row, and holds the cache.

    With a cache, a prompt and its images are read once for all its answers; without one, all is read again for each id.

    Args:
        prompts: ids and other inputs; `past_key_values` among them have the beginning of the prompts.
        answers_per_prompt: n.
        recorded_names: those of "scores", "logits", "attentions" and "hidden_states" that are recorded.

    Attributes:
        prompt_ids, prompt_starts: ids (R, T) of the prompt of each row, and the position (R,) of its first token.
        cache: keys and values of what has been read; empty without `use_cache`.
        records: name -> the value of each step.
    """

    def __init__(
        self,
        model: GenerativeModel,
        prompts: LeftPaddedPrompts,
        *,
        answers_per_prompt: int,
        use_cache: bool,
        recorded_names: Sequence[str] = (),
    ) -> None:
        self.model, self.prompts, self.use_cache = model, prompts, use_cache
        self.answers_per_prompt = answers_per_prompt
        self.prompt_ids: Tensor = self.repeat_rows(prompts.ids)
        self.prompt_starts: Tensor = self.repeat_rows(prompts.starts)
        self.model_inputs: dict[str, Any] = {**prompts.model_inputs, "attention_mask": prompts.mask}
        self.cache = KeyValueCache.from_past(self.model_inputs.pop("past_key_values", None))
        self.records: dict[str, list[Any]] = {name: [] for name in recorded_names}

    def prefill(self) -> Tensor:
        """Reads the prompts: returns the logits (R, V) of the first id of each answer."""
        logits = self._forward_last_logits(**self._uncached_inputs())
        if self.use_cache:  # which has the images
            repeated_names = self.model_inputs.keys() & {"attention_mask", "position_ids"}
            self.model_inputs = {name: self.model_inputs[name] for name in repeated_names}
        self.model_inputs = {name: self.repeat_rows(value) for name, value in self.model_inputs.items()}
        if self.answers_per_prompt > 1:
            self.cache.reorder_cache(self.repeat_rows(torch.arange(len(logits), device=logits.device)))
        self.records = {name: list(map(self.repeat_rows, steps)) for name, steps in self.records.items()}
        repeated: Tensor = self.repeat_rows(logits)
        return repeated

    def decode_step(self, ids: Tensor, beam_idx: Tensor | None = None) -> Tensor:
        """Reads the last of each row's ids (R, T): returns the logits (R, V) of the next.

        Args:
            beam_idx: (R,) the row of the last step that each row continues; None: the same row.
        """
        for name in NEXT_VALUE_BY_INPUT.keys() & self.model_inputs.keys():
            value = self.model_inputs[name]
            self.model_inputs[name] = torch.cat((value, NEXT_VALUE_BY_INPUT[name](value[:, -1:])), dim=1)
        inputs = dict(self.model_inputs)
        if self.use_cache:
            ids = ids[:, -1:]
            if beam_idx is not None:
                self.cache.reorder_cache(beam_idx)
            if "position_ids" in inputs:
                inputs["position_ids"] = inputs["position_ids"][:, -1:]
        return self._forward_last_logits(ids, **inputs)

    def record_step_value(self, name: str, value: Any) -> None:
        """Records the value of a step, if values of this name are recorded."""
        if name in self.records:
            self.records[name].append(value)

    def recorded_outputs(self) -> dict[str, Any]:
        """The cache and the recorded values, as fields of the output of `generate`."""
        outputs: dict[str, Any] = {name: tuple(steps) for name, steps in self.records.items()}
        return outputs | {"past_key_values": self.cache if self.use_cache else None}

    def _uncached_inputs(self) -> dict[str, Any]:
        """The inputs of the prompts, without the ids that the given cache has already."""
        inputs = {"input_ids": self.prompts.ids, **self.model_inputs}
        if "inputs_embeds" in inputs:
            inputs["input_ids"] = None
        length = inputs.get("inputs_embeds", self.prompts.ids).shape[1]
        num_cached_tokens = self.cache.get_seq_length()
        if not num_cached_tokens or inputs["attention_mask"].shape[1] != length:
            return inputs  # the caller gave only the ids that follow, and a mask for all
        if length <= num_cached_tokens:
            raise BadPrompt(
                f"the prompt has {length} ids, and past_key_values hold {num_cached_tokens}: give the ids that follow"
            )
        for name in ("input_ids", "inputs_embeds", "position_ids", "image_attention_mask"):
            if (value := inputs.get(name)) is None:
                continue
            if name == "image_attention_mask" and value.shape[1] != length:
                del inputs[name]  # of the cached ids: the cache has it
            else:
                inputs[name] = value[:, num_cached_tokens - length :]
        return inputs

    def _forward_last_logits(self, input_ids: Tensor | None, **inputs: Any) -> Tensor:
        """Runs the model on new ids, and records the outputs that were asked for; returns (R, V) float32 logits."""
        prepared = self.model.prepare_inputs_for_generation(
            input_ids,
            past_key_values=self.cache if self.use_cache and self.cache.layers else None,
            use_cache=self.use_cache,
            **inputs,
        )
        recorded_names = self.records.keys() & RECORDED_MODEL_OUTPUTS
        output_flags = {f"output_{name}": True for name in recorded_names}
        out = self.model(**prepared, **output_flags, logits_to_keep=1, return_dict=True)
        if self.use_cache:
            self.cache = out.past_key_values
        logits: Tensor = out.logits[:, -1].float().to(inputs["attention_mask"].device)
        self.record_step_value("logits", logits)
        for name in recorded_names:
            self.record_step_value(name, out[name])
        return logits

    def repeat_rows(self, value: Any) -> Any:
        """Repeats each row of a tensor, or of the tensors in a tuple, for each of a prompt's n answers."""
        if self.answers_per_prompt == 1:
            return value
        if isinstance(value, Tensor):
            return value.repeat_interleave(self.answers_per_prompt, dim=0)
        return tuple(map(self.repeat_rows, value)) if isinstance(value, tuple) else value


LogitsProcessorFn = Callable[[Tensor, Tensor], Tensor]  # (R, T) ids, (R, V) scores -> (R, V) scores
# Index of the prompt, ids (T,) so far -> ids that may follow.
PrefixAllowedTokensFn = Callable[[int, Tensor], Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateCall:
    """The checked arguments of one call of `GenerationMixin.generate`, which documents them.

    Attributes:
        runner: the model and the prompts.

    Raises:
        BadSetting: a streamer is given for a beam search, or the prompt is longer than `max_length`.
    """

    config: GenerationConfig
    runner: GenerationRunner
    streamer: BaseStreamer | None
    tokenizer: TokenizerLike | None
    logits_processors: Sequence[LogitsProcessorFn]
    stopping_criteria: Sequence[StoppingCriterionFn]
    prefix_allowed_tokens_fn: PrefixAllowedTokensFn | None
    negative_prompt_ids: Tensor | None
    negative_prompt_attention_mask: Tensor | None

    def __post_init__(self) -> None:
        if self.streamer is not None and self.config.num_beams > 1:
            raise BadSetting(
                f"num_beams is {self.config.num_beams}, and beams are not known before the end: "
                "stream with num_beams=1"
            )
        if self.max_new_tokens < 1:
            raise BadSetting(
                f"max_length is {self.config.max_length}, and the prompt has {self.prompt_length} ids, "
                "which it counts: give max_new_tokens, or a greater max_length"
            )

    @property
    def prompt_length(self) -> int:
        """The number of ids, or embeddings, of a prompt."""
        prompts = self.runner.prompts
        length: int = prompts.model_inputs.get("inputs_embeds", prompts.ids).shape[1]
        return length

    @property
    def max_new_tokens(self) -> int:
        """The largest number of generated ids."""
        config = self.config
        if config.max_new_tokens is not None:
            return config.max_new_tokens
        # The default of `max_length` counts generated ids.
        return config.max_length - (self.prompt_length if config.is_field_set("max_length") else 0)

    @property
    def min_new_tokens(self) -> int:
        """The number of generated ids before which no answer ends; below 1: no such limit."""
        config = self.config
        return (
            config.min_length - self.prompt_length if config.min_new_tokens is None else config.min_new_tokens
        )
