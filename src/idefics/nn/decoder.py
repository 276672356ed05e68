"""The Llama decoder block, shared by every family, and the parts of a decoder for faster implementations of a step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from idefics.config import Activation, TextConfig
from idefics.nn.activation import ACTIVATIONS, gated
from idefics.nn.attention import AttentionProjections, Attn
from idefics.nn.native_kernels import native_linear
from idefics.nn.native_layers import (
    find_native_decoder_layer,
    find_native_mlp,
    gated_mlp,
    project_qkv,
)
from idefics.nn.norm import RMSNorm
from idefics.nn.rope import apply_rotary, rotary_cos_sin
from idefics.nn.upcast import TokenEmbedding


class GatedMLP(nn.Module):
    """Gated MLP such as SwiGLU (arXiv 2002.05202): down(act(gate(x)) * up(x)); `output_size` None: `hidden_size`."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation: Activation, output_size: int | None = None
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, output_size or hidden_size, bias=False)
        self.act = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Applies the MLP to each vector: (..., D) -> (..., D), or (..., `output_size`) if that is given."""
        if (native_mlp := find_native_mlp(self, x)) is not None:
            return gated_mlp(native_mlp, x)
        out: Tensor = self.down_proj(gated(self.act, self.gate_proj(x), self.up_proj(x)))
        return out


class SelfAttention(AttentionProjections):
    """Projections and rotary embedding around `Attn.self_attention`, whose keys are rotated already."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config.hidden_size, config.num_heads, config.num_kv_heads, config.head_size)

    def forward(self, layer_index: int, x: Tensor, rotary: tuple[Tensor, Tensor], attn: Attn) -> Tensor:
        """Projects hidden states, rotates queries and keys, and attends: (N, D) -> (N, D).

        Args:
            layer_index: number of the layer, from 0.
            rotary: cosines and sines of `rotary_cos_sin` for the tokens' positions.
            attn: computes the attention.
        """
        q, k, v = (p(x).unflatten(-1, (-1, self.head_size)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        out: Tensor = self.o_proj(attn.self_attention(layer_index, q, k, v).flatten(1))
        return out


class DecoderLayer(nn.Module):
    """Pre-norm self-attention, then pre-norm MLP, each added to the residual stream."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)

    def forward(self, layer_index: int, x: Tensor, rotary: tuple[Tensor, Tensor], attn: Attn) -> Tensor:
        """Runs the layer on N tokens: (N, D) hidden states -> (N, D); arguments as in `SelfAttention.forward`."""
        if (native_layer := find_native_decoder_layer(self, x)) is not None:
            q, k, v = project_qkv(native_layer, self.input_layernorm, x, rotary)
            attended = attn.self_attention(layer_index, q, k, v).flatten(1)
            x = native_linear(attended, native_layer.o, None, residual=x)
            return gated_mlp(native_layer.mlp, x, self.post_attention_layernorm, residual=x)
        x = x + self.self_attn(layer_index, self.input_layernorm(x), rotary, attn)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class LlamaDecoder(nn.Module):
    """Token embedding, decoder layers and final norm; the LM head belongs to the model."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon)

    def forward(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """Runs all layers: embedded tokens (N, D) at `positions` (N,) -> hidden states (N, D) after the final norm."""
        rotary = rotary_cos_sin(positions, self.config.rope, self.config.head_size, x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(index, x, rotary, attn)
        out: Tensor = self.norm(x)
        return out


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
