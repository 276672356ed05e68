"""The settings of `Idefics.load`, and what follows from them: number formats, kernels and limits of the engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import nn

from idefics import weights
from idefics.config import EngineConfig, KernelMode, QuantizationConfig, QuantKind
from idefics.errors import BadSetting
from idefics.host_memory import parse_bytes_or_share
from idefics.models import WeightStorage
from idefics.nn.attention_backends import (
    AttentionBackend,
    bfloat16_or_sdpa_attention,
    get_attention_backend,
    native_or_sdpa_attention,
    sdpa_attention,
)
from idefics.placement.devices import DeviceLike
from idefics.processing.url_policy import UrlPolicy
from idefics.quant.autotune import KernelChoice, choose_kernels
from idefics.validation import short_repr, validate_bool, validate_choice, validate_range

MAX_THREADS = 1024
FEATURE_CACHE_VARIABLE = "IDEFICS_FEATURE_CACHE"  # an environment variable
FEATURE_CACHE_VALUES = {
    **dict.fromkeys(("", "1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
DTYPE_BY_NAME = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """Where and how a model is loaded. The fields are the keywords of `Idefics.load`, which documents them.

    Raises:
        BadSetting: `adapters`, `offline`, `feature_cache` or `kernels` is wrong; others are checked where they are
            used.
    """

    adapter: str | os.PathLike[str] | None = None
    adapters: Mapping[str, str | os.PathLike[str]] = field(default_factory=dict)
    device: DeviceLike = "auto"
    dtype: str | torch.dtype = "auto"
    threads: int | None = None
    device_map: DeviceLike | Mapping[str, DeviceLike] | None = None
    max_memory: Mapping[int | str, int | str] | None = None
    quantize: QuantKind | QuantizationConfig | None = None
    attn_implementation: str = "sdpa"
    kv_cache: float | str | None = None
    batch_rows: int | None = None
    kernels: KernelMode = "auto"
    revision: str | None = None
    offline: bool | None = None
    feature_cache: bool | None = None
    remote_images: UrlPolicy = "any"
    progress: weights.ProgressCallback | None = None

    def __post_init__(self) -> None:
        if self.offline is not None:
            validate_bool("offline", self.offline)
        if self.feature_cache is not None:
            validate_bool("feature_cache", self.feature_cache)
        validate_choice("kernels", self.kernels, get_args(KernelMode))
        _validate_adapters(self.adapters, self.adapter)

    @property
    def uses_feature_cache(self) -> bool:
        """Whether encoded pictures are kept in files: `feature_cache`, else the environment variable, else True.

        Raises:
            BadSetting: the environment variable is neither on nor off.
        """
        if self.feature_cache is not None:
            return self.feature_cache
        value = os.environ.get(FEATURE_CACHE_VARIABLE, "").lower()
        if value not in FEATURE_CACHE_VALUES:
            raise BadSetting(f"{FEATURE_CACHE_VARIABLE} is {value!r}; give 1 or 0")
        return FEATURE_CACHE_VALUES[value]

    @property
    def is_reference(self) -> bool:
        """Whether the setting `kernels` is "reference": torch's plain operations compute everything."""
        return self.kernels == "reference"


def _validate_adapters(adapters: object, adapter: object) -> None:
    """Raises BadSetting unless adapters that share the model are given by names, and no other is merged into it."""
    if not isinstance(adapters, Mapping) or not all(
        isinstance(name, str) and name.strip() for name in adapters
    ):
        raise BadSetting(
            f'adapters is {short_repr(adapters)}; give names and folders or hub ids: {{"name": "path"}}'
        )
    if adapters and adapter is not None:
        raise BadSetting(
            "adapter and adapters are both given: adapter is merged into the model, and adapters share it; give one"
        )


@dataclass(frozen=True, slots=True)
class ComputePlan:
    """How a model computes: the dtype of activations, weight storage, and kernels.

    Attributes:
        dtype: the dtype of activations.
        storage: how unquantized matrices are stored: in a dtype, as in the file ("file"), or in `dtype` (None).
        kernel_choice: the kernels of matrix products; None: torch's plain products.
        attention_backend: computes attention outside the decode step.
    """

    dtype: torch.dtype
    storage: WeightStorage
    kernel_choice: KernelChoice | None
    attention_backend: AttentionBackend


