"""Tables, imagefolders and data sets as inputs of batch runs: columns, cells of every kind, and what is broken."""

import base64
import json
import sys
from pathlib import Path

import pytest
from source_inputs import FakeFetcher, open_rows, png, write

from idefics.batch.sources import text_tables
from idefics.batch.sources.hub_dataset import HubReader
from idefics.batch.sources.inputs import list_source, open_source
from idefics.batch.sources.settings import SourceSettings
from idefics.batch.sources.text_tables import is_openai_batch
from idefics.errors import BadPicture, BadSetting, MissingExtra


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_lines(path, *records):
    write(path, b"".join(json.dumps(record).encode() + b"\n" for record in records))


def test_jsonl_rows():
    write("data/photos/a.jpg", b"bytes of a")
    write_lines(
        "data/rows.jsonl",
        {"image": "photos/a.jpg", "item": "cup", "n": 3, "tags": ["x"]},
        {"image": "https://example.com/b.jpg"},
    )
    first, second = open_rows("data/rows.jsonl", fetcher=FakeFetcher())
    assert (first.name, first.id, first.error) == ("data/rows.jsonl#1", "", "")
    assert dict(first.columns) == {"item": "cup", "n": 3, "tags": ["x"]}
    assert first.media.path == "data/photos/a.jpg"
    assert first.media.file == first.media.container == Path("data/photos/a.jpg")
    assert first.media.read() == b"bytes of a"
    assert second.media.path == "https://example.com/b.jpg"
    assert second.media.file is None and second.media.container is None
    assert second.media.read() == b"fetched https://example.com/b.jpg"


@pytest.mark.parametrize(
    "value",
    [
        base64.b64encode(png()).decode(),
        f"data:image/png;base64,{base64.b64encode(png()).decode()}",
        {"bytes": None, "path": "a.png"},
        {"path": "a.png"},
    ],
)
def test_cells_of_every_kind(value):
    write("data/a.png", png())
    write_lines("data/rows.jsonl", {"image": value})
    (row,) = open_rows("data/rows.jsonl")
    assert row.media.read() == png()
    is_file = isinstance(value, dict)
    assert row.media.path == ("data/a.png" if is_file else "data/rows.jsonl#1")
    assert row.media.file == (Path("data/a.png") if is_file else None)
    assert row.media.container == Path("data/a.png" if is_file else "data/rows.jsonl")


def test_rows_that_cannot_be_read_are_errors():
    lines = [
        b'\xef\xbb\xbf{"image": "a.png", "id": 7}',
        b'{"image": "b.png"',
        b"",
        b"[1, 2]",
        b'{"image": "", "id": 1}',
        b'{"id": 1}',
        b'{"image": 3, "id": 1}',
        b'{"image": "\xff", "id": 1}',
        b'{"image": "c.png"}',
        b'{"image": "' + b"not base64! " * 500 + b'", "id": 1}',
        b'{"image": "d.png", "id": "last"}',
    ]
    write("rows.jsonl", b"\n".join(lines))
    rows = open_rows("rows.jsonl", id_column="id")
    assert [row.id for row in rows] == ["7", *[""] * 8, "last"]
    assert [row.name for row in rows] == [f"rows.jsonl#{number}" for number in range(1, 11)]
    starts = [
        "",
        "rows.jsonl#2 is not valid JSON: ",
        "rows.jsonl#3 is no JSON object",
        "rows.jsonl#4 has no picture: its cell is empty",
        "rows.jsonl#5 has no picture: its cell is empty",
        "rows.jsonl#6 has an int as picture: give a path",
        "rows.jsonl#7 is not UTF-8: save the file as UTF-8",
        "rows.jsonl#8 has no value in the id column 'id'",
        "rows.jsonl#9 has a picture text of 6,000 characters",
        "",
    ]
    for row, start in zip(rows, starts, strict=True):
        assert row.error.startswith(start) and bool(row.error) == bool(start)
        assert (row.media is None) == bool(start)
    assert dict(rows[3].columns) == {"id": 1}


