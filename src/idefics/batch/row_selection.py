"""`RowSelection`: which rows of a source a batch run takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from idefics.batch.rows import BatchRow, RowSource
from idefics.errors import BadSetting


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSelection:
    """Which rows of a source a run takes.

    Attributes:
        shard, num_shards: this run is one of several that share the work; each row belongs to one of them, always the
            same, whatever other rows there are. `shard` counts from 1.
        limit: at most so many rows, from the beginning; None: all.

    Raises:
        BadSetting: a number is out of range.
    """

    shard: int = 1
    num_shards: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.shard <= self.num_shards:
            raise BadSetting(
                f"shard is {self.shard}/{self.num_shards}; give i/n with i from 1 to n, such as 1/4"
            )
        if self.limit is not None and self.limit < 1:
            raise BadSetting(f"limit is {self.limit}; give a number of rows above 0")

    def select(self, source: RowSource) -> Iterator[BatchRow]:
        """Yields the rows of the source that the run takes."""
        return islice((row for row in source if self._is_in_shard(row.name)), self.limit)

    def _is_in_shard(self, name: str) -> bool:
        """Whether the row of that name belongs to the shard."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.num_shards == self.shard - 1

    def count(self, source: RowSource) -> int | None:
        """About how many rows the run takes; None if that is not known."""
        count = source.count_rows()
        if count is None:
            return None
        share = round(count / self.num_shards)
        return share if self.limit is None else min(share, self.limit)
