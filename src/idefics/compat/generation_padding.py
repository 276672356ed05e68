"""Prompts that are padded on the right: `generate` reads them padded on the left, and gives back the caller's order.

B prompts, n answers or beams of each, R = B * n rows, T ids of a prompt, L >= T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from idefics.compat.cache import KeyValueCache
from idefics.compat.generation_search import GenerateOutput
from idefics.errors import BadPrompt
from idefics.nn.padded import KeysValues

ALONG_IDS = ("inputs_embeds", "position_ids", "image_attention_mask")
# The dimensions of an output in which its places stand.
DIMENSIONS = {"hidden_states": (1,), "attentions": (2, 3)}


class RightPadding:
    """The padding after the last token of each row, which stands before the first one while `generate` reads.

    Attributes:
        is_any: whether there is any.

    Args:
        mask: (B, T), 0 for padding.

    Raises:
        BadPrompt: a row is nothing but padding.
    """

    def __init__(self, mask: Tensor) -> None:
        stands = mask.ne(0)
        if not stands.any(1).all():
            row = int((~stands.any(1)).int().argmax())
            raise BadPrompt(
                f"row {row} of attention_mask has no 1: give every prompt at least one id that is no padding"
            )
        self.length = mask.shape[1]
        self.counts = stands.flip(1).int().argmax(1)  # (B,)
        self.is_any = bool(self.counts.any())

    def to_left(self, values: Tensor) -> Tensor:
        """(B or 1, T, ...) -> (B, T, ...); what has another length is left as it is."""
        if not self.is_any or values.shape[1] != self.length:
            return values
        places = torch.arange(self.length, device=self.counts.device) - self.counts[:, None]
        values = values.expand(len(self.counts), *values.shape[1:])
        return _picked(values, places % self.length, 1)

    def inputs_to_left(self, given: dict[str, Any]) -> dict[str, Any]:
        """What the model is given beside ids and their mask."""
        return {name: self.to_left(value) if name in ALONG_IDS else value for name, value in given.items()}

    def check(self, ids: Tensor, given: dict[str, Any], pictures: Sequence[int]) -> Self:
        """Itself; refuses what cannot be moved: a past, and places of pictures.

        Args:
            ids: (B, T).
            pictures: ids whose places in a row are filled with pictures in their order.

        Raises:
            BadPrompt: `given` has a past, or one of `pictures` is padding.
        """
        if not self.is_any:
            return self
        if KeyValueCache.of(given.get("past_key_values")).layers:
            raise BadPrompt(
                "attention_mask ends in padding, and past_key_values are given: give a mask that ends in 1"
            )
        if ids.shape[1] == self.length:
            padding = torch.arange(self.length, device=ids.device) >= self.length - self.counts[:, None]
            for id_ in pictures:
                if (padding & ids.eq(id_)).any():
                    raise BadPrompt(
                        f"attention_mask ends in padding that has the id of pictures, {id_}: pad with another id"
                    )
        return self

    def given_back(self, out: GenerateOutput, ids: Tensor) -> None:
        """Puts what `generate` gives into the caller's order, in place.

        Args:
            ids: (B, T), as the caller gave them.
        """
        if not self.is_any:
            return
        prompts = ids.repeat_interleave(len(out.sequences) // len(ids), dim=0)
        out.sequences = torch.cat((prompts, out.sequences[:, ids.shape[1] :]), dim=1)
        for name, dims in DIMENSIONS.items():
            if (steps := out.get(name)) is not None:
                out[name] = tuple(tuple(self._back(layer, dims) for layer in step) for step in steps)
        if (cache := out.past_key_values) is not None:
            cache.layers = tuple(KeysValues(*(self._back(x, (2,)) for x in pair)) for pair in cache.layers)

    def _back(self, values: Tensor, dims: Sequence[int]) -> Tensor:
        """(R, ...) with L places in each of the dimensions `dims`; one with fewer than T holds later ids alone."""
        for dim in dims:
            if (length := values.shape[dim]) >= self.length:
                counts = self.counts.repeat_interleave(len(values) // len(self.counts), dim=0)
                places = torch.arange(length, device=counts.device).expand(len(counts), -1)
                within = (places + counts[:, None]) % self.length
                values = _picked(values, within.where(places < self.length, places), dim)
        return values


def all_to_left(ids: Tensor | None, mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(B, T) ids and their mask with the padding on the left; as they are where one of them is None."""
    if ids is None or mask is None:
        return ids, mask
    padding = RightPadding(mask)
    return padding.to_left(ids), padding.to_left(mask)


def _picked(values: Tensor, places: Tensor, dim: int) -> Tensor:
    """In each row these places (R, L) of the dimension `dim`."""
    shape = [1] * values.dim()
    shape[0], shape[dim] = places.shape
    index = places.to(values.device).view(shape)
    return values.gather(dim, index.expand(*values.shape[:dim], -1, *values.shape[dim + 1 :]))
