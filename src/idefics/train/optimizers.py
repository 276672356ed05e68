"""The optimizers of training: AdamW (arXiv 1711.05101), with its moments in 32 or in 8 bits (arXiv 2110.02861)."""

from __future__ import annotations

import torch

from idefics.errors import BadSetting, MissingExtra
from idefics.train.settings import TrainSettings
from idefics.train.trainable import LearnedParameters


def make_optimizer(learned: LearnedParameters, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer of the settings. Weight decay applies to matrices, not to gates, norms and biases.

    Raises:
        BadSetting: an unknown optimizer.
        MissingExtra: "adamw8bit" without bitsandbytes.
    """
    parameters = list(learned.by_name.values())
    groups = [
        {"params": [one for one in parameters if _is_matrix(one)], "weight_decay": settings.weight_decay},
        {"params": [one for one in parameters if not _is_matrix(one)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, fused=True)
        case "adamw8bit":
            try:
                from bitsandbytes.optim import AdamW8bit
            except ImportError:
                raise MissingExtra("the optimizer adamw8bit", "quant") from None
            optimizer: torch.optim.Optimizer = AdamW8bit(groups)
            return optimizer
    raise BadSetting(f"optimizer is {settings.optimizer!r}; give adamw or adamw8bit")


def _is_matrix(parameter: torch.Tensor) -> bool:
    """Whether a parameter has more than one dimension; a gate's (1, 1, D) has not."""
    return parameter.squeeze().dim() > 1
