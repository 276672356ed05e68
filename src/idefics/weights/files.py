"""Lists the safetensors files of a checkpoint's folder without reading their tensors; refuses adapters and pickles."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from idefics.errors import BrokenCheckpoint, UnsupportedModel
from idefics.weights.adapter_config import ADAPTER_CONFIG

# (prefix that a training wrapper puts before each weight's name, the wrapper, how to save a checkpoint instead).
WRAPPER_PREFIXES = (
    ("base_model.model.", "peft", "save model.merge_and_unload() instead of the wrapped model"),
    ("_forward_module.", "Lightning", "save the module inside instead of the wrapper"),
    ("_orig_mod.", "torch.compile", "save model._orig_mod instead of the compiled model"),
    ("module.", "DataParallel or DeepSpeed", "save model.module instead of the wrapper"),
)
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
COPIED_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.md", "LICENSE*")  # copied unchanged
MAX_FINGERPRINT_HEADER = 64 << 10  # bytes
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")

HASH_NAME = re.compile("[0-9a-f]{64}")
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


def num_weight_bytes(folder: Path) -> int:
    """The size of the files of weights in a folder; raises the errors of `safetensors_files`."""
    return sum(file.stat().st_size for file in safetensors_files(folder))


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
    """The names of all shards of the set to which a file belongs, by its name; of another file its name alone."""
    shard = SHARD_NAME.fullmatch(name)
    if shard is None:
        return [name]
    return [
        f"{shard['stem']}-{n:05}-of-{shard['count']}.safetensors" for n in range(1, int(shard["count"]) + 1)
    ]


def _no_weights_error(folder: Path) -> UnsupportedModel | BrokenCheckpoint:
    """The error for a folder without safetensors; if it has pickles, the message says how to convert them."""
    for pattern in PICKLE_PATTERNS:
        if any(folder.glob(pattern)):
            return pickle_error(folder, pattern)
    return BrokenCheckpoint(
        f"{folder} holds no weights: {SINGLE_FILE}, or {INDEX_FILE} with its shards, must be in it"
    )


def pickle_error(folder: Path, pattern: str) -> UnsupportedModel:
    """The error for a folder that holds pickles instead of safetensors: says how to convert them."""
    convert = CONVERSION_SCRIPT.format(pattern=folder / pattern)
    return UnsupportedModel(
        f"{folder} holds pickle weights ({pattern}), which can run code when they are opened; "
        f'only safetensors are read. To convert: python -c "{convert}"'
    )


def fingerprint_files(files: Iterable[Path]) -> str:
    """A SHA-256 (hex) that changes if one of the files is edited or replaced; of each, 64 KiB at most are read.

    It covers the first bytes, which are a safetensors file's header, the size, the inode, and the times of the last
    changes of the content and of the status. No program can set the last one, which changes with every edit, also where
    the time of the content is restored. In the hub's cache the resolved path is the content's own hash.
    """
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        digest.update(f"{(str(file.resolve()), status.st_ino, status.st_size, *times)!r}".encode())
        with file.open("rb") as content:
            digest.update(content.read(MAX_FINGERPRINT_HEADER))
    return digest.hexdigest()


def digest_files(files: Iterable[Path]) -> str:
    """A SHA-256 (hex) of the contents of files: that of their own digests, one after another.

    In the hub's cache a file of weights has the hash of its content as its name; others are read.
    """
    digest = hashlib.sha256()
    for file in files:
        target = file.resolve()
        if target.parent.name == "blobs" and HASH_NAME.fullmatch(target.name):
            digest.update(bytes.fromhex(target.name))
            continue
        with target.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def copy_small_files(folder: Path, target: Path) -> None:
    """Copies all files of a checkpoint but its weights into another folder."""
    for pattern in COPIED_FILES:
        for file in folder.glob(pattern):
            if file.is_file() and not file.name.endswith(".safetensors.index.json"):
                shutil.copyfile(file, target / file.name)


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
        f"{name} holds an adapter (LoRA){of}, not a whole model: give {base_model or 'its base model'} as the model, "
        f"and adapter={name!r} as its adapter; `idefics merge` makes one model of both"
    )


def _base_model_name(path: Path) -> str:
    """The base model that an adapter_config.json names; "" if it names none or cannot be read."""
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
