"""Finds the folder of a model by a short name, path or hub id; downloads it if needed."""

from __future__ import annotations

import difflib
import logging
import os
import re
from pathlib import Path

from idefics.catalog import all_short_names, find_entry
from idefics.errors import BadSetting, ModelNotFound
from idefics.validation import short_repr
from idefics.weights.files import refuse_adapter
from idefics.weights.hub import find_or_download_snapshot
from idefics.weights.hub_files import ProgressCallback

log = logging.getLogger(__name__)

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
