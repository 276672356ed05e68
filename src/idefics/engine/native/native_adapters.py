"""The terms that adapters add to a decoder's layers, as C structs that point to their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from idefics.engine.native.huge_pages import pack_into_huge_pages
from idefics.native import structures as c
from idefics.nn.decoder import DecoderParts, GatedMLP
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


def _mlp_stages(mlp: GatedMLP) -> Iterator[Sequence[nn.Module]]:
    """The layers of the two stages of an MLP."""
    yield mlp.gate_proj, mlp.up_proj
    yield (mlp.down_proj,)
