"""`RunSettings`, what all rows of a run have in common; `RowSelection` and `PageSelection`: which are taken."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from idefics.batch.records import OutputRecord
from idefics.batch.rows import BatchRow, RowSource
from idefics.errors import BadPicture, BadSetting
from idefics.messages import Shot

KEY_BYTES = 16
NUM_SAMPLES, SAMPLE_BYTES = 16, 4096  # of each file of weights


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """The settings of a batch run, as they are kept in its ledger.

    Attributes:
        task: a key of `TASKS`.
        prompt: the template of the prompts; "" if the rows have none.
        model: the model's name, as it was given.
        revision: of the model: the commit on the hub; else the beginning of `fingerprint`.
        fingerprint: identifies the weights: see `fingerprint_checkpoint`.
        options: the options of the task and of `load` that change answers, as JSON values.
        shots: SHA-256 (hex) of the few-shot examples; "" without.
        adapter: the adapter of the model, as it was given; `fingerprint` says which it is. "" without.
        prefix, suffix: texts before and after each answer. They do not change what is computed.
    """

    task: str
    prompt: str = ""
    model: str
    revision: str
    fingerprint: str
    options: Mapping[str, Any] = field(default_factory=dict)
    shots: str = ""
    adapter: str = ""
    prefix: str = ""
    suffix: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict."""
        return asdict(self)

    def compute_key(self, content: bytes, prompt: str | None) -> bytes:
        """The key of a row: all that its answer depends on.

        Args:
            content: the hash of its picture.
            prompt: its prompt, filled in.
        """
        parts = [content.hex(), prompt, self.task, self.fingerprint, dict(self.options), self.shots]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()[:KEY_BYTES]

    def decorate(self, text: str) -> str:
        """An answer with the prefix and the suffix."""
        return f"{self.prefix}{text}{self.suffix}"

    def record(self, row_id: str, path: str, prompt: str, answer: Mapping[str, Any]) -> OutputRecord:
        """The output of a row.

        Args:
            row_id, path, prompt: of the row.
            answer: the fields of its answer, or of its error.
        """
        fields = dict(answer)
        if "text" in fields:
            fields["text"] = self.decorate(fields["text"])
        return OutputRecord(
            id=row_id,
            path=path,
            task=self.task,
            prompt=prompt,
            model=self.model,
            revision=self.revision,
            settings=dict(self.options)
            | ({"shots": self.shots[:12]} if self.shots else {})
            | ({"adapter": self.adapter} if self.adapter else {}),
            **fields,
        )


def fingerprint_checkpoint(folder: Path, weight_files: Sequence[Path], adapter_fingerprint: str = "") -> str:
    """SHA-256 (hex) that identifies a checkpoint, and the adapter that it has, by their content, wherever they are.

    It covers the small files that change answers, and of each file of weights the name, the size, and 16 pieces of
    4 KiB spread over it: reading all of it would take longer than many runs.

    Args:
        adapter_fingerprint: of the adapter; see `weights.fingerprint_adapter`. "": it has none.
    """
    digest = hashlib.sha256(adapter_fingerprint.encode())
    for file in sorted(folder.glob("*.json")) + sorted(folder.glob("*.jinja")):
        digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    for file in weight_files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as content:
            for index in range(NUM_SAMPLES):
                content.seek(max(0, size - SAMPLE_BYTES) * index // (NUM_SAMPLES - 1))
                digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()


def revision_of(folder: Path, fingerprint: str) -> str:
    """The commit of a checkpoint in the hub's cache, whose folders have its name; else 12 digits of the fingerprint."""
    is_snapshot = folder.parent.name == "snapshots"
    return folder.name if is_snapshot else fingerprint[:12]


def hash_shots(shots: Sequence[Shot]) -> str:
    """SHA-256 (hex) of few-shot examples and the content of their pictures; "" without examples.

    Raises:
        BadPicture: the file of a picture cannot be read.
    """
    if not shots:
        return ""
    parts = [(_hash_source(shot.picture.source), shot.question, shot.answer) for shot in shots]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _hash_source(source: object) -> str:
    """SHA-256 (hex) of the file of a picture or video, or of its URL."""
    if isinstance(source, Path):
        return hashlib.sha256(read_shot_picture(source)).hexdigest()
    return hashlib.sha256(str(source).encode("utf-8", "surrogateescape")).hexdigest()


def read_shot_picture(path: Path) -> bytes:
    """The content of the file of a few-shot example's picture. Raises BadPicture if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadPicture(f"{path}: {error.strerror}") from None


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


@dataclass(frozen=True, slots=True)
class SelectedPages(RowSource):
    """The rows of a source without the pages of documents that are not selected.

    Attributes:
        source: its rows are pictures, which all are taken, and pages, named as in "book.pdf#page=3".
        selection: the pages.
    """

    source: RowSource
    selection: PageSelection

    def __iter__(self) -> Iterator[BatchRow]:
        """Yields the rows."""
        for row in self.source:
            page = PAGE_OF_NAME.search(row.name)
            if page is None or int(page[1]) in self.selection:
                yield row

    def count_rows(self) -> int:
        """The number of rows; no picture is read."""
        return sum(1 for _ in self)

    def describe_skipped(self) -> str:
        """What the latest iteration has left out so far, pages that are not selected aside."""
        return self.source.describe_skipped()
