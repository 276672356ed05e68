"""Conversations: down a pipe here, typed in test_cli_person."""

import json

import pytest
from cli_fakes import FakeIdefics, answer

from idefics.messages import Picture, Text

pytestmark = pytest.mark.usefixtures("photos")


@pytest.fixture
def chat(idefics, standard_input):
    def run(*argv, lines="", vlm=None):
        standard_input(lines.encode())
        return idefics("chat", *argv, vlm=vlm)

    return run


def test_each_line_is_a_turn(chat):
    done = chat("a.png", lines="What is it?\n\nAnd now?\n")
    assert (done.code, done.err) == (0, "")
    assert done.out == "1 turns, 1 pictures, What is it?\n3 turns, 0 pictures, And now?\n"
    first, second = done.vlm.calls
    assert [type(part) for part in first.messages[0].parts] == [Picture, Text]
    assert [message.role for message in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1].parts == ("1 turns, 1 pictures, What is it?",)


def test_the_first_words_may_be_an_argument(chat):
    assert chat("a.png", "b.png", "What?", lines="Why?\n").out.splitlines() == [
        "1 turns, 2 pictures, What?",
        "3 turns, 0 pictures, Why?",
    ]
    assert chat("--prompt", "What?", "a.png").out == "1 turns, 1 pictures, What?\n"
    assert chat(lines="Hello.").out == "1 turns, 0 pictures, Hello.\n"


def test_pictures_are_shown_at_any_turn(chat, photos):
    (photos / "my photo.png").write_bytes((photos / "a.png").read_bytes())
    lines = "Hello.\n/image a.png\n/image my photo.png\n/image 'b.png' folder\nWhat now?\n"
    assert chat(lines=lines).out.splitlines()[1] == "3 turns, 5 pictures, What now?"


def test_new_forgets_everything(chat):
    assert chat("a.png", lines="One.\n/image b.png\n/new\nTwo.\n").out.splitlines() == [
        "1 turns, 1 pictures, One.",
        "1 turns, 0 pictures, Two.",
    ]


def test_quit_leaves(chat):
    assert chat(lines="One.\n/quit\nTwo.\n").out == "1 turns, 0 pictures, One.\n"


def test_help_is_no_answer(chat):
    done = chat(lines="/help\n")
    assert (done.code, done.out) == (0, "")
    assert "/image PATH" in done.err


def test_json_is_one_object_a_turn(chat):
    rows = [json.loads(line) for line in chat("a.png", "--json", lines="One.\nTwo.\n").out.splitlines()]
    assert [row["text"] for row in rows] == ["1 turns, 1 pictures, One.", "3 turns, 0 pictures, Two."]
    assert rows[0]["finish"] == "stop"
    assert "image" not in rows[0]


def test_flags_reach_the_call(chat):
    assert chat("--temperature", "0.5", lines="One.\n").vlm.calls[0].options == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("/image no.png", "no.png: no such file"),
        ("/image notes.txt", "notes.txt is not a picture"),
        ("/image it's.png", "it's.png: no such file"),
        ("/image -", "- cannot be a picture here"),
        ("/image", "/image photo.jpg"),
        ("/imgae a.png", "no such command /imgae"),
        ("This is too long.", "/new begins again"),
    ],
)
def test_a_turn_that_is_refused_leaves_the_conversation_as_it_was(chat, line, refusal):
    done = chat("a.png", lines=f"One.\n{line}\nTwo.\n")
    assert done.code == 2
    [refused] = done.refusals
    assert refused.startswith("idefics chat: ")
    assert refusal in refused
    assert done.out.splitlines() == ["1 turns, 1 pictures, One.", "3 turns, 0 pictures, Two."]


def test_an_empty_answer_is_not_remembered(chat):
    class Silent(FakeIdefics):
        def chat(self, messages, **options):
            super().chat(messages, **options)
            return answer("")

    done = chat("a.png", lines="One.\nTwo.\n", vlm=Silent())
    assert done.out == "\n\n"
    assert [len(call.messages) for call in done.vlm.calls] == [1, 1]


def test_it_really_talks(capsys, standard_input, demo):
    from idefics.cli.main import run
    from idefics.demo import pictures

    tower = next(path for path in pictures() if path.stem == "tower")
    standard_input(b"What is in this image?\nIs it day or night?\n")
    assert run(["chat", str(tower)], lambda flags, screen: demo) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_line_that_is_not_utf8_is_refused_and_the_conversation_goes_on(idefics, standard_input):
    standard_input(b"One.\nCaf\xe9?\n/image \xe9.png\nTwo.\n")
    done = idefics("chat", "a.png")
    assert done.out == "1 turns, 1 pictures, One.\n3 turns, 0 pictures, Two.\n"
    assert done.err.splitlines() == [
        "idefics chat: 'Caf\\xe9?' is not text in UTF-8: write it again",
        "idefics chat: '/image \\xe9.png' is not text in UTF-8: write it again",
    ]
    assert done.code == 2
