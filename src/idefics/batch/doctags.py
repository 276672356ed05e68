"""Makes the DocTags of a page well-formed, so that docling-core reads all of it.

DocTags are the markup of SmolDocling (arXiv:2503.11576); their tables are OTSL (arXiv:2305.03393). The reader of
docling-core expects whole elements: it leaves out text that stands outside of one, an element without its closing tag
and a picture without a location, and it fails at an empty cell. Models write such pages, at least where an answer
reaches its limit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Stands for a "<" that begins no tag, which docling-core would remove up to the next ">". Unicode assigns no character
# to it, and never will.
LESS_THAN = "\ufdd0"

TAG = re.compile(r"<(/?)(\w+)>")
UNFINISHED_TAG = re.compile(r"</?(\w*)$")
LOCATION = re.compile(r"loc_\d+")
CODE_LANGUAGE = re.compile(r"_\w+_")
WHOLE_PAGE = (
    "<loc_0>",
    "<loc_0>",
    "<loc_500>",
    "<loc_500>",
)  # left, top, right, bottom, in 500ths of the page

HEADINGS = tuple(f"section_header_level_{level}" for level in range(1, 7))
TEXT_ELEMENTS = frozenset(
    {"title", *HEADINGS, "text", "list_item", "caption", "footnote", "page_header", "page_footer"}
    | {"formula", "code", "checkbox_selected", "checkbox_unselected"}
)
LISTS = frozenset({"ordered_list", "unordered_list"})
GRIDS = frozenset({"otsl", "chart", "picture"})
CELLS_WITH_TEXT = frozenset({"fcel", "ched", "rhed", "srow"})
CELLS = CELLS_WITH_TEXT | {"ecel", "lcel", "ucel", "xcel"}
END_OF_ROW = "nl"
PARTS_OF_ITEMS = frozenset({"text", "inline", "formula", "code", "checkbox_selected", "checkbox_unselected"})
# Elements that docling-core leaves out or fails at, and what they are read as.
REPLACEMENTS = {
    "section_header_level_0": "section_header_level_1",
    "paragraph": "text",
    "reference": "text",
    "handwritten_text": "text",
    "document_index": "otsl",
}
KEY_OR_VALUE = re.compile(r"(key|value)_\d+")  # of a form; read as "text"
# Tags around elements that are read alike without them.
IGNORED = re.compile(r"doctag|page_break|form|key_value_region|smiles|link_\d+")

DESCRIPTIONS = {"otsl": "a table", "chart": "a chart", "picture": "a picture"} | dict.fromkeys(
    LISTS, "a list"
)


@dataclass(frozen=True, slots=True)
class WellFormedPage:
    """The DocTags of a page as docling-core reads them.

    Attributes:
        doctags: well-formed; "<" in texts is `LESS_THAN`.
        unclosed: what the page ended in the middle of, such as "a table"; "" if it is whole.
    """

    doctags: str
    unclosed: str


def make_well_formed(doctags: str) -> WellFormedPage:
    """Closes what is open, wraps text outside of elements, and completes tables and pictures. No text is lost."""
    reader = _DocTagsReader()
    unfinished_tag = UNFINISHED_TAG.search(doctags)
    if unfinished_tag is not None and _begins_known_tag(unfinished_tag[1]):
        doctags = doctags[: unfinished_tag.start()]
    position = 0
    for tag in TAG.finditer(doctags):
        reader.read_text(doctags[position : tag.start()])
        reader.read_tag(tag)
        position = tag.end()
    reader.read_text(doctags[position:])
    unclosed = next((DESCRIPTIONS.get(one.tag, "a text") for one in reader.open if not one.is_implied), "")
    reader.close_all()
    return WellFormedPage("\n".join(reader.blocks), unclosed)


def _begins_known_tag(name: str) -> bool:
    """Whether an unfinished tag has the beginning of a name of DocTags."""
    known = TEXT_ELEMENTS | LISTS | GRIDS | CELLS | {"inline", "loc_", "doctag", *REPLACEMENTS}
    return any(one.startswith(name) for one in known) or name.startswith("loc_")


@dataclass
class _DocTagsElement:
    """An element that is open: its tag, and its text, locations and closed children in their order.

    Attributes:
        is_implied: whether the page has no opening tag for it.
    """

    tag: str
    is_implied: bool = False
    parts: list[str] = field(default_factory=list)

    def add(self, part: str) -> None:
        """Adds text, a location or a closed child."""
        self.parts.append(part)

    def contains(self, tag: str) -> bool:
        """Whether an element with this tag may stand inside."""
        if self.tag in LISTS:
            return tag == "list_item"
        return self.tag == "inline" and tag in TEXT_ELEMENTS - {"list_item", "caption"}

    def absorbs(self, tag: str) -> bool:
        """Whether the text of an element with this tag is a part of this one's text, as for a formula in a sentence."""
        if self.tag == "list_item":
            return tag in PARTS_OF_ITEMS
        return self.tag in TEXT_ELEMENTS - {"formula", "code"} and tag in ("formula", "code")

    def render(self) -> str:
        """The element as DocTags; docling-core finds a caption only on one line."""
        content = "".join(self.parts)
        if self.tag == "caption":
            content = content.replace("\n", " ")
        return f"<{self.tag}>{content}</{self.tag}>"


