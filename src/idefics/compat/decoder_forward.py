"""One pass of the decoder: the text arguments of `forward` are checked, packed, and run with a cache.

B rows, T new tokens, L cached and new tokens, D width, N = B * T packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from idefics.compat.kv_cache import KeyValueCache, LegacyCache
from idefics.compat.padded_attention import CrossAttentionInputs, PaddedAttn, make_attention_mask
from idefics.errors import BadPrompt
from idefics.nn.attention import Attn
from idefics.nn.attention_backends import AttentionBackend, EagerAttention


class ForwardOptions(NamedTuple):
    """What one call returns: as its arguments say, else the config."""

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
    """Checks the text arguments of `forward`. Without `position_ids`, tokens are counted; padding has position 1.

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
    if position_ids is not None:
        positions = position_ids.to(x.device).expand(batch_size, -1)
    elif attention_mask is not None:
        is_token = attention_mask.to(x.device).long()
        positions = (is_token.cumsum(-1) - 1).masked_fill(is_token == 0, 1)[:, -num_new_tokens:]
    else:
        positions = torch.arange(total_length - num_new_tokens, total_length, device=x.device).expand(
            batch_size, -1
        )
    if positions.shape[1] != num_new_tokens:
        raise BadPrompt(
            f"position_ids are {positions.shape[1]} a row and the tokens {num_new_tokens}: give as many"
        )
    tokens = None if attention_mask is None else attention_mask.to(x.device).bool()
    return DecoderInputs(x, input_ids, tokens, positions, past)


@dataclass(frozen=True, slots=True)
class DecoderResult:
    """The outputs of a pass.

    Attributes:
        last_hidden_state: (B, T, D) after the last norm.
        cache: keys and values of cached and new tokens; None without `use_cache`.
        hidden_states: (B, T, D) each: embeddings, then outputs of the layers, the last one after the norm.
        attentions: (B, H, T, L) for each layer.
    """

    last_hidden_state: Tensor
    cache: KeyValueCache | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


def run_decoder(
    decode: Callable[[Tensor, Tensor, Attn], Tensor],
    layers: Sequence[nn.Module],
    inputs: DecoderInputs,
    options: ForwardOptions,
    cross_attention_inputs: CrossAttentionInputs | None = None,
    *,
    window: int | None = None,
    backend: AttentionBackend,
    dropout_p: float = 0.0,
) -> DecoderResult:
    """Runs the decoder on new tokens.

    Args:
        decode: embeddings (N, D), positions (N,) and an `Attn` -> hidden states (N, D).
        layers: the decoder's layers, whose outputs are recorded for `output_hidden_states`.
        options: which outputs are returned. For attentions, eager attention is used in place of `backend`. The caller
            sets `has_read_images` of the cache.
        window: sliding window in tokens; None: there is none.
        dropout_p: dropout of attention weights.
    """
    batch_size, num_new_tokens = inputs.inputs_embeds.shape[:2]
    eager_attention = EagerAttention()
    attn = PaddedAttn(
        batch_size,
        make_attention_mask(
            inputs.attention_mask,
            num_new_tokens,
            inputs.past.get_seq_length(),
            window,
            inputs.inputs_embeds.device,
        ),
        inputs.past.layers,
        cross_attention_inputs,
        backend=eager_attention if options.output_attentions else backend,
        dropout_p=dropout_p,
    )
    with record_outputs(layers if options.output_hidden_states else ()) as states:
        last_hidden_state = decode(
            inputs.inputs_embeds.flatten(0, 1), inputs.position_ids.flatten(), attn
        ).unflatten(0, (batch_size, num_new_tokens))
    layer_states = (state.unflatten(0, (batch_size, num_new_tokens)) for state in states[:-1])
    cache = None
    if options.use_cache:
        cached_cross_attention_inputs = cross_attention_inputs and CrossAttentionInputs(
            cross_attention_inputs.cross_kv, cross_attention_inputs.image_mask[:, -1:]
        )
        cache = KeyValueCache(
            [attn.present_kv[layer] for layer in range(len(attn.present_kv))], cached_cross_attention_inputs
        )
    return DecoderResult(
        last_hidden_state,
        cache,
        (inputs.inputs_embeds, *layer_states, last_hidden_state) if options.output_hidden_states else None,
        tuple(eager_attention.attention_weights) if options.output_attentions else None,
    )


@contextmanager
def record_outputs(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Records the outputs of modules in this context, in the order of their calls."""
    outputs: list[Tensor] = []

    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs.append(output)

    hooks = [module.register_forward_hook(record) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
