"""`DecoderParts` and the terms that adapters add to its layers as C structs that point to their tensors.

Only norms and gates are copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import POINTER, cast
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics.engine.native.huge_pages import pack_into_huge_pages
from idefics.native import structures as c
from idefics.nn.adapter_terms import LowRankTerm, has_other_hooks, low_rank_terms
from idefics.nn.decoder import CrossAttentionBlock, DecoderParts, GatedMLP
from idefics.nn.rope import rope_frequencies
from idefics.quant.linear import Int4Linear, Int8Linear


def multiplying_stages(parts: DecoderParts) -> Iterator[Sequence[nn.Linear]]:
    """The linear layers of each stage of a step that multiplies, in the order of `list_stages` in decode.c."""
    for layer, cross in zip(parts.layers, parts.cross_blocks, strict=True):
        if cross is not None:
            yield (cross.q,)
            yield (cross.o,)
            yield from _mlp_stages(cross.mlp)
        attention = layer.self_attn
        yield attention.q_proj, attention.k_proj, attention.v_proj
        yield (attention.o_proj,)
        yield from _mlp_stages(layer.mlp)
    yield parts.lm_heads


class PackedTerm(NamedTuple):
    """The factors of a term as C reads them.

    Attributes:
        position: of the layer in its stage.
        a: (r, I).
        blocks: the second factor in blocks of outputs, the last one padded with zeros: (O / block, r, block).
    """

    position: int
    a: Tensor
    blocks: Tensor


class LowRankStructs:
    """The terms of all adapters in all stages of a step.

    The factors of an adapter are moved into huge pages, in the order in which a step reads them: the first factors of
    a stage, then copies of the second ones.

    Attributes:
        structs: valid while this object lives.
        num_adapters: the number of adapters.
    """

    def __init__(self, parts: DecoderParts) -> None:
        stages = [[low_rank_terms(layer) for layer in layers] for layers in multiplying_stages(parts)]
        self.num_adapters = max(len(terms) for stage in stages for terms in stage)
        self.structs = (c.LowRankTermsStruct * max(1, len(stages) * self.num_adapters))()
        packed = {
            (index, adapter): _pack_terms([terms[adapter] if terms else None for terms in stage])
            for adapter in range(self.num_adapters)
            for index, stage in enumerate(stages)
        }
        self._factors: list[Tensor] = []
        for terms in packed.values():
            self._factors += [*(term.a for term in terms), *(term.blocks for term in terms)]
        pack_into_huge_pages(self._factors)
        for (index, adapter), terms in packed.items():
            struct = self.structs[index * self.num_adapters + adapter]
            for position, a, blocks in terms:
                rank, inputs = a.shape
                linear = c.LinearStruct(weight=a.data_ptr(), kind=c.FLOAT32, outputs=rank, inputs=inputs)
                struct.terms[position] = c.LowRankTermStruct(linear, blocks.data_ptr())


def _pack_terms(terms: Sequence[LowRankTerm | None]) -> list[PackedTerm]:
    """The terms of an adapter in the layers of a stage."""
    packed = []
    for position, term in enumerate(terms):
        if term is not None:
            padded = functional.pad(term.b, (0, -term.b.shape[1] % c.FACTOR_BLOCK))
            blocks = padded.view(len(padded), -1, c.FACTOR_BLOCK).transpose(0, 1).contiguous()
            packed.append(PackedTerm(position, term.a, blocks))
    return packed


def _mlp_stages(mlp: GatedMLP) -> Iterator[Sequence[nn.Linear]]:
    """The layers of the two stages of an MLP."""
    yield mlp.gate_proj, mlp.up_proj
    yield (mlp.down_proj,)


KIND_BY_DTYPE = {torch.float32: c.FLOAT32, torch.bfloat16: c.BFLOAT16}


def list_linears(parts: DecoderParts) -> list[nn.Linear]:
    """All linear layers of a decoder, in the order of a step."""
    return list(chain.from_iterable(multiplying_stages(parts)))


def find_hooked_module(parts: DecoderParts) -> nn.Module | None:
    """The first module that has a hook which C would not call; None if there is none. C computes those of adapters."""
    modules_with_parts: list[nn.Module] = [*parts.embeddings, *parts.layers, parts.norm, *list_linears(parts)]
    for cross in filter(None, parts.cross_blocks):
        modules_with_parts += filter(None, (cross.norm, cross.mlp_norm, cross.mlp, cross.q_norm))
    modules = chain.from_iterable(part.modules() for part in modules_with_parts)
    return next((module for module in modules if has_other_hooks(module)), None)


def unsupported_layer_reason(layer: nn.Module) -> str:
    """Why the decode step in C cannot read a linear layer or an embedding; "" if it can."""
    name = type(layer).__name__
    if not isinstance(layer, nn.Linear | nn.Embedding):
        return f"a layer is a {name}, which is not supported"
    weight = layer.levels if isinstance(layer, Int8Linear | Int4Linear) else layer.weight
    if type(weight) is not nn.Parameter:
        return f"the weight of a {name} is a {type(weight).__name__}, which is not supported"
    if weight.device.type != "cpu":
        return f"the weight of a {name} is on {weight.device}, not on the CPU"
    if not weight.is_contiguous():
        return f"the weight of a {name} is not contiguous"
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        return f"a {name} has a bias"
    if isinstance(layer, Int8Linear | Int4Linear):
        return "" if layer.scale.dtype in KIND_BY_DTYPE else f"the scale of a {name} is {layer.scale.dtype}"
    return "" if weight.dtype in KIND_BY_DTYPE else f"the weight of a {name} is {weight.dtype}"


class NativeModelStruct:
    """Builds and holds the C struct of a decoder and its KV cache: the argument of `idefics_decode_new`.

    Attributes:
        struct: valid while this object lives; this object keeps alive every tensor that it points to.
        num_adapters: the number of adapters; 0 if none of them changes what a step computes.
    """

    def __init__(self, parts: DecoderParts, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        config = parts.config
        self._referenced: list[object] = [parts, *keys, *values]
        cross_blocks = [cross for cross in parts.cross_blocks if cross is not None]
        low_rank = LowRankStructs(parts)
        self.num_adapters = max(
            low_rank.num_adapters,
            *(max(len(cross.adapter_gates), len(cross.adapter_mlp_gates)) for cross in cross_blocks),
            0,
        )
        layer_structs = (c.LayerStruct * max(1, len(parts.layers)))()
        cross_index = 0
        for index, (layer, cross) in enumerate(zip(parts.layers, parts.cross_blocks, strict=True)):
            attention = layer.self_attn
            layer_structs[index] = c.LayerStruct(
                norm=self._float32_copy_address(layer.input_layernorm.weight),
                mlp_norm=self._float32_copy_address(layer.post_attention_layernorm.weight),
                q=self._linear_struct(attention.q_proj),
                k=self._linear_struct(attention.k_proj),
                v=self._linear_struct(attention.v_proj),
                o=self._linear_struct(attention.o_proj),
                mlp=self._mlp_struct(layer.mlp),
                keys=keys[index].data_ptr(),
                values=values[index].data_ptr(),
                cross=-1 if cross is None else cross_index,
            )
            cross_index += cross is not None
        cross_structs = (c.CrossLayerStruct * max(1, len(cross_blocks)))(
            *(self._cross_struct(cross, config.hidden_size) for cross in cross_blocks)
        )
        self._referenced += [layer_structs, cross_structs, low_rank]
        rates = rope_frequencies(config.rope, config.head_size, torch.device("cpu"))
        self.struct = c.ModelStruct(
            width=config.hidden_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_size=config.head_size,
            layer_count=len(parts.layers),
            cross_count=len(cross_blocks),
            table_count=len(parts.embeddings),
            activation=c.ACTIVATION_NAMES.index(config.activation),
            window=config.sliding_window or 0,
            float16=any(pages.dtype == torch.float16 for pages in keys),
            epsilon=config.norm_epsilon,
            frequencies=self._float32_copy_address(rates),
            norm=self._float32_copy_address(parts.norm.weight),
            layers=cast(layer_structs, POINTER(c.LayerStruct)),
            crosses=cast(cross_structs, POINTER(c.CrossLayerStruct)),
            tables=(c.EmbeddingStruct * 2)(*map(self._embedding_struct, parts.embeddings)),
            lm_heads=(c.LinearStruct * 2)(*map(self._linear_struct, parts.lm_heads)),
            adapter_count=low_rank.num_adapters,
            low_rank=cast(low_rank.structs, POINTER(c.LowRankTermsStruct)),
        )

    def _float32_copy_address(self, values: Tensor) -> int:
        """The address of a float32 copy of `values`, which this object keeps alive."""
        copy = values.detach().float().flatten().contiguous()
        self._referenced.append(copy)
        return copy.data_ptr()

    def _tanh_gate_pointer(self, gate: Tensor, replaced: Sequence[Tensor | None], width: int) -> int:
        """The address of float32 copies of tanh(gate), (1 + adapters, width): a gate of one number is repeated.

        Args:
            gate: for rows without an adapter, and with one that has no gate of its own.
            replaced: the gates of adapters.
        """
        by_adapter = [*replaced, *[None] * (self.num_adapters - len(replaced))]
        gates = [gate if one is None else one for one in (None, *by_adapter)]
        rows = [one.detach().flatten().float().tanh().expand(width) for one in gates]
        return self._float32_copy_address(torch.stack(rows))

    def _linear_struct(self, layer: nn.Linear) -> c.LinearStruct:
        """The C struct of a linear layer: addresses, sizes and dtypes. Its weight is not copied."""
        self._referenced += [
            parameter.data for parameter in layer.parameters()
        ]  # their memory of now: it may be replaced later
        struct = c.LinearStruct(
            weight=layer.weight.data_ptr(), outputs=layer.out_features, inputs=layer.in_features
        )
        if isinstance(layer, Int8Linear | Int4Linear):
            struct.kind = c.INT8 if isinstance(layer, Int8Linear) else c.INT4
            struct.scale, struct.scale_kind = layer.scale.data_ptr(), KIND_BY_DTYPE[layer.scale.dtype]
        else:
            struct.kind = KIND_BY_DTYPE[layer.weight.dtype]
        return struct

    def _mlp_struct(self, mlp: GatedMLP) -> c.MlpStruct:
        """The C struct of a gated MLP, with its gate, up and down projections."""
        return c.MlpStruct(*map(self._linear_struct, chain.from_iterable(_mlp_stages(mlp))))

    def _embedding_struct(self, table: nn.Embedding) -> c.EmbeddingStruct:
        """The C struct of an embedding: address, dtype and size. Its weight is not copied."""
        self._referenced.append(table.weight.data)
        return c.EmbeddingStruct(
            table.weight.data_ptr(), KIND_BY_DTYPE[table.weight.dtype], table.num_embeddings
        )

    def _cross_struct(self, cross: CrossAttentionBlock, width: int) -> c.CrossLayerStruct:
        """The C struct of a cross-attention block, with its norms, gates and projections; `width` is D."""
        return c.CrossLayerStruct(
            norm=self._float32_copy_address(cross.norm.weight),
            q_norm=self._float32_copy_address(cross.q_norm.weight) if cross.q_norm else None,
            mlp_norm=self._float32_copy_address(cross.mlp_norm.weight),
            gate=self._tanh_gate_pointer(cross.gate, cross.adapter_gates, width),
            mlp_gate=self._tanh_gate_pointer(cross.mlp_gate, cross.adapter_mlp_gates, width),
            q=self._linear_struct(cross.q),
            o=self._linear_struct(cross.o),
            mlp=self._mlp_struct(cross.mlp),
        )
