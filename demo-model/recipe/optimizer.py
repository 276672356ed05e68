"""Muon for the matrices of blocks, AdamW for the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WARM_UP_STEPS = 100


def orthogonalize(update: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards the nearest orthogonal matrix (kellerjordan.github.io/posts/muon)."""
    x = update / (update.norm() + 1e-7)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, scaled to the size of Adam's steps (arXiv 2502.16982)."""

    def __init__(self, groups: list[dict[str, object]], momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.1, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                average = state.setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalize(parameter.grad.lerp(average, group["momentum"]).flatten(1))
                scale = 0.2 * max(update.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)


def make_optimizers(model: nn.Module, heads: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for matrices of blocks, AdamW for the rest; each group has its `peak` learning rate, lower for vision."""
    matrices: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    other_parameters = list(heads.parameters())
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and (".layers." in name or ".blocks." in name or "gated_cross" in name):
            matrices["vision_model" in name].append(parameter)
        else:
            other_parameters.append(parameter)
    muon = Muon([{"params": matrices[False], "peak": 2e-3}, {"params": matrices[True], "peak": 1e-3}])
    adam = torch.optim.AdamW(
        [{"params": other_parameters, "peak": 1e-3}], betas=(0.9, 0.98), weight_decay=0.01
    )
    return [muon, adam]


def set_learning_rate(
    optimizer: torch.optim.Optimizer, step: int, num_steps: int, decay_fraction: float
) -> None:
    """Linear warm-up, constant, then linear decay to 2 % of the peak over the last `decay_fraction` of all steps."""
    decay_start = num_steps * (1 - decay_fraction)
    decay_factor = (
        1.0
        if step < decay_start
        else max(0.02, 1 - 0.98 * (step - decay_start) / max(1.0, num_steps - decay_start))
    )
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * min(1.0, (step + 1) / WARM_UP_STEPS) * decay_factor
