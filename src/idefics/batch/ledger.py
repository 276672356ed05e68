"""`Ledger`: what a batch run keeps of its answers, so that none is lost and none is computed twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from idefics.batch.ledger_file import LedgerFile
from idefics.batch.records import escape_surrogates


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A row of the input that has an answer.

    Attributes:
        run: the number of its run's settings.
        name, id, path, prompt: see `BatchRow`; the prompt as it was filled in.
        key: SHA-256, shortened to 16 bytes, of all that the answer depends on.
        number: its place in the order of export; 0 until it is stored.
    """

    run: int
    name: str
    key: bytes
    id: str
    path: str
    prompt: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class WrittenText:
    """A text next to a picture or in it.

    Attributes:
        row: the number of the row whose answer it is.
        path: the picture of that row.
        existing: the text that was there before; None: there was none.
        is_written: whether it was written; else the run ended in between.
    """

    row: int
    path: str
    existing: str | None
    is_written: bool


@dataclass(frozen=True, slots=True)
class ExportMark:
    """How much of an output file is written.

    Attributes:
        last_number: the number of the last row in it.
        size: its bytes; -1: it has to be written anew.
        digest: SHA-256 of these bytes.
    """

    last_number: int
    size: int
    digest: bytes


class Ledger(LedgerFile):
    """The ledger of batch runs: their rows, answers, texts next to pictures, and how much of each output is written."""

    def run_number(self, settings: dict[str, Any]) -> int:
        """The number of a run's settings, which are stored if they are new."""
        text = json.dumps(settings, sort_keys=True)
        self.write("INSERT OR IGNORE INTO runs (settings) VALUES (?)", text)
        number: int = self.read_one("SELECT run FROM runs WHERE settings = ?", text)[0]
        return number

    def runs(self) -> dict[int, dict[str, Any]]:
        """The settings of all runs, by their numbers."""
        rows = self.read_all("SELECT run, settings FROM runs ORDER BY run")
        return {run: json.loads(settings) for run, settings in rows}

    def find_row(self, run: int, name: str) -> LedgerRow | None:
        """The row of that name in a run, if it has an answer."""
        found = self.read_one(
            "SELECT run, name, key, id, path, prompt, number FROM rows WHERE run = ? AND name = ?",
            run,
            name,
        )
        return None if found is None else LedgerRow(*found)

    def find_answer(self, key: bytes) -> dict[str, Any] | None:
        """The answer of a key, if there is one."""
        found = self.read_one("SELECT answer FROM answers WHERE key = ?", key)
        return None if found is None else json.loads(found[0])

    def add_row(self, row: LedgerRow, answer: dict[str, Any] | None = None) -> int:
        """Stores a row; one of the same run and name is replaced, and output files are written anew then.

        Args:
            row: the row, without a number.
            answer: the answer of its key; None: it is stored already.

        Returns:
            The row's number.
        """
        with self.writing() as connection:
            if answer is not None:
                connection.execute(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)",
                    (row.key, "error_type" in answer, json.dumps(answer)),
                )
            arguments = (row.run, escape_surrogates(row.name))
            if connection.execute("DELETE FROM rows WHERE run = ? AND name = ?", arguments).rowcount:
                connection.execute("UPDATE exports SET size = -1")
            cursor = connection.execute(
                "INSERT INTO rows (run, name, key, id, path, prompt) VALUES (?, ?, ?, ?, ?, ?)",
                (*arguments, row.key, *map(escape_surrogates, (row.id, row.path, row.prompt))),
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def rows_after(self, number: int) -> Iterator[tuple[LedgerRow, dict[str, Any]]]:
        """Yields the rows above a number with their answers, in the order of export."""
        for _, answer, *found in self.read_in_pieces(
            "SELECT number, answer, run, name, key, id, path, prompt, number FROM rows JOIN answers USING (key) "
            "WHERE number > ? ORDER BY number",
            number,
        ):
            yield LedgerRow(*found), json.loads(answer)

    def forget_errors(self, run: int) -> int:
        """Deletes the rows of a run that failed, so that they are tried again; returns their number."""
        return self._forget("run = ? AND key IN (SELECT key FROM answers WHERE is_error)", run)

    def forget_run(self, run: int) -> int:
        """Deletes all rows of a run and their answers; returns their number."""
        return self._forget("run = ?", run)

    def _forget(self, condition: str, run: int) -> int:
        """Deletes the rows of a run that meet a condition, their answers and their texts' records."""
        with self.writing() as connection:
            connection.execute(
                f"DELETE FROM texts WHERE row IN (SELECT number FROM rows WHERE {condition})", (run,)
            )
            connection.execute(
                f"DELETE FROM answers WHERE key IN (SELECT key FROM rows WHERE {condition})", (run,)
            )
            count = connection.execute("DELETE FROM rows WHERE key NOT IN (SELECT key FROM answers)").rowcount
            if count:
                connection.execute("UPDATE exports SET size = -1")
        self.commit()
        return count

    def count_rows(self) -> list[tuple[int, int, int]]:
        """For each run: its number, the rows that have an answer, and those that failed."""
        return self.read_all(
            "SELECT run, count(*) - sum(is_error), sum(is_error) FROM rows JOIN answers USING (key) "
            "GROUP BY run ORDER BY run"
        )

    def find_content(self, path: str, status: os.stat_result) -> bytes | None:
        """The content hash of a file that has not changed since `remember_content`."""
        found = self.read_one(
            "SELECT content FROM contents WHERE path = ? AND status = ?",
            path,
            _identify(status),
        )
        return None if found is None else found[0]

    def remember_content(self, path: str, status: os.stat_result, content: bytes) -> None:
        """Stores the content hash of a file with what its directory entry says."""
        self.write("INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", path, _identify(status), content)

    def original_content(self, content: bytes) -> bytes:
        """The content hash that a picture had before a description was written into it."""
        found = self.read_one("SELECT original FROM aliases WHERE content = ?", content)
        return content if found is None else found[0]

    def add_alias(self, content: bytes, original: bytes) -> None:
        """Stores that a picture with a description in it is the same picture. Committed when this returns."""
        self.write("INSERT OR REPLACE INTO aliases VALUES (?, ?)", content, original)
        self.commit()

    def find_text(self, target: str, kind: str) -> WrittenText | None:
        """The text of a kind that a run has written, or was about to write, to a file."""
        found = self.read_one(
            "SELECT row, path, existing, is_written FROM texts WHERE target = ? AND kind = ?",
            target,
            kind,
        )
        return None if found is None else WrittenText(found[0], found[1], found[2], bool(found[3]))

    def plan_text(self, target: str, kind: str, row: int, path: str, existing: str | None) -> None:
        """Stores that a text is about to be written, and what was there before. Committed when this returns."""
        self.write(
            "INSERT OR REPLACE INTO texts VALUES (?, ?, ?, ?, ?, 0)", target, kind, row, path, existing
        )
        self.commit()

    def mark_text_written(self, target: str, kind: str) -> None:
        """Stores that a planned text was written."""
        self.write("UPDATE texts SET is_written = 1 WHERE target = ? AND kind = ?", target, kind)

    def find_thumbnail(self, path: str) -> bytes | None:
        """The thumbnail of a picture, as a JPEG file."""
        found = self.read_one("SELECT jpeg FROM thumbnails WHERE path = ?", path)
        return None if found is None else found[0]

    def add_thumbnail(self, path: str, jpeg: bytes) -> None:
        """Stores the thumbnail of a picture."""
        self.write("INSERT OR REPLACE INTO thumbnails VALUES (?, ?)", path, jpeg)

    def find_export(self, path: str) -> ExportMark | None:
        """How much of an output file is written; None if none was written from this ledger."""
        found = self.read_one("SELECT last_number, size, digest FROM exports WHERE path = ?", path)
        return None if found is None else ExportMark(*found)

    def mark_exported(self, path: str, mark: ExportMark) -> None:
        """Stores how much of an output file is written. Committed when this returns."""
        self.write(
            "INSERT OR REPLACE INTO exports VALUES (?, ?, ?, ?)",
            path,
            mark.last_number,
            mark.size,
            mark.digest,
        )
        self.commit()


def _identify(status: os.stat_result) -> str:
    """What tells whether a file has changed: size, times of change of content and status, inode.

    Programs can restore the time of the content, and set no other; so no other file passes for the same.
    """
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
