"""The terms that adapters add to a decoder's layers, as C structs that point to their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import Array

from torch import Tensor, nn

from idefics.native import structures as c
from idefics.nn.decoder import GatedMLP
from idefics.nn.decoder_parts import DecoderParts
from idefics.nn.low_rank import LowRankTerm, low_rank_terms


def multiplying_stages(parts: DecoderParts) -> Iterator[Sequence[nn.Module]]:
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


def make_low_rank_structs(parts: DecoderParts) -> tuple[Array[c.LowRankTermsStruct], int]:
    """The terms of all adapters in all stages, and the number of adapters. The structs point to the terms' tensors."""
    terms_by_stage = [[low_rank_terms(layer) for layer in layers] for layers in multiplying_stages(parts)]
    num_adapters = max(len(terms) for stage in terms_by_stage for terms in stage)
    structs = (c.LowRankTermsStruct * max(1, len(terms_by_stage) * num_adapters))()
    for index, stage in enumerate(terms_by_stage):
        for position, terms in enumerate(stage):
            for adapter, term in enumerate(terms):
                if term is not None:
                    structs[index * num_adapters + adapter].terms[position] = _term_struct(term)
    return structs, num_adapters


def _mlp_stages(mlp: GatedMLP) -> Iterator[Sequence[nn.Module]]:
    """The layers of the two stages of an MLP."""
    yield mlp.gate_proj, mlp.up_proj
    yield (mlp.down_proj,)


def _term_struct(term: LowRankTerm) -> c.LowRankTermStruct:
    """The C struct of a term."""
    return c.LowRankTermStruct(_factor_struct(term.a), _factor_struct(term.b))


def _factor_struct(factor: Tensor) -> c.LinearStruct:
    """The C struct of a factor: (outputs, inputs) float32."""
    outputs, inputs = factor.shape
    return c.LinearStruct(weight=factor.data_ptr(), kind=c.FLOAT32, outputs=outputs, inputs=inputs)
