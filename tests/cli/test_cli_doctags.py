"""`idefics` prints DocTags whole, and `--skip-special-tokens` acts as the Python keyword."""

import io
import json
import sys

import pytest

from idefics.cli.main import run
from idefics.demo import pictures
from models import doctags
from models.doctags import ORDINARY_CHARACTERS, PAGE_TEXT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return doctags.write_checkpoint(tmp_path_factory.mktemp("doctags"))


@pytest.fixture
def command_output(capsys, folder):
    """What a command prints for one picture."""

    def call(command, *words):
        code = run([*command, "--model", str(folder), *words])
        out = capsys.readouterr()
        assert (code, out.err) == (0, ""), out
        return out.out

    return call


PICTURE = str(pictures()[0])
COMMANDS = {
    "caption": ["caption", PICTURE],
    "ask": ["ask", PICTURE, "Convert this page to docling."],
    "write": ["write", PICTURE],
    "generate": ["generate", PICTURE, "Convert"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], PAGE_TEXT),
        (["--no-skip-special-tokens"], PAGE_TEXT),
        (["--skip-special-tokens"], ORDINARY_CHARACTERS),
        (["--stop", "</doctag>"], PAGE_TEXT.removesuffix("</doctag>")),
    ],
)
def test_doctags_are_printed_whole(command_output, command, flags, text):
    assert command_output(COMMANDS[command], *flags) == f"{text}\n"
    assert json.loads(command_output(COMMANDS[command], *flags, "--json"))["text"] == text


def test_doctags_are_printed_in_a_conversation_too(command_output, monkeypatch):
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Convert this page to docling.\n"), "utf-8")
    )
    assert command_output(["chat", PICTURE]) == f"{PAGE_TEXT}\n"
