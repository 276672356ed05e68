"""Dropout for modules that know nothing of it: released weights are run without."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import dropout


def add_output_dropout(module: nn.Module, probability: float) -> None:
    """In training, what the module gives is dropped with this probability (arXiv 1207.0580)."""

    def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return dropout(output, probability, module.training)

    module.register_forward_hook(drop)
