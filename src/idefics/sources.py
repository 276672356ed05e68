"""What people give for a picture or a video, where it is an object that holds one: a file object, a tensor, a buffer.

Knows neither files by name nor pixels. Imports no torch: a tensor is there only where torch is.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any, Protocol, runtime_checkable

from idefics.errors import BadPicture

CHANNELS = (1, 3, 4)  # of a picture: gray, RGB, RGBA


@runtime_checkable
class BinaryFile(Protocol):
    """An open file, as `open(..., "rb")`, `io.BytesIO`, `zipfile` and web frameworks give it."""

    def read(self, size: int = -1, /) -> bytes:
        """The bytes from its position to its end."""
        ...


@runtime_checkable
class _Seekable(Protocol):
    def seekable(self) -> bool: ...

    def seek(self, offset: int, /) -> Any: ...


def held(source: Any) -> Any:
    """The bytes of a file object or buffer, the array of a torch tensor; anything else as it is.

    A tensor of one picture that may be (C, H, W) is: torch's own order. Its array is (H, W, C).
    A file object is read from its beginning where it can be rewound, as Pillow does, and is not closed.

    Raises:
        BadPicture: the file object is closed, was opened as text, or has to be awaited.
    """
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, BinaryFile):
        return _read(source)
    if is_tensor(source):
        torch = sys.modules["torch"]
        values = source.detach().cpu()
        is_odd = values.is_floating_point() and values.dtype != torch.float64  # NumPy has no bfloat16
        array = (values.float() if is_odd else values).numpy()
        return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] in CHANNELS else array
    return source


def is_tensor(source: Any) -> bool:
    """Whether it is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _read(file: BinaryFile) -> bytes:
    try:
        if isinstance(file, _Seekable) and file.seekable():
            file.seek(0)
        data: Any = file.read()
    except (OSError, ValueError) as error:  # the last: it is closed, or is text that cannot be decoded
        raise BadPicture(f"a file object cannot be read ({error}): open it with mode 'rb'") from None
    if inspect.iscoroutine(data):
        data.close()
        raise BadPicture("a file object has to be awaited: give its bytes, `await file.read()`")
    if not isinstance(data, bytes):
        raise BadPicture(f"a file object gives {type(data).__name__}, not bytes: open it with mode 'rb'")
    return data