@pytest.mark.parametrize("path", ["a\0.png", "a\ud800.png"])
def test_a_path_that_no_file_can_have(path):
    write_lines("photos/metadata.jsonl", {"file_name": path}, {"file_name": "b.png"})
    first, second = open_rows("photos")
    assert first.error.startswith("photos/metadata.jsonl#1 has 'a") and first.error.isprintable()
    assert second.media.path == "photos/b.png"


def test_the_columns_that_may_be_the_picture_have_an_order():
    columns = ["url", "path", "file_name", "image_path", "image"]
    for number in range(1, 6):
        write_lines("rows.jsonl", {column: f"{column}.png" for column in columns[:number]})
        (row,) = open_rows("rows.jsonl")
        assert row.media.path == f"{columns[number - 1]}.png"
        assert list(row.columns) == columns[: number - 1]
    (row,) = open_rows("rows.jsonl", image_column="path")
    assert row.media.path == "path.png" and "image" in row.columns


@pytest.mark.parametrize("setting", ["image_column", "id_column"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_missing_column_is_refused_at_once(setting, name):
    write("rows.jsonl", b'{"image": "a.png", "key": 1}\n')
    write("rows.csv", b"image,key\na.png,1\n")
    with pytest.raises(BadSetting, match=rf"^{name} has no column 'foto' \({setting}\); it has image, key$"):
        open_source([name], SourceSettings(**{setting: "foto"}))


def test_a_table_without_a_column_for_the_picture_is_refused_at_once():
    write("rows.csv", b"foto,key\na.png,1\n")
    message = (
        "rows.csv has no column image, image_path, file_name, path or url; it has foto, key: name the one with the "
        "pictures with image_column"
    )
    with pytest.raises(BadSetting) as caught:
        open_source(["rows.csv"], SourceSettings())
    assert str(caught.value) == message
    write("list/rows.csv", b"foto\na.png\n")
    (row,) = open_rows("list/*.csv")
    assert row.name == "list/rows.csv" and "it has foto" in row.error


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.csv"])
def test_an_empty_table_has_no_rows(name):
    Path(name).touch()
    assert open_rows(name) == []


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_rows(separator):
    text = '\ufeffimage,caption,n\na.png,"two, or\nthree",4\n\nb.png,"say ""hi""",\nc.png,few\nd.png,x,y,z\n'
    write("rows.csv", text.replace(",", separator).encode())
    rows = open_rows("rows.csv", id_column="caption")
    assert [row.name for row in rows] == [f"rows.csv#{number}" for number in range(1, 5)]
    assert dict(rows[0].columns) == {"caption": f"two{separator} or\nthree", "n": "4"}
    assert rows[0].id == f"two{separator} or\nthree" and rows[0].media.path == "a.png"
    assert dict(rows[1].columns) == {"caption": 'say "hi"', "n": ""}
    assert rows[2].error.startswith("rows.csv#3 has 2 values, but the header has 3")
    assert rows[3].error.startswith("rows.csv#4 has 4 values, but the header has 3")


def test_csv_with_other_bytes_and_large_cells():
    picture = png() + bytes(200_000)
    cell = base64.b64encode(picture)
    write("rows.csv", b"image,caption\na.png,caf\xe9\n" + cell + b",large\n")
    latin, large = open_rows("rows.csv")
    assert latin.error == "rows.csv#1 is not text in UTF-8: save the table as UTF-8"
    assert large.media.read() == picture


def test_a_malformed_csv_row_is_an_error(monkeypatch):
    monkeypatch.setattr(text_tables, "MAX_FIELD_CHARACTERS", 10)
    limit = text_tables.csv.field_size_limit(10)
    try:
        write("rows.csv", b"image,n\na.png,1\n" + b"x" * 30 + b",2\nc.png,3\n")
        first, broken, last = open_rows("rows.csv")
    finally:
        text_tables.csv.field_size_limit(limit)
    assert first.media.path == "a.png" and last.media.path == "c.png"
    assert broken.error.startswith("rows.csv#2 is not valid CSV: field larger than field limit")


def test_two_columns_of_one_name_are_refused():
    write("rows.csv", b"image,n,n\na.png,1,2\n")
    with pytest.raises(BadSetting, match=r"^rows\.csv has two columns 'n': rename one$"):
        open_source(["rows.csv"], SourceSettings())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'\n{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n', True),
        (b'{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}\n', False),
        (b'{"image": "a.png"}\n', False),
        (b"no json\n", False),
        (b"", False),
    ],
)
def test_batch_files_of_openai_are_told_apart(line, expected):
    write("batch.jsonl", line)
    assert is_openai_batch("batch.jsonl") is expected
    assert not is_openai_batch("missing.jsonl")


