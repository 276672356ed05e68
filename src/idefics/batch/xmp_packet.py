"""XMP packets: reads and replaces the text of `dc:description`, and leaves every other byte of a packet as it is.

A packet is RDF in XML (XMP Specification Part 1, ISO 16684-1). `dc:description` is an `rdf:Alt` with an `rdf:li` for
each language; the one of the language "x-default" comes first. The packet is parsed to find where these are,
and never serialised again: its prefixes, comments, padding and other properties stay byte by byte. A packet with a
document type declaration is refused, so no entity is ever expanded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from idefics.errors import BadPicture

MAX_PACKET_BYTES = 4_000_000

RDF_NAMESPACE = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC_NAMESPACE = "http://purl.org/dc/elements/1.1/"
# Names as expat gives them: the namespace, a space, the local name.
RDF = f"{RDF_NAMESPACE} RDF"
RDF_DESCRIPTION = f"{RDF_NAMESPACE} Description"
RDF_ABOUT = f"{RDF_NAMESPACE} about"
RDF_ITEM = f"{RDF_NAMESPACE} li"
RDF_ALTERNATIVES = f"{RDF_NAMESPACE} Alt"
RDF_CONTAINERS = (RDF_ALTERNATIVES, f"{RDF_NAMESPACE} Bag", f"{RDF_NAMESPACE} Seq")
DC_DESCRIPTION = f"{DC_NAMESPACE} description"
XML_LANG = "http://www.w3.org/XML/1998/namespace lang"
DEFAULT_LANGUAGE = "x-default"

NEW_PACKET = f"""\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="{RDF_NAMESPACE}">
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>""".encode()

_START_TAG = re.compile(rb"""<[^"'>]*(?:(?:"[^"]*"|'[^']*')[^"'>]*)*>""")
_TAG_NAME = re.compile(rb"<([^\s/>]+)")
_ATTRIBUTE = re.compile(rb"""\s++([^\s=]+)\s*=\s*(?:"[^"]*"|'[^']*')""")
_NO_XML_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, 2.2


@dataclass(slots=True)
class _Element:
    """An element of a packet, and where its parts are (bytes from the beginning).

    Attributes:
        name: its namespace, a space, its local name.
        attributes: the values, by names of the same form.
        prefixes: the prefix of each attribute.
        start: of the start tag.
        content: end of the start tag.
        content_end: beginning of the end tag; `content` where the element is written as one empty tag.
        end: end of the end tag.
        text: all characters that are directly in it.
        children: its elements that descriptions are made of.
    """

    name: str
    attributes: dict[str, str]
    prefixes: dict[str, str]
    start: int
    content: int
    content_end: int = 0
    end: int = 0
    text: str = ""
    children: list[_Element] = field(default_factory=list)


_Edit = tuple[int, int, bytes]  # start and end of the bytes that are replaced, and what replaces them


def read_packet_description(packet: bytes | None) -> str | None:
    """The text of a packet's `dc:description`: that of "x-default", or else of the first language.

    Returns:
        None if the packet has no description, is blank, or there is none.

    Raises:
        BadPicture: the packet is not well-formed, too large, has a document type, or no `rdf:RDF`.
    """
    if packet is None or not packet.strip():
        return None
    rdf = _find_rdf(packet)
    for description in _children(rdf, RDF_DESCRIPTION):
        if (
            DC_DESCRIPTION in description.attributes
        ):  # not allowed for languages, yet written by some programs
            return description.attributes[DC_DESCRIPTION]
        for element in _children(description, DC_DESCRIPTION):
            containers = list(_children(element, *RDF_CONTAINERS))
            if not containers:
                return element.text
            items = list(_children(containers[0], RDF_ITEM))
            if items:
                return next(filter(_is_default, items), items[0]).text
    return None


