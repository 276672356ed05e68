"""Finds a checkpoint in the Hugging Face hub's cache, or downloads it; errors are one line that says what to do."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from idefics.catalog import CATALOG
from idefics.errors import ModelError, ModelNotFound, UnsupportedModel
from idefics.weights.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from idefics.weights.files import (
    INDEX_FILE,
    PICKLE_PATTERNS,
    SINGLE_FILE,
    adapter_error_message,
    safetensors_files,
)
from idefics.weights.hub_files import (
    OFFLINE_HINT,
    ProgressCallback,
    download_files,
    fetch_file_sizes,
    snapshot_folder,
)

log = logging.getLogger(__name__)

# All files but the weights. Subfolders (onnx/ and such) hold duplicates.
CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def complete_cached_folder(repo_id: str, *, revision: str | None = None) -> Path | None:
    """The folder of a hub model in the hub's cache; None if not all of its files are there."""
    folder = snapshot_folder(repo_id, revision)
    return None if missing_files_or_weights(folder) else folder


def missing_files_or_weights(folder: Path | None, *, needs_weights: bool = True) -> list[str]:
    """What a folder in the cache lacks: names of small files, and "weights" if a file of weights is missing.

    Empty if nothing is missing; ["everything"] if `folder` is None. Weights count only with `needs_weights`.
    """
    if folder is None:
        return ["everything"]
    required_files = [
        ("config.json",),
        ("tokenizer.json",),
        ("preprocessor_config.json", "processor_config.json"),
    ]
    missing = [names[0] for names in required_files if not any((folder / name).is_file() for name in names)]
    try:
        if needs_weights:
            safetensors_files(folder)
    except ModelError:
        missing.append("weights")
    return missing


def find_or_download_snapshot(
    repo_id: str,
    *,
    revision: str | None,
    offline: bool | None,
    progress: ProgressCallback | None,
    needs_weights: bool,
    token: str | bool | None,
    cache: Path | None,
) -> Path:
    """The folder of a hub repository in the cache; downloads what it lacks. Arguments as in `find_checkpoint`."""
    folder = snapshot_folder(repo_id, revision, cache)
    missing = missing_files_or_weights(folder, needs_weights=needs_weights)
    if folder is not None and not missing:
        log.debug("%s is in the hub's cache: %s", repo_id, folder)
        return folder
    if _is_offline() if offline is None else offline:
        where = (
            "not in the cache"
            if folder is None
            else f"only partly in the cache (without {', '.join(missing)})"
        )
        raise ModelNotFound(
            f"{repo_id} is {where} and offline mode is on: {OFFLINE_HINT}, or go online to download it"
        )
    return _download(repo_id, revision, progress, needs_weights=needs_weights, token=token, cache=cache)


def _is_offline() -> bool:
    """Whether IDEFICS_OFFLINE or HF_HUB_OFFLINE is set."""
    on = ("1", "true", "yes", "on")
    return any(os.environ.get(name, "").lower() in on for name in ("IDEFICS_OFFLINE", "HF_HUB_OFFLINE"))


def _download(
    repo_id: str,
    revision: str | None,
    progress: ProgressCallback | None,
    *,
    needs_weights: bool,
    token: str | bool | None,
    cache: Path | None,
) -> Path:
    """Downloads the files of a checkpoint that the cache lacks; returns the snapshot's folder."""
    commit, size_by_file, config = fetch_file_sizes(repo_id, revision, token)
    if ADAPTER_CONFIG in size_by_file and (needs_weights or "config.json" not in size_by_file):
        raise UnsupportedModel(adapter_error_message(repo_id))
    needed_files = _files_to_download(repo_id, config, size_by_file)
    small_files = [name for name in needed_files if name in CONFIG_FILES]
    # Small files first: a snapshot that has its weights is then complete, wherever a download breaks off.
    steps = [small_files, needed_files] if needs_weights else [small_files]
    sizes = {name: size_by_file[name] for name in steps[-1]}
    return download_files(repo_id, revision, commit, sizes, steps, progress, token=token, cache=cache)


def find_or_download_adapter(
    repo_id: str, *, offline: bool | None, progress: ProgressCallback | None
) -> Path:
    """The folder of an adapter's repository in the cache; downloads its two files if they are not there.

    Raises:
        ModelNotFound: no such repository, or it is not in the cache and there is no network.
        UnsupportedModel: it holds no adapter, or one that is a pickle.
    """
    folder = snapshot_folder(repo_id, None)
    if folder is not None and all((folder / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        return folder
    if _is_offline() if offline is None else offline:
        raise ModelNotFound(
            f"the adapter {repo_id} is not in the cache and offline mode is on: give a folder, or go online to "
            "download it"
        )
    commit, size_by_file, _ = fetch_file_sizes(repo_id, None, None)
    if ADAPTER_CONFIG not in size_by_file or ADAPTER_WEIGHTS not in size_by_file:
        raise UnsupportedModel(
            f"{repo_id} has no {ADAPTER_CONFIG} with {ADAPTER_WEIGHTS}: it is no adapter as peft saves them in "
            "safetensors"
        )
    sizes = {name: size_by_file[name] for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    return download_files(repo_id, None, commit, sizes, [list(sizes)], progress, token=None, cache=None)


def _files_to_download(repo_id: str, config: dict[str, Any], names: Iterable[str]) -> list[str]:
    """The files to download among `names`, all files of a repository; `config` is its config.json.

    Raises UnsupportedModel before anything large is downloaded.
    """
    names = [name for name in names if "/" not in name]
    if "config.json" not in names:
        raise UnsupportedModel(
            f"{repo_id} has no config.json: it is not a checkpoint as transformers saves them"
        )
    supported_types = sorted({row.model_type for row in CATALOG})
    model_type = config.get("model_type")
    if model_type is not None and model_type not in supported_types:
        raise UnsupportedModel(
            f"{repo_id} is of the architecture {model_type!r}; this version runs {', '.join(supported_types)}: "
            "`idefics models` lists checkpoints"
        )
    if SINGLE_FILE in names:
        weights = [SINGLE_FILE]
    elif INDEX_FILE in names:
        weights = [INDEX_FILE, *(name for name in names if fnmatch(name, "model-*.safetensors"))]
    else:
        weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        reason = (
            "pickle weights only"
            if any(fnmatch(n, p) for n in names for p in PICKLE_PATTERNS)
            else "no weights"
        )
        raise UnsupportedModel(
            f"{repo_id} holds {reason}, and safetensors are needed: "
            "https://huggingface.co/spaces/safetensors/convert makes them from pickles"
        )
    return [name for name in names if name in CONFIG_FILES] + weights
