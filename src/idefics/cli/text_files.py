"""Reads text files that flags name, such as `--labels-file labels.txt`; "-" is standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from idefics.errors import BadSetting

STDIN = "-"


def read_text_file(flag: str, path: Path, expected: str) -> str:
    """Reads a file, or standard input where `path` is "-". A byte order mark is left out.

    Args:
        flag: the flag that names the file; messages begin with it.
        path: the file.
        expected: what it should hold, such as "one label per line".

    Raises:
        BadSetting: it cannot be read or is not UTF-8.
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
    """Whether an argument was valid UTF-8: Python stores other bytes as lone surrogates (PEP 383)."""
    return not any("\udc80" <= character <= "\udcff" for character in text)


def escaped_bytes(text: str) -> str:
    """The text with each byte that was not UTF-8 written as an escape, such as `'Caf\\xe9'`."""
    return repr(text.encode(errors="surrogateescape"))[1:]
