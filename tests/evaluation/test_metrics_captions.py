"""PTB tokenisation and CIDEr-D, equal to what pycocoevalcap 1.2 answers."""

import importlib.util
import json
import random
import shutil
import time
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idefics.errors import BadSetting
from idefics.evaluate.metrics.cider import cider_d, cider_d_of_tokens
from idefics.evaluate.metrics.ptb_tokenizer import tokenize_ptb

# Captions written for this test, and the tokens that pycocoevalcap makes of them.
CAPTIONS = [
    (row["caption"], row["tokens"].split())
    for row in map(
        json.loads, Path(__file__).with_name("ptb_captions.jsonl").read_text(encoding="utf-8").splitlines()
    )
]

# Caption, references, and the score that pycocoevalcap gives to the caption among all of these.
SCORED = [
    (
        "A red star sits above a blue circle.",
        [
            "A red star is above a blue circle.",
            "There is a red star over a blue circle",
            "The star's red; the circle isn't.",
        ],
        3.587445242704525,
    ),
    (
        "Two dogs are playing with a ball in the grass.",
        [
            "Two dogs play with a ball on the grass",
            "A pair of dogs playing ball in a park",
            "Dogs running after a ball",
        ],
        1.9420677552004415,
    ),
    (
        "A man riding a wave on top of a surfboard.",
        ["A man riding a wave on top of a surfboard.", "A surfer rides a big wave."],
        5.210602971699892,
    ),
    (
        "A kitchen with a stove, a sink and a refrigerator.",
        [
            "A kitchen that has a stove and a sink in it",
            "The kitchen is clean and white.",
            "A sink, a stove, and a fridge in a kitchen",
            "A small kitchen",
            "kitchen",
        ],
        1.3947870676177698,
    ),
    (
        "a cat a cat a cat a cat",
        ["A cat on a mat.", "A cat sleeps."],
        0.5869056127148229,
    ),
    (
        "green",
        ["A green triangle", "green"],
        2.086117943989499,
    ),
    (
        "",
        ["Something is here.", "A thing"],
        0.0,
    ),
    (
        "A stop sign (in Spanish) on St. Mary's street",
        ["A stop sign on a street corner", "A Spanish stop sign, near St. Mary's church"],
        2.043561066617479,
    ),
    (
        "A giraffe standing in a field with trees behind it and a blue sky above it and birds.",
        ["A giraffe in a field.", "A giraffe stands among trees"],
        0.1356439085548603,
    ),
    (
        "A clock tower at 10:30 a.m.",
        ["The clock tower reads 10:30 a.m.", "A tall clock tower in the city"],
        2.240297748183939,
    ),
]

needs_reference = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None,
    reason="pycocoevalcap or Java is not installed",
)


@pytest.mark.parametrize(("caption", "tokens"), CAPTIONS, ids=[caption for caption, _ in CAPTIONS])
def test_tokens_are_those_of_pycocoevalcap(caption, tokens):
    assert tokenize_ptb(caption) == tokens


def test_line_breaks_are_spaces_and_what_cannot_be_tokenised_is_left_out():
    assert tokenize_ptb("a\u2028red\r\n\tdog\x85") == ["a", "red", "dog"]
    assert tokenize_ptb("\U0001f600\ue000\u200b") == tokenize_ptb("") == tokenize_ptb(" . , -- ") == []


PIECES = [
    "A",
    "dog.",
    "5 1/2",
    "(800) 555-1234",
    '<a b="c d">',
    "don't",
    "B.",
    "\u2028",
    "\xad",
    "\U0001f600",
    "[",
    "...",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3)).map(" ".join))
def test_tokens_have_no_spaces_and_no_capitals(text):
    assert all(token.split() == [token] and token == token.lower() for token in tokenize_ptb(text))


