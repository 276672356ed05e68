"""`encode_continuations`: the ids that all continuations of a prompt share, and the ids of each."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics.errors import BadPrompt
from idefics.messages import Picture, user
from processing.test_processor import (
    CROSS_ATTENTION_PROCESSOR,
    TILES_PROCESSOR,
    WIDE_PICTURE,
    all_kinds,
    encode_text,
)
from processing.tokenizers_tiny import IMAGE_TOKEN

LABELS = ["cat", "a cat", "catfish", "dog", "the red ball", "7", f"{IMAGE_TOKEN}", "日本"]


@all_kinds
def test_continuations_of_a_chat_are_tokenized_with_their_prompt(processor):
    messages = [user(Picture(WIDE_PICTURE), "What is it?")]
    prompt, endings = processor.encode_chat_continuations(messages, LABELS, answer_start="It is")
    assert prompt.ids == processor.encode_chat(messages, answer_start="It is").ids[: len(prompt)]
    assert len(prompt.image_token_positions) == 1
    for label, ending in zip(LABELS, endings, strict=True):
        if label != IMAGE_TOKEN:
            assert prompt.ids + ending == processor.encode_chat(messages, answer_start=f"It is {label}").ids
        assert processor.tokenizer.token_to_id(IMAGE_TOKEN) not in ending
        assert processor.tokenizer.decode(ending).strip().endswith(label)


@all_kinds
def test_continuations_of_a_raw_prompt(processor):
    items = [WIDE_PICTURE, "This is an image of"]
    prompt, endings = processor.encode_raw_continuations(items, [" cat", " a cat", "fer"])
    for text, ending in zip([" cat", " a cat", "fer"], endings, strict=True):
        assert prompt.ids + ending == processor.encode_raw([WIDE_PICTURE, "This is an image of" + text]).ids


@all_kinds
def test_continuations_right_after_a_picture(processor):
    prompt, endings = processor.encode_raw_continuations([WIDE_PICTURE], ["cat", "dog"])
    assert prompt.ids == processor.encode_raw([WIDE_PICTURE]).ids
    assert [prompt.ids + ending for ending in endings] == [
        processor.encode_raw([WIDE_PICTURE, t]).ids for t in ("cat", "dog")
    ]


def test_a_continuation_that_merges_with_the_prompt_moves_the_split():
    """Where "table" is one token, the prompt "a ta" and the ending "ble" share less than the prompt."""
    tokenizer = TILES_PROCESSOR.tokenizer
    whole, start = encode_text(TILES_PROCESSOR, "on the table"), encode_text(TILES_PROCESSOR, "on the ta")
    assert whole[: len(start)] != start, "the tiny vocabulary has no such merge any more: choose other words"
    prompt, (ending, other) = TILES_PROCESSOR.encode_raw_continuations(["on the ta"], ["ble", "xi"])
    assert prompt.ids + ending == whole
    assert prompt.ids + other == encode_text(TILES_PROCESSOR, "on the taxi")
    assert len(prompt) < len(start)
    assert tokenizer.decode(prompt.ids + other) == "on the taxi"


def test_a_single_continuation_is_not_swallowed_by_the_prompt():
    prompt, (ending,) = TILES_PROCESSOR.encode_chat_continuations([user("a")], ["cat"])
    assert prompt.ids == TILES_PROCESSOR.encode_chat([user("a")]).ids
    assert TILES_PROCESSOR.tokenizer.decode(ending) == " cat"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    question=st.text(alphabet="ae t\n<s>", max_size=8),
    labels=st.lists(st.text(alphabet="aet s>", min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_any_continuations(question, labels):
    labels = [label for label in labels if label.strip()] or ["a"]
    for processor in (TILES_PROCESSOR, CROSS_ATTENTION_PROCESSOR):
        prompt, endings = processor.encode_chat_continuations([user(question)], labels, answer_start="It")
        for label, ending in zip(labels, endings, strict=True):
            assert (
                prompt.ids + ending == processor.encode_chat([user(question)], answer_start=f"It {label}").ids
            )
            assert ending


@all_kinds
def test_blank_and_missing_continuations_are_refused(processor):
    for label in ("", " ", "\n"):
        with pytest.raises(BadPrompt, match="blank"):
            processor.encode_chat_continuations([user("a")], ["cat", label])
    with pytest.raises(BadPrompt, match="no continuations"):
        processor.encode_raw_continuations(["a"], [])
    with pytest.raises(BadPrompt, match="continuations are text"):
        processor.encode_raw_continuations(["a"], ["a cat", f"a {IMAGE_TOKEN}"])


@all_kinds
def test_a_prompt_is_tokenized_once_however_many_continuations(processor, monkeypatch):
    seen = []
    encode = processor.tokenizer.encode_pieces

    def spy(pieces, **limits):
        pieces = list(pieces)
        seen.append(sum(len(piece.text) for piece in pieces))
        return encode(pieces, **limits)

    monkeypatch.setattr(processor.tokenizer, "encode_pieces", spy)
    processor.encode_chat_continuations(
        [user(Picture(WIDE_PICTURE), "What is it? " * 50)], [str(n) for n in range(300)]
    )
    assert len(seen) == 302
    assert max(seen[1:]) < 60  # from the last `<end_of_utterance>` on
