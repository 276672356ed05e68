"""Which parameters of a model are learned: factors of low rank for some of its linear layers, or weights themselves.

Names of modules are those of checkpoints, which transformers uses too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from idefics.config import CONNECTOR_MODULES
from idefics.errors import BadSetting
from idefics.nn.lora import LoraLinear
from idefics.train.settings import TrainSettings
from idefics.weights.adapter_config import AdapterConfig

Part = Literal["text", "connector", "vision", "embedding"]
PARTS_BY_TARGETS: Mapping[str, tuple[Part, ...]] = {
    "text": ("text",),
    "text+connector": ("text", "connector"),
    "all": ("text", "connector", "vision"),
}
GATES = ("alpha_cross_attn", "alpha_dense")  # parameters of Idefics 1's gated cross-attention layers
WHOLE_MODULES = ("lm_head", "embed_tokens")  # that have no factors
MAX_EXAMPLES = 6  # names of modules in an error message


@dataclass(frozen=True, slots=True)
class LearnedParameters:
    """The parameters that training changes.

    Attributes:
        by_name: the parameters; factors as "NAME.lora_A.weight" and "NAME.lora_B.weight" for a module NAME, others by
            their names in the model. A tied one is there once.
        adapter_config: describes them as an adapter; None: they are weights of the model.
    """

    by_name: Mapping[str, nn.Parameter]
    adapter_config: AdapterConfig | None

    @property
    def num_parameters(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.by_name.values())


def part_of(name: str) -> Part:
    """The part of a model that a module or a parameter belongs to, by its name."""
    parts = name.split(".")
    if "vision_model" in parts:
        return "vision"
    if not {*parts}.isdisjoint(CONNECTOR_MODULES):
        return "connector"
    if parts[0] == "lm_head" or "embed_tokens" in parts:
        return "embedding"
    return "text"


def make_trainable(
    model: nn.Module, settings: TrainSettings, dtype: torch.dtype = torch.float32
) -> LearnedParameters:
    """Freezes all of a model but what the settings say, and adds factors to the layers that have them.

    Args:
        model: loaded, on its device. Layers are replaced in it by `LoraLinear`.
        settings: method, targets, rank, alpha, dropout, seed.

    Raises:
        BadSetting: the targets match nothing, or are no regular expression.
    """
    model.requires_grad_(False)
    if settings.method == "full":
        return _unfreeze(model, settings.targets or "all")
    return _add_factors(model, settings, dtype)


def _unfreeze(model: nn.Module, targets: str) -> LearnedParameters:
    """Unfreezes the weights that `targets` names: with "text" also the embedding and the head."""
    if targets in PARTS_BY_TARGETS:
        parts = {"embedding", *PARTS_BY_TARGETS[targets]}
        by_name = {name: weight for name, weight in model.named_parameters() if part_of(name) in parts}
    else:
        pattern = _compile(targets)
        by_name = {
            name: weight
            for name, weight in model.named_parameters()
            if pattern.fullmatch(name) or pattern.fullmatch(name.rpartition(".")[0])
        }
    if not by_name:
        raise _no_match(targets, [name for name, _ in model.named_parameters()])
    for weight in by_name.values():
        weight.requires_grad_(True)
    return LearnedParameters(by_name, None)


def _add_factors(model: nn.Module, settings: TrainSettings, dtype: torch.dtype) -> LearnedParameters:
    """Puts a `LoraLinear` around each linear layer that the settings name, and unfreezes gates with "text"."""
    targets = settings.targets or "text"
    linear_names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and part_of(name) != "embedding"
    ]
    saved = list(settings.modules_to_save)
    if targets in PARTS_BY_TARGETS:
        names = [name for name in linear_names if part_of(name) in PARTS_BY_TARGETS[targets]]
        target_modules = _pattern_of(names)
        endings = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
        saved += [gate for gate in GATES if gate in endings and gate not in saved]
    else:
        names = [name for name in linear_names if _compile(targets).fullmatch(name)]
        target_modules = targets
    by_name = _unfreeze_saved(model, saved, dtype)
    names = [name for name in names if f"{name}.weight" not in by_name]
    if not names:
        raise _no_match(targets, linear_names)
    generator = torch.Generator().manual_seed(settings.seed)
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        wrapped = LoraLinear(layer, settings.rank, settings.alpha, settings.dropout, generator)
        model.set_submodule(name, wrapped)
        by_name |= {f"{name}.lora_A.weight": wrapped.lora_A, f"{name}.lora_B.weight": wrapped.lora_B}
    config = AdapterConfig(
        rank=settings.rank,
        alpha=settings.alpha,
        target_modules=target_modules,
        modules_to_save=tuple(saved),
        base_model=settings.model,
    )
    return LearnedParameters(by_name, config)


def _unfreeze_saved(model: nn.Module, saved: list[str], dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """Unfreezes the weights of the modules that an adapter stores wholly, in float32, and returns them by name.

    Raises:
        BadSetting: a name matches nothing, or a weight that is the embedding and the head at once.
    """
    by_name: dict[str, nn.Parameter] = {}
    num_names = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for one in saved:
        found = {
            name: weight
            for name, weight in model.named_parameters(remove_duplicate=False)
            if f".{one}." in f".{name}."
        }
        if not found:
            endings = dict.fromkeys(
                name.split(".")[-2] for name, _ in model.named_parameters() if "." in name
            )
            raise BadSetting(
                f"modules_to_save has {one!r}, which is the end of no module's name: give one of {', '.join(endings)}"
            )
        if any(num_names[id(weight)] > 1 for weight in found.values()):
            raise BadSetting(
                f"modules_to_save has {one!r}; embedding and head of this model are one weight, which an adapter "
                'cannot replace: leave it out, or give method "full"'
            )
        by_name |= found
    for name, weight in by_name.items():
        weight.requires_grad_(True)
        weight.data = weight.detach().float().clone()  # not in the file
        owner, _, attribute = name.rpartition(".")
        if dtype != torch.float32 and attribute not in GATES:
            parametrize.register_parametrization(
                model.get_submodule(owner), attribute, _CastTo(dtype), unsafe=True
            )
    return by_name


class _CastTo(nn.Module):
    """The value with which a module computes in place of its float32 weight."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        """The weight in another dtype."""
        return weight.to(self.dtype)


def _pattern_of(names: list[str]) -> str:
    """A regular expression of exactly these modules, in which numbers of layers are any number."""
    shapes = dict.fromkeys(re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in names)
    return "|".join(shapes)


def _compile(pattern: str) -> re.Pattern[str]:
    """Compiles `targets`; raises BadSetting if it is no regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise BadSetting(
            f"targets is {pattern!r}, which is no regular expression ({error}): give "
            f"{', '.join(PARTS_BY_TARGETS)}, or a regular expression of names of modules"
        ) from None


