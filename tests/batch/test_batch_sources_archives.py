"""Zip and tar archives and PDF documents as inputs of batch runs: members, samples, pages, and what is broken."""

import io
import struct
import tarfile
import threading
import zipfile
from pathlib import Path

import PIL.Image
import pytest
from source_inputs import open_rows, png

from idefics.batch.sources import settings, tar, zip_and_pdf
from idefics.batch.sources.inputs import open_source
from idefics.batch.sources.settings import SourceSettings
from idefics.errors import BadPicture, MissingExtra


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)


def make_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def read_all(rows):
    return {row.name: row.media.read() for row in rows}


MEMBERS = [
    ("b.png", b"picture b"),
    ("sub/", b""),
    ("./sub/a.jpg", b"picture a"),
    ("clip.mp4", b"a video"),
    ("noted", png()),
    ("notes.md", b"text"),
    (".DS_Store", b"hidden"),
    ("__MACOSX/._b.png", b"hidden"),
]
CONTENT = {"b.png": b"picture b", "sub/a.jpg": b"picture a", "clip.mp4": b"a video", "noted": png()}


def test_a_zip():
    make_zip("photos.zip", [(name.removeprefix("./"), data) for name, data in MEMBERS])
    rows = open_rows("photos.zip")
    assert read_all(rows) == {f"photos.zip/{name}": data for name, data in CONTENT.items()}
    for row in rows:
        assert row.media.path == row.name
        assert row.media.file is None and row.media.container == Path("photos.zip")
    source = open_source(["photos.zip"], SourceSettings())
    assert source.count_rows() == 4
    list(source)
    assert source.describe_skipped() == "1 other file (.md)"


def test_the_same_archive_twice_is_read_once():
    make_zip("a.zip", [("a.png", b"1")])
    Path("b.zip").symlink_to("a.zip")
    assert [row.name for row in open_rows("a.zip", "a.zip", "b.zip")] == ["a.zip/a.png"]


