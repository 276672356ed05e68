"""`load_image`, in the module that model cards import it from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import PIL.Image

from idefics.compat.media_inputs import as_picture, make_fetcher_from_environment
from idefics.messages import Picture
from idefics.processing.image_processor import open_picture

if TYPE_CHECKING:
    from idefics.messages import PictureSource


def load_image(image: PictureSource | Picture, timeout: float | None = None) -> PIL.Image.Image:
    """Opens an image as RGB, upright by its EXIF tag.

    Args:
        image: an http(s) URL, a data URI, a path, the bytes of a file or a PIL image.
        timeout: of no effect: fetching a URL has its own limits.

    Raises:
        BadPicture: there is no such file, it is not an image, or a URL is refused or cannot be reached.
    """
    return open_picture(as_picture(image), make_fetcher_from_environment())
