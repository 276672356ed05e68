"""The vision towers with transformers' `forward`: `model.model.vision_model(pixels).last_hidden_state`.

P frames, S patches of a frame, D' width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from idefics.compat.modeling_outputs import BaseModelOutputWithPooling
from idefics.errors import BadPrompt
from idefics.models import idefics1, inline
from idefics.nn.attention_backends import EagerAttention, HasAttentionBackend, set_attention_backend


class SiglipVisionTransformer(inline.SiglipVisionTower):
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
        with _record_layer_outputs(
            self.encoder.layers, bool(output_hidden_states), bool(output_attentions)
        ) as record:
            last = inline.SiglipVisionTower.forward(self, pixel_values)
        return record.to_model_output(last, None, return_dict)


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
        patch = self.embeddings.patch_embedding.kernel_size[0]
        side = self.embeddings.patches_per_side * patch
        if (height, width) != (side, side) and not interpolate_pos_encoding:
            raise BadPrompt(
                f"pixel_values are {height} x {width} pixels and the model reads {side} x {side}: "
                "resize them, or give interpolate_pos_encoding=True"
            )
        with _record_layer_outputs(
            self.encoder.layers, bool(output_hidden_states), bool(output_attentions)
        ) as record:
            last = idefics1.ClipVisionTower.forward(self, pixel_values)
        return record.to_model_output(last, self.post_layernorm(last[:, 0]), return_dict)


class _LayerOutputs:
    """The recorded outputs of a tower's layers in one call, in which frames may run in several groups."""

    def __init__(self, num_layers: int, eager_attention: EagerAttention | None) -> None:
        self.num_layers, self.eager_attention = num_layers, eager_attention
        self.hidden_states: list[Tensor] = []  # for each group the embeddings, then the outputs of the layers

    def to_model_output(self, last: Tensor, pooled: Tensor | None, return_dict: bool | None) -> Any:
        out = BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=pooled,
            hidden_states=_concatenate_by_layer(self.hidden_states, self.num_layers + 1),
            attentions=_concatenate_by_layer(self.eager_attention.attention_weights, self.num_layers)
            if self.eager_attention
            else None,
        )
        return out.to_tuple() if return_dict is False else out


@contextmanager
def _record_layer_outputs(
    layers: nn.ModuleList, records_hidden_states: bool, records_attentions: bool
) -> Iterator[_LayerOutputs]:
    """Records the hidden states and attention weights of a tower's layers in this context."""
    record = _LayerOutputs(len(layers), EagerAttention() if records_attentions else None)
    hooks = []
    if records_hidden_states:
        hooks.append(
            layers[0].register_forward_pre_hook(lambda _, inputs: record.hidden_states.append(inputs[0]))
        )
        hooks += [
            layer.register_forward_hook(lambda _, inputs, out: record.hidden_states.append(out))
            for layer in layers
        ]
    original_backends = [
        module.attention_backend for module in layers.modules() if isinstance(module, HasAttentionBackend)
    ]
    if record.eager_attention is not None:
        set_attention_backend(layers, record.eager_attention)
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()
        attention_modules = (module for module in layers.modules() if isinstance(module, HasAttentionBackend))
        for module, backend in zip(attention_modules, original_backends, strict=True):
            module.attention_backend = backend


def _concatenate_by_layer(tensors: list[Tensor], num_outputs: int) -> tuple[Tensor, ...] | None:
    """Joins the groups: tensors of group after group, each of all layers -> a tensor of all frames for each layer."""
    return tuple(torch.cat(tensors[layer::num_outputs]) for layer in range(num_outputs)) if tensors else None
