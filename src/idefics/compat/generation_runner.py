"""Runs the model for `generate`: prefill of the prompts, then a decode step for each new id. Chooses no ids.

B prompts, n answers of each, R = B * n rows, T ids so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from idefics.compat.kv_cache import KeyValueCache
from idefics.errors import BadPrompt

# Outputs of a step other than logits -> the argument of the model that asks for them.
ARGUMENT_BY_OUTPUT = {"attentions": "output_attentions", "hidden_states": "output_hidden_states"}

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
        inputs: inputs of the model other than ids: `attention_mask` (B, T), images, and possibly `inputs_embeds`,
            `position_ids`, and `past_key_values` with the beginning of the prompts.
        answers_per_prompt: n.
        output_names: the names of `ARGUMENT_BY_OUTPUT` to be recorded.

    Attributes:
        cache: keys and values of what has been read; empty without `use_cache`.
        extra_outputs: name -> the output of each step.
    """

    def __init__(
        self,
        model: GenerativeModel,
        inputs: Mapping[str, Any],
        *,
        answers_per_prompt: int,
        use_cache: bool,
        output_names: Sequence[str],
    ) -> None:
        self.model, self.answers_per_prompt, self.use_cache = model, answers_per_prompt, use_cache
        self.model_inputs = dict(inputs)
        self.cache = KeyValueCache.from_past(self.model_inputs.pop("past_key_values", None))
        self.extra_outputs: dict[str, list[Any]] = {name: [] for name in output_names}

    def prefill(self, ids: Tensor) -> Tensor:
        """Reads the prompts: ids (B, T) -> logits (R, V) of the first id of each answer; n rows for each prompt."""
        if not self.use_cache:
            self.model_inputs = {name: self._repeat_rows(value) for name, value in self.model_inputs.items()}
            return self._forward_last_logits(input_ids=self._repeat_rows(ids), **self.model_inputs)
        logits = self._forward_last_logits(**self._uncached_inputs(ids))
        repeated_names = self.model_inputs.keys() & {"attention_mask", "position_ids"}
        self.model_inputs = {name: self._repeat_rows(self.model_inputs[name]) for name in repeated_names}
        if self.answers_per_prompt > 1:
            self.cache.reorder_cache(self._repeat_rows(torch.arange(len(logits), device=logits.device)))
        for steps in self.extra_outputs.values():
            steps[-1] = self._repeat_rows(steps[-1])
        repeated: Tensor = self._repeat_rows(logits)
        return repeated

    def decode_step(self, ids: Tensor, beam_idx: Tensor | None = None) -> Tensor:
        """Reads the last of ids (R, T) -> logits (R, V) of the next.

        Args:
            beam_idx: (R,) the row of the last step that each row continues; None: the same row.
        """
        for name in NEXT_VALUE_BY_INPUT.keys() & self.model_inputs.keys():
            value = self.model_inputs[name]
            self.model_inputs[name] = torch.cat((value, NEXT_VALUE_BY_INPUT[name](value[:, -1:])), dim=1)
        if not self.use_cache:
            return self._forward_last_logits(input_ids=ids, **self.model_inputs)
        if beam_idx is not None:
            self.cache.reorder_cache(beam_idx)
        last_positions = {
            name: value[:, -1:] for name, value in self.model_inputs.items() if name == "position_ids"
        }
        return self._forward_last_logits(input_ids=ids[:, -1:], **(self.model_inputs | last_positions))

    def _uncached_inputs(self, ids: Tensor) -> dict[str, Any]:
        """The inputs of the prompts without the ids that are in the cache."""
        inputs = {"input_ids": ids, **self.model_inputs}
        if "inputs_embeds" in inputs:
            del inputs["input_ids"]
        length, num_cached_tokens = inputs.get("inputs_embeds", ids).shape[1], self.cache.get_seq_length()
        if not num_cached_tokens or inputs["attention_mask"].shape[1] != length:
            return inputs  # the caller gave only the ids that follow, and a mask for all
        if length <= num_cached_tokens:
            raise BadPrompt(
                f"the prompt has {length} ids, and past_key_values hold {num_cached_tokens}: give the ids that follow"
            )
        image_mask = inputs.get("image_attention_mask")
        if image_mask is not None and image_mask.shape[1] != length:  # of the cached ids: the cache has it
            del inputs["image_attention_mask"]
        sliced_names = inputs.keys() & {"input_ids", "inputs_embeds", "position_ids", "image_attention_mask"}
        return inputs | {name: inputs[name][:, num_cached_tokens - length :] for name in sliced_names}

    def _forward_last_logits(self, **inputs: Any) -> Tensor:
        output_flags = {ARGUMENT_BY_OUTPUT[name]: True for name in self.extra_outputs}
        past_key_values = self.cache if self.use_cache and self.cache.layers else None
        named_inputs = {name: value for name, value in inputs.items() if name != "input_ids"}
        prepared = self.model.prepare_inputs_for_generation(
            inputs.get("input_ids"), past_key_values=past_key_values, use_cache=self.use_cache, **named_inputs
        )
        out = self.model(**prepared, **output_flags, logits_to_keep=1, return_dict=True)
        if self.use_cache:
            self.cache = out.past_key_values
        for name, steps in self.extra_outputs.items():
            steps.append(out[name])
        logits: Tensor = out.logits
        return logits[:, -1].float().to(inputs["attention_mask"].device)

    def _repeat_rows(self, value: Any) -> Any:
        """Repeats each row of a tensor, or of the tensors in a tuple, n times."""
        if self.answers_per_prompt == 1:
            return value
        if isinstance(value, Tensor):
            return value.repeat_interleave(self.answers_per_prompt, dim=0)
        return tuple(map(self._repeat_rows, value)) if isinstance(value, tuple) else value
