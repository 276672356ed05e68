"""Adapters of a loaded model: one that is merged into the weights, or several that share them.

Several adapters are factors that stay apart from the weights: each request chooses one, or none.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from idefics import models, weights
from idefics.engine.adapters import NO_ADAPTERS, ModelAdapters
from idefics.engine.native.native_model import list_linears
from idefics.errors import UnsupportedModel
from idefics.generation.load_settings import LoadSettings
from idefics.models import Checkpoint
from idefics.models.vision_language_model import VisionLanguageModel
from idefics.nn.adapter_terms import AdapterGates, AdapterRows, GatedLayer, LowRankHook, LowRankTerm
from idefics.placement.devices import first_accelerator_or_cpu
from idefics.prompt import PromptAdapter
from idefics.weights.adapters import WeightChange, read_weight_changes


def find_adapter(
    adapter: str | os.PathLike[str],
    model: str | os.PathLike[str],
    checkpoint: Checkpoint,
    settings: LoadSettings,
) -> Path:
    """Finds an adapter, downloads it if necessary, and compares its base model with the model.

    Raises:
        ModelError: it is not found, or was trained on another model.
    """
    folder = weights.find_adapter(adapter, offline=settings.offline, progress=settings.progress)
    config = weights.read_adapter_config(folder)
    weights.check_base_model(folder, config, model)
    if models.family_of_class(config.base_class) not in (None, checkpoint.family):
        raise UnsupportedModel(
            f"the adapter {folder} was trained on a model of the class {config.base_class}, and {model} is of the "
            f"family {checkpoint.family.name}: give {config.base_model or 'the model that it was trained on'}"
        )
    return folder


def find_merged_adapter(
    model: str | os.PathLike[str], checkpoint: Checkpoint, settings: LoadSettings
) -> Path | None:
    """Finds the adapter that is merged into the weights, as `find_adapter`; None if there is none."""
    if settings.adapter is None:
        return None
    return find_adapter(settings.adapter, model, checkpoint, settings)


@dataclass(frozen=True, slots=True)
class AdapterFactors:
    """The factors of an adapter, in float32 on the CPU.

    Attributes:
        name: by which callers choose it.
        key: SHA-256 (hex) of its files.
        factors: by the names of linear layers: b (O, r), multiplied by the scale, and a (r, I).
        gates: by their names, gates of cross-attention layers that are replaced.
    """

    name: str
    key: str
    factors: Mapping[str, tuple[Tensor, Tensor]]
    gates: Mapping[str, Tensor]


def read_adapters(
    model: str | os.PathLike[str], checkpoint: Checkpoint, module: nn.Module, settings: LoadSettings
) -> list[AdapterFactors]:
    """Reads the adapters that share a model.

    Args:
        module: of the checkpoint, on the meta device and not quantised.

    Raises:
        ModelError: an adapter is not found, does not fit, or changes more than the weights of linear layers.
    """
    read = []
    for name, adapter in settings.adapters.items():
        folder = find_adapter(adapter, model, checkpoint, settings)
        with ExitStack() as stack:
            changes = read_weight_changes(folder, module, checkpoint.family.key_rules, stack)
            _refuse_other_changes(name, folder, changes, module)
            gates = {weight: _read_gate(change) for weight, change in changes.items() if not change.factors}
            factors = {
                weight.removesuffix(".weight"): _read_factors(change)
                for weight, change in changes.items()
                if change.factors
            }
        read.append(AdapterFactors(name, weights.fingerprint_adapter(folder), factors, gates))
    return read


def _refuse_other_changes(
    name: str, folder: Path, changes: Mapping[str, WeightChange], module: nn.Module
) -> None:
    """Raises UnsupportedModel for changes that rows with other adapters cannot be spared."""
    refused: defaultdict[str, list[str]] = defaultdict(list)
    for weight, change in changes.items():
        if change.factors is None and isinstance(_owner(module, weight), GatedLayer):
            continue
        if change.factors is None or change.replacement:
            refused["replaces"].append(weight)
        elif change.factors.magnitude is not None:
            refused["sets the lengths of rows (DoRA) of"].append(weight)
        elif not isinstance(_owner(module, weight), nn.Linear):
            refused["changes"].append(weight)
    if refused:
        found = "; ".join(
            f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}"
            for what, names in refused.items()
        )
        raise UnsupportedModel(
            f"the adapter {name} ({folder}) {found}. Adapters that share a model change linear layers only: load this "
            "one alone, with adapter= (--adapter), or make a checkpoint of it with `idefics merge`"
        )


def _owner(module: nn.Module, weight: str) -> nn.Module:
    """The module that has a weight as its own."""
    return module.get_submodule(weight.rpartition(".")[0])


def _read_gate(change: WeightChange) -> Tensor:
    """The gate that replaces another, in float32."""
    (part,) = change.replacement
    return part.read().float().flatten()


def _read_factors(change: WeightChange) -> tuple[Tensor, Tensor]:
    """The factors of a change, in memory of their own: (O, r), multiplied by the scale, and (r, I)."""
    assert change.factors is not None
    b, a = change.factors.read(torch.device("cpu"))
    return b * change.factors.scale, a.clone()


def attach_adapters(module: nn.Module, read: Sequence[AdapterFactors]) -> ModelAdapters:
    """Adds adapters to the linear layers of a loaded model. They are computed in its dtype, on the layers' devices."""
    if not read:
        return NO_ADAPTERS
    assert isinstance(module, VisionLanguageModel)
    main_device = first_accelerator_or_cpu(weight.device for weight in module.parameters())
    adapter_rows = AdapterRows()
    names = dict.fromkeys(name for adapter in read for name in adapter.factors)
    all_terms: list[LowRankTerm] = []
    for name in names:
        layer = module.get_submodule(name)
        device = next(layer.parameters()).device
        # Weights in CPU memory are copied to a GPU, if there is one, while their layer computes.
        device = main_device if device.type == "cpu" else device
        terms = [_make_term(adapter.factors.get(name), device, module.dtype) for adapter in read]
        layer.register_forward_hook(LowRankHook(terms, adapter_rows))
        all_terms += filter(None, terms)
    _attach_gates(module, read, adapter_rows)
    decoder_layers = set(list_linears(module.decoder_parts()))
    picture_names = {name for name in names if module.get_submodule(name) not in decoder_layers}
    adapters = [
        PromptAdapter(adapter.name, index, adapter.key, not picture_names.isdisjoint(adapter.factors))
        for index, adapter in enumerate(read)
    ]
    return ModelAdapters(adapters, adapter_rows, sum(term.a.nbytes + term.b.nbytes for term in all_terms))


def _attach_gates(module: nn.Module, read: Sequence[AdapterFactors], adapter_rows: AdapterRows) -> None:
    """Lets layers use the gates of adapters for their rows."""
    layers = dict.fromkeys(name.rpartition(".")[0] for adapter in read for name in adapter.gates)
    for name in layers:
        layer = module.get_submodule(name)
        assert isinstance(layer, GatedLayer)
        gates = {
            gate: [
                None if (given := adapter.gates.get(f"{name}.{gate}")) is None else given.to(value.device)
                for adapter in read
            ]
            for gate, value in layer.named_parameters(recurse=False)
        }
        layer.adapter_gates = AdapterGates(gates, adapter_rows)


def _make_term(
    factors: tuple[Tensor, Tensor] | None, device: torch.device, dtype: torch.dtype
) -> LowRankTerm | None:
    """The term of an adapter in a layer; None if it has no factors for it."""
    if factors is None:
        return None
    b, a = (one.to(device, dtype) for one in factors)
    return LowRankTerm(a.contiguous(), b.T.contiguous())
