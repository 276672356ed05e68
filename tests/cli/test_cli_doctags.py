"""`idefics` prints a page as whole DocTags, and `--skip-special-tokens` is what the Python keyword is."""

import io
import json
import sys

import pytest

from idefics.cli.main import run
from idefics.demo import pictures
from models import doctags
from models.doctags import PAGE, WORDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return doctags.write(tmp_path_factory.mktemp("doctags"))


@pytest.fixture
def said(capsys, folder):
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
        ([], PAGE),
        (["--no-skip-special-tokens"], PAGE),
        (["--skip-special-tokens"], WORDS),
        (["--stop", "</doctag>"], PAGE.removesuffix("</doctag>")),
    ],
)
def test_a_page_is_printed_whole(said, command, flags, text):
    assert said(COMMANDS[command], *flags) == f"{text}\n"
    assert json.loads(said(COMMANDS[command], *flags, "--json"))["text"] == text


def test_a_conversation_prints_it_too(said, monkeypatch):
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Convert this page to docling.\n"), "utf-8")
    )
    assert said(["chat", PICTURE]) == f"{PAGE}\n"
