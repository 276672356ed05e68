"""`vlm.explain`: its arguments, what it returns, partial results, several pictures and videos."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

import idefics
from idefics import BadPrompt, BadSetting, RequestTimeout
from idefics.explain.explanation import ExplainedWord
from models import tiny
from shared_engine import cancel_all_requests


@pytest.fixture(scope="module", params=["demo", "demo-idefics1"])
def vlm(request):
    with idefics.load(request.param, feature_cache=False) as model:
        yield model


def disc(column, size=96, color=(220, 30, 30)):
    """A red disc in one third of a white picture."""
    down, across = np.mgrid[:size, :size]
    center = (column + 0.5) * size / 3
    inside = (down - size / 2) ** 2 + (across - center) ** 2 < (size / 7) ** 2
    return np.where(inside[..., None], np.array(color, np.uint8), np.uint8(235))


def test_the_words_are_those_of_the_models_answer_and_add_up_to_its_score(vlm):
    explanation = vlm.explain(disc(0), "What is in this image?", grid=8)
    answer = vlm.ask(disc(0), "What is in this image?").text
    assert explanation.answer == answer == " ".join(word.text for word in explanation.words)
    picture = idefics.Picture(disc(0))
    _, (scores,) = vlm.score([idefics.user(picture, "What is in this image?")], [answer])
    assert explanation.total.log_probability == pytest.approx(sum(scores), abs=1e-4)
    assert [id for word in explanation.words for id in word.tokens] == list(explanation.total.tokens)
    gray = np.full((96, 96, 3), 127, np.uint8)
    _, (scores,) = vlm.score([idefics.user(idefics.Picture(gray), "What is in this image?")], [answer])
    assert explanation.total.log_probability_without_picture == pytest.approx(sum(scores), abs=1e-3)


def test_a_later_turn_of_a_chat_is_explained_with_those_before_it(vlm):
    earlier = [("What is in this image?", "A circle."), ("Is it large?", "No.")]
    if vlm.processor.prompt_format.kind == "base":
        with pytest.raises(BadSetting, match="earlier turns are those of a chat"):
            vlm.explain(disc(0), "What colour?", "Red.", earlier=earlier)
        return
    explanation = vlm.explain(disc(0), "What colour?", "A puppy.", earlier=earlier, grid=4)
    turns = [
        idefics.user(idefics.Picture(disc(0)), earlier[0][0]),
        idefics.assistant(earlier[0][1]),
        idefics.user(earlier[1][0]),
        idefics.assistant(earlier[1][1]),
        idefics.user("What colour?"),
    ]
    _, (scores,) = vlm.score(turns, ["A puppy."])
    assert explanation.total.log_probability == pytest.approx(sum(scores), abs=1e-4)
    alone = vlm.explain(disc(0), "What colour?", "A puppy.", grid=4)
    assert abs(alone.total.log_probability - explanation.total.log_probability) > 0.01


@pytest.mark.parametrize("wrong", ["What?", [("What?",)], ["ab"], [("What?", 3)], 5])
def test_wrong_earlier_turns_are_refused(vlm, wrong):
    with pytest.raises(BadSetting, match="earlier has"):
        vlm.explain(disc(0), "What colour?", "Red.", earlier=wrong)


def test_a_given_answer_is_explained_though_the_model_would_say_something_else(vlm):
    explanation = vlm.explain(disc(2), "What is in this image?", "A puppy.", grid=4)
    assert [word.text for word in explanation.words] == ["A", "puppy."]
    assert explanation.total.log_probability < math.log(0.5)


def test_maps_have_the_size_of_the_picture_and_the_cells_that_were_asked_for(vlm):
    wide = Image.fromarray(disc(1)).resize((240, 120))
    word = vlm.explain(wide, "What is in this image?", grid=8).words[-1]
    assert word.heat.shape == (120, 240)
    assert word.cells[0].shape == (4, 8)
    assert word.heat.dtype == np.float32
    assert word.heat.max() == pytest.approx(word.cells[0].max(), rel=0.2)


def test_partial_results_come_as_they_grow_and_the_last_is_the_result(vlm):
    partial = list(vlm.explain(disc(0), "What is in this image?", stream=True))
    passes = [one.num_passes for one in partial]
    assert passes == sorted(set(passes))
    assert passes[0] == 2 + 9
    assert passes[-1] == partial[0].max_passes == 2 + 9 + 24 + 32
    assert all(after - before <= 16 for before, after in pairwise(passes))
    whole = vlm.explain(disc(0), "What is in this image?")
    assert_equal(whole, partial[-1])


def assert_equal(one, other):
    """Equal but for the last bits, which a cached prefix may change."""
    assert [word.text for word in one.words] == [word.text for word in other.words]
    for first, second in zip(one.words, other.words, strict=True):
        assert np.allclose(first.cells[0], second.cells[0], atol=2e-3)
        assert first.log_probability == pytest.approx(second.log_probability, abs=2e-3)


def test_equal_calls_give_equal_explanations_whatever_is_cached(vlm):
    first = vlm.explain(disc(0), "What is in this image?")
    vlm.engine.clear_caches()
    assert_equal(first, vlm.explain(disc(0), "What is in this image?"))


def test_an_iterator_that_ends_early_leaves_nothing_running(vlm):
    explanations = vlm.explain(disc(0), "What is in this image?", stream=True)
    next(explanations)
    explanations.close()
    assert not vlm.engine.is_busy
    cancel_all_requests(vlm.engine)


def test_a_call_that_takes_too_long_raises(vlm):
    with pytest.raises(RequestTimeout):
        vlm.explain(disc(0), "What is in this image?", timeout=0.03)
    assert not vlm.engine.is_busy


def test_of_several_pictures_the_one_with_the_thing_is_hot(vlm):
    empty = np.full((96, 96, 3), 235, np.uint8)
    explanation = vlm.explain([empty, disc(1)], "What is in this image?", "A red circle.", grid=8)
    assert [picture.size for picture in explanation.pictures] == [(96, 96)] * 2
    nothing, thing = explanation.total.cells
    assert thing.max() > 4 * np.abs(nothing).max()
    assert explanation.total.heat_of(1).shape == (96, 96)


def test_labels_are_explained_in_the_order_of_their_probability(vlm):
    labels = ["puppy", "red circle", "car"]
    explanation = vlm.explain(disc(1), labels=labels, grid=8)
    ranking = vlm.classify(disc(1), labels)
    assert [word.text for word in explanation.words] == [row.label for row in ranking]
    scores = [word.log_probability for word in explanation.words]
    assert scores == pytest.approx([row.logprob for row in ranking], abs=1e-3)
    assert explanation.answer == explanation.total.text == ranking.best
    assert explanation.is_ranking


def test_shots_are_shown_and_not_explained(vlm):
    shots = [idefics.Shot(idefics.Picture(disc(0)), "A red circle.")]
    explanation = vlm.with_shots(shots).explain(disc(2), "What is in this image?", "A red circle.", grid=4)
    assert len(explanation.pictures) == len(explanation.words[0].cells) == 1


def test_json_holds_everything_but_the_pictures(vlm):
    explanation = vlm.explain(disc(1), "What is in this image?", grid=4)
    record = json.loads(explanation.to_json())
    assert record["unit"] == "nats"
    assert record["pictures"] == [{"width": 96, "height": 96}]
    assert record["num_passes"] == record["max_passes"]
    for word, entry in zip(explanation.words, record["words"], strict=True):
        assert entry["text"] == word.text
        assert np.allclose(entry["heat"][0], word.cells[0], atol=1e-4)
        assert entry["words_share"] == pytest.approx(word.words_share, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, BadPrompt, "no question given"),
        ({"question": "Q?", "method": "slow"}, BadSetting, "slow"),
        ({"question": "Q?", "grid": 3}, BadSetting, "grid"),
        ({"question": "Q?", "grid": 65}, BadSetting, "grid"),
        ({"question": "Q?", "task": "sing"}, BadSetting, "sing"),
        ({"question": "Q?", "answer": " "}, BadPrompt, "answer"),
        ({"question": "Q?", "labels": ["a", "b"]}, BadSetting, "labels are explained without a question"),
        ({"answer": "A.", "labels": ["a", "b"]}, BadSetting, "leave one of the two out"),
        ({"task": "classify"}, BadSetting, "no labels given"),
        ({"question": "Q?", "task": "caption"}, BadSetting, "takes no question"),
        ({"question": "Q?", "stream": "yes"}, BadSetting, "stream"),
        ({"labels": ["a"]}, BadSetting, "2 to"),
    ],
)
def test_wrong_arguments_are_refused_by_name(vlm, arguments, error, message):
    with pytest.raises(error, match=message):
        vlm.explain(disc(0), **arguments)


def test_the_share_of_the_words_alone_is_at_most_one():
    def share(with_picture, without):
        return ExplainedWord("a", (1,), with_picture, without, (), ()).words_share

    assert share(-1.0, -1.0 - math.log(4)) == pytest.approx(0.25)
    assert share(-2.0, -1.0) == 1


def test_a_video_is_explained_frame_by_frame(tmp_path):
    tiny.write_complete_checkpoint(tmp_path, tiny.IDEFICS3)
    path = tmp_path / "preprocessor_config.json"
    sampling = {"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 32}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"video_sampling": sampling}))
    frames = [np.full((40, 40, 3), shade, np.uint8) for shade in (0, 120, 240)]
    with idefics.load(tmp_path, feature_cache=False) as vlm:
        explanation = vlm.explain(idefics.Video(frames), "What?", "A dog.", grid=4)
    assert len(explanation.pictures) == len(explanation.words[0].cells) == 3
    shades = [int(np.asarray(picture).mean()) for picture in explanation.pictures]
    assert shades == pytest.approx([0, 120, 240], abs=2)


@pytest.mark.parametrize(
    "raw", [tiny.IDEFICS1, tiny.IDEFICS2, tiny.IDEFICS3], ids=lambda raw: raw["model_type"]
)
def test_every_family_is_explained_base_checkpoints_too(tmp_path, raw):
    """The score is that of the task's own prompt; several pictures stand before the question, after the shots."""
    tiny.write_complete_checkpoint(tmp_path, raw)
    shots = [idefics.Shot(idefics.Picture(disc(0)), "A dog.")]
    with idefics.load(tmp_path, feature_cache=False) as vlm:
        explanation = vlm.explain(disc(1), "What?", "A dog.", grid=4)
        several = vlm.with_shots(shots).explain([disc(1), disc(2)], "What?", "A dog.", grid=4)
        vlm.engine.clear_caches()
        picture = idefics.Picture(disc(1))
        if vlm.processor.prompt_format.kind == "chat":
            items, answer = [idefics.user(picture, "What?")], "A dog."
        else:
            instruction = "Instruction: Provide an answer to the question. Use the image to answer.\n"
            items, answer = [instruction, picture, "Question: What? Answer:"], " A dog."
        _, (scores,) = vlm.score(items, [answer])
    assert explanation.answer == "A dog."
    assert explanation.total.log_probability == pytest.approx(sum(scores), abs=1e-3)
    assert np.abs(explanation.total.cells[0]).max() > 0
    assert [cells.shape for cells in several.words[0].cells] == [(4, 4)] * 2
    assert all(np.abs(cells).max() > 0 for cells in several.total.cells)


def test_a_photo_is_upright_in_the_map_as_in_the_answer(tmp_path):
    """A disc on the left of a file whose orientation says that it is turned by 180 degrees is on the right."""
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(disc(0, 192)).save(path, exif=exif, quality=95)
    with idefics.load("demo", feature_cache=False) as vlm:
        explanation = vlm.explain(path, "What is in this image?", "A red circle.")
    heat = explanation.heat
    assert heat[:, 96:].max() > 3 * np.abs(heat[:, :64]).max()
    pixels = np.asarray(explanation.pictures[0]).astype(int)
    assert pixels[96, 160, 1] < 80 < 200 < pixels[96, 32, 1]
