"""`AdapterConfig`: the adapter_config.json of a low-rank adapter (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353).

Source of the format: https://huggingface.co/docs/peft/developer_guides/checkpoint and peft's `LoraConfig`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from idefics.errors import BrokenCheckpoint, UnsupportedModel

T = TypeVar("T")
TextOrNumber = TypeVar("TextOrNumber", str, int)

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ALL_LINEAR = "all-linear"

# Ways of training and of starting: they do not change what a trained adapter computes. Other fields that switch
# something on are refused by name, also those of peft's later versions.
HARMLESS_FIELDS = frozenset(
    {
        "auto_mapping",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_ga_config",
        "corda_config",
        "velora_config",
    }
)
READ_FIELDS = frozenset(
    {
        "alpha_pattern",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "modules_to_save",
        "rank_pattern",
        "target_modules",
        "use_dora",
        "use_rslora",
    }
)
# Starts that leave the base model's weights as they are. The others subtract something from them first.
HARMLESS_STARTS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What an adapter changes, and how.

    Attributes:
        rank: of the two factors of each change.
        alpha: the factors' product is scaled by alpha / rank.
        use_rslora: scaled by alpha / sqrt(rank) instead (arXiv 2312.03732).
        use_dora: each row of the result has a length of its own.
        rank_pattern, alpha_pattern: regular expression of modules -> their rank, their alpha.
        target_modules: the modules that have factors: ends of their names, "all-linear", or a regular expression.
        exclude_modules: modules that have none, written in the same way.
        layers_to_transform: if not empty, the only numbers of layers that have factors.
        layers_pattern: names of the lists that these numbers belong to; empty: any list.
        modules_to_save: ends of names of modules, or of single tensors, that are replaced.
        base_model: the model that it was trained on, as its author called it; "" if the file does not say.
        base_class: the class of that model in transformers; "" if the file does not say.
    """

    rank: int
    alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    exclude_modules: str | tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    base_model: str = ""
    base_class: str = ""

    def rank_of(self, module: str) -> int:
        """The rank of a module's factors."""
        return _find_by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """The number that the product of a module's factors is multiplied by."""
        rank = self.rank_of(module)
        alpha = _find_by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether a module has factors; "all-linear" is true for every module but the head."""
        if _matches(self.exclude_modules, module) or self.replaces(module):
            return False
        if self.target_modules == ALL_LINEAR:
            return module != "lm_head"
        return _matches(self.target_modules, module) and (
            isinstance(self.target_modules, str) or self._transforms_layer_of(module)
        )

    def _transforms_layer_of(self, module: str) -> bool:
        """Whether `layers_to_transform` and `layers_pattern` let a module have factors."""
        if not self.layers_to_transform:
            return True
        for pattern in self.layers_pattern or (r"[^.]*",):
            if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module):
                return int(match[1]) in self.layers_to_transform
        return False

    def replaces(self, tensor: str) -> bool:
        """Whether `modules_to_save` names a tensor or a module that it is in."""
        return any(has_part(tensor, one) for one in self.modules_to_save)

    def to_json(self) -> dict[str, Any]:
        """The fields of adapter_config.json, which peft reads."""
        values = {
            name: sorted(value) or None if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name in READ_FIELDS
        }
        return {
            **values,
            "peft_type": "LORA",
            "task_type": None,
            "auto_mapping": {"base_model_class": self.base_class} if self.base_class else None,
            "base_model_name_or_path": self.base_model or None,
            "revision": None,
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
        }


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Reads the adapter_config.json of a folder.

    Raises:
        UnsupportedModel: an adapter of another kind than LoRA and DoRA; the message names the field.
        BrokenCheckpoint: the file cannot be read, or a field that is needed is missing or of the wrong type.
    """
    path = folder / ADAPTER_CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        kind = raw["peft_type"]
        _refuse_other_kinds(path, kind, raw)
        return AdapterConfig(
            rank=_positive(raw, "r"),
            alpha=float(raw["lora_alpha"]),
            use_rslora=bool(raw.get("use_rslora")),
            use_dora=bool(raw.get("use_dora")),
            rank_pattern={_pattern(key): int(rank) for key, rank in (raw.get("rank_pattern") or {}).items()},
            alpha_pattern={
                _pattern(key): float(alpha) for key, alpha in (raw.get("alpha_pattern") or {}).items()
            },
            target_modules=_names(raw["target_modules"]),
            exclude_modules=_names(raw.get("exclude_modules")),
            layers_to_transform=_tuple(raw.get("layers_to_transform"), int),
            layers_pattern=_tuple(raw.get("layers_pattern"), str),
            modules_to_save=_tuple(raw.get("modules_to_save"), str),
            base_model=str(raw.get("base_model_name_or_path") or ""),
            base_class=str((raw.get("auto_mapping") or {}).get("base_model_class") or ""),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        if isinstance(error, UnsupportedModel):
            raise
        raise BrokenCheckpoint(
            f"{path} cannot be read as the config of an adapter ({type(error).__name__}: {error}): "
            "download or save it again"
        ) from error


def _refuse_other_kinds(path: Path, kind: object, raw: Mapping[str, Any]) -> None:
    """Raises UnsupportedModel for an adapter that is more than two factors for each of some weights."""
    merge_hint = "merge it with peft's merge_and_unload(), save_pretrained, and give that folder as the model"
    if kind != "LORA":
        raise UnsupportedModel(
            f"{path} describes an adapter of the kind {kind}; LORA (also DoRA) is supported: {merge_hint}"
        )
    used = [
        name
        for name, value in raw.items()
        if name not in HARMLESS_FIELDS | READ_FIELDS
        and (value is True or (isinstance(value, (dict, list)) and value))
    ]
    if raw.get("bias", "none") != "none":
        used.append("bias")
    if used:
        fields = ", ".join(f"{name} = {raw[name]!r}" for name in used)
        raise UnsupportedModel(f"{path} has {fields}, which is not supported: {merge_hint}")
    if (start := raw.get("init_lora_weights", True)) not in HARMLESS_STARTS:
        raise UnsupportedModel(
            f"{path} has init_lora_weights = {start!r}, which changed the base model's weights before training: save "
            "it again with peft's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )


def _positive(raw: Mapping[str, Any], name: str) -> int:
    """A field that is a whole number of at least 1. Raises ValueError otherwise."""
    value = raw[name]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, and must be at least 1")
    return value


def _names(value: Any) -> str | tuple[str, ...]:
    """`target_modules` or `exclude_modules`: a regular expression, "all-linear", or ends of names."""
    if isinstance(value, str):
        return ALL_LINEAR if value.lower() == ALL_LINEAR else _pattern(value)
    return _tuple(value, str)


def _tuple(value: Any, kind: type[TextOrNumber]) -> tuple[TextOrNumber, ...]:
    """A field that is a list of texts or whole numbers, a single one, or null."""
    return (value,) if isinstance(value, kind) else tuple(kind(one) for one in value or ())


def _pattern(text: str) -> str:
    """Returns a regular expression; raises re.error if it is none."""
    re.compile(text)
    return text


def _matches(names: str | tuple[str, ...], module: str) -> bool:
    """Whether a module is named by a regular expression, or by one of several ends of names."""
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    return any(f".{module}".endswith(f".{name}") for name in names)


def has_part(name: str, part: str) -> bool:
    """Whether a dotted name has a part, or several consecutive parts: "lm_head.additional_fc" has "lm_head"."""
    return f".{part}." in f".{name}."


def _find_by_pattern(pattern_values: Mapping[str, T], module: str, default: T) -> T:
    """The value of the first pattern that matches the end of a module's name."""
    for pattern, value in pattern_values.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
