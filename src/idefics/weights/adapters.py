"""Recognises folders that hold an adapter, or weights saved with the prefix of a training wrapper, and refuses them."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from idefics.errors import BrokenCheckpoint, UnsupportedModel

ADAPTER_CONFIG = "adapter_config.json"

# (prefix that a training wrapper puts before each weight's name, the wrapper, how to save a checkpoint instead).
WRAPPER_PREFIXES = (
    ("base_model.model.", "peft", "save model.merge_and_unload() instead of the wrapped model"),
    ("_forward_module.", "Lightning", "save the module inside instead of the wrapper"),
    ("_orig_mod.", "torch.compile", "save model._orig_mod instead of the compiled model"),
    ("module.", "DataParallel or DeepSpeed", "save model.module instead of the wrapper"),
)


def refuse_adapter(folder: Path) -> None:
    """Raises UnsupportedModel if a folder holds an adapter (LoRA) instead of, or in addition to, a model."""
    path = folder / ADAPTER_CONFIG
    if path.is_file():
        raise UnsupportedModel(adapter_error_message(str(folder), path))


def adapter_error_message(name: str, path: Path | None = None) -> str:
    """The message for a folder or repository that holds an adapter.

    Args:
        name: of the folder or repository.
        path: its adapter_config.json, which names the base model; None: not known.
    """
    base_model = "" if path is None else _base_model_name(path)
    of = f" of {base_model}" if base_model else ""
    return (
        f"{name} holds an adapter (LoRA){of}, not a whole model: load {base_model or 'its base model'} with "
        f"idefics.compat and call load_adapter({name!r}); or merge them with peft's merge_and_unload(), "
        "save_pretrained, and give that folder"
    )


def _base_model_name(path: Path) -> str:
    """The base model that an adapter_config.json names; "" if it cannot be read."""
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return name if isinstance(name, str) else ""


def refuse_wrapper_prefix(names: Collection[str], folder: Path) -> None:
    """Raises BrokenCheckpoint if all names of weights begin with the prefix of a training wrapper."""
    for prefix, wrapper, hint in WRAPPER_PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            raise BrokenCheckpoint(
                f"{folder}: the names of all {len(names)} weights begin with {prefix!r}, "
                f"as {wrapper} saves them: {hint}"
            )
