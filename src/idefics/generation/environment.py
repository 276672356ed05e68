"""Describes this machine (kernels, devices, memory, versions) and estimates the memory that a model needs.

Loads no weights. Everything returned is plain data, for `idefics info` and for bug reports.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from idefics import models, weights
from idefics.config import EngineConfig
from idefics.engine.kv_cache_size import compute_num_pages, kv_bytes_per_token
from idefics.engine.page_pool import PAGE_SIZE
from idefics.generation.cache_files import feature_cache_folder, prefix_folder
from idefics.host_memory import PROCESS_OVERHEAD_BYTES, free_host_memory, read_memory_limits
from idefics.native import library
from idefics.placement.devices import get_available_device, weight_bytes
from idefics.quant import enable_16bit_weight_storage
from idefics.quant.autotune import kernel_choice_by_processor, kernel_choice_cache_file, read_cpuinfo
from idefics.weights.files import num_weight_bytes

log = logging.getLogger(__name__)

DISTRIBUTIONS_BY_EXTRA: Mapping[str, tuple[str, ...]] = {  # what `pip install idefics[extra]` installs
    "heif": ("pillow-heif",),
    "video": ("av",),
    "quant": ("bitsandbytes",),
    "form": ("llguidance",),
    "peft": ("peft",),
    "serve": (
        "fastapi",
        "uvicorn",
        "python-multipart",
        "prometheus-client",
        "llguidance",
    ),
    "batch": ("pyarrow",),
    "docs": ("pypdfium2", "docling-core"),
    "datasets": ("datasets",),
    "train": ("tensorboard",),
    "ray": ("ray",),
}
REPORTED_DISTRIBUTIONS = (
    "torch",
    "numpy",
    "pillow",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "accelerate",
    "transformers",
)


def describe_environment() -> dict[str, Any]:
    """Describes this machine: what affects numbers and speed here, as a dict that can be written as JSON."""
    return {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "processor": read_cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": library.describe_kernels(),
        "kernels_missing": library.missing_reason(),
        "products": asdict(kernel_choice_by_processor()),
        "devices": available_devices(),
        "device": str(get_available_device("auto")),
        "memory": [bound._asdict() for bound in read_memory_limits()],
        "engine": {
            "batch_rows": EngineConfig().batch_rows,
            "picture_bytes": EngineConfig().picture_bytes,
            "process_bytes": PROCESS_OVERHEAD_BYTES,
        },
        "caches": [
            _describe_cache_folder("models", weights.cache_folder()),
            _describe_cache_folder("features", feature_cache_folder()),
            _describe_cache_folder("prefixes", prefix_folder()),
            _describe_cache_folder("measurements", kernel_choice_cache_file()),
        ],
        "versions": {name: _installed_version(name) for name in REPORTED_DISTRIBUTIONS},
        "extras": {
            extra: all(map(_installed_version, names)) for extra, names in DISTRIBUTIONS_BY_EXTRA.items()
        },
    }


def available_devices() -> list[str]:
    """Lists the devices that torch can use: "cpu", each CUDA device with its name, and "mps"."""
    names = ["cpu"]
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        names += [f"cuda:{number} ({torch.cuda.get_device_name(number)})" for number in range(count)]
    return names + ["mps"] * torch.backends.mps.is_available()


def estimate_model_memory(model: str) -> dict[str, Any]:
    """Estimates the memory of a model on this machine's CPU if it is loaded with the default settings.

    Args:
        model: a short name, folder or hub id. It is not downloaded.

    Returns:
        In bytes: `weights`, `token_bytes` (keys and values of one token), `kv_cache`, `pictures` (encoder cache),
        `process`, their sum `in_all`, and `free`. In tokens: `cached_tokens` (size of the KV cache) and
        `max_positions` (longest prompt). Also `model`, `folder` and the number of `parameters`.

    Raises:
        ModelError: the model is not on this machine, or cannot be read.
        OutOfMemory: not even the smallest KV cache fits.
    """
    folder = weights.find_checkpoint(model, offline=True)
    checkpoint = models.read_checkpoint(folder)
    module: Any = models.build_on_meta_device(checkpoint)
    if checkpoint.quantization is not None:
        bytes_of_weights = num_weight_bytes(folder)
    else:
        bytes_of_weights = weight_bytes(
            module, torch.float32, dict.fromkeys(enable_16bit_weight_storage(module), 16)
        )
    layout, config, free_bytes = module.layout, EngineConfig(), free_host_memory()
    cache_dtype = torch.float32 if checkpoint.quantization is None else torch.float16
    bytes_per_token, num_pages = (
        kv_bytes_per_token(layout, cache_dtype),
        compute_num_pages(layout, cache_dtype, torch.device("cpu"), config, free_bytes),
    )
    cache_bytes = (num_pages - 1) * PAGE_SIZE * bytes_per_token
    return {
        "model": model,
        "folder": str(folder),
        "parameters": models.count_parameters(module),
        "weights": bytes_of_weights,
        "token_bytes": bytes_per_token,
        "cached_tokens": (num_pages - 1) * PAGE_SIZE,
        "max_positions": layout.max_positions,
        "kv_cache": cache_bytes,
        "pictures": config.picture_bytes,
        "process": PROCESS_OVERHEAD_BYTES,
        "in_all": bytes_of_weights + cache_bytes + config.picture_bytes + PROCESS_OVERHEAD_BYTES,
        "free": free_bytes,
    }


def warn_once_about_missing_kernels() -> None:
    """Logs a warning if the C kernels cannot be used; only the first time on this machine.

    A marker file in the cache folder records that the warning was given.
    """
    reason = library.missing_reason()
    marker_file = kernel_choice_cache_file().with_name("told-of-missing-kernels")
    if reason is None or marker_file.exists():
        return
    with suppress(OSError):
        marker_file.parent.mkdir(parents=True, exist_ok=True)
        marker_file.touch()
    log.warning(
        "the C kernels are missing, so answers take several times as long: %s (see `idefics info`)",
        reason,
    )


def _installed_version(name: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def _describe_cache_folder(name: str, path: Path) -> dict[str, Any]:
    """Describes a cache for the report: `name`, path, and size in bytes; several links to one file count once."""
    bytes_by_inode = {}
    for file in path.rglob("*") if path.is_dir() else [path]:
        with suppress(OSError):  # deleted meanwhile, or a broken link
            if file.is_file():
                stat = file.stat()
                bytes_by_inode[stat.st_dev, stat.st_ino] = stat.st_size
    return {"name": name, "path": str(path), "bytes": sum(bytes_by_inode.values())}
