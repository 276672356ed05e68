"""`BatchRun`: answers the rows of a source once each, and keeps the answers in a ledger."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from idefics.batch.answerers import Answerer, WorkItem, error_fields
from idefics.batch.ledger import Ledger, LedgerRow
from idefics.batch.output_file import LedgerExport
from idefics.batch.prompt_template import PromptRenderer
from idefics.batch.records import escape_surrogates
from idefics.batch.report import MAX_THUMBNAILS, make_thumbnail
from idefics.batch.rows import BatchRow, RowSource
from idefics.batch.run_counts import RunCounts
from idefics.batch.run_settings import RowSelection, RunSettings
from idefics.batch.text_writer import TextWriter
from idefics.errors import BadPicture, IdeficsError
from idefics.generation.call_inputs import prefetch_map

NUM_READERS = 8  # threads that read files and fetch URLs


@dataclass(slots=True)
class _RowInHand:
    """A row that has no answer yet.

    Attributes:
        row: the row.
        prompt: its prompt, filled in; None: the task's default.
        status: of the file that holds its picture, before it was read; None if it has no file.
        data: the bytes of its picture, once it was read.
        more_data: the bytes of further pictures that its prompt refers to.
        content: the hash of these bytes, or what stands for it where they cannot be had.
        error: why the picture could not be read.
        thumbnail: of the picture, where the run makes thumbnails and it could be decoded.
    """

    row: BatchRow
    prompt: str | None
    status: os.stat_result | None
    data: bytes = b""
    more_data: tuple[bytes, ...] = ()
    content: bytes = b""
    error: IdeficsError | None = None
    thumbnail: bytes | None = None


@dataclass(eq=False)
class BatchRun:
    """One run over a source. Errors about rows are kept like answers; other errors end the run, and nothing is lost.

    Attributes:
        source: the rows.
        settings: what they have in common.
        template: makes the prompt of each row; None: the task's default, or none.
        answerer: answers them.
        ledger: keeps the answers.
        texts: writes the answers next to pictures and into them.
        export: the output file; None: there is none.
        selection: which rows are taken.
        max_errors: the run ends after so many rows that failed in it; None: it does not.
        makes_thumbnails: whether thumbnails for a report are kept, of the first pictures.
        on_progress: called with the counts after each row.
        counts: what the run has done so far.
        is_stopping: set it to True, in any thread, to end the run after the rows in hand.
    """

    source: RowSource
    settings: RunSettings
    template: PromptRenderer | None
    answerer: Answerer
    ledger: Ledger
    texts: TextWriter
    export: LedgerExport | None
    selection: RowSelection
    max_errors: int | None = None
    makes_thumbnails: bool = False
    on_progress: Callable[[RunCounts], None] = lambda _: None

    def __post_init__(self) -> None:
        self._num_thumbnails_left = MAX_THUMBNAILS if self.makes_thumbnails else 0
        self._run = self.ledger.run_number(self.settings.to_json())
        self._waiting_by_key: dict[bytes, list[_RowInHand]] = {}
        self.counts, self.is_stopping = RunCounts(), False

    def run(self) -> None:
        """Answers all rows that have no answer yet, and writes the outputs.

        Raises:
            OutputError: the ledger or an output cannot be written.
            IdeficsError: nothing can be answered, as when the model cannot be loaded.
        """
        self.counts.num_expected = self.selection.count(self.source)
        try:
            for key, answer in self.answerer.answer(self._items()):
                self.counts.num_tokens += answer.get("tokens") or 0
                first, *equal_rows = self._waiting_by_key.pop(key)
                self._store(first.row, first.prompt, key, answer)
                for in_hand in equal_rows:
                    self._store_known(in_hand.row, in_hand.prompt, key, answer)
        finally:
            if self.export is not None:
                self.export.export()

    def _items(self) -> Iterator[WorkItem]:
        """Yields an item for each key without an answer; rows that need none are stored on the way."""
        with closing(prefetch_map(self._read, self._rows_without_answer(), num_workers=NUM_READERS)) as rows:
            for in_hand in rows:
                if self._should_stop():
                    return
                assert isinstance(in_hand, _RowInHand)
                row, prompt = in_hand.row, in_hand.prompt
                if in_hand.error is not None:
                    self._store_error(row, prompt, in_hand.content, in_hand.error)
                    continue
                if in_hand.status is not None:
                    assert row.media is not None
                    self.ledger.remember_content(row.media.path, in_hand.status, in_hand.content)
                if in_hand.thumbnail is not None:
                    assert row.media is not None
                    self.ledger.add_thumbnail(row.media.path, in_hand.thumbnail)
                    self._num_thumbnails_left -= 1
                if self._is_known(row, prompt, in_hand.content):
                    continue
                key = self._compute_key(in_hand.content, prompt)
                self._waiting_by_key.setdefault(key, []).append(in_hand)
                item = WorkItem(key, in_hand.data, prompt, in_hand.more_data)
                in_hand.data, in_hand.more_data = b"", ()
                if len(self._waiting_by_key[key]) == 1:
                    yield item
                if self.is_stopping:
                    return

    def _should_stop(self) -> bool:
        """Whether no more rows are to be taken: the run is being stopped, or too many rows have failed."""
        return self.is_stopping or self.counts.has_too_many_errors

    def _read(self, in_hand: _RowInHand) -> _RowInHand:
        """Reads the pictures of a row, and computes the content hash of its own; runs in a thread."""
        media = in_hand.row.media
        assert media is not None
        try:
            in_hand.data = media.read()
            if self.template is not None:
                more = self.template.further_media(in_hand.row, in_hand.prompt)
                in_hand.more_data = tuple(one.read() for one in more)
        except IdeficsError as error:
            in_hand.error = error
            return in_hand
        if media.container is not None:
            in_hand.content = hashlib.sha256(in_hand.data).digest()
        if self._num_thumbnails_left > 0:
            in_hand.thumbnail = make_thumbnail(in_hand.data, media.path)
        return in_hand

    def _rows_without_answer(self) -> Iterator[_RowInHand]:
        """Yields the rows that are not known to have an answer, before their pictures are read."""
        for row in self.selection.select(self.source):
            if self._should_stop():
                return
            if row.media is None:
                self._store_error(row, None, _hash("row", row.name, row.error), BadPicture(row.error))
                continue
            try:
                if self.ledger.find_row(self._run, row.name) is None and self.texts.leaves_alone(row):
                    self.counts.num_left_alone += 1
                    continue
                prompt = self._fill_in_prompt(row)
            except IdeficsError as error:
                self._store_error(row, None, _hash("prompt", row.name, str(error)), error)
                continue
            in_hand = _RowInHand(row, prompt, _status(row))
            in_hand.content = _unread_content(in_hand)
            if self._is_known(row, prompt, in_hand.content):
                continue  # a URL; or a file that could not be read, and has not changed
            if in_hand.status is not None:
                content = self.ledger.find_content(row.media.path, in_hand.status)
                if content is not None and self._is_known(row, prompt, content):
                    continue
            yield in_hand

    def _fill_in_prompt(self, row: BatchRow) -> str | None:
        """The prompt of a row. Raises BadPrompt if it cannot be filled in."""
        if self.template is None:
            return None
        caption = self.texts.existing_caption(row) if self.template.needs_caption else None
        return self.template.render(row, caption)

    def _compute_key(self, content: bytes, prompt: str | None) -> bytes:
        """The key of a picture and a prompt in this run."""
        return self.settings.compute_key(self.ledger.original_content(content), prompt)

    def _is_known(self, row: BatchRow, prompt: str | None, content: bytes) -> bool:
        """Whether there is an answer for a row already; stores the row if only its key is known."""
        key = self._compute_key(content, prompt)
        found = self.ledger.find_row(self._run, row.name)
        if found is None or found.key != key:
            answer = self.ledger.find_answer(key)
            if answer is not None:
                self._store_known(row, prompt, key, answer)
            return answer is not None
        answer = self.ledger.find_answer(key)
        assert answer is not None
        if found.id != escape_surrogates(row.id):  # another id column than before
            self.ledger.add_row(replace(found, id=row.id))
        if "error_type" in answer:
            self.counts.num_failed_before += 1
        else:
            self.counts.num_done_before += 1
            self.texts.write(row, found.number, answer)
        self.on_progress(self.counts)
        return True

    def _store_known(self, row: BatchRow, prompt: str | None, key: bytes, answer: dict[str, Any]) -> None:
        """Stores a row whose key has an answer."""
        self.counts.num_reused += 1
        self._store(row, prompt, key, answer)

    def _store_error(self, row: BatchRow, prompt: str | None, content: bytes, error: IdeficsError) -> None:
        """Stores a row that cannot be answered, unless it is stored already."""
        if not self._is_known(row, prompt, content):
            self._store(row, prompt, self._compute_key(content, prompt), error_fields(error))

    def _store(self, row: BatchRow, prompt: str | None, key: bytes, answer: dict[str, Any]) -> None:
        """Stores a row with its answer or error, and writes the texts next to its picture."""
        path = row.media.path if row.media is not None else row.name
        ledger_row = LedgerRow(
            run=self._run, name=row.name, key=key, id=row.id, path=path, prompt=prompt or ""
        )
        number = self.ledger.add_row(ledger_row, answer)
        if "error_type" in answer:
            self.counts.num_failed += 1
            self.counts.has_too_many_errors = self.counts.num_failed == self.max_errors or (
                self.counts.has_too_many_errors
            )
            message = answer["error"]
            self.counts.first_error = self.counts.first_error or (
                message if path in message else f"{path}: {message}"
            )
        else:
            self.counts.num_written += 1
            self.texts.write(row, number, answer)
        if self.export is not None:
            self.export.export_regularly()
        self.on_progress(self.counts)


def _status(row: BatchRow) -> os.stat_result | None:
    """The status of the file that holds a row's picture; None if there is none."""
    assert row.media is not None
    if row.media.container is None:
        return None
    try:
        return row.media.container.stat()
    except (OSError, ValueError):
        return None


def _hash(*parts: object) -> bytes:
    """SHA-256 of some values, which stands for the content of a picture that is not read."""
    return hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).digest()


def _unread_content(in_hand: _RowInHand) -> bytes:
    """What stands for the content of a picture that is not read: a URL; or a file's name, size and time of change."""
    media, status = in_hand.row.media, in_hand.status
    assert media is not None
    if media.container is None:
        return _hash("url", media.path)
    return _hash("unreadable", in_hand.row.name, status and (status.st_size, status.st_mtime_ns))
