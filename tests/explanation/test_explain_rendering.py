"""The picture that `Explanation.save` writes."""

import numpy as np
import pytest
from PIL import Image

from idefics import BadSetting
from idefics.explain.explanation import ExplainedWord, Explanation
from idefics.explain.rendering import BLUE, ORANGE, blend_heat


def explanation(num_words=2, num_pictures=1, is_ranking=False):
    """Words of which number n is hot in cell n of two rows of two, and cold in the last."""
    words = []
    for index in range(num_words):
        cells = np.zeros((2, 2), np.float32)
        cells.ravel()[index], cells[1, 1] = 3, -3
        words.append(
            ExplainedWord(
                f"word{index}", (index,), -0.5, -2, (cells,) * num_pictures, ((60, 60),) * num_pictures
            )
        )
    pictures = tuple(Image.new("RGB", (60, 60), "white") for _ in range(num_pictures))
    return Explanation("word0 word1", tuple(words), is_ranking, "occlusion", pictures, 5, 5)


def read_pixels(path):
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB")).astype(int)


def test_heat_is_orange_where_positive_blue_where_negative_and_gray_where_there_is_none():
    gray = np.full((1, 3, 3), 200, np.float32)
    hot, none, cold = blend_heat(gray, np.array([[2, 0, -2]], np.float32), scale=2)[0].astype(float)
    assert np.allclose(hot, 0.2 * 200 + 0.8 * np.array(ORANGE), atol=1)
    assert np.allclose(cold, 0.2 * 200 + 0.8 * np.array(BLUE), atol=1)
    assert np.allclose(none, 200)


def test_the_two_colors_differ_in_lightness_and_for_the_color_blind():
    """Without the red-green axis (deuteranopia) the blue-yellow axis must tell them apart."""
    yellow = [(color[0] + color[1]) / 2 - color[2] for color in (ORANGE, BLUE)]
    assert yellow[0] - yellow[1] > 150


def test_the_file_shows_heat_where_it_is(tmp_path):
    explanation().save(tmp_path / "map.png", words=[0])
    pixels = read_pixels(tmp_path / "map.png")
    panel = pixels[10:490, 10:490]
    redness = panel[..., 0] - panel[..., 2]
    assert redness[20, 20] > 100
    assert redness[-20, -20] < -100
    assert abs(redness[20, -20]) < 20


@pytest.mark.parametrize(
    ("arguments", "words", "panels"),
    [
        ({}, None, 1),
        ({}, "all", 3),  # the answer, and each word
        ({"num_words": 1}, "all", 1),
        ({"is_ranking": True}, None, 1),
        ({"is_ranking": True}, "all", 2),
        ({}, [1], 1),
        ({"num_pictures": 2}, None, 2),
    ],
)
def test_there_is_a_panel_for_each_word_and_picture(tmp_path, arguments, words, panels):
    explanation(**arguments).save(tmp_path / "map.png", words)
    width = read_pixels(tmp_path / "map.png").shape[1]
    assert width == panels * 490 + 10


def test_the_legend_names_the_unit(tmp_path):
    """The lower edge is not blank, and differs between units."""
    one = explanation()
    one.save(tmp_path / "map.png")
    fast = Explanation(one.answer, one.words, False, "fast", one.pictures, 5, 5)
    fast.save(tmp_path / "fast.png")
    legends = [read_pixels(tmp_path / name)[-24:] for name in ("map.png", "fast.png")]
    assert (legends[0] < 100).any()
    assert (legends[0] != legends[1]).any()


def test_wrong_words_and_suffixes_are_refused(tmp_path):
    with pytest.raises(BadSetting, match="words names 2; the words are 0 to 1"):
        explanation().save(tmp_path / "map.png", words=[2])
    with pytest.raises(BadSetting, match=r"use \.png"):
        explanation().save(tmp_path / "map.txt")
    assert not list(tmp_path.iterdir())
