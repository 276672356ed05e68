"""Merges an adapter into its model, and writes an ordinary checkpoint that is laid out like the model's own."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from idefics import models, weights
from idefics.errors import BadSetting
from idefics.generation.adapters import find_adapter
from idefics.generation.load_settings import LoadSettings
from idefics.models import Checkpoint
from idefics.processing.checkpoint_settings import read_json_object
from idefics.weights.adapters import WeightChange, read_weight_changes
from idefics.weights.files import INDEX_FILE, copy_small_files
from idefics.weights.tensors import (
    FileTensor,
    TensorToWrite,
    TensorWithNames,
    num_bytes,
    open_file_tensors,
    state_dict_tensors_tied_once,
    write_safetensors,
)
from idefics.weights.whole_folder import write_whole_folder


@dataclass(frozen=True, slots=True)
class MergedCheckpoint:
    """What `merge_adapter` wrote.

    Attributes:
        folder: the merged checkpoint.
        num_changed: how many of its tensors the adapter changed.
        num_tensors: how many tensors it has.
        untied: whether the model's head and embedding were one tensor and now are two.
    """

    folder: Path
    num_changed: int
    num_tensors: int
    untied: bool


def merge_adapter(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    out: Path,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    progress: weights.ProgressCallback | None = None,
) -> MergedCheckpoint:
    """Writes a model with an adapter merged into it as a checkpoint; on an error the folder is not created.

    Files, names and dtypes are those of the model. Sums are float32 and are rounded once, to the tensor's dtype.

    Args:
        model: a short name, folder or hub id.
        adapter: a folder or hub id.
        out: the folder to write; it must be new or empty.
        revision: branch, tag or commit of the model on the hub.
        offline, progress: as for `load`.

    Raises:
        ModelError: the model or the adapter is not found or not supported, or they do not fit together.
        BadSetting: the folder is not empty or cannot be written, or the model's weights are quantized.
    """
    folder = weights.find_checkpoint(model, revision=revision, offline=offline, progress=progress)
    checkpoint = models.read_checkpoint(folder)
    if checkpoint.quantization is not None:
        raise BadSetting(
            f"{folder} is stored in {checkpoint.quantization.kind}, and an adapter cannot be merged into integers: "
            "give the original model"
        )
    settings = LoadSettings(offline=offline, progress=progress)
    adapter_folder = find_adapter(adapter, model, checkpoint, settings)
    module = models.build_on_meta_device(checkpoint)
    with ExitStack() as stack:
        changes = read_weight_changes(adapter_folder, module, checkpoint.family.key_rules, stack)
        readers = {name: change.read_changed for name, change in changes.items()}
        return _write_checkpoint(checkpoint, module, readers, out)


def write_changed_checkpoint(
    checkpoint: Checkpoint, out: Path, values: Mapping[str, Tensor]
) -> MergedCheckpoint:
    """Writes a checkpoint with new values for some of its weights; on an error the folder is not created.

    Files, names and dtypes are those of the checkpoint.

    Args:
        checkpoint: not quantised.
        out: the folder to write; it must be new or empty.
        values: by the model's names; of a tied weight by one of them.

    Raises:
        BadSetting: the folder is not empty or cannot be written.
    """
    module = models.build_on_meta_device(checkpoint)
    readers: dict[str, ReadChanged] = {}
    for parameter in state_dict_tensors_tied_once(module):
        if name := next((name for name in parameter.names if name in values), None):
            readers |= dict.fromkeys(parameter.names, partial(_read_new_value, values[name]))
    return _write_checkpoint(checkpoint, module, readers, out)


# Reads the changed value of a weight; arguments as of `WeightChange.read_changed`.
ReadChanged = Callable[[Sequence[FileTensor], Sequence[int], torch.dtype, torch.device], Tensor]


def _read_new_value(
    value: Tensor, parts: Sequence[FileTensor], shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A value that replaces a weight, in a dtype and on a device."""
    return value.reshape(*shape).to(device, dtype)


