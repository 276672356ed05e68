"""Moves padding on the right of prompts to the left for `generate`, and back in what it returns.

B prompts, n answers or beams of each, R = B * n rows, T ids of a prompt, L >= T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from idefics.compat.kv_cache import KeyValueCache
from idefics.compat.modeling_outputs import ModelOutput
from idefics.compat.padded_attention import LayerKV
from idefics.errors import BadPrompt

TOKEN_ALIGNED_INPUTS = ("inputs_embeds", "position_ids", "image_attention_mask")
# The dimensions of an output that are token positions.
TOKEN_DIMS_BY_OUTPUT = {"hidden_states": (1,), "attentions": (2, 3)}


class LeftPaddedPrompts:
    """Prompts without padding on the right: rows that end in it are rotated.

    Args:
        ids: (B, T); T is 0 where only embeddings are given.
        mask: (B, T), 0 for padding; longer with a cache.
        model_inputs: other inputs of the model, those rotated that have a value for each token.
        image_token_ids: ids of placeholders for image features.

    Attributes:
        original_ids: (B, T) ids as they were given.
        ids, mask, model_inputs: with all padding on the left.
        starts: (B,) position of the first token after the padding.

    Raises:
        BadPrompt: a row is only padding, or padding cannot be moved, as there is a cache or it has image tokens.
    """

    def __init__(
        self,
        ids: Tensor,
        mask: Tensor,
        model_inputs: Mapping[str, Any],
        image_token_ids: Sequence[int] = (),
    ) -> None:
        is_token = mask.ne(0)
        if not is_token.any(1).all():
            row = int((~is_token.any(1)).int().argmax())
            raise BadPrompt(
                f"row {row} of attention_mask has no 1: give every prompt at least one id that is not padding"
            )
        self.padded_length = mask.shape[1]
        positions = torch.arange(self.padded_length, device=mask.device)
        num_padding = is_token.flip(1).int().argmax(1)[:, None]  # (B, 1)
        self.has_right_padding = bool(num_padding.any())
        if self.has_right_padding:
            is_padding = positions >= self.padded_length - num_padding
            _refuse_immovable_padding(ids, is_padding, model_inputs, image_token_ids)
        self._sources_to_left = (positions - num_padding) % self.padded_length
        self._sources_to_right = (positions + num_padding) % self.padded_length
        self.original_ids = ids
        self.ids, self.mask = self._move_padding_to_left(ids), self._move_padding_to_left(mask)
        self.model_inputs = {
            name: self._move_padding_to_left(value) if name in TOKEN_ALIGNED_INPUTS else value
            for name, value in model_inputs.items()
        }
        self.starts = (
            self.mask.ne(0).int().argmax(1) if mask.shape == ids.shape else mask.new_zeros(len(mask))
        )

    def restore_right_padding(self, out: ModelOutput) -> None:
        """Rotates the outputs of `generate` back to the caller's order, in place."""
        if not self.has_right_padding:
            return
        prompts = self.original_ids.repeat_interleave(len(out.sequences) // len(self.mask), dim=0)
        out.sequences = torch.cat((prompts, out.sequences[:, prompts.shape[1] :]), dim=1)
        for name, dims in TOKEN_DIMS_BY_OUTPUT.items():
            if (steps := out.get(name)) is not None:
                out[name] = tuple(
                    tuple(self._move_padding_back_to_right(layer, dims) for layer in step) for step in steps
                )
        if (cache := out.past_key_values) is not None:
            cache.layers = tuple(
                LayerKV(*(self._move_padding_back_to_right(x, (2,)) for x in pair)) for pair in cache.layers
            )

    def _move_padding_to_left(self, values: Tensor) -> Tensor:
        """Rotates rows so that padding comes first: (B or 1, T, ...) -> (B, T, ...).

        Values of another length are returned as they are.
        """
        if not self.has_right_padding or values.shape[1] != self.padded_length:
            return values
        return _take_positions(values, self._sources_to_left, 1)

    def _move_padding_back_to_right(self, values: Tensor, dims: Sequence[int]) -> Tensor:
        """Undoes `_move_padding_to_left` for the first T of L positions, in each of `dims`.

        With L < T there are only positions after T.
        """
        sources = self._sources_to_right.repeat_interleave(len(values) // len(self.mask), dim=0)
        for dim in dims:
            if (length := values.shape[dim]) >= self.padded_length:
                after = torch.arange(self.padded_length, length, device=sources.device)
                positions = torch.cat((sources, after.expand(len(sources), -1)), dim=1)
                values = _take_positions(values, positions, dim)
        return values


def _refuse_immovable_padding(
    ids: Tensor, is_padding: Tensor, model_inputs: Mapping[str, Any], image_token_ids: Sequence[int]
) -> None:
    if KeyValueCache.from_past(model_inputs.get("past_key_values")).layers:
        raise BadPrompt(
            "attention_mask ends in padding, and past_key_values are given: give a mask that ends in 1"
        )
    padding_ids = ids[is_padding].tolist() if ids.shape == is_padding.shape else []
    if image_ids := set(image_token_ids).intersection(padding_ids):
        raise BadPrompt(
            f"attention_mask ends in padding that has the id of image tokens, {min(image_ids)}: pad with another id"
        )


def _take_positions(values: Tensor, positions: Tensor, dim: int) -> Tensor:
    """Takes in each row the positions (R, L) of dimension `dim`."""
    shape = [1] * values.dim()
    shape[0], shape[dim] = positions.shape
    return values.take_along_dim(positions.to(values.device).view(shape), dim)
