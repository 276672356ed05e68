"""Raw prompts: items in their order."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("photos")


def test_items_keep_their_order(idefics):
    done = idefics("generate", "User:", "a.png", "Describe.\nAssistant: A cat.\n", "b.png", "No. png")
    assert (done.code, done.err) == (0, "")
    assert done.out == "User: a Describe.\nAssistant: A cat.\n b No. png\n"
    [call] = done.vlm.calls
    assert [isinstance(item, str) for item in call.items] == [True, False, True, False, True]


def test_standard_input_is_a_picture(idefics, standard_input, photos):
    data = (photos / "a.png").read_bytes()
    standard_input(data)
    assert idefics("generate", "-", "This is").out == f"<{len(data)} bytes> This is\n"


def test_flags_and_json(idefics):
    done = idefics("generate", "a.png", "This is", "--max-new-tokens", "5", "--stop", ".", "--json")
    assert done.vlm.calls[0].options == {"max_new_tokens": 5, "stop": ["."]}
    row = json.loads(done.out)
    assert row["text"] == "a This is"
    assert "image" not in row


def test_dashes_and_words_that_look_like_flags(idefics):
    assert idefics("generate", "a.png", "--", "--json").out == "a --json\n"
