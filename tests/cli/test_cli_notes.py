"""Notes about parts of a picture's file that were not read: on standard error, once, and in JSON."""

import json

import PIL.Image
import pytest

from idefics.cli.main import run


@pytest.fixture
def multi_page_scan(photo_folder):
    first, *rest = (PIL.Image.new("RGB", (32, 32), color) for color in ("red", "blue"))
    first.save(photo_folder / "scan.tif", save_all=True, append_images=rest)
    return "scan.tif"


@pytest.mark.parametrize(
    "more", [["ask", "What is this?"], ["caption"], ["classify", "--labels", "red,blue"]]
)
def test_pages_that_are_not_read_are_noted(demo_model, multi_page_scan, capsys, more):
    command, *words = more
    model = lambda *_: demo_model  # noqa: E731  # what the command line loads
    assert run([command, multi_page_scan, *words], model) == 0
    out, err = capsys.readouterr()
    assert out.strip()
    note = (
        "scan.tif has 2 pages, and only the first was read: save the others as files of their own to ask about "
        "them"
    )
    assert err == f"idefics {command}: {note}\n"
    assert run([command, multi_page_scan, "a.png", *words, "--json"], model) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.get("notes") for row in rows] == [[note], None]


def test_a_conversation_notes_it_once(demo_model, multi_page_scan, capsys, send_stdin):
    send_stdin(b"What is this?\nWhat else?\n")
    assert run(["chat", multi_page_scan], lambda *_: demo_model) == 0
    assert capsys.readouterr().err.count("has 2 pages") == 1
