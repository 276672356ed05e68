"""From a checkpoint's folder to a running module: the registry, and what a folder says of itself."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from idefics import placement, quant, weights
from idefics.config import ModelConfig, QuantizationConfig
from idefics.errors import BadSetting, UnsupportedModel
from idefics.models.family import Family
from idefics.placement import Spread
from idefics.quant.measure import Verdict
from idefics.weights import KeyRules
from idefics.weights.adapters import refuse_adapter

# How matrices are stored beside what is computed with them: in a dtype; or as the file has them, where that is in
# sixteen bits; None: as they are computed with.
Storage = torch.dtype | Literal["file"] | None

METHOD = "idefics"  # of `quantization_config` in config.json

# config.json's "model_type" -> file in this folder. SmolVLM is Idefics 3's mathematics with other numbers.
REGISTRY = {"idefics": "idefics1", "idefics2": "idefics2", "idefics3": "idefics3", "smolvlm": "idefics3"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that has been read but not loaded."""

    folder: Path
    family: Family
    config: ModelConfig
    quantisation: QuantizationConfig | None = None  # in which its weights are stored


def family_for(model_type: str) -> Family:
    """The family that runs `model_type`, or an UnsupportedModel that lists what can be run."""
    if model_type not in REGISTRY:
        raise UnsupportedModel(
            f"config.json says model_type {model_type!r}; this version runs {', '.join(REGISTRY)}: "
            "`idefics models` lists them"
        )
    family: Family = import_module(f"idefics.models.{REGISTRY[model_type]}").FAMILY
    return family


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads config.json and generation_config.json (which may be absent)."""
    raw = _read_json(folder / "config.json")
    generation = (
        _read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
    )
    family = family_for(raw.get("model_type", "(none)"))
    return Checkpoint(folder, family, family.config(raw, generation), _quantisation(folder, raw))


def quantisation_block(quantisation: QuantizationConfig) -> dict[str, Any]:
    """What config.json says of a checkpoint that `idefics quantize` has written."""
    return {
        "quant_method": METHOD,
        "bits": quantisation.kind,
        "modules_to_not_convert": list(quantisation.skipped),
    }


def _quantisation(folder: Path, raw: dict[str, Any]) -> QuantizationConfig | None:
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


def build(checkpoint: Checkpoint) -> nn.Module:
    """The module on the meta device: shapes without memory."""
    with shapes_only():
        return checkpoint.family.build(checkpoint.config).eval()


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules built while this lasts stand on the meta device."""
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """Modules draw no first weights. On the meta device that would import torch's compiler, which takes seconds."""

    DRAWN = (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_)

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        return keywords["tensor"] if function in self.DRAWN else function(*arguments, **keywords)


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device | Spread,
    storage: Storage = None,
    quantisation: QuantizationConfig | None = None,
) -> nn.Module:
    """The module with its weights; arguments as in `fill`."""
    model = build(checkpoint)
    fill(
        model,
        checkpoint.folder,
        checkpoint.family.keys,
        dtype=dtype,
        device=device,
        storage=storage,
        quantisation=quantisation,
        stored=checkpoint.quantisation,
    )
    return model


def fill(
    model: nn.Module,
    folder: Path,
    keys: KeyRules,
    *,
    dtype: torch.dtype,
    device: torch.device | Spread,
    storage: Storage = None,
    quantisation: QuantizationConfig | None = None,
    stored: QuantizationConfig | None = None,
    verdict: Verdict | None = None,
    mapped: bool = False,
    optional: Collection[str] = (),
) -> list[str]:
    """Weights for a module on the meta device, each streamed straight to its final dtype, device and number of bits.

    Args:
        dtype: in which the module computes.
        device: one device, or how to spread the module over several (`placement.wanted`).
        storage: of matrices that are not quantised, and of tables of tokens.
        quantisation: which layers keep their weights in few bits, and how; None: none does.
        stored: which layers are in few bits in the folder already.
        verdict: what is quick on this machine; None: torch's own products.
        mapped: whether what is used as it is stored stays in the files, as in `weights.load`.
        optional: names that the folder may lack; those that it lacks are returned.

    Raises:
        ModelError: as `weights.load`.
        BadSetting: it does not fit on the devices, or the device map does not fit it.
        MissingExtra: the quantisation needs one.
    """
    if stored is not None and quantisation is not None:
        raise BadSetting(
            f"{folder} is kept in {stored.kind} already: leave quantize out, or give the original"
        )
    kept: dict[str, torch.dtype | None] = dict.fromkeys(quant.hollow(model, stored)) if stored else {}
    packs = quant.packs(model, quantisation) if quantisation else {}
    bits = {name: quantisation.bits_of(name) for name in packs} if quantisation else {}
    if storage is not None:
        narrow = dict.fromkeys(quant.stored(model), None if storage == "file" else storage)
        bits = dict.fromkeys(narrow, 16) | bits
        kept |= narrow
    places = placement.places(model, device, dtype=dtype, bits=bits)
    lacking = weights.load(
        model,
        folder,
        keys,
        dtype=dtype,
        device=places,
        storage=kept,
        pack=packs,
        mapped=mapped,
        optional=optional,
    )
    if verdict is not None:
        quant.tune(model, verdict)
    placement.join(model)
    return lacking


def _read_json(path: Path) -> dict[str, Any]:
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
