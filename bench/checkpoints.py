"""Checkpoints with random weights in the released shapes, written once, so that no benchmark needs a download.

config.json and the other JSON files are the released ones (`tests/models/released.py`). The tokenizer has one token a
byte and the released special tokens with their ids. Weights are bfloat16, as released.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from idefics.models import build_on_meta_device, read_checkpoint

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

from models.released import RELEASED_BY_NAME, ReleasedCheckpoint  # noqa: E402

CACHE = Path(os.environ.get("IDEFICS_BENCH_CACHE", Path.home() / ".cache" / "idefics-bench"))
MAX_SHARD_BYTES = 4 * 2**30  # of one file of weights
# Full width, few layers, for machines with little memory.
REDUCED_CONFIG_BY_NAME: dict[str, dict[str, Any]] = {
    "9b": {
        "num_hidden_layers": 4,
        "vision_config": {"num_hidden_layers": 2},
        "perceiver_config": {"resampler_depth": 1},
    },
    "idefics2-8b": {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 2}},
    "idefics3-8b": {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 2}},
}


def get_checkpoint(name: str, *, has_all_layers: bool = False) -> Path:
    """The folder of a checkpoint by short name or path; it is written if it does not exist.

    `has_all_layers`: keep all layers of the models in `REDUCED_CONFIG_BY_NAME`.
    """
    if name not in RELEASED_BY_NAME:
        return Path(name)
    changes = {} if has_all_layers else REDUCED_CONFIG_BY_NAME.get(name, {})
    folder = CACHE / (f"{name}-reduced" if changes else name)
    if not folder.exists():
        partial_folder = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(partial_folder, ignore_errors=True)
        partial_folder.mkdir(parents=True)
        _write_json_files(partial_folder, RELEASED_BY_NAME[name], changes)
        _write_weights(partial_folder)
        partial_folder.rename(folder)
    return folder


def get_folder_without_weights(name: str) -> Path:
    """The folder of a whole checkpoint without weights, by short name or path; the caller draws them."""
    if name not in RELEASED_BY_NAME:
        return Path(name)
    folder = CACHE / f"{name}-hollow"
    folder.mkdir(parents=True, exist_ok=True)
    _write_json_files(folder, RELEASED_BY_NAME[name], {})
    return folder


def copy_without_image_splitting(folder: Path) -> Path:
    """The same checkpoint with `do_image_splitting` off: one frame a picture, as usual for few-shot prompts.

    A folder of links that is made anew each time, because `folder` may have changed.
    """
    copy = CACHE / f"{folder.name}-unsplit"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path.resolve())
    preprocessor_file = copy / "preprocessor_config.json"
    content = json.loads(preprocessor_file.read_text(encoding="utf-8"))
    preprocessor_file.unlink()
    preprocessor_file.write_text(json.dumps({**content, "do_image_splitting": False}), encoding="utf-8")
    return copy


def _write_json_files(folder: Path, released: ReleasedCheckpoint, changes: dict[str, Any]) -> None:
    config = _merge_changes(released.config, changes)
    files = {
        "config.json": config,
        "generation_config.json": released.generation_config,
        "preprocessor_config.json": released.preprocessor,
        "processor_config.json": released.processor,
        "tokenizer_config.json": released.tokenizer | {"tokenizer_class": "PreTrainedTokenizerFast"},
    }
    if released.template:
        existing = files.setdefault(released.template_in, {})
        files[released.template_in] = existing | {"chat_template": released.template}
    for name, content in files.items():
        if content:
            (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    vocab_size = config.get("text_config", config)["vocab_size"] + config.get("additional_vocab_size", 0)
    _make_tokenizer(vocab_size, released.token_by_id).save(str(folder / "tokenizer.json"))


def _merge_changes(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {
        key: _merge_changes(content[key], value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return {**content, **merged}


def _make_tokenizer(vocab_size: int, special_tokens_by_id: dict[int, str]) -> Tokenizer:
    """One token a byte, special tokens at their ids, and unused words for the other ids."""
    alphabet = iter(sorted(pre_tokenizers.ByteLevel.alphabet()))
    words = {id: special_tokens_by_id.get(id) or next(alphabet, f"word{id}") for id in range(vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab={word: id for id, word in words.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(word, normalized=False) for id, word in special_tokens_by_id.items() if id < vocab_size]
    )
    return tokenizer


def _write_weights(folder: Path) -> None:
    torch.manual_seed(0)
    shapes = {
        name: weight.shape
        for name, weight in build_on_meta_device(read_checkpoint(folder)).named_parameters()
    }
    file_by_name: dict[str, str] = {}
    shards = list(_split_into_shards(shapes))
    for shard_index, names in enumerate(shards, 1):
        file = f"model-{shard_index:05}-of-{len(shards):05}.safetensors"
        save_file(
            {name: _random_weight(name, shapes[name]) for name in names}, folder / file, {"format": "pt"}
        )
        file_by_name |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": file_by_name}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _split_into_shards(shapes: dict[str, torch.Size]) -> Iterator[list[str]]:
    names: list[str] = []
    shard_bytes = 0
    for name, shape in shapes.items():
        if shard_bytes > MAX_SHARD_BYTES:
            yield names
            names, shard_bytes = [], 0
        names.append(name)
        shard_bytes += 2 * shape.numel()
    yield names


def _random_weight(name: str, shape: torch.Size) -> torch.Tensor:
    """Random values with finite activations: norms 1, biases 0, gates 0.5."""
    if "alpha" in name:
        return torch.full(shape, 0.5, dtype=torch.bfloat16)
    if len(shape) == 1:
        return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=torch.bfloat16)
    return torch.randn(shape).mul_(0.02).bfloat16()
