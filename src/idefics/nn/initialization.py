"""First weights, where no checkpoint brings any, and rows added to a vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def initialize(model: nn.Module, std: float) -> None:
    """Gives every module of a model first weights, as `initialise_module` does."""
    for module in model.modules():
        initialize_module(module, std)


def initialize_module(module: nn.Module, std: float) -> None:
    """Matrices, convolutions and embeddings are drawn from a normal distribution, biases are zero.

    Norms and single parameters keep what their modules gave them.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


@torch.no_grad()
def resize_rows(weight: Tensor, num_rows: int, *, init_with_mean: bool, std: float) -> nn.Parameter:
    """A table with `num_rows` rows, cut or grown: (R, D) -> (rows, D).

    New rows are the mean of the old ones, so that they are no surprise to the model, or normal with `std`.
    """
    old_rows = weight[:num_rows]
    new_rows = weight.new_empty(num_rows - len(old_rows), weight.shape[1]).normal_(std=std)
    if init_with_mean:
        new_rows[:] = weight.float().mean(dim=0).to(weight.dtype)
    return nn.Parameter(torch.cat((old_rows, new_rows)), requires_grad=weight.requires_grad)
