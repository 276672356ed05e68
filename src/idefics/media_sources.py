"""What people give for a picture or a video, where it is an object that holds one: a file object, a tensor, a buffer.

Knows neither files by name nor pixels. Imports no torch: a tensor is there only where torch is.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any, Protocol, runtime_checkable

from idefics.errors import BadPicture

CHANNEL_COUNTS = (1, 3, 4)  # of a picture: gray, RGB, RGBA


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


@runtime_checkable
class _SupportsArray(Protocol):
    """An array or series of another library (pandas, JAX, xarray), as NumPy takes it."""

    def __array__(self) -> Any: ...


@runtime_checkable
class _SupportsArrayInterface(Protocol):
    __array_interface__: Any


@runtime_checkable
class MultiFrameImage(Protocol):
    """A Pillow picture of a format that may hold several; other classes of Pillow lack the attribute."""

    is_animated: bool


def read_source(source: Any) -> Any:
    """The bytes of a file object or buffer, the array of a torch tensor or of another library's array; else as it is.

    A tensor of one picture that may be (C, H, W) is: torch's own order. Its array is (H, W, C).
    A file object is read from its beginning where it can be rewound, as Pillow does, and is not closed. Of a Pillow
    picture of several frames a copy is held, as the object will show another one.

    Raises:
        BadPicture: the file object is closed, was opened as text, or has to be awaited.
    """
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, BinaryFile):
        return _read_file_object(source)
    if is_tensor(source):
        torch = sys.modules["torch"]
        values = source.detach().cpu()
        needs_float32 = values.is_floating_point() and values.dtype != torch.float64  # NumPy has no bfloat16
        array = (values.float() if needs_float32 else values).numpy()
        return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] in CHANNEL_COUNTS else array
    if is_array_like(source):
        return to_numpy_array(source)
    return copy_current_frame(source) if is_multi_frame_image(source) else source


def is_tensor(source: Any) -> bool:
    """Whether it is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def is_array_like(source: Any) -> bool:
    """Whether NumPy makes an array of it, where it is no tensor and no picture of Pillow."""
    if isinstance(source, (str, bytes)) or is_pil_image(source) or is_tensor(source):
        return False
    return isinstance(source, (_SupportsArray, _SupportsArrayInterface))


def to_numpy_array(source: Any) -> Any:
    """The NumPy array of such an object.

    Raises:
        BadPicture: it gives none, as where it lies on a GPU.
    """
    import numpy as np

    try:
        return np.asarray(source)
    except Exception as error:  # libraries raise whatever they like
        raise BadPicture(
            f"an object of type {type(source).__name__} gives no NumPy array ({error}): give the array itself"
        ) from None


def is_list_array(array: Any) -> bool:
    """Whether an array is a list: of one axis, and of paths or objects instead of numbers."""
    return bool(array.ndim == 1 and array.dtype.kind in "OUST")


def is_pil_image(source: Any) -> bool:
    """Whether it is a picture of Pillow."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(source, pil.Image)


def is_multi_frame_image(source: Any) -> bool:
    """Whether it is a picture of Pillow that shows one of several frames."""
    try:
        return is_pil_image(source) and isinstance(source, MultiFrameImage) and source.is_animated
    except Exception:  # broken behind the first
        return False


def copy_current_frame(picture: Any) -> Any:
    """The frame that such a picture shows now; broken ones are told when they are opened."""
    try:
        frame = picture.copy()
    except Exception:
        return picture
    frame.format = picture.format  # says what its numbers mean
    return frame


def _read_file_object(file: BinaryFile) -> bytes:
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
