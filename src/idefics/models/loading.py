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

from idefics import placement, quant, weights
from idefics.config import QuantizationConfig
from idefics.errors import BadSetting
from idefics.models.checkpoint import Checkpoint
from idefics.placement import DeviceMap
from idefics.quant.autotune import KernelChoice
from idefics.weights import KeyRules

# The dtype in which matrices are stored, where it is not the one that the module computes in. "file": the dtype of the
# file, where that has 16 bits; None: the dtype that the module computes in.
WeightStorage = torch.dtype | Literal["file"] | None


def build_on_meta_device(checkpoint: Checkpoint) -> nn.Module:
    """The module of a checkpoint on the meta device: shapes without memory."""
    with meta_device():
        return checkpoint.family.build(checkpoint.config).eval()


@contextmanager
def meta_device() -> Iterator[None]:
    """Modules that are built in this context stand on the meta device."""
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
class _StoragePlan:
    """How the weights are stored that are not stored in the dtype that the module computes in; all by name.

    Attributes:
        dtypes: dtype of a weight; None: the file's own where that has 16 bits.
        quantizers: functions that quantise a weight and put it into its place.
        bits: bits of a number, for the estimate of memory.
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
        dtype: in which the module computes.
        device: one device, or how to spread the module over several.
        storage: of matrices that are not quantised, and of embeddings.
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
    plan = _plan_storage(model, storage, quantization, checkpoint_quantization)
    missing_names = weights.load(
        model,
        folder,
        key_rules,
        dtype=dtype,
        device=placement.assign_devices(model, device, dtype=dtype, bits_by_name=plan.bits),
        dtype_by_name=plan.dtypes,
        quantizers_by_name=plan.quantizers,
        mmap=mmap,
        optional_names=optional_names,
    )
    if kernel_choice is not None:
        quant.apply_kernel_choice(model, kernel_choice)
    placement.install_device_hooks(model)
    return missing_names


def _plan_storage(
    model: nn.Module,
    storage: WeightStorage,
    quantization: QuantizationConfig | None,
    checkpoint_quantization: QuantizationConfig | None,
) -> _StoragePlan:
    """Replaces layers by those that store their weights so, and says how each weight is stored."""
    plan = _StoragePlan()
    if checkpoint_quantization is not None:
        plan.dtypes = dict.fromkeys(quant.replace_with_empty_quantized(model, checkpoint_quantization))
    if quantization is not None:
        plan.quantizers = quant.quantizers_by_name(model, quantization)
        plan.bits = {name: quantization.bits_of(name) for name in plan.quantizers}
    if storage is not None:
        storage_dtype = None if storage == "file" else storage
        storage_dtypes = dict.fromkeys(quant.enable_16bit_weight_storage(model), storage_dtype)
        plan.dtypes |= storage_dtypes
        plan.bits = dict.fromkeys(storage_dtypes, 16) | plan.bits
    return plan
