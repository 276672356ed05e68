"""The vision towers with transformers' `forward`: `model.model.vision_model(pixels).last_hidden_state`.

P frames, S patches of a frame, D' width, H heads.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from idefics.compat.modeling_outputs import BaseModelOutputWithPooling, record_module_outputs
from idefics.errors import BadPrompt
from idefics.models import idefics1
from idefics.models.vision_language_model import SiglipVisionTower
from idefics.nn.attention_backends import EagerAttention, set_attention_backend
from idefics.nn.vit import VisionEncoder, VisionLayer


class SiglipVisionTransformer(SiglipVisionTower):
    """SigLIP's transformer, the vision tower of Idefics2, Idefics3 and SmolVLM."""

    def forward(
        self,
        pixel_values: Tensor,
        patch_attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes frames, (P, 3, h, w) normalised pixels, to patches (P, S, D').

        Args:
            patch_attention_mask: (P, rows of patches, columns of patches); must be true everywhere, as padded frames
                are not supported here.
            output_attentions, output_hidden_states: whether the output has those of each layer.
            return_dict: False returns a tuple.

        Returns:
            BaseModelOutputWithPooling, without `pooler_output`.

        Raises:
            BadPrompt: the mask leaves patches out.
        """
        if patch_attention_mask is not None and not bool(patch_attention_mask.all()):
            raise BadPrompt("patch_attention_mask leaves patches out: give frames without padding instead")
        out = run_vision_encoder(
            self.encoder, self.embeddings(pixel_values), output_attentions, output_hidden_states
        )
        out.last_hidden_state = self.post_layernorm(out.last_hidden_state)
        return out.as_return_type(return_dict)


class IdeficsVisionTransformer(idefics1.ClipVisionTower):
    """CLIP's transformer, the vision tower of Idefics."""

    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = False,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes images, (P, 3, h, w) normalised pixels, to a class vector and patches, (P, 1 + S, D').

        Args:
            output_attentions, output_hidden_states: whether the output has those of each layer.
            interpolate_pos_encoding: whether images may have another size than the trained one.
            return_dict: False returns a tuple.

        Returns:
            BaseModelOutputWithPooling; `pooler_output` (P, D') is the class vector after the last norm.

        Raises:
            BadPrompt: images have another size, and `interpolate_pos_encoding` is not set.
        """
        height, width = pixel_values.shape[-2:]
        patch = self.embeddings.patch_embedding.weight.shape[-1]  # an adapter has a weight too
        side = self.embeddings.patches_per_side * patch
        if (height, width) != (side, side) and not interpolate_pos_encoding:
            raise BadPrompt(
                f"pixel_values are {height} x {width} pixels and the model reads {side} x {side}: "
                "resize them, or give interpolate_pos_encoding=True"
            )
        patches = self.pre_layrnorm(self.embeddings(pixel_values))
        out = run_vision_encoder(self.encoder, patches, output_attentions, output_hidden_states)
        class_vector = self.post_layernorm(out["last_hidden_state"][:, 0])
        return BaseModelOutputWithPooling(out, pooler_output=class_vector).as_return_type(return_dict)


def run_vision_encoder(
    encoder: VisionEncoder,
    patches: Tensor,
    output_attentions: bool | None,
    output_hidden_states: bool | None,
) -> BaseModelOutputWithPooling:
    """Runs a vision tower's encoder on embedded patches (P, S, D'), in one or several groups of frames.

    Returns:
        The output of the last layer, and hidden states and attentions of all frames where they are asked for.
    """
    eager_attention, backend = (
        EagerAttention(),
        cast(VisionLayer, encoder.layers[0]).self_attn.attention_backend,
    )
    set_attention_backend(encoder, eager_attention if output_attentions else backend)
    try:
        with record_module_outputs(encoder.layers if output_hidden_states else ()) as layer_outputs:
            last = encoder(patches)
    finally:
        set_attention_backend(encoder, backend)

    def join_frames(outputs: list[Tensor]) -> list[Tensor]:
        """Outputs of all layers for some frames, then for others -> one output of all frames for each layer."""
        num_layers = len(encoder.layers)
        return [torch.cat(outputs[layer::num_layers]) for layer in range(num_layers)]

    return BaseModelOutputWithPooling(
        last_hidden_state=last,
        hidden_states=(patches, *join_frames(layer_outputs)) if output_hidden_states else None,
        attentions=tuple(join_frames(eager_attention.attention_weights)) if output_attentions else None,
    )