@dataclass
class _DocTagsGrid(_DocTagsElement):
    """A table, a chart or a picture: location, kind of picture, caption and cells."""

    label: str = ""
    captions: list[str] = field(default_factory=list)
    stray_text: list[str] = field(default_factory=list)
    rows: list[list[tuple[str, list[str]]]] = field(default_factory=list)

    def add(self, part: str) -> None:
        """Adds a location, a caption, or text: of the last cell, or of a cell that lacks its tag."""
        if part.startswith("<caption>"):
            self.captions.append(part)
        elif part.startswith("<"):
            self.parts.append(part)
        elif self.rows and self.rows[-1]:
            self.rows[-1][-1][1].append(part)
        elif self.tag == "picture" and not self.rows:
            self.stray_text.append(part)
        elif part.strip():
            self.add_cell("fcel")
            self.add(part)

    def add_cell(self, tag: str) -> None:
        """Begins a cell, or the next row."""
        if not self.rows:
            self.rows.append([])
        if tag == END_OF_ROW:
            self.rows.append([])
        else:
            self.rows[-1].append((tag, []))

    def contains(self, tag: str) -> bool:
        return tag == "caption"

    def absorbs(self, tag: str) -> bool:
        if self.rows and self.rows[-1]:  # inside a cell
            return tag in PARTS_OF_ITEMS
        return self.tag != "otsl" and tag == "otsl"

    def render(self) -> str:
        rows = [[_render_cell(tag, "".join(text).strip()) for tag, text in row] for row in self.rows if row]
        width = max(map(len, rows), default=0)
        cells = "".join("".join(row) + "<ecel>" * (width - len(row)) + "<nl>" for row in rows)
        texts = [*self.captions[1:], *(f"<text>{text}</text>" for text in self.stray_text if text.strip())]
        if self.tag == "otsl" and not rows:
            return "\n".join([*self.captions[:1], *texts])
        is_located = len(self.parts) >= len(WHOLE_PAGE)
        locations = self.parts[:4] if is_located else () if self.tag == "otsl" else WHOLE_PAGE
        tag = "chart" if self.tag == "picture" and rows else self.tag
        head = "".join([*locations, self.label, *self.captions[:1]])
        return "\n".join([f"<{tag}>{head}{cells}</{tag}>", *texts])


def _render_cell(tag: str, text: str) -> str:
    """A cell as DocTags: with text only after a tag for it, and such a tag only with text."""
    if not text:
        return "<ecel>" if tag in CELLS_WITH_TEXT else f"<{tag}>"
    return f"<{tag if tag in CELLS_WITH_TEXT else 'fcel'}>{text}"


class _DocTagsReader:
    """Reads a page tag by tag.

    Attributes:
        blocks: the closed elements.
        open: the open elements, the innermost last.
    """

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.open: list[_DocTagsElement] = []

    def read_text(self, text: str) -> None:
        """Adds text to the innermost element. Outside of one that has text, an element is opened for it."""
        innermost = self.open[-1] if self.open else None
        if innermost is None or innermost.tag in LISTS or innermost.tag == "inline":
            if not text.strip():
                return
            is_list = innermost is not None and innermost.tag in LISTS
            innermost = self._open_element("list_item" if is_list else "text", is_implied=True)
        if text:
            innermost.add(text.replace("<", LESS_THAN))

    def read_tag(self, tag: re.Match[str]) -> None:
        """Opens or closes an element, or adds a location, a cell or a kind of picture to the innermost one."""
        name = "text" if KEY_OR_VALUE.fullmatch(tag[2]) else REPLACEMENTS.get(tag[2], tag[2])
        innermost = self.open[-1] if self.open else None
        is_end = bool(tag[1])
        if name == "doctag" and is_end:
            self.close_all()
        elif LOCATION.fullmatch(name):
            if innermost is not None and not is_end:
                innermost.add(tag[0])
        elif name in CELLS or name == END_OF_ROW:
            if not is_end:
                self._find_grid().add_cell(name)
        elif name in TEXT_ELEMENTS | LISTS | GRIDS or name == "inline":
            if is_end:
                self._close_element(name)
            else:
                self._open_element(name)
        elif IGNORED.fullmatch(name):
            return
        elif (
            isinstance(innermost, _DocTagsGrid)
            and not innermost.rows
            and innermost.tag != "otsl"
            and not is_end
        ):
            innermost.label = innermost.label or tag[0]
        elif innermost is not None and innermost.tag == "code" and CODE_LANGUAGE.fullmatch(name):
            innermost.add(tag[0])
        else:
            self.read_text(tag[0])

    def _open_element(self, tag: str, *, is_implied: bool = False) -> _DocTagsElement:
        """Opens an element and returns it; those that cannot hold it are closed.

        Returns:
            The element, or the one that absorbs it.
        """
        while self.open and not self.open[-1].contains(tag):
            if self.open[-1].absorbs(tag):
                return self.open[-1]
            self._close_innermost()
        if tag == "list_item" and not self.open:
            self._open_element("unordered_list", is_implied=True)
        self.open.append((_DocTagsGrid if tag in GRIDS else _DocTagsElement)(tag, is_implied))
        return self.open[-1]

    def _find_grid(self) -> _DocTagsGrid:
        """The innermost table, chart or picture; elements inside it are closed. A table is opened if there is none."""
        if not any(isinstance(one, _DocTagsGrid) for one in self.open):
            self._open_element("otsl", is_implied=True)
        while not isinstance(innermost := self.open[-1], _DocTagsGrid):
            self._close_innermost()
        return innermost

    def _close_element(self, tag: str) -> None:
        """Closes the innermost element with this tag and those inside it; does nothing if there is none."""
        while any(one.tag == tag for one in self.open):
            is_last = self.open[-1].tag == tag
            self._close_innermost()
            if is_last:
                return

    def _close_innermost(self) -> None:
        """Closes the innermost element."""
        rendered = self.open.pop().render()
        if self.open:
            self.open[-1].add(rendered)
        else:
            self.blocks.append(rendered)

    def close_all(self) -> None:
        """Closes all elements."""
        while self.open:
            self._close_innermost()
