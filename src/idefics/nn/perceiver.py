"""Perceivers: few latents attend to many patches of a frame, in that of Idefics2 and in Idefics' resampler.

Source: arXiv 2405.02246, section 3.2, after Flamingo's resampler (arXiv 2204.14198). P frames, S patches of a frame,
M latents, D width, H heads, h key/value heads, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from idefics.config import PerceiverConfig, ResamplerConfig
from idefics.nn.attention import AttentionProjections
from idefics.nn.attention_backends import HasAttentionBackend
from idefics.nn.decoder import GatedMLP
from idefics.nn.norm import RMSNorm


class PerceiverAttention(AttentionProjections, HasAttentionBackend):
    """Attention of latents to the patches and to each other, without rotary embedding."""

    def __init__(self, hidden_size: int, config: PerceiverConfig) -> None:
        super().__init__(hidden_size, config.num_heads, config.num_kv_heads, config.head_size)

    def forward(self, context: Tensor, latents: Tensor) -> Tensor:
        """Attends from latents (P, M, D) to patches (P, S, D) and latents: returns (P, M, D)."""
        both = torch.cat((context, latents), dim=1)
        q, k, v = (
            x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for x in (self.q_proj(latents), self.k_proj(both), self.v_proj(both))
        )  # (P, H, M, K), (P, h, S+M, K), (P, h, S+M, K)
        mixed = self.attention_backend(q, k, v)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class PerceiverLayer(nn.Module):
    """Pre-norm attention, then pre-norm MLP, each added to the latents; the patches stay unchanged."""

    def __init__(self, hidden_size: int, config: PerceiverConfig) -> None:
        super().__init__()
        self.input_latents_norm = RMSNorm(hidden_size, config.norm_epsilon)
        self.input_context_norm = RMSNorm(hidden_size, config.norm_epsilon)
        self.self_attn = PerceiverAttention(hidden_size, config)
        self.post_attention_layernorm = RMSNorm(hidden_size, config.norm_epsilon)
        self.mlp = GatedMLP(hidden_size, 4 * hidden_size, config.activation)

    def forward(self, context: Tensor, latents: Tensor) -> Tensor:
        """Updates latents (P, M, D) from patches (P, S, D): returns the new (P, M, D)."""
        latents = latents + self.self_attn(self.input_context_norm(context), self.input_latents_norm(latents))
        out: Tensor = latents + self.mlp(self.post_attention_layernorm(latents))
        return out


class Perceiver(nn.Module):
    """Learned latents, layers that update them from the patches, and a final norm."""

    def __init__(self, hidden_size: int, config: PerceiverConfig) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.ones(config.num_latents, hidden_size))
        self.layers = nn.ModuleList(PerceiverLayer(hidden_size, config) for _ in range(config.depth))
        self.norm = RMSNorm(hidden_size, config.norm_epsilon)

    def forward(self, context: Tensor) -> Tensor:
        """Summarises the patches of each frame in M latents: (P, S, D) -> (P, M, D)."""
        latents = self.latents.expand(len(context), -1, -1)
        for layer in self.layers:
            latents = layer(context, latents)
        out: Tensor = self.norm(latents)
        return out


NORM_EPSILON = 1e-5  # torch's default, which the released resampler was trained with


class ResamplerAttention(HasAttentionBackend):
    """Attention of latents to the patches and to each other, with norms of queries and keys if the config has them."""

    def __init__(self, hidden_size: int, config: ResamplerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        inner_size = config.num_heads * config.head_size
        self.context_layer_norm = nn.LayerNorm(hidden_size, eps=NORM_EPSILON)
        self.latents_layer_norm = nn.LayerNorm(hidden_size, eps=NORM_EPSILON)
        if config.has_qk_norms:
            self.q_layer_norm: nn.Module = nn.LayerNorm(config.head_size, eps=NORM_EPSILON)
            self.k_layer_norm: nn.Module = nn.LayerNorm(config.head_size, eps=NORM_EPSILON)
        else:
            self.q_layer_norm = self.k_layer_norm = nn.Identity()
        self.q_proj = nn.Linear(hidden_size, inner_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, inner_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, inner_size, bias=False)
        self.output_proj = nn.Linear(inner_size, hidden_size, bias=False)

    def forward(self, context: Tensor, latents: Tensor) -> Tensor:
        """Attends from latents (P, M, D) to patches (P, S, D) and latents: returns (P, M, D)."""
        latents = self.latents_layer_norm(latents)
        both = torch.cat((self.context_layer_norm(context), latents), dim=1)
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.q_proj(latents), self.k_proj(both), self.v_proj(both))
        )  # (P, H, ., K)
        mixed = self.attention_backend(self.q_layer_norm(q), self.k_layer_norm(k), v)
        out: Tensor = self.output_proj(mixed.transpose(1, 2).flatten(2))
        return out


class ResamplerMLP(nn.Module):
    """Norm, projection to four times the width, ReLU, projection back; without biases."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(hidden_size, eps=NORM_EPSILON)
        self.fc = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.c_proj = nn.Linear(4 * hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the MLP to each vector: (..., D) -> (..., D)."""
        out: Tensor = self.c_proj(relu(self.fc(self.ln(x))))
        return out


class Resampler(nn.Module):
    """Learned latents, blocks that update them from the patches, and a final norm."""

    def __init__(self, hidden_size: int, config: ResamplerConfig) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(config.num_latents, hidden_size))
        self.blocks = nn.ModuleList(
            nn.ModuleList((ResamplerAttention(hidden_size, config), ResamplerMLP(hidden_size)))
            for _ in range(config.depth)
        )
        self.layer_norm = nn.LayerNorm(hidden_size, eps=NORM_EPSILON)

    def forward(self, context: Tensor) -> Tensor:
        """Summarises the patches of each frame in M latents: (P, S, D) -> (P, M, D)."""
        latents = self.latents.expand(len(context), -1, -1)
        for block in self.blocks:
            attention, mlp = block.children()
            latents = attention(context, latents) + latents
            latents = mlp(latents) + latents
        out: Tensor = self.layer_norm(latents)
        return out
