"""The outputs of models and of their layers, which are recorded; the inputs of the decoder, which are checked.

Outputs are named values in a fixed order, without those that were not asked for. B rows, T new tokens, L cached and new
tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from idefics.compat.kv_cache import KeyValueCache, LegacyCache
from idefics.errors import BadPrompt


class ModelOutput(dict[str, Any]):
    """A dict whose entries are also attributes and items of a tuple: `out.logits`, `out["logits"]`, `out[0]`.

    The names are the annotations of the class. Values that are None are attributes, but not entries.
    """

    field_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.field_names += tuple(cls.__annotations__)

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), **named: Any) -> None:
        values_by_name = {**dict(values), **named}
        if unknown := values_by_name.keys() - set(self.field_names):
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        super().__init__(
            {name: values_by_name[name] for name in self.field_names if values_by_name.get(name) is not None}
        )

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __getattr__(self, name: str) -> Any:
        if name not in self.field_names:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {', '.join(self)}")
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in order."""
        return tuple(self.values())

    def as_return_type(self, return_dict: bool | None) -> Any:
        """The output itself, or with `return_dict=False` the tuple of its values."""
        return self.to_tuple() if return_dict is False else self


class BaseModelOutputWithPast(ModelOutput):
    """The output of a model without a head. B rows, T new tokens, L cached and new tokens, D width.

    Attributes:
        last_hidden_state: (B, T, D), after the last norm.
        past_key_values: for each layer keys and values, (B, h, L, K) each.
        hidden_states: (B, T, D) each: embeddings, then outputs of the layers, the last one after the norm.
        attentions: (B, H, T, L) for each layer.
        image_hidden_states: image features: (B, images, M, D') in Idefics, (frames, M, D) in inline-image models.
    """

    last_hidden_state: Tensor
    past_key_values: KeyValueCache | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    image_hidden_states: Tensor | None


class BaseModelOutputWithPooling(ModelOutput):
    """The output of a vision tower, or of `get_image_features`. P frames, S patches, D' width of the tower.

    Attributes:
        last_hidden_state: (P, S, D').
        pooler_output: in Idefics (P, D'), the class vector after the last norm; from `get_image_features` for each row
            of the batch the (features, D) that replace its image tokens.
        hidden_states: (P, S, D') each: embeddings, then outputs of the layers.
        attentions: (P, H, S, S) for each layer.
    """

    last_hidden_state: Tensor | None
    pooler_output: Any
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class CausalLMOutputWithPast(ModelOutput):
    """The output of a model with a head. V size of the vocabulary, additional tokens included.

    Attributes:
        loss: a scalar, where labels were given.
        logits: (B, T, V).
        past_key_values, hidden_states, attentions, image_hidden_states: as in `BaseModelOutputWithPast`.
    """

    loss: Tensor | None
    logits: Tensor
    past_key_values: KeyValueCache | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    image_hidden_states: Tensor | None


class IdeficsBaseModelOutputWithPast(BaseModelOutputWithPast):
    """The output of `IdeficsModel.forward`."""


class Idefics2BaseModelOutputWithPast(BaseModelOutputWithPast):
    """The output of `Idefics2Model.forward`."""


class Idefics3BaseModelOutputWithPast(BaseModelOutputWithPast):
    """The output of `Idefics3Model.forward`."""


class SmolVLMBaseModelOutputWithPast(BaseModelOutputWithPast):
    """The output of `SmolVLMModel.forward`."""


class IdeficsCausalLMOutputWithPast(CausalLMOutputWithPast):
    """The output of `IdeficsForVisionText2Text.forward`."""


class Idefics2CausalLMOutputWithPast(CausalLMOutputWithPast):
    """The output of `Idefics2ForConditionalGeneration.forward`."""


class Idefics3CausalLMOutputWithPast(CausalLMOutputWithPast):
    """The output of `Idefics3ForConditionalGeneration.forward`."""


class SmolVLMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """The output of `SmolVLMForConditionalGeneration.forward`."""


@dataclass(frozen=True, slots=True)
class DecoderInputs:
    """The checked inputs of a pass.

    Attributes:
        inputs_embeds: (B, T, D) embeddings of the new tokens.
        input_ids: (B, T), or None where embeddings were given.
        attention_mask: (B, L), true for tokens and false for padding; None: no padding.
        position_ids: (B, T).
        past: the cache; empty without one.
    """

    inputs_embeds: Tensor
    input_ids: Tensor | None
    attention_mask: Tensor | None
    position_ids: Tensor
    past: KeyValueCache


def prepare_decoder_inputs(
    embed: Callable[[Tensor], Tensor],
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past_key_values: KeyValueCache | LegacyCache | None,
) -> DecoderInputs:
    """Checks the text arguments of `forward`, and computes embeddings and positions from them.

    Without `position_ids` the tokens are counted, and padding has position 1.

    Args:
        embed: ids (B, T) -> embeddings (B, T, D).

    Raises:
        BadPrompt: arguments are missing or contradict each other; the message has both shapes.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise BadPrompt("give either input_ids or inputs_embeds, and not both")
    if input_ids is not None:
        if input_ids.dim() != 2 or not input_ids.numel():
            raise BadPrompt(
                f"input_ids are of {tuple(input_ids.shape)}: give (rows, tokens), one token at least"
            )
        x = embed(input_ids)
    else:
        assert inputs_embeds is not None
        x = inputs_embeds
    past = KeyValueCache.from_past(past_key_values)
    batch_size, num_new_tokens = x.shape[:2]
    total_length = past.get_seq_length() + num_new_tokens
    if past.layers and (past_batch_size := past[0].keys.shape[0]) != batch_size:
        raise BadPrompt(
            f"past_key_values have {past_batch_size} rows and this batch {batch_size}: give as many"
        )
    if attention_mask is not None and attention_mask.shape != (batch_size, total_length):
        raise BadPrompt(
            f"attention_mask is of {tuple(attention_mask.shape)}: give ({batch_size}, {total_length}), "
            f"one number for each of {total_length - num_new_tokens} past and {num_new_tokens} new tokens"
        )
    is_token = None if attention_mask is None else attention_mask.to(x.device).bool()
    if position_ids is not None:
        positions = position_ids.to(x.device).expand(batch_size, -1)
    else:
        counted = x.new_ones(batch_size, total_length, dtype=torch.bool) if is_token is None else is_token
        positions = (counted.cumsum(-1) - 1).masked_fill(~counted, 1)[:, -num_new_tokens:]
    if positions.shape[1] != num_new_tokens:
        raise BadPrompt(
            f"position_ids are {positions.shape[1]} a row and the tokens {num_new_tokens}: give as many"
        )
    return DecoderInputs(x, input_ids, is_token, positions, past)


@contextmanager
def record_module_outputs(modules: Iterable[nn.Module]) -> Iterator[list[Any]]:
    """Records the outputs of modules in this context, in the order of their calls."""
    outputs: list[Any] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output)

    hooks = [module.register_forward_hook(record) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
