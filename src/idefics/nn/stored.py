"""Matrices stored in fewer bits than are computed with: sixteen in memory, and widened where they are used."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (..., I), (O, I), (O,) or None -> (..., O)

WIDE = 2**22  # weights that are wide at once: 16 MiB in float32, which stay in a processor's cache


class TokenEmbedding(nn.Embedding):
    """A vocabulary's table. It may be stored in fewer bits: the model's `embed` widens the rows that it looks up."""


class StoredLinear(nn.Linear):
    """A layer whose weight may be stored in sixteen bits; bias and products have the inputs' dtype.

    Attributes:
        product: what computes with the wide weight.
    """

    product: Product = staticmethod(functional.linear)

    def forward(self, input: Tensor) -> Tensor:  # (..., I) -> (..., O)
        return widened(input, self.weight, self.bias, self.product)


def widened(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, product: Product = functional.linear
) -> Tensor:
    """(..., I), (O, I) -> (..., O): a product in the input's dtype. Of a weight in another, `WIDE` are wide at once."""
    if weight.dtype == input.dtype:
        return product(input, weight, bias)
    rows = max(1, WIDE // weight.shape[1])
    parts = [
        product(input, some.to(input.dtype), None if bias is None else bias[start : start + rows])
        for start, some in zip(range(0, len(weight), rows), weight.split(rows), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
