"""`PictureTable`: the pictures of training rows, planned from their headers, and decoded when they are needed."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from idefics.batch.report import encode_thumbnail
from idefics.batch.rows import Media
from idefics.config import ImageProcessorConfig
from idefics.errors import BadPicture, OutputError
from idefics.formats import SIGNATURE_BYTES, detect_image_format, detect_video_format
from idefics.messages import ImageDetail, Picture
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_and_preprocess, open_picture
from idefics.processing.picture_files import open_regular_file
from idefics.processing.picture_size import read_upright_size
from idefics.processing.tile_plan import plan_tiles
from idefics.prompt import PreprocessedImage

HASHED_BYTES = 4096  # at the beginning and at the end of a picture's file
THUMBNAIL_PIXELS = 320  # at most, of each side: for the report


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture in a file of its own.

    Attributes:
        path: as in messages.
        stamp: size in bytes and time of change in nanoseconds, when the picture was planned.
        ends: a hash of the first and the last bytes, which is that of a copy too.
    """

    path: str
    stamp: tuple[int, int]
    ends: bytes

    @property
    def identity(self) -> str:
        """What identifies the content."""
        return f"{os.path.realpath(self.path)} {self.stamp}"


@dataclass(frozen=True, slots=True)
class CopiedPicture:
    """A picture that has no file of its own, such as one in a table or at a URL: a part of a temporary file.

    Attributes:
        name: where it is from, for messages.
        start, size: in bytes.
        identity: SHA-256 of the bytes.
    """

    name: str
    start: int
    size: int
    identity: str


@dataclass(frozen=True, slots=True)
class PlannedPicture:
    """A picture whose frames are known, but not its pixels.

    Attributes:
        location: where its bytes are.
        detail: into how many tiles it is split.
        size: width and height in pixels, upright.
        grid: rows and columns of its tiles; (0, 0) where it is one frame.
    """

    location: PictureFile | CopiedPicture
    detail: ImageDetail
    size: tuple[int, int]
    grid: tuple[int, int]


