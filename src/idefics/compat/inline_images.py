"""The image arguments of inline-image models' `forward`: padded frames, encoded and put in place of image tokens.

B rows, P frames of a row, M features of a frame, D width of the decoder.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idefics.compat.modeling_outputs import DecoderInputs
from idefics.errors import BadPrompt

if TYPE_CHECKING:
    from idefics.compat.modeling_inline import InlineImageBaseModel


def encode_frames(
    model: InlineImageBaseModel, pixels: Tensor, mask: Tensor | None
) -> tuple[Tensor | None, list[int]]:
    """Encodes the frames of a batch without their padding, those of one size together.

    Args:
        pixels: (B, P, 3, h, w) `pixel_values`; frames are padded at the bottom and on the right, and frames of only
            zeros are padding.
        mask: (B, P, h, w) `pixel_attention_mask`, from which sizes are read; None: there is no padding in frames.

    Returns:
        (frames, M, D) features of all frames, row after row; None without any. The number of frames of each row.

    Raises:
        BadPrompt: the shape is another one, or a frame is not square where `model.requires_square_frames`.
    """
    if pixels.dim() != 5:
        raise BadPrompt(f"pixel_values are of {tuple(pixels.shape)}: give (rows, frames, 3, height, width)")
    is_real = (pixels != 0).flatten(2).any(dim=2)  # (B, P)
    frames = pixels[is_real]  # (frames, 3, h, w)
    is_pixel = torch.ones_like(frames[:, 0]) if mask is None else mask[is_real]
    sizes = torch.stack((is_pixel.any(2).sum(1), is_pixel.any(1).sum(1)), dim=1)  # (frames, 2)
    features = None
    for size in sizes.unique(dim=0):
        height, width = size.tolist()
        if model.requires_square_frames and height != width:
            raise BadPrompt(f"a frame is {height} x {width} pixels, and this model reads squares: resize it")
        indices = (sizes == size).all(1).nonzero()[:, 0]
        encoded = model.encode(frames[indices, :, :height, :width].to(model.device, model.dtype))
        if features is None:
            features = encoded.new_empty(len(frames), *encoded.shape[1:])
        features = features.index_copy(0, indices.to(model.device), encoded)
    return features, is_real.sum(1).tolist()


def merge_image_features(
    model: InlineImageBaseModel, inputs: DecoderInputs, features: Tensor | None
) -> DecoderInputs:
    """Replaces the embeddings of image tokens by features (frames, M, D), in order.

    Raises:
        BadPrompt: there are more or fewer image tokens than features.
    """
    if features is None:
        return inputs
    image_token_id = model.config.image_token_id
    if inputs.input_ids is not None:
        image_token_mask = inputs.input_ids == image_token_id
    else:
        image_token_mask = (
            inputs.inputs_embeds
            == model.embed(torch.tensor(image_token_id, device=inputs.inputs_embeds.device))
        ).all(dim=-1)
    flat_features = features.flatten(0, -2).to(inputs.inputs_embeds.device, inputs.inputs_embeds.dtype)
    if (num_image_tokens := int(image_token_mask.sum())) != len(flat_features):
        raise BadPrompt(
            f"the rows have {num_image_tokens} places for pictures and the pictures fill {len(flat_features)}: "
            f"give a picture for every {features.shape[-2]} tokens of id {image_token_id}"
        )
    image_token_mask = image_token_mask.to(inputs.inputs_embeds.device)[..., None]
    return replace(inputs, inputs_embeds=inputs.inputs_embeds.masked_scatter(image_token_mask, flat_features))
