"""Which texts among pictures and words are names of files.

A text of an untrusted sender names nothing: callers do not ask about it.
"""

from __future__ import annotations

from pathlib import Path

from idefics.errors import BadPicture
from idefics.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from idefics.processing.picture_files import format_of


def names_media(text: str) -> bool:
    """Whether a text is one line that ends like the name of a picture or a video."""
    return "\n" not in text and text.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))


def is_file(name: str) -> bool:
    """Whether a text is the path of an existing file."""
    try:
        return "\n" not in name and Path(name).is_file()
    except (OSError, ValueError):  # longer than any file's name, or with a null character in it
        return False


def check_item(text: str) -> bool:
    """Whether a text of a raw prompt is the path of a picture or a video, rather than words.

    Raises:
        BadPicture: it names a file that is no picture or not there, or a folder.
    """
    if is_file(text):
        if not names_media(text) and not _is_picture(text):
            raise BadPicture(
                f"{text} is a file and no picture; if it is meant as text, write it in a sentence"
            )
        return True
    if names_media(text) and " " not in text:
        raise BadPicture(f"{text}: no such file; if it is meant as text, write it in a sentence")
    if text.endswith(("/", "\\")) and " " not in text and Path(text).is_dir():
        raise BadPicture(f"{text} is a folder: name the pictures themselves")
    return False


def _is_picture(name: str) -> bool:
    try:
        return format_of(name) is not None
    except OSError:  # to be said when it is opened
        return True
