"""How many values JSON has, counted without parsing it.

Text is cheap to parse, however long it is; a million numbers take a second, and a million names that have to be refused
one by one a minute.
"""

from __future__ import annotations

MARKS = (b",", b"[", b"{")  # one before each value but the first


def has_more_values(body: bytes, limit: int) -> bool:
    """Whether JSON has more than so many values; bytes that are no JSON may be counted either way."""
    if _num_marks(body) <= limit:
        return False
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # A string has two quotes, and is a value or the name of one.
    return unescaped.count(b'"') > 4 * limit or _num_marks(b"".join(unescaped.split(b'"')[::2])) > limit


def _num_marks(body: bytes) -> int:
    return sum(map(body.count, MARKS))
