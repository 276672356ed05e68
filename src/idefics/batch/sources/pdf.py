"""PDF documents: a picture a page, rendered by pypdfium2 when it is read. Needs the extra `docs`."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from idefics.batch.rows import BatchRow, Media
from idefics.batch.sources.settings import SourcePass, SourceSettings, error_row
from idefics.errors import BadPicture, MissingExtra

POINTS_PER_INCH = 72  # of PDF's default user space (ISO 32000-1, 8.3.2.3)
PDFIUM_LOCK = threading.Lock()  # PDFium is not thread-safe: held from opening a document to closing it


@dataclass(frozen=True, slots=True)
class PdfDocument:
    """A PDF document; rows are named "book.pdf#page=3" (RFC 8118, 3).

    Attributes:
        name: its path as given, in UTF-8.
    """

    name: str
    path: Path
    settings: SourceSettings

    @property
    def key(self) -> str:
        """The real path."""
        return os.path.realpath(self.path)

    @property
    def has_columns(self) -> bool:
        """False."""
        return False

    def check(self) -> None:
        """Raises MissingExtra if pypdfium2 is not installed; a broken document is a row with an error."""
        _import_pdfium()

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields a row for each page; one with an error if the document cannot be read."""
        try:
            num_pages = self._count_pages()
        except (BadPicture, MissingExtra) as error:
            yield error_row(self.name, error)
            return
        for page in range(1, num_pages + 1):
            name = f"{self.name}#page={page}"
            read = partial(_render_page, self.path, page, self.settings.pdf_dpi, name)
            yield BatchRow(name=name, media=Media(path=name, read=read, container=self.path))

    def count(self, source_pass: SourcePass) -> int:
        """The number of pages; 1, the row with an error, if the document cannot be read."""
        try:
            return self._count_pages()
        except (BadPicture, MissingExtra):
            return 1

    def _count_pages(self) -> int:
        with _open_document(self.path, self.name) as document:
            return len(document)


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
