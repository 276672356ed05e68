"""Calls the vision encoder in C (`native/vision.c`), which computes all layers in one call.

Inputs of a product are rounded to the kind of its weight, bfloat16 or int8; attention multiplies in bfloat16.
Residuals, norms, softmax and sums are float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ctypes import POINTER, cast
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from idefics.config import VisionConfig
from idefics.native import library
from idefics.native.structures import ACTIVATION_NAMES, BiasedLinearStruct, VisionArgs, VisionLayerStruct
from idefics.nn.attention_backends import bfloat16_or_sdpa_attention
from idefics.nn.native_linear import NativeLinear, call_kernel, has_hooks, is_plain_float32

if TYPE_CHECKING:
    from idefics.nn.vit import VisionLayer


def find_native_layers(config: VisionConfig, layers: Iterable[Any]) -> list[VisionLayerStruct] | None:
    """The layers of a vision encoder as C structs, valid while their weights are; None if C cannot compute them all.

    C cannot if a layer has a hook, another kind of weight or attention, or no permission to use the kernels
    (`NativeLinear.native_weight`), nor on processors without dot products of bfloat16.
    """
    if (
        library.best_instruction_set("bfloat16 products") is None
        or config.hidden_size // config.num_heads % 2
    ):
        return None
    structs = [_layer_struct(layer) for layer in layers]
    return None if None in structs else structs  # type: ignore[return-value]


def native_vision_encode(config: VisionConfig, layers: Sequence[VisionLayerStruct], x: Tensor) -> Tensor:
    """All layers of a vision encoder: (P, S, D) float32 -> (P, S, D).

    Args:
        config: the sizes.
        layers: see `find_native_layers`.
        x: see `native_linear.can_use_native_inputs`.

    Raises:
        MemoryError: there is no memory for the activations of a few frames.
    """
    out = x.clone(memory_format=torch.contiguous_format)
    frames, patches, width = x.shape
    array = (VisionLayerStruct * max(1, len(layers)))(*layers)
    args = VisionArgs(
        x=out.data_ptr(),
        layers=cast(array, POINTER(VisionLayerStruct)),
        frames=frames,
        patches=patches,
        layer_count=len(layers),
        width=width,
        heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        activation=ACTIVATION_NAMES.index(config.activation),
        epsilon=config.norm_epsilon,
    )
    if not call_kernel("idefics_vision_encode", args):
        raise MemoryError(f"not enough memory for {patches} patches in a vision encoder")
    return out


def _layer_struct(layer: VisionLayer) -> VisionLayerStruct | None:
    """The C struct of a vision layer; None if C cannot compute the layer."""
    attention, mlp = layer.self_attn, layer.mlp
    linears = [
        _biased_struct(linear)
        for linear in (
            *(attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj),
            *(mlp.fc1, mlp.fc2),
        )
    ]
    norms = [
        parameter for norm in (layer.layer_norm1, layer.layer_norm2) for parameter in (norm.weight, norm.bias)
    ]
    is_supported = (
        attention.attention_backend is bfloat16_or_sdpa_attention
        and not any(map(has_hooks, layer.modules()))
        and all(is_plain_float32(parameter) for parameter in norms)
        and len({linear.linear.kind for linear in linears[:3] if linear is not None}) == 1
    )
    if not is_supported or None in linears:
        return None
    return VisionLayerStruct(*(parameter.data_ptr() for parameter in norms), *linears)


def _biased_struct(layer: nn.Linear) -> BiasedLinearStruct | None:
    """The C struct of a linear layer with a bias; None if C cannot compute the layer."""
    weight = layer.native_weight() if isinstance(layer, NativeLinear) else None
    if weight is None or (layer.bias is not None and not is_plain_float32(layer.bias)):
        return None
    return BiasedLinearStruct(weight.struct(), None if layer.bias is None else layer.bias.data_ptr())
