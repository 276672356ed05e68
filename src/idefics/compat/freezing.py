"""Freezing the parts of a model by the kinds of their modules, as the configs of Idefics name them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from idefics.errors import BadSetting

FREEZABLE = {"LayerNorm": nn.LayerNorm, "Linear": nn.Linear, "Embedding": nn.Embedding}


def freeze(module: nn.Module, exceptions: Sequence[str]) -> None:
    """Freezes all parameters but those of modules of these kinds, which are trained."""
    if unknown := set(exceptions) - set(FREEZABLE):
        raise BadSetting(
            f"modules of the kind {', '.join(sorted(unknown))} cannot be excepted from freezing; "
            f"give {', '.join(FREEZABLE)}"
        )
    kinds = tuple(FREEZABLE[name] for name in exceptions)
    module.requires_grad_(False)
    for part in module.modules():
        if isinstance(part, kinds):
            part.requires_grad_(True)
