"""What a batch run is about: `Media`, a picture or video that is read later, and `BatchRow`, one row of the input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """A picture or video of a row, not read yet.

    Attributes:
        path: where it is, for people: "photos/cat.jpg", a URL, "photos.zip/cat.jpg", "book.pdf#page=3".
        read: returns the bytes of the file; called at most once, in any thread. Raises BadPicture or another
            `IdeficsError` with the path and the reason if they cannot be had.
        file: the picture's own file, next to which sidecars are written; None if it has none, such as a member of an
            archive, a page of a document or a URL.
        container: the local file whose size and time of change tell whether the bytes may have changed: `file`, or the
            archive that holds the picture; None for a URL.
    """

    path: str
    read: Callable[[], bytes]
    file: Path | None = None
    container: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """One row of the input of a batch run.

    Attributes:
        name: identifies the row in the input, and is the same in every run over it: the path of a file, or
            "rows.csv#17" for the 17th data row of a table.
        id: the value of the id column; "" if the input has none.
        media: the picture or video; None where `error` says why there is none.
        columns: the other columns of the row, as the file has them; prompts may refer to them as `{column}`.
        error: why the row cannot be answered, such as a malformed line; "" if it can.
    """

    name: str
    id: str = ""
    media: Media | None
    columns: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


class RowSource:
    """Base of the inputs of a run. Iterating starts at the beginning each time, and opens files as it reaches them."""

    def __iter__(self) -> Iterator[BatchRow]:
        """Yields the rows; holds a few of them in memory at a time."""
        raise NotImplementedError

    def count_rows(self) -> int | None:
        """The number of rows; None if it is not known without reading all of the input."""
        return None

    def describe_skipped(self) -> str:
        """What iterating has left out so far, such as "3 files of type .txt"; "" if nothing."""
        return ""
