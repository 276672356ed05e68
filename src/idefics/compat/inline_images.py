"""The image arguments of inline-image models' `forward`: padded frames, encoded and put in place of image tokens.

B rows, P frames of a row, M features of a frame, D width of the decoder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from idefics.compat.decoder_forward import DecoderInputs
from idefics.errors import BadPrompt

FrameSize = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """The frames of a batch, row after row.

    Attributes:
        pixels: (B*P, 3, h, w), padded at the bottom and on the right.
        indices_by_size: size of a frame -> indices of the frames of that size. Frames of only zeros are padding, and
            are left out.
        frames_per_row: number of frames of each row, padding left out.
    """

    pixels: Tensor
    indices_by_size: dict[FrameSize, list[int]]
    frames_per_row: list[int]

    @classmethod
    def from_pixel_values(cls, pixels: Tensor, mask: Tensor | None, *, requires_squares: bool) -> Self:
        """The frames in `pixel_values` (B, P, 3, h, w), with sizes from `pixel_attention_mask` (B, P, h, w).

        Raises:
            BadPrompt: the shape is another one, or a frame is not square with `requires_squares`.
        """
        if pixels.dim() != 5:
            raise BadPrompt(
                f"pixel_values are of {tuple(pixels.shape)}: give (rows, frames, 3, height, width)"
            )
        frames = pixels.flatten(0, 1)  # (B*P, 3, h, w)
        if mask is None:
            sizes = [(frames.shape[2], frames.shape[3])] * len(frames)
        else:  # frames are padded at the bottom and on the right
            is_pixel = mask.flatten(0, 1).bool()
            sizes = list(zip(is_pixel.any(2).sum(1).tolist(), is_pixel.any(1).sum(1).tolist(), strict=True))
        by_size: defaultdict[FrameSize, list[int]] = defaultdict(list)
        is_real = (frames != 0).flatten(1).any(dim=1)
        for index in is_real.nonzero()[:, 0].tolist():
            by_size[sizes[index]].append(index)
        if requires_squares and (non_square := next((size for size in by_size if size[0] != size[1]), None)):
            raise BadPrompt(
                f"a frame is {non_square[0]} x {non_square[1]} pixels, and this model reads squares: resize it"
            )
        return cls(frames, dict(by_size), is_real.view(pixels.shape[:2]).sum(1).tolist())

    def encode_frames(
        self, encode: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype
    ) -> Tensor | None:
        """(frames, M, D) features of all frames, in order; None without any. `encode` is called for each size."""
        features_by_index: dict[int, Tensor] = {}
        for (height, width), indices in self.indices_by_size.items():
            frames = self.pixels[indices, :, :height, :width].to(device, dtype)
            features_by_index.update(zip(indices, encode(frames), strict=True))
        return (
            torch.stack([features_by_index[index] for index in sorted(features_by_index)])
            if features_by_index
            else None
        )


def merge_image_features(
    inputs: DecoderInputs, features: Tensor | None, image_token_id: int, embed: Callable[[Tensor], Tensor]
) -> DecoderInputs:
    """Replaces the embeddings of image tokens by features (frames, M, D), in order.

    Raises:
        BadPrompt: there are more or fewer image tokens than features.
    """
    if features is None:
        return inputs
    if inputs.input_ids is not None:
        image_token_mask = inputs.input_ids == image_token_id
    else:
        image_token_mask = (
            inputs.inputs_embeds == embed(torch.tensor(image_token_id, device=inputs.inputs_embeds.device))
        ).all(dim=-1)
    flat_features = features.flatten(0, -2).to(inputs.inputs_embeds.device, inputs.inputs_embeds.dtype)
    if (num_image_tokens := int(image_token_mask.sum())) != len(flat_features):
        raise BadPrompt(
            f"the rows have {num_image_tokens} places for pictures and the pictures fill {len(flat_features)}: "
            f"give a picture for every {features.shape[-2]} tokens of id {image_token_id}"
        )
    return replace(
        inputs,
        inputs_embeds=inputs.inputs_embeds.masked_scatter(
            image_token_mask.to(inputs.inputs_embeds.device)[..., None], flat_features
        ),
    )
