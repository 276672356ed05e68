"""A file is a video or a picture by its content, whatever its name says."""

import io

import pytest

from idefics.errors import BadPicture
from idefics.formats import VIDEO_FORMATS, VIDEO_SUFFIXES, detect_image_format, detect_video_format
from idefics.messages import Picture, Video
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_picture
from idefics.processing.prompt_items import parse_item
from idefics.processing.video import to_picture_or_video
from processing.pictures_tiny import encode_picture, random_picture
from processing.videos_tiny import encode_audio_only, encode_video

MUXED = [
    ("mp4", "libx264", "MP4 or MOV"),
    ("mov", "libx264", "MP4 or MOV"),
    ("3gp", "mpeg4", "MP4 or MOV"),
    ("matroska", "libx264", "WebM or MKV"),
    ("webm", "libvpx-vp9", "WebM or MKV"),
    ("avi", "mpeg4", "AVI"),
    ("mpeg", "mpeg2video", "MPEG"),
    ("mpegts", "mpeg2video", "MPEG transport stream"),
    ("asf", "wmv2", "WMV"),
    ("flv", "libx264", "FLV"),
    ("ogg", "libvpx", "Ogg"),
]


@pytest.fixture(scope="module", params=MUXED, ids=lambda video_and_title: video_and_title[0])
def video_and_title(request):
    """(the bytes of a video file, the title of its format)."""
    format, codec, title = request.param
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    return encode_video(5, format=format, codec=codec, num_b_frames=0), title


@pytest.mark.parametrize("name", ["clip", "clip.jpg", "clip.dat", "clip.mp4"])
def test_a_video_file_is_one_by_any_name(video_and_title, name, tmp_path):
    data, title = video_and_title
    assert detect_image_format(data[:256]) is None
    assert detect_video_format(data[:256]).title == title
    path = tmp_path / name
    path.write_bytes(data)
    for source in (path, str(path), data, io.BytesIO(data)):
        assert isinstance(to_picture_or_video(source), Video)
    assert isinstance(parse_item(str(path)), Video)


def test_transport_streams_of_cameras_have_a_time_before_each_packet(tmp_path):
    packet = b"\0\0\0\1G" + bytes(187)
    assert detect_video_format((packet * 2)[:256]).title == "MPEG transport stream"
    assert detect_video_format(b"Good words, " * 40) is None


def test_old_quicktime_begins_with_another_box():
    assert detect_video_format(b"\0\0\0\x08wide\0\0\1\0mdat").title == "MP4 or MOV"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF"])
def test_a_picture_is_one_by_the_name_of_a_video(format, tmp_path):
    path = tmp_path / "photo.mp4"
    path.write_bytes(encode_picture(random_picture("RGB", (64, 64)), format))
    assert isinstance(to_picture_or_video(path), Picture)
    assert isinstance(parse_item(str(path)), Picture)


def test_what_is_neither_goes_by_its_name(tmp_path):
    for name, kind in (("a.mp4", Video), ("a.jpg", Picture)):
        (tmp_path / name).write_bytes(b"hello")
        assert isinstance(to_picture_or_video(tmp_path / name), kind)


def test_a_video_given_as_a_picture_says_how_to_give_it():
    data = encode_audio_only()
    with pytest.raises(BadPicture, match=r"is a video \(MP4 or MOV\) and no picture: give it as a Video"):
        open_picture(Picture(data), Fetcher(policy="off"))
    with pytest.raises(BadPicture, match=r"is a video \(MP4 or MOV\) and no picture: send its frames"):
        open_picture(Picture(data), Fetcher(policy="off", untrusted=True))


def test_suffixes_are_each_of_one_format():
    assert len(VIDEO_SUFFIXES) == len(set(VIDEO_SUFFIXES))
    assert all(suffix.islower() and suffix.startswith(".") for suffix in VIDEO_SUFFIXES)
    assert len({one.title for one in VIDEO_FORMATS}) == len(VIDEO_FORMATS)
