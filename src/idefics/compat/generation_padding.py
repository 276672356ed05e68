"""Moves padding on the right of prompts to the left for `generate`, and back in what it returns.

B prompts, n answers or beams of each, R = B * n rows, T ids of a prompt, L >= T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from idefics.compat.generation_strategies import GenerateOutput
from idefics.compat.kv_cache import KeyValueCache
from idefics.compat.padded_attention import LayerKV
from idefics.errors import BadPrompt

TOKEN_ALIGNED_INPUTS = ("inputs_embeds", "position_ids", "image_attention_mask")
# The dimensions of an output that are token positions.
TOKEN_DIMS_BY_OUTPUT = {"hidden_states": (1,), "attentions": (2, 3)}


class RightPadding:
    """The padding after the last token of each row, and how rows are rotated to move it to the left.

    Args:
        mask: (B, T), 0 for padding.

    Attributes:
        has_padding: whether any row ends in padding.

    Raises:
        BadPrompt: a row is only padding.
    """

    def __init__(self, mask: Tensor) -> None:
        is_token = mask.ne(0)
        if not is_token.any(1).all():
            row = int((~is_token.any(1)).int().argmax())
            raise BadPrompt(
                f"row {row} of attention_mask has no 1: give every prompt at least one id that is not padding"
            )
        self.padded_length = mask.shape[1]
        self.num_padding_tokens = is_token.flip(1).int().argmax(1)  # (B,)
        self.has_padding = bool(self.num_padding_tokens.any())

    def rotate_to_left(self, values: Tensor) -> Tensor:
        """Rotates rows: (B or 1, T, ...) -> (B, T, ...). Values of another length are returned as they are."""
        if not self.has_padding or values.shape[1] != self.padded_length:
            return values
        source_positions = (
            torch.arange(self.padded_length, device=self.num_padding_tokens.device)
            - self.num_padding_tokens[:, None]
        )
        values = values.expand(len(self.num_padding_tokens), *values.shape[1:])
        return _gather_positions(values, source_positions % self.padded_length, 1)

    def inputs_to_left(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        """The other inputs of the model, those rotated that have a value for each token."""
        return {
            name: self.rotate_to_left(value) if name in TOKEN_ALIGNED_INPUTS else value
            for name, value in model_inputs.items()
        }

    def require_movable(
        self, ids: Tensor, model_inputs: dict[str, Any], image_token_ids: Sequence[int]
    ) -> Self:
        """Returns itself, unless moving the padding would change the meaning of the inputs.

        Args:
            ids: (B, T).
            image_token_ids: ids of placeholders for image features.

        Raises:
            BadPrompt: `model_inputs` has a cache, or the padding has one of `image_token_ids`.
        """
        if not self.has_padding:
            return self
        if KeyValueCache.from_past(model_inputs.get("past_key_values")).layers:
            raise BadPrompt(
                "attention_mask ends in padding, and past_key_values are given: give a mask that ends in 1"
            )
        if ids.shape[1] == self.padded_length:
            padding = (
                torch.arange(self.padded_length, device=ids.device)
                >= self.padded_length - self.num_padding_tokens[:, None]
            )
            for id_ in image_token_ids:
                if (padding & ids.eq(id_)).any():
                    raise BadPrompt(
                        f"attention_mask ends in padding that has the id of image tokens, {id_}: pad with another id"
                    )
        return self

    def restore_right_padding(self, out: GenerateOutput, ids: Tensor) -> None:
        """Rotates the outputs of `generate` back to the caller's order, in place.

        Args:
            ids: (B, T), as the caller gave them.
        """
        if not self.has_padding:
            return
        prompts = ids.repeat_interleave(len(out.sequences) // len(ids), dim=0)
        out.sequences = torch.cat((prompts, out.sequences[:, ids.shape[1] :]), dim=1)
        for name, dims in TOKEN_DIMS_BY_OUTPUT.items():
            if (steps := out.get(name)) is not None:
                out[name] = tuple(
                    tuple(self._rotate_to_right(layer, dims) for layer in step) for step in steps
                )
        if (cache := out.past_key_values) is not None:
            cache.layers = tuple(
                LayerKV(*(self._rotate_to_right(x, (2,)) for x in pair)) for pair in cache.layers
            )

    def _rotate_to_right(self, values: Tensor, dims: Sequence[int]) -> Tensor:
        """Rotates the first T of L positions back, in each of `dims`; with L < T there are only positions after T."""
        for dim in dims:
            if (length := values.shape[dim]) >= self.padded_length:
                counts = self.num_padding_tokens.repeat_interleave(
                    len(values) // len(self.num_padding_tokens), dim=0
                )
                positions = torch.arange(length, device=counts.device).expand(len(counts), -1)
                source_positions = (positions + counts[:, None]) % self.padded_length
                values = _gather_positions(
                    values, source_positions.where(positions < self.padded_length, positions), dim
                )
        return values


def move_padding_left_and_repeat(
    ids: Tensor | None, mask: Tensor | None, num_answers: int
) -> tuple[Tensor | None, Tensor | None]:
    """(B, T) ids and mask of prompts -> (R, T), with the padding on the left; the mask may be None, or both."""
    if ids is not None and mask is not None:
        padding = RightPadding(mask)
        ids, mask = padding.rotate_to_left(ids), padding.rotate_to_left(mask)
    return (
        None if ids is None else ids.repeat_interleave(num_answers, dim=0),
        None if mask is None else mask.repeat_interleave(num_answers, dim=0),
    )


def _gather_positions(values: Tensor, positions: Tensor, dim: int) -> Tensor:
    """Gathers in each row the positions (R, L) of dimension `dim`."""
    shape = [1] * values.dim()
    shape[0], shape[dim] = positions.shape
    index = positions.to(values.device).view(shape)
    return values.gather(dim, index.expand(*values.shape[:dim], -1, *values.shape[dim + 1 :]))
