"""Makes Markdown, HTML or JSON of pages that a model has written down as DocTags; docling-core converts them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Literal, get_args

from idefics.batch.doctags import LESS_THAN, make_well_formed
from idefics.errors import MissingExtra

if TYPE_CHECKING:
    from docling_core.types.doc.document import DoclingDocument

DocumentFormat = Literal["markdown", "html", "json", "doctags"]
DOCUMENT_FORMATS: tuple[DocumentFormat, ...] = get_args(DocumentFormat)
FORMAT_BY_SUFFIX: dict[str, DocumentFormat] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".json": "json",
    ".dt": "doctags",
    ".doctags": "doctags",
}


# docling-core logs each formula that it writes into HTML as plain text.
logging.getLogger("docling_core").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True, kw_only=True)
class DocTagsPage:
    """A page of a document as a model has written it down.

    Attributes:
        name: for people, such as "book.pdf#page=3".
        doctags: the answer.
        is_cut_off: whether the answer reached its limit of tokens.
    """

    name: str
    doctags: str
    is_cut_off: bool = False


def describe_cut(page: DocTagsPage) -> str:
    """A note that the end of a page is missing, such as "book.pdf#page=3 is cut off in a table"; "" if it is whole."""
    unclosed = make_well_formed(page.doctags).unclosed
    if not (unclosed or page.is_cut_off):
        return ""
    return f"{page.name} is cut off" + (f" in {unclosed}" if unclosed else "")


def check_converter(to: DocumentFormat) -> None:
    """Raises MissingExtra if the package that makes this format of DocTags is not installed."""
    if to != "doctags" and find_spec("docling_core") is None:
        raise MissingExtra(f"converting DocTags to {to}", "docs")


def join_pages(pages: Sequence[DocTagsPage], to: DocumentFormat, *, title: str = "Document") -> str:
    """Makes one document of pages.

    In Markdown and HTML a picture is a placeholder, with its caption, and page headers and footers are left out. JSON
    is docling-core's `DoclingDocument` and has them, and locations as shares of the page's width and height. Malformed
    pages lose no text; see `make_well_formed`.

    Args:
        pages: the pages in their order.
        to: the format.
        title: the document's name, in HTML and JSON.

    Returns:
        The text of the document, which ends with a line break.

    Raises:
        MissingExtra: docling-core is not installed; DocTags do not need it.
    """
    check_converter(to)
    if to == "doctags":
        bodies = (page.doctags.strip().removeprefix("<doctag>").removesuffix("</doctag>") for page in pages)
        return f"<doctag>{'<page_break>'.join(bodies)}</doctag>\n"
    if to == "markdown":  # page by page: the document of a whole book takes much memory
        texts = (_load_pages([page], title).export_to_markdown() for page in pages)
        return "\n\n".join(text for text in texts if text) + "\n"
    document = _load_pages(pages, title)
    if to == "html":
        return document.export_to_html() + "\n"
    return json.dumps(document.export_to_dict(), ensure_ascii=False, indent=2) + "\n"


def _load_pages(pages: Sequence[DocTagsPage], title: str) -> DoclingDocument:
    """The pages as a document of docling-core, without their pictures."""
    from docling_core.types.doc.doctags import DocTagsDocument
    from docling_core.types.doc.document import DoclingDocument

    doctags = [make_well_formed(page.doctags).doctags for page in pages]
    document = DoclingDocument.load_from_doctags(
        DocTagsDocument.from_doctags_and_image_pairs(doctags, None), document_name=title
    )
    _restore_less_than(document)
    return document


def _restore_less_than(document: DoclingDocument) -> None:
    """Replaces `LESS_THAN` in the texts of a document and in the cells of its tables and charts."""
    for item in document.texts:
        item.text, item.orig = item.text.replace(LESS_THAN, "<"), item.orig.replace(LESS_THAN, "<")
    charts = (picture.meta and picture.meta.tabular_chart for picture in document.pictures)
    tables = [table.data for table in document.tables] + [chart.chart_data for chart in charts if chart]
    for cell in chain.from_iterable(table.table_cells for table in tables):
        cell.text = cell.text.replace(LESS_THAN, "<")
