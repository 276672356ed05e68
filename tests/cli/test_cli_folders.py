"""Folders and patterns: each picture once; one line counts the skipped files."""

import os
import sys
from pathlib import Path

import PIL.Image
import pytest
from cli_fakes import make_writer

from idefics.cli.pictures import find_pictures
from idefics.processing import picture_files
from idefics.processing.picture_files import readable_formats

PICTURES = (
    "album/a.png",
    "album/b.jfif",
    "album/c.AVIF",
    "album/d",
    "album/sub/e.png",
    "album/sub/deep/f.jp2",
)


@pytest.fixture
def album(tmp_path, monkeypatch):
    """The working folder: `album` with pictures under odd names, subfolders and files that are not pictures."""
    monkeypatch.chdir(tmp_path)
    for name in PICTURES:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        format = {".jfif": "JPEG", ".avif": "AVIF", ".jp2": "JPEG2000"}.get(path.suffix.lower(), "PNG")
        PIL.Image.new("RGB", (16, 16), "red").save(path, format)
    for name in (
        "album/x.nef",
        "album/y.NEF",
        "album/z.psd",
        "album/clip.mp4",
        "album/notes.txt",
        "album/.hid.png",
    ):
        Path(name).write_bytes(b"something")
    return tmp_path


@pytest.fixture
def without_heif_extra(monkeypatch):
    """An installation without the extra for HEIC."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(picture_files, "find_spec", lambda name: None)
    readable_formats.cache_clear()
    yield
    readable_formats.cache_clear()


def find_names(*arguments, recursive=False):
    """(names of pictures, errors, notes)."""
    refused, notes = [], []
    named = find_pictures(arguments, make_writer(refused.append, notes.append), recursive=recursive)
    return [one.name for one in named], refused, notes


NOTE_ON_SKIPPED_FILES = "2 camera RAW (not read: convert to JPEG), 1 PSD (not read: convert to JPEG)"


def test_a_folder_gives_its_pictures_and_one_line_about_skipped_files(album):
    names, refused, notes = find_names("album")
    assert names == ["album/a.png", "album/b.jfif", "album/c.AVIF", "album/d"]
    assert refused == []
    (note,) = notes
    assert note == (
        f"skipped: 1 subfolder (--recursive includes it), 1 video (to include one, name it), {NOTE_ON_SKIPPED_FILES}, "
        "1 other file (.txt)"
    )


def test_with_subfolders(album):
    names, refused, (note,) = find_names("album", recursive=True)
    assert names == sorted(PICTURES)
    assert not refused and "subfolder" not in note


def test_heic_in_a_folder(album):
    pytest.importorskip("pillow_heif")
    Path("album/p.heic").write_bytes(b"\0\0\0\x18ftypheic")
    assert "album/p.heic" in find_names("album")[0]


def test_heic_in_a_folder_without_the_extra(album, without_heif_extra):
    for name in ("p.heic", "q.HEIC"):
        Path("album", name).write_bytes(b"\0\0\0\x18ftypheic")
    names, refused, (note,) = find_names("album")
    assert not refused and not [name for name in names if "heic" in name.lower()]
    assert "2 HEIC (pip install 'idefics[heif]', or convert to JPEG)" in note


def test_the_error_for_a_folder_without_pictures_counts_its_files(album):
    Path("raw").mkdir()
    Path("raw/x.nef").write_bytes(b"II*\0")
    _, refused, notes = find_names("raw")
    assert refused == ["raw: no picture in this folder; skipped: 1 camera RAW (not read: convert to JPEG)"]
    assert not notes
    Path("raw/x.nef").unlink()
    assert find_names("raw")[1] == ["raw: no picture in this folder"]


@pytest.mark.parametrize("pattern", ["album/**", "album/**/*", "**"])
def test_a_recursive_pattern_gives_each_picture_once(pattern, album):
    names, refused, (note,) = find_names(pattern)
    assert names == sorted(PICTURES)
    assert not refused and NOTE_ON_SKIPPED_FILES in note and "subfolder" not in note


def test_a_recursive_pattern_with_a_suffix(album):
    assert find_names("album/**/*.png") == (["album/a.png", "album/sub/e.png"], [], [])
    assert find_names("**/deep/*.jp2") == (["album/sub/deep/f.jp2"], [], [])
    assert find_names("album/**/sub/**/*.jp2")[0] == ["album/sub/deep/f.jp2"]
    assert find_names("al*/**/e.*")[0] == ["album/sub/e.png"]
    assert find_names("album/**/*.gif")[1] == ["album/**/*.gif: no file matches this pattern"]


def test_files_with_the_suffix_of_a_pattern_are_not_skipped(album):
    """As where the shell expands it: such a file is reported as an error, not skipped."""
    assert find_names("album/*.nef")[0] == ["album/x.nef"]
    assert find_names("album/*.mp4")[0] == ["album/clip.mp4"]
    assert find_names("album/*.txt")[0] == ["album/notes.txt"]


def test_a_pattern_that_is_not_recursive(album):
    names, refused, (note,) = find_names("album/*")
    assert names == ["album/a.png", "album/b.jfif", "album/c.AVIF", "album/d", "album/sub/e.png"]
    assert not refused and "1 subfolder (--recursive includes it)" in note
    assert find_names("album/*", recursive=True)[0] == sorted(PICTURES)


@pytest.mark.parametrize("target", [".", "..", "sub", "sub/deep", "../../outside"])
def test_circular_links_are_followed_once(target, album):
    Path("album/sub/loop").symlink_to(target, target_is_directory=True)
    Path("album/again").symlink_to("sub", target_is_directory=True)
    Path("album/self").symlink_to("self")
    for names, refused, _ in (
        find_names("album/**"),
        find_names("album", recursive=True),
        find_names("**/*.*", "album/d"),
    ):
        assert sorted(names) == sorted(PICTURES)
        assert not refused


def test_a_link_to_a_picture_of_the_same_folder_is_skipped(album):
    Path("album/0.png").symlink_to("a.png")
    Path("album/gone.png").symlink_to("nothing.png")
    names, _, (note,) = find_names("album")
    assert "album/0.png" not in names and "album/a.png" in names
    assert "1 link to a picture that is included anyway" in note and "1 broken link" in note
    Path("links").mkdir()
    Path("links/one.png").symlink_to("../album/a.png")
    assert find_names("links") == (["links/one.png"], [], [])


def test_a_subfolder_that_cannot_be_read_is_refused_and_the_rest_is_found(album, monkeypatch):
    reading = os.listdir

    def listdir(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return reading(path)

    monkeypatch.setattr(os, "listdir", listdir)
    names, refused, _ = find_names("album", recursive=True)
    assert names == ["album/a.png", "album/b.jfif", "album/c.AVIF", "album/d"]
    assert refused == ["album/sub cannot be read: Permission denied"]


def test_no_pipe_is_opened(album):
    os.mkfifo("album/pipe")
    names, _, (note,) = find_names("album")
    assert "album/pipe" not in names and "1 special file" in note


def test_the_line_and_the_flag_on_the_command_line(album, run_idefics):
    done = run_idefics("caption", "album")
    assert done.exit_code == 0, "what is left out is no refusal"
    assert done.stdout.splitlines()[0].startswith("album/a.png: ")
    assert done.error_lines[0].startswith("idefics caption: skipped: 1 subfolder (--recursive includes it)")
    assert len(done.error_lines) == 1
    done = run_idefics("ask", "album", "What?", "--recursive")
    assert len(done.stdout.splitlines()) == len(PICTURES)
    assert len(run_idefics("ask", "album", "What?", "--no-recursive").stdout.splitlines()) == 4


def test_an_empty_picture_in_a_folder_is_refused_and_the_rest_answered(album, run_idefics):
    Path("album/zero.jpg").touch()
    done = run_idefics("classify", "album", "--labels", "cat,dog")
    assert done.exit_code == 2
    assert "idefics classify: album/zero.jpg is empty (0 bytes)" in done.error_lines
    assert len(done.stdout.splitlines()) == 4


@pytest.mark.parametrize("command", ["caption", "complete", "ask", "write", "classify", "chat"])
def test_every_command_that_takes_folders_has_the_flag(command, run_idefics):
    assert "--[no-]recursive" in run_idefics(command, "--help").stdout


def test_a_link_to_a_parent_folder_is_not_followed(album):
    Path("elsewhere.png").write_bytes(Path("album/a.png").read_bytes())
    Path("album/sub/up").symlink_to("../..", target_is_directory=True)
    Path("album/sub/root").symlink_to("/", target_is_directory=True)
    assert find_names("album/**/*.png")[0] == ["album/a.png", "album/sub/e.png"]
    assert find_names("album", recursive=True)[0] == sorted(PICTURES)
