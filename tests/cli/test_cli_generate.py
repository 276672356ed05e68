"""`idefics generate`: items of a raw prompt in their order."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("photo_folder")


def test_items_keep_their_order(run_idefics):
    done = run_idefics("generate", "User:", "a.png", "Describe.\nAssistant: A cat.\n", "b.png", "No. png")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "User: a Describe.\nAssistant: A cat.\n b No. png\n"
    [call] = done.vlm.calls
    assert [isinstance(item, str) for item in call.items] == [True, False, True, False, True]


def test_standard_input_is_a_picture(run_idefics, send_stdin, photo_folder):
    data = (photo_folder / "a.png").read_bytes()
    send_stdin(data)
    assert run_idefics("generate", "-", "This is").stdout == f"<{len(data)} bytes> This is\n"


def test_flags_and_json(run_idefics):
    done = run_idefics("generate", "a.png", "This is", "--max-new-tokens", "5", "--stop", ".", "--json")
    assert done.vlm.calls[0].options == {"max_new_tokens": 5, "stop": ["."]}
    row = json.loads(done.stdout)
    assert row["text"] == "a This is"
    assert "image" not in row


def test_dashes_and_words_that_look_like_flags(run_idefics):
    assert run_idefics("generate", "a.png", "--", "--json").stdout == "a --json\n"
