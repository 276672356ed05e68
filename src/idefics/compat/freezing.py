"""Freezing the parts of a model by the kinds of their modules, as the configs of Idefics name them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from idefics.errors import BadSetting

FREEZABLE_CLASSES = {"LayerNorm": nn.LayerNorm, "Linear": nn.Linear, "Embedding": nn.Embedding}


def freeze_except(module: nn.Module, exceptions: Sequence[str]) -> None:
    """Freezes all parameters but those of modules of these kinds, which are trained."""
    if unknown := set(exceptions) - set(FREEZABLE_CLASSES):
        raise BadSetting(
            f"modules of the kind {', '.join(sorted(unknown))} cannot be excepted from freezing; "
            f"give {', '.join(FREEZABLE_CLASSES)}"
        )
    excepted_classes = tuple(FREEZABLE_CLASSES[name] for name in exceptions)
    module.requires_grad_(False)
    for submodule in module.modules():
        if isinstance(submodule, excepted_classes):
            submodule.requires_grad_(True)
