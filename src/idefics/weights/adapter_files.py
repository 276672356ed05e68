"""Finds, checks and writes the folders of adapters: adapter_config.json and adapter_model.safetensors, as in peft."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from idefics.catalog import find_entry
from idefics.errors import BadSetting, BrokenCheckpoint, ModelNotFound, UnsupportedModel
from idefics.validation import short_repr
from idefics.weights.adapter_config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AdapterConfig,
)
from idefics.weights.files import digest_files, pickle_error
from idefics.weights.hub_files import ProgressCallback
from idefics.weights.locate import HUB_ID, find_or_download_adapter
from idefics.weights.whole_folder import write_whole_folder

if TYPE_CHECKING:
    from torch import Tensor

KEY_PREFIX = "base_model.model."  # of the names in an adapter's file
ADAPTER_PICKLES = "adapter_model.bin"


def find_adapter(
    adapter: str | os.PathLike[str],
    *,
    offline: bool | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """Returns the folder of an adapter, and downloads it first if needed.

    Args:
        adapter: a folder, or a hub id ("owner/name").
        offline, progress: as for `find_checkpoint`.

    Raises:
        ModelNotFound: no such folder or repository, or a folder without an adapter.
        UnsupportedModel: a repository that holds no adapter in safetensors.
        BadSetting: neither a text nor a path.
    """
    value: object = adapter
    if not isinstance(value, (str, os.PathLike)):
        raise BadSetting(f"adapter is {short_repr(value)}; give a folder or a hub id")
    folder = Path(adapter).expanduser()
    if (folder / ADAPTER_CONFIG).is_file():
        return folder
    if isinstance(adapter, str) and HUB_ID.fullmatch(adapter) and not folder.exists():
        return find_or_download_adapter(adapter, offline=offline, progress=progress)
    what = f"has no {ADAPTER_CONFIG}" if folder.is_dir() else "is no folder"
    raise ModelNotFound(
        f"the adapter {str(adapter)!r} {what}: give the folder that {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} are in, or "
        "a hub id, owner/name"
    )


def adapter_weights_file(folder: Path) -> Path:
    """The file with an adapter's tensors.

    Raises:
        UnsupportedModel: it is a pickle.
        BrokenCheckpoint: there is none.
    """
    path = folder / ADAPTER_WEIGHTS
    if path.is_file():
        return path
    if (folder / ADAPTER_PICKLES).is_file():
        raise pickle_error(folder, ADAPTER_PICKLES)
    raise BrokenCheckpoint(f"{folder} has no {ADAPTER_WEIGHTS}: download or copy the adapter again")


def fingerprint_adapter(folder: Path) -> str:
    """SHA-256 (hex) of the content of an adapter's two files."""
    return digest_files((folder / ADAPTER_CONFIG, adapter_weights_file(folder)))


def check_base_model(folder: Path, config: AdapterConfig, model: str | os.PathLike[str]) -> None:
    """Checks that an adapter was trained on a model, as far as both have names.

    Models of equal shape, such as two generations of SmolVLM, differ in nothing but the name.

    Args:
        folder, config: of the adapter.
        model: the model as the caller named it: a short name, a hub id, or a folder, of which nothing is known.

    Raises:
        UnsupportedModel: it was trained on another model.
    """
    names = [_model_id(name) for name in (config.base_model, os.fspath(model))]
    if all(names) and names[0].lower() != names[1].lower():
        raise UnsupportedModel(
            f"the adapter {folder} was trained on {config.base_model}, not on {model}: give that model; if they are "
            f"the same, change base_model_name_or_path in its {ADAPTER_CONFIG}"
        )


def _model_id(name: str) -> str:
    """The hub id of a model, or the short name of one that is in the package; "" for a folder."""
    if entry := find_entry(name):
        return entry.hub_id or name
    return name if HUB_ID.fullmatch(name) and not Path(name).exists() else ""


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], config: AdapterConfig) -> None:
    """Writes an adapter that peft and `load` read. It is written under another name and renamed: whole or not at all.

    Args:
        folder: a new folder.
        tensors: by the model's names: "NAME.lora_A.weight" (r, I) and "NAME.lora_B.weight" (O, r) for a module NAME,
            and the plain names of tensors of `modules_to_save`.
        config: of the adapter.

    Raises:
        BadSetting: the folder exists and is not empty, or cannot be written.
    """
    with write_whole_folder(folder) as temporary:
        write_adapter_weights(temporary, tensors)
        text = json.dumps(config.to_json(), indent=2, sort_keys=True)
        (temporary / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def write_adapter_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes the weights of an adapter, by the names of the base model's modules, into a folder."""
    from safetensors.torch import save_file

    weights = {KEY_PREFIX + key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
