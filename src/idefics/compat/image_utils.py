"""`load_image`, where model cards import it from."""

from __future__ import annotations

import os

import PIL.Image

from idefics.compat.image_inputs import as_picture, make_fetcher
from idefics.processing.image_processor import open_picture


def load_image(
    image: str | os.PathLike[str] | bytes | PIL.Image.Image, timeout: float | None = None
) -> PIL.Image.Image:
    """A picture as RGB, upright.

    Args:
        image: an http(s) address, a data URI, a path, the bytes of a file or a PIL picture.
        timeout: of no effect: fetching an address has limits of its own.

    Raises:
        BadPicture: no such file, not a picture, refused or unreachable.
    """
    return open_picture(as_picture(image), make_fetcher())
