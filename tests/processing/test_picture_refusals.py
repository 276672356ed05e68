"""What cannot be read as a picture is refused in one line that says what to do."""

import numpy as np
import pytest

from idefics.errors import BadPicture
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_picture
from idefics.processing.message_parsing import to_messages
from processing.pictures_tiny import encode_picture, open_trusted, random_picture


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "file:///tmp/a.jpg",
            "file:///tmp/a.jpg is a URL, and only http(s) ones are read: give the path, /tmp/a.jpg",
        ),
        (
            "s3://bucket/a.jpg",
            "s3://bucket/a.jpg is a URL, and only http(s) ones are read: download it first",
        ),
        ("~/a.jpg", "~/a.jpg: no such file; ~ is known to shells only: give the whole path"),
        ("", "an empty name: no such file"),
        ("no.jpg", "no.jpg: no such file"),
        (b"", "the picture is empty (0 bytes)"),
        (
            np.full((2, 2), np.nan),
            "a picture array of float64 holds NaN or infinite numbers; 0 to 1 are read: replace them",
        ),
        (
            np.full((2, 2), np.inf),
            "a picture array of float64 holds NaN or infinite numbers; 0 to 1 are read: replace them",
        ),
    ],
)
def test_what_is_no_picture_is_refused_with_the_way_out(name, said):
    with pytest.raises(BadPicture) as error:
        open_trusted(name)
    assert str(error.value) == said


@pytest.mark.parametrize("format", ["WEBP", "JPEG", "PNG", "AVIF", "GIF", "BMP"])
def test_a_file_that_ends_in_its_header_is_broken_rather_than_of_no_format(format):
    with pytest.raises(
        BadPicture, match=f"is broken: it begins like {format.replace('WEBP', 'WebP')} but cannot"
    ):
        open_trusted(encode_picture(random_picture("RGB"), format)[:21])


def test_base64_of_no_picture_is_not_called_a_data_uri():
    for text, said in (
        ("!!!", "the base64 of a picture is not valid base64: send it whole and unchanged"),
        ("aGVsbG8=", "the base64 of a picture is not a picture that can be read"),
    ):
        (message,) = to_messages([{"role": "user", "content": [{"type": "image", "base64": text}]}])
        with pytest.raises(BadPicture, match=f"^{said}"):
            open_picture(message.parts[0], Fetcher())
