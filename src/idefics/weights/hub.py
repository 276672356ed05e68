"""Downloads a checkpoint from the Hugging Face hub into its cache, and says in one line why it could not.

Knows file names and sizes, and which architectures run. Imports the hub's client late, and no torch.
"""

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
from idefics.errors import ModelNotFound, UnsupportedModel
from idefics.weights.adapters import ADAPTER_CONFIG, adapter
from idefics.weights.cache import cache_folder, lacking, snapshot
from idefics.weights.files import INDEX, PICKLES, WHOLE

Progress = Callable[[int, int], None]  # (bytes so far, bytes in all)

# Everything but the weights. Only files at the top are wanted: folders (onnx/ and such) hold duplicates.
log = logging.getLogger(__name__)

SETTINGS = (
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

WAYS_OUT = "use --model demo, which needs no network, or give a folder"


def from_hub(
    hub: str,
    *,
    revision: str | None,
    offline: bool | None,
    progress: Progress | None,
    weights: bool,
    token: str | bool | None,
    cache: Path | None,
) -> Path:
    """A hub repository's folder in the cache, downloaded where it is not complete. Arguments as in `find`."""
    folder = snapshot(hub, revision, cache)
    missing = ["everything"] if folder is None else lacking(folder, weights=weights)
    if folder is not None and not missing:
        log.debug("%s is in the hub's cache: %s", hub, folder)
        return folder
    if _is_offline() if offline is None else offline:
        where = (
            "not in the cache"
            if folder is None
            else f"only partly in the cache (without {', '.join(missing)})"
        )
        raise ModelNotFound(
            f"{hub} is {where} and offline mode is on: {WAYS_OUT}, or go online to download it"
        )
    return _download(hub, revision, progress, weights=weights, token=token, cache=cache)


def _is_offline() -> bool:
    on = ("1", "true", "yes", "on")
    return any(os.environ.get(name, "").lower() in on for name in ("IDEFICS_OFFLINE", "HF_HUB_OFFLINE"))


def _download(
    hub: str,
    revision: str | None,
    progress: Progress | None,
    *,
    weights: bool,
    token: str | bool | None,
    cache: Path | None,
) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi(token=token).model_info(hub, revision=revision, files_metadata=True, timeout=10)
    except Exception as error:  # the client's own errors, and those of whichever HTTP library it uses
        unreachable = "{hub} is not in the cache and the hub cannot be reached ({reason}): " + WAYS_OUT
        raise _explained(error, hub, revision, unreachable) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if ADAPTER_CONFIG in sizes and (weights or "config.json" not in sizes):
        raise UnsupportedModel(adapter(hub))
    wanted = _wanted(hub, info.config or {}, sizes)
    wanted = wanted if weights else [name for name in wanted if name in SETTINGS]
    here = snapshot(hub, info.sha, cache)
    total = sum(sizes[name] for name in wanted if here is None or not (here / name).is_file())
    _refuse_full_disk(hub, total, cache or cache_folder())
    tally = _Tally(total, progress)
    folder, began = "", time.monotonic()
    try:
        # Settings first: whatever breaks off later, a snapshot with its weights is a whole one.
        for names in ([name for name in wanted if name in SETTINGS], wanted):
            folder = snapshot_download(
                hub,
                revision=revision,
                allow_patterns=names,
                tqdm_class=tally.bars(),
                token=token,
                cache_dir=cache,
            )
    except Exception as error:
        broken = "the download of {hub} broke off ({reason}): run the same again, it goes on where it stopped"
        raise _explained(error, hub, revision, broken) from error
    tally.finish()
    log.info("downloaded %s: %d bytes in %.1f s", hub, total, time.monotonic() - began)
    return Path(folder)


def _wanted(hub: str, config: dict[str, Any], names: Iterable[str]) -> list[str]:
    """The files to download, out of all. Refuses what cannot be run before anything large is on its way."""
    names = [name for name in names if "/" not in name]
    if "config.json" not in names:
        raise UnsupportedModel(f"{hub} has no config.json: it is not a checkpoint as transformers saves them")
    runs = sorted({row.model_type for row in CATALOG})
    model_type = config.get("model_type")
    if model_type is not None and model_type not in runs:
        raise UnsupportedModel(
            f"{hub} is of the architecture {model_type!r}; this version runs {', '.join(runs)}: "
            "`idefics models` lists checkpoints"
        )
    if WHOLE in names:
        weights = [WHOLE]
    elif INDEX in names:
        weights = [INDEX, *(name for name in names if fnmatch(name, "model-*.safetensors"))]
    else:
        weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        held = "pickle weights only" if any(fnmatch(n, p) for n in names for p in PICKLES) else "no weights"
        raise UnsupportedModel(
            f"{hub} holds {held}, and safetensors are needed: "
            "https://huggingface.co/spaces/safetensors/convert makes them from pickles"
        )
    return [name for name in names if name in SETTINGS] + weights


def _refuse_full_disk(hub: str, needed: int, place: Path) -> None:
    while not place.exists():
        place = place.parent
    if (free := shutil.disk_usage(place).free) < needed:
        raise ModelNotFound(
            f"{hub} needs {needed / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB free: "
            "make room, or set HF_HOME to a folder on a larger disk"
        )


def _explained(error: Exception, hub: str, revision: str | None, otherwise: str) -> ModelNotFound:
    """An error of the hub's client -> one line; `otherwise` for errors that have no line of their own."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{hub}"
    if isinstance(error, errors.GatedRepoError):
        text = f"{hub} is gated: accept its terms at {page}, then run `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        text = f"{hub} has no revision {revision!r}: its branches and tags are at {page}/tree/main"
    elif isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        text = (
            f"{hub!r} is neither a folder nor a model on the hub: check the spelling, "
            "or run `hf auth login` if it is private"
        )
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        text = f"the disk is full: make room in {cache_folder()} for {hub}, or set HF_HOME to a larger disk"
    else:
        text = otherwise.format(hub=hub, reason=f"{type(error).__name__}: {error}".splitlines()[0])
    return ModelNotFound(text)


class _Tally:
    """Adds up what the progress bars of the hub's client count, in whichever threads."""

    def __init__(self, total: int, report: Progress | None) -> None:
        self.total = total
        self.report = report if report is not None and total else lambda done, total: None
        self.lock = threading.Lock()
        self.before = 0  # bytes of earlier calls of the client
        self.counts: dict[int, int] = {}  # bar -> its bytes
        self.report(0, total)

    def bars(self) -> type:
        """A class of silent bars for the next call of the client."""
        from huggingface_hub.utils.tqdm import tqdm

        self.before += max(self.counts.values(), default=0)
        self.counts = {}
        add = self._add

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
                self.counts_bytes = kwargs.get("unit") == "B"  # another bar counts files

            def update(self, n: float | None = 1) -> None:
                if self.counts_bytes:
                    add(id(self), int(n or 0))

        return Bar

    def finish(self) -> None:
        """What the bars left out was there already."""
        self.report(self.total, self.total)

    def _add(self, bar: int, count: int) -> None:
        with self.lock:
            self.counts[bar] = self.counts.get(bar, 0) + count
            # The same bytes are counted as received and as written: the bar that is ahead is believed.
            self.report(min(self.total, self.before + max(self.counts.values())), self.total)
