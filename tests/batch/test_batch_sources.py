"""Inputs of batch runs that are files, folders, patterns, lists and URLs: names, order, duplicates, errors."""

import gc
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from source_inputs import FakeFetcher, open_rows, png, write

from idefics.batch.rows import Media
from idefics.batch.sources.inputs import list_source, open_source
from idefics.batch.sources.settings import SourceSettings
from idefics.errors import BadPicture, BadSetting
from idefics.processing.fetch import Fetcher


def names(*inputs, **settings):
    rows = open_rows(*inputs, **settings)
    assert not [row.error for row in rows if row.error]
    return [row.name for row in rows]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def album(folder):
    for name in ("b.png", "a.jpg", "sub/c.png", "sub/deep/d.webp", "z.gif"):
        write(f"album/{name}", name.encode())
    for name in (".hidden.png", "notes.txt", "clip.mp4", "rows.csv"):
        write(f"album/{name}")


def test_a_file_is_named_as_given_and_read_lazily():
    write("photos/a.jpg", b"bytes of a")
    (row,) = open_rows("./photos/a.jpg")
    assert (row.name, row.id, row.error, dict(row.columns)) == ("./photos/a.jpg", "", "", {})
    assert row.media.path == "./photos/a.jpg"
    assert row.media.file == row.media.container == Path("photos/a.jpg")
    assert row.media.read() == b"bytes of a"
    Path("photos/a.jpg").unlink()
    with pytest.raises(BadPicture, match=r"^\./photos/a\.jpg: no such file$"):
        row.media.read()


def test_a_file_that_turned_into_a_folder_or_is_too_large_is_refused(monkeypatch):
    write("a.jpg", b"12345")
    (row,) = open_rows("a.jpg")
    monkeypatch.setattr("idefics.batch.sources.settings.MAX_MEDIA_BYTES", 4)
    with pytest.raises(BadPicture, match=r"^a\.jpg is larger than 4 bytes: make it smaller$"):
        row.media.read()
    Path("a.jpg").unlink()
    Path("a.jpg").mkdir()
    with pytest.raises(BadPicture, match=r"^a\.jpg is not a file"):
        row.media.read()


def test_a_file_that_may_not_be_read(monkeypatch):
    write("a.jpg")
    (row,) = open_rows("a.jpg")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadPicture, match=r"^a\.jpg cannot be read: Permission denied$"):
        row.media.read()


@pytest.mark.parametrize("name", ["a.mp4", "a.HEIC", "photo", "photo.dat", "raw.nef"])
def test_files_of_every_kind_and_pictures_by_their_content(name):
    write(name, png())
    assert names(name) == [name]


def test_a_folder_gives_its_pictures_folder_by_folder(album):
    assert names("album") == [
        "album/a.jpg",
        "album/b.png",
        "album/z.gif",
        "album/sub/c.png",
        "album/sub/deep/d.webp",
    ]
    source = open_source(["album"], SourceSettings())
    assert source.describe_skipped() == ""
    assert [row.media.read() for row in source][3] == b"sub/c.png"
    assert source.describe_skipped() == "1 video (to include one, name it), 2 other files (.csv, .txt)"
    assert names("album", recursive=False) == ["album/a.jpg", "album/b.png", "album/z.gif"]


def test_a_folder_is_walked_a_folder_at_a_time(monkeypatch):
    for name in ("a/1.png", "b/1.png", "c/1.png"):
        write(f"album/{name}")
    listed, reading = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(str(path)) or reading(path))
    rows = iter(open_source(["album"], SourceSettings()))
    listed.clear()
    assert next(rows).name == "album/a/1.png"
    assert listed == ["album", "album/a"]


def test_patterns(album):
    assert names("album/*.png") == ["album/b.png"]
    assert names("album/**/*.png") == ["album/b.png", "album/sub/c.png"]
    assert names("album/s*/*.png") == ["album/sub/c.png"]
    assert names("album/s*") == ["album/sub/c.png", "album/sub/deep/d.webp"]
    assert names("album/*.mp4") == ["album/clip.mp4"], "a suffix that is written out"


