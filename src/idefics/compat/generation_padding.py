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
        self.num_right_padding = is_token.flip(1).int().argmax(1)  # (B,)
        self.has_right_padding = bool(self.num_right_padding.any())
        if self.has_right_padding:
            self._refuse_immovable_padding(ids, model_inputs, image_token_ids)
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
        """Rotates the outputs of `generate` back, in place, so that their padding is where the caller had it."""
        if not self.has_right_padding:
            return
        prompts = self.original_ids.repeat_interleave(len(out.sequences) // len(self.mask), dim=0)
        out.sequences = torch.cat((prompts, out.sequences[:, prompts.shape[1] :]), dim=1)
        for name, dims in TOKEN_DIMS_BY_OUTPUT.items():
            if (steps := out.get(name)) is not None:
                out[name] = tuple(
                    tuple(self._move_padding_back_to_right(layer, *dims) for layer in step) for step in steps
                )
        if (cache := out.past_key_values) is not None:
            cache.layers = tuple(
                LayerKV(*(self._move_padding_back_to_right(x, 2) for x in pair)) for pair in cache.layers
            )

    def _move_padding_to_left(self, values: Tensor) -> Tensor:
        """Rotates rows so that padding is on the left: (B or 1, T, ...) -> (B, T, ...).

        Values whose second dimension has another length are returned as they are.
        """
        if not self.has_right_padding or values.shape[1] != self.padded_length:
            return values
        return self._rotate_positions(values, -self.num_right_padding, 1)

    def _move_padding_back_to_right(self, values: Tensor, *dims: int) -> Tensor:
        """Undoes `_move_padding_to_left` for the first T positions of each of some dimensions.

        A dimension with fewer than T positions has only ids after the prompt, and is left as it is.
        """
        shifts = self.num_right_padding.repeat_interleave(len(values) // len(self.mask), dim=0)
        for dim in dims:
            if values.shape[dim] >= self.padded_length:
                values = self._rotate_positions(values, shifts, dim)
        return values

    def _rotate_positions(self, values: Tensor, shifts: Tensor, dim: int) -> Tensor:
        """Rotates the first T positions of dimension `dim` of (R, ...) values; later positions stay.

        Args:
            shifts: (R,) position i gets the value of position (i + shift) modulo T of its row.
        """
        positions = torch.arange(values.shape[dim], device=shifts.device)
        rotated = (positions + shifts[:, None]) % self.padded_length  # (R, L)
        sources = torch.where(positions < self.padded_length, rotated, positions)
        shape = [1] * values.dim()
        shape[0], shape[dim] = sources.shape
        return values.take_along_dim(sources.to(values.device).view(shape), dim)

    def _refuse_immovable_padding(
        self, ids: Tensor, model_inputs: Mapping[str, Any], image_token_ids: Sequence[int]
    ) -> None:
        """Raises BadPrompt if there is padding on the right with a cache, or if this padding contains image tokens."""
        if KeyValueCache.from_past(model_inputs.get("past_key_values")).layers:
            raise BadPrompt(
                "attention_mask ends in padding, and past_key_values are given: give a mask that ends in 1"
            )
        for row, num_padding in zip(ids.tolist(), self.num_right_padding.tolist(), strict=True):
            if image_ids := set(image_token_ids).intersection(row[len(row) - num_padding :]):
                raise BadPrompt(
                    "attention_mask ends in padding that has the id of image tokens, "
                    f"{min(image_ids)}: pad with another id"
                )