def plan_computation(
    module: nn.Module, device: torch.device, checkpoint_dtype: str | None, settings: LoadSettings
) -> ComputePlan:
    """Chooses the dtype, the weight storage and the kernels of a model.

    Args:
        module: the model, on the meta device.
        device: the main device.
        checkpoint_dtype: the name of the dtype in which the checkpoint stores its weights.
        settings: the caller's settings.

    Raises:
        BadSetting: an unknown dtype or attention implementation, or one that this device cannot use.
    """
    kernel_choice = (
        choose_kernels(module, settings.kernels)
        if device.type == "cpu" or settings.is_reference
        else KernelChoice()
    )
    dtype, storage = resolve_dtypes(settings.dtype, device, checkpoint_dtype)
    attention_backend = get_attention_backend(settings.attn_implementation, dtype, device)
    if attention_backend is native_or_sdpa_attention:
        if settings.is_reference:
            attention_backend = sdpa_attention
        elif kernel_choice is not None and kernel_choice.bfloat16 and storage is not None:
            attention_backend = bfloat16_or_sdpa_attention
    return ComputePlan(dtype, storage, kernel_choice, attention_backend)


def resolve_dtypes(
    dtype: str | torch.dtype, device: torch.device, checkpoint_dtype: str | None
) -> tuple[torch.dtype, WeightStorage]:
    """Chooses the dtype of activations and how matrices are stored.

    "auto" is the checkpoint's dtype on a GPU. On a CPU it is float32, with weights stored as in the checkpoint; a
    16-bit dtype given by name is the storage dtype there. Activations between layers are float32 on a CPU; whether
    products round their inputs to bfloat16 depends on the kernels (`KernelChoice.bfloat16`).

    Args:
        dtype: the caller's setting: "auto", a name or a torch dtype.
        device: the main device.
        checkpoint_dtype: the name of the dtype in which the checkpoint stores its weights.

    Returns:
        The dtype of activations, and the weight storage (see `ComputePlan.storage`).

    Raises:
        BadSetting: an unknown dtype.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        if device.type == "cpu":
            return torch.float32, "file"
        return DTYPE_BY_NAME.get(checkpoint_dtype or "", torch.bfloat16), None
    if name not in DTYPE_BY_NAME:
        raise BadSetting(f"dtype is {name!r}; give auto, {', '.join(DTYPE_BY_NAME)}")
    if device.type == "cpu" and name != "float32":
        return torch.float32, DTYPE_BY_NAME[name]
    return DTYPE_BY_NAME[name], None


def to_quantization_config(quantize: object) -> QuantizationConfig | None:
    """Normalizes the `quantize` setting: None, a kind such as "int8", or a `QuantizationConfig`.

    Raises:
        BadSetting: an unknown kind.
    """
    if quantize is None or isinstance(quantize, QuantizationConfig):
        return quantize
    return QuantizationConfig(kind=quantize)  # type: ignore[arg-type]  # the constructor checks it


def choose_engine_config(device: torch.device, settings: LoadSettings) -> EngineConfig:
    """Chooses the limits of the engine for a device.

    A GPU reads its weights once for a whole batch, so that its batches are larger than a CPU's.

    Args:
        device: the main device.
        settings: the caller's settings.

    Raises:
        BadSetting: a limit is out of range.
    """
    limits: dict[str, Any] = {"reference": settings.is_reference}
    if device.type == "cuda":
        limits |= {
            "batch_rows": 64,
            "encode_frames": 32,
            "step_tokens": 2048,
            "kv_cache": 0.6,
            "picture_bytes": 4 << 30,
        }
    if settings.kv_cache is not None:
        limits["kv_cache"] = parse_bytes_or_share("kv_cache", settings.kv_cache)
    if settings.batch_rows is not None:
        limits["batch_rows"] = settings.batch_rows
    return EngineConfig(**limits)


def set_num_threads(num_threads: int) -> None:
    """Sets the number of CPU threads that torch computes with, in the whole process.

    Raises:
        BadSetting: not a whole number from 1 to 1024.
    """
    validate_range("threads", num_threads, 1, MAX_THREADS)
    torch.set_num_threads(num_threads)