def write_parquet(path, columns, metadata=None, **options):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table(columns)
    parquet.write_table(table.replace_schema_metadata(metadata), path, **options)


def test_parquet_of_paths_urls_and_bytes():
    write_parquet("rows.parquet", {"image": ["a.png", "https://example.com/b.png", None], "n": [1, 2, 3]})
    first, second, third = open_rows("rows.parquet", id_column="n")
    assert open_source(["rows.parquet"], SourceSettings()).count_rows() == 3
    assert (first.name, first.id, first.media.path, dict(first.columns)) == (
        "rows.parquet#1",
        "1",
        "a.png",
        {"n": 1},
    )
    assert second.media.path == "https://example.com/b.png"
    assert third.error == "rows.parquet#3 has no picture: its cell is empty"
    write_parquet("bytes.parquet", {"image": [png()], "n": [1]})
    (row,) = open_rows("bytes.parquet")
    assert row.media.read() == png()
    assert (row.media.path, row.media.file, row.media.container) == (
        "bytes.parquet#1",
        None,
        Path("bytes.parquet"),
    )


def test_parquet_of_hugging_face():
    features = {"label": {"_type": "Value"}, "photo": {"_type": "Image"}}
    write_parquet(
        "rows.parquet",
        {
            "image": ["not this", "nor this"],
            "photo": [{"bytes": png(), "path": "x.png"}, {"bytes": None, "path": "y.png"}],
        },
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    first, second = open_rows("rows.parquet")
    assert first.media.read() == png() and dict(first.columns) == {"image": "not this"}
    assert second.media.path == "y.png"
    (other, _) = open_rows("rows.parquet", image_column="image")
    assert other.media.path == "not this"


def test_a_parquet_file_that_breaks_in_the_middle():
    write_parquet(
        "rows.parquet", {"image": [f"{number:0200}" for number in range(400)]}, row_group_size=100, compression="none",
        use_dictionary=False,
    )  # fmt: skip
    data = bytearray(Path("rows.parquet").read_bytes())
    start = data.index(b"0" * 197 + b"200")  # in the header of the first page of the third group
    data[start - 30 : start + 30] = b"\xff" * 60
    Path("rows.parquet").write_bytes(data)
    write("next.png")
    *rows, broken, following = open_source(["rows.parquet", "next.png"], SourceSettings())
    assert [row.name for row in rows] == [f"rows.parquet#{number}" for number in range(1, 201)]
    assert broken.name == "rows.parquet" and following.name == "next.png"
    assert broken.error.startswith("rows.parquet cannot be read as Parquet: Couldn't deserialize thrift")


def test_parquet_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    Path("a.parquet").touch()
    with pytest.raises(
        MissingExtra, match=r"reading Parquet needs an optional dependency: pip install 'idefics\[batch\]'"
    ):
        open_source(["a.parquet"], SourceSettings())


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_an_imagefolder(name):
    for picture in ("a.png", "sub/b.png", "unlisted.png", "sub/unlisted.png"):
        write(f"photos/{picture}", picture.encode())
    if name == "metadata.csv":
        write("photos/metadata.csv", b"file_name,text\nsub/b.png,second\na.png,first\ngone.png,third\n")
    else:
        rows = [("sub/b.png", "second"), ("a.png", "first"), ("gone.png", "third")]
        write_lines("photos/metadata.jsonl", *({"file_name": file, "text": text} for file, text in rows))
    rows = open_rows("photos")
    assert [row.name for row in rows] == [f"photos/{name}#{number}" for number in (1, 2, 3)]
    assert [row.columns["text"] for row in rows] == ["second", "first", "third"]
    assert rows[0].media.file == Path("photos/sub/b.png") and rows[0].media.read() == b"sub/b.png"
    with pytest.raises(BadPicture, match=r"^photos/gone\.png: no such file$"):
        rows[2].media.read()
    source = open_source(["photos"], SourceSettings())
    assert source.count_rows() == 3
    list(source)
    assert source.describe_skipped() == "2 pictures without a line in the folder's metadata"
    with pytest.raises(BadSetting, match="has no column 'x'"):
        open_source(["photos"], SourceSettings(image_column="x"))


@pytest.fixture
def data_set(folder):
    pytest.importorskip("datasets")
    for number in range(3):
        write(f"pets/train/{number}.png", png(("red", "green", "blue")[number]))
    write_lines(
        "pets/train/metadata.jsonl", *({"file_name": f"{n}.png", "text": f"pet {n}"} for n in range(3))
    )
    return folder / "pets"


def test_a_data_set(data_set):
    rows = open_rows(f"hf:{data_set}:train")
    assert [row.name for row in rows] == [f"hf:{data_set}:train#{number}" for number in (1, 2, 3)]
    assert [dict(row.columns) for row in rows] == [{"text": f"pet {n}"} for n in range(3)]
    assert [row.media.read() for row in rows] == [png("red"), png("green"), png("blue")]
    assert open_source([f"hf:{data_set}"], SourceSettings()).count_rows() is None
    assert [row.id for row in open_rows(f"hf:{data_set}", id_column="text")] == ["pet 0", "pet 1", "pet 2"]


def test_the_split_of_a_data_set(data_set):
    (data_set / "train").rename(data_set / "test")
    assert len(open_rows(f"hf:{data_set}")) == 3, "the only split"
    write("pets/validation/4.png", png())
    write_lines("pets/validation/metadata.jsonl", {"file_name": "4.png", "text": "pet 4"})
    (row,) = open_rows(f"hf:{data_set}:validation")
    assert dict(row.columns) == {"text": "pet 4"}
    with pytest.raises(
        BadPicture, match=r"has the splits (validation, test|test, validation): name one, as in hf:"
    ):
        HubReader(f"hf:{data_set}").read_columns()


def test_a_data_set_that_cannot_be_loaded(folder):
    pytest.importorskip("datasets")
    with pytest.raises(BadPicture, match=rf"^hf:{folder}/nothing cannot be read: .+"):
        open_source([f"hf:{folder}/nothing"], SourceSettings())
    write("list.txt", f"hf:{folder}/nothing".encode())
    (row,) = open_rows(list_source("list.txt"))
    assert row.name == f"hf:{folder}/nothing"
    assert row.error.startswith(f"hf:{folder}/nothing cannot be read: ") and "\n" not in row.error


def test_a_data_set_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"idefics\[datasets\]"):
        open_source(["hf:owner/name"], SourceSettings())


def test_a_file_of_a_data_set_on_the_hub_is_read_later(folder):
    pytest.importorskip("datasets")
    import zipfile

    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.png", b"bytes of a")
    media = HubReader("hf:owner/name").media(
        {"bytes": None, "path": f"zip://a.png::{folder}/a.zip"}, "x#1", None
    )
    assert (media.path, media.file, media.read()) == ("x#1", None, b"bytes of a")
    gone = HubReader("hf:owner/name").media({"bytes": None, "path": f"file://{folder}/b.png"}, "x#2", None)
    with pytest.raises(BadPicture, match=r"^x#2 cannot be read: "):
        gone.read()
