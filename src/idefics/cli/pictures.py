"""Resolves positional arguments: names of files, folders, patterns and URLs become pictures; the rest is the prompt."""

from __future__ import annotations

import glob
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from idefics.batch.sources.folders import PictureSearch, is_folder, is_unexpanded_pattern, path_exists
from idefics.batch.sources.skipped import describe_skipped
from idefics.cli.flags import STDIN, escaped_bytes, is_valid_utf8
from idefics.cli.output import OutputWriter
from idefics.errors import BadPicture, BadPrompt, MissingExtra
from idefics.formats import IMAGE_SUFFIXES
from idefics.messages import PictureOrVideo, Video

if TYPE_CHECKING:
    from idefics.processing.fetch import Fetcher

# One word with a slash, a star or a suffix. A question mark is no sign of a pattern: questions end with one.
FILE_LIKE = re.compile(r"\S*(?:[/*]\S*|\.[A-Za-z0-9]{1,5})")
MAX_NAME_LENGTH = 100  # characters of a name that an error message shows


@dataclass(frozen=True)
class NamedPicture:
    """A picture or video, and the name that is printed before its answer."""

    name: str
    picture: PictureOrVideo


def split_prompt(arguments: Sequence[str], prompt: str | None, kind: str) -> tuple[list[str], str | None]:
    """Splits positional arguments into names of pictures and the prompt, None where none was given.

    Args:
        arguments: the positional arguments.
        prompt: the value of `--prompt`; None: the last argument is the prompt unless it names a picture.
        kind: what error messages call the prompt, such as "question".

    Raises:
        BadPrompt: a remaining argument names no picture, as when a question was typed without quotes.
    """
    names, words = list(arguments), prompt
    if prompt is None and names and not is_picture_argument(names[-1]):
        words = names.pop()
    if words is not None and not is_valid_utf8(words):
        raise BadPrompt(f"the {kind} {escaped_bytes(words)} is not text in UTF-8: write it again")
    non_pictures = [name for name in names if name and not is_picture_argument(name)]
    if non_pictures:
        is_misplaced = words is None and len(non_pictures) == 1 < len(names)
        hint = (
            f"put the {kind} last, after the pictures" if is_misplaced else f"put the whole {kind} in quotes"
        )
        raise BadPrompt(f"{non_pictures[0]!r} is not a picture: {hint}")
    return names, words


def is_picture_argument(argument: str) -> bool:
    """Whether an argument is a URL, an existing file or folder, "-", or reads like the name of a file."""
    from idefics.processing.fetch import is_url

    is_picture_like = argument == STDIN or is_url(argument) or FILE_LIKE.fullmatch(argument) is not None
    return is_picture_like or path_exists(argument)


def is_sentence(argument: str) -> bool:
    """Whether an argument is a sentence: it has a space and is neither a file nor a pattern that matches files."""
    if " " not in argument or path_exists(argument) or glob.glob(argument):
        return False
    from idefics.processing.video import is_video_name

    return not (argument.lower().endswith(IMAGE_SUFFIXES) or is_video_name(argument))


def names_several_pictures(arguments: Sequence[str]) -> bool:
    """Whether the arguments may name more than one picture: several arguments, a folder or a pattern."""
    return len(arguments) > 1 or any(is_folder(name) or is_unexpanded_pattern(name) for name in arguments)


def find_pictures(
    arguments: Iterable[str], writer: OutputWriter, *, recursive: bool = False
) -> list[NamedPicture]:
    """The pictures that arguments name, in their order; none is opened yet.

    Args:
        arguments: names of files, folders, patterns and URLs.
        writer: reports an error for each argument that names no picture, and prints one note with a summary of the
            files that folders and patterns skipped.
        recursive: whether subfolders are searched too.
    """
    named_pictures: list[NamedPicture] = []
    skipped: Counter[str] = Counter()
    for argument in arguments:
        try:
            if is_unexpanded_pattern(argument) or is_folder(argument):
                search = PictureSearch(
                    recursive=recursive, report_error=lambda _, message: writer.report_error(message)
                )
                is_pattern = not is_folder(argument)
                paths = sorted(search.find(argument, is_pattern=is_pattern))
                if not paths:
                    raise search.nothing_found_error(argument, is_pattern=is_pattern)
                named_pictures += map(_file_as_named_picture, paths)
                skipped += search.skipped
            else:
                named_pictures.append(_resolve_argument(argument))
        except BadPicture as error:
            writer.report_error(str(error))
    if skipped:
        writer.print_note(f"skipped: {describe_skipped(skipped)}")
    return named_pictures


def fetch_readable_pictures(
    named_pictures: Iterable[NamedPicture], fetcher: Fetcher, writer: OutputWriter
) -> Iterator[NamedPicture]:
    """Yields the pictures that can be read, remote ones fetched, and reports an error for each other one."""
    for named in named_pictures:
        try:
            yield fetch_and_check_picture(named, fetcher)
        except BadPicture as error:
            writer.report_error(str(error))


def fetch_and_check_picture(named: NamedPicture, fetcher: Fetcher) -> NamedPicture:
    """Fetches a remote picture or video, and checks that it can be read.

    Returns:
        The same, with the fetched bytes in place of a URL.

    Raises:
        BadPicture: it cannot be fetched or read; the message begins with its name.
    """
    from idefics.processing.fetch import is_url
    from idefics.processing.image_processor import open_picture
    from idefics.processing.video import check_video, to_picture_or_video

    picture = named.picture
    try:
        if isinstance(picture.source, str) and is_url(picture.source):
            picture = to_picture_or_video(fetcher.get(picture.source))
        if isinstance(picture, Video):
            check_video(picture, fetcher)
        else:
            open_picture(picture, fetcher)
    except (BadPicture, MissingExtra) as error:
        raise BadPicture(error_with_name(named, error)) from None
    return NamedPicture(named.name, picture)


def error_with_name(named: NamedPicture, error: Exception) -> str:
    """An error's message, preceded by the picture's name where it does not begin with it."""
    name = "standard input" if named.name == STDIN else named.name
    message = str(error)
    path = str(Path(name))  # without "./" at its beginning
    if message.startswith(name):
        return message
    if message.startswith(path):
        return name + message.removeprefix(path)
    return f"{name}: {message}"


def read_standard_input() -> PictureOrVideo:
    """The picture or video whose bytes arrive on standard input."""
    from idefics.processing.video import to_picture_or_video

    if sys.stdin.isatty():
        raise BadPicture("standard input is a terminal: send a picture into it, as in cat photo.jpg | ...")
    data = sys.stdin.buffer.read()
    if not data:
        raise BadPicture("standard input is empty: send the bytes of a picture into it")
    return to_picture_or_video(data)


def _resolve_argument(argument: str) -> NamedPicture:
    """The picture that one argument names: "-", a URL or a file. Raises BadPicture if no such file exists."""
    from idefics.processing.fetch import is_url, name_for_message
    from idefics.processing.picture_files import missing_file_message
    from idefics.processing.video import to_picture_or_video

    if argument == STDIN:
        return NamedPicture(STDIN, read_standard_input())
    if is_url(argument):
        return NamedPicture(name_for_message(argument), to_picture_or_video(argument))
    if not path_exists(argument):
        raise BadPicture(missing_file_message(argument[:MAX_NAME_LENGTH]))
    return _file_as_named_picture(argument)


def _file_as_named_picture(path: str | Path) -> NamedPicture:
    """The picture or video in a file, named by its path."""
    from idefics.processing.video import to_picture_or_video

    return NamedPicture(str(path), to_picture_or_video(Path(path)))
