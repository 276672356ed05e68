"""Tensors in safetensors files: their names, shapes and dtypes without reading them, and their values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from idefics.errors import BrokenCheckpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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
