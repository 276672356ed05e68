"""Streams the tensors of a checkpoint into a module that was built on the meta device, one at a time.

Names and shapes are compared before the first tensor is read, so that a checkpoint is loaded wholly or not at all.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from idefics.errors import UnsupportedModel, WeightsMismatch
from idefics.weights.file_tensors import FileTensor, open_file_tensors
from idefics.weights.files import refuse_wrapper_prefix, safetensors_files
from idefics.weights.key_rules import KeyRules

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
    device: torch.device | str | DeviceByModule,
    dtype_by_name: Mapping[str, torch.dtype | None] | None = None,
    quantizers_by_name: Mapping[str, Callable[[Tensor], None]] | None = None,
    mmap: bool = False,
    optional_names: Collection[str] = (),
) -> list[str]:
    """Fills `model` with the checkpoint in `folder`.

    Each tensor goes straight into its final dtype and device: at most one is in memory in addition to the model.
    Tied weights are one Parameter with several names, of which the checkpoint needs to hold one.

    Args:
        model: built on the meta device; its parameters and persistent buffers are replaced.
        folder: holds safetensors, in one file or in shards.
        rules: how the checkpoint's names become the model's.
        dtype: of every floating-point tensor; integers and booleans keep theirs.
        device: of the whole model, or of its modules.
        dtype_by_name: other dtypes for some tensors; None: the file's own if that has 16 bits, else float32.
        quantizers_by_name: for some tensors a function that quantises the value and puts it into the model. Where
            tied weights are quantised under one name, their value is kept under the other names too.
        mmap: tensors that are used as they are stored stay in the files: they are read when they are first used, and
            shared with other processes. The files must not change while the model lives.
        optional_names: names that the checkpoint may lack; the model keeps its own values there.

    Returns:
        Those of `optional_names` that the checkpoint lacks.

    Raises:
        WeightsMismatch: tensors are missing, unused or of another shape; all are listed.
        BrokenCheckpoint: a file is missing, damaged or contradicts another, or all names have a wrapper's prefix.
        UnsupportedModel: an adapter, pickles, integers in place of floating-point weights, or tied weights that differ.
        RuntimeError: the model left a non-persistent buffer on the meta device.
    """
    import torch

    device_by_module = device if isinstance(device, Mapping) else {"": torch.device(device)}
    with ExitStack() as stack:
        files = safetensors_files(folder)
        file_tensors = open_file_tensors(files, stack)
        refuse_wrapper_prefix(file_tensors, folder)
        sources = {
            target: [file_tensors[name] for name in names]
            for target, names in rules.source_names_by_target(file_tensors).items()
        }
        mapped_tensors = open_file_tensors(files, stack, "mmap") if mmap else {}
        loader = _ParameterLoader(
            model, sources, mapped_tensors, dtype, dtype_by_name or {}, quantizers_by_name or {}
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
class _TensorWithNames:
    """A parameter or persistent buffer of the model, with all its names."""

    tensor: Tensor
    names: list[str]


@dataclass(frozen=True, slots=True)
class _ParameterLoader:
    """Loads the parameters of a model, one at a time.

    Attributes:
        sources: the file tensors of each name of the model, to be concatenated.
        mapped_tensors: file tensors in mapped memory, by their names in the files; empty without `mmap`.
        dtype, dtypes, quantizers: as `dtype`, `dtype_by_name` and `quantizers_by_name` of `load`.
    """

    model: nn.Module
    sources: Mapping[str, Sequence[FileTensor]]
    mapped_tensors: Mapping[str, FileTensor]
    dtype: torch.dtype
    dtypes: Mapping[str, torch.dtype | None]
    quantizers: Mapping[str, Callable[[Tensor], None]]

    def load_all(self, device_by_module: DeviceByModule, optional_names: Collection[str]) -> list[str]:
        """Loads all parameters; returns those of `optional_names` that the checkpoint lacks."""
        parameters = _state_dict_tensors_tied_once(self.model)
        _check_names_shapes_and_dtypes(parameters, self.sources, optional_names)
        missing_names = []
        for parameter in parameters:
            device = device_of(parameter.names[0], device_by_module)
            if self.sources.keys().isdisjoint(parameter.names):
                missing_names.append(parameter.names[0])
                self.keep_current_value(parameter, device)
            else:
                self.load(parameter, device)
        return missing_names

    def load(self, parameter: _TensorWithNames, device: torch.device) -> None:
        """Reads a parameter from the checkpoint, and quantises it or assigns it to its names."""
        for name in parameter.names:
            if quantize := self.quantizers.get(name):
                quantize(self._read_value_and_check_ties(parameter, self.dtype, device))
                _release_free_heap()
        if unquantized_names := [name for name in parameter.names if name not in self.quantizers]:
            dtype = self.dtypes.get(unquantized_names[0], self.dtype)
            value = self._read_value_and_check_ties(parameter, dtype, device, can_map=True)
            self._assign(parameter, unquantized_names, value)

    def keep_current_value(self, parameter: _TensorWithNames, device: torch.device) -> None:
        """Moves the model's own value to its device, and to the dtype of the model if it is floating-point."""
        dtype = self.dtype if parameter.tensor.is_floating_point() else None
        self._assign(parameter, parameter.names, parameter.tensor.detach().to(device, dtype))

    def _assign(self, parameter: _TensorWithNames, names: Sequence[str], value: Tensor) -> None:
        """Sets the model's tensors with the given names to one value, as a Parameter if the old tensor was one."""
        from torch import nn

        if isinstance(parameter.tensor, nn.Parameter):
            value = nn.Parameter(value, requires_grad=parameter.tensor.requires_grad)
        for name in names:
            _set_tensor(self.model, name, value)

    def _read_value_and_check_ties(
        self,
        parameter: _TensorWithNames,
        dtype: torch.dtype | None,
        device: torch.device,
        *,
        can_map: bool = False,
    ) -> Tensor:
        """Reads the value of a parameter, and checks that it is the same under all its names in the checkpoint.

        Args:
            dtype: of the value; None: the file's own if that has 16 bits, else float32. Integers keep theirs.
            can_map: whether the value may stay in mapped memory.

        Raises:
            UnsupportedModel: two of the names have different values.
        """
        import torch

        first, *others = [name for name in parameter.names if name in self.sources]
        parts = self.sources[first]
        if dtype is None:
            stored_dtypes = {part.dtype for part in parts}
            half_dtypes = (torch.float16, torch.bfloat16)
            dtype = next((half for half in half_dtypes if stored_dtypes == {half}), torch.float32)
        if not parameter.tensor.is_floating_point():
            dtype = parameter.tensor.dtype
        is_usable_as_stored = device.type == "cpu" and len(parts) == 1 and parts[0].dtype == dtype
        if can_map and self.mapped_tensors and is_usable_as_stored:
            value = self.mapped_tensors[parts[0].name].read()
        else:
            value = _read_concatenated(parts, parameter, dtype, device)
        for other in others:
            if not torch.equal(value, _read_concatenated(self.sources[other], parameter, dtype, device)):
                raise UnsupportedModel(
                    f"{parts[0].file.parent}: {other} differs from {first} although config.json ties them: "
                    'set "tie_word_embeddings" to false in it'
                )
        return value


