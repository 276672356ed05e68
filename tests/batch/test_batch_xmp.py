"""Descriptions in the XMP of pictures: what exiftool and Pillow read, and every other byte stays as it was."""

import io
import json
import os
import random
import shutil
import stat
import struct
import subprocess
import zlib
from hashlib import sha256

import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idefics.batch.xmp import (
    embed_description,
    extract_description,
    prepare_description,
    read_description,
)
from idefics.errors import BadPicture, OutputError
from processing.pictures_tiny import encode_picture, random_picture

needs_exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="no exiftool here")

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
TEXTS = {
    "ascii": "A cat on a mat.",
    "unicode": "Ein Kätzchen, 猫, кот, \u05d7\u05ea\u05d5\u05dc",
    "emoji": "two cats 🐈\u200d⬛🐈 and 👩\u200d👧",
    "lines": "first line\nsecond line\r\nthird\ttab",
    "markup": "<b>&amp; \"quoted\" & 'single' ]]> &#65;</b>",
    "long": "word " * 799 + "word.",
    "spaces": "  kept  inside  and around  ",
}
SMALL = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def packet_with(inside, before="", after=""):
    """An XMP packet with these elements in its rdf:RDF."""
    head = f'{before}<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">'
    return f"{head}{inside}</rdf:RDF></x:xmpmeta>{after}".encode()


RICH_PACKET = packet_with(
    f'<!-- kept --><rdf:Description rdf:about="uuid:1" xmlns:a="{DC}" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
    ' xmp:Rating="4">\n  <a:subject><rdf:Bag><rdf:li>cat &amp; dog</rdf:li></rdf:Bag></a:subject>\n'
    '  <a:description><rdf:Alt>\n   <rdf:li xml:lang="de">Ein Bild</rdf:li>\n'
    '   <rdf:li xml:lang="X-Default">old text</rdf:li>\n  </rdf:Alt></a:description></rdf:Description>',
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n',
    "\n" + (" " * 99 + "\n") * 20 + '<?xpacket end="w"?>',
)


def exif_of_canon():
    exif = PIL.Image.Exif()
    exif[0x010F], exif[0x010E], exif[0x0112] = "Canon", "old caption", 6
    return exif


