"""Root-mean-square normalisation (arXiv 1910.07467)."""

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
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(self.weight.dtype)
