"""Checkpoints of random weights at the released shapes, written once: what is measured never needs a download.

config.json and the small files are the released ones, field for field (`tests/models/released.py` holds them); the
tokenizer knows bytes and the released special tokens, each with its released id. Weights are bfloat16, as released.
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

from idefics.models import build, read_checkpoint

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

from models.released import RELEASED, Released  # noqa: E402

CACHE = Path(os.environ.get("IDEFICS_BENCH_CACHE", Path.home() / ".cache" / "idefics-bench"))
SHARD = 4 * 2**30  # bytes of a file of weights
# Full width, few layers: what a small machine can hold. The last two are the tower's layers and the perceiver's.
REDUCED: dict[str, dict[str, Any]] = {
    "9b": {
        "num_hidden_layers": 4,
        "vision_config": {"num_hidden_layers": 2},
        "perceiver_config": {"resampler_depth": 1},
    },
    "idefics2-8b": {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 2}},
    "idefics3-8b": {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 2}},
}


def checkpoint(name: str, *, whole: bool = False) -> Path:
    """The folder of a checkpoint, by the catalog's short name or a path; written first where it is not there yet.

    `whole`: all layers also of those that are otherwise reduced.
    """
    if name not in RELEASED:
        return Path(name)
    changes = {} if whole else REDUCED.get(name, {})
    folder = CACHE / (f"{name}-reduced" if changes else name)
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _write(part, RELEASED[name], changes)
        _weights(part)
        part.rename(folder)
    return folder


def hollow(name: str) -> Path:
    """The folder of a whole checkpoint without its weights, by its short name or a path: for who draws them himself."""
    if name not in RELEASED:
        return Path(name)
    folder = CACHE / f"{name}-hollow"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, RELEASED[name], {})
    return folder


def unsplit(folder: Path) -> Path:
    """The same checkpoint, whose preprocessor does not split pictures: one frame each, as few-shot users set it.

    Made anew each time, of links: the folder may be another one by the same name than last time.
    """
    other = CACHE / f"{folder.name}-unsplit"
    shutil.rmtree(other, ignore_errors=True)
    other.mkdir(parents=True)
    for path in folder.iterdir():
        (other / path.name).symlink_to(path.resolve())
    plan = other / "preprocessor_config.json"
    content = json.loads(plan.read_text(encoding="utf-8"))
    plan.unlink()
    plan.write_text(json.dumps({**content, "do_image_splitting": False}), encoding="utf-8")
    return other


def _write(folder: Path, released: Released, changes: dict[str, Any]) -> None:
    config = _changed(released.config, changes)
    files = {
        "config.json": config,
        "generation_config.json": released.generation,
        "preprocessor_config.json": released.preprocessor,
        "processor_config.json": released.processor,
        "tokenizer_config.json": released.tokenizer | {"tokenizer_class": "PreTrainedTokenizerFast"},
    }
    if released.template:
        place = files.setdefault(released.template_in, {})
        files[released.template_in] = place | {"chat_template": released.template}
    for name, content in files.items():
        if content:
            (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    rows = config.get("text_config", config)["vocab_size"] + config.get("additional_vocab_size", 0)
    _tokenizer(rows, released.tokens).save(str(folder / "tokenizer.json"))


def _changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    inner = {
        key: _changed(content[key], value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return {**content, **inner}


def _tokenizer(rows: int, special: dict[int, str]) -> Tokenizer:
    """One token a byte, the special ones at their ids, and words that no text has for the rest of the rows."""
    alphabet = iter(sorted(pre_tokenizers.ByteLevel.alphabet()))
    words = {id: special.get(id) or next(alphabet, f"word{id}") for id in range(rows)}
    tokenizer = Tokenizer(models.BPE(vocab={word: id for id, word in words.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(word, normalized=False) for id, word in special.items() if id < rows]
    )
    return tokenizer


def _weights(folder: Path) -> None:
    torch.manual_seed(0)
    shapes = {name: weight.shape for name, weight in build(read_checkpoint(folder)).named_parameters()}
    where: dict[str, str] = {}
    shards = list(_shards(shapes))
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: _drawn(name, shapes[name]) for name in names}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shards(shapes: dict[str, torch.Size]) -> Iterator[list[str]]:
    names: list[str] = []
    held = 0
    for name, shape in shapes.items():
        if held > SHARD:
            yield names
            names, held = [], 0
        names.append(name)
        held += 2 * shape.numel()
    yield names


def _drawn(name: str, shape: torch.Size) -> torch.Tensor:
    """Values that a forward pass survives: norms of one, no biases, gates half open."""
    if "alpha" in name:
        return torch.full(shape, 0.5, dtype=torch.bfloat16)
    if len(shape) == 1:
        return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=torch.bfloat16)
    return torch.randn(shape).mul_(0.02).bfloat16()
