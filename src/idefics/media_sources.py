"""Converts sources of pictures and videos (file objects, buffers, tensors, arrays) into bytes and NumPy arrays.

Does not open paths or URLs. Imports neither torch nor Pillow: an object of theirs exists only where they are loaded.
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
        """Up to `size` bytes from the current position; all that remain where `size` is negative."""
        ...


@runtime_checkable
class _Seekable(Protocol):
    """A file object that may be read from any position."""

    def seekable(self) -> bool:
        """Whether `seek` can be used."""

    def seek(self, offset: int, /) -> Any:
        """Moves to the position `offset`, in bytes from the beginning."""


@runtime_checkable
class _SupportsArray(Protocol):
    """An array or series of another library (pandas, JAX, xarray) that NumPy can convert."""

    def __array__(self) -> Any: ...


@runtime_checkable
class _SupportsArrayInterface(Protocol):
    """A NumPy array, or an object that NumPy reads as one."""

    __array_interface__: Any


@runtime_checkable
class MultiFrameImage(Protocol):
    """A Pillow image of a format that may hold several frames; Pillow's other image classes lack the attribute."""

    is_animated: bool


def convert_in_memory_source(source: Any) -> Any:
    """Converts a source: a file object or buffer to bytes, a tensor or another library's array to a NumPy array.

    A tensor whose shape fits (C, H, W) is read as that, torch's own order, and its array is (H, W, C). A file object
    is read from its beginning if it is seekable, as Pillow does, and is not closed. A Pillow image with several frames
    is copied, as seeking would change it. Anything else, such as a path or URL, is returned unchanged.

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
    if is_multi_frame_image(source):
        try:
            frame = source.copy()
        except Exception:  # broken: it is refused when it is opened
            return source
        frame.format = source.format  # decides how 16-bit values are scaled
        return frame
    return source


def is_tensor(source: Any) -> bool:
    """Whether `source` is a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def is_array_like(source: Any) -> bool:
    """Whether NumPy can convert `source` into an array, and it is neither a tensor nor a Pillow image."""
    if isinstance(source, (str, bytes)) or is_pil_image(source) or is_tensor(source):
        return False
    return isinstance(source, (_SupportsArray, _SupportsArrayInterface))


def to_numpy_array(source: Any) -> Any:
    """The NumPy array of an object for which `is_array_like` is true.

    Raises:
        BadPicture: the object cannot be converted, for example because it is on a GPU.
    """
    import numpy as np

    try:
        return np.asarray(source)
    except Exception as error:  # libraries raise errors of any class
        raise BadPicture(
            f"an object of type {type(source).__name__} cannot become a NumPy array ({error}): give the array itself"
        ) from None


def is_array_of_strings_or_objects(array: Any) -> bool:
    """Whether a NumPy array is used as a list: one axis, with strings or objects instead of numbers."""
    return bool(array.ndim == 1 and array.dtype.kind in "OUST")


def is_pil_image(source: Any) -> bool:
    """Whether `source` is a Pillow image; does not import Pillow."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(source, pil.Image)


def is_multi_frame_image(source: Any) -> bool:
    """Whether `source` is a Pillow image with several frames."""
    try:
        return is_pil_image(source) and isinstance(source, MultiFrameImage) and source.is_animated
    except Exception:  # the file is broken after its first frame, or takes too much work to count
        return False


def _read_file_object(file: BinaryFile) -> bytes:
    """The content of a file object, from its beginning if it is seekable."""
    try:
        if isinstance(file, _Seekable) and file.seekable():
            file.seek(0)
        data: Any = file.read()
    except (OSError, ValueError) as error:  # ValueError: closed, or opened as text
        raise BadPicture(f"a file object cannot be read ({error}): open it with mode 'rb'") from None
    if inspect.iscoroutine(data):
        data.close()
        raise BadPicture("a file object's `read` must be awaited: give its bytes, `await file.read()`")
    if not isinstance(data, bytes):
        raise BadPicture(f"a file object gives {type(data).__name__}, not bytes: open it with mode 'rb'")
    return data
