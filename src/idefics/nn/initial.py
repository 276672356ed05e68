"""First weights, where no checkpoint brings any, and rows added to a vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def initialise(model: nn.Module, deviation: float) -> None:
    """Gives every module of a model first weights, as `initialise_module` does."""
    for module in model.modules():
        initialise_module(module, deviation)


def initialise_module(module: nn.Module, deviation: float) -> None:
    """Matrices, convolutions and embeddings are drawn from a normal distribution, biases are zero.

    Norms and single parameters keep what their modules gave them.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
        nn.init.normal_(module.weight, std=deviation)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


@torch.no_grad()
def with_rows(weight: Tensor, rows: int, *, like_mean: bool, deviation: float) -> nn.Parameter:
    """A table with `rows` rows, cut or grown: (R, D) -> (rows, D).

    New rows are the mean of the old ones, so that they are no surprise to the model, or normal with `deviation`.
    """
    kept = weight[:rows]
    new = weight.new_empty(rows - len(kept), weight.shape[1]).normal_(std=deviation)
    if like_mean:
        new[:] = weight.float().mean(dim=0).to(weight.dtype)
    return nn.Parameter(torch.cat((kept, new)), requires_grad=weight.requires_grad)