class PictureTable:
    """The pictures of training rows, each once.

    A picture in a file takes some hundred bytes of memory. All others are copied into a temporary file when they are
    planned, so that no table is kept in memory and no URL is fetched twice.

    Args:
        image_config: how pictures become frames.
        image_detail: of pictures that have none of their own.
    """

    def __init__(self, image_config: ImageProcessorConfig, image_detail: ImageDetail) -> None:
        self._config, self._detail = image_config, image_detail
        self._fetcher = Fetcher(policy="off")
        self._pictures: list[PlannedPicture] = []
        self._index_by_identity: dict[tuple[str, ImageDetail], int] = {}
        self._copies: BinaryIO | None = None
        self._lock = threading.Lock()  # held while the file of copies is read or written

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> PlannedPicture:
        return self._pictures[index]

    def add(self, media: Media, picture: Picture) -> int:
        """Plans a picture from its header, and returns its index.

        Args:
            media: the picture.
            picture: has the picture's own detail.

        Raises:
            BadPicture: it cannot be read or is a video.
            OutputError: there is no room for a copy.
        """
        detail = picture.resolve_detail(self._detail)
        data = media.read() if media.file is None else b""
        identity = hashlib.sha256(data).hexdigest() if media.file is None else os.fspath(media.file)
        index = self._index_by_identity.get((identity, detail))
        if index is not None:
            return index
        if media.file is not None:
            with open_regular_file(media.file, media.path) as file:
                status = os.fstat(file.fileno())
                size = _read_size(file, media.path)
                ends = _hash_ends(file, status.st_size)
            location: PictureFile | CopiedPicture = PictureFile(
                identity, (status.st_size, status.st_mtime_ns), ends
            )
        else:
            size = _read_size(io.BytesIO(data), media.path)
            location = CopiedPicture(media.path, self._copy(data), len(data), identity)
        plan = plan_tiles(*size, self._config, detail)
        self._pictures.append(PlannedPicture(location, detail, size, (plan.rows, plan.columns)))
        self._index_by_identity[identity, detail] = len(self._pictures) - 1
        return len(self._pictures) - 1

    def read(self, indices: Sequence[int]) -> tuple[PreprocessedImage, ...]:
        """Decodes and preprocesses pictures; in any thread.

        Raises:
            BadPicture: one is broken, or has changed since it was planned.
        """
        return tuple(self._read(self._pictures[index]) for index in indices)

    def key(self, index: int) -> str:
        """A text that identifies the content of a picture and how it is preprocessed."""
        picture = self._pictures[index]
        plan = plan_tiles(*picture.size, self._config, picture.detail)
        return hashlib.sha256(
            f"{picture.location.identity} {(plan, *self._pixel_settings)!r}".encode()
        ).hexdigest()

    def digest(self) -> bytes:
        """SHA-256 of what identifies all pictures, and of how they are preprocessed; see `RowsDigest`."""
        digest = hashlib.sha256(repr(self._pixel_settings).encode())
        for one in self._pictures:
            at = one.location
            content = (at.stamp[0], at.ends) if isinstance(at, PictureFile) else at.identity
            digest.update(repr((content, one.detail, one.size, one.grid)).encode())
        return digest.digest()

    @property
    def _pixel_settings(self) -> tuple[object, ...]:
        """How a picture's pixels become numbers."""
        config = self._config
        return (config.resample, config.rescale_factor, config.mean, config.std)

    def make_thumbnails(self, indices: Sequence[int]) -> tuple[bytes, ...]:
        """Small JPEG files of pictures, for people.

        Raises:
            BadPicture: one is broken, or has changed since it was planned.
        """
        opened = (open_picture(self._source(self._pictures[index]), self._fetcher) for index in indices)
        return tuple(encode_thumbnail(image, THUMBNAIL_PIXELS) for image in opened)

    def _read(self, picture: PlannedPicture) -> PreprocessedImage:
        """Decodes and preprocesses a picture."""
        source, location = self._source(picture), picture.location
        try:
            return open_and_preprocess(source, self._config, self._fetcher, picture.detail)
        except BadPicture as error:
            if isinstance(location, PictureFile):
                raise
            raise BadPicture(f"{location.name}: {error}") from None

    def _source(self, picture: PlannedPicture) -> Picture:
        """A picture that can be opened; raises BadPicture if its file has changed."""
        location = picture.location
        if isinstance(location, CopiedPicture):
            with self._lock:
                assert self._copies is not None
                self._copies.seek(location.start)
                return Picture(self._copies.read(location.size))
        path = Path(location.path)
        with open_regular_file(path, location.path) as file:
            status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != location.stamp:
            raise BadPicture(
                f"{location.path} has changed since the rows were read: leave the pictures alone while a model trains"
            )
        return Picture(path)

    def _copy(self, data: bytes) -> int:
        """Appends bytes to the temporary file, and returns where they begin; raises OutputError if there is no room."""
        try:
            with self._lock:
                if self._copies is None:
                    self._copies = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the table
                    weakref.finalize(self, self._copies.close)
                start = self._copies.seek(0, os.SEEK_END)
                self._copies.write(data)
                return start
        except OSError as error:
            raise OutputError(
                f"pictures that have no file of their own are copied into a temporary file, which cannot be written "
                f"({error.strerror}): make room in {tempfile.gettempdir()}, or name another folder in $TMPDIR"
            ) from None


def _hash_ends(file: BinaryIO, size: int) -> bytes:
    """A hash of the first and the last bytes of a file of `size` bytes."""
    file.seek(0)
    digest = hashlib.sha256(file.read(HASHED_BYTES))
    file.seek(max(0, size - HASHED_BYTES))
    digest.update(file.read(HASHED_BYTES))
    return digest.digest()[:16]


def _read_size(file: BinaryIO, name: str) -> tuple[int, int]:
    """The upright size of a picture; raises BadPicture if it cannot be read or is a video."""
    head = file.read(SIGNATURE_BYTES)
    file.seek(0)
    if detect_image_format(head) is None and detect_video_format(head) is not None:
        raise BadPicture(f"{name} is a video: rows to learn from have pictures only")
    return read_upright_size(file, name)
