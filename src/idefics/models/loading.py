"""Builds a model on the meta device and fills it with the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from idefics import quant, weights
from idefics.config import QuantizationConfig
from idefics.errors import BadSetting
from idefics.models.checkpoint import Checkpoint
from idefics.placement.assignment import assign_devices, install_device_hooks
from idefics.placement.devices import DeviceMap
from idefics.quant.autotune import KernelChoice
from idefics.weights import KeyRules

# The dtype in which matrices are stored. "file": the dtype of the file if that has 16 bits; None: the compute dtype.
WeightStorage = torch.dtype | Literal["file"] | None


def build_on_meta_device(checkpoint: Checkpoint) -> nn.Module:
    """The module of a checkpoint on the meta device: shapes without memory."""
    with meta_device_without_init():
        return checkpoint.family.build(checkpoint.config).eval()


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


@dataclass(slots=True)
class _WeightFormats:
    """For each weight that is stored in another format than the compute dtype, by name: its format.

    Attributes:
        dtypes: the dtype; None: the file's own if that has 16 bits.
        quantizers: functions that quantise a value and put it into the model.
        bits: the bits of one number, to estimate memory.
    """

    dtypes: dict[str, torch.dtype | None] = field(default_factory=dict)
    quantizers: Mapping[str, Callable[[Tensor], None]] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)


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

    Returns:
        Those of `optional_names` that the folder lacks.

    Raises:
        ModelError: as `weights.load`.
        BadSetting: the model does not fit on the devices, or the device map does not fit the model.
        MissingExtra: the quantisation needs one.
    """
    if checkpoint_quantization is not None and quantization is not None:
        raise BadSetting(
            f"{folder} is stored in {checkpoint_quantization.kind} already: leave quantize out, or give the original"
        )
    formats = _convert_layers_to_weight_formats(model, storage, quantization, checkpoint_quantization)
    missing_names = weights.load(
        model,
        folder,
        key_rules,
        dtype=dtype,
        device=assign_devices(model, device, dtype=dtype, bits_by_name=formats.bits),
        dtype_by_name=formats.dtypes,
        quantizers_by_name=formats.quantizers,
        mmap=mmap,
        optional_names=optional_names,
    )
    if kernel_choice is not None:
        quant.apply_kernel_choice(model, kernel_choice)
    install_device_hooks(model)
    return missing_names


def _convert_layers_to_weight_formats(
    model: nn.Module,
    storage: WeightStorage,
    quantization: QuantizationConfig | None,
    checkpoint_quantization: QuantizationConfig | None,
) -> _WeightFormats:
    """Replaces or converts the layers whose weights are quantised or stored in 16 bits; returns the formats."""
    formats = _WeightFormats()
    if checkpoint_quantization is not None:
        formats.dtypes = dict.fromkeys(quant.replace_with_empty_quantized(model, checkpoint_quantization))
    if quantization is not None:
        formats.quantizers = quant.quantizers_by_name(model, quantization)
        formats.bits = {name: quantization.bits_of(name) for name in formats.quantizers}
    if storage is not None:
        storage_dtype = None if storage == "file" else storage
        storage_dtypes = dict.fromkeys(quant.enable_16bit_weight_storage(model), storage_dtype)
        formats.dtypes |= storage_dtypes
        formats.bits = dict.fromkeys(storage_dtypes, 16) | formats.bits
    return formats
