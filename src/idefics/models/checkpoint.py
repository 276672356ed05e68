"""Reads the configs of a checkpoint's folder, and finds the model family in the registry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from idefics.config import ModelConfig, QuantizationConfig
from idefics.errors import UnsupportedModel
from idefics.models.family import ModelFamily
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
    raw = _read_json(folder / "config.json")
    path = folder / "generation_config.json"
    generation = _read_json(path) if path.exists() else {}
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


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises UnsupportedModel if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        refuse_adapter(path.parent)
        raise UnsupportedModel(f"{path.parent} has no {path.name}: give the folder of a checkpoint") from None
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path} cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path} is not a JSON object")
    return content
