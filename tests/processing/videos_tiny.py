"""Helpers: small videos whose frames can be told apart: each of the first 50 has its own shade of gray.

All have a white corner at the top left."""

import io

import numpy as np
import pytest

FRAME_SIZE = (64, 48)  # width, height
GREY_STEP = 5  # from one grey to the next: codecs are not exact
CORNER_SIZE = 12


def make_frame(index, size=FRAME_SIZE):
    array = np.full((size[1], size[0], 3), GREY_STEP * (index % 50), np.uint8)
    array[:CORNER_SIZE, :CORNER_SIZE] = 255
    return array


def frame_number(image):
    """The index of a frame by its shade of gray."""
    return round(float(np.asarray(image)[CORNER_SIZE + 8 :, CORNER_SIZE + 8 :].mean()) / GREY_STEP)


def encode_video(
    num_frames=50,
    *,
    fps=25,
    codec="libx264",
    format="mp4",
    key_frame_interval=12,
    num_b_frames=2,
    rotation=None,
    size=FRAME_SIZE,
):
    """The bytes of a video file.

    Args:
        key_frame_interval: frames from one key frame to the next.
        num_b_frames: B-frames in a row, which are stored after a frame that is shown later.
        rotation: degrees counterclockwise by which a player shall turn it.
    """
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.bit_rate = 2_000_000  # plenty: greys shall be told apart
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = key_frame_interval, num_b_frames
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for index in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(make_frame(index, size), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_audio_only():
    """The bytes of a file with sound alone."""
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    return buffer.getvalue()
