"""A perceiver built of a decoder's parts: few latents read the patches of a frame, whatever their number.

Source: arXiv 2405.02246, section 3.2, after Flamingo's resampler (arXiv 2204.14198). P frames, S patches of a frame,
M latents, D width, H heads, h key/value heads, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idefics.config import PerceiverConfig
from idefics.nn.decoder import GatedMLP
from idefics.nn.kernels import Attending
from idefics.nn.norm import RMSNorm


class PerceiverAttention(Attending):
    """Latents attend to the patches and to themselves; nothing is rotated."""

    def __init__(self, width: int, config: PerceiverConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.q_proj = nn.Linear(width, config.heads * config.head_size, bias=False)
        self.k_proj = nn.Linear(width, config.kv_heads * config.head_size, bias=False)
        self.v_proj = nn.Linear(width, config.kv_heads * config.head_size, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_size, width, bias=False)

    def forward(self, context: Tensor, latents: Tensor) -> Tensor:  # (P, S, D), (P, M, D) -> (P, M, D)
        both = torch.cat((context, latents), dim=1)
        q, k, v = (
            x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for x in (self.q_proj(latents), self.k_proj(both), self.v_proj(both))
        )  # (P, H, M, K), (P, h, S+M, K), (P, h, S+M, K)
        mixed = self.kernel(q, k, v)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class PerceiverLayer(nn.Module):
    """Pre-norm attention, then pre-norm MLP, each added to the latents. Patches stay as they came."""

    def __init__(self, width: int, config: PerceiverConfig) -> None:
        super().__init__()
        self.input_latents_norm = RMSNorm(width, config.norm_epsilon)
        self.input_context_norm = RMSNorm(width, config.norm_epsilon)
        self.self_attn = PerceiverAttention(width, config)
        self.post_attention_layernorm = RMSNorm(width, config.norm_epsilon)
        self.mlp = GatedMLP(width, 4 * width, config.activation)

    def forward(self, context: Tensor, latents: Tensor) -> Tensor:  # (P, S, D), (P, M, D) -> (P, M, D)
        latents = latents + self.self_attn(self.input_context_norm(context), self.input_latents_norm(latents))
        out: Tensor = latents + self.mlp(self.post_attention_layernorm(latents))
        return out


class Perceiver(nn.Module):
    """(P, S, D) patches -> (P, M, D) latents."""

    def __init__(self, width: int, config: PerceiverConfig) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.ones(config.latents, width))
        self.layers = nn.ModuleList(PerceiverLayer(width, config) for _ in range(config.depth))
        self.norm = RMSNorm(width, config.norm_epsilon)

    def forward(self, context: Tensor) -> Tensor:
        latents = self.latents.expand(len(context), -1, -1)
        for layer in self.layers:
            latents = layer(context, latents)
        out: Tensor = self.norm(latents)
        return out
