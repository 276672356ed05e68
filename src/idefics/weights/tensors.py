"""The tensors in safetensors files, those that a model needs, and writing such files: names, shapes, dtypes, values."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from idefics.errors import BrokenCheckpoint, UnsupportedModel, WeightsMismatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


TORCH_NAME_BY_FILE_DTYPE = {
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "I8": "int8",
    "U8": "uint8",
}


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor in an open file. Only `read` reads its value."""

    name: str
    file: Path
    handle: Any  # safetensors.safe_open, whose methods have no type hints

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the file's header states, read without the value."""
        return tuple(self.handle.get_slice(self.name).get_shape())

    @property
    def dtype_name(self) -> str:
        """The dtype in the file's header, in the spelling of safetensors: "BF16", "F32", "I64", "BOOL", ..."""
        return str(self.handle.get_slice(self.name).get_dtype())

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype in which the tensor is stored; None for dtypes that no model is loaded in."""
        import torch

        name = TORCH_NAME_BY_FILE_DTYPE.get(self.dtype_name)
        return None if name is None else getattr(torch, name)

    def read(self) -> Tensor:
        """The value, on the CPU, in the file's dtype. Raises BrokenCheckpoint if the file is damaged."""
        with _read_errors_as_broken_checkpoint(self.file):
            tensor: Tensor = self.handle.get_tensor(self.name)
            return tensor


def open_file_tensors(
    files: Sequence[Path], stack: ExitStack, backend: Literal["pread", "mmap"] = "pread"
) -> dict[str, FileTensor]:
    """Opens safetensors files: returns the tensors of all files by name. The files stay open until `stack` is closed.

    Args:
        backend: "mmap" maps the files into memory, so that values are pages of the file; "pread" reads one tensor and
            no more, so that a value that is then cast leaves no mapped pages behind.

    Raises:
        BrokenCheckpoint: a file is damaged, or two hold tensors of one name.
    """
    from safetensors import safe_open

    tensors: dict[str, FileTensor] = {}
    for file in files:
        with _read_errors_as_broken_checkpoint(file):
            handle = stack.enter_context(safe_open(file, framework="pt", backend=backend))
        for name in handle.keys():  # noqa: SIM118 (a handle is not a mapping)
            if name in tensors:
                raise BrokenCheckpoint(
                    f"{tensors[name].file} and {file} both hold {name}: keep one of the files"
                )
            tensors[name] = FileTensor(name, file, handle)
    return tensors


@contextmanager
def _read_errors_as_broken_checkpoint(file: Path) -> Iterator[None]:
    """Context that raises BrokenCheckpoint in place of the errors of reading `file`."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        raise BrokenCheckpoint(
            f"{file} cannot be read ({error}): it is damaged or cut short, download or copy it again"
        ) from error


@dataclass(frozen=True, slots=True)
class TensorWithNames:
    """A parameter or persistent buffer of the model, with all its names."""

    tensor: Tensor
    names: list[str]


def state_dict_tensors_tied_once(model: nn.Module) -> list[TensorWithNames]:
    """The tensors of a model's state dict; a tied one once, with all its names."""
    tensor_by_id: dict[int, TensorWithNames] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor_by_id.setdefault(id(tensor), TensorWithNames(tensor, [])).names.append(name)
    return list(tensor_by_id.values())


def save_weights(
    model: nn.Module, folder: Path, max_shard_size: int | str, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Writes the weights of a model as safetensors, tied ones under their first name.

    Args:
        max_shard_size: the largest size of a file, in bytes or as "5GB".
        state_dict: in place of the model's own.
    """
    from huggingface_hub import save_torch_state_dict

    tied_names = [name for tensor in state_dict_tensors_tied_once(model) for name in tensor.names[1:]]
    save_torch_state_dict(
        model.state_dict() if state_dict is None else state_dict,
        folder,
        max_shard_size=max_shard_size,
        shared_tensors_to_discard=tied_names,
    )


def check_names_shapes_and_dtypes(
    parameters: Sequence[TensorWithNames],
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
            file_shape = concatenated_or_mismatched_shape(sources[name], model_shape)
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


def concatenated_or_mismatched_shape(
    parts: Sequence[FileTensor], expected: tuple[int, ...]
) -> tuple[int, ...]:
    """The shape of all parts concatenated along dimension 0; if they cannot be, a shape that is not `expected`."""
    if len(parts) == 1:
        return parts[0].shape
    tail = max((part.shape[1:] for part in parts), key=lambda tail: tail != expected[1:])
    return (sum(math.prod(part.shape[:1]) for part in parts), *tail)


HEADER_ALIGNMENT = 8  # bytes


@dataclass(frozen=True, slots=True)
class TensorToWrite:
    """A tensor that is made when it is written.

    Attributes:
        name: its name in the file.
        dtype_name: its dtype, as files name it.
        shape: its shape.
        read: returns the tensor, on the CPU and in this dtype and shape.
    """

    name: str
    dtype_name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def num_bytes(tensor: FileTensor | TensorToWrite) -> int:
    """The size of a tensor's numbers in a file, in bytes: names of dtypes have the bits of one, but for "BOOL"."""
    bits = re.search(r"\d+", tensor.dtype_name)
    return math.prod(tensor.shape) * (int(bits[0]) // 8 if bits else 1)


def write_safetensors(
    path: Path, tensors: Sequence[FileTensor | TensorToWrite], metadata: Mapping[str, str]
) -> None:
    """Writes tensors into a new file, in their order.

    Args:
        metadata: texts that describe the file; {"format": "pt"} is what transformers expects.
    """
    import torch

    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for tensor in tensors:
        start, end = end, end + num_bytes(tensor)
        entries[tensor.name] = {
            "dtype": tensor.dtype_name,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % HEADER_ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for tensor in tensors:
            file.write(tensor.read().contiguous().reshape(-1).view(torch.uint8).numpy().data)
