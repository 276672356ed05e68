"""What people type -> pictures with names, and the words among them.

Knows files, patterns and addresses; does not know models.
"""

from __future__ import annotations

import glob
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from idefics.cli.folders import PictureSearch, skipped_line
from idefics.cli.text_files import as_bytes, is_whole
from idefics.errors import BadPicture, BadPrompt, MissingExtra
from idefics.formats import IMAGE_SUFFIXES
from idefics.messages import Video, Visual

if TYPE_CHECKING:
    from idefics.processing.fetch import Fetcher

STDIN = "-"
# One word with a slash, a star or a suffix. A question mark makes no pattern of it: words end with one.
FILE_LIKE = re.compile(r"\S*(?:[/*]\S*|\.[A-Za-z0-9]{1,5})")
LONGEST_NAME = 100  # of what did not exist, in messages


@dataclass(frozen=True)
class Named:
    """A picture or video, and what its answer is headed with."""

    name: str
    picture: Visual


def split_words(arguments: Sequence[str], prompt: str | None, kind: str) -> tuple[list[str], str | None]:
    """The names of pictures, and the words: `prompt`, else the last argument unless it reads like a picture.

    Args:
        kind: what the words are called, such as "question".

    Raises:
        BadPrompt: there are words in the pictures' places, as where a question was typed without quotes.
    """
    names, words = list(arguments), prompt
    if prompt is None and names and not reads_like_picture(names[-1]):
        words = names.pop()
    if words is not None and not is_whole(words):
        raise BadPrompt(f"the {kind} {as_bytes(words)} is not text in UTF-8: write it again")
    strays = [name for name in names if name and not reads_like_picture(name)]
    if strays:
        is_misplaced = words is None and len(strays) == 1 < len(names)
        way_out = (
            f"put the {kind} last, behind the pictures" if is_misplaced else f"put the whole {kind} in quotes"
        )
        raise BadPrompt(f"{strays[0]!r} is not a picture: {way_out}")
    return names, words


def reads_like_picture(argument: str) -> bool:
    """Whether an argument is an address, a file or a folder, or looks as if it were meant to be one."""
    from idefics.processing.fetch import is_remote

    is_typed_so = argument == STDIN or is_remote(argument) or FILE_LIKE.fullmatch(argument) is not None
    return is_typed_so or _exists(argument)


def reads_like_words(argument: str) -> bool:
    """Whether an argument in a picture's place is a sentence: it has a space, and is no file, pattern or address."""
    if " " not in argument or _exists(argument) or glob.glob(argument):
        return False
    from idefics.processing.video import names_video

    return not (argument.lower().endswith(IMAGE_SUFFIXES) or names_video(argument))


def names_many(arguments: Sequence[str]) -> bool:
    """Whether more than one picture was asked for: several arguments, a folder or a pattern."""
    return len(arguments) > 1 or any(_is_folder(name) or _is_pattern(name) for name in arguments)


def find(
    arguments: Iterable[str],
    refuse: Callable[[str], None],
    note: Callable[[str], None],
    *,
    recursive: bool = False,
) -> list[Named]:
    """The pictures that arguments stand for, in their order.

    Args:
        refuse: is told which arguments stand for none.
        note: is told in one line what folders and patterns hold that is left out.
        recursive: whether subfolders of folders are searched too.
    """
    found: list[Named] = []
    skipped: Counter[str] = Counter()
    for argument in arguments:
        try:
            if _is_pattern(argument) or _is_folder(argument):
                search = PictureSearch(recursive=recursive, refuse=refuse)
                paths = (
                    search.matching(argument) if _is_pattern(argument) else search.in_folder(Path(argument))
                )
                found += [_named(path) for path in paths]
                skipped += search.skipped
            else:
                found.append(_picture(argument))
        except BadPicture as error:
            refuse(str(error))
    if skipped:
        note(f"skipped: {skipped_line(skipped)}")
    return found


def opened(named: Named, fetcher: Fetcher) -> Named:
    """The same picture or video, known to be one; what is remote has been fetched, once.

    Raises:
        BadPicture: it cannot be had or read; the message begins with its name.
    """
    from idefics.processing.fetch import is_remote
    from idefics.processing.images import open_picture
    from idefics.processing.video import as_visual, check

    picture = named.picture
    try:
        if isinstance(picture.source, str) and is_remote(picture.source):
            picture = as_visual(fetcher.get(picture.source))
        if isinstance(picture, Video):
            check(picture, fetcher)
        else:
            open_picture(picture, fetcher)
    except (BadPicture, MissingExtra) as error:
        raise BadPicture(about(named, error)) from None
    return Named(named.name, picture)


def about(named: Named, error: Exception) -> str:
    """An error's message, beginning with the picture that it is about."""
    name = "standard input" if named.name == STDIN else named.name
    path = str(Path(name))  # without the "./" at its beginning
    if str(error).startswith(path):
        return name + str(error).removeprefix(path)
    return f"{name}: {error}"


def standard_input() -> Visual:
    """The picture or video whose bytes are sent into the command."""
    from idefics.processing.video import as_visual

    if sys.stdin.isatty():
        raise BadPicture("standard input is a terminal: send a picture into it, as in cat photo.jpg | ...")
    data = sys.stdin.buffer.read()
    if not data:
        raise BadPicture("standard input is empty: send the bytes of a picture into it")
    return as_visual(data)


def _picture(argument: str) -> Named:
    from idefics.processing.fetch import is_remote, short
    from idefics.processing.picture_files import no_such_file
    from idefics.processing.video import as_visual

    if argument == STDIN:
        return Named(STDIN, standard_input())
    if is_remote(argument):
        return Named(short(argument), as_visual(argument))
    if not _exists(argument):
        raise BadPicture(no_such_file(argument[:LONGEST_NAME]))
    return _named(argument)


def _named(path: str | Path) -> Named:
    from idefics.processing.video import as_visual

    return Named(str(path), as_visual(Path(path)))


def _is_pattern(argument: str) -> bool:
    """Whether an argument is a pattern that the shell has left as it is."""
    from idefics.processing.fetch import is_remote

    return glob.has_magic(argument) and not _exists(argument) and not is_remote(argument)


def _is_folder(argument: str) -> bool:
    return _exists(argument) and Path(argument).is_dir()


def _exists(name: str) -> bool:
    try:
        return name != "" and Path(name).exists()
    except (OSError, ValueError):  # longer than any file's name, or with a null character in it
        return False
