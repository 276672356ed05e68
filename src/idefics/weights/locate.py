"""Finds the folder of a model by a short name, path or hub id, in the hub's cache too, or downloads it.

Errors are one line that says what to do.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from idefics.catalog import CATALOG, all_short_names, find_entry
from idefics.errors import BadSetting, ModelError, ModelNotFound, UnsupportedModel
from idefics.validation import short_repr
from idefics.weights.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from idefics.weights.files import (
    INDEX_FILE,
    PICKLE_PATTERNS,
    SINGLE_FILE,
    adapter_error_message,
    refuse_adapter,
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


def complete_cached_folder(repo_id: str) -> Path | None:
    """The folder of a hub model in the hub's cache; None if not all of its files are there."""
    folder = snapshot_folder(repo_id)
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
    if _is_offline(offline):
        where = (
            "not in the cache"
            if folder is None
            else f"only partly in the cache (without {', '.join(missing)})"
        )
        raise ModelNotFound(
            f"{repo_id} is {where} and offline mode is on: {OFFLINE_HINT}, or go online to download it"
        )
    commit, size_by_file, config = fetch_file_sizes(repo_id, revision, token)
    if ADAPTER_CONFIG in size_by_file and (needs_weights or "config.json" not in size_by_file):
        raise UnsupportedModel(adapter_error_message(repo_id))
    needed_files = _files_to_download(repo_id, config, size_by_file)
    small_files = [name for name in needed_files if name in CONFIG_FILES]
    # Small files first: a snapshot that has its weights is then complete, wherever a download breaks off.
    steps = [small_files, needed_files] if needs_weights else [small_files]
    return download_files(repo_id, revision, commit, size_by_file, steps, progress, token=token, cache=cache)


def _is_offline(setting: bool | None) -> bool:
    """The setting `offline`, which None leaves to IDEFICS_OFFLINE and HF_HUB_OFFLINE."""
    if setting is not None:
        return setting
    on = ("1", "true", "yes", "on")
    return any(os.environ.get(name, "").lower() in on for name in ("IDEFICS_OFFLINE", "HF_HUB_OFFLINE"))


def find_or_download_adapter(
    repo_id: str, *, offline: bool | None, progress: ProgressCallback | None
) -> Path:
    """The folder of an adapter's repository in the cache; downloads its two files if they are not there.

    Raises:
        ModelNotFound: no such repository, or it is not in the cache and there is no network.
        UnsupportedModel: it holds no adapter, or one that is a pickle.
    """
    folder, files = snapshot_folder(repo_id), (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    if folder is not None and all((folder / name).is_file() for name in files):
        return folder
    if _is_offline(offline):
        raise ModelNotFound(
            f"the adapter {repo_id} is not in the cache and offline mode is on: give a folder, or go online to "
            "download it"
        )
    commit, size_by_file, _ = fetch_file_sizes(repo_id, None, None)
    if not size_by_file.keys() >= set(files):
        raise UnsupportedModel(
            f"{repo_id} has no {ADAPTER_CONFIG} with {ADAPTER_WEIGHTS}: it is no adapter as peft saves them in "
            "safetensors"
        )
    return download_files(repo_id, None, commit, size_by_file, [files], progress, token=None, cache=None)


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


PACKAGE_FOLDER = Path(__file__).parents[1]
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")


def find_checkpoint(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    offline: bool | None = None,
    progress: ProgressCallback | None = None,
    needs_weights: bool = True,
    token: str | bool | None = None,
    cache: Path | None = None,
) -> Path:
    """Returns the folder of a checkpoint, and downloads it first if needed.

    A model that is complete in the hub's cache is used as it is: the hub is not asked for a newer version.

    Args:
        model: a short name of the catalog ("9b-instruct", "demo"), a folder, or a hub id ("owner/name").
            A short name has priority over a folder of that name (give "./demo" for the folder), a folder over a hub id.
        revision: branch, tag or commit of a model on the hub; None: its main branch.
        offline: never use the network; None: as IDEFICS_OFFLINE and HF_HUB_OFFLINE say.
        progress: called with (bytes so far, total bytes): first with (0, total) before anything is downloaded, then
            from the client's threads. Not called for files that are in the cache.
        needs_weights: False downloads the small files only, which are enough for a processor.
        token: for private and gated models; True or None: that of `hf auth login`; False: none.
        cache: the hub cache to use; None: that of the hub's client (`cache_folder`).

    Raises:
        ModelNotFound: no such name, folder, repository or revision; not in the cache and the hub cannot be reached;
            no access; no disk space. The message says which, and what to do.
        UnsupportedModel: this version does not run the model; raised before anything large is downloaded.
        BadSetting: a revision of a model that is not on the hub.
    """
    value: object = model
    if not isinstance(value, (str, os.PathLike)):
        raise BadSetting(f"model is {short_repr(value)}; give a short name, a folder or a hub id")
    entry = find_entry(model) if isinstance(model, str) else None
    if entry is not None:
        folder, repo_id = PACKAGE_FOLDER / entry.package_folder, entry.hub_id
    else:
        folder = Path(model).expanduser()
        is_hub_id = isinstance(model, str) and HUB_ID.fullmatch(model) and not folder.exists()
        repo_id = str(model) if is_hub_id else ""
    if not repo_id:
        if revision is not None:
            raise BadSetting(f"revision is {revision!r}, but {model} is a folder: only the hub has revisions")
        return _require_checkpoint_folder(folder, model)
    log.debug("%s is %s on the hub", model, repo_id)
    return find_or_download_snapshot(
        repo_id,
        revision=revision,
        offline=offline,
        progress=progress,
        needs_weights=needs_weights,
        token=token,
        cache=cache,
    )


def _require_checkpoint_folder(folder: Path, model_name: str | os.PathLike[str]) -> Path:
    """Returns `folder`; raises ModelNotFound or UnsupportedModel if it is not the folder of a checkpoint."""
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        refuse_adapter(folder)
        raise ModelNotFound(f"{folder} has no config.json: give the folder of a checkpoint")
    if folder.exists():
        raise ModelNotFound(f"{folder} is a file: give the folder that holds it")
    close_names = ", ".join(
        difflib.get_close_matches(str(model_name).lower(), all_short_names(), n=3, cutoff=0.5)
    )
    raise ModelNotFound(
        f"{str(model_name)!r} is neither a folder nor a short name{close_names and f' (near: {close_names})'}: "
        "`idefics models` lists the short names, and a model on the hub is called owner/name"
    )
