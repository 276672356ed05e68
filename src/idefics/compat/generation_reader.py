"""How `generate` reads with a model: the prompts once, then one id more of each row. Chooses no ids.

B prompts, R rows: B times as many as a prompt has answers; T ids so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from idefics.compat.cache import KeyValueCache
from idefics.errors import BadPrompt

# What each step gives beside logits, where it is asked for, and the argument that asks.
EXTRAS = {"attentions": "output_attentions", "hidden_states": "output_hidden_states"}

# What has one place an id: how the next place follows from the last one, (R, 1, ...) -> (R, 1, ...).
GROWING: dict[str, Callable[[Tensor], Tensor]] = {
    "attention_mask": torch.ones_like,
    "position_ids": lambda last: last + 1,
    "image_attention_mask": lambda last: last,  # a new id sees the pictures that the last one saw
}


class Model(Protocol):
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


class Reader:
    """Reads prompts, then one id more of each row, and keeps what it has read.

    With a cache a prompt and its pictures are read once, however many answers it has; without one, all of it is
    read again for each id.

    Attributes:
        cache: what has been read; empty without `use_cache`.
        extras: what each step gave of those names of `EXTRAS` that are asked for.

    Args:
        inputs: what the model is given beside ids: `attention_mask` (B, T), the pictures, perhaps `inputs_embeds`,
            `position_ids`, and `past_key_values` which hold the beginning of the prompts.
        answers: R / B.
    """

    def __init__(
        self, model: Model, inputs: Mapping[str, Any], *, answers: int, use_cache: bool, extras: Sequence[str]
    ) -> None:
        self.model, self.answers, self.use_cache = model, answers, use_cache
        self.inputs = dict(inputs)
        self.cache = KeyValueCache.of(self.inputs.pop("past_key_values", None))
        self.extras: dict[str, list[Any]] = {name: [] for name in extras}

    def prompts(self, ids: Tensor) -> Tensor:
        """(B, T) -> (R, V) logits of the next id of each answer; the answers to one prompt side by side."""
        if not self.use_cache:
            self.inputs = {name: self._repeat(value) for name, value in self.inputs.items()}
            return self._read(input_ids=self._repeat(ids), **self.inputs)
        logits = self._read(**self._unread(ids))
        kept = self.inputs.keys() & {"attention_mask", "position_ids"}
        self.inputs = {name: self._repeat(self.inputs[name]) for name in kept}
        if self.answers > 1:
            self.cache.reorder(self._repeat(torch.arange(len(logits), device=logits.device)))
        for steps in self.extras.values():
            steps[-1] = self._repeat(steps[-1])
        repeated: Tensor = self._repeat(logits)
        return repeated

    def more(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """(R, T) ids, the last of each row not read yet -> (R, V) logits of the next.

        Args:
            rows: (R,) the row that each of them continues; None is its own.
        """
        for name in GROWING.keys() & self.inputs.keys():
            value = self.inputs[name]
            self.inputs[name] = torch.cat((value, GROWING[name](value[:, -1:])), dim=1)
        if not self.use_cache:
            return self._read(input_ids=ids, **self.inputs)
        if rows is not None:
            self.cache.reorder(rows)
        last = {name: value[:, -1:] for name, value in self.inputs.items() if name == "position_ids"}
        return self._read(input_ids=ids[:, -1:], **(self.inputs | last))

    def _unread(self, ids: Tensor) -> dict[str, Any]:
        """What of the prompts is not in the cache yet."""
        inputs = {"input_ids": ids, **self.inputs}
        if "inputs_embeds" in inputs:
            del inputs["input_ids"]
        length, read = inputs.get("inputs_embeds", ids).shape[1], self.cache.get_seq_length()
        if not read or inputs["attention_mask"].shape[1] != length:
            return inputs  # perhaps the caller gave the rest of the prompts, and a mask for all of them
        if length <= read:
            raise BadPrompt(
                f"the prompt has {length} ids, and past_key_values hold {read}: give the ids that follow"
            )
        sees = inputs.get("image_attention_mask")
        if (
            sees is not None and sees.shape[1] != length
        ):  # of the prompt that was read: the cache knows what is seen
            del inputs["image_attention_mask"]
        rest = inputs.keys() & {"input_ids", "inputs_embeds", "position_ids", "image_attention_mask"}
        return inputs | {name: inputs[name][:, read - length :] for name in rest}

    def _read(self, **inputs: Any) -> Tensor:
        asked = {EXTRAS[name]: True for name in self.extras}
        past = self.cache if self.use_cache and self.cache.layers else None
        named = {name: value for name, value in inputs.items() if name != "input_ids"}
        prepared = self.model.prepare_inputs_for_generation(
            inputs.get("input_ids"), past_key_values=past, use_cache=self.use_cache, **named
        )
        out = self.model(**prepared, **asked, logits_to_keep=1, return_dict=True)
        if self.use_cache:
            self.cache = out.past_key_values
        for name, steps in self.extras.items():
            steps.append(out[name])
        logits: Tensor = out.logits
        return logits[:, -1].float().to(inputs["attention_mask"].device)

    def _repeat(self, value: Any) -> Any:
        """Each row as often as a prompt has answers."""
        if self.answers == 1:
            return value
        if isinstance(value, Tensor):
            return value.repeat_interleave(self.answers, dim=0)
        return tuple(map(self._repeat, value)) if isinstance(value, tuple) else value