def set_packet_description(packet: bytes | None, text: str) -> bytes:
    """The packet with another text for the language "x-default" of `dc:description`, which then is the first.

    Characters that XML lacks, such as most control characters, are left out of the text.

    Args:
        packet: the packet; one that is blank, or None, is a new one.
        text: the text.

    Raises:
        BadPicture: as `read_packet_description`.
    """
    if packet is None or not packet.strip():
        packet = NEW_PACKET
    value = escape(_NO_XML_CHARACTER.sub("", text), {"\r": "&#xD;"}).encode()
    rdf = _find_rdf(packet)
    edits: list[_Edit] = []
    is_placed = False
    for description in _children(rdf, RDF_DESCRIPTION):
        edits += _cut_attribute(packet, description)
        for element in _children(description, DC_DESCRIPTION):
            edits += [_cut(packet, element)] if is_placed else _replace_default(packet, element, value)
            is_placed = True
    if not is_placed:
        edits.append(_insert_description(packet, rdf, value))
    return _apply(packet, edits)


def trim_padding(packet: bytes, max_bytes: int) -> bytes:
    """The packet with as much less padding (spaces before its end) as makes it `max_bytes` long, or none."""
    surplus = len(packet) - max_bytes
    end = packet.rfind(b"<?xpacket end=")
    if surplus <= 0 or end < 0:
        return packet
    return packet[: max(_strip_space(packet, end), end - surplus)] + packet[end:]


def _find_rdf(packet: bytes) -> _Element:
    """Parses a packet and returns its `rdf:RDF` element."""
    if len(packet) > MAX_PACKET_BYTES:
        raise BadPicture(f"its XMP has {len(packet):,} bytes; at most {MAX_PACKET_BYTES:,} are read")
    root = _parse(packet)
    for element in (root, *root.children):
        if element.name == RDF:
            return element
    raise BadPicture("its XMP has no rdf:RDF element: repair it with another program")


def _parse(packet: bytes) -> _Element:
    """Parses a packet into a tree of the elements that descriptions are made of."""
    parser = expat.ParserCreate("utf-8", " ")
    parser.namespace_prefixes = True
    parser.buffer_text = True
    wanted = {RDF, RDF_DESCRIPTION, DC_DESCRIPTION, *RDF_CONTAINERS, RDF_ITEM}
    document = _Element("", {}, {}, 0, 0)
    open_elements = [document]

    def start_element(name: str, attributes: dict[str, str]) -> None:
        start = parser.CurrentByteIndex
        tag = _START_TAG.match(packet, start)
        assert tag is not None  # the parser has read it
        element = _Element(
            _split_name(name)[0],
            {_split_name(key)[0]: value for key, value in attributes.items()},
            dict(map(_split_name, attributes)),
            start,
            tag.end(),
        )
        if len(open_elements) == 1 or element.name in wanted:  # the others take no memory
            open_elements[-1].children.append(element)
        open_elements.append(element)

    def end_element(_: str) -> None:
        element = open_elements.pop()
        is_empty_tag = packet[element.content - 2 : element.content] == b"/>"
        element.content_end = element.content if is_empty_tag else parser.CurrentByteIndex
        element.end = element.content if is_empty_tag else packet.index(b">", element.content_end) + 1

    def add_text(text: str) -> None:
        open_elements[-1].text += text

    def refuse_document_type(*_: object) -> None:
        raise BadPicture("its XMP has a document type declaration, which XMP does not allow: it is not read")

    parser.StartElementHandler, parser.EndElementHandler = start_element, end_element
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = add_text, refuse_document_type
    try:
        parser.Parse(packet, True)
    except expat.ExpatError as error:
        raise BadPicture(f"its XMP is broken: {error}") from None
    return document.children[0]


def _split_name(name: str) -> tuple[str, str]:
    """A name of expat, "namespace local prefix", as the name without the prefix, and the prefix."""
    namespace, _, rest = name.partition(" ")
    local, _, prefix = rest.partition(" ")
    return (f"{namespace} {local}" if local else namespace), prefix


def _children(element: _Element, *names: str) -> Iterator[_Element]:
    """The elements with one of the names directly in another."""
    return (child for child in element.children if child.name in names)


