"""What computes on this machine and with what: kernels, devices, memory, versions; and what a model would take.

Loads no model. Everything is plain data, for `idefics info` and for reports of faults.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from idefics import models, weights
from idefics.config import EngineConfig
from idefics.engine.memory import page_count, token_bytes
from idefics.engine.native.library import instruction_sets
from idefics.engine.pages import PAGE
from idefics.host_memory import PROCESS_BYTES, free_host_memory, memory_bounds
from idefics.nn import attend
from idefics.placement import device_called, weight_bytes
from idefics.processing import resize
from idefics.quant import passes, stored
from idefics.quant.measure import by_processor, cache_file, said_of_processor

log = logging.getLogger(__name__)

EXTRAS: Mapping[str, tuple[str, ...]] = {  # the distributions that each one brings
    "heif": ("pillow-heif",),
    "video": ("av",),
    "quant": ("bitsandbytes",),
    "form": ("llguidance",),
    "peft": ("peft",),
    "serve": (
        "fastapi",
        "uvicorn",
        "python-multipart",
        "pydantic-settings",
        "prometheus-client",
        "llguidance",
    ),
    "ui": ("gradio", "fastapi", "uvicorn"),
}
VERSIONS = (
    "torch",
    "numpy",
    "pillow",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "accelerate",
    "transformers",
)
WIDTHS = ("any", "AVX2", "AVX-512")  # of vectors, by the number that the C code gives them


def environment() -> dict[str, Any]:
    """Everything that matters for what is computed here and how fast."""
    return {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "processor": said_of_processor("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": kernels(),
        "products": asdict(by_processor()),
        "devices": devices(),
        "device": str(device_called("auto")),
        "memory": [bound._asdict() for bound in memory_bounds()],
        "engine": {
            "batch_rows": EngineConfig().batch_rows,
            "picture_bytes": EngineConfig().picture_bytes,
            "process_bytes": PROCESS_BYTES,
        },
        "caches": [_folder("models", weights.cache_folder()), _folder("measurements", cache_file())],
        "versions": {name: _version(name) for name in VERSIONS},
        "extras": {extra: all(map(_version, names)) for extra, names in EXTRAS.items()},
    }


def kernels() -> dict[str, str | None]:
    """For each piece of C code the instruction set that it uses here; None where it was not compiled."""
    sets = instruction_sets()
    pixels, packed = resize.kernel(), passes.library()
    return {
        "decode step": sets[0] if sets else None,
        "attention": ("AVX-512" if attend.library() else "torch's is used here")
        if attend.compiled()
        else None,
        "resizing": None if pixels is None else WIDTHS[pixels.width],
        "int8 and int4": None if packed is None else WIDTHS[packed.idefics_passes_width(passes.BEST)],
    }


def devices() -> list[str]:
    """The CPU and what else computes here."""
    found = ["cpu"]
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        found += [f"cuda:{number} ({torch.cuda.get_device_name(number)})" for number in range(count)]
    return found + ["mps"] * torch.backends.mps.is_available()


def model_needs(model: str, *, revision: str | None = None) -> dict[str, Any]:
    """What a model would take on a CPU of this machine, loaded with nothing but its name.

    Args:
        model: short name, folder or hub id; one that is not on this machine is not downloaded.

    Returns:
        Bytes of its weights as they are stored there, of one token's keys and values, of that cache, of all; and how
        many tokens the cache holds and the model reads.

    Raises:
        ModelError: it is not on this machine, or cannot be read.
        OutOfMemory: not even the smallest cache fits.
    """
    folder = weights.find(model, revision=revision, offline=True)
    checkpoint = models.read_checkpoint(folder)
    module: Any = models.build(checkpoint)
    if checkpoint.quantisation is not None:
        weigh = sum(path.stat().st_size for path in weights.weight_files(folder))
    else:
        weigh = weight_bytes(module, torch.float32, dict.fromkeys(stored(module), 16))
    layout, config, free = module.layout, EngineConfig(), free_host_memory()
    kept = torch.float32 if checkpoint.quantisation is None else torch.float16
    token, pages = token_bytes(layout, kept), page_count(layout, kept, torch.device("cpu"), config, free)
    cache = (pages - 1) * PAGE * token
    return {
        "model": model,
        "folder": str(folder),
        "parameters": sum(weight.numel() for weight in module.parameters()),
        "weights": weigh,
        "token_bytes": token,
        "cached_tokens": (pages - 1) * PAGE,
        "max_positions": layout.max_positions,
        "kv_cache": cache,
        "pictures": config.picture_bytes,
        "process": PROCESS_BYTES,
        "in_all": weigh + cache + config.picture_bytes + PROCESS_BYTES,
        "free": free,
    }


def warn_of_missing_kernels() -> None:
    """Says once on this machine, in one line of the log, that the C code is missing, and what to do."""
    missing = [name for name, instructions in kernels().items() if instructions is None]
    told = cache_file().with_name(f"told-of-{'-'.join(missing).replace(' ', '-')}")
    if not missing or told.exists():
        return
    with suppress(OSError):
        told.parent.mkdir(parents=True, exist_ok=True)
        told.touch()
    log.warning(
        "the compiled kernels are missing (%s), and answers take several times as long: install a C compiler, such as "
        "gcc, and then idefics again (`idefics info` shows what is there)",
        ", ".join(missing),
    )


def _version(name: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def _folder(name: str, path: Path) -> dict[str, Any]:
    """A place on disk and the bytes in it, files that are linked counted once."""
    files = path.rglob("*") if path.is_dir() else iter([path] * path.exists())
    sizes = {(found.st_dev, found.st_ino): found.st_size for found in _stats(files)}
    return {"name": name, "path": str(path), "bytes": sum(sizes.values())}


def _stats(files: Iterable[Path]) -> Iterator[os.stat_result]:
    for file in files:
        with suppress(OSError):  # it went meanwhile, or is a link to nothing
            if file.is_file():
                yield file.stat()
