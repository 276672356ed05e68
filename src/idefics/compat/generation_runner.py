"""How `generate` reads with a model: the prompts once, then one id more of each row. Chooses no ids.

B prompts, R rows: B times as many as a prompt has answers; T ids so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from idefics.compat.kv_cache import KeyValueCache
from idefics.errors import BadPrompt

# What each step gives beside logits, where it is asked for, and the argument that asks.
ARGUMENT_BY_OUTPUT = {"attentions": "output_attentions", "hidden_states": "output_hidden_states"}

# What has one place an id: how the next place follows from the last one, (R, 1, ...) -> (R, 1, ...).
NEXT_VALUE_BY_INPUT: dict[str, Callable[[Tensor], Tensor]] = {
    "attention_mask": torch.ones_like,
    "position_ids": lambda last: last + 1,
    "image_attention_mask": lambda last: last,  # a new id sees the pictures that the last one saw
}


class GenerativeModel(Protocol):
    """What `generate` asks of a model.

    A call takes `input_ids` (R, T) or `inputs_embeds`, `attention_mask` (R, ids in the cache + T),
    `past_key_values`, `use_cache`, `logits_to_keep` and the pictures of the prompts. It gives an object with
    `logits` (R, logits_to_keep, V), `past_key_values` and, where asked for, `attentions` and `hidden_states`.
    The cache then holds what the pictures contributed too: a later call gives none of them.
    """

    forward: Callable[..., Any]
    prepare_inputs_for_generation: Callable[..., dict[str, Any]]

    def __call__(self, **inputs: Any) -> Any:
        """One pass."""
        ...


class GenerationRunner:
    """Reads prompts, then one id more of each row, and keeps what it has read.

    With a cache a prompt and its pictures are read once, however many answers it has; without one, all of it is
    read again for each id.

    Attributes:
        cache: what has been read; empty without `use_cache`.
        output_names: what each step gave of those names of `EXTRAS` that are asked for.

    Args:
        model_inputs: what the model is given beside ids: `attention_mask` (B, T), the pictures, perhaps `inputs_embeds`,
            `position_ids`, and `past_key_values` which hold the beginning of the prompts.
        answers_per_prompt: R / B.
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
        """(B, T) -> (R, V) logits of the next id of each answer; the answers to one prompt side by side."""
        if not self.use_cache:
            self.model_inputs = {name: self._repeat_rows(value) for name, value in self.model_inputs.items()}
            return self._forward(input_ids=self._repeat_rows(ids), **self.model_inputs)
        logits = self._forward(**self._uncached_inputs(ids))
        repeated_names = self.model_inputs.keys() & {"attention_mask", "position_ids"}
        self.model_inputs = {name: self._repeat_rows(self.model_inputs[name]) for name in repeated_names}
        if self.answers_per_prompt > 1:
            self.cache.reorder_cache(self._repeat_rows(torch.arange(len(logits), device=logits.device)))
        for steps in self.extra_outputs.values():
            steps[-1] = self._repeat_rows(steps[-1])
        repeated: Tensor = self._repeat_rows(logits)
        return repeated

    def decode_step(self, ids: Tensor, beam_idx: Tensor | None = None) -> Tensor:
        """(R, T) ids, the last of each row not read yet -> (R, V) logits of the next.

        Args:
            beam_idx: (R,) the row that each of them continues; None is its own.
        """
        for name in NEXT_VALUE_BY_INPUT.keys() & self.model_inputs.keys():
            value = self.model_inputs[name]
            self.model_inputs[name] = torch.cat((value, NEXT_VALUE_BY_INPUT[name](value[:, -1:])), dim=1)
        if not self.use_cache:
            return self._forward(input_ids=ids, **self.model_inputs)
        if beam_idx is not None:
            self.cache.reorder_cache(beam_idx)
        last_positions = {
            name: value[:, -1:] for name, value in self.model_inputs.items() if name == "position_ids"
        }
        return self._forward(input_ids=ids[:, -1:], **(self.model_inputs | last_positions))

    def _uncached_inputs(self, ids: Tensor) -> dict[str, Any]:
        """What of the prompts is not in the cache yet."""
        inputs = {"input_ids": ids, **self.model_inputs}
        if "inputs_embeds" in inputs:
            del inputs["input_ids"]
        length, num_cached_tokens = inputs.get("inputs_embeds", ids).shape[1], self.cache.get_seq_length()
        if not num_cached_tokens or inputs["attention_mask"].shape[1] != length:
            return inputs  # perhaps the caller gave the rest of the prompts, and a mask for all of them
        if length <= num_cached_tokens:
            raise BadPrompt(
                f"the prompt has {length} ids, and past_key_values hold {num_cached_tokens}: give the ids that follow"
            )
        image_mask = inputs.get("image_attention_mask")
        if (
            image_mask is not None and image_mask.shape[1] != length
        ):  # of the prompt that was read: the cache knows what is seen
            del inputs["image_attention_mask"]
        sliced_names = inputs.keys() & {"input_ids", "inputs_embeds", "position_ids", "image_attention_mask"}
        return inputs | {name: inputs[name][:, num_cached_tokens - length :] for name in sliced_names}

    def _forward(self, **inputs: Any) -> Tensor:
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
        """Each row as often as a prompt has answers."""
        if self.answers_per_prompt == 1:
            return value
        if isinstance(value, Tensor):
            return value.repeat_interleave(self.answers_per_prompt, dim=0)
        return tuple(map(self._repeat_rows, value)) if isinstance(value, tuple) else value
