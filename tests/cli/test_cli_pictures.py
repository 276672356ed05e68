"""Positional arguments: names of pictures and the prompt."""

import sys
from pathlib import Path

import pytest
from cli_fakes import FakeTerminal, make_writer

from idefics.cli.main import run
from idefics.cli.pictures import (
    fetch_and_check_picture,
    find_pictures,
    is_picture_argument,
    is_sentence,
    names_several_pictures,
    split_prompt,
)
from idefics.errors import BadPicture
from idefics.processing.fetch import Fetcher


def resolve_pictures(*arguments):
    refused = []
    return [
        named.name for named in find_pictures(arguments, make_writer(refused.append, lambda _: None))
    ], refused


@pytest.mark.parametrize(
    ("arguments", "prompt", "names", "words"),
    [
        (["a.png", "What?"], None, ["a.png"], "What?"),
        (["a.png", "b.png", "What is it?"], None, ["a.png", "b.png"], "What is it?"),
        (["a.png", "dog"], None, ["a.png"], "dog"),
        (["a.png", "这是什么?"], None, ["a.png"], "这是什么?"),
        (["a.png", "b.png"], "What?", ["a.png", "b.png"], "What?"),
        (["a.png", "b.png"], None, ["a.png", "b.png"], None),
        (["a.png", "missing.jpg"], None, ["a.png", "missing.jpg"], None),
        (["a.png", "*.jpg"], None, ["a.png", "*.jpg"], None),
        (["a.png", "folder"], None, ["a.png", "folder"], None),
        (["a.png", "http://example.com/b"], None, ["a.png", "http://example.com/b"], None),
        (["a.png", "-"], None, ["a.png", "-"], None),
        (["a.png", ""], None, ["a.png"], ""),
        (["What?"], None, [], "What?"),
        ([], None, [], None),
    ],
)
@pytest.mark.usefixtures("photo_folder")
def test_the_last_argument_is_the_words_unless_it_reads_like_a_picture(arguments, prompt, names, words):
    assert split_prompt(arguments, prompt, "question") == (names, words)


@pytest.mark.usefixtures("photo_folder")
def test_a_name_longer_than_any_file_is_words():
    assert not is_picture_argument("why " * 200)
    assert is_sentence("why " * 200)


@pytest.mark.usefixtures("photo_folder")
def test_a_word_is_distinguished_from_a_misspelt_name():
    assert is_sentence("What is this?")
    assert not is_sentence("my photo.jpg")
    assert not is_sentence("What?")
    Path("my file").touch()
    assert not is_sentence("my file")


@pytest.mark.usefixtures("photo_folder")
def test_pictures_keep_the_order_of_the_arguments():
    assert resolve_pictures("b.png", "a.png") == (["b.png", "a.png"], [])
    assert resolve_pictures("folder") == (["folder/x.png", "folder/y.png"], [])
    assert resolve_pictures("[ac].png", "b.png") == (["a.png", "c.png", "b.png"], [])
    assert resolve_pictures("**/x.png") == (["folder/x.png"], [])
    assert resolve_pictures("https://example.com/" + "x" * 200)[0][0].endswith("...")


@pytest.mark.usefixtures("photo_folder")
def test_an_existing_file_is_not_taken_for_a_pattern():
    Path("[ac].png").write_bytes(Path("a.png").read_bytes())
    assert resolve_pictures("[ac].png") == (["[ac].png"], [])


@pytest.mark.usefixtures("photo_folder")
def test_arguments_without_pictures_are_reported_and_the_others_found():
    names, refused = resolve_pictures("no.png", "a.png", "*.jpg", "empty", "", "x" * 1000)
    assert names == ["a.png"]
    assert [line.partition(":")[0] for line in refused] == [
        "no.png",
        "*.jpg",
        "empty",
        "an empty name",
        "x" * 100,
    ]


@pytest.mark.usefixtures("photo_folder")
def test_one_file_is_one_and_a_folder_is_many():
    assert not names_several_pictures(["a.png"])
    assert not names_several_pictures(["-"])
    assert not names_several_pictures(["https://example.com/a?b=[c]"])
    assert names_several_pictures(["a.png", "b.png"])
    assert names_several_pictures(["folder"])
    assert names_several_pictures(["*.png"])


@pytest.mark.usefixtures("photo_folder")
def test_standard_input_is_a_picture(send_stdin):
    send_stdin(Path("a.png").read_bytes())
    [named] = find_pictures(["-"], make_writer())
    assert fetch_and_check_picture(named, Fetcher()).picture.source == Path("a.png").read_bytes()


def test_a_terminal_is_no_picture(monkeypatch):
    monkeypatch.setattr(sys, "stdin", FakeTerminal())
    refused = []
    assert find_pictures(["-"], make_writer(refused.append)) == []
    assert refused[0].startswith("standard input is a terminal")


@pytest.mark.usefixtures("photo_folder")
def test_the_error_for_an_invalid_picture_names_it(send_stdin):
    send_stdin(b"hello")
    for name, message in (
        ("notes.txt", "notes.txt is not a picture"),
        ("broken.png", "broken.png is broken"),
        ("-", "standard input: a picture of 5 bytes is not a picture"),
    ):
        [named] = find_pictures([name], make_writer())
        with pytest.raises(BadPicture, match=f"^{message}"):
            fetch_and_check_picture(named, Fetcher())


def test_a_remote_picture_is_fetched_once(photo_folder):
    asked = []

    class Counting(Fetcher):
        def get(self, url):
            asked.append(url)
            return (photo_folder / "a.png").read_bytes()

    [named] = find_pictures(["https://example.com/a.png"], make_writer())
    assert fetch_and_check_picture(named, Counting()).picture.source == (photo_folder / "a.png").read_bytes()
    assert asked == ["https://example.com/a.png"]


@pytest.mark.usefixtures("photo_folder")
def test_an_error_names_a_picture_once_and_as_it_was_typed(capsys):
    for typed in ("./notes.txt", "notes.txt", ".//notes.txt"):
        assert run(["caption", typed, "--model", "demo"], lambda flags, screen: pytest.fail("loaded")) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"idefics caption: {typed} is not a picture"), line
        assert line.count("notes.txt") == 1
    address = "http://127.0.0.1:1/x.png"
    assert run(["caption", address], lambda flags, screen: pytest.fail("loaded")) == 2
    assert capsys.readouterr().err.startswith(f"idefics caption: {address} cannot be fetched")


@pytest.mark.usefixtures("photo_folder")
def test_an_address_of_a_file_is_refused_with_its_path(capsys):
    assert run(["caption", "file:///a.png", "--model", "demo"]) == 2
    assert capsys.readouterr().err == (
        "idefics caption: file:///a.png is a URL, and only http(s) ones are read: give the path, /a.png\n"
    )
