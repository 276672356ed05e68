"""`LoraLinear`: a linear layer plus a learned product of two matrices of low rank (LoRA, arXiv 2106.09685).

I inputs, O outputs, r rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class LoraLinear(nn.Module):
    """base_layer(x) + alpha / r * B A dropout(x): of a layer of any kind, a quantised one too.

    The result has the dtype that the layer gives; the factors are float32.

    Args:
        base_layer: the layer, which stays as it is.
        rank: r.
        alpha: the product is scaled by alpha / r.
        dropout: the probability with which an input of the product is dropped in training.
        generator: draws A; B is zero, so that the model is unchanged at first.

    Attributes:
        lora_A: (r, I) float32.
        lora_B: (O, r) float32.
    """

    def __init__(
        self, base_layer: nn.Linear, rank: int, alpha: float, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale, self.dropout = alpha / rank, dropout
        device = base_layer.weight.device
        lora_a = torch.empty(rank, base_layer.in_features)
        # Uniform within 1 / sqrt(I), as in the published code and in peft.
        nn.init.kaiming_uniform_(lora_a, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(lora_a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base_layer.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer and adds the product: (..., I) -> (..., O)."""
        out: Tensor = self.base_layer(x)
        dropped = functional.dropout(x, self.dropout, self.training)
        reduced = functional.linear(dropped, self.lora_A.to(x.dtype)).flatten(0, -2)  # (N, r)
        factor = self.lora_B.to(x.dtype).t()
        return torch.addmm(out.flatten(0, -2), reduced, factor, alpha=self.scale).view(out.shape)
