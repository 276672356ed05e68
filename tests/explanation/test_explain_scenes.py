"""Maps of both demo checkpoints about drawn scenes: where they are hot, and what covering the hot parts does."""

import random

import numpy as np
import pytest

import idefics
from explanation.scenes import placed_questions
from idefics.explain.covering import CoverablePicture
from picturebook.drawing import FONT_PATH

pytestmark = pytest.mark.skipif(not FONT_PATH.is_file(), reason="needs the package fonts-noto-color-emoji")
FEW, MANY = 12, 200


@pytest.fixture(scope="module", params=["demo", "demo-idefics1"])
def vlm(request):
    with idefics.load(request.param, feature_cache=False) as model:
        yield model


def losses_by_cover(vlm, one, masks):
    """What the log-probability of the answer loses when each mask of cells is covered."""
    prompt, _ = vlm.score([idefics.user(idefics.Picture(one.pixels), one.question)], [one.answer])
    picture = CoverablePicture(prompt.pictures[0])
    (ids,) = vlm.processor.encode_chat_continuations(
        [idefics.user(idefics.Picture(one.pixels), one.question)], [one.answer]
    ).continuations
    full, *covered = (
        sum(vlm.engine.score(prompt.with_last_pictures([image]), [ids])[0])
        for image in (picture.image, *map(picture.cover, masks))
    )
    return [full - score for score in covered]


def hottest_fifth(cells):
    mask = np.zeros(cells.size, bool)
    mask[np.argsort(-cells.ravel(), kind="stable")[: round(cells.size / 5)]] = True
    return mask.reshape(cells.shape)


def random_fifth(rng, shape):
    """A square of a fifth of the picture; scattered cells of a fifth hide nothing, and would be the easier rival."""
    side = round(shape[0] / 5**0.5)
    top, left = (rng.randrange(shape[0] - side + 1) for _ in range(2))
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def measure(vlm, number):
    """(share of maps whose peak is in the thing, loss of the hottest fifth, mean loss of random fifths)."""
    rng, hits, hot, cold = random.Random(1), 0, [], []
    for one in placed_questions(number):
        cells = vlm.explain(one.pixels, one.question, one.answer).total.cells[0]
        hits += one.holds_peak(cells)
        masks = [hottest_fifth(cells), *(random_fifth(rng, cells.shape) for _ in range(3))]
        first, *others = losses_by_cover(vlm, one, masks)
        hot.append(first)
        cold.append(np.mean(others))
    return hits / number, np.mean(hot), np.mean(cold)


def assert_maps_are_right(vlm, number):
    pointed, hot, cold = measure(vlm, number)
    print(
        f"{number} questions: peak in the thing {pointed:.1%}, hottest fifth {hot:.2f}, random {cold:.2f} nats"
    )
    assert pointed >= 0.9
    assert hot >= 5 * cold > 0


def test_the_peak_is_in_the_thing_and_covering_it_costs_most(vlm):
    assert_maps_are_right(vlm, FEW)


@pytest.mark.slow
def test_the_peak_is_in_the_thing_and_covering_it_costs_most_for_many_questions(vlm):
    assert_maps_are_right(vlm, MANY)


def test_a_word_that_does_not_depend_on_the_picture_has_a_flat_map(vlm):
    """Every place has "the" in its second word; the words after it say which place."""
    where = [one for one in placed_questions(40) if one.question.startswith("Where")]
    for one in where[:5]:
        words = vlm.explain(one.pixels, one.question, one.answer).words
        assert words[1].text == "the"
        hottest = max(word.cells[0].max() for word in words)
        assert np.abs(words[1].cells[0]).max() < 0.02 * hottest
        assert words[1].words_share > 0.9
        assert min(word.words_share for word in words) < 0.9


def test_the_sum_of_a_map_is_stable_between_grids(vlm):
    """A map's mean over its cells, which is its sum over the picture's area."""
    means = np.array(
        [
            [
                vlm.explain(one.pixels, one.question, one.answer, grid=grid).total.cells[0].mean()
                for grid in (8, 20)
            ]
            for one in placed_questions(4)
        ]
    )
    assert (means > 0).all()
    spread = means.max(axis=1) / means.min(axis=1)
    assert np.median(spread) < 1.25
    assert spread.max() < 1.6


def test_attention_of_one_pass_points_at_the_thing(vlm):
    questions = [one for one in placed_questions(40) if one.answer.startswith(("A ", "An "))]
    if vlm.processor.prompt_format.image_tokens == "cross_attention":
        with pytest.raises(idefics.BadSetting, match="use method='occlusion'"):
            vlm.explain(questions[0].pixels, questions[0].question, method="fast")
        return
    explanations = [vlm.explain(one.pixels, one.question, one.answer, method="fast") for one in questions]
    assert {one.unit for one in explanations} == {"share of attention (approximation)"}
    hits = [
        one.holds_peak(explanation.words[-1].cells[0])
        for one, explanation in zip(questions, explanations, strict=True)
    ]
    assert np.mean(hits) >= 0.9
