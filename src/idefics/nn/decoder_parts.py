"""The modules of a decoder in the order in which they run, for faster implementations of a whole decoder step.

`nn.fused` and the decode step in C (`engine.native`) read them. D width, V vocabulary, H query heads, K head size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from idefics.config import TextConfig
from idefics.nn.decoder import DecoderLayer, GatedMLP
from idefics.nn.norm import RMSNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossAttentionBlock:
    """A gated cross-attention block: x + tanh(gate) * attention, then x + tanh(mlp_gate) * MLP.

    Attributes:
        norm, mlp_norm: before the attention and the MLP.
        q, o: projections around the attention.
        q_norm: normalises each head of q's output, or None.
        gate, mlp_gate: (1,) or (D,).
        adapter_gates, adapter_mlp_gates: for each adapter the gate that replaces it, or None; empty: none is replaced.
    """

    norm: RMSNorm
    q: nn.Linear
    q_norm: RMSNorm | None
    o: nn.Linear
    gate: Tensor
    mlp_norm: RMSNorm
    mlp: GatedMLP
    mlp_gate: Tensor
    adapter_gates: tuple[Tensor | None, ...] = ()
    adapter_mlp_gates: tuple[Tensor | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderParts:
    """All modules between token ids and logits, in the order in which they run.

    Attributes:
        config: sizes, norm epsilon, activation, rotary embedding and sliding window of the layers.
        embeddings: (V, D) token embeddings; a second one has the added tokens, whose ids follow.
        layers: the Llama layers.
        cross_blocks: for each layer the cross-attention block before it, or None.
        norm: the final norm.
        lm_heads: one for each embedding; their logits are concatenated.
    """

    config: TextConfig
    embeddings: tuple[nn.Embedding, ...]
    layers: tuple[DecoderLayer, ...]
    cross_blocks: tuple[CrossAttentionBlock | None, ...]
    norm: RMSNorm
    lm_heads: tuple[nn.Linear, ...]
