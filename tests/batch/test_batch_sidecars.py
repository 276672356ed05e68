"""Sidecars: where they are, what they say, how texts are joined, and that a file is whole or as it was."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idefics.batch.sidecars import join_texts, read_sidecar, sidecar_path, write_sidecar
from idefics.errors import OutputError

DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:darktable="http://darktable.sf.net/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmp:Rating="3"
    darktable:auto_presets_applied="1">
   <darktable:history><rdf:Seq><rdf:li darktable:num="0"/></rdf:Seq></darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("txt", "a/photo.v2.txt"), ("json", "a/photo.v2.json"), ("xmp", "a/photo.v2.JPG.xmp")],
)
def test_where_a_sidecar_is(kind, expected):
    assert sidecar_path(Path("a/photo.v2.JPG"), kind) == Path(expected)


@pytest.mark.parametrize("kind", ["txt", "json", "xmp"])
@pytest.mark.parametrize(
    "text", ["a cat", "größer & <kleiner> 🐈", "two\nlines", "ends with one\n"], ids=repr
)
def test_what_is_written_is_read(kind, text, tmp_path):
    path = tmp_path / "sidecar"
    assert read_sidecar(path, kind) is None
    write_sidecar(path, kind, "something before", {})
    write_sidecar(path, kind, text, {})
    assert read_sidecar(path, kind) == text
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["txt", "json", "xmp"]), content=st.binary(max_size=60))
def test_any_content_is_read_or_refused_in_one_line(kind, content, tmp_path):
    path = tmp_path / "sidecar"
    path.write_bytes(content)
    try:
        text = read_sidecar(path, kind)
    except OutputError as error:
        message = str(error)
        assert message.startswith(f"cannot use {path}: ") and "\n" not in message
    else:
        assert text is None or isinstance(text, str)


def test_the_bytes_of_text_and_json(tmp_path):
    write_sidecar(tmp_path / "a.txt", "txt", "a cät", {"task": "unused"})
    assert (tmp_path / "a.txt").read_bytes() == "a cät\n".encode()
    fields = {"model": "demo", "text": "only the answer", "tokens": 3}
    write_sidecar(tmp_path / "a.json", "json", "a cät", fields)
    assert (tmp_path / "a.json").read_bytes() == '{"text":"a cät","model":"demo","tokens":3}\n'.encode()


@pytest.mark.parametrize(
    ("kind", "content", "text"),
    [
        ("txt", b"\xef\xbb\xbfa cat\r\n", "a cat"),
        ("txt", b"one\ntwo\n\n", "one\ntwo\n"),
        ("txt", b"", None),
        ("txt", b" \n\n", None),
        ("json", b'{"text": ""}', None),
        ("json", b'\xef\xbb\xbf{"text": "a cat"}', "a cat"),
        ("json", b'{"caption": "a cat"}', None),
        ("json", b'{"text": null}', None),
        ("xmp", DARKTABLE.encode(), None),
        ("xmp", b"\n", None),
    ],
)
def test_what_other_programs_wrote(kind, content, text, tmp_path):
    path = tmp_path / "sidecar"
    path.write_bytes(content)
    assert read_sidecar(path, kind) == text


@pytest.mark.parametrize(
    ("kind", "content", "reason"),
    [
        ("txt", b"caf\xe9", "it is not text in UTF-8 (byte 3): convert it"),
        ("txt", b"x" * 1_000_001, "it has 1,000,001 bytes, and a text 1,000,000 at most: move it away"),
        (
            "json",
            b"{",
            "it is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (
            "json",
            b"[" * 100_000,
            "it is not JSON: maximum recursion depth exceeded while decoding a JSON array",
        ),
        ("json", b'["text"]', "it holds no JSON object with a field 'text'"),
        ("json", b'{"text": [1, 2]}', "its field 'text' is [1, 2], not a string"),
        ("xmp", b"<a><b></a>", "its XMP is broken: mismatched tag: line 1, column 8"),
    ],
    ids=["latin-1", "large", "no JSON", "deep", "list", "no string", "no XML"],
)
def test_contents_that_are_refused(kind, content, reason, tmp_path):
    path = tmp_path / "sidecar"
    path.write_bytes(content)
    with pytest.raises(OutputError) as caught:
        read_sidecar(path, kind)
    assert str(caught.value).startswith(f"cannot use {path}: {reason}")
    if kind == "xmp":
        with pytest.raises(OutputError, match="its XMP is broken"):
            write_sidecar(path, kind, "text", {})
        assert path.read_bytes() == content


def test_the_largest_text_is_read(tmp_path):
    path = tmp_path / "sidecar.txt"
    path.write_bytes(b"x" * 1_000_000)
    assert read_sidecar(path, "txt") == "x" * 1_000_000


def test_an_existing_xmp_file_keeps_its_other_properties(tmp_path):
    path = tmp_path / "photo.jpg.xmp"
    path.write_text(DARKTABLE)
    write_sidecar(path, "xmp", "a cat", {})
    head, tail = DARKTABLE.split("</rdf:RDF>")
    written = path.read_text()
    assert written.startswith(head) and written.endswith("</rdf:RDF>" + tail)
    assert read_sidecar(path, "xmp") == "a cat"
    write_sidecar(path, "xmp", "a dog", {})
    assert path.read_text() == written.replace("a cat", "a dog")


def test_an_empty_xmp_file_becomes_a_whole_one(tmp_path):
    path = tmp_path / "photo.jpg.xmp"
    path.write_bytes(b"\n")
    write_sidecar(path, "xmp", "a cat", {})
    assert read_sidecar(path, "xmp") == "a cat"


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="no exiftool here")
def test_exiftool_reads_the_xmp_file(tmp_path):
    text = 'größer & <kleiner> "🐈"\nsecond line'
    old, new = tmp_path / "old.jpg.xmp", tmp_path / "new.jpg.xmp"
    old.write_text(DARKTABLE)
    for path in (old, new):
        write_sidecar(path, "xmp", text, {})
        done = subprocess.run(
            ["exiftool", "-j", "-validate", "-Description", "-Rating", path], capture_output=True, check=True
        )
        (record,) = json.loads(done.stdout)
        assert (record["Description"], record["Validate"]) == (text, "OK")
        assert record.get("Rating") == (3 if path == old else None)


@pytest.mark.parametrize(
    ("existing", "text", "how", "expected"),
    [
        (None, "new", "skip", "new"),
        ("", "new", "skip", "new"),
        (" \n", "new", "append", "new"),
        (None, "new", "prepend", "new"),
        ("old", "new", "skip", None),
        ("old", "new", "overwrite", "new"),
        ("old", "", "overwrite", ""),
        ("old\n", " new", "append", "old, new"),
        ("old\n", " new", "prepend", "new, old"),
        ("old", " ", "append", None),
        ("old", "", "prepend", None),
    ],
)
def test_joined_texts(existing, text, how, expected):
    assert join_texts(existing, text, how) == expected


def test_the_mode_of_a_file(tmp_path):
    new, old = tmp_path / "new.txt", tmp_path / "old.txt"
    old.write_text("before")
    old.chmod(0o604)
    os.utime(old, (1, 1))
    before = os.umask(0o027)
    try:
        for path in (new, old):
            write_sidecar(path, "txt", "text", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE(new.stat().st_mode) == 0o640
    assert stat.S_IMODE(old.stat().st_mode) == 0o604
    assert old.stat().st_mtime > 1_000_000_000  # changed now


def test_the_target_of_a_link_is_written(tmp_path):
    target, link = tmp_path / "far.txt", tmp_path / "photo.txt"
    target.write_text("before")
    link.symlink_to(target)
    write_sidecar(link, "txt", "after", {})
    assert link.is_symlink()
    assert target.read_text() == "after\n"


def test_content_is_on_the_disk_before_the_name_and_then_the_name(tmp_path, monkeypatch):
    events, sync, replace = [], os.fsync, Path.replace

    def note_sync(handle):
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        events.append("folder" if is_folder else f"file of {os.fstat(handle).st_size}")
        sync(handle)

    def note_rename(self, target):
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    write_sidecar(tmp_path / "a.txt", "txt", "text", {})
    assert events == ["file of 5", "rename", "folder"]


def call_both(path):
    """The messages of reading and writing a sidecar."""
    for call in (lambda: read_sidecar(path, "txt"), lambda: write_sidecar(path, "txt", "text", {})):
        with pytest.raises(OutputError) as caught:
            call()
        yield str(caught.value)


def test_places_that_cannot_be_written(tmp_path):
    link, folder, pipe = (tmp_path / name for name in ("link.txt", "folder.txt", "pipe.txt"))
    link.symlink_to("gone.txt")
    folder.mkdir()
    os.mkfifo(pipe)
    gone = tmp_path / "gone.txt"
    assert set(call_both(link)) == {
        f"cannot write {link}: it is a link to {gone}, which does not exist: remove it"
    }
    assert set(call_both(folder)) == {f"cannot write {folder}: it is a folder: rename or remove it"}
    assert set(call_both(pipe)) == {f"cannot write {pipe}: it is a device: rename or remove it"}
    absent = tmp_path / "absent" / "a.txt"
    with pytest.raises(OutputError, match=r"cannot write .*a.txt: no such file or directory"):
        write_sidecar(absent, "txt", "text", {})
    assert sorted(tmp_path.iterdir()) == [folder, link, pipe]


def test_a_folder_that_is_read_only(tmp_path, monkeypatch):
    def refuse(self, mode, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.txt"
    path.write_text("before")
    monkeypatch.setattr(Path, "open", refuse)  # root may write everywhere
    assert list(call_both(path)) == [
        f"cannot read {path}: permission denied",
        f"cannot write {path}: permission denied",
    ]
    monkeypatch.undo()
    assert path.read_text() == "before"


@pytest.mark.parametrize("value", [float("nan"), object(), b"bytes"], ids=["nan", "object", "bytes"])
def test_fields_that_json_lacks(value, tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(OutputError, match=r"^cannot write .*a.json: .*JSON"):
        write_sidecar(path, "json", "text", {"field": value})
    assert list(tmp_path.iterdir()) == []


def test_a_lone_surrogate_is_written_as_its_escape(tmp_path):
    for kind, expected in {"txt": b"a\\udcff\n", "json": b'{"text":"a\\\\udcff"}\n'}.items():
        write_sidecar(tmp_path / kind, kind, "a\udcff", {})
        assert (tmp_path / kind).read_bytes() == expected


def test_a_failed_rename_leaves_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match=r"a.txt: disk full \([\d,]+ bytes free\): make room"):
        write_sidecar(path, "txt", "after", {})
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
