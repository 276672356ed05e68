"""Which files of encoded pictures and of prompts' beginnings a model may read.

Their key is a hash of everything that they depend on, apart from the picture and the prompt.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from idefics import weights
from idefics.config import QuantizationConfig, VisionConfig
from idefics.engine.engine import Engine
from idefics.engine.prefix_files import PrefixFiles
from idefics.engine.tensor_files import TensorFileCache
from idefics.generation.load_settings import ComputePlan, LoadSettings
from idefics.models import Checkpoint
from idefics.native import library
from idefics.placement.devices import DeviceMap
from idefics.quant.autotune import kernel_choice_cache_file, processor_key

PACKAGE_FOLDER = Path(__file__).parents[1]
# Folders whose code computes features, keys and values.
KEY_CODE = ("engine", "engine/native", "models", "native", "nn", "processing", "quant")
# Of all files of encoded pictures: 800 pictures of 17 tiles by SmolVLM-256M, 120 by Idefics 1 of 9 billion weights.
MAX_FEATURE_BYTES = 2 << 30
# Of all files of prompts' beginnings: 10 with a picture of 17 tiles by SmolVLM-256M.
MAX_PREFIX_BYTES = 512 << 20
# Multiply-adds in the vision tower for one frame. A CPU core computes 10 to 300 in a nanosecond: fewer of them take
# less than some milliseconds, in which the file of a picture is written or read.
MIN_TOWER_MULTIPLICATIONS = 10**9


def feature_cache_folder() -> Path:
    """The folder for files of encoded pictures, in the user's cache folder (XDG Base Directory Specification)."""
    return kernel_choice_cache_file().with_name("features")


def prefix_folder() -> Path:
    """The folder for files of the beginnings of prompts, in the user's cache folder."""
    return kernel_choice_cache_file().with_name("prefixes")


def open_feature_cache(
    checkpoint: Checkpoint,
    plan: ComputePlan,
    placement: torch.device | DeviceMap,
    quantization: QuantizationConfig | None,
    settings: LoadSettings,
    adapter: Path | None = None,
) -> TensorFileCache | None:
    """Opens a model's files of encoded pictures; None if it uses none.

    A model uses none if the settings say so; if a part of it is on a GPU, which encodes a picture about as fast as its
    file is read; if its vision tower is small (`MIN_TOWER_MULTIPLICATIONS`); and on Windows, where a folder has no
    owner and mode that keep others out.

    Args:
        plan: how the model computes.
        placement: the device or devices of the model.
        quantization: how the weights are quantized when they are loaded; None: they are not.
        adapter: the folder of an adapter that is merged into the weights.
    """
    if (
        sys.platform == "win32"
        or not settings.uses_feature_cache
        or isinstance(placement, DeviceMap)
        or placement.type != "cpu"
        or count_tower_multiplications(checkpoint.config.vision) < MIN_TOWER_MULTIPLICATIONS
    ):
        return None
    model_key = compute_model_key(checkpoint, plan, quantization, settings, adapter)
    return TensorFileCache(feature_cache_folder(), model_key, MAX_FEATURE_BYTES)


def open_prefix_files(feature_cache: TensorFileCache, engine: Engine) -> PrefixFiles:
    """Opens the files of the beginnings of prompts, for the engine of a model that keeps encoded pictures in files."""
    files = TensorFileCache(prefix_folder(), feature_cache.model_key, MAX_PREFIX_BYTES)
    return PrefixFiles(files, engine.kv_cache, engine.scheduler.page_pool)


def count_tower_multiplications(config: VisionConfig) -> int:
    """Multiply-adds of the linear layers of a vision tower for one frame of `image_size`."""
    per_patch = config.hidden_size * (4 * config.hidden_size + 2 * config.intermediate_size)
    return config.patches_per_side**2 * config.num_layers * per_patch


def compute_model_key(
    checkpoint: Checkpoint,
    plan: ComputePlan,
    quantization: QuantizationConfig | None,
    settings: LoadSettings,
    adapter: Path | None = None,
) -> str:
    """SHA-256 (hex) of everything but pictures and prompts that changes features, keys and values on a CPU.

    The number of threads, and the pictures that are encoded in the same batch, may change a last bit and do not count.
    """
    parts = (
        weights.fingerprint_files(weights.safetensors_files(checkpoint.folder)),
        None if adapter is None else weights.fingerprint_adapter(adapter),
        weights.fingerprint_files(_key_code_files()),
        processor_key(),
        checkpoint.config,
        checkpoint.quantization,
        quantization,
        plan.dtype,
        plan.storage,
        plan.kernel_choice,
        settings.attn_implementation,
        settings.is_reference,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _key_code_files() -> Iterator[Path]:
    """The files of this package whose code computes features, keys and values, the compiled kernels included."""
    for part in KEY_CODE:
        yield from sorted((PACKAGE_FOLDER / part).glob("*.py"))
    if library.LIBRARY_PATH.exists():
        yield library.LIBRARY_PATH
