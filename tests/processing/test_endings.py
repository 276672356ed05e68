"""What the endings of one prompt share, and the ids of each: a ranking reads the prompt once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics.errors import BadPrompt
from idefics.messages import Picture, user
from processing.test_processor import BESIDE, TILES, WIDE, all_kinds, ids_of
from processing.tokenizers_tiny import IMAGE

LABELS = ["cat", "a cat", "catfish", "dog", "the red ball", "7", f"{IMAGE}", "日本"]


@all_kinds
def test_endings_of_a_chat_are_tokenised_with_their_prompt(processor):
    messages = [user(Picture(WIDE), "What is it?")]
    prompt, endings = processor.chat_endings(messages, LABELS, answer_start="It is")
    assert prompt.ids == processor.chat(messages, answer_start="It is").ids[: len(prompt)]
    assert len(prompt.places) == 1
    for label, ending in zip(LABELS, endings, strict=True):
        if label != IMAGE:
            assert prompt.ids + ending == processor.chat(messages, answer_start=f"It is {label}").ids
        assert processor.tokenizer.token_id(IMAGE) not in ending
        assert processor.tokenizer.decode(ending).strip().endswith(label)


@all_kinds
def test_endings_of_a_raw_prompt(processor):
    items = [WIDE, "This is an image of"]
    prompt, endings = processor.raw_endings(items, [" cat", " a cat", "fer"])
    for text, ending in zip([" cat", " a cat", "fer"], endings, strict=True):
        assert prompt.ids + ending == processor.raw([WIDE, "This is an image of" + text]).ids


@all_kinds
def test_endings_right_after_a_picture(processor):
    prompt, endings = processor.raw_endings([WIDE], ["cat", "dog"])
    assert prompt.ids == processor.raw([WIDE]).ids
    assert [prompt.ids + ending for ending in endings] == [
        processor.raw([WIDE, t]).ids for t in ("cat", "dog")
    ]


def test_an_ending_that_merges_with_the_prompt_moves_the_split():
    """Where "table" is one token, the prompt "a ta" and the ending "ble" share less than the prompt."""
    tokenizer = TILES.tokenizer
    whole, start = ids_of(TILES, "on the table"), ids_of(TILES, "on the ta")
    assert whole[: len(start)] != start, "the tiny vocabulary has no such merge any more: choose other words"
    prompt, (ending, other) = TILES.raw_endings(["on the ta"], ["ble", "xi"])
    assert prompt.ids + ending == whole
    assert prompt.ids + other == ids_of(TILES, "on the taxi")
    assert len(prompt) < len(start)
    assert tokenizer.decode(prompt.ids + other) == "on the taxi"


def test_a_single_ending_is_not_swallowed_by_the_prompt():
    prompt, (ending,) = TILES.chat_endings([user("a")], ["cat"])
    assert prompt.ids == TILES.chat([user("a")]).ids
    assert TILES.tokenizer.decode(ending) == " cat"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    question=st.text(alphabet="ae t\n<s>", max_size=8),
    labels=st.lists(st.text(alphabet="aet s>", min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_any_endings(question, labels):
    labels = [label for label in labels if label.strip()] or ["a"]
    for processor in (TILES, BESIDE):
        prompt, endings = processor.chat_endings([user(question)], labels, answer_start="It")
        for label, ending in zip(labels, endings, strict=True):
            assert prompt.ids + ending == processor.chat([user(question)], answer_start=f"It {label}").ids
            assert ending


@all_kinds
def test_blank_and_missing_endings_are_refused(processor):
    for label in ("", " ", "\n"):
        with pytest.raises(BadPrompt, match="blank"):
            processor.chat_endings([user("a")], ["cat", label])
    with pytest.raises(BadPrompt, match="no endings"):
        processor.raw_endings(["a"], [])
    with pytest.raises(BadPrompt, match="endings are text"):
        processor.raw_endings(["a"], ["a cat", f"a {IMAGE}"])


@all_kinds
def test_a_prompt_is_tokenised_once_however_many_endings(processor, monkeypatch):
    seen = []
    encode = processor.tokenizer.encode_pieces

    def spy(pieces, **limits):
        pieces = list(pieces)
        seen.append(sum(len(piece.text) for piece in pieces))
        return encode(pieces, **limits)

    monkeypatch.setattr(processor.tokenizer, "encode_pieces", spy)
    processor.chat_endings([user(Picture(WIDE), "What is it? " * 50)], [str(n) for n in range(300)])
    assert len(seen) == 302
    assert max(seen[1:]) < 60  # from the last `<end_of_utterance>` on
