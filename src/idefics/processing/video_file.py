"""Reads video files with PyAV (FFmpeg): counts their frames and decodes those with given indices.

PyAV is imported when there is a file to read. Does not decide which frames are sampled.
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
from idefics.processing.fetch import Fetcher, is_url, name_for_message
from idefics.processing.image_processor import MAX_PIXELS
from idefics.processing.picture_files import open_regular_file

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from idefics.messages import VideoFileSource

DEFAULT_FPS = 24  # where neither the file nor the caller says it
MAX_FRAMES = 2_000_000  # nine hours at 60 frames per second; bounds the memory for their times
# FFmpeg also reads playlists, which name other files and URLs, and hundreds of rare codecs: disabled here.
CONTAINER_FORMATS = ("mov", "matroska", "avi", "mpeg", "mpegts", "ogg", "asf", "flv", "gif")
ALLOWED_CODECS = (
    *("h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mpeg2video", "mpeg1video", "h263", "mjpeg", "theora"),
    *("prores", "wmv1", "wmv2", "wmv3", "vc1", "msmpeg4v2", "msmpeg4v3", "flv1", "vp6f", "gif"),
)
# By the degrees, counterclockwise, of the file's display matrix: phones may be held sideways.
TRANSPOSE_BY_ROTATION = {
    90: PIL.Image.Transpose.ROTATE_90,
    -90: PIL.Image.Transpose.ROTATE_270,
    180: PIL.Image.Transpose.ROTATE_180,
    -180: PIL.Image.Transpose.ROTATE_180,
}


@contextmanager
def open_video(source: VideoFileSource, fetcher: Fetcher) -> Iterator[VideoFile]:
    """Context manager: an open video file.

    Args:
        source: a path, the bytes of a video file, an http(s) URL or a data URI.
        fetcher: gets remote files, or refuses to.

    Raises:
        BadPicture: there is no such file, or it may not be fetched.
        BadVideo: not a video, broken, too large or too long; or the sender is untrusted: no video files are read then.
        MissingExtra: PyAV is not installed.
    """
    if fetcher.untrusted:  # FFmpeg's attack surface is too large for untrusted input
        raise BadVideo("video files of untrusted senders are not read: send the frames as pictures")
    try:
        import av
    except ImportError:
        raise MissingExtra("reading a video file", "video") from None

    file, name = _open_source(source, fetcher)
    with file:
        if not file.read(1):
            raise BadVideo(f"{name} is empty (0 bytes)")
        file.seek(0)
        try:
            # Packets of old formats lack presentation times; genpts computes them.
            options = {"format_whitelist": ",".join(CONTAINER_FORMATS), "fflags": "+genpts"}
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


def _open_source(source: VideoFileSource, fetcher: Fetcher) -> tuple[BinaryIO, str]:
    """Opens or fetches a video file: returns the file, and its name for messages."""
    if isinstance(source, bytes):
        return io.BytesIO(source), f"a video of {len(source)} bytes"
    if isinstance(source, str) and is_url(source):
        return io.BytesIO(fetcher.get(source)), name_for_message(source)
    path = Path(source)
    return open_regular_file(path, name_for_message(str(path))), name_for_message(str(path))


class VideoFile:
    """An open video file. Frames have indices from 0 in presentation order.

    Args:
        container: the file as PyAV opened it.
        name: of the file, for messages.

    Raises:
        BadVideo: it has no video stream, an unknown codec or too many pixels.
    """

    def __init__(self, container: InputContainer, name: str) -> None:
        self.container, self.name = container, name
        self.stream = self._select_stream()

    def _select_stream(self) -> VideoStream:
        """The first video stream that is not an attached picture, such as the cover of a song."""
        from av.stream import Disposition

        for stream in self.container.streams.video:
            if not stream.disposition & Disposition.attached_pic:
                break
        else:
            raise BadVideo(f"{self.name} has no pictures in it, only sound: give a video")
        codec = stream.codec_context
        if codec is None or codec.codec.canonical_name not in ALLOWED_CODECS:
            raise BadVideo(f"{self.name} is in a codec that is not read here: convert it to H.264 or VP9")
        if codec.width * codec.height > MAX_PIXELS:
            raise BadVideo(
                f"{self.name} has {codec.width} x {codec.height} pixels; at most {MAX_PIXELS:,} are read: "
                "make it smaller"
            )
        codec.options = {"max_pixels": str(MAX_PIXELS)}  # the size may change within the stream
        return stream

    @property
    def fps(self) -> Fraction:
        """Frames per second, averaged over the video."""
        return self.stream.average_rate or self.stream.guessed_rate or Fraction(DEFAULT_FPS)

    @property
    def num_frames(self) -> int:
        """The number of frames, counted in the file, since its header may lack the number or be wrong."""
        return len(self._frame_and_key_frame_times[0])

    @property
    def duration_seconds(self) -> float:
        """The length of the video in seconds: the number of frames divided by the frame rate."""
        return float(self.num_frames / self.fps)

    @cached_property
    def _frame_and_key_frame_times(self) -> tuple[list[int], list[tuple[int, int]]]:
        """The presentation time of each frame; and (presentation time, seek time) of each key frame.

        Times are in the stream's time base. Reads packets without decoding them.
        """
        frame_times: list[int] = []
        key_frames: list[tuple[int, int]] = []
        for packet in self.container.demux(self.stream):
            if packet.pts is None or packet.is_discard:
                continue  # the end of the stream, or frames that an editor has cut
            frame_times.append(packet.pts)
            if packet.is_keyframe or len(frame_times) == 1:
                key_frames.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if len(frame_times) > MAX_FRAMES:
                raise BadVideo(f"{self.name} has more than {MAX_FRAMES:,} frames: cut it shorter")
        if not frame_times:
            raise BadVideo(f"{self.name} has no frames: is it complete?")
        return sorted(frame_times), sorted(key_frames)

    def read_frames(self, indices: Sequence[int]) -> Iterator[PIL.Image.Image]:
        """The frames with these indices as upright RGB images; decoding starts at the key frame before each.

        Where the file ends early, its last frame is returned for those that it lacks.

        Args:
            indices: in rising order; an index below an earlier one yields the current frame again.
        """
        frame_times, key_frames = self._frame_and_key_frame_times
        frame: VideoFrame | None = None
        decoded: Iterator[VideoFrame] = iter(())
        for index in indices:
            if frame is None or _presentation_time(frame) < frame_times[index]:
                key, start = key_frames[
                    max(bisect_right(key_frames, frame_times[index], key=lambda pair: pair[0]) - 1, 0)
                ]
                if frame is None or key > _presentation_time(frame):
                    self.container.seek(start, stream=self.stream)
                    decoded = self.container.decode(self.stream)
                for frame in decoded:
                    if _presentation_time(frame) >= frame_times[index]:
                        break
            if frame is None:
                raise BadVideo(f"{self.name} is broken: none of its frames can be read")
            image = frame.to_image()
            transpose = TRANSPOSE_BY_ROTATION.get(frame.rotation)
            yield image if transpose is None else image.transpose(transpose)


def _presentation_time(frame: VideoFrame) -> int:
    """A frame's pts, in the time base of the stream; 0 if it has none."""
    return frame.pts or 0
