"""Rotary position embedding (arXiv 2104.09864), with the frequency scaling of Llama 3.1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from idefics.config import RopeConfig


def rope_frequencies(rope: RopeConfig, head_size: int, device: torch.device) -> Tensor:
    """The angle of each pair of dimensions per position: (K/2,) radians, float32.

    With the scaling of Llama 3.1 (`rope_scaling` in its config.json), wavelengths above original / low are multiplied
    by `factor`, those below original / high are kept, and those between are interpolated.
    """
    exponents = torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size
    rates = 1.0 / rope.theta**exponents
    if rope.factor == 1.0:
        return rates
    turns = (
        rope.original_max_positions * rates / (2 * math.pi)
    )  # full turns within the original context length
    blend = (turns - rope.low_frequency_factor) / (rope.high_frequency_factor - rope.low_frequency_factor)
    return torch.lerp(rates / rope.factor, rates, blend.clamp(0, 1))


def rotary_cos_sin(
    positions: Tensor, rope: RopeConfig, head_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation at each position: (N,) positions -> (N, 1, K) twice.

    Computed in float32 and cast to `dtype`, as in the released models.
    """
    angles = positions.float()[:, None] * rope_frequencies(rope, head_size, positions.device)
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the pairs (i, i + K/2) of each head: (N, H, K) -> (N, H, K)."""
    cosines, sines = cos_sin
    low, high = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-high, low), dim=-1) * sines