def make_picture(kind, xmp=None):
    """A picture file of one of `KINDS`, with an XMP packet if one is given."""
    format, _, variant = kind.partition(" ")
    more = {"xmp": xmp} if xmp else {}
    if format == "JPEG":
        icc = b"\0\0\0\x80" + bytes(range(124))
        return encode_picture(
            random_picture("RGB"), "JPEG", exif=exif_of_canon(), icc_profile=icc, comment=b"hello", **more
        )
    if format == "PNG":
        data = encode_picture(
            random_picture("P" if variant else "RGB"), "PNG", exif=exif_of_canon(), dpi=(72, 72)
        )
        return data if xmp is None else insert_chunk(data, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    mode = "RGBA" if variant in ("alpha", "animated") else "RGB"
    frames = {"save_all": True, "append_images": [random_picture("RGBA", (37, 23)).rotate(180)]}
    options = {"lossless": bool(variant), **(frames if variant == "animated" else {}), **more}
    if variant == "alpha":
        options["exif"] = exif_of_canon()
    return encode_picture(random_picture(mode), "WEBP", **options)


def insert_chunk(png, type, content):
    """A PNG file with another chunk after IHDR."""
    body = type + content
    chunk = struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + chunk + png[33:]


KINDS = ["JPEG", "PNG", "PNG palette", "WebP", "WebP lossless", "WebP alpha", "WebP animated"]
SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WebP": ".webp"}


def decode(data):
    """Everything Pillow reads of a file but its XMP: pixels of all frames, EXIF, profile, comment, size, mode."""
    frames = []
    with PIL.Image.open(io.BytesIO(data)) as image:
        names = ("exif", "icc_profile", "comment", "dpi", "jfif", "transparency", "duration", "loop")
        metadata = {name: image.info.get(name) for name in names}
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append((image.mode, image.size, image.convert("RGBA").tobytes()))
        return frames, metadata, image.getexif().tobytes()


def run_exiftool(*arguments):
    done = subprocess.run(["exiftool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def exiftool_description(path):
    (record,) = json.loads(run_exiftool("-j", "-XMP-dc:Description", path))
    return record.get("Description")


@needs_exiftool
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_exiftool_reads_the_text(kind, text, tmp_path):
    path = tmp_path / f"a{SUFFIX[kind]}"
    path.write_bytes(embed_description(make_picture(kind), text))
    assert exiftool_description(path) == text
    assert read_description(path) == text


@needs_exiftool
@pytest.mark.parametrize("xmp", [None, RICH_PACKET], ids=["without XMP", "with XMP"])
@pytest.mark.parametrize("kind", KINDS)
def test_exiftool_finds_no_fault(kind, xmp, tmp_path):
    """And what it warned about before is all that it warns about after."""
    old, new = (tmp_path / f"{name}{SUFFIX[kind.split()[0]]}" for name in ("old", "new"))
    old.write_bytes(make_picture(kind, xmp))
    new.write_bytes(embed_description(old.read_bytes(), TEXTS["markup"]))
    before, after = (
        json.loads(run_exiftool("-validate", "-warning", "-error", "-a", "-j", one))[0] for one in (old, new)
    )
    del before["SourceFile"], after["SourceFile"]
    assert after == before
    assert exiftool_description(new) == TEXTS["markup"]


@needs_exiftool
def test_properties_that_exiftool_wrote_stay(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(make_picture("JPEG"))
    run_exiftool(
        "-q",
        "-overwrite_original",
        "-IPTC:Caption-Abstract=iptc text",
        "-IPTC:Keywords=cat",
        "-XMP-dc:Description=old",
        "-XMP-dc:Description-fr=une image",
        "-XMP-dc:Subject=cat",
        "-XMP-dc:Title=A title",
        "-XMP:Rating=3",
        path,
    )
    before = json.loads(run_exiftool("-j", "-a", "-G1", "-n", path))[0]
    new = embed_description(path.read_bytes(), "new <text>")
    path.write_bytes(new)
    after = json.loads(run_exiftool("-j", "-a", "-G1", "-n", path))[0]
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert {key for key in changed if not key.startswith(("System:", "ExifTool:"))} == {"XMP-dc:Description"}
    assert after["XMP-dc:Description"] == "new <text>"
    assert after["XMP-dc:Description-fr"] == "une image"


@pytest.mark.parametrize("xmp", [None, RICH_PACKET], ids=["without XMP", "with XMP"])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_and_other_metadata_stay(kind, xmp):
    old = make_picture(kind, xmp)
    new = embed_description(old, "a text")
    assert decode(new) == decode(old)
    assert extract_description(new) == "a text"
    assert extract_description(old) == (None if xmp is None else "old text")


@pytest.mark.parametrize("kind", KINDS)
def test_writing_again_replaces_the_text(kind):
    once = embed_description(make_picture(kind), "first")
    assert embed_description(once, "first") == once
    other = embed_description(once, "second, longer")
    assert extract_description(other) == "second, longer"
    assert b"first" not in other
    assert embed_description(other, "first") == once


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP alpha"])
def test_an_existing_packet_keeps_every_other_byte(kind):
    new = embed_description(make_picture(kind, RICH_PACKET), "new & text")
    expected = RICH_PACKET.replace(b'\n   <rdf:li xml:lang="X-Default">old text</rdf:li>', b"").replace(
        b'<rdf:li xml:lang="de">',
        b'<rdf:li xml:lang="x-default">new &amp; text</rdf:li><rdf:li xml:lang="de">',
    )
    assert expected in new
    assert embed_description(new, "new & text") == new


def item(text, language="x-default"):
    return f'<rdf:li xml:lang="{language}">{text}</rdf:li>'


def described(inside, attributes=""):
    return f'<rdf:Description rdf:about="" xmlns:dc="{DC}" {attributes}>{inside}</rdf:Description>'


def nested(inside):
    """A structure that holds a description of something else."""
    return (
        f'<m:Part xmlns:m="urn:m" rdf:parseType="Resource"><dc:description>{inside}</dc:description></m:Part>'
    )


PACKETS = {
    "no description": ("", None),
    "empty property": (described("<dc:description/>"), None),
    "white space": (described("<dc:description> \n </dc:description>"), None),
    "no items": (described("<dc:description><rdf:Alt/></dc:description>"), None),
    "an attribute": ('<rdf:Description xmlns:q="' + DC + '" q:description="a &lt; b" about="q"/>', "a < b"),
    "plain text": (described('<dc:description xml:lang="x-default">plain</dc:description>'), "plain"),
    "a bag": (
        described("<dc:description><rdf:Bag><rdf:li>in bag</rdf:li></rdf:Bag></dc:description>"),
        "in bag",
    ),
    "no language": (
        described("<dc:description><rdf:Alt><rdf:li>none</rdf:li></rdf:Alt></dc:description>"),
        "none",
    ),
    "one language": (
        described(f"<dc:description><rdf:Alt>{item('de', 'de')}</rdf:Alt></dc:description>"),
        "de",
    ),
    "twice the default": (
        described(f"<dc:description><rdf:Alt>{item('1')} {item('2')}</rdf:Alt></dc:description>"),
        "1",
    ),
    "two descriptions": (
        described(f"<dc:description><rdf:Alt>{item('1')}</rdf:Alt></dc:description>")
        + described("<dc:description>2</dc:description>"),
        "1",
    ),
    "inside a structure": (described(nested("of a part")), None),
}


def default_texts(packet):
    """What a strict reader finds: the texts of x-default of all top-level descriptions, and of other languages."""
    from xml.etree import ElementTree

    found = []
    for description in ElementTree.fromstring(packet.strip(b"\0")).iter(f"{{{RDF}}}Description"):
        assert f"{{{DC}}}description" not in description.attrib
        for element in description.findall(f"{{{DC}}}description"):
            items = element.findall(f"./{{{RDF}}}Alt/{{{RDF}}}li")
            assert len(element) == 1 and (element.text or "").strip() == ""
            found.append(
                [(one.attrib["{http://www.w3.org/XML/1998/namespace}lang"], one.text) for one in items]
            )
    return found


@pytest.mark.parametrize("name", PACKETS)
def test_every_way_to_write_a_description(name):
    inside, text = PACKETS[name]
    old = make_picture("PNG", packet_with(inside))
    assert extract_description(old) == text
    new = embed_description(old, "new")
    assert extract_description(new) == "new"
    start = new.index(b"<x:xmpmeta")
    packet = new[start : new.index(b"</x:xmpmeta>") + len(b"</x:xmpmeta>")]
    languages = [("de", "de")] if name == "one language" else []
    assert default_texts(packet) == [[("x-default", "new"), *languages]]
    assert embed_description(new, "new") == new
    assert (b"of a part" in new) == (name == "inside a structure")


def test_an_empty_rdf_element_is_opened():
    old = make_picture("PNG", f"<r:RDF xmlns:r='{RDF}'/>".encode())
    new = embed_description(old, "new")
    assert extract_description(new) == "new"
    assert b"</rdf:Description>\n</r:RDF>" in new


def test_a_new_description_is_about_the_same_thing():
    old = make_picture("PNG", packet_with("<rdf:Description rdf:about='uuid:a&amp;b'/>"))
    assert embed_description(old, "new").count(b"uuid:a&amp;b") == 2


LAUGHS = (
    b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">&b;</x:xmpmeta>'
)


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (LAUGHS, "its XMP has a document type declaration, which XMP does not allow: it is not read"),
        (b'<x xmlns="urn:x"/>', "its XMP has no rdf:RDF element: repair it with another program"),
        (b"<x><y></x>", "its XMP is broken: mismatched tag: line 1, column 8"),
        (b"<x>\xff</x>", "its XMP is broken: not well-formed (invalid token): line 1, column 3"),
        (b" " * 4_000_001 + b"x", "its XMP has 4,000,002 bytes; at most 4,000,000 are read"),
    ],
    ids=["entities", "no RDF", "mismatch", "not UTF-8", "too large"],
)
def test_packets_that_are_refused(packet, message):
    data = make_picture("PNG", packet)
    for call in (extract_description, lambda data: embed_description(data, "text")):
        with pytest.raises(BadPicture) as caught:
            call(data)
        assert str(caught.value) == message


def test_a_blank_packet_counts_as_none():
    data = make_picture("PNG", b"  \n")
    assert extract_description(data) is None
    assert extract_description(embed_description(data, "new")) == "new"


def test_characters_that_xml_lacks_are_left_out():
    data = embed_description(make_picture("PNG"), "a\0b\x1bc\ud800d\ufffee")
    assert extract_description(data) == "abcde"


def test_the_new_segment_of_a_jpeg_follows_jfif_and_exif():
    new = embed_description(make_picture("JPEG"), "text")
    names = [
        new.index(name)
        for name in (b"JFIF\0", b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0")
    ]
    assert names == sorted(names)


def test_a_jpeg_has_room_for_65_502_bytes_of_xmp():
    data = make_picture("JPEG")
    overhead = len(embed_description(data, "")) - len(data) - 33  # 33: marker, length and name of the segment
    longest = "x" * (65_502 - overhead)
    new = embed_description(data, longest)
    assert extract_description(new) == longest
    assert decode(new) == decode(data)
    with pytest.raises(BadPicture, match="its XMP has 65,503 bytes; a JPEG holds 65,502: use --sidecar xmp"):
        embed_description(data, longest + "xx")  # a line break before the packet's end gives way to one


def test_padding_makes_room_in_a_jpeg():
    padded = packet_with(described(""), after=" " * 60_000 + '<?xpacket end="w"?>')
    new = embed_description(make_picture("JPEG", padded), "y" * 40_000)
    assert extract_description(new) == "y" * 40_000
    start = new.index(b"http://ns.adobe.com/xap/1.0/\0") - 4
    assert new[start : start + 4] == b"\xff\xe1" + (2 + 29 + 65_502).to_bytes(2)
    assert b' <?xpacket end="w"?>' in new


def test_extended_xmp_stays():
    extension = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">II", 7, 0) + b"<a>b</a"
    segment = b"\xff\xe1" + struct.pack(">H", len(extension) + 2) + extension
    plain = make_picture("JPEG")
    data = plain[:20] + segment + plain[20:]
    new = embed_description(data, "text")
    assert segment in new
    assert extract_description(data) is None
    assert extract_description(new) == "text"


@pytest.mark.parametrize("has_packet_after_index", [False, True])
def test_further_pictures_of_a_jpeg_are_found(has_packet_after_index):
    """An MPO file, as stereo cameras and phones write it, with the XMP before and after the index of its pictures."""
    first, second = random_picture("RGB", (32, 24)), random_picture("RGB", (16, 8))
    data = encode_picture(first, "MPO", save_all=True, append_images=[second], exif=exif_of_canon())
    if has_packet_after_index:
        index = data.index(b"MPF\0")
        header, end = index + 4, index - 2 + int.from_bytes(data[index - 2 : index])
        content = b"http://ns.adobe.com/xap/1.0/\0" + packet_with("")
        segment = b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
        order = "<" if data[header : header + 2] == b"II" else ">"
        size, offset = (data.index(b"\xff\xd8", end), data.index(b"\xff\xd8", end) - header)
        changed = data.replace(
            struct.pack(f"{order}I", offset), struct.pack(f"{order}I", offset + len(segment)), 1
        ).replace(struct.pack(f"{order}I", size), struct.pack(f"{order}I", size + len(segment)), 1)
        data = changed[:end] + segment + changed[end:]
    with PIL.Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
    new = embed_description(data, "a text")
    assert decode(new)[0] == decode(data)[0]
    assert len(decode(new)[0]) == 2
    with PIL.Image.open(io.BytesIO(new)) as image:
        first_size = image.mpinfo[0xB002][0]["Size"]
        assert new[first_size : first_size + 2] == b"\xff\xd8"  # where the second one begins


def test_compressed_text_of_a_png_is_read():
    packet = packet_with(described("<dc:description>compressed</dc:description>"))
    data = insert_chunk(
        make_picture("PNG"), b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0translated\0" + zlib.compress(packet)
    )
    assert extract_description(data) == "compressed"
    assert extract_description(embed_description(data, "new")) == "new"


def test_large_compressed_text_is_not_expanded():
    bomb = zlib.compress(b"x" * 50_000_000)
    data = insert_chunk(make_picture("PNG"), b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb)
    with pytest.raises(BadPicture, match="its XMP has 4,000,001 bytes; at most 4,000,000 are read"):
        extract_description(data)


def test_a_wrong_checksum_is_refused():
    data = bytearray(embed_description(make_picture("PNG"), "some text"))
    data[data.index(b"some text")] ^= 1
    with pytest.raises(BadPicture, match="broken PNG: the checksum of its XMP is wrong"):
        extract_description(bytes(data))


def test_bytes_after_the_picture_stay():
    for kind in ("JPEG", "PNG", "WebP"):
        new = embed_description(make_picture(kind) + b"trailer of a phone", "text")
        assert new.endswith(b"trailer of a phone")
        assert extract_description(new) == "text"


def test_the_flags_of_webp():
    """VP8X: RFC 9649, 2.7: flags, then width and height less one in three bytes each."""
    for kind, flags in {"WebP": 0x04, "WebP lossless": 0x04, "WebP alpha": 0x04 | 0x10 | 0x08}.items():
        new = embed_description(make_picture(kind), "text")
        assert new[12:16] == b"VP8X"
        assert new[20:30] == bytes([flags, 0, 0, 0, 36, 0, 0, 22, 0, 0])
        assert int.from_bytes(new[4:8], "little") == len(new) - 8
    transparent = encode_picture(random_picture("RGBA"), "WEBP", lossless=True)
    assert transparent[12:16] == b"VP8L"
    assert embed_description(transparent, "text")[20] == 0x04 | 0x10


def test_a_webp_file_that_lacks_its_last_byte_of_padding():
    padded = make_picture("WebP") + b"EXIF" + struct.pack("<I", 3) + b"abc"
    data = b"RIFF" + struct.pack("<I", len(padded) - 8) + padded[8:]
    new = embed_description(data, "text")
    assert extract_description(new) == "text"
    assert b"EXIF\3\0\0\0abc\0XMP " in new


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP alpha"])
def test_several_packets_are_refused(kind):
    once = embed_description(make_picture(kind), "text")
    match kind:
        case "JPEG":
            start = once.index(b"http://ns.adobe.com/xap/1.0/\0") - 4
            end = start + 2 + int.from_bytes(once[start + 2 : start + 4])
            twice = once[:end] + once[start:]
        case "PNG":
            twice = insert_chunk(once, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet_with(""))
        case _:
            chunk = once[once.rindex(b"XMP ") :]
            twice = b"RIFF" + struct.pack("<I", len(once) - 8 + len(chunk)) + once[8:] + chunk
    assert extract_description(twice) in ("text", None)
    with pytest.raises(
        BadPicture, match=r"it has (2|several) XMP packets, and one is allowed: use --sidecar xmp"
    ):
        embed_description(twice, "new")


@pytest.mark.parametrize(
    ("format", "title"), [("GIF", "GIF"), ("BMP", "BMP"), ("TIFF", "TIFF"), ("AVIF", "AVIF")]
)
def test_other_formats_are_refused(format, title, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode_picture(random_picture("RGB"), format))
    for call in (read_description, lambda path: prepare_description(path, "text")):
        with pytest.raises(BadPicture) as caught:
            call(path)
        assert str(caught.value) == (
            f"{path}: descriptions are read and written in JPEG, PNG and WebP, not in {title}: use --sidecar xmp"
        )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b"hello", "the file is no picture: JPEG, PNG and WebP can hold a description"),
        (b"\xff\xd8\xff", "broken JPEG: no marker at byte 2"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "broken JPEG: the segment at byte 2 does not end in the file"),
        (b"\xff\xd8\xff\xe0\0\1\xff\xda\0\0", "broken JPEG: the segment at byte 2 does not end in the file"),
        (b"\x89PNG\r\n\x1a\n\0\0", "broken PNG: the chunk at byte 8 does not end in the file"),
        (b"RIFF\x64\0\0\0WEBP", "broken WebP: it has 12 of 108 bytes"),
        (b"RIFF\x04\0\0\0WEBP", "broken WebP: it has no chunks"),
        (b"RIFF\x0d\0\0\0WEBPVP8 \x64\0\0\0x", "broken WebP: the chunk at byte 12 does not end in the file"),
        (b"RIFF\x0e\0\0\0WEBPVP8 \x02\0\0\0ab", "broken WebP: its pixels have no header"),
        (
            b"RIFF\x16\0\0\0WEBPVP8 \x0a\0\0\0abc\x9d\x01\x2a\x00\x00\x01\x00",
            "broken WebP: it has 0 x 1 pixels",
        ),
    ],
)
def test_broken_files_are_named(content, reason, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(BadPicture) as caught:
        prepare_description(path, "text")
    assert str(caught.value) == f"{path}: {reason}"
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == content


@settings(SMALL, max_examples=150)
@given(kind=st.sampled_from(["JPEG", "PNG", "WebP", "WebP alpha"]), text=st.text(max_size=300))
def test_any_text_comes_back(kind, text):
    legal = "".join(one for one in text if one in "\t\n\r" or (one >= " " and one not in "\ufffe\uffff"))
    new = embed_description(make_picture(kind), text)
    assert extract_description(new) == (legal if legal.strip() else None)
    assert decode(new)[0] == decode(make_picture(kind))[0]


@settings(SMALL, max_examples=300)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WebP", "WebP alpha", "WebP animated"]),
    with_xmp=st.booleans(),
    seed=st.integers(0, 2**32),
    cut=st.booleans(),
)
def test_broken_bytes_raise_nothing_else(kind, with_xmp, seed, cut):
    draw = random.Random(seed)
    data = bytearray(make_picture(kind, RICH_PACKET if with_xmp else None))
    for _ in range(draw.randrange(1, 6)):
        data[draw.randrange(min(len(data), draw.choice((64, 400, 10**6))))] = draw.choice(
            (0, 255, draw.randrange(256))
        )
    if cut:
        del data[draw.randrange(len(data)) :]
    before = bytes(data)
    try:
        new = embed_description(before, "text")
    except BadPicture:
        return
    assert extract_description(new) == "text"
    assert len(new) > len(before) - len(RICH_PACKET)


