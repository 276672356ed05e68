"""Reads the configs of a checkpoint's folder, finds the model family, builds the model and fills it with weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from idefics import quant, weights
from idefics.config import ModelConfig, QuantizationConfig
from idefics.errors import BadSetting, UnsupportedModel
from idefics.models.family import ModelFamily
from idefics.placement.assignment import assign_devices, install_device_hooks
from idefics.placement.devices import DeviceMap
from idefics.processing.checkpoint_settings import read_json_object
from idefics.quant.autotune import KernelChoice
from idefics.weights import KeyRules
from idefics.weights.files import refuse_adapter

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


def family_of_class(name: str) -> ModelFamily | None:
    """The family of a class of transformers, such as "Idefics3ForConditionalGeneration"; None for any other class."""
    model_type = re.split("For|Model", name)[0].lower()
    return family_for(model_type) if model_type in MODEL_REGISTRY else None


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
        "quant_method": "idefics",
        "bits": quantization.kind,
        "modules_to_not_convert": list(quantization.skipped),
    }


def _read_own_quantization_config(folder: Path, raw: dict[str, Any]) -> QuantizationConfig | None:
    """The quantisation that config.json names; None if it names none.

    Raises:
        UnsupportedModel: another tool than `idefics quantize` has quantised the checkpoint.
    """
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


# The dtype in which matrices are stored. "file": the dtype of the file if that has 16 bits; None: the compute dtype.
WeightStorage = torch.dtype | Literal["file"] | None


def build_on_meta_device(checkpoint: Checkpoint) -> nn.Module:
    """The module of a checkpoint on the meta device: shapes without memory."""
    with meta_device_without_init():
        return checkpoint.family.build(checkpoint.config).eval()


def count_parameters(module: nn.Module) -> int:
    """How many parameters a module has as it is built; one that two modules share counts once."""
    return sum(weight.numel() for weight in module.parameters())


@contextmanager
def meta_device_without_init() -> Iterator[None]:
    """Modules that are built in this context are created on the meta device, without initialising weights."""
    with torch.device("meta"), _SkipWeightInit():
        yield


class _SkipWeightInit(TorchFunctionMode):
    """Skips weight initialisation, which on the meta device would import torch's compiler: that takes seconds."""

    INIT_FUNCTIONS = (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_)

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        return keywords["tensor"] if function in self.INIT_FUNCTIONS else function(*arguments, **keywords)


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
    adapter: Path | None = None,
) -> list[str]:
    """Fills a module on the meta device; each weight is streamed straight to its final dtype, device and bits.

    Args:
        dtype: the compute dtype.
        device: one device, or how to spread the module over several.
        storage: the dtype of unquantised matrices and of embeddings (`WeightStorage`).
        quantization: which layers are quantised, and how; None: none.
        checkpoint_quantization: which layers are quantised in the folder already.
        kernel_choice: the fastest kernels on this machine; None: torch's own.
        mmap: whether weights that are used as they are stored stay in the files, as in `weights.load`.
        optional_names: names that the folder may lack.
        adapter: the folder of an adapter, which is merged into the weights.

    Returns:
        Those of `optional_names` that the folder lacks.

    Raises:
        ModelError: as `weights.load`.
        BadSetting: the model, its devices, its adapter and its quantisation do not fit together.
        MissingExtra: the quantisation needs one.
    """
    if checkpoint_quantization is not None:
        _check_changes_of_quantized(folder, checkpoint_quantization, quantization, adapter)
    dtypes, quantizers, bits = _convert_layers_to_weight_formats(
        model, storage, quantization, checkpoint_quantization
    )
    missing_names = weights.load(
        model,
        folder,
        key_rules,
        dtype=dtype,
        device_by_module=assign_devices(model, device, dtype=dtype, bits_by_name=bits),
        dtype_by_name=dtypes,
        quantizers_by_name=quantizers,
        mmap=mmap,
        optional_names=optional_names,
        adapter=adapter,
    )
    if kernel_choice is not None:
        quant.apply_kernel_choice(model, kernel_choice)
    install_device_hooks(model)
    return missing_names


def _check_changes_of_quantized(
    folder: Path, stored: QuantizationConfig, quantization: QuantizationConfig | None, adapter: Path | None
) -> None:
    """Raises BadSetting if weights that are quantised in the folder are to be quantised again or to have an adapter."""
    if quantization is not None:
        raise BadSetting(
            f"{folder} is stored in {stored.kind} already: leave quantize out, or give the original"
        )
    if adapter is not None:
        raise BadSetting(
            f"{folder} is stored in {stored.kind}, and an adapter cannot be merged into integers: give the original "
            f"model, with quantize={stored.kind!r} if it is to be as small"
        )


def _convert_layers_to_weight_formats(
    model: nn.Module,
    storage: WeightStorage,
    quantization: QuantizationConfig | None,
    checkpoint_quantization: QuantizationConfig | None,
) -> tuple[dict[str, torch.dtype | None], Mapping[str, Callable[[Tensor], None]], dict[str, int]]:
    """Replaces or converts the layers whose weights are quantised or stored in 16 bits.

    Returns:
        For weights by name: the dtype (None: the file's own if that has 16 bits), the function that quantises a value
        and puts it into the model, and the bits of one number, to estimate memory.
    """
    dtypes: dict[str, torch.dtype | None] = {}
    quantizers: Mapping[str, Callable[[Tensor], None]] = {}
    bits: dict[str, int] = {}
    if checkpoint_quantization is not None:
        dtypes = dict.fromkeys(quant.replace_with_empty_quantized(model, checkpoint_quantization))
    if quantization is not None:
        quantizers = quant.quantizers_by_name(model, quantization)
        bits = {name: quantization.bits_of(name) for name in quantizers}
    if storage is not None:
        storage_dtype = None if storage == "file" else storage
        storage_dtypes = dict.fromkeys(quant.enable_16bit_weight_storage(model), storage_dtype)
        dtypes |= storage_dtypes
        bits = dict.fromkeys(storage_dtypes, 16) | bits
    return dtypes, quantizers, bits