def _set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Replaces the parameter or buffer of a model with this name in its state dict."""
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, value)


def _state_dict_tensors_tied_once(model: nn.Module) -> list[_TensorWithNames]:
    """The tensors of a model's state dict; a tied one once, with all its names."""
    tensor_by_id: dict[int, _TensorWithNames] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor_by_id.setdefault(id(tensor), _TensorWithNames(tensor, [])).names.append(name)
    return list(tensor_by_id.values())


def _check_names_shapes_and_dtypes(
    parameters: Sequence[_TensorWithNames],
    sources: Mapping[str, Sequence[FileTensor]],
    optional_names: Collection[str],
) -> None:
    """Raises WeightsMismatch, before any tensor is read, if names or shapes of a checkpoint are not the model's.

    Raises UnsupportedModel if integers are stored in place of floating-point numbers, or the other way round.
    """
    missing: list[str] = []
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for parameter in parameters:
        names_in_checkpoint = [name for name in parameter.names if name in sources]
        if not names_in_checkpoint and parameter.names[0] not in optional_names:
            missing.append(parameter.names[0])
        for name in names_in_checkpoint:
            model_shape = tuple(parameter.tensor.shape)
            file_shape = _concatenated_or_mismatched_shape(sources[name], model_shape)
            if file_shape != model_shape:
                shapes[name] = (file_shape, model_shape)
    model_names = {name for parameter in parameters for name in parameter.names}
    unused = [part.name for name, parts in sources.items() if name not in model_names for part in parts]
    if missing or unused or shapes:
        raise WeightsMismatch(missing, sorted(unused), shapes)
    for parameter in parameters:
        for part in chain.from_iterable(sources.get(name, ()) for name in parameter.names):
            if part.dtype_name.startswith(("F", "BF")) != parameter.tensor.is_floating_point():
                raise UnsupportedModel(
                    f"{part.file}: {part.name} is stored as {part.dtype_name}, the model computes with "
                    f"{parameter.tensor.dtype}: give the checkpoint in its original precision"
                )


def _concatenated_or_mismatched_shape(
    parts: Sequence[FileTensor], expected: tuple[int, ...]
) -> tuple[int, ...]:
    """The shape of all parts concatenated along dimension 0; if they cannot be, a shape that is not `expected`."""
    if len(parts) == 1:
        return parts[0].shape
    tail = max((part.shape[1:] for part in parts), key=lambda tail: tail != expected[1:])
    return (sum(math.prod(part.shape[:1]) for part in parts), *tail)


def _read_concatenated(
    parts: Sequence[FileTensor], parameter: _TensorWithNames, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Reads the parts of a parameter and concatenates them along dimension 0 into a new tensor of its shape."""
    import torch

    value = torch.empty(parameter.tensor.shape, dtype=dtype, device=device)
    if len(parts) == 1:
        return value.copy_(parts[0].read())
    for rows, part in zip(value.split([part.shape[0] for part in parts]), parts, strict=True):
        rows.copy_(part.read())
    return value


def _release_free_heap() -> None:
    """Returns freed memory between live tensors to the operating system; does nothing without glibc.

    glibc would keep the gaps, which are too small for the next large tensor: quantising 16 matrices of 8 MiB to a
    quarter of that peaked at 155 MiB without this call and at 55 MiB with it.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
