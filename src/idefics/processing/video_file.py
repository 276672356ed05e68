"""Video files: how many frames they have, and those frames that are asked for.

PyAV (FFmpeg) reads them; it is imported when there is a file to read. Knows files and frames; does not know plans.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import PIL.Image

from idefics.errors import BadVideo, IdeficsError, MissingExtra
from idefics.lazy import cached_property
from idefics.processing.fetch import Fetcher, is_remote, short
from idefics.processing.images import MOST_PIXELS
from idefics.processing.picture_files import open_file

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from idefics.messages import VideoFileSource

FPS = 24  # where the file does not say it
MOST_FRAMES = 2_000_000  # nine hours at 60 a second; something is remembered of each
# FFmpeg also reads play lists, which name other files and addresses, and hundreds of rare codecs: never here.
FORMATS = ("mov", "matroska", "avi", "mpeg", "mpegts", "ogg", "asf", "flv", "gif")
CODECS = (
    *("h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mpeg2video", "mpeg1video", "h263", "mjpeg", "theora"),
    *("prores", "wmv1", "wmv2", "wmv3", "vc1", "msmpeg4v2", "msmpeg4v3", "flv1", "vp6f", "gif"),
)
# By the degrees, counterclockwise, of the file's display matrix: phones may lie on their side while they film.
UPRIGHT = {
    90: PIL.Image.Transpose.ROTATE_90,
    -90: PIL.Image.Transpose.ROTATE_270,
    180: PIL.Image.Transpose.ROTATE_180,
    -180: PIL.Image.Transpose.ROTATE_180,
}


@contextmanager
def open_video(source: VideoFileSource, fetcher: Fetcher) -> Iterator[VideoFile]:
    """The file while it is open.

    Args:
        source: a path, the bytes of a video file, an http(s) URL or a data URI.
        fetcher: gets what is remote, or refuses to.

    Raises:
        BadPicture: no such file, or not to be fetched.
        BadVideo: not a video, broken, too large or too long; or a stranger's, of whom no video file is read.
        MissingExtra: PyAV is not installed.
    """
    if fetcher.strangers:  # FFmpeg is far more to trust than five formats of pictures
        raise BadVideo("video files are not read from strangers: send its frames as pictures")
    try:
        import av
    except ImportError:
        raise MissingExtra("reading a video file", "video") from None

    file, name = _open(source, fetcher)
    with file:
        if not file.read(1):
            raise BadVideo(f"{name} is empty (0 bytes)")
        file.seek(0)
        try:
            # Packets of old formats lack the time at which they are shown: genpts works it out.
            options = {"format_whitelist": ",".join(FORMATS), "fflags": "+genpts"}
            container = av.open(file, "r", options=options, metadata_errors="replace")
        except (av.FFmpegError, OSError):
            raise BadVideo(
                f"{name} is not a video that can be read: give MP4, MOV, WebM, MKV or AVI"
            ) from None
        with container:
            try:
                yield VideoFile(container, name)
            except IdeficsError:
                raise
            except (av.FFmpegError, OSError):
                raise BadVideo(f"{name} is broken: its frames cannot be read to the end") from None


def _open(source: VideoFileSource, fetcher: Fetcher) -> tuple[BinaryIO, str]:
    if isinstance(source, bytes):
        return io.BytesIO(source), f"a video of {len(source)} bytes"
    if isinstance(source, str) and is_remote(source):
        return io.BytesIO(fetcher.get(source)), short(source)
    path = Path(source)
    return open_file(path, short(str(path))), short(str(path))


class VideoFile:
    """An open video. Frames are numbered from 0, in the order in which they are shown."""

    def __init__(self, container: InputContainer, name: str) -> None:
        self.container, self.name = container, name
        self.stream = self._stream()

    def _stream(self) -> VideoStream:
        """The first stream that moves: the cover of a song is a stream too."""
        from av.stream import Disposition

        for stream in self.container.streams.video:
            if not stream.disposition & Disposition.attached_pic:
                break
        else:
            raise BadVideo(f"{self.name} has no pictures in it, only sound: give a video")
        codec = stream.codec_context
        if codec is None or codec.codec.canonical_name not in CODECS:
            raise BadVideo(f"{self.name} is in a codec that is not read here: convert it to H.264 or VP9")
        if codec.width * codec.height > MOST_PIXELS:
            raise BadVideo(
                f"{self.name} has {codec.width} x {codec.height} pixels; at most {MOST_PIXELS:,} are read: "
                "make it smaller"
            )
        codec.options = {"max_pixels": str(MOST_PIXELS)}  # sizes may change while it plays
        return stream

    @property
    def fps(self) -> Fraction:
        """Frames a second, on average."""
        return self.stream.average_rate or self.stream.guessed_rate or Fraction(FPS)

    @property
    def total(self) -> int:
        """How many frames there are: counted, as what a file says of it may be missing or wrong."""
        return len(self._times[0])

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.total / self.fps)

    @cached_property
    def _times(self) -> tuple[list[int], list[tuple[int, int]]]:
        """When each frame is shown, and (when it is shown, where to seek) of those that need no other frame.

        Nothing is decoded for it.
        """
        shown: list[int] = []
        keys: list[tuple[int, int]] = []
        for packet in self.container.demux(self.stream):
            if packet.pts is None or packet.is_discard:
                continue  # the mark of the end, or what an editor has cut away
            shown.append(packet.pts)
            if packet.is_keyframe or len(shown) == 1:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if len(shown) > MOST_FRAMES:
                raise BadVideo(f"{self.name} has more than {MOST_FRAMES:,} frames: cut it shorter")
        if not shown:
            raise BadVideo(f"{self.name} has no frames: is it complete?")
        return sorted(shown), sorted(keys)

    def read(self, indices: Sequence[int]) -> Iterator[PIL.Image.Image]:
        """The frames with these numbers, which rise: RGB, upright. Decodes no more than from the key frame before each.

        Where the file ends early, its last frame stands for those that it lacks.
        """
        shown, keys = self._times
        frame: VideoFrame | None = None
        decoded: Iterator[VideoFrame] = iter(())
        for index in indices:
            if frame is None or _time(frame) < shown[index]:
                key, start = keys[max(bisect_right(keys, shown[index], key=lambda pair: pair[0]) - 1, 0)]
                if frame is None or key > _time(frame):
                    self.container.seek(start, stream=self.stream)
                    decoded = self.container.decode(self.stream)
                for frame in decoded:
                    if _time(frame) >= shown[index]:
                        break
            if frame is None:
                raise BadVideo(f"{self.name} is broken: none of its frames can be read")
            image = frame.to_image()
            turn = UPRIGHT.get(frame.rotation)
            yield image if turn is None else image.transpose(turn)


def _time(frame: VideoFrame) -> int:
    return frame.pts or 0
