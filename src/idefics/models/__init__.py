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
from idefics.models.family import ModelFamily
from idefics.placement import DeviceMap
from idefics.quant.autotune import KernelChoice
from idefics.weights import KeyRules
from idefics.weights.adapters import refuse_adapter

# How matrices are stored beside what is computed with them: in a dtype; or as the file has them, where that is in
# sixteen bits; None: as they are computed with.
WeightStorage = torch.dtype | Literal["file"] | None

QUANT_METHOD = "idefics"  # of `quantization_config` in config.json

# config.json's "model_type" -> file in this folder. SmolVLM is Idefics 3's mathematics with other numbers.
MODEL_REGISTRY = {
    "idefics": "idefics1",
    "idefics2": "idefics2",
    "idefics3": "idefics3",
    "smolvlm": "idefics3",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that has been read but not loaded."""

    folder: Path
    family: ModelFamily
    config: ModelConfig
    quantization: QuantizationConfig | None = None  # in which its weights are stored


def family_for(model_type: str) -> ModelFamily:
    """The family that runs `model_type`, or an UnsupportedModel that lists what can be run."""
    if model_type not in MODEL_REGISTRY:
        raise UnsupportedModel(
            f"config.json says model_type {model_type!r}; this version runs {', '.join(MODEL_REGISTRY)}: "
            "`idefics models` lists them"
        )
    family: ModelFamily = import_module(f"idefics.models.{MODEL_REGISTRY[model_type]}").FAMILY
    return family


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads config.json and generation_config.json (which may be absent)."""
    raw = _read_json(folder / "config.json")
    generation = (
        _read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
    )
    family = family_for(raw.get("model_type", "(none)"))
    return Checkpoint(folder, family, family.read_config(raw, generation), _read_quantization(folder, raw))


def quantization_config_dict(quantization: QuantizationConfig) -> dict[str, Any]:
    """What config.json says of a checkpoint that `idefics quantize` has written."""
    return {
        "quant_method": QUANT_METHOD,
        "bits": quantization.kind,
        "modules_to_not_convert": list(quantization.skipped),
    }


def _read_quantization(folder: Path, raw: dict[str, Any]) -> QuantizationConfig | None:
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


def build_on_meta_device(checkpoint: Checkpoint) -> nn.Module:
    """The module on the meta device: shapes without memory."""
    with meta_device():
        return checkpoint.family.build(checkpoint.config).eval()


@contextmanager
def meta_device() -> Iterator[None]:
    """Modules built while this lasts stand on the meta device."""
    with torch.device("meta"), _SkipWeightInit():
        yield


class _SkipWeightInit(TorchFunctionMode):
    """Modules draw no first weights. On the meta device that would import torch's compiler, which takes seconds."""

    INIT_FUNCTIONS = (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_)

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        return keywords["tensor"] if function in self.INIT_FUNCTIONS else function(*arguments, **keywords)


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device | DeviceMap,
    storage: WeightStorage = None,
    quantization: QuantizationConfig | None = None,
) -> nn.Module:
    """The module with its weights; arguments as in `fill`."""
    model = build_on_meta_device(checkpoint)
    load_weights(
        model,
        checkpoint.folder,
        checkpoint.family.key_rules,
        dtype=dtype,
        device=device,
        storage=storage,
        quantization=quantization,
        checkpoint_quantization=checkpoint.quantization,
    )
    return model


def load_weights(
    model: nn.Module,
    folder: Path,
    key_rules: KeyRules,
    *,
    dtype: torch.dtype,
    device: torch.device | DeviceMap,
    storage: WeightStorage = None,
    quantization: QuantizationConfig | None = None,
    checkpoint_quantization: QuantizationConfig | None = None,
    kernel_choice: KernelChoice | None = None,
    mmap: bool = False,
    optional_names: Collection[str] = (),
) -> list[str]:
    """Weights for a module on the meta device, each streamed straight to its final dtype, device and number of bits.

    Args:
        dtype: in which the module computes.
        device: one device, or how to spread the module over several (`placement.wanted`).
        storage: of matrices that are not quantised, and of tables of tokens.
        quantization: which layers keep their weights in few bits, and how; None: none does.
        checkpoint_quantization: which layers are in few bits in the folder already.
        kernel_choice: what is quick on this machine; None: torch's own products.
        mmap: whether what is used as it is stored stays in the files, as in `weights.load`.
        optional_names: names that the folder may lack; those that it lacks are returned.

    Raises:
        ModelError: as `weights.load`.
        BadSetting: it does not fit on the devices, or the device map does not fit it.
        MissingExtra: the quantisation needs one.
    """
    if checkpoint_quantization is not None and quantization is not None:
        raise BadSetting(
            f"{folder} is kept in {checkpoint_quantization.kind} already: leave quantize out, or give the original"
        )
    dtype_by_name: dict[str, torch.dtype | None] = (
        dict.fromkeys(quant.replace_with_empty_quantized(model, checkpoint_quantization))
        if checkpoint_quantization
        else {}
    )
    quantizers_by_name = quant.quantizers_by_name(model, quantization) if quantization else {}
    bits_by_name = {name: quantization.bits_of(name) for name in quantizers_by_name} if quantization else {}
    if storage is not None:
        storage_dtype_by_name = dict.fromkeys(
            quant.enable_16bit_weight_storage(model), None if storage == "file" else storage
        )
        bits_by_name = dict.fromkeys(storage_dtype_by_name, 16) | bits_by_name
        dtype_by_name |= storage_dtype_by_name
    device_by_module = placement.assign_devices(model, device, dtype=dtype, bits_by_name=bits_by_name)
    missing_names = weights.load(
        model,
        folder,
        key_rules,
        dtype=dtype,
        device=device_by_module,
        dtype_by_name=dtype_by_name,
        quantizers_by_name=quantizers_by_name,
        mmap=mmap,
        optional_names=optional_names,
    )
    if kernel_choice is not None:
        quant.apply_kernel_choice(model, kernel_choice)
    placement.install_device_hooks(model)
    return missing_names


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
