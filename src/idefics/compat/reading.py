"""From the arguments of `forward` to a pass through the decoder.

B rows, T new tokens, L tokens with those of the past, D width, N = B * T packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from idefics.compat.cache import KeyValueCache, Legacy
from idefics.errors import BadPrompt
from idefics.nn.attention import Attn
from idefics.nn.kernels import Explicit, Kernel
from idefics.nn.padded import Beside, PaddedAttn, sight


@dataclass(frozen=True, slots=True)
class Rows:
    """What a batch says, checked.

    Attributes:
        x: (B, T, D) embeddings of the new tokens.
        ids: (B, T), or None where embeddings were given in their place.
        tokens: (B, L), true where a token stands and false for padding; None: no padding.
        positions: (B, T).
        past: the tokens before them; empty where there are none.
    """

    x: Tensor
    ids: Tensor | None
    tokens: Tensor | None
    positions: Tensor
    past: KeyValueCache


def rows_of(
    embed: Callable[[Tensor], Tensor],
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past_key_values: KeyValueCache | Legacy | None,
) -> Rows:
    """The arguments that every model has. Positions count the tokens of a row; padding stands at 1, as released."""
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
    past = KeyValueCache.of(past_key_values)
    rows, new = x.shape[:2]
    length = past.get_seq_length() + new
    if past.layers and (known := past[0].keys.shape[0]) != rows:
        raise BadPrompt(f"past_key_values have {known} rows and this batch {rows}: give as many")
    if attention_mask is not None and attention_mask.shape != (rows, length):
        raise BadPrompt(
            f"attention_mask is of {tuple(attention_mask.shape)}: give ({rows}, {length}), "
            f"one number for each of {length - new} past and {new} new tokens"
        )
    if position_ids is not None:
        positions = position_ids.to(x.device).expand(rows, -1)
    elif attention_mask is not None:
        stands = attention_mask.to(x.device).long()
        positions = (stands.cumsum(-1) - 1).masked_fill(stands == 0, 1)[:, -new:]
    else:
        positions = torch.arange(length - new, length, device=x.device).expand(rows, -1)
    if positions.shape[1] != new:
        raise BadPrompt(f"position_ids are {positions.shape[1]} a row and the tokens {new}: give as many")
    tokens = None if attention_mask is None else attention_mask.to(x.device).bool()
    return Rows(x, input_ids, tokens, positions, past)


@dataclass(frozen=True, slots=True)
class Pass:
    """What came of it: `hidden` (B, T, D) after the last norm, and what was asked for."""

    hidden: Tensor
    cache: KeyValueCache | None
    states: tuple[Tensor, ...] | None
    weights: tuple[Tensor, ...] | None


def read(
    decode: Callable[[Tensor, Tensor, Attn], Tensor],
    layers: Sequence[nn.Module],
    rows: Rows,
    beside: Beside | None = None,
    *,
    window: int | None = None,
    kernel: Kernel,
    drop: float = 0.0,
    keeps: bool,
    wants_states: bool,
    wants_weights: bool,
) -> Pass:
    """One pass through the decoder.

    Args:
        decode: (N, D), (N,) and a way to attend -> (N, D).
        layers: the decoder's, for `wants_states`.
        keeps: whether there shall be a cache. The caller says whether pictures were read (`has_pictures`).
        wants_weights: attention is then computed weight by weight, whatever the kernel.
    """
    batch, new = rows.x.shape[:2]
    explicit = Explicit()
    attn = PaddedAttn(
        batch,
        sight(rows.tokens, new, rows.past.get_seq_length(), window, rows.x.device),
        rows.past.layers,
        beside,
        kernel=explicit if wants_weights else kernel,
        drop=drop,
    )
    with outputs_of(layers if wants_states else ()) as states:
        hidden = decode(rows.x.flatten(0, 1), rows.positions.flatten(), attn).unflatten(0, (batch, new))
    between = (state.unflatten(0, (batch, new)) for state in states[:-1])
    cache = None
    if keeps:
        seen = beside and Beside(beside.memory, beside.sees[:, -1:])
        cache = KeyValueCache([attn.present[layer] for layer in range(len(attn.present))], seen)
    return Pass(
        hidden,
        cache,
        (rows.x, *between, hidden) if wants_states else None,
        tuple(explicit.weights) if wants_weights else None,
    )


@contextmanager
def outputs_of(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """What each module gives while this lasts, in the order of their calls."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs.append(output)

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
