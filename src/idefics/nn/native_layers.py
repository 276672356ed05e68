"""Calls the C kernels for whole layers: a Llama layer around its attention for many tokens, and a vision encoder.

Norms, residuals, rotary embedding, activations, softmax and sums are float32; inputs of a product are rounded to the
kind of its weight, bfloat16 or int8 (`native_kernels`), and the vision encoder's attention multiplies in bfloat16. N
packed tokens, D width, H query heads, h key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ctypes import POINTER, cast
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from idefics.config import VisionConfig
from idefics.native import library
from idefics.native.structures import (
    ACTIVATION_NAMES,
    BiasedLinearStruct,
    GatedMlpArgs,
    MlpStruct,
    QkvArgs,
    VisionArgs,
    VisionLayerStruct,
)
from idefics.nn.activation import ACTIVATIONS
from idefics.nn.attention_backends import bfloat16_or_sdpa_attention
from idefics.nn.native_kernels import (
    NativeLinear,
    NativeWeight,
    address,
    call_kernel,
    can_use_native_inputs,
    has_hooks,
    is_plain_float32,
)

if TYPE_CHECKING:
    from idefics.nn.decoder import DecoderLayer, GatedMLP
    from idefics.nn.norm import RMSNorm
    from idefics.nn.vit import VisionLayer


ACTIVATION_NUMBERS = {function: ACTIVATION_NAMES.index(name) for name, function in ACTIVATIONS.items()}


class NativeMLP(NamedTuple):
    """The weights of a gated MLP, and the number of its activation."""

    gate: NativeWeight
    up: NativeWeight
    down: NativeWeight
    activation: int


class NativeDecoderLayer(NamedTuple):
    """The weights of a Llama layer."""

    q: NativeWeight
    k: NativeWeight
    v: NativeWeight
    o: NativeWeight
    mlp: NativeMLP


def find_native_decoder_layer(layer: DecoderLayer, x: Tensor) -> NativeDecoderLayer | None:
    """The weights of a layer as C reads them; None if C cannot compute it for inputs `x` (N, D) as torch would."""
    if not can_use_native_inputs(x) or any(map(has_hooks, layer.modules())):
        return None
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    q, k, v, o = map(_unbiased_weight, projections)
    mlp, norms = _find_mlp_weights(layer.mlp), (layer.input_layernorm, layer.post_attention_layernorm)
    if q is None or k is None or v is None or o is None or mlp is None:
        return None
    has_one_dtype = q.weight.dtype == k.weight.dtype == v.weight.dtype
    return (
        NativeDecoderLayer(q, k, v, o, mlp)
        if has_one_dtype and all(is_plain_float32(norm.weight) for norm in norms)
        else None
    )


def find_native_mlp(mlp: GatedMLP, x: Tensor) -> NativeMLP | None:
    """The weights of an MLP as C reads them; None if C cannot compute it for inputs `x` as torch would."""
    if not can_use_native_inputs(x) or any(map(has_hooks, mlp.children())):
        return None
    return _find_mlp_weights(mlp)


def project_qkv(
    layer: NativeDecoderLayer, norm: RMSNorm, x: Tensor, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised tokens to rotated queries, rotated keys, and values: (N, D) -> (N, H, K), (N, h, K), (N, h, K).

    Args:
        norm: normalises `x` before the projections.
        x: (N, D) hidden states.
        rotary: cosines and sines of `rope.rotary_cos_sin`, (N, 1, K) each.

    Raises:
        MemoryError: there is no memory for the rounded inputs.
    """
    x, (cosines, sines) = x.contiguous(), (table.contiguous() for table in rotary)
    size = cosines.shape[-1]
    num_outputs = [len(part.weight) for part in (layer.q, layer.k, layer.v)]
    out = x.new_empty(len(x), sum(num_outputs))
    args = QkvArgs(
        x=x.data_ptr(),
        norm=norm.weight.data_ptr(),
        epsilon=norm.epsilon,
        q=layer.q.struct(),
        k=layer.k.struct(),
        v=layer.v.struct(),
        cosines=cosines.data_ptr(),
        sines=sines.data_ptr(),
        rotated_heads=(num_outputs[0] + num_outputs[1]) // size,
        size=size,
        out=out.data_ptr(),
        rows=len(x),
    )
    call_kernel("idefics_project_qkv", args, f"the activations of {len(x)} tokens")
    q, k, v = (part.unflatten(-1, (-1, size)) for part in out.split(num_outputs, dim=1))
    return q, k, v


def gated_mlp(
    mlp: NativeMLP, x: Tensor, norm: RMSNorm | None = None, residual: Tensor | None = None
) -> Tensor:
    """residual + down(act(gate(norm(x))) * up(norm(x))): (..., D) -> (..., O).

    Args:
        norm: None: `x` as it is.
        residual: (..., O); None: nothing is added.

    Raises:
        MemoryError: there is no memory for the hidden units.
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    added = None if residual is None else residual.reshape(len(rows), -1).contiguous()
    out = rows.new_empty(len(rows), len(mlp.down.weight))
    args = GatedMlpArgs(
        x=rows.data_ptr(),
        norm=None if norm is None else norm.weight.data_ptr(),
        epsilon=0.0 if norm is None else norm.epsilon,
        mlp=MlpStruct(mlp.gate.struct(), mlp.up.struct(), mlp.down.struct()),
        activation=mlp.activation,
        residual=address(added),
        out=out.data_ptr(),
        rows=len(rows),
    )
    call_kernel("idefics_gated_mlp", args, f"the activations of {len(rows)} tokens")
    return out.view(*x.shape[:-1], out.shape[-1])


def _find_mlp_weights(mlp: GatedMLP) -> NativeMLP | None:
    """The weights of an MLP as C reads them; None if C does not support them. Hooks are not considered."""
    gate, up, down = map(_unbiased_weight, (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    if gate is None or up is None or down is None or gate.weight.dtype != up.weight.dtype:
        return None
    return NativeMLP(gate, up, down, ACTIVATION_NUMBERS[mlp.act])


def _unbiased_weight(layer: nn.Linear) -> NativeWeight | None:
    """The weight of a linear layer as C reads it; None if the layer has a bias or C does not support the weight."""
    return layer.native_weight() if isinstance(layer, NativeLinear) and layer.bias is None else None


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
    call_kernel("idefics_vision_encode", args, f"{patches} patches in a vision encoder")
    return out


def _layer_struct(layer: VisionLayer) -> VisionLayerStruct | None:
    """The C struct of a vision layer; None if C cannot compute the layer."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    linears = list(map(_biased_struct, (*projections, mlp.fc1, mlp.fc2)))
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
    return BiasedLinearStruct(weight.struct(), address(layer.bias))
