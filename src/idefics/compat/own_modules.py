"""Modules that a subclass adds to a model: they may be missing in a checkpoint, and have first weights then."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from idefics.config import QuantizationConfig

if TYPE_CHECKING:
    from idefics.compat.loading import Loading


def own_tensors(model: nn.Module) -> frozenset[str]:
    """The names of weights that subclasses of this package's classes have added.

    A model that is built for a checkpoint stands on the meta device, but for what others than these classes made.
    """
    named = model.state_dict(keep_vars=True).items()
    return frozenset(name for name, tensor in named if not tensor.is_meta)


def sparing(quantisation: QuantizationConfig, own: Collection[str]) -> QuantizationConfig:
    """The same, but that modules with added weights keep full precision."""
    modules = sorted({name.rpartition(".")[0] for name in own} - {""})
    return replace(quantisation, skip=(*quantisation.skipped, *modules)) if modules else quantisation


def initialise_own(model: Loading, root: nn.Module, lacking: Sequence[str]) -> None:
    """First weights for added modules of which a checkpoint holds nothing; `missing_keys` and a warning name them.

    Args:
        model: says how.
        root: the module that the names belong to.
        lacking: names of weights that the checkpoint does not hold.
    """
    model.missing_keys = tuple(lacking)
    if not lacking:
        return
    for owner in {name.rpartition(".")[0] for name in lacking}:
        module = root.get_submodule(owner)
        prefix = f"{owner}." if owner else ""
        direct = {prefix + name for name, _ in module.named_parameters(recurse=False)}
        if owner and direct <= set(lacking):
            model._init_weights(module)
    names = ", ".join(lacking[:5]) + (" ..." if len(lacking) > 5 else "")
    warnings.warn(
        f"{len(lacking)} weights are not in the checkpoint and have first weights ({names}): train them before use",
        stacklevel=4,
    )