@pytest.mark.parametrize(
    "part", ["a5", "a.", "a,", "<a ", "5 ", "a-", "a'", "(", "a@", "www.", "1/", "&", ":", "a b=", "n't"]
)
def test_long_texts_take_no_more_than_seconds(part):
    started = time.perf_counter()
    tokenize_ptb(part * 2000)
    assert time.perf_counter() - started < 10


def test_scores_are_those_of_pycocoevalcap():
    captions, references, expected = zip(*SCORED, strict=True)
    scores = cider_d(captions, references)
    assert scores == pytest.approx(expected, abs=1e-9)
    assert fmean(scores) == pytest.approx(1.922742931728323, abs=1e-9)


def test_a_single_picture_scores_0():
    assert cider_d(["a red star"], [["a red star"]]) == [0.0]
    assert cider_d([], []) == []


def test_a_part_of_the_pictures_has_other_scores():
    captions, references, _ = zip(*SCORED, strict=True)
    assert cider_d(captions[:3], references[:3])[0] != pytest.approx(
        cider_d(captions, references)[0], abs=0.01
    )


def test_the_only_reference_scores_10():
    texts = ["a red star above", "some blue circle below", "two green squares here"]
    assert cider_d(texts, [[text] for text in texts]) == pytest.approx([10.0] * 3)


def test_a_text_of_one_word_scores_for_one_n_of_four():
    references = [[["red"]], [["blue"]], [["green", "dog"]]]
    assert cider_d_of_tokens([["red"], [], ["green"]], references)[:2] == pytest.approx([2.5, 0.0])


WORDS = st.lists(st.sampled_from(["a", "red", "blue", "dog", "cat", "on"]), max_size=8).map(" ".join)
PICTURES = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=4)), min_size=2, max_size=6)


@given(PICTURES, st.randoms(use_true_random=False))
def test_the_order_of_pictures_and_references_is_irrelevant(pictures, random):
    captions, references = zip(*pictures, strict=True)
    scores = cider_d(captions, references)
    assert all(0.0 <= score <= 10.0 + 1e-9 for score in scores)
    order = random.sample(range(len(pictures)), len(pictures))
    turned = cider_d([captions[i] for i in order], [references[i][::-1] for i in order])
    assert turned == pytest.approx([scores[i] for i in order], abs=1e-9)


@given(PICTURES)
def test_words_that_no_reference_has_score_nothing(pictures):
    references = [texts for _, texts in pictures]
    assert cider_d(["zebra stripes"] * len(pictures), references) == [0.0] * len(pictures)


def test_every_picture_has_references():
    with pytest.raises(BadSetting, match="picture 2 has no reference caption; CIDEr-D needs at least one"):
        cider_d(["a", "b"], [["a"], []])
    with pytest.raises(BadSetting, match="1 captions for 2 lists of references; give one for each"):
        cider_d(["a"], [["a"], ["b"]])


@needs_reference
def test_a_thousand_sentences_have_the_tokens_and_scores_of_pycocoevalcap():
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rng = random.Random(0)
    words = [word for caption, _ in CAPTIONS for word in caption.split()]
    sentences = [" ".join(rng.choices(words, k=rng.randint(1, 15))) for _ in range(1000)]
    # A plain line between two sentences, as the beginning of the next line may decide about the end of one.
    pairs = {i: [{"caption": text}, {"caption": "and"}] for i, text in enumerate(sentences)}
    tokenized = PTBTokenizer().tokenize(pairs)
    expected = [tokenized[i][0].split() for i in range(1000)]
    assert [tokenize_ptb(text) for text in sentences] == expected

    references = {i: [" ".join(tokens) for tokens in rng.choices(expected, k=5)] for i in range(1000)}
    _, scores = Cider().compute_score(references, {i: [" ".join(expected[i])] for i in range(1000)})
    own = cider_d_of_tokens(expected, [[text.split() for text in references[i]] for i in range(1000)])
    assert own == pytest.approx(list(scores), abs=1e-9)
