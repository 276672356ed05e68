"""Root-mean-square normalisation (arXiv 1910.07467)."""

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Scales the last dimension to a root mean square of 1, then by a learned weight.

    The mean is computed in float32. The result is cast to the weight's dtype before it is scaled, as Llama's and
    Idefics' own norms do when activations and weights share a dtype.
    """

    def __init__(self, hidden_size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalises each vector: (..., hidden_size) -> (..., hidden_size)."""
        if torch.is_grad_enabled() and x.requires_grad:
            out: Tensor = _Normalize.apply(x, self.epsilon, self.weight.dtype)  # type: ignore[no-untyped-call]
        else:
            wide = x.float()
            out = (wide * _inverse_rms(wide, self.epsilon)).to(self.weight.dtype)
        return self.weight * out


def _inverse_rms(wide: Tensor, epsilon: float) -> Tensor:
    """One over the root mean square of each vector: (..., D) float32 -> (..., 1)."""
    return torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)


class _Normalize(torch.autograd.Function):
    """x / rms(x) in float32, cast to a dtype. Keeps x as it is, instead of float32 copies; gradients of any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        wide = x.float()
        scale = _inverse_rms(wide, epsilon)
        ctx.save_for_backward(x, scale)
        ctx.epsilon = epsilon
        return (wide * scale).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, scale = ctx.saved_tensors
        wide = x.float()
        if torch.is_grad_enabled():  # a gradient of this gradient will be needed
            scale = _inverse_rms(wide, ctx.epsilon)
        normalized, gradient = wide * scale, gradient.float()
        along = (gradient * normalized).mean(-1, keepdim=True)
        return (scale * (gradient - normalized * along)).to(x.dtype), None, None
