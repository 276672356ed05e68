"""Streams a checkpoint's tensors into a module built on the meta device, one at a time.

Loading is total: names and shapes are compared before the first tensor is read. Knows no families.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from idefics.errors import BrokenCheckpoint, UnsupportedModel, WeightsMismatch
from idefics.weights.adapters import refuse_wrapper_prefix
from idefics.weights.files import weight_files
from idefics.weights.heap import release_free_heap
from idefics.weights.key_rules import KeyRules

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


DeviceByModule = Mapping[str, "torch.device"]  # a module's name, "" the whole model -> where it lies


def device_of(name: str, device_by_module: DeviceByModule) -> torch.device:
    """Where a tensor or module lies: where the innermost of the modules around it does that `device_by_module` names."""
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

    Each tensor goes straight into its final dtype and device: at most one is in memory beside the model.
    Tied weights are one Parameter under several names, of which a checkpoint needs to hold one.

    Args:
        model: built on the meta device; its parameters and persistent buffers are replaced.
        folder: holds safetensors, whole or sharded.
        rules: how the checkpoint's names become the model's.
        dtype: of every floating-point tensor; integers and booleans keep theirs.
        device: of all, or for every part of the model its own.
        dtype_by_name: for some names another dtype; None: the file's own where that is of sixteen bits, else float32.
        quantizers_by_name: for some names what takes their tensor instead of the model: it quantises it and puts it into its place.
            Where tied weights are packed under one name, they are kept under the others too.
        mmap: leaves in the file what is used as it is stored there: read when it is first needed, and shared with
            other processes. The files must then stay as they are while the model lives.
        optional_names: names that the checkpoint may lack, and what the model has there stays: such names are returned.

    Raises:
        WeightsMismatch: weights are missing, unused or misshapen: all are listed.
        BrokenCheckpoint: a file is missing, damaged or contradicts another, or all names have a wrapper's prefix.
        UnsupportedModel: an adapter, pickles, integers in place of floating-point weights, or tied weights that differ.
        RuntimeError: the model left a non-persistent buffer on the meta device.
    """
    import torch

    device_by_module = device if isinstance(device, Mapping) else {"": torch.device(device)}
    quantizers, storage_dtypes = quantizers_by_name or {}, dtype_by_name or {}
    with ExitStack() as stack:
        files = weight_files(folder)
        file_tensors = _open_file_tensors(files, stack)
        refuse_wrapper_prefix(file_tensors, folder)
        mapped_tensors = _open_file_tensors(files, stack, "mmap") if mmap else {}
        sources = {
            ours: [file_tensors[name] for name in names]
            for ours, names in rules.source_names_by_target(file_tensors).items()
        }
        parameters = _model_tensors(model)
        _check_names_and_shapes(parameters, sources, optional_names)
        missing_names = [
            parameter.names[0] for parameter in parameters if sources.keys().isdisjoint(parameter.names)
        ]
        for parameter in parameters:
            parameter_device = device_of(parameter.names[0], device_by_module)
            if parameter.names[0] in missing_names:
                parameter.keep_current_value(model, dtype, parameter_device)
            else:
                _load_parameter(
                    model,
                    parameter,
                    sources,
                    dtype,
                    parameter_device,
                    quantizers,
                    storage_dtypes,
                    mapped_tensors,
                )
    _refuse_meta_tensors(model)
    for name, buffer in model.named_buffers():  # those that are not persistent, the model computed for itself
        _set_tensor(model, name, buffer.to(device_of(name, device_by_module)))
    return missing_names


def _load_parameter(
    model: nn.Module,
    parameter: _ModelTensor,
    sources: Mapping[str, Sequence[_FileTensor]],
    dtype: torch.dtype,
    device: torch.device,
    quantizers: Mapping[str, Callable[[Tensor], None]],
    storage_dtypes: Mapping[str, torch.dtype | None],
    mapped_tensors: Mapping[str, _FileTensor],
) -> None:
    """Reads a slot's value from the files into the model; arguments as in `load`."""
    for name in parameter.names:
        if quantize := quantizers.get(name):
            quantize(_read_value(parameter, sources, dtype, device))
            release_free_heap()
    if unquantized_names := [name for name in parameter.names if name not in quantizers]:
        parameter.assign(
            model,
            unquantized_names,
            _read_value(
                parameter, sources, storage_dtypes.get(unquantized_names[0], dtype), device, mapped_tensors
            ),
        )


@dataclass(frozen=True, slots=True)
class _FileTensor:
    """A tensor in a file, not read yet."""

    name: str
    file: Path
    handle: Any  # safetensors.safe_open, whose methods have no hints

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.handle.get_slice(self.name).get_shape())

    @property
    def dtype_name(self) -> str:
        """The dtype as the file's header writes it: "BF16", "F32", "I64", "BOOL", ..."""
        return str(self.handle.get_slice(self.name).get_dtype())

    def read(self) -> Tensor:
        with _damaged_file_errors(self.file):
            tensor: Tensor = self.handle.get_tensor(self.name)
            return tensor


@dataclass(frozen=True, slots=True)
class _ModelTensor:
    """A parameter or persistent buffer of the model, with every name it goes by."""

    tensor: Tensor
    names: list[str]

    def assign(self, model: nn.Module, names: Sequence[str], value: Tensor) -> None:
        """Puts its value under some of its names."""
        from torch import nn

        if isinstance(self.tensor, nn.Parameter):
            value = nn.Parameter(value, requires_grad=self.tensor.requires_grad)
        for name in names:
            _set_tensor(model, name, value)

    def keep_current_value(self, model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        """Leaves what the model has, in this dtype where it is of floating point, on this device."""
        target_dtype = dtype if self.tensor.is_floating_point() else None
        self.assign(model, self.names, self.tensor.detach().to(device, target_dtype))


def _set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, value)


