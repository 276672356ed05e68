"""Which files `from_pretrained` reads: the keywords of model cards that say so, and those that change nothing here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idefics import weights
from idefics.catalog import find_entry
from idefics.errors import BadSetting

# Accepted by every `from_pretrained` and ignored, with the reason.
IGNORED_KWARGS = {
    "_commit_hash": "a note from one loader to the next",
    "_from_auto": "a note from one loader to the next",
    "code_revision": "no code of a checkpoint is ever run",
    "force_download": "a file of a revision never changes; a broken one is downloaded again anyway",
    "from_auto": "a note from one loader to the next",
    "mirror": "HF_ENDPOINT names another hub",
    "proxies": "the hub's client reads HTTPS_PROXY",
    "resume_download": "a download always continues where it stopped",
    "trust_remote_code": "no code of a checkpoint is ever run",
    "user_agent": "a name that is told to the hub",
}
# Likewise, by processors, image processors and tokenizers.
IGNORED_PROCESSOR_KWARGS = IGNORED_KWARGS | {
    "_attn_implementation": "there is no attention in a processor",
    "attn_implementation": "there is no attention in a processor",
    "backend": "there is one implementation",
    "device_map": "there are no weights in a processor",
    "dtype": "there are no weights in a processor",
    "from_slow": "tokenizer.json is always read",
    "legacy": "tokenizer.json says how text is split",
    "low_cpu_mem_usage": "there are no weights in a processor",
    "torch_dtype": "there are no weights in a processor",
    "use_fast": "there is one implementation: the tokenizers library, and the resizing of Pillow",
    "use_safetensors": "there are no weights in a processor",
}
HUB_KWARGS = ("revision", "local_files_only", "subfolder", "token", "use_auth_token", "cache_dir")


def resolve_pretrained_folder(
    model: str | os.PathLike[str], keywords: Mapping[str, Any], *, ignored: Mapping[str, str], needs: str
) -> tuple[Path, dict[str, Any]]:
    """The folder that `from_pretrained` reads, and the keywords that are left when those of the hub are taken out.

    Args:
        model: a folder, a hub id ("owner/name") or a short name ("demo").
        keywords: what the caller gave. Of these, `HUB_KWARGS` say which folder is meant: `revision`, a branch, tag or
            commit on the hub ("main" is also any folder's); `local_files_only`, never use the network; `subfolder` of
            a folder; `token` (or `use_auth_token`) for private models; `cache_dir`, where downloads are kept.
        ignored: keywords that are dropped: `IGNORED_KWARGS` or `IGNORED_PROCESSOR_KWARGS`.
        needs: "weights"; "config", all small files of a checkpoint; or "files", any that are there, as a processor or
            tokenizer may have been saved alone.

    Raises:
        BadSetting: another revision than "main" of a folder, or a subfolder on the hub.
        ModelNotFound: as `idefics.weights.find`.
    """
    hub_kwargs = {name: keywords[name] for name in HUB_KWARGS if keywords.get(name) is not None}
    other_kwargs = {
        name: value for name, value in keywords.items() if name not in HUB_KWARGS and name not in ignored
    }
    folder, subfolder = Path(model).expanduser(), hub_kwargs.get("subfolder", "")
    revision = hub_kwargs.get("revision")
    if folder.is_dir() and find_entry(str(model)) is None:
        revision = None if revision == "main" else revision
        if subfolder:
            folder = model = folder / subfolder
    elif subfolder:
        raise BadSetting(
            f"subfolder is {subfolder!r}, but {model} is not a folder: download it with `hf download {model}`, "
            "and give the folder"
        )
    if (
        needs == "files"
        and revision is None
        and find_entry(str(model)) is None
        and _has_processor_files(folder)
    ):
        return folder, other_kwargs
    cache = hub_kwargs.get("cache_dir")
    return weights.find(
        model,
        revision=revision,
        offline=hub_kwargs.get("local_files_only") or None,
        needs_weights=needs == "weights",
        token=hub_kwargs.get("token", hub_kwargs.get("use_auth_token")),
        cache=None if cache is None else Path(cache).expanduser(),
    ), other_kwargs


def _has_processor_files(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "preprocessor_config.json"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A small file as people can read it."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
