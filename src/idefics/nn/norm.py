"""Root-mean-square normalisation (arXiv 1910.07467)."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Scales the last dimension to unit root mean square, then by a learned weight.

    The mean is taken in float32 whatever the input; the result has the weight's dtype before it is scaled, which is
    what both Llama's and Idefics' own norms compute when activations and weights share a dtype.
    """

    def __init__(self, hidden_size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., width)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(self.weight.dtype)
