"""The image arguments of Idefics' `forward`, and the cross-attention inputs that they become.

B rows, T new tokens, P images of a row, S patches and M features of an image, D' their width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from idefics.compat.decoder_forward import DecoderInputs
from idefics.compat.padded_attention import CrossAttentionInputs, group_cross_kv_by_row
from idefics.errors import BadPrompt
from idefics.models.idefics1 import Idefics1Backbone
from idefics.nn.resampler import Resampler


@dataclass(frozen=True, slots=True)
class ImageArguments:
    """Images at one of three stages of encoding, and which of them each token attends to.

    Attributes:
        pixel_values: (B, P, 3, h, w) normalised pixels.
        image_encoder_embeddings: (B, P, S, D') outputs of the vision tower.
        perceiver_embeddings: (B, P, M, D') outputs of the resampler.
        image_attention_mask: (B, T, P), 1 where a token attends to an image; None: every token attends to all.
        interpolate_pos_encoding: whether images may have another size than the trained one.
    """

    pixel_values: Tensor | None
    image_encoder_embeddings: Tensor | None
    perceiver_embeddings: Tensor | None
    image_attention_mask: Tensor | None
    interpolate_pos_encoding: bool | None

    def image_features(self, backbone: Idefics1Backbone, image_size: int) -> Tensor | None:
        """(B, P, M, D') image features; None without images.

        Args:
            image_size: the trained side of an image, in pixels.

        Raises:
            BadPrompt: images are given at two stages, or have another size.
        """
        stages = self.pixel_values, self.image_encoder_embeddings, self.perceiver_embeddings
        match [stage for stage in stages if stage is not None]:
            case []:
                return None
            case [stage]:
                weight = backbone.embed_tokens.weight
                images = stage.flatten(0, 1).to(weight.device, weight.dtype)  # (B*P, ...)
            case _:
                raise BadPrompt(
                    "give one of pixel_values, image_encoder_embeddings and perceiver_embeddings: "
                    "they are the same images at three stages"
                )
        if self.pixel_values is not None:
            self._check_image_size(images, image_size)
            images = backbone.encode(images)
        elif self.image_encoder_embeddings is not None:
            images = backbone.perceiver_resampler(images)
        elif not isinstance(backbone.perceiver_resampler, Resampler):
            raise BadPrompt(
                "perceiver_embeddings are given, but use_resampler is False: give image_encoder_embeddings"
            )
        out: Tensor = images.unflatten(0, stage.shape[:2])
        return out

    def cross_attention_inputs(
        self, backbone: Idefics1Backbone, features: Tensor, inputs: DecoderInputs
    ) -> CrossAttentionInputs:
        """Keys and values of new images, (B, P, M, D') features, and their mask. Raises BadPrompt for other shapes."""
        (batch, num_images), new = features.shape[:2], inputs.inputs_embeds.shape[1]
        if batch != len(inputs.inputs_embeds):
            raise BadPrompt(
                f"images are given for {batch} rows and tokens for {len(inputs.inputs_embeds)}: give as many"
            )
        if self.image_attention_mask is None:
            image_mask = torch.ones(
                batch, new, num_images, dtype=torch.bool, device=inputs.inputs_embeds.device
            )
        else:
            image_mask = self.image_attention_mask[:, -new:].to(inputs.inputs_embeds.device).bool()
        if image_mask.shape != (batch, new, num_images):
            raise BadPrompt(
                f"image_attention_mask is of {tuple(image_mask.shape)}: give {(batch, new, num_images)}, "
                "one number for each row, new token and image"
            )
        return CrossAttentionInputs(
            group_cross_kv_by_row(backbone.compute_cross_kv(features.flatten(0, 1)), batch), image_mask
        )

    def cached_cross_attention_inputs(self, inputs: DecoderInputs) -> CrossAttentionInputs | None:
        """The images in the cache: new tokens attend to those of the last token, unless a mask says otherwise."""
        cached, mask = inputs.past.cross_attention_inputs, self.image_attention_mask
        if cached is None:
            return None
        num_new_tokens = inputs.inputs_embeds.shape[1]
        lengths = (num_new_tokens, inputs.past.get_seq_length() + num_new_tokens)
        image_mask = cached.image_mask.expand(-1, num_new_tokens, -1)
        if mask is not None and mask.shape[1] in lengths:
            image_mask = mask[:, -num_new_tokens:].to(cached.image_mask.device).bool()
        return CrossAttentionInputs(cached.cross_kv, image_mask)

    def _check_image_size(self, images: Tensor, image_size: int) -> None:
        height, width = images.shape[2:]
        if (height, width) != (image_size, image_size) and not self.interpolate_pos_encoding:
            raise BadPrompt(
                f"pixel_values are {height} x {width} pixels and the model reads {image_size} x {image_size}: "
                "resize them, or give interpolate_pos_encoding=True"
            )