def test_archives_and_tables_that_match_a_pattern_are_opened(album):
    write("album/rows.csv", b"file_name\na.jpg\nb.png\n")
    assert names("album/*.csv") == ["album/rows.csv#1", "album/rows.csv#2"]
    (row,) = open_rows("album/*.txt")
    assert row.name == "album/notes.txt" and row.error.startswith("album/notes.txt is no input that is read")


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (("album/b.png", "album", "album/b.png"), "b.png a.jpg z.gif sub/c.png sub/deep/d.webp"),
        (("album", "album/sub", "album/../album/a.jpg"), "a.jpg b.png z.gif sub/c.png sub/deep/d.webp"),
        (("album/*.png", "album/*"), "b.png a.jpg z.gif sub/c.png sub/deep/d.webp"),
        (("album/*.j*", "album/a.*", "album/?.png"), "a.jpg b.png"),
        (
            ("album", "album/clip.mp4", "album/.hidden.png"),
            "a.jpg b.png z.gif sub/c.png sub/deep/d.webp clip.mp4 .hidden.png",
        ),
    ],
)
def test_a_file_that_is_named_twice_is_one_row(inputs, expected, album):
    assert names(*inputs) == [f"album/{name}" for name in expected.split()]


def test_files_named_twice_are_counted(album):
    source = open_source(["album/a.jpg", "album/a.jpg", "album/*.jpg"], SourceSettings())
    assert len(list(source)) == 1
    assert source.describe_skipped() == "2 pictures named more than once"


def test_links(album):
    Path("album/0.png").symlink_to("sub/c.png")
    Path("album/sub/up").symlink_to("..", target_is_directory=True)
    write("elsewhere/e.png")
    Path("album/far.png").symlink_to("../elsewhere/e.png")
    Path("album/gone.png").symlink_to("nothing")
    expected = "a.jpg b.png z.gif far.png sub/c.png sub/deep/d.webp"
    assert names("album", "elsewhere") == [f"album/{name}" for name in expected.split()]
    source = open_source(["album"], SourceSettings())
    list(source)
    assert "1 link to a picture that is included anyway" in source.describe_skipped()
    assert "1 broken link" in source.describe_skipped()
    assert names("elsewhere", "album/far.png") == ["elsewhere/e.png"]


def test_a_subfolder_that_cannot_be_read_is_a_row_with_an_error(album, monkeypatch):
    reading = os.listdir

    def listdir(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return reading(path)

    monkeypatch.setattr(os, "listdir", listdir)
    *rows, last = open_rows("album")
    assert len(rows) == 3 and not any(row.error for row in rows)
    assert (last.name, last.error) == ("album/sub", "album/sub cannot be read: Permission denied")
    write("album/tail/x.png")
    assert [row.name for row in open_rows("album")][3:] == ["album/sub", "album/tail/x.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("missing.jpg", "missing.jpg: no such file"),
        ("empty", "empty: no picture in this folder"),
        ("*.jgp", "*.jgp: no file matches this pattern"),
        ("notes.txt", "notes.txt is no input that is read: give pictures, videos, folders or .zip, .pdf, "),
        ("notes.txt", "; is it a list of paths? then --from notes.txt"),
        ("ftp://example.com/a.jpg", "only http(s) ones are read"),
    ],
)
def test_what_cannot_be_read_at_all_is_refused_at_once(text, message):
    Path("empty").mkdir()
    write("notes.txt", b"text")
    write("a.png")
    with pytest.raises(BadPicture) as caught:
        open_source(["a.png", text], SourceSettings())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_no_input():
    with pytest.raises(BadPicture, match="no input given"):
        open_source([], SourceSettings())


@pytest.mark.parametrize("setting", ["image_column", "id_column"])
def test_a_column_of_inputs_without_columns_is_refused(setting, album):
    with pytest.raises(BadSetting, match=f"{setting} is 'x', but no input has columns"):
        open_source(["album"], SourceSettings(**{setting: "x"}))


def test_the_resolution_of_documents_has_a_range():
    with pytest.raises(BadSetting, match="pdf_dpi"):
        SourceSettings(pdf_dpi=0)