def _open_file_tensors(
    files: Sequence[Path], stack: ExitStack, backend: Literal["pread", "mmap"] = "pread"
) -> dict[str, _FileTensor]:
    from safetensors import safe_open

    tensors: dict[str, _FileTensor] = {}
    for file in files:
        # "pread" reads one tensor and no more; where it is then cast, pages of a mapped file would stay beside it.
        with _damaged_file_errors(file):
            handle = stack.enter_context(safe_open(file, framework="pt", backend=backend))
        for name in handle.keys():  # noqa: SIM118 (a handle is no mapping)
            if name in tensors:
                raise BrokenCheckpoint(
                    f"{tensors[name].file} and {file} both hold {name}: keep one of the files"
                )
            tensors[name] = _FileTensor(name, file, handle)
    return tensors


@contextmanager
def _damaged_file_errors(file: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        raise BrokenCheckpoint(
            f"{file} cannot be read ({error}): it is damaged or cut short, download or copy it again"
        ) from error


def _model_tensors(model: nn.Module) -> list[_ModelTensor]:
    tensor_by_id: dict[int, _ModelTensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor_by_id.setdefault(id(tensor), _ModelTensor(tensor, [])).names.append(name)
    return list(tensor_by_id.values())


def _check_names_and_shapes(
    parameters: Sequence[_ModelTensor],
    sources: Mapping[str, Sequence[_FileTensor]],
    optional_names: Collection[str],
) -> None:
    missing: list[str] = []
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for parameter in parameters:
        names_in_checkpoint = [name for name in parameter.names if name in sources]
        if not names_in_checkpoint and parameter.names[0] not in optional_names:
            missing.append(parameter.names[0])
        for name in names_in_checkpoint:
            file_shape, model_shape = (
                _concatenated_shape(sources[name], tuple(parameter.tensor.shape)),
                tuple(parameter.tensor.shape),
            )
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


def _concatenated_shape(parts: Sequence[_FileTensor], expected: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of all parts, one below the other; where they do not stack, one that is not `expected`."""
    if len(parts) == 1:
        return parts[0].shape
    tails = [part.shape[1:] for part in parts]
    tail = next((tail for tail in tails if tail != expected[1:]), expected[1:])
    return (sum(math.prod(part.shape[:1]) for part in parts), *tail)


def _read_value(
    parameter: _ModelTensor,
    sources: Mapping[str, Sequence[_FileTensor]],
    dtype: torch.dtype | None,
    device: torch.device,
    mapped_tensors: Mapping[str, _FileTensor] | None = None,
) -> Tensor:
    """A slot's value, which is the same under each name that the checkpoint has of it."""
    import torch

    first, *others = [name for name in parameter.names if name in sources]
    if dtype is None:
        dtype = _common_16bit_dtype(sources[first]) or torch.float32
    if not parameter.tensor.is_floating_point():
        dtype = parameter.tensor.dtype
    if (
        mapped_tensors
        and device.type == "cpu"
        and len(sources[first]) == 1
        and _is_stored_in(sources[first][0], dtype)
    ):
        value = mapped_tensors[sources[first][0].name].read()
    else:
        value = _read_concatenated(sources[first], parameter, dtype, device)
    for other in others:
        if not torch.equal(value, _read_concatenated(sources[other], parameter, dtype, device)):
            raise UnsupportedModel(
                f"{sources[first][0].file.parent}: {other} differs from {first} although config.json ties them: "
                'set "tie_word_embeddings" to false in it'
            )
    return value


def _read_concatenated(
    parts: Sequence[_FileTensor], parameter: _ModelTensor, dtype: torch.dtype, device: torch.device
) -> Tensor:
    import torch

    value = torch.empty(parameter.tensor.shape, dtype=dtype, device=device)
    if len(parts) == 1:
        return value.copy_(parts[0].read())
    for rows, part in zip(value.split([part.shape[0] for part in parts]), parts, strict=True):
        rows.copy_(part.read())
    return value


def _is_stored_in(part: _FileTensor, dtype: torch.dtype) -> bool:
    torch_name_by_dtype = {
        "F32": "float32",
        "BF16": "bfloat16",
        "F16": "float16",
        "I8": "int8",
        "U8": "uint8",
    }
    return str(dtype) == f"torch.{torch_name_by_dtype.get(part.dtype_name)}"


def _common_16bit_dtype(parts: Sequence[_FileTensor]) -> torch.dtype | None:
    """The dtype in which all parts are stored, if it is one of sixteen bits."""
    import torch

    dtype_names = {part.dtype_name for part in parts}
    return (
        {"BF16": torch.bfloat16, "F16": torch.float16}.get(dtype_names.pop())
        if len(dtype_names) == 1
        else None
    )


def _refuse_meta_tensors(model: nn.Module) -> None:
    named = chain(model.named_parameters(), model.named_buffers())
    if meta_names := [name for name, tensor in named if tensor.is_meta]:
        raise RuntimeError(
            f"the model must compute these buffers itself, off the meta device: {', '.join(meta_names)}"
        )
