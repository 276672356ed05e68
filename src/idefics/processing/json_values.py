"""How many values JSON has, counted without parsing it.

Text is cheap to parse, however long it is; a million numbers take a second, and a million names that have to be refused
one by one a minute.
"""

from __future__ import annotations

VALUE_SEPARATORS = (b",", b"[", b"{")  # one before each value but the first


def has_more_values(body: bytes, max_values: int) -> bool:
    """Whether JSON has more than so many values; bytes that are no JSON may be counted either way."""
    if _count_separators(body) <= max_values:
        return False
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # A string has two quotes, and is a value or the name of one.
    return (
        unescaped.count(b'"') > 4 * max_values
        or _count_separators(b"".join(unescaped.split(b'"')[::2])) > max_values
    )


def _count_separators(body: bytes) -> int:
    return sum(map(body.count, VALUE_SEPARATORS))
