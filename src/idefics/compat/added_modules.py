"""Modules that a subclass adds to a model: they may be missing in a checkpoint, and have first weights then."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from idefics.config import QuantizationConfig

if TYPE_CHECKING:
    from idefics.compat.modeling import PreTrainedModel


def added_tensor_names(model: nn.Module) -> frozenset[str]:
    """The names of weights that subclasses of this package's classes have added.

    A model that is built for a checkpoint stands on the meta device, but for what others than these classes made.
    """
    named = model.state_dict(keep_vars=True).items()
    return frozenset(name for name, tensor in named if not tensor.is_meta)


def skip_added_modules(
    quantization: QuantizationConfig, added_tensors: Collection[str]
) -> QuantizationConfig:
    """The same, but that modules with added weights keep full precision."""
    modules = sorted({name.rpartition(".")[0] for name in added_tensors} - {""})
    return replace(quantization, skip=(*quantization.skipped, *modules)) if modules else quantization


def initialize_added_modules(model: PreTrainedModel, root: nn.Module, missing_keys: Sequence[str]) -> None:
    """First weights for added modules of which a checkpoint holds nothing; `missing_keys` and a warning name them.

    Args:
        model: says how.
        root: the module that the names belong to.
        missing_keys: names of weights that the checkpoint does not hold.
    """
    model.missing_keys = tuple(missing_keys)
    if not missing_keys:
        return
    for owner in {name.rpartition(".")[0] for name in missing_keys}:
        module = root.get_submodule(owner)
        prefix = f"{owner}." if owner else ""
        own_parameter_names = {prefix + name for name, _ in module.named_parameters(recurse=False)}
        if owner and own_parameter_names <= set(missing_keys):
            model._init_weights(module)
    names = ", ".join(missing_keys[:5]) + (" ..." if len(missing_keys) > 5 else "")
    warnings.warn(
        f"{len(missing_keys)} weights are not in the checkpoint and have first weights ({names}): train them before use",
        stacklevel=4,
    )
