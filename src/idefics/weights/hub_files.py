"""Downloads files of a repository of the Hugging Face hub into the hub's cache, and finds them there."""

from __future__ import annotations

import errno
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from idefics.errors import ModelNotFound

ProgressCallback = Callable[[int, int], None]  # (bytes so far, bytes in all)

log = logging.getLogger(__name__)

OFFLINE_HINT = "use --model demo, which needs no network, or give a folder"


def cache_folder() -> Path:
    """The folder in which the hub's client keeps downloads (`HF_HUB_CACHE`)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def snapshot_folder(repo_id: str, revision: str | None = None, cache: Path | None = None) -> Path | None:
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


def fetch_file_sizes(
    repo_id: str, revision: str | None, token: str | bool | None
) -> tuple[str, dict[str, int], dict[str, Any]]:
    """Asks the hub for a repository's commit, its files with their sizes in bytes, and its config.json."""
    from huggingface_hub import HfApi

    try:
        info = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True, timeout=10)
    except Exception as error:  # the client's own errors, and those of whichever HTTP library it uses
        unreachable_message = (
            "{hub} is not in the cache and the hub cannot be reached ({reason}): " + OFFLINE_HINT
        )
        raise _to_model_not_found(error, repo_id, revision, unreachable_message) from error
    size_by_file = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return info.sha or "", size_by_file, info.config or {}


def download_files(
    repo_id: str,
    revision: str | None,
    commit: str,
    size_by_file: Mapping[str, int],
    steps: Sequence[Sequence[str]],
    progress: ProgressCallback | None,
    *,
    token: str | bool | None,
    cache: Path | None,
) -> Path:
    """Downloads files of a repository into the cache; returns the snapshot's folder.

    Args:
        commit: the revision's commit, whose snapshot may have some of the files already.
        size_by_file: the sizes of all files in bytes.
        steps: which of them are downloaded together, in order; the last step has all that are needed.
    """
    from huggingface_hub import snapshot_download

    existing_folder = snapshot_folder(repo_id, commit, cache)
    total = sum(
        size_by_file[name]
        for name in steps[-1]
        if existing_folder is None or not (existing_folder / name).is_file()
    )
    _check_disk_space(repo_id, total, cache or cache_folder())
    download_progress = _DownloadProgress(total, progress)
    folder, start_time = "", time.monotonic()
    try:
        for names in steps:
            folder = snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=list(names),
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
