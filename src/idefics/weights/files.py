"""Lists the safetensors files of a checkpoint's folder, without opening them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from idefics.errors import BrokenCheckpoint, UnsupportedModel
from idefics.weights.adapters import refuse_adapter

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")

SHARD_NAME = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")

# A command that a person can paste; `weights_only` keeps the pickle from running code.
CONVERSION_SCRIPT = (
    "import glob, torch; from safetensors.torch import save_file; "
    "[save_file({{k: v.clone() for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}}, "
    "f.rsplit('.', 1)[0] + '.safetensors') for f in glob.glob(r'{pattern}')]"
)


def safetensors_files(folder: Path) -> tuple[Path, ...]:
    """The files of a checkpoint's weights: model.safetensors, else the shards in its index, else all *.safetensors.

    A file that is one shard of a set requires the whole set.

    Raises:
        UnsupportedModel: the weights are pickles, or the folder holds an adapter.
        BrokenCheckpoint: there are no weights, a shard is missing, or the index cannot be read.
    """
    refuse_adapter(folder)
    if (folder / SINGLE_FILE).is_file():
        return (folder / SINGLE_FILE,)
    if (folder / INDEX_FILE).is_file():
        names = _read_shard_names_of_index(folder / INDEX_FILE)
    else:
        names = sorted(
            {
                shard
                for file in folder.glob("*.safetensors")
                for shard in _expand_to_all_shard_names(file.name)
            }
        )
    if not names:
        raise _no_weights_error(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise BrokenCheckpoint(
            f"{folder} lacks {', '.join(missing[:3])}{more}, of {len(names)} files of weights: "
            "download or copy the folder again"
        )
    return tuple(folder / name for name in names)


def _read_shard_names_of_index(index: Path) -> list[str]:
    """The sorted names of the shards in a model.safetensors.index.json."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BrokenCheckpoint(
            f"{index} cannot be read ({type(error).__name__}: {error}): download or copy it again"
        ) from error
    # The index comes from an untrusted sender: it may name files in its own folder only.
    if outside_names := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise BrokenCheckpoint(
            f"{index} names {outside_names[0]!r}, which is not a file in its folder: download it again"
        )
    return sorted(names)


def _expand_to_all_shard_names(name: str) -> list[str]:
    """The name of a shard -> the names of all shards of its set; another name -> itself."""
    shard = SHARD_NAME.fullmatch(name)
    if shard is None:
        return [name]
    return [
        f"{shard['stem']}-{n:05}-of-{shard['count']}.safetensors" for n in range(1, int(shard["count"]) + 1)
    ]


def _no_weights_error(folder: Path) -> UnsupportedModel | BrokenCheckpoint:
    """The error of a folder without safetensors, which says how to convert pickles if it has some."""
    for pattern in PICKLE_PATTERNS:
        if any(folder.glob(pattern)):
            convert = CONVERSION_SCRIPT.format(pattern=folder / pattern)
            return UnsupportedModel(
                f"{folder} holds pickle weights ({pattern}), which can run code when they are opened; "
                f'only safetensors are read. To convert: python -c "{convert}"'
            )
    return BrokenCheckpoint(
        f"{folder} holds no weights: {SINGLE_FILE}, or {INDEX_FILE} with its shards, must be in it"
    )