def test_urls_are_fetched_when_they_are_read():
    url = "https://example.com/a.jpg?size=4"
    (row, data_row) = open_rows(url, url, "data:image/png;base64,AAAA", fetcher=FakeFetcher())
    assert row.name == row.media.path == url
    assert row.media.file is None and row.media.container is None
    assert row.media.read() == f"fetched {url}".encode()
    assert data_row.name.startswith("data:image/png;base64#") and len(data_row.name) == 38
    assert open_rows("data:image/png;base64,AAAA")[0].media.read() == b"\0\0\0"
    (row,) = open_rows(url, fetcher=Fetcher(policy="off"))
    with pytest.raises(BadPicture, match="remote pictures are off"):
        row.media.read()


LIST = b"\xef\xbb\xbfalbum/b.png\r\n\nalbum/missing.png\nalbum/sub\nhttps://example.com/x.png\nalbum/b.png\nalbum/missing.png"


def test_a_list_of_paths(album):
    write("lists/list.txt", LIST)
    rows = open_rows(list_source("lists/list.txt"))
    assert [row.name for row in rows] == [
        "album/b.png",
        "album/missing.png",
        "album/sub/c.png",
        "album/sub/deep/d.webp",
        "https://example.com/x.png",
    ]
    assert [row.error for row in rows if row.error] == ["album/missing.png: no such file"]
    with pytest.raises(BadPicture, match=r"^nothing\.txt: no such file$"):
        open_source([list_source("nothing.txt")], SourceSettings())


def test_a_list_from_standard_input(album, monkeypatch):
    stdin = SimpleNamespace(buffer=io.BytesIO(b"album/b.png\nalbum/a.jpg\n"), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert names(list_source("-"), "album/b.png") == ["album/b.png", "album/a.jpg"]
    stdin.buffer.seek(0)
    assert [row.name for row in open_source(["-"], SourceSettings())] == ["album/b.png", "album/a.jpg"]
    with pytest.raises(BadPicture, match="standard input is empty"):
        list_source("-")
    stdin.isatty = lambda: True
    with pytest.raises(BadPicture, match="standard input is a terminal"):
        list_source("-")


def test_a_name_that_is_not_utf8(album):
    name = b"album/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes(b"x")
    write("list.txt", name)
    (row,) = open_rows(list_source("list.txt"))
    assert row.name == row.media.path == r"album/caf\udce9.png"
    assert row.media.file == Path(os.fsdecode(name)) and row.media.read() == b"x"
    assert open_rows(os.fsdecode(b"album/caf*"))[0].name == open_rows("album")[2].name == row.name
    Path(os.fsdecode(name)).unlink()
    with pytest.raises(BadPicture, match=r"^album/caf\\udce9\.png: no such file$"):
        row.media.read()
    (row,) = open_rows(list_source("list.txt"))
    assert (row.name, row.error) == (r"album/caf\udce9.png", r"album/caf\udce9.png: no such file")


def count_alive_rows(rows, total):
    """The most pictures of rows that were alive at once while an iterator of `total` rows was read."""
    count = most = 0
    for _ in rows:
        count += 1
        if count % 2000 == 0:
            most = max(most, sum(type(one) is Media for one in gc.get_objects()))
    assert count == total
    return most


def make_folder():
    Path("many").mkdir()
    for number in range(20_000):
        Path(f"many/{number}.png").touch()
    return "many"


def make_list():
    write("list.txt", b"".join(b"https://example.com/%d.png\n" % number for number in range(20_000)))
    return list_source("list.txt")


def make_jsonl():
    write("many.jsonl", b"".join(b'{"image": "%d.png", "n": 1}\n' % number for number in range(20_000)))
    return "many.jsonl"


def make_tar():
    import tarfile

    with tarfile.open("many.tar.gz", "w:gz", compresslevel=1) as archive:
        for number in range(20_000):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    return "many.tar.gz"


@pytest.mark.parametrize("make", [make_folder, make_list, make_jsonl, make_tar])
def test_few_rows_are_alive_at_a_time(make):
    rows = iter(open_source([make()], SourceSettings()))
    assert 0 < count_alive_rows(rows, 20_000) < 10
