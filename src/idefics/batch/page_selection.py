"""`PageSelection`: which pages of documents are taken, as in "1-3,7"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from idefics.batch.rows import BatchRow, RowSource
from idefics.errors import BadSetting

RANGE = re.compile(r"(\d+)(?:(-)(\d*))?")
PAGE_OF_NAME = re.compile(r"#page=(\d+)$")  # RFC 8118, 3


@dataclass(frozen=True, slots=True)
class PageSelection:
    """The pages that are taken.

    Attributes:
        ranges: first and last page of each range; None: to the end.
    """

    ranges: tuple[tuple[int, int | None], ...]

    @classmethod
    def parse(cls, text: str, name: str = "pages") -> PageSelection:
        """Parses numbers and ranges, such as "1-3,7" or "5-".

        Args:
            text: the numbers and ranges.
            name: of the setting, for messages.

        Raises:
            BadSetting: the text is something else.
        """
        ranges: list[tuple[int, int | None]] = []
        for part in text.split(","):
            match = RANGE.fullmatch(part.strip())
            first = int(match[1]) if match else 0
            last: int | None = first
            if match and match[2]:
                last = int(match[3]) if match[3] else None
            if first < 1 or (last is not None and last < first):
                raise BadSetting(
                    f"{name} is {text!r}; give numbers from 1 and ranges of them, such as 1-3,7 or 5-"
                )
            ranges.append((first, last))
        return cls(tuple(ranges))

    def __contains__(self, page: int) -> bool:
        return any(first <= page and (last is None or page <= last) for first, last in self.ranges)


class SelectedPages:
    """The rows of a source without the pages of documents that are not selected. Implements `RowSource`.

    Args:
        source: its rows are pictures, which all are taken, and pages, named as in "book.pdf#page=3".
        selection: the pages.
    """

    def __init__(self, source: RowSource, selection: PageSelection) -> None:
        self._source, self._selection = source, selection

    def __iter__(self) -> Iterator[BatchRow]:
        """Yields the rows."""
        return (row for row in self._source if self._takes(row))

    def _takes(self, row: BatchRow) -> bool:
        """Whether a row is no page of a document, or a selected one."""
        page = PAGE_OF_NAME.search(row.name)
        return page is None or int(page[1]) in self._selection

    def count_rows(self) -> int:
        """The number of rows; no picture is read."""
        return sum(1 for _ in self)

    def describe_skipped(self) -> str:
        """What the latest iteration has left out so far, pages that are not selected aside."""
        return self._source.describe_skipped()
