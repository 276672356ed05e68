"""Streams the tensors of a checkpoint into a module that was built on the meta device, one at a time.

Names and shapes are compared before the first tensor is read, so that a checkpoint is loaded wholly or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from idefics.errors import UnsupportedModel
from idefics.host_memory import release_free_heap
from idefics.weights.adapters import WeightChange, read_weight_changes
from idefics.weights.files import refuse_wrapper_prefix, safetensors_files
from idefics.weights.key_rules import KeyRules
from idefics.weights.tensors import (
    FileTensor,
    TensorWithNames,
    check_names_shapes_and_dtypes,
    open_file_tensors,
    state_dict_tensors_tied_once,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


DeviceByModule = Mapping[
    str, "torch.device"
]  # name of a module, "" for the whole model -> device of its weights


def device_of(name: str, device_by_module: DeviceByModule) -> torch.device:
    """The device of a tensor or module by its name: that of the innermost enclosing module in `device_by_module`."""
    while name and name not in device_by_module:
        name = name.rpartition(".")[0]
    return device_by_module[name]


def load(
    model: nn.Module,
    folder: Path,
    rules: KeyRules,
    *,
    dtype: torch.dtype,
    device_by_module: DeviceByModule,
    dtype_by_name: Mapping[str, torch.dtype | None] | None = None,
    quantizers_by_name: Mapping[str, Callable[[Tensor], None]] | None = None,
    mmap: bool = False,
    optional_names: Collection[str] = (),
    adapter: Path | None = None,
) -> list[str]:
    """Fills `model` with the checkpoint in `folder`.

    Each tensor goes straight into its final dtype and device: at most one is in memory in addition to the model. Tied
    weights are one Parameter with several names, of which the checkpoint needs to hold one.

    Args:
        model: built on the meta device; its parameters and persistent buffers are replaced.
        folder: holds safetensors, in one file or in shards.
        rules: how the checkpoint's names become the model's.
        dtype: of every floating-point tensor; integers and booleans keep theirs.
        device_by_module: the devices of the model.
        dtype_by_name: other dtypes for some tensors; None: the file's own if that has 16 bits, else float32.
        quantizers_by_name: for some tensors a function that quantises the value and puts it into the model. Where
            tied weights are quantised under one name, their value is kept under the other names too.
        mmap: tensors that are used as they are stored stay in the files, which must not change while the model lives.
        optional_names: names that the checkpoint may lack; the model keeps its own values there.
        adapter: the folder of an adapter, merged into each weight before that is cast or quantised.

    Returns:
        Those of `optional_names` that the checkpoint lacks.

    Raises:
        WeightsMismatch, AdapterMismatch: the files, or the adapter, do not fit the model; all that is wrong is listed.
        BrokenCheckpoint: a file is missing, damaged or contradicts another, or all names have a wrapper's prefix.
        UnsupportedModel: an adapter, pickles, integers in place of floating-point weights, or tied weights that differ.
        RuntimeError: the model left a non-persistent buffer on the meta device.
    """
    with ExitStack() as stack:
        files = safetensors_files(folder)
        file_tensors = open_file_tensors(files, stack)
        refuse_wrapper_prefix(file_tensors, folder)
        sources = rules.sources_by_target(file_tensors)
        mapped_tensors = open_file_tensors(files, stack, "mmap") if mmap else {}
        changes = {} if adapter is None else read_weight_changes(adapter, model, rules, stack)
        loader = _ParameterLoader(
            model, sources, mapped_tensors, changes, dtype, dtype_by_name or {}, quantizers_by_name or {}
        )
        missing_names = loader.load_all(device_by_module, optional_names)
    _move_computed_buffers(model, device_by_module)
    return missing_names


def _move_computed_buffers(model: nn.Module, device_by_module: DeviceByModule) -> None:
    """Moves the non-persistent buffers, which the model computes itself, to the devices of their modules.

    Raises:
        RuntimeError: a tensor of the model is still on the meta device.
    """
    named_tensors = chain(model.named_parameters(), model.named_buffers())
    if meta_names := [name for name, tensor in named_tensors if tensor.is_meta]:
        raise RuntimeError(
            f"the model must compute these buffers itself, off the meta device: {', '.join(meta_names)}"
        )
    for name, buffer in model.named_buffers():
        _set_tensor(model, name, buffer.to(device_of(name, device_by_module)))


@dataclass(frozen=True, slots=True)
class _ParameterLoader:
    """Loads the parameters of a model, one at a time.

    Attributes:
        sources: the file tensors of each name of the model, to be concatenated.
        mapped_tensors: file tensors in mapped memory, by their names in the files; empty without `mmap`.
        changes: what an adapter changes, by names of the model.
        dtype, dtypes, quantizers: as `dtype`, `dtype_by_name` and `quantizers_by_name` of `load`.
    """

    model: nn.Module
    sources: Mapping[str, Sequence[FileTensor]]
    mapped_tensors: Mapping[str, FileTensor]
    changes: Mapping[str, WeightChange]
    dtype: torch.dtype
    dtypes: Mapping[str, torch.dtype | None]
    quantizers: Mapping[str, Callable[[Tensor], None]]

    def load_all(self, device_by_module: DeviceByModule, optional_names: Collection[str]) -> list[str]:
        """Loads all parameters; returns those of `optional_names` that the checkpoint lacks."""
        parameters = state_dict_tensors_tied_once(self.model)
        check_names_shapes_and_dtypes(parameters, self.sources, optional_names)
        missing_names = []
        for parameter in parameters:
            device = device_of(parameter.names[0], device_by_module)
            if self.sources.keys().isdisjoint(parameter.names):
                missing_names.append(parameter.names[0])
                dtype = self.dtype if parameter.tensor.is_floating_point() else None
                self._assign(parameter, parameter.names, parameter.tensor.detach().to(device, dtype))
            else:
                self.load(parameter, device)
        return missing_names

    def load(self, parameter: TensorWithNames, device: torch.device) -> None:
        """Reads a parameter from the checkpoint, changes it, and quantises it or assigns it to its names.

        Tied names stay tied, apart from those that are quantised or changed.
        """
        self._check_ties(parameter)
        shared_names = []
        for name in parameter.names:
            if quantize := self.quantizers.get(name):
                quantize(self._read_value(parameter, name, self.dtype, device))
                release_free_heap()
            elif name in self.changes:
                value = self._read_value(parameter, name, self.dtypes.get(name, self.dtype), device)
                self._assign(parameter, [name], value)
                release_free_heap()
            else:
                shared_names.append(name)
        if shared_names:
            dtype = self.dtypes.get(shared_names[0], self.dtype)
            value = self._read_value(parameter, shared_names[0], dtype, device, can_map=True)
            self._assign(parameter, shared_names, value)

    def _assign(self, parameter: TensorWithNames, names: Sequence[str], value: Tensor) -> None:
        """Sets the model's tensors with the given names to one value, as a Parameter if the old tensor was one."""
        from torch import nn

        if isinstance(parameter.tensor, nn.Parameter):
            value = nn.Parameter(value, requires_grad=parameter.tensor.requires_grad)
        for name in names:
            _set_tensor(self.model, name, value)

    def _source_names(self, parameter: TensorWithNames) -> list[str]:
        """The names of a parameter that the checkpoint holds."""
        return [name for name in parameter.names if name in self.sources]

    def _check_ties(self, parameter: TensorWithNames) -> None:
        """Raises UnsupportedModel if a parameter has different values under two of its names in the checkpoint."""
        import torch

        first, *others = self._source_names(parameter)
        for other in others:
            value, other_value = (
                torch.cat([part.read() for part in self.sources[name]]) for name in (first, other)
            )
            if not torch.equal(value, other_value.to(value.dtype)):
                raise UnsupportedModel(
                    f"{self.sources[first][0].file.parent}: {other} differs from {first} although config.json ties "
                    'them: set "tie_word_embeddings" to false in it'
                )

    def _read_value(
        self,
        parameter: TensorWithNames,
        name: str,
        dtype: torch.dtype | None,
        device: torch.device,
        *,
        can_map: bool = False,
    ) -> Tensor:
        """Reads the value that a parameter has under one of its names.

        Args:
            dtype: of the value; None: the file's own if that has 16 bits, else float32. Integers keep theirs.
            can_map: whether the value may stay in mapped memory.
        """
        import torch

        parts = self.sources[self._source_names(parameter)[0]]
        if dtype is None:
            stored_dtypes = {part.dtype for part in parts}
            half_dtypes = (torch.float16, torch.bfloat16)
            dtype = next((half for half in half_dtypes if stored_dtypes == {half}), torch.float32)
        if not parameter.tensor.is_floating_point():
            dtype = parameter.tensor.dtype
        if change := self.changes.get(name):
            return change.read_changed(parts, parameter.tensor.shape, dtype, device)
        is_usable_as_stored = device.type == "cpu" and len(parts) == 1 and parts[0].dtype == dtype
        if can_map and self.mapped_tensors and is_usable_as_stored:
            return self.mapped_tensors[parts[0].name].read()
        value = torch.empty(parameter.tensor.shape, dtype=dtype, device=device)
        if len(parts) == 1:
            return value.copy_(parts[0].read())
        for rows, part in zip(value.split([part.shape[0] for part in parts]), parts, strict=True):
            rows.copy_(part.read())
        return value


def _set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Replaces the parameter or buffer of a model with this name in its state dict."""
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, value)
