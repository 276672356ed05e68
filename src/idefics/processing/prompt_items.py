"""Parses the items of a raw prompt into text, pictures and videos; decides which texts are paths or URLs.

A text of an untrusted sender never is, and no path is checked for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from idefics.errors import BadPicture
from idefics.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES, detect_image_format, detect_video_format
from idefics.messages import ContentPart, LiteralText
from idefics.processing.fetch import is_url, normalize_source_text
from idefics.processing.picture_files import missing_file_message, read_file_head
from idefics.processing.video import to_picture_or_video

if TYPE_CHECKING:
    from idefics.messages import PictureSource

    PromptItem = ContentPart | PictureSource

PATH_PREFIX_PATTERN = re.compile(
    r"(?:~|\.{0,2})[/\\]|[A-Za-z]:[/\\]"
)  # how a path that is more than a name begins


def parse_item(item: PromptItem, *, untrusted: bool = False) -> ContentPart:
    """Parses one item of a raw prompt into text, a picture or a video.

    A text is a picture or video where it is an http(s) URL, a data URI, base64 of a picture file, or the path of an
    existing file; a `LiteralText` never is, nor any text of an untrusted sender.

    Args:
        untrusted: whether the item is of an untrusted sender; then no path is checked.

    Raises:
        BadPicture: the text is the path of a folder or of a file that is no picture; or it has the form of a picture's
            path and there is no such file, or white space is around it.
    """
    if isinstance(item, LiteralText) or (untrusted and isinstance(item, str)):
        return item
    if not isinstance(item, str):
        return to_picture_or_video(item, untrusted=untrusted)
    address = normalize_source_text(item)
    if is_url(address) or is_media_path(item):
        return to_picture_or_video(address)
    return item


def has_media_suffix(text: str) -> bool:
    """Whether a text is one line that ends in a suffix of picture or video files."""
    return "\n" not in text and text.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))


def is_file(name: str) -> bool:
    """Whether a text is the path of an existing file."""
    return "\n" not in name and _test_path(name, Path.is_file)


def _test_path(name: str, test: Callable[[Path], bool]) -> bool:
    """`test` of a text as a path; False if the text cannot be a path, for instance because it is too long."""
    try:
        return test(Path(name))
    except (OSError, ValueError):  # too long for a path, or with a null character
        return False


def is_or_looks_like_file_name(text: str) -> bool:
    """Whether a text is the path of an existing file, or has the form of a picture's or video's path.

    White space around the latter is ignored: it may come from a line of a list of names.
    """
    name = text.strip()
    if has_media_suffix(name):
        return " " not in name or PATH_PREFIX_PATTERN.match(name) is not None or is_file(name)
    return is_file(text) or (is_file(name) and _has_media_content(name))


def is_media_path(text: str) -> bool:
    """Whether a text of a raw prompt is the path of an existing picture or video file.

    Raises:
        BadPicture: it is the path of a folder or of another file; or it has the form of a picture's or video's path,
            but there is no such file, or white space is around it.
    """
    name = text.strip()
    if name != text and not is_file(text) and is_or_looks_like_file_name(text):
        raise BadPicture(
            f"{text[:100]!r} is the name of a file with white space around it: give {name[:100]!r}; if it is meant as "
            "text, write it in a sentence"
        )
    if is_file(text):
        if not has_media_suffix(text) and not _has_media_content(text):
            raise BadPicture(
                f"{text} is a file and no picture; if it is meant as text, write it in a sentence"
            )
        return True
    if is_or_looks_like_file_name(text):
        raise BadPicture(f"{missing_file_message(text)}; if it is meant as text, write it in a sentence")
    # A bare name of a folder may be a word.
    if ("/" in name or "\\" in name) and " " not in name and _test_path(name, Path.is_dir):
        raise BadPicture(f"{name} is a folder: name the pictures themselves")
    return False


def _has_media_content(name: str) -> bool:
    """Whether a file is a picture or a video by its content."""
    try:
        head = read_file_head(name)
        return detect_image_format(head) is not None or detect_video_format(head) is not None
    except OSError:  # refused when it is opened
        return True
