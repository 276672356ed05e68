"""Modules that a subclass adds to a model: a checkpoint may lack their weights, which are then initialised."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from idefics.config import QuantizationConfig

if TYPE_CHECKING:
    from idefics.compat.modeling import PreTrainedModel


def tensor_names_added_by_subclass(model: nn.Module) -> frozenset[str]:
    """The names of weights that a subclass of this package's classes has added.

    While a checkpoint is loaded, the modules of this package stand on the meta device, and only added ones do not.
    """
    named = model.state_dict(keep_vars=True).items()
    return frozenset(name for name, tensor in named if not tensor.is_meta)


def skip_added_modules(
    quantization: QuantizationConfig, added_tensors: Collection[str]
) -> QuantizationConfig:
    """The same quantisation, which leaves out the modules of added tensors."""
    modules = sorted({name.rpartition(".")[0] for name in added_tensors} - {""})
    return replace(quantization, skip=(*quantization.skipped, *modules)) if modules else quantization


def initialize_missing_modules_and_warn(
    model: PreTrainedModel, root: nn.Module, missing_keys: Sequence[str]
) -> None:
    """Initialises added modules that are wholly missing in a checkpoint; a warning names the missing weights.

    Args:
        model: initialises them by `_init_weights`, and gets `missing_keys`.
        root: the module in which the names are looked up.
        missing_keys: names of weights that the checkpoint lacks.
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
        f"{len(missing_keys)} weights are not in the checkpoint and were newly initialised ({names}): "
        "train them before use",
        stacklevel=5,  # the caller of `from_pretrained`
    )
