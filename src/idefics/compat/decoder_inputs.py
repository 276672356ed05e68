"""The inputs of the decoder, which are checked, and the outputs of its layers, which are recorded.

B rows, T new tokens, L cached and new tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from idefics.compat.kv_cache import KeyValueCache, LegacyCache
from idefics.errors import BadPrompt


class ForwardOptions(NamedTuple):
    """Which outputs one call of `forward` returns: its arguments, or the config's values where they are None."""

    use_cache: bool
    output_attentions: bool
    output_hidden_states: bool
    return_dict: bool


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
