"""Tokens become words and labels."""

import numpy as np
import pytest

import idefics
from idefics.explain.words import group_labels, group_words


@pytest.fixture(scope="module", params=["demo", "demo-idefics1"])
def tokenizer(request):
    with idefics.load(request.param) as vlm:
        yield vlm.processor.tokenizer


def words_of(tokenizer, text):
    ids = tokenizer.encode(f" {text}", add_special_tokens=False)
    return ids, group_words(tokenizer, ids, text)


def test_words_begin_at_blanks_and_hold_all_tokens(tokenizer):
    ids, words = words_of(tokenizer, "A red circle, a puppy.")
    assert [word.text for word in words] == ["A", "red", "circle,", "a", "puppy."]
    assert [id for word in words for id in word.ids] == ids
    assert [word.start for word in words] == list(np.cumsum([0, *(len(word.ids) for word in words)])[:-1])


def test_one_word_is_the_answer(tokenizer):
    _, (word,) = words_of(tokenizer, "Night.")
    assert word.text == "Night."


def test_a_character_of_several_tokens_is_one_word(tokenizer):
    _, words = words_of(tokenizer, "A 🐶 dog")
    assert [word.text for word in words] == ["A", "🐶", "dog"]


def test_labels_are_one_group_each():
    first, second = group_labels(["red", "dark blue"], [(1, 2), (3, 4, 5)])
    assert (first.text, first.ids, first.start) == ("red", (1, 2), 0)
    assert (second.text, second.ids, second.start) == ("dark blue", (3, 4, 5), 2)
    assert second.sum(np.arange(5.0)) == 2 + 3 + 4
