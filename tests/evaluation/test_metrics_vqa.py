"""VQA accuracy and its normalisers, against the rules of the official script and of the authors' code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idefics.evaluate.metrics.vqa import (
    normalize_vqa_answer,
    normalize_vqa_answer_m4,
    official_vqa_accuracy,
    vqa_accuracy,
    vqa_accuracy_m4,
)
from idefics.evaluate.metrics.vqa_words import CONTRACTIONS, NUMBERS

# Both columns are what the published functions return.
SPELLINGS = [
    ("Yes", "yes", "yes"),
    ("  a red\tdog\n", "red dog", "red dog"),
    ("The Dog and an apple", "dog and apple", "dog and apple"),
    ("none", "0", "0"),
    ("Ten dogs", "10 dogs", "10 dogs"),
    ("eleven", "eleven", "eleven"),
    ("red/blue", "red blue", "red blue"),
    ("red / blue", "red blue", "red blue"),
    ("red/blue / grey", "redblue grey", "red blue grey"),
    ("t-shirt", "t shirt", "tshirt"),
    ("well- known t-shirt", "well known tshirt", "well known tshirt"),
    ("1,000", "1000", "1 000"),
    ("1,000 red/blue", "1000 redblue", "1 000 red blue"),
    ("u.s.", "us", "u s"),
    ("1.5", "1.5", "1 5"),
    ("7.", "7", "7"),
    (".5", ".5", "5"),
    ("10:30", "10:30", "10 30"),
    ("50%", "50%", "50"),
    ("$5 & more", "$5 & more", "5 more"),
    ("dog's", "dog's", "dog's"),
    ("dont", "don't", "don't"),
    ("hed've couldnt've", "he'd've couldn't've", "he'd've couldn't've"),
    ("somebody'd", "somebodyd", "somebodyd"),
    ("Im", "im", "im"),
    ("let's", "let's", "let's"),
    ("a the an", "", ""),
    ("?!", "", ""),
    ("", "", ""),
    ("red\u2009blue\u2004green", "red blue green", "red blue\u2004green"),
    ("." * 33, ".", ""),
]


@pytest.mark.parametrize(("text", "official", "m4"), SPELLINGS)
def test_an_answer_has_the_spelling_of_the_published_scripts(text, official, m4):
    assert normalize_vqa_answer(text) == official
    assert normalize_vqa_answer_m4(text) == m4


def test_the_tables_have_the_size_of_the_published_ones():
    assert len(CONTRACTIONS) == 118  # of 120 pairs, "let's" and "she's" are spelled alike on both sides
    assert NUMBERS["ten"] == "10" and NUMBERS["none"] == NUMBERS["zero"] == "0" and len(NUMBERS) == 12


@pytest.mark.parametrize(
    ("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (5, 1.0), (9, 1.0), (10, 1.0)]
)
def test_each_of_ten_references_is_left_out_once(matches, score):
    references = ["red"] * matches + ["blue"] * (10 - matches)
    for accuracy in (vqa_accuracy, vqa_accuracy_m4, official_vqa_accuracy):
        assert accuracy("red", references) == pytest.approx(score, abs=1e-12)


def test_the_official_script_normalises_only_answers_that_differ():
    alike, differing = ["a dog"] * 10, ["a dog"] * 9 + ["cat"]
    assert (vqa_accuracy("Dog", alike), official_vqa_accuracy("Dog", alike)) == (1.0, 0.0)
    assert official_vqa_accuracy(" a\tdog\n", alike) == 1.0
    assert (vqa_accuracy("Dog", differing), official_vqa_accuracy("Dog", differing)) == (1.0, 1.0)


def test_the_two_normalisers_lead_to_different_scores():
    assert (vqa_accuracy("t-shirt", ["tshirt"] * 10), vqa_accuracy_m4("t-shirt", ["tshirt"] * 10)) == (
        0.0,
        1.0,
    )


@pytest.mark.parametrize("accuracy", [vqa_accuracy, vqa_accuracy_m4, official_vqa_accuracy])
def test_a_single_reference_is_matched_or_not(accuracy):
    assert accuracy("two", ["two"]) == 1.0
    assert accuracy("two", ["three"]) == 0.0
    assert accuracy("two", []) == 0.0


def test_a_single_reference_is_normalised_as_the_authors_did():
    assert (vqa_accuracy("Two.", ["2"]), official_vqa_accuracy("Two.", ["2"])) == (1.0, 0.0)


ANSWERS = st.text("ab .,-/12'\nT", max_size=6)
REFERENCES = st.lists(ANSWERS, min_size=2, max_size=10)


@given(ANSWERS, REFERENCES, st.randoms(use_true_random=False))
def test_the_order_of_references_is_irrelevant(answer, references, random):
    shuffled = random.sample(references, len(references))
    for accuracy in (vqa_accuracy, vqa_accuracy_m4, official_vqa_accuracy):
        assert accuracy(answer, shuffled) == accuracy(answer, references)
        assert 0.0 <= accuracy(answer, references) <= 1.0


@given(ANSWERS)
def test_an_answer_that_ten_people_gave_scores_1(answer):
    for accuracy in (vqa_accuracy, vqa_accuracy_m4, official_vqa_accuracy):
        assert accuracy(answer, [answer] * 10) == 1.0


@given(st.lists(st.sampled_from(["a", "The", "red", "Two", "none", ".", "-", "\n"])).map(" ".join))
def test_no_article_and_no_capital_is_left(text):
    words = normalize_vqa_answer(text).split()
    assert not {"a", "an", "the", "none", "two"} & set(words)
    assert not {"a", "an", "the", "none", "two"} & set(normalize_vqa_answer_m4(text).split())
    assert normalize_vqa_answer(text) == normalize_vqa_answer(text).lower()
