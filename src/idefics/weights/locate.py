"""What a person calls a model -> the folder that holds it."""

from __future__ import annotations

import difflib
import logging
import os
import re
from pathlib import Path

from idefics.calls import short
from idefics.catalog import resolve, short_names
from idefics.errors import BadSetting, ModelNotFound
from idefics.weights.adapters import refuse_adapter
from idefics.weights.hub import Progress, from_hub

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")


def find(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
    weights: bool = True,
    token: str | bool | None = None,
    cache: Path | None = None,
) -> Path:
    """The folder of a checkpoint, downloaded first where that is needed.

    A model that is completely in the hub's cache is used as it is: the hub is not asked for a newer one.

    Args:
        model: a short name of the catalog ("9b-instruct", "demo"), a folder, or a hub id ("owner/name").
            A short name wins over a folder so called (write "./demo" for that), a folder over a hub id.
        revision: branch, tag or commit of a model on the hub; None is its main branch.
        offline: never use the network; None asks IDEFICS_OFFLINE and HF_HUB_OFFLINE.
        progress: called with (bytes so far, bytes in all): first with (0, all) before anything is downloaded,
            then from the client's threads. Not called for what is already on this machine.
        weights: whether they are needed too; a processor reads the small files alone.
        token: for private and gated models; True or None is the one of `hf auth login`, False is none.
        cache: the folder that downloads are kept in; None is the hub client's own.

    Raises:
        ModelNotFound: no such name, folder, repository or revision; not in the cache and the hub out of
            reach; no access; no space. The message says which, and the way out.
        UnsupportedModel: this version does not run it; said before anything large is downloaded.
        BadSetting: a revision of something that is not on the hub.
    """
    given: object = model
    if not isinstance(given, (str, os.PathLike)):
        raise BadSetting(f"model is {short(given)}; give a short name, a folder or a hub id")
    row = resolve(model) if isinstance(model, str) else None
    folder = PACKAGE / row.folder if row is not None else Path(model).expanduser()
    if row is not None and row.hub:
        hub = row.hub
    elif row is None and isinstance(model, str) and HUB_ID.fullmatch(model) and not folder.exists():
        hub = model
    else:
        if revision is not None:
            raise BadSetting(f"revision is {revision!r}, but {model} is a folder: only the hub has revisions")
        return _checkpoint(folder, model)
    log.debug("%s is %s on the hub", model, hub)
    return from_hub(
        hub,
        revision=revision,
        offline=offline,
        progress=progress,
        weights=weights,
        token=token,
        cache=cache,
    )


def _checkpoint(folder: Path, called: str | os.PathLike[str]) -> Path:
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        refuse_adapter(folder)
        raise ModelNotFound(f"{folder} has no config.json: give the folder of a checkpoint")
    if folder.exists():
        raise ModelNotFound(f"{folder} is a file: give the folder that holds it")
    near = ", ".join(difflib.get_close_matches(str(called).lower(), short_names(), n=3, cutoff=0.5))
    raise ModelNotFound(
        f"{str(called)!r} is neither a folder nor a short name{near and f' (near: {near})'}: "
        "`idefics models` lists the short names, and a model on the hub is called owner/name"
    )
