"""A decoder laid open: its modules in the order in which they work, for who computes them in another way.

Knows tensors and modules, no families and no arithmetic. D width, H query heads, K head size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from idefics.config import TextConfig
from idefics.nn.decoder import DecoderLayer, GatedMLP
from idefics.nn.norm import RMSNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossAttentionBlock:
    """A gated block that reads pictures beside the text: x + tanh(gate) * attention, then x + tanh(mlp_gate) * MLP.

    Attributes:
        norm, mlp_norm: before each half.
        q, o: around the attention; `q_norm` is over each head of q's outputs, if there is one.
        gate, mlp_gate: of one number or of D.
    """

    norm: RMSNorm
    q: nn.Linear
    q_norm: RMSNorm | None
    o: nn.Linear
    gate: Tensor
    mlp_norm: RMSNorm
    mlp: GatedMLP
    mlp_gate: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderParts:
    """All that turns ids into logits.

    Attributes:
        config: sizes, epsilon, activation, rotation and window of the layers.
        embeddings: (V, D) embeddings; a second one holds the ids that follow.
        layers: the Llama blocks.
        cross_blocks: for each layer the gated block before it, or None.
        norm: the last one.
        lm_heads: as many as tables; their logits stand side by side.
    """

    config: TextConfig
    embeddings: tuple[nn.Embedding, ...]
    layers: tuple[DecoderLayer, ...]
    cross_blocks: tuple[CrossAttentionBlock | None, ...]
    norm: RMSNorm
    lm_heads: tuple[nn.Linear, ...]
