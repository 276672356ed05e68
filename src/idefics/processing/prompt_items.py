"""The items of raw prompts as text, pictures and videos: which texts name a file.

A text of an untrusted sender names nothing, and a path is not looked up for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from idefics.errors import BadPicture, BadSetting
from idefics.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES, detect_image_format, detect_video_format
from idefics.messages import ContentPart, LiteralText
from idefics.processing.fetch import is_url, normalize_url
from idefics.processing.picture_files import missing_file_message, read_file_head
from idefics.processing.tokenizer import TextPiece
from idefics.processing.video import to_picture_or_video

if TYPE_CHECKING:
    from idefics.config import PromptFormat
    from idefics.messages import PictureSource
    from idefics.processing.picture_expansion import PromptPart
    from idefics.prompt import PreprocessedImage

    PromptItem = ContentPart | PictureSource

PATH_PREFIX_PATTERN = re.compile(
    r"(?:~|\.{0,2})[/\\]|[A-Za-z]:[/\\]"
)  # the beginning of a path that is more than a name


def parse_item(item: PromptItem, *, untrusted: bool = False) -> ContentPart:
    """One item of a raw prompt as text, picture or video.

    A text is a picture or video where it is an http(s) address, a data URI or base64 of a picture file, and where it is
    the name of an existing file; `Text` never is, nor any text of an untrusted sender.

    Args:
        untrusted: the item is of an untrusted sender: whether it names a file is not looked up.

    Raises:
        BadPicture: the text names a file that is no picture or a folder, or is like the name of a picture (no space)
            or a path) and there is no such file, or has white space around it.
    """
    if isinstance(item, LiteralText) or (untrusted and isinstance(item, str)):
        return item
    if not isinstance(item, str):
        return to_picture_or_video(item, untrusted=untrusted)
    address = normalize_url(item)
    if is_url(address) or check_media_path(item):
        return to_picture_or_video(address)
    return item


def lay_out_items(
    items: Sequence[ContentPart | PreprocessedImage],
    prompt_format: PromptFormat,
    *,
    has_separator: bool,
    adds_separators: bool | None,
    trusted: bool,
) -> Iterator[PromptPart]:
    """The items of a raw prompt in order, with their spaces stripped and separated as the checkpoint was trained.

    Args:
        has_separator: whether the checkpoint puts `turn_end_token` between neighbouring texts.
        adds_separators: whether that is done; None: where the checkpoint does.
        trusted: whether special tokens in the texts are honoured.

    Raises:
        BadSetting: separators are asked for, and the checkpoint has none.
    """
    if adds_separators and not has_separator:
        raise BadSetting(
            "add_end_of_utterance_token is True, but this checkpoint has no such token: leave it out"
        )
    follows_text = False
    for item in items:
        if isinstance(item, str):
            if follows_text and has_separator and adds_separators is not False:
                yield TextPiece(prompt_format.turn_end_token, trusted=True)
            yield TextPiece(item.strip(" ") if prompt_format.strips_text else item, trusted)
        else:
            yield item
        follows_text = isinstance(item, str)


def has_media_suffix(text: str) -> bool:
    """Whether a text is one line that ends like the name of a picture or a video."""
    return "\n" not in text and text.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))


def is_file(name: str) -> bool:
    """Whether a text is the path of an existing file."""
    try:
        return "\n" not in name and Path(name).is_file()
    except (OSError, ValueError):  # longer than any file's name, or with a null character in it
        return False


def is_file_name(text: str) -> bool:
    """Whether a text is the name of an existing file, or that of a picture or a video, there or not.

    White space around the latter does not count, as at the end of a line that was read from a list of names.
    """
    name = text.strip()
    if has_media_suffix(name):
        return " " not in name or PATH_PREFIX_PATTERN.match(name) is not None or is_file(name)
    return is_file(text) or (is_file(name) and _is_media_file(name))


def check_media_path(text: str) -> bool:
    """Whether a text of a raw prompt is the path of a picture or a video, rather than words.

    Raises:
        BadPicture: it names a file that is no picture or not there, or a folder.
    """
    name = text.strip()
    if name != text and not is_file(text) and is_file_name(text):
        raise BadPicture(
            f"{text[:100]!r} is the name of a file with white space around it: give {name[:100]!r}; if it is meant as "
            "text, write it in a sentence"
        )
    if is_file(text):
        if not has_media_suffix(text) and not _is_media_file(text):
            raise BadPicture(
                f"{text} is a file and no picture; if it is meant as text, write it in a sentence"
            )
        return True
    if is_file_name(text):
        raise BadPicture(f"{missing_file_message(text)}; if it is meant as text, write it in a sentence")
    if _is_folder(name):
        raise BadPicture(f"{name} is a folder: name the pictures themselves")
    return False


def _is_folder(name: str) -> bool:
    """Whether a text is the path, with a separator in it and no space, of a folder."""
    try:
        return ("/" in name or "\\" in name) and " " not in name and Path(name).is_dir()
    except (OSError, ValueError):
        return False


def _is_media_file(name: str) -> bool:
    """Whether the content of a file is that of a picture or a video."""
    try:
        head = read_file_head(name)
        return detect_image_format(head) is not None or detect_video_format(head) is not None
    except OSError:  # to be said when it is opened
        return True