def _write_checkpoint(
    checkpoint: Checkpoint, module: nn.Module, readers: Mapping[str, ReadChanged], out: Path
) -> MergedCheckpoint:
    """Writes a checkpoint with changes of its weights, by the names of `module`, which has their shapes."""
    folder, parameters = checkpoint.folder, state_dict_tensors_tied_once(module)
    with write_whole_folder(out) as temporary, ExitStack() as stack:
        file_tensors = open_file_tensors(weights.safetensors_files(folder), stack)
        sources = checkpoint.family.key_rules.sources_by_target(file_tensors)
        replaced = _changed_tensors(readers, parameters, sources)
        copy_small_files(folder, temporary)
        _write_weights(file_tensors, replaced, temporary)
        added = [
            (file_tensors[old_name].file.name, tensor)
            for old_name, tensors in replaced.items()
            for tensor in tensors
            if tensor.name not in file_tensors
        ]
        if unties := any(_is_untied(readers, parameter) for parameter in parameters):
            _untie_config(temporary / "config.json")
        if (folder / INDEX_FILE).is_file():
            _write_index(folder, added, temporary)
    num_changed = sum(len(tensors) for tensors in replaced.values())
    return MergedCheckpoint(out, num_changed, len(file_tensors) + len(added), unties)


def _is_untied(readers: Mapping[str, ReadChanged], parameter: TensorWithNames) -> bool:
    """Whether a tensor with several names is changed under one of them, and not alike under the others."""
    return len({id(readers.get(name)) for name in parameter.names}) > 1


def _changed_tensors(
    readers: Mapping[str, ReadChanged],
    parameters: Sequence[TensorWithNames],
    sources: Mapping[str, Sequence[FileTensor]],
) -> dict[str, list[TensorToWrite]]:
    """The tensors to write in the place of a file tensor, by its name; of a tied one under all its names.

    Args:
        readers: of the changed weights, by the model's names.
        parameters: of the model.
        sources: the file tensors of each name of the model, to be concatenated.
    """
    replaced: dict[str, list[TensorToWrite]] = {}
    for parameter in parameters:
        if readers.keys().isdisjoint(parameter.names):
            continue
        in_files = [name for name in parameter.names if name in sources]
        for name in parameter.names if _is_untied(readers, parameter) else in_files:
            parts = sources.get(name) or sources[in_files[0]]
            read_changed = readers.get(name, WeightChange().read_changed)
            for index, part in enumerate(parts):
                written_name = part.name if name in sources else name
                tensor = _part_to_write(written_name, read_changed, parts, index, parameter.tensor.shape)
                replaced.setdefault(part.name, []).append(tensor)
    return replaced


def _part_to_write(
    name: str, read_changed: ReadChanged, parts: Sequence[FileTensor], index: int, shape: Sequence[int]
) -> TensorToWrite:
    """A part of a changed tensor, in the dtype and shape that the part has in its file."""
    part = parts[index]
    assert part.dtype is not None

    def read(dtype: torch.dtype) -> Tensor:
        whole = read_changed(parts, shape, dtype, torch.device("cpu"))
        return whole.split([one.shape[0] for one in parts])[index] if len(parts) > 1 else whole

    return TensorToWrite(name, part.dtype_name, part.shape, partial(read, part.dtype))


def _write_weights(
    file_tensors: Mapping[str, FileTensor], replaced: Mapping[str, Sequence[TensorToWrite]], folder: Path
) -> None:
    """Writes each file of weights under its own name, with the changed tensors in the place of the old ones."""
    tensors_by_file: defaultdict[Path, list[FileTensor]] = defaultdict(list)
    for tensor in file_tensors.values():
        tensors_by_file[tensor.file].append(tensor)
    for file, tensors in tensors_by_file.items():
        metadata = tensors[0].handle.metadata() or {"format": "pt"}
        written = [new for old in tensors for new in replaced.get(old.name, [old])]
        write_safetensors(folder / file.name, written, metadata)


def _untie_config(path: Path) -> None:
    """Says in config.json that head and embedding are two tensors."""
    config: dict[str, Any] = read_json_object(path)
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            part["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _write_index(folder: Path, added: Sequence[tuple[str, TensorToWrite]], target: Path) -> None:
    """Copies the index of the files of weights, and adds tensors that are new, each with the name of its file."""
    content = read_json_object(folder / INDEX_FILE)
    for file_name, tensor in added:
        content["weight_map"][tensor.name] = file_name
        content.setdefault("metadata", {}).setdefault("total_size", 0)
        content["metadata"]["total_size"] += num_bytes(tensor)
    (target / INDEX_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")