def _no_match(targets: str, names: list[str]) -> BadSetting:
    """The error about targets that match nothing, with some names that could be matched."""
    shapes = list(dict.fromkeys(re.sub(r"\.\d+\.", ".0.", name) for name in names))
    examples = ", ".join(shapes[:: max(1, len(shapes) // MAX_EXAMPLES)])
    hint = ""
    if any(name.endswith(f".{targets}") for name in names):
        hint = f" (did you mean '.*{targets}'?)"
    elif targets in WHOLE_MODULES:
        hint = f" (modules_to_save={targets} learns it wholly)"
    return BadSetting(
        f"targets is {targets!r}, which is the whole name of no module{hint}: give {', '.join(PARTS_BY_TARGETS)}, or a "
        f"regular expression; names are {examples}"
    )


def learned_tensors(learned: LearnedParameters) -> dict[str, Tensor]:
    """The values of the learned parameters, on the CPU."""
    return {name: parameter.detach().cpu() for name, parameter in learned.by_name.items()}


def assign_learned(learned: LearnedParameters, tensors: Mapping[str, Any]) -> None:
    """Sets the values of the learned parameters, as `learned_tensors` gave them."""
    with torch.no_grad():
        for name, parameter in learned.by_name.items():
            parameter.copy_(tensors[name])
