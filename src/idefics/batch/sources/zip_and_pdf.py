"""Zip archives of pictures and videos, and PDF documents: members and pages become bytes when they are read."""

from __future__ import annotations

import io
import lzma
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from idefics.batch.rows import BatchRow, Media
from idefics.batch.sources.settings import FileInput, SourcePass, error_row, read_whole
from idefics.batch.sources.skipped import DUPLICATE, archive_skip_reason
from idefics.errors import BadPicture, MissingExtra
from idefics.formats import SIGNATURE_BYTES

# What zipfile raises about a broken or unsupported archive; RuntimeError is about a password.
ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError),
    *(NotImplementedError, RuntimeError),
)
ENCRYPTED_FLAG = 1  # of a member's flag bits (APPNOTE.TXT, 4.4.4)


class ZipArchive(FileInput):
    """A zip archive."""

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields a row for each picture or video, in the order of the archive; one with an error if it is broken."""
        try:
            archive = zipfile.ZipFile(self.path)
        except ZIP_ERRORS as error:
            yield error_row(self.name, f"{self.name} cannot be read as a zip: {error}")
            return
        lock = threading.Lock()
        for member in archive.infolist():
            if member.is_dir():
                continue
            name = f"{self.name}/{member.filename}"
            reason = archive_skip_reason(member.filename, partial(_read_head, archive, member, lock))
            if not reason and archive.NameToInfo[member.filename] is not member:
                reason = DUPLICATE  # as in other programs, the last member of a name counts
            if reason:
                source_pass.skipped[reason] += 1
            elif reason is None and member.flag_bits & ENCRYPTED_FLAG:
                yield error_row(name, f"{name} is encrypted: pack it without a password")
            elif reason is None:
                read = partial(_read_member, archive, member, lock, name)
                yield BatchRow(name=name, media=Media(path=name, read=read, container=self.path))


def _read_head(archive: zipfile.ZipFile, member: zipfile.ZipInfo, lock: threading.Lock) -> bytes:
    """The first bytes of a member; b"" if it cannot be read."""
    try:
        with lock, archive.open(member) as file:
            return file.read(SIGNATURE_BYTES)
    except ZIP_ERRORS:
        return b""


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, lock: threading.Lock, name: str) -> bytes:
    """The unpacked bytes of a member: as many as the archive declares, which is where zipfile stops unpacking.

    Raises:
        BadPicture: it is broken, or has more than `MAX_MEDIA_BYTES`.
    """
    try:
        with lock, archive.open(member) as file:
            return read_whole(file, member.file_size, name)
    except BadPicture:
        raise
    except ZIP_ERRORS as error:
        raise BadPicture(f"{name} is broken in the zip: {error}") from None


POINTS_PER_INCH = 72  # of PDF's default user space (ISO 32000-1, 8.3.2.3)
PDFIUM_LOCK = threading.Lock()  # PDFium is not thread-safe: held from opening a document to closing it


class PdfDocument(FileInput):
    """A PDF document; rows are named "book.pdf#page=3" (RFC 8118, 3)."""

    def check(self) -> None:
        """Raises MissingExtra if pypdfium2 is not installed; a broken document is a row with an error."""
        _import_pdfium()

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields a row for each page; one with an error if the document cannot be read."""
        try:
            with _open_document(self.path, self.name) as document:
                num_pages = len(document)
        except (BadPicture, MissingExtra) as error:
            yield error_row(self.name, error)
            return
        for page in range(1, num_pages + 1):
            name = f"{self.name}#page={page}"
            read = partial(_render_page, self.path, page, self.settings.pdf_dpi, name)
            yield BatchRow(name=name, media=Media(path=name, read=read, container=self.path))


def _render_page(path: Path, page: int, dpi: int, name: str) -> bytes:
    """A page as PNG, the same bytes each time: over white, with annotations and the content of forms.

    Args:
        page: its number, from 1.
        dpi: pixels per inch.
        name: of the page, for messages.

    Raises:
        BadPicture: the document cannot be read, or the page has too many pixels.
    """
    from idefics.processing.image_processor import MAX_PIXELS

    scale = dpi / POINTS_PER_INCH
    with _open_document(path, name) as document:
        document.init_forms()
        opened = document[page - 1]
        width, height = (round(side * scale) for side in opened.get_size())
        if width * height > MAX_PIXELS:
            raise BadPicture(
                f"{name} has {width} x {height} pixels at {dpi} pixels per inch; at most {MAX_PIXELS:,} are read: "
                "lower the resolution"
            )
        image = opened.render(scale=scale).to_pil()
        data = io.BytesIO()
        image.save(data, "PNG", compress_level=1)  # of little use for long: the picture is decoded at once
        return data.getvalue()


@contextmanager
def _open_document(path: Path, name: str) -> Iterator[Any]:
    """Opens a document for as long as the lock is held; what goes wrong becomes BadPicture."""
    pdfium = _import_pdfium()
    with PDFIUM_LOCK:
        document = None
        try:
            document = pdfium.PdfDocument(path)
            yield document
        except (pdfium.PdfiumError, OSError) as error:
            if isinstance(error, BadPicture):
                raise
            raise BadPicture(f"{name} cannot be read as PDF: {error}") from None
        finally:
            if document is not None:
                document.close()


def _import_pdfium() -> Any:
    """The module pypdfium2; raises MissingExtra if it is not installed."""
    try:
        import pypdfium2
    except ImportError:
        raise MissingExtra("reading PDF", "docs") from None
    return pypdfium2
