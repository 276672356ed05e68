"""Counts the values of a JSON document without parsing it, to refuse documents that are expensive to parse.

Long strings are cheap to parse; a million numbers take a second, and a million unknown keys that are refused one by
one a minute.
"""

from __future__ import annotations

VALUE_SEPARATORS = (b",", b"[", b"{")  # each value but the first follows one


def has_more_values(body: bytes, max_values: int) -> bool:
    """Whether a JSON document has more than `max_values` values; the result for other bytes is undefined."""
    if _count_separators(body) <= max_values:
        return False
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Each string has two quotes, and is a value or a key.
    return (
        unescaped.count(b'"') > 4 * max_values
        or _count_separators(b"".join(unescaped.split(b'"')[::2])) > max_values
    )


def _count_separators(body: bytes) -> int:
    """How many of the bytes in `VALUE_SEPARATORS` there are, those inside strings included."""
    return sum(map(body.count, VALUE_SEPARATORS))
