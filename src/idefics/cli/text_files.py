"""Text files that flags name, such as `--labels-file labels.txt`; - is standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from idefics.errors import BadSetting

STDIN = "-"


def read_text_file(flag: str, path: Path, expected: str) -> str:
    """The text of a file, or of standard input where its name is "-".

    Args:
        flag: that names it; begins each message.
        expected: what it should hold, such as "one label per line".

    Raises:
        BadSetting: it cannot be read, or is not UTF-8 (a byte order mark at its beginning is left out).
    """
    name = f"{flag} {path}"
    try:
        if str(path) != STDIN:
            data = path.read_bytes()
        elif sys.stdin.isatty():
            raise BadSetting(f"{name}: standard input is a terminal: send the text into it, as in ... < file")
        else:
            data = sys.stdin.buffer.read()
            if not data.strip():
                raise BadSetting(f"{name}: standard input is empty: send {expected} into it")
    except FileNotFoundError:
        raise BadSetting(f"{name}: no such file") from None
    except OSError as error:
        raise BadSetting(f"{name} cannot be read: {error.strerror or error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSetting(f"{name} is not text in UTF-8: give {expected}") from None


def is_valid_utf8(text: str) -> bool:
    """Whether what was typed is text: bytes that are not UTF-8 stand in it as halves of characters (PEP 383)."""
    return not any("\udc80" <= character <= "\udcff" for character in text)


def escaped_bytes(text: str) -> str:
    """Such a text as a person can read it: `'Caf\\xe9'`."""
    return repr(text.encode(errors="surrogateescape"))[1:]
