"""The image arguments of Idefics' `forward`, and the cross-attention inputs that they become.

B rows, T new tokens, P images of a row, S patches and M features of an image, D' their width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idefics.compat.modeling_outputs import DecoderInputs
from idefics.compat.padded_attention import CrossAttentionInputs, group_cross_kv_by_row
from idefics.errors import BadPrompt
from idefics.models.idefics1 import Idefics1Backbone
from idefics.nn.perceiver import Resampler

if TYPE_CHECKING:
    from idefics.compat.modeling_idefics import IdeficsModel


def compute_image_features(
    model: IdeficsModel,
    pixel_values: Tensor | None,
    image_encoder_embeddings: Tensor | None,
    perceiver_embeddings: Tensor | None,
    *,
    interpolate_pos_encoding: bool,
) -> Tensor | None:
    """The features of images, (B, P, M, D'), from pixels or from outputs of the vision tower or the resampler.

    None if no images are given.

    Args:
        pixel_values: (B, P, 3, h, w) normalised pixels.
        image_encoder_embeddings: (B, P, S, D') outputs of the vision tower.
        perceiver_embeddings: (B, P, M, D') outputs of the resampler.
        interpolate_pos_encoding: whether images may have another size than the trained one.

    Raises:
        BadPrompt: images are given at two stages, or have another size.
    """
    stages = pixel_values, image_encoder_embeddings, perceiver_embeddings
    match [stage for stage in stages if stage is not None]:
        case []:
            return None
        case [stage]:
            weight = model.embed_tokens.weight
            images = stage.flatten(0, 1).to(weight.device, weight.dtype)  # (B*P, ...)
        case _:
            raise BadPrompt(
                "give one of pixel_values, image_encoder_embeddings and perceiver_embeddings: "
                "they are the same images at three stages"
            )
    if pixel_values is not None:
        images = model.encode(images, interpolate_pos_encoding)
    elif image_encoder_embeddings is not None:
        images = model.perceiver_resampler(images)
    elif not isinstance(model.perceiver_resampler, Resampler):
        raise BadPrompt(
            "perceiver_embeddings are given, but use_resampler is False: give image_encoder_embeddings"
        )
    out: Tensor = images.unflatten(0, stage.shape[:2])
    return out


def make_cross_attention_inputs(
    backbone: Idefics1Backbone, inputs: DecoderInputs, features: Tensor | None, mask: Tensor | None
) -> CrossAttentionInputs | None:
    """The cross-attention inputs of new images: their keys and values, and which tokens attend to them.

    Args:
        features: (B, P, M, D') image features; None: there are no images.
        mask: (B, T, P), 1 where a token attends to an image; None: every token attends to all.

    Returns:
        The inputs; None without images.

    Raises:
        BadPrompt: features or mask have another shape.
    """
    if features is None:
        return None
    num_rows, num_new_tokens = inputs.inputs_embeds.shape[:2]
    if len(features) != num_rows:
        raise BadPrompt(f"images are given for {len(features)} rows and tokens for {num_rows}: give as many")
    shape = num_rows, num_new_tokens, features.shape[1]
    image_mask = torch.ones(shape) if mask is None else mask[:, -num_new_tokens:]
    if image_mask.shape != shape:
        raise BadPrompt(
            f"image_attention_mask is of {tuple(image_mask.shape)}: give {shape}, "
            "one number for each row, new token and image"
        )
    cross_kv = group_cross_kv_by_row(backbone.compute_cross_kv(features.flatten(0, 1)), num_rows)
    return CrossAttentionInputs(cross_kv, image_mask.to(inputs.inputs_embeds.device).bool())


def get_cached_cross_attention_inputs(
    inputs: DecoderInputs, mask: Tensor | None
) -> CrossAttentionInputs | None:
    """The cross-attention inputs of the images in the cache, for new tokens; None if the cache has no images.

    Args:
        mask: (B, T, P), 1 where a token attends to an image; None: all attend to the images of the last cached token.
    """
    cached = inputs.past.cross_attention_inputs
    if cached is None:
        return None
    num_new_tokens = inputs.inputs_embeds.shape[1]
    image_mask = cached.image_mask.expand(-1, num_new_tokens, -1)
    if mask is not None and mask.shape[1] in (num_new_tokens, inputs.past.get_seq_length() + num_new_tokens):
        image_mask = mask[:, -num_new_tokens:].to(image_mask.device).bool()
    return cached._replace(image_mask=image_mask)
