"""`LedgerFile`: the SQLite database of a ledger: its lock, its commits and its errors."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from idefics.batch.file_systems import network_file_system
from idefics.batch.records import escape_surrogates
from idefics.errors import OutputError, format_bytes

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE runs (  -- what all rows of a command have in common: task, prompt, options, model
    run INTEGER PRIMARY KEY, settings TEXT NOT NULL UNIQUE);
CREATE TABLE answers (  -- one for each key: content of the picture, prompt and settings
    key BLOB PRIMARY KEY, is_error INTEGER NOT NULL, answer TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rows (  -- the rows of the input that have an answer, in the order of their export
    number INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER NOT NULL, name TEXT NOT NULL, key BLOB NOT NULL,
    id TEXT NOT NULL, path TEXT NOT NULL, prompt TEXT NOT NULL, UNIQUE (run, name));
CREATE TABLE contents (  -- content hashes of files, which need not be read again
    path TEXT PRIMARY KEY, status TEXT NOT NULL, content BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE aliases (  -- content hashes of pictures into which a description was written
    content BLOB PRIMARY KEY, original BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE texts (  -- texts written next to pictures or into them; `existing` is what was there before
    target TEXT, kind TEXT, row INTEGER NOT NULL, path TEXT NOT NULL, existing TEXT, is_written INTEGER NOT NULL,
    PRIMARY KEY (target, kind)) WITHOUT ROWID;
CREATE TABLE thumbnails (path TEXT PRIMARY KEY, jpeg BLOB NOT NULL) WITHOUT ROWID;  -- for the report
CREATE TABLE exports (  -- how much of each output file is written; size -1: it has to be written anew
    path TEXT PRIMARY KEY, last_number INTEGER NOT NULL, size INTEGER NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID;
"""
MAX_UNCOMMITTED_WRITES, COMMIT_SECONDS = 32, 0.2  # what a crash may lose


class LedgerFile:
    """The file of a ledger: an SQLite database in write-ahead mode that reaches the disk at each commit.

    Writes are committed after 32 of them or 0.2 seconds, so that a crash at any moment loses at most these. One run at
    a time may write; others may read.

    Args:
        path: the file; created if it does not exist.
        read_only: open an existing ledger for reading, while a run may be writing to it.

    Raises:
        OutputError: the file is no ledger or cannot be written, another run uses it, or it is on a network file system.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._lock, self._num_uncommitted = threading.RLock(), 0
        self._lock_file: int | None = None
        self._is_closed = threading.Event()
        with self._sqlite_errors("open"):
            if read_only:
                if not path.is_file():
                    raise OutputError(f"{path}: no such ledger: name the file that `idefics run` has kept")
                self._connection = sqlite3.connect(path, isolation_level=None)
                self._connection.execute("PRAGMA query_only = 1")
                self._check_version()
                return
            if kind := network_file_system(path):
                raise OutputError(
                    f"{path} is on a network file system ({kind}), which cannot hold a ledger: put it on a local disk "
                    "with --ledger /path/on/this/machine"
                )
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._lock_for_this_process()
            self._create_or_check()
        self._commit_thread = threading.Thread(
            target=self._commit_regularly, name="idefics-ledger", daemon=True
        )
        self._commit_thread.start()

    def _lock_for_this_process(self) -> None:
        """Takes the lock that one run at a time holds; the system releases it when the process ends, however it ends.

        The descriptor stays open as long as the database: closing it earlier would release SQLite's own locks too.
        """
        if sys.platform == "win32":
            return
        import fcntl

        self._lock_file = os.open(self.path, os.O_RDWR)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._connection.close()
            os.close(self._lock_file)
            raise OutputError(
                f"{self.path} is in use by another run: wait for it, or name another one with --ledger"
            ) from None

    def _create_or_check(self) -> None:
        """Creates the tables of a new ledger, or checks those of an existing one."""
        is_new = not self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        if is_new:
            self._connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        self._check_version()

    def _check_version(self) -> None:
        """Raises OutputError if the database is none of ours, or of another version."""
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA_VERSION:
            raise OutputError(
                f"{self.path} is a database of another kind or version ({version}; this is {SCHEMA_VERSION}): name "
                "another file with --ledger"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commits and closes the file. May be called twice."""
        if self._is_closed.is_set():
            return
        self._is_closed.set()
        try:
            self.commit()
        finally:
            self._connection.close()
            if self._lock_file is not None:
                os.close(self._lock_file)

    @contextmanager
    def _sqlite_errors(self, verb: str) -> Iterator[None]:
        """Raises OutputError in place of SQLite's errors."""
        try:
            yield
        except sqlite3.Error as error:
            reason = str(error)
            if "disk is full" in reason or "disk I/O error" in reason:
                free = os.statvfs(self.path.parent) if sys.platform != "win32" else None
                room = "" if free is None else f" ({format_bytes(free.f_bavail * free.f_frsize)} free)"
                reason = f"the disk is full or fails{room}; what was committed is kept: make room, and run it again"
            if "not a database" in reason or "malformed" in reason:
                reason += ": delete it if it is no file of yours, or name another with --ledger"
            raise OutputError(f"cannot {verb} the ledger {self.path}: {reason}") from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Context of one write; commits if many writes are uncommitted."""
        with self._lock, self._sqlite_errors("write"):
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            self._num_uncommitted += 1
            if self._num_uncommitted >= MAX_UNCOMMITTED_WRITES:
                self.commit()

    def commit(self) -> None:
        """Commits what is written; it is on the disk when this returns."""
        with self._lock, self._sqlite_errors("write"):
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")
            self._num_uncommitted = 0

    def _commit_regularly(self) -> None:
        """Commits every 0.2 seconds; runs in a thread. An error appears in the next write of the run."""
        while not self._is_closed.wait(COMMIT_SECONDS):
            try:
                self.commit()
            except OutputError:
                continue

    def write(self, query: str, *arguments: Any) -> None:
        """Executes one change; texts are stored as `escape_surrogates` writes them."""
        with self.writing() as connection:
            connection.execute(query, _storable(arguments))

    def read_one(self, query: str, *arguments: Any) -> Any:
        """The first row of a query; None if there is none. Texts are found as `write` stores them."""
        with self._lock, self._sqlite_errors("read"):
            return self._connection.execute(query, _storable(arguments)).fetchone()

    def read_all(self, query: str) -> list[Any]:
        """All rows of a query, which are few."""
        with self._lock, self._sqlite_errors("read"):
            return self._connection.execute(query).fetchall()

    def read_in_pieces(self, query: str, number: int) -> Iterator[Any]:
        """Yields the rows of a query that selects `number` first and limits it to `> ?`, some hundred at a time."""
        while True:
            with self._lock, self._sqlite_errors("read"):
                rows = self._connection.execute(f"{query} LIMIT 500", (number,)).fetchall()
            yield from rows
            if len(rows) < 500:
                return
            number = rows[-1][0]


def _storable(arguments: Iterable[Any]) -> list[Any]:
    """The arguments of a query, as SQLite takes them: without lone surrogates."""
    return [escape_surrogates(one) if isinstance(one, str) else one for one in arguments]
