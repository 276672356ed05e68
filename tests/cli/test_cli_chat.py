"""`idefics chat` with the lines of standard input as turns; test_cli_terminal tests it on a terminal."""

import json

import pytest
from cli_fakes import FakeIdefics, make_answer

from idefics.messages import LiteralText, Picture

pytestmark = pytest.mark.usefixtures("photo_folder")


@pytest.fixture
def run_chat(run_idefics, send_stdin):
    def run(*argv, lines="", vlm=None):
        send_stdin(lines.encode())
        return run_idefics("chat", *argv, vlm=vlm)

    return run


def test_each_line_is_a_turn(run_chat):
    done = run_chat("a.png", lines="What is it?\n\nAnd now?\n")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "1 turns, 1 pictures, What is it?\n3 turns, 0 pictures, And now?\n"
    first, second = done.vlm.calls
    assert [type(part) for part in first.messages[0].parts] == [Picture, LiteralText]
    assert [message.role for message in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1].parts == ("1 turns, 1 pictures, What is it?",)


def test_the_first_words_may_be_an_argument(run_chat):
    assert run_chat("a.png", "b.png", "What?", lines="Why?\n").stdout.splitlines() == [
        "1 turns, 2 pictures, What?",
        "3 turns, 0 pictures, Why?",
    ]
    assert run_chat("--prompt", "What?", "a.png").stdout == "1 turns, 1 pictures, What?\n"
    assert run_chat(lines="Hello.").stdout == "1 turns, 0 pictures, Hello.\n"


def test_pictures_are_added_at_any_turn(run_chat, photo_folder):
    (photo_folder / "my photo.png").write_bytes((photo_folder / "a.png").read_bytes())
    lines = "Hello.\n/image a.png\n/image my photo.png\n/image 'b.png' folder\nWhat now?\n"
    assert run_chat(lines=lines).stdout.splitlines()[1] == "3 turns, 5 pictures, What now?"


def test_new_begins_a_new_conversation(run_chat):
    assert run_chat("a.png", lines="One.\n/image b.png\n/new\nTwo.\n").stdout.splitlines() == [
        "1 turns, 1 pictures, One.",
        "1 turns, 0 pictures, Two.",
    ]


def test_quit_ends_the_chat(run_chat):
    assert run_chat(lines="One.\n/quit\nTwo.\n").stdout == "1 turns, 0 pictures, One.\n"


def test_help_is_printed_on_standard_error(run_chat):
    done = run_chat(lines="/help\n")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "/image PATH" in done.stderr


def test_json_is_one_object_a_turn(run_chat):
    rows = [
        json.loads(line) for line in run_chat("a.png", "--json", lines="One.\nTwo.\n").stdout.splitlines()
    ]
    assert [row["text"] for row in rows] == ["1 turns, 1 pictures, One.", "3 turns, 0 pictures, Two."]
    assert rows[0]["finish"] == "stop"
    assert "image" not in rows[0]


def test_flags_reach_the_call(run_chat):
    assert run_chat("--temperature", "0.5", lines="One.\n").vlm.calls[0].options == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("/image no.png", "no.png: no such file"),
        ("/image notes.txt", "notes.txt is not a picture"),
        ("/image it's.png", "it's.png: no such file"),
        ("/image -", "- cannot be a picture here"),
        ("/image", "/image photo.jpg"),
        ("/imgae a.png", "no such command: /imgae"),
        ("This is too long.", "/new begins a new conversation"),
    ],
)
def test_a_turn_that_is_refused_leaves_the_conversation_as_it_was(run_chat, line, refusal):
    done = run_chat("a.png", lines=f"One.\n{line}\nTwo.\n")
    assert done.exit_code == 2
    [refused] = done.error_lines
    assert refused.startswith("idefics chat: ")
    assert refusal in refused
    assert done.stdout.splitlines() == ["1 turns, 1 pictures, One.", "3 turns, 0 pictures, Two."]


def test_an_empty_answer_is_left_out_of_the_conversation(run_chat):
    class Silent(FakeIdefics):
        def chat(self, messages, **options):
            super().chat(messages, **options)
            return make_answer("")

    done = run_chat("a.png", lines="One.\nTwo.\n", vlm=Silent())
    assert done.stdout == "\n\n"
    assert [len(call.messages) for call in done.vlm.calls] == [1, 1]


def test_a_conversation_with_the_demo_model(capsys, send_stdin, demo_model):
    from idefics.cli.main import run
    from idefics.demo import pictures

    tower = next(path for path in pictures() if path.stem == "tower")
    send_stdin(b"What is in this image?\nIs it day or night?\n")
    assert run(["chat", str(tower)], lambda flags, screen: demo_model) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_line_that_is_not_utf8_is_refused_and_the_conversation_goes_on(run_idefics, send_stdin):
    send_stdin(b"One.\nCaf\xe9?\n/image \xe9.png\nTwo.\n")
    done = run_idefics("chat", "a.png")
    assert done.stdout == "1 turns, 1 pictures, One.\n3 turns, 0 pictures, Two.\n"
    assert done.stderr.splitlines() == [
        "idefics chat: 'Caf\\xe9?' is not text in UTF-8: write it again",
        "idefics chat: '/image \\xe9.png' is not text in UTF-8: write it again",
    ]
    assert done.exit_code == 2
