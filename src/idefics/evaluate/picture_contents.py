"""`PictureContents`: what tells whether the pictures of two rows are the same, and whether a picture can be read."""

from __future__ import annotations

import hashlib
import io

from idefics.batch.rows import Media
from idefics.batch.thumbnails import MAX_PICTURE_PIXELS, THUMBNAIL_PIXELS
from idefics.errors import BadPicture
from idefics.evaluate.suite import EvaluationRow
from idefics.formats import SIGNATURE_BYTES, detect_video_format
from idefics.processing.fetch import is_url


class PictureContents:
    """The contents of the pictures of rows; each is computed once."""

    def __init__(self) -> None:
        self._by_row: dict[tuple[str, str], tuple[str, ...]] = {}
        self._can_be_example: dict[tuple[str, str], bool] = {}

    def find(self, row: EvaluationRow) -> tuple[str, ...]:
        """The content of each picture of a row: SHA-256 (hex) of its bytes, or the address of one on the web.

        Raises:
            BadPicture: a picture cannot be read.
        """
        assert row.media is not None
        key = row.name, row.media.path  # rows of two folders may have the same names
        if key not in self._by_row:
            self._by_row[key] = tuple(_content(one) for one in (row.media, *row.more_media))
        return self._by_row[key]

    def can_be_example(self, row: EvaluationRow) -> bool:
        """Whether all pictures of a row can be read and decoded."""
        assert row.media is not None
        key = row.name, row.media.path
        if key not in self._can_be_example:
            self._can_be_example[key] = all(map(_can_be_decoded, (row.media, *row.more_media)))
        return self._can_be_example[key]


def _content(media: Media) -> str:
    """See `PictureContents.find`."""
    return media.path if is_url(media.path) else hashlib.sha256(media.read()).hexdigest()


def _can_be_decoded(media: Media) -> bool:
    """Whether a picture can be read and decoded; a video only has to be there."""
    from idefics.processing.picture_files import decode_trusted

    try:
        data = media.read()
        if detect_video_format(data[:SIGNATURE_BYTES]) is None:
            decode_trusted(io.BytesIO(data), media.path, MAX_PICTURE_PIXELS, min_side=THUMBNAIL_PIXELS)
    except BadPicture:
        return False
    return True
