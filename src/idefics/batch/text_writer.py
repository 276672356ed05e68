"""`TextWriter`: writes the answers of a batch run next to pictures and into them, each once, even if it is killed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idefics.batch.file_replacement import FULL_DISK_ERRORS
from idefics.batch.ledger import Ledger
from idefics.batch.records import escape_surrogates
from idefics.batch.rows import BatchRow
from idefics.batch.run_settings import RunSettings
from idefics.batch.sidecars import join_texts, read_sidecar, sidecar_path, write_sidecar
from idefics.batch.text_settings import SidecarKind, TextKind, TextSettings
from idefics.batch.xmp import prepare_description, read_description
from idefics.errors import BadRequest, IdeficsError

CAPTION_KIND: SidecarKind = "txt"  # the sidecar that `{caption}` of a prompt reads


@dataclass(eq=False)
class TextWriter:
    """Writes texts next to pictures and into them.

    What was there before is kept in the ledger first, so that a text that was being written when the run was killed is
    written again from the same beginning: nothing is appended twice.

    Attributes:
        ledger: keeps what was there, and what is written.
        run: the settings of the run.
        settings: which texts are written.
        num_written: texts that were written.
        num_failed: texts that could not be written.
        num_without_file: texts of pictures that have no file of their own, such as members of an archive.
        first_error: why the first of those that failed could not be written.
    """

    ledger: Ledger
    run: RunSettings
    settings: TextSettings
    num_written = num_failed = num_without_file = 0
    first_error = ""

    def leaves_alone(self, row: BatchRow) -> bool:
        """Whether a row that has no answer needs none, as its picture has a text already that is kept."""
        file = _own_file(row)
        return (
            file is not None
            and self.settings.existing == "skip"
            and any(_has_text(file, kind) for kind in self.settings.kinds)
        )

    def existing_caption(self, row: BatchRow) -> str | None:
        """The text of the `.txt` file next to a row's picture, as it was before any run wrote to it; None without."""
        file = _own_file(row)
        if file is None:
            return None
        written = self.ledger.find_text(str(_target(file, CAPTION_KIND)), CAPTION_KIND)
        return written.existing if written is not None else _read_text(file, CAPTION_KIND)

    def write(self, row: BatchRow, number: int, answer: dict[str, Any]) -> None:
        """Writes the texts of a row that are not written yet. What cannot be written is counted, and tried next time.

        Args:
            row: the row.
            number: its number in the ledger.
            answer: its answer.

        Raises:
            OutputError: the disk is full.
        """
        file = _own_file(row)
        for kind in self.settings.kinds:
            if file is None:
                self.num_without_file += 1
                continue
            try:
                self._write_text(file, kind, number, answer)
            except IdeficsError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL_DISK_ERRORS:
                    raise  # every later text would fail too
                self.num_failed += 1
                self.first_error = self.first_error or str(error)

    def _write_text(self, file: Path, kind: TextKind, number: int, answer: dict[str, Any]) -> None:
        """Writes one text, unless it is written already."""
        target, text = _target(file, kind), self.run.decorate(answer["text"])
        planned = self.ledger.find_text(str(target), kind)
        if planned is not None and planned.path != escape_surrogates(str(file)):
            raise BadRequest(
                f"{file}: its text would be written to {target}, which is that of {planned.path}"
            )
        is_same_row = planned is not None and planned.row == number
        if planned is not None and is_same_row and planned.is_written and not self._is_lost(file, kind, text):
            return
        if planned is not None and is_same_row and not planned.is_written:
            existing = planned.existing  # the file may have the new text already, or not
        else:
            existing = _read_text(file, kind)
            self.ledger.plan_text(str(target), kind, number, str(file), existing)
        joined = join_texts(existing, text, self.settings.existing)
        if joined is not None:
            if kind == "metadata":
                self._embed(file, joined)
            else:
                fields = {"task": self.run.task, "model": self.run.model, "revision": self.run.revision}
                fields |= {name: answer[name] for name in ("probabilities", "finish") if name in answer}
                write_sidecar(target, kind, joined, fields)
            self.num_written += 1
        self.ledger.mark_text_written(str(target), kind)

    def _is_lost(self, file: Path, kind: TextKind, text: str) -> bool:
        """Whether a text that was written is to be written again: it is gone, or edited and to be overwritten."""
        current = _read_text(file, kind)
        return current is None or (self.settings.existing == "overwrite" and current != text.strip())

    def _embed(self, file: Path, text: str) -> None:
        """Writes a text into a picture, which keeps its identity: the new content becomes an alias of the old one."""
        status = file.stat()
        content = hashlib.sha256(file.read_bytes()).digest()
        prepared = prepare_description(file, text, size=status.st_size, mtime_ns=status.st_mtime_ns)
        original, new_content = self.ledger.original_content(content), prepared.sha256
        try:
            self.ledger.add_alias(new_content, original)
        except BaseException:
            prepared.discard()
            raise
        prepared.commit()
        self.ledger.remember_content(str(file), file.stat(), new_content)


def _own_file(row: BatchRow) -> Path | None:
    """The picture's own file; None if it has none."""
    return None if row.media is None else row.media.file


def _target(file: Path, kind: TextKind) -> Path:
    """The file that holds a kind of text about a picture."""
    return file if kind == "metadata" else sidecar_path(file, kind)


def _read_text(file: Path, kind: TextKind) -> str | None:
    """The text of a kind that a picture has already; None without."""
    if kind == "metadata":
        return read_description(file)
    return read_sidecar(sidecar_path(file, kind), kind)


def _has_text(file: Path, kind: TextKind) -> bool:
    """Whether a picture has a text of a kind. A sidecar that cannot be read is one; a broken picture has none in it."""
    try:
        return _read_text(file, kind) is not None
    except IdeficsError:
        return kind != "metadata"
