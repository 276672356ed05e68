"""Finds checkpoints in the hub's cache, without using the network."""

from __future__ import annotations

from pathlib import Path

from idefics.errors import ModelError
from idefics.weights.files import safetensors_files


def complete_cached_folder(repo_id: str, *, revision: str | None = None) -> Path | None:
    """The folder of a hub model that is completely in the cache; None if it is not."""
    folder = snapshot_folder(repo_id, revision)
    return None if folder is None or missing_files_or_weights(folder) else folder


def cache_folder() -> Path:
    """The folder in which the hub's client keeps downloads (`HF_HUB_CACHE`)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def snapshot_folder(repo_id: str, revision: str | None, cache: Path | None = None) -> Path | None:
    """The folder of a revision (None: main) in a cache (None: `cache_folder`), complete or not; None if there is none.

    The layout is a documented one: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    repository = (cache or cache_folder()) / f"models--{repo_id.replace('/', '--')}"
    commit = revision or "main"
    reference = repository / "refs" / commit
    if reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None


def missing_files_or_weights(folder: Path, *, needs_weights: bool = True) -> list[str]:
    """What a snapshot lacks: names of small files, and "weights" if any file of weights is missing. Empty: complete."""
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
