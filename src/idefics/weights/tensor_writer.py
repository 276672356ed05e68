"""Writes a safetensors file tensor by tensor, so that one tensor is in memory at a time.

Source of the format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HEADER_ALIGNMENT = 8  # bytes
# Bytes of one number, by the name of its dtype in a file.
NUMBER_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}


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

    @property
    def num_bytes(self) -> int:
        """The size of its numbers in bytes."""
        return math.prod(self.shape) * NUMBER_BYTES[self.dtype_name]


def write_safetensors(path: Path, tensors: Sequence[TensorToWrite], metadata: Mapping[str, str]) -> None:
    """Writes tensors into a new file, in their order.

    Args:
        metadata: texts that describe the file; {"format": "pt"} is what transformers expects.
    """
    import torch

    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.num_bytes
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
