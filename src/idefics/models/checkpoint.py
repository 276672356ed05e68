"""Reads the configs of a checkpoint's folder, and finds the model family in the registry."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from idefics.config import ModelConfig, QuantizationConfig
from idefics.errors import UnsupportedModel
from idefics.models.family import ModelFamily
from idefics.processing.checkpoint_settings import read_json_object
from idefics.weights.files import refuse_adapter

QUANT_METHOD = "idefics"  # of `quantization_config` in config.json

# config.json's "model_type" -> module in this package. SmolVLM has the architecture of Idefics 3, with other sizes.
MODEL_REGISTRY = {
    "idefics": "idefics1",
    "idefics2": "idefics2",
    "idefics3": "idefics3",
    "smolvlm": "idefics3",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The configs of a checkpoint, and its folder; weights are loaded later.

    Attributes:
        quantization: how its weights are quantised in the files; None: they are not.
    """

    folder: Path
    family: ModelFamily
    config: ModelConfig
    quantization: QuantizationConfig | None = None


def family_for(model_type: str) -> ModelFamily:
    """The family of a model_type in config.json. Raises UnsupportedModel, with the known ones, for any other."""
    if model_type not in MODEL_REGISTRY:
        raise UnsupportedModel(
            f"config.json says model_type {model_type!r}; this version runs {', '.join(MODEL_REGISTRY)}: "
            "`idefics models` lists them"
        )
    family: ModelFamily = import_module(f"idefics.models.{MODEL_REGISTRY[model_type]}").FAMILY
    return family


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads config.json and generation_config.json, of which the second may be absent.

    Raises:
        UnsupportedModel: a file cannot be read, or describes a model that this version does not run.
    """
    if not (folder / "config.json").exists():
        refuse_adapter(folder)
        raise UnsupportedModel(f"{folder} has no config.json: give the folder of a checkpoint")
    raw, generation = (read_json_object(folder / name) for name in ("config.json", "generation_config.json"))
    family = family_for(raw.get("model_type", "(none)"))
    return Checkpoint(
        folder, family, family.read_config(raw, generation), _read_own_quantization_config(folder, raw)
    )


def quantization_config_dict(quantization: QuantizationConfig) -> dict[str, Any]:
    """The `quantization_config` entry that `idefics quantize` writes into config.json, for `read_checkpoint`."""
    return {
        "quant_method": QUANT_METHOD,
        "bits": quantization.kind,
        "modules_to_not_convert": list(quantization.skipped),
    }


def _read_own_quantization_config(folder: Path, raw: dict[str, Any]) -> QuantizationConfig | None:
    """The quantisation in config.json; raises UnsupportedModel if another tool than `idefics quantize` did it."""
    match raw.get("quantization_config"):
        case None | {} as block if not block:
            return None
        case {"quant_method": "idefics", "bits": "int8" | "int4" as kind, "modules_to_not_convert": [*skip]}:
            return QuantizationConfig(kind=kind, skip=tuple(skip))
        case {"quant_method": method}:
            pass
        case _:
            method = "unknown"
    raise UnsupportedModel(
        f"{folder} is quantised ({method}); give the checkpoint in its original precision, "
        "or one that `idefics quantize` has written"
    )
