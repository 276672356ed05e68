"""`idefics demo`: its steps cover every task and run through the command line."""

import json
import re
import shlex
import sys

import PIL.Image
from cli_fakes import FakeIdefics, FakeTerminal

from idefics.cli.demo import CHAT_LINES, COMMAND_LINES_BY_PICTURE
from idefics.cli.main import run
from idefics.demo import pictures
from idefics.tasks import TASKS

COMMAND_LINES = [line for lines in COMMAND_LINES_BY_PICTURE.values() for line in lines]


def test_the_bundled_pictures_are_there():
    names = [path.name for path in pictures()]
    assert names == sorted(COMMAND_LINES_BY_PICTURE) == sorted(names)
    for path in pictures():
        with PIL.Image.open(path) as picture:
            assert picture.size == (384, 384)


def test_the_demo_covers_every_task():
    said = {shlex.split(line)[1] for line in COMMAND_LINES if line.startswith("idefics ")}
    demo_tasks = {name for name, task in TASKS.items() if not task.needs_doctags}
    assert said == {*demo_tasks, "chat", "generate"}
    assert any("--shots" in line for line in COMMAND_LINES)
    assert any("*.png" in line for line in COMMAND_LINES)
    assert len(CHAT_LINES) > 2, "a follow-up question"


def test_few_shot_examples_are_read_from_the_bundled_file():
    rows = [json.loads(line) for line in (pictures()[0].parent / "shots.jsonl").read_text().splitlines()]
    assert [(row["image"], "Fun fact" in row["answer"]) for row in rows] == [("tower.png", True)]


def test_the_demo_answers(capsys, demo_model):
    assert run(["demo"], lambda flags, screen: demo_model) == 0
    out, err = capsys.readouterr()
    assert err == ""
    places = [out.index(f"\n$ {line}\n") for line in COMMAND_LINES]
    assert places == sorted(places)
    paragraphs = out.split("\n\n")
    assert len(paragraphs) == len(COMMAND_LINES_BY_PICTURE) + 2
    assert paragraphs[0].endswith("export IDEFICS_MODEL=demo")
    assert "\ndoor.png: " in out
    assert re.search(
        r"^> What is in this image\?\n[A-Z].*\n> /image statue\.png\n> And in this one\?\n[A-Z]", out, re.M
    )
    assert re.search(r"Everything took [\d.]+ seconds\.", out)


def test_a_terminal_shows_pictures_and_bars(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", terminal := FakeTerminal())
    assert run(["demo"], lambda flags, screen: FakeIdefics()) == 0
    out = terminal.getvalue()
    assert out.count("▀") == len(COMMAND_LINES_BY_PICTURE) * 20 * 10
    assert len(set(re.findall(r"38;2;[\d;]+m", out))) > 100
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert "$ idefics caption puppy.png" in plain
    assert "█" in plain
    assert max(map(len, plain.splitlines())) <= 100


def test_no_color_is_no_picture(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", terminal := FakeTerminal())
    assert run(["demo"], lambda flags, screen: FakeIdefics()) == 0
    assert "▀" not in terminal.getvalue()


def test_a_step_that_fails_ends_the_demo(capsys):
    class Broken(FakeIdefics):
        def classify(self, *arguments, **options):
            raise ZeroDivisionError

    assert run(["demo"], lambda flags, screen: Broken()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("idefics classify: ZeroDivisionError")
    assert "idefics caption puppy.png" in out