def test_members_of_a_zip_are_read_in_many_threads():
    content = {f"{number}.png": bytes([number]) * 50_000 for number in range(40)}
    make_zip("many.zip", content.items())
    rows, results = open_rows("many.zip"), {}

    def read(part):
        results.update(read_all(part))

    threads = [threading.Thread(target=read, args=(rows[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {f"many.zip/{name}": data for name, data in content.items()}


def test_an_encrypted_member_is_a_row_with_an_error():
    make_zip("locked.zip", [("a.png", b"1"), ("b.png", b"2")])
    data = bytearray(Path("locked.zip").read_bytes())
    second = data.rindex(b"PK\x01\x02")
    data[second + 8] |= 1  # the flag in the central directory (APPNOTE.TXT, 4.3.12)
    Path("locked.zip").write_bytes(data)
    first, locked = open_rows("locked.zip")
    assert first.media.read() == b"1"
    assert (locked.name, locked.media) == ("locked.zip/b.png", None)
    assert locked.error == "locked.zip/b.png is encrypted: pack it without a password"


def test_a_broken_member_of_a_zip_fails_alone():
    make_zip("a.zip", [("a.png", b"A" * 1000), ("b.png", b"B" * 1000)], zipfile.ZIP_STORED)
    data = bytearray(Path("a.zip").read_bytes())
    data[data.index(b"AAAA") + 500] ^= 1
    Path("a.zip").write_bytes(data)
    broken, whole = open_rows("a.zip")
    with pytest.raises(BadPicture, match=r"^a\.zip/a\.png is broken in the zip: Bad CRC-32"):
        broken.media.read()
    assert whole.media.read() == b"B" * 1000


def test_a_zip_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(settings, "MAX_MEDIA_BYTES", 1_000_000)
    make_zip("bomb.zip", [("a.png", bytes(2_000_000)), ("b.png", bytes(2_000_000))])
    data = bytearray(Path("bomb.zip").read_bytes())
    second = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, second + 24, 1000)  # a size that is not true
    Path("bomb.zip").write_bytes(data)
    declared, lying = open_rows("bomb.zip")
    with pytest.raises(
        BadPicture, match=r"^bomb\.zip/a\.png is larger than 1,000,000 bytes: make it smaller$"
    ):
        declared.media.read()
    with pytest.raises(BadPicture, match=r"^bomb\.zip/b\.png is broken in the zip"):
        lying.media.read()


def test_a_name_that_is_twice_in_a_zip_is_the_last_one(recwarn):
    make_zip("a.zip", [("a.png", b"first"), ("a.png", b"second")])
    assert "Duplicate name" in str(recwarn.pop().message)
    (row,) = open_rows("a.zip")
    assert row.media.read() == b"second"


@pytest.mark.parametrize("name", ["cut.zip", "cut.tar", "cut.tar.gz", "cut.pdf", "cut.parquet"])
def test_a_file_that_is_no_archive_is_one_row_with_an_error_and_the_next_input_is_read(name):
    pytest.importorskip("pypdfium2")
    pytest.importorskip("pyarrow")
    Path(name).write_bytes(b"nothing of the kind")
    Path("next.png").touch()
    broken, following = open_rows(name, "next.png")
    assert broken.name == name and broken.media is None
    assert broken.error.startswith(f"{name} ") and "\n" not in broken.error
    assert following.name == "next.png"


MODES = {
    "photos.tar": "w",
    "photos.tar.gz": "w:gz",
    "photos.tgz": "w:gz",
    "photos.tar.bz2": "w:bz2",
    "photos.tar.xz": "w:xz",
}


@pytest.mark.parametrize("name", MODES)
def test_a_tar(name):
    members = [one for one in MEMBERS if not one[0].endswith("/")]
    make_tar(name, members, MODES[name])
    with tarfile.open(name) as archive:
        assert len(archive.getnames()) == 7
    rows = open_rows(name)
    assert read_all(rows) == {f"{name}/{member}": data for member, data in CONTENT.items()}
    assert {(row.media.path, row.media.file, row.media.container) for row in rows} == {
        (row.name, None, Path(name)) for row in rows
    }
    source = open_source([name], SourceSettings())
    assert source.count_rows() is None
    list(source)
    assert source.describe_skipped() == "1 other file (.md)"


def test_members_of_an_uncompressed_tar_are_read_later():
    make_tar("a.tar", [("a.png", b"first"), ("b" * 120 + ".png", b"second")])
    rows = open_rows("a.tar")
    data = Path("a.tar").read_bytes()
    Path("a.tar").write_bytes(data.replace(b"first", b"FIRST"))
    assert [row.media.read() for row in rows] == [b"FIRST", b"second"]
    Path("a.tar").write_bytes(data[:515])
    with pytest.raises(BadPicture, match=r"^a\.tar/a\.png is cut off: 3 of 5 bytes are there$"):
        rows[0].media.read()
    Path("a.tar").unlink()
    with pytest.raises(BadPicture, match=r"^a\.tar/a\.png cannot be read: No such file"):
        rows[0].media.read()


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_a_tar_that_is_cut_off_gives_what_is_there_and_an_error(suffix, share):
    import random

    random.seed(1)
    name = f"a.{suffix}"
    make_tar(
        name, [(f"{number}.png", random.randbytes(5000)) for number in range(20)], MODES[f"photos.{suffix}"]
    )
    whole = [row.name for row in open_rows(name)]
    assert len(whole) == 20
    data = Path(name).read_bytes()
    Path(name).write_bytes(data[: int(len(data) * share)])
    Path("next.png").touch()
    *rows, broken, following = open_rows(name, "next.png")
    assert [row.name for row in rows] == whole[: len(rows)]
    assert abs(len(rows) - 20 * share) <= 3
    assert broken.name == name and broken.error.startswith(
        f"{name} is broken or cut off, what follows is not read: "
    )
    assert following.name == "next.png"


@pytest.mark.parametrize("cut", [512, 1024, 1300])
def test_a_tar_without_its_end_is_cut_off(cut):
    make_tar("a.tar", [("a.png", b"1"), ("b.png", b"2")])
    Path("a.tar").write_bytes(Path("a.tar").read_bytes()[:cut])
    assert open_rows("a.tar")[-1].error


def test_a_broken_header_in_a_tar_is_an_error():
    make_tar("a.tar", [("a.png", b"1"), ("b.png", b"2"), ("c.png", b"3")])
    data = bytearray(Path("a.tar").read_bytes())
    data[1024] ^= 1
    Path("a.tar").write_bytes(data)
    first, broken = open_rows("a.tar")
    assert first.media.read() == b"1" and broken.error.startswith("a.tar is broken or cut off")


def test_names_in_a_tar_that_are_not_utf8():
    with tarfile.open("a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tarfile.TarInfo("café.png"))
    (row,) = open_rows("a.tar")
    assert row.name == row.media.path == r"a.tar/caf\udce9.png" and row.media.read() == b""


def test_links_and_devices_in_a_tar_are_skipped():
    with tarfile.open("a.tar", "w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("a.png"))
        archive.addfile(tarfile.TarInfo("a.png"))
    source = open_source(["a.tar"], SourceSettings())
    assert [row.name for row in source] == ["a.tar/a.png"]
    assert source.describe_skipped() == "1 special file, 1 picture named more than once"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_member_of_a_tar_that_is_too_large_is_a_row_with_an_error(mode, monkeypatch):
    monkeypatch.setattr(tar, "MAX_MEDIA_BYTES", 1000)
    monkeypatch.setattr(settings, "MAX_MEDIA_BYTES", 1000)
    make_tar("a.tar", [("a.png", bytes(2000)), ("b.png", b"2")], mode)
    large, small = open_rows("a.tar")
    assert large.error == "a.tar/a.png is larger than 1,000 bytes: make it smaller"
    assert small.media.read() == b"2"


SAMPLES = [
    ("train/0001.jpg", b"one"),
    ("train/0001.json", b'{"caption": "a cat", "size": [1, 2]}'),
    ("train/0001.txt", b"a cat\n"),
    ("train/0002.cls", b"7"),
    ("train/0002.left.png", b"left"),
    ("train/0002.right.png", b"right"),
    ("train/0003.json", b"{"),
    ("train/0003.jpg", b"three"),
]


@pytest.mark.parametrize("name", ["shard.tar", "shard.tar.gz"])
def test_samples_of_webdataset(name):
    make_tar(name, SAMPLES, "w:gz" if name.endswith("gz") else "w")
    one, left, right, broken = open_rows(name)
    assert (one.name, one.media.read()) == (f"{name}/train/0001.jpg", b"one")
    assert dict(one.columns) == {"caption": "a cat", "size": [1, 2], "txt": "a cat"}
    assert (left.name, left.media.read(), dict(left.columns)) == (
        f"{name}/train/0002.left.png",
        b"left",
        {"cls": "7"},
    )
    assert (right.media.read(), dict(right.columns)) == (b"right", {"cls": "7"})
    assert broken.name == f"{name}/train/0003.jpg" and broken.media is None
    assert broken.error.startswith(f"{name}/train/0003.json is not valid JSON")


def test_columns_of_webdataset_by_name():
    make_tar("shard.tar", SAMPLES)
    one, right, three = open_rows("shard.tar", image_column="right.png")
    assert right.media.read() == b"right"
    assert one.error == "shard.tar/train/0001 has no picture 'right.png'; its pictures are: jpg"
    assert three.error.startswith("shard.tar/train/0003")
    first, second, *_ = open_rows("shard.tar", id_column="txt")
    assert first.id == "a cat"
    assert second.error == "shard.tar/train/0002.left.png has no value in the id column 'txt'"


def make_pdf(path, sizes):
    """A document with a page of each size in points; the left half of each is red."""
    pdfium = pytest.importorskip("pypdfium2")
    raw = pdfium.raw
    document = pdfium.PdfDocument.new()
    for width, height in sizes:
        page = document.new_page(width, height)
        rectangle = raw.FPDFPageObj_CreateNewRect(0, 0, width / 2, height)
        raw.FPDFPageObj_SetFillColor(rectangle, 255, 0, 0, 255)
        raw.FPDFPath_SetDrawMode(rectangle, raw.FPDF_FILLMODE_ALTERNATE, False)
        raw.FPDFPage_InsertObject(page, rectangle)
        page.gen_content()
        page.close()
    document.save(path)
    document.close()


def test_a_pdf_is_a_picture_a_page():
    make_pdf("book.pdf", [(72, 36), (36, 72)])
    rows = open_rows("book.pdf")
    assert [row.name for row in rows] == ["book.pdf#page=1", "book.pdf#page=2"]
    assert open_source(["book.pdf"], SourceSettings()).count_rows() == 2
    for row, size in zip(rows, [(144, 72), (72, 144)], strict=True):
        assert (row.media.path, row.media.file, row.media.container) == (row.name, None, Path("book.pdf"))
        data = row.media.read()
        with PIL.Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", size)
            assert image.getpixel((5, 5)) == (255, 0, 0)
            assert image.getpixel((size[0] - 5, 5)) == (255, 255, 255)
    assert open_rows("book.pdf")[0].media.read() == rows[0].media.read()
    (small, _) = open_rows("book.pdf", pdf_dpi=72)
    with PIL.Image.open(io.BytesIO(small.media.read())) as image:
        assert image.size == (72, 36)


def test_pages_are_rendered_in_many_threads():
    make_pdf("book.pdf", [(72, 72)] * 12)
    rows, results = open_rows("book.pdf"), []
    threads = [threading.Thread(target=lambda row=row: results.append(row.media.read())) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 12 and len(set(results)) == 1


def test_pdfium_is_called_by_one_thread_at_a_time(monkeypatch):
    make_pdf("book.pdf", [(72, 72)])
    import pypdfium2

    opening, closing = pypdfium2.PdfDocument, pypdfium2.PdfDocument.close
    calls = []

    def open_locked(path):
        calls.append(zip_and_pdf.PDFIUM_LOCK.locked())
        return opening(path)

    def close_locked(self):
        calls.append(zip_and_pdf.PDFIUM_LOCK.locked())
        closing(self)

    monkeypatch.setattr(opening, "close", close_locked)
    monkeypatch.setattr(pypdfium2, "PdfDocument", open_locked)
    (row,) = open_source(["book.pdf"], SourceSettings())
    row.media.read()
    assert calls == [True] * 4, "opened to count its pages, closed, opened to render one, closed"
    assert not zip_and_pdf.PDFIUM_LOCK.locked()


def test_a_page_with_too_many_pixels_is_refused():
    make_pdf("poster.pdf", [(14400, 14400)])
    (row,) = open_rows("poster.pdf")
    with pytest.raises(
        BadPicture, match=r"^poster\.pdf#page=1 has 28800 x 28800 pixels at 144 pixels per inch; at most"
    ):
        row.media.read()


def test_a_pdf_without_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pypdfium2", None)
    Path("a.pdf").touch()
    with pytest.raises(
        MissingExtra, match=r"reading PDF needs an optional dependency: pip install 'idefics\[docs\]'"
    ):
        open_source(["a.pdf"], SourceSettings())
