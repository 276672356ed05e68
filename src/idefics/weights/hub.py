"""Finds a checkpoint in the Hugging Face hub's cache, or downloads it; errors are one line that says what to do."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from idefics.catalog import CATALOG
from idefics.errors import ModelError, ModelNotFound, UnsupportedModel
from idefics.weights.files import (
    ADAPTER_CONFIG,
    INDEX_FILE,
    PICKLE_PATTERNS,
    SINGLE_FILE,
    adapter_error_message,
    safetensors_files,
)

ProgressCallback = Callable[[int, int], None]  # (bytes so far, bytes in all)

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

OFFLINE_HINT = "use --model demo, which needs no network, or give a folder"


def complete_cached_folder(repo_id: str, *, revision: str | None = None) -> Path | None:
    """The folder of a hub model in the hub's cache; None if not all of its files are there."""
    folder = snapshot_folder(repo_id, revision)
    return None if missing_files_or_weights(folder) else folder


def cache_folder() -> Path:
    """The folder in which the hub's client keeps downloads (`HF_HUB_CACHE`)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def snapshot_folder(repo_id: str, revision: str | None, cache: Path | None = None) -> Path | None:
    """The folder of a revision (None: main) in a cache (None: `cache_folder`), complete or not; None if there is none.

    The layout is documented: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    repository = (cache or cache_folder()) / f"models--{repo_id.replace('/', '--')}"
    commit = revision or "main"
    reference = repository / "refs" / commit
    if reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None


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
    """Downloads the files that the cache lacks; returns the snapshot's folder."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True, timeout=10)
    except Exception as error:  # the client's own errors, and those of whichever HTTP library it uses
        unreachable_message = (
            "{hub} is not in the cache and the hub cannot be reached ({reason}): " + OFFLINE_HINT
        )
        raise _to_model_not_found(error, repo_id, revision, unreachable_message) from error
    size_by_file = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if ADAPTER_CONFIG in size_by_file and (needs_weights or "config.json" not in size_by_file):
        raise UnsupportedModel(adapter_error_message(repo_id))
    needed_files = _files_to_download(repo_id, info.config or {}, size_by_file)
    small_files = [name for name in needed_files if name in CONFIG_FILES]
    if not needs_weights:
        needed_files = small_files
    existing_folder = snapshot_folder(repo_id, info.sha, cache)
    total = sum(
        size_by_file[name]
        for name in needed_files
        if existing_folder is None or not (existing_folder / name).is_file()
    )
    _check_disk_space(repo_id, total, cache or cache_folder())
    download_progress = _DownloadProgress(total, progress)
    folder, start_time = "", time.monotonic()
    try:
        # Small files first: a snapshot that has its weights is then complete, wherever a download breaks off.
        for names in (small_files, needed_files):
            folder = snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=names,
                tqdm_class=download_progress.tqdm_class_for_next_call(),
                token=token,
                cache_dir=cache,
            )
    except Exception as error:
        interrupted_message = "the download of {hub} broke off ({reason}): run the same again, it continues"
        raise _to_model_not_found(error, repo_id, revision, interrupted_message) from error
    download_progress.report(total, total)  # those bytes included that no bar counted
    log.info("downloaded %s: %d bytes in %.1f s", repo_id, total, time.monotonic() - start_time)
    return Path(folder)


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


def _check_disk_space(repo_id: str, needed: int, folder: Path) -> None:
    """Raises ModelNotFound if the disk of `folder` has fewer than `needed` bytes free."""
    while not folder.exists():
        folder = folder.parent
    if (free_bytes := shutil.disk_usage(folder).free) < needed:
        raise ModelNotFound(
            f"{repo_id} needs {needed / 1e9:.1f} GB and {folder} has {free_bytes / 1e9:.1f} GB free: "
            "make room, or set HF_HOME to a folder on a larger disk"
        )


def _to_model_not_found(
    error: Exception, repo_id: str, revision: str | None, default_message: str
) -> ModelNotFound:
    """A `ModelNotFound` for an error of the hub's client; `default_message` if it has no text of its own."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo_id}"
    no_such_model = (
        f"{repo_id!r} is neither a folder nor a model on the hub: check the spelling, "
        "or run `hf auth login` if it is private"
    )
    text_by_type = {
        errors.GatedRepoError: f"{repo_id} is gated: accept its terms at {page}, then run `hf auth login`",
        errors.RevisionNotFoundError: (
            f"{repo_id} has no revision {revision!r}: its branches and tags are at {page}/tree/main"
        ),
        errors.RepositoryNotFoundError: no_such_model,
        errors.HFValidationError: no_such_model,
    }
    text = default_message.format(hub=repo_id, reason=f"{type(error).__name__}: {error}".splitlines()[0])
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        text = (
            f"the disk is full: make room in {cache_folder()} for {repo_id}, or set HF_HOME to a larger disk"
        )
    return ModelNotFound(next((one for kind, one in text_by_type.items() if isinstance(error, kind)), text))


class _DownloadProgress:
    """Sums the bytes counted by the progress bars of the hub's client, and reports them. Called by several threads."""

    def __init__(self, total: int, report: ProgressCallback | None) -> None:
        self.total = total
        self.report = report if report is not None and total else lambda done, total: None
        self.lock = threading.Lock()
        self.bytes_before = 0  # of earlier calls of the client
        self.bytes_by_bar: dict[int, int] = {}
        self.report(0, total)

    def tqdm_class_for_next_call(self) -> type:
        """A tqdm class for the next call of the client, whose bars show nothing and count bytes."""
        from huggingface_hub.utils.tqdm import tqdm

        self.bytes_before += max(self.bytes_by_bar.values(), default=0)
        self.bytes_by_bar = {}
        add = self._add_bytes_and_report

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
                self.counts_bytes = kwargs.get("unit") == "B"  # another bar counts files

            def update(self, n: float | None = 1) -> None:
                if self.counts_bytes:
                    add(id(self), int(n or 0))

        return Bar

    def _add_bytes_and_report(self, bar: int, count: int) -> None:
        """Adds the bytes that a bar of the client counted, and reports the total of all bars."""
        with self.lock:
            self.bytes_by_bar[bar] = self.bytes_by_bar.get(bar, 0) + count
            # Bytes are counted twice, as received and as written: the larger count is reported.
            self.report(min(self.total, self.bytes_before + max(self.bytes_by_bar.values())), self.total)
