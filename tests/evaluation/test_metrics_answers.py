"""ANLS, exact match and the most likely label, on cases worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idefics.errors import BadSetting
from idefics.evaluate.metrics.accuracy import choice_accuracy, exact_match, most_likely
from idefics.evaluate.metrics.anls import anls, levenshtein


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("abc", "abc", 0),
        ("ab", "ba", 2),
        ("sunday", "saturday", 3),
    ],
)
def test_levenshtein_counts_insertions_deletions_and_replacements(first, second, distance):
    assert levenshtein(first, second) == levenshtein(second, first) == distance


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("Invoice", ["invoice"], 1.0),
        (" invoice. ", ["invoice"], 1.0),
        ("..invoice..", ["invoice"], 1.0),
        ("invoice .", ["invoice"], 1 - 1 / 8),  # full stops go after spaces: one space is left
        ("invoice", ["invoice."], 1 - 1 / 8),  # references lose nothing
        ("invoice", [" invoice"], 1 - 1 / 8),
        ("invoices", ["invoice", "bill"], 1 - 1 / 8),
        ("bill", ["invoice", "bill"], 1.0),
        ("abcd", ["abxx"], 0.0),  # a similarity of exactly one half
        ("abcde", ["abcxx"], 0.6),
        ("", [""], 0.0),
        (" . ", ["."], 0.0),
        ("x", [""], 0.0),
        ("x", [], 0.0),
    ],
)
def test_anls_is_the_similarity_to_the_nearest_reference(answer, references, score):
    assert anls(answer, references) == pytest.approx(score, abs=1e-12)


SHORT_TEXTS = st.text("ab .", max_size=5)


@given(SHORT_TEXTS, st.lists(SHORT_TEXTS, min_size=1), st.randoms(use_true_random=False))
def test_anls_is_0_or_above_one_half_in_any_order(answer, references, random):
    score = anls(answer, references)
    assert score == 0.0 or 0.5 < score <= 1.0
    assert anls(answer, random.sample(references, len(references))) == score
    assert anls(answer, [*references, answer]) >= score


@given(SHORT_TEXTS, SHORT_TEXTS, SHORT_TEXTS)
def test_levenshtein_is_a_distance(first, second, third):
    assert (levenshtein(first, second) == 0) == (first == second)
    assert levenshtein(first, third) <= levenshtein(first, second) + levenshtein(second, third)


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("A red  Star.", ["a red star"], 1.0),
        ("a red star", ["A Red Star. "], 1.0),
        ("star", ["a star", "star"], 1.0),
        ("star", ["a star"], 0.0),
        ("STRASSE", ["straße"], 1.0),
        ("1.5", ["15"], 0.0),
        ("", [], 0.0),
    ],
)
def test_exact_match_disregards_case_spaces_and_full_stops(answer, references, score):
    assert exact_match(answer, references) == score


def test_the_first_of_equal_log_probabilities_is_chosen():
    assert most_likely([-3.0, -1.0, -2.0]) == 1
    assert most_likely([-1.0, -0.5, -0.5]) == 1
    assert (choice_accuracy([-3.0, -1.0], 1), choice_accuracy([-3.0, -1.0], 0)) == (1.0, 0.0)
    assert most_likely([float("-inf")]) == 0


@pytest.mark.parametrize("log_probabilities", [[], [-1.0, float("nan")]])
def test_log_probabilities_are_numbers(log_probabilities):
    with pytest.raises(BadSetting, match="give at least one, and only numbers"):
        most_likely(log_probabilities)