def _is_default(item: _Element) -> bool:
    """Whether an `rdf:li` is the text in no special language; one without a language counts as that."""
    return item.attributes.get(XML_LANG, DEFAULT_LANGUAGE).lower() == DEFAULT_LANGUAGE


def _replace_default(packet: bytes, element: _Element, value: bytes) -> Iterable[_Edit]:
    """The edits that give a `dc:description` element this value for "x-default", in the first place."""
    containers = list(_children(element, RDF_ALTERNATIVES))
    items = list(_children(containers[0], RDF_ITEM)) if containers else []
    if not items:
        declarations = f' xmlns:dc="{DC_NAMESPACE}" xmlns:rdf="{RDF_NAMESPACE}"'
        return [(element.start, element.end, _write_element(value, declarations))]
    new = _write_item(value, _read_prefix(packet, containers[0]))
    first, *others = items
    place = (first.start, first.end if _is_default(first) else first.start, new)
    return [place, *(_cut(packet, item) for item in others if _is_default(item))]


def _insert_description(packet: bytes, rdf: _Element, value: bytes) -> _Edit:
    """The edit that adds an `rdf:Description` with the value; all of a packet are about the same thing."""
    about = next((one.attributes.get(RDF_ABOUT, "") for one in _children(rdf, RDF_DESCRIPTION)), "")
    declarations = f'xmlns:rdf="{RDF_NAMESPACE}" xmlns:dc="{DC_NAMESPACE}"'
    head = f"<rdf:Description rdf:about={quoteattr(about)} {declarations}>\n"
    new = head.encode() + _write_element(value, "") + b"\n</rdf:Description>\n"
    if rdf.end > rdf.content:
        return rdf.content_end, rdf.content_end, new
    name = packet[rdf.start + 1 : _match_name(packet, rdf).end()]
    return rdf.content - 2, rdf.content, b">" + new + b"</" + name + b">"


def _write_element(value: bytes, declarations: str) -> bytes:
    """A `dc:description` element with the value."""
    item = _write_item(value, b"rdf:")
    return b"<dc:description%b><rdf:Alt>%b</rdf:Alt></dc:description>" % (declarations.encode(), item)


def _write_item(value: bytes, prefix: bytes) -> bytes:
    """An `rdf:li` element with the value; `prefix` stands for the namespace of RDF: b"rdf:"."""
    return b'<%bli xml:lang="%b">%b</%bli>' % (prefix, DEFAULT_LANGUAGE.encode(), value, prefix)


def _read_prefix(packet: bytes, element: _Element) -> bytes:
    """The prefix of an element's name with its colon; b"" if it has none."""
    prefix, colon, _ = _match_name(packet, element)[1].rpartition(b":")
    return prefix + colon


def _match_name(packet: bytes, element: _Element) -> re.Match[bytes]:
    """The beginning of an element's start tag, with its name as group 1."""
    match = _TAG_NAME.match(packet, element.start)
    assert match is not None
    return match


def _cut_attribute(packet: bytes, element: _Element) -> Iterator[_Edit]:
    """The edit that removes the attribute `dc:description` of an element, if it has it."""
    if DC_DESCRIPTION in element.attributes:
        written = f"{element.prefixes[DC_DESCRIPTION]}:description".encode()
        position = _match_name(packet, element).end()
        while attribute := _ATTRIBUTE.match(packet, position, element.content):
            position = attribute.end()
            if attribute[1] == written:
                yield attribute.start(), attribute.end(), b""


def _cut(packet: bytes, element: _Element) -> _Edit:
    """The edit that removes an element and the white space before it."""
    return _strip_space(packet, element.start), element.end, b""


def _strip_space(packet: bytes, end: int) -> int:
    """Where the white space begins that is before the position `end`."""
    while end and packet[end - 1] in b" \t\r\n":
        end -= 1
    return end


def _apply(packet: bytes, edits: Sequence[_Edit]) -> bytes:
    """The packet with all edits made; they do not overlap."""
    parts, position = [], 0
    for start, end, new in sorted(edits):
        parts += [packet[position:start], new]
        position = end
    return b"".join([*parts, packet[position:]])