def picture_file(folder, kind="JPEG"):
    path = folder / f"picture{SUFFIX[kind]}"
    path.write_bytes(make_picture(kind))
    os.utime(path, ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    path.chmod(0o640)
    return path


def test_a_prepared_file_replaces_the_picture(tmp_path):
    path = picture_file(tmp_path)
    old = path.read_bytes()
    os.utime(path, ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    prepared = prepare_description(path, "text", size=len(old), mtime_ns=1_100_000_000_987_654_321)
    assert path.read_bytes() == old
    assert prepared.path == path
    assert prepared.temporary.parent == tmp_path
    assert prepared.temporary.name.startswith(".idefics-") and prepared.temporary.suffix == ".tmp"
    assert prepared.sha256 == sha256(embed_description(old, "text")).digest()
    prepared.commit()
    status = path.stat()
    assert path.read_bytes() == embed_description(old, "text")
    assert read_description(path) == "text"
    path_times = (status.st_atime_ns, status.st_mtime_ns)
    assert path_times == (1_000_000_000_123_456_789, 1_100_000_000_987_654_321)
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_the_owner_is_kept_where_that_is_allowed(tmp_path, monkeypatch):
    path = picture_file(tmp_path)
    owners = []

    def refuse(path, user, group):
        owners.append((path.parent, user, group))
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    prepare_description(path, "text").commit()
    assert owners == [(tmp_path, path.stat().st_uid, path.stat().st_gid)]
    assert read_description(path) == "text"


def test_a_discarded_file_leaves_the_picture(tmp_path):
    path = picture_file(tmp_path)
    old = path.read_bytes()
    prepare_description(path, "text").discard()
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_the_target_of_a_link_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    path, link = picture_file(tmp_path / "far"), tmp_path / "link.jpg"
    link.symlink_to("far/picture.jpg")
    prepared = prepare_description(link, "text")
    assert prepared.path == path
    prepared.commit()
    assert link.is_symlink()
    assert read_description(path) == "text"


@pytest.mark.parametrize("known", [{"size": 5}, {"mtime_ns": 5}])
def test_a_picture_that_changed_after_it_was_read_is_left(known, tmp_path):
    path = picture_file(tmp_path)
    with pytest.raises(BadPicture, match=r"picture.jpg has changed since it was read: run again"):
        prepare_description(path, "text", **known)


def test_a_picture_that_changes_before_the_commit_is_left(tmp_path):
    path = picture_file(tmp_path)
    prepared = prepare_description(path, "text")
    path.write_bytes(b"edited")
    with pytest.raises(OutputError, match=r"picture.jpg: another program has changed it: run again"):
        prepared.commit()
    assert path.read_bytes() == b"edited"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_cannot_be_replaced(tmp_path):
    path = picture_file(tmp_path)
    path.chmod(0o444)
    with pytest.raises(OutputError, match=r"picture.jpg: it is read-only: allow writing, or leave it out"):
        prepare_description(path, "text")
    with pytest.raises(BadPicture, match=r"absent.jpg: no such file"):
        prepare_description(tmp_path / "absent.jpg", "text")
    with pytest.raises(BadPicture, match="is not a file: folders and devices are not read"):
        read_description(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_picture(tmp_path, monkeypatch):
    path = picture_file(tmp_path)
    old = path.read_bytes()

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        OutputError, match=r"cannot write .*picture.jpg: disk full \([\d,]+ bytes free\): make room"
    ):
        prepare_description(path, "text")
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
