"""The evaluation's grading: an oracle gets everything right, and a model without knowledge nothing."""

import json
import random
import sys
from types import SimpleNamespace

import pytest

import evaluate_demo
from idefics import Picture
from picturebook import CATALOG, make_sample
from picturebook.captions import caption_clause, caption_sentence
from picturebook.drawing import FONT_PATH
from picturebook.stories import write_story
from recipe.evaluation import (
    CAPTION_PREFIX,
    EVALUATION_BY_KIND,
    FORM_CHECK_BY_NAME,
    EvaluationTask,
    find_things,
    is_fitting_story,
)

NUM_SAMPLES = 25


def scene_as_picture(scene):
    """The scene itself in place of its picture, for the oracle."""
    return Picture(scene)


def conversation_key(messages):
    return tuple(
        part.source if isinstance(part, Picture) else part for message in messages for part in message.parts
    )


class OracleModel:
    """Stands for `idefics.Idefics`: the right answers, changed by `spoil`."""

    def __init__(self, samples, spoil=lambda text: text, shots=()):
        self.samples, self.spoil, self.shots = samples, spoil, shots
        self.answer_by_conversation, self.conversations = {}, []
        for sample in samples:
            said = []
            for turn in sample.turns:
                if turn.role == "assistant":
                    self.answer_by_conversation[tuple(said)] = turn.parts[0]
                said += [sample.scenes[part] if isinstance(part, int) else part for part in turn.parts]

    def answer(self, text):
        return SimpleNamespace(text=self.spoil(text))

    def chat(self, conversations):
        self.conversations += map(list, conversations)
        return [
            self.answer(self.answer_by_conversation.get(conversation_key(messages), "lost"))
            for messages in conversations
        ]

    def generate(self, prompts):
        return [
            self.answer(self.answer_by_conversation[conversation_key([SimpleNamespace(parts=prompt)])])
            for prompt in prompts
        ]

    def caption(self, pictures):
        if self.shots:
            return self.ask(pictures, "Can you describe this image?")
        return [self.answer(caption_sentence(picture.source)) for picture in pictures]

    def ask(self, picture, question):
        said = []
        for shot in self.shots:
            said += [shot.picture.source, question, shot.answer]
        return self.answer(self.answer_by_conversation[(*said, picture.source, question)])

    def complete(self, pictures, words):
        return [self.answer(f"{words} {caption_clause(picture.source)}") for picture in pictures]

    def write(self, pictures):
        return [self.answer(write_story(random.Random(0), picture.source)) for picture in pictures]

    def classify(self, picture, labels):
        (right,) = (
            sample.turns[1].parts[0]
            for sample in self.samples
            if sample.scenes[0] == picture.source and ", ".join(labels) in sample.turns[0].parts[1]
        )
        return SimpleNamespace(best=self.spoil(right))

    def with_shots(self, shots):
        return OracleModel(self.samples, self.spoil, shots)


def run_evaluation(kind, spoil=lambda text: text):
    rng = random.Random(7)
    samples = [make_sample(rng, "held-out", kind) for _ in range(NUM_SAMPLES)]
    return EvaluationTask(OracleModel(samples, spoil), kind, samples, scene_as_picture)


@pytest.mark.parametrize("kind", EVALUATION_BY_KIND)
def test_an_oracle_gets_everything_right(kind):
    marks = list(EVALUATION_BY_KIND[kind](run_evaluation(kind)))
    assert len(marks) >= NUM_SAMPLES
    assert all(mark.is_correct for mark in marks), [mark for mark in marks if not mark.is_correct][:3]


@pytest.mark.parametrize("kind", EVALUATION_BY_KIND)
def test_wrong_answers_get_nothing(kind):
    marks = list(EVALUATION_BY_KIND[kind](run_evaluation(kind, lambda text: "A unicorn.")))
    assert not any(mark.is_correct for mark in marks)


def test_conversations_continue_with_the_models_own_answers():
    talk = run_evaluation("chat", lambda text: text + " I think")
    marks = list(EVALUATION_BY_KIND["chat"](talk))
    second = [messages for messages in talk.vlm.conversations if len(messages) == 3]
    assert second
    assert all(messages[1].parts[0].endswith(" I think") for messages in second)
    follow_ups = [mark for mark in marks if mark.test == "chat/follow-up"]
    assert len(follow_ups) == sum(len(sample.turns) // 2 - 2 for sample in talk.samples)


def test_a_caption_may_be_right_in_its_things_alone():
    spoiled = list(
        EVALUATION_BY_KIND["caption"](run_evaluation("caption", lambda text: text.replace("ground", "grass")))
    )
    assert {mark.is_correct for mark in spoiled if mark.test == "caption"} == {False}
    assert {mark.is_correct for mark in spoiled if mark.test == "caption/things"} == {True}
    assert find_things("A small puppy at the top and a large red circle on the left, on pink ground.") == [
        "puppy",
        "red circle",
    ]


@pytest.mark.parametrize(
    ("form", "first", "right", "wrong"),
    [
        ("fact", "", "An image of a pig. Fun fact: bananas float in water.", "An image of a pig."),
        ("fact", "", "An image of a car. Fun fact: cars have about thirty thousand parts.", "A car."),
        ("upper", "", "TWO PUPPIES, AN OWL AND A RED CIRCLE", "TWO PUPPIES, AN OWL and A RED CIRCLE"),
        ("upper", "", "A CHRISTMAS TREE", "CHRISTMAS TREE"),
        ("counted", "", "2 puppies, 1 owl", "two puppies, 1 owl"),
        ("counted", "", "1 Christmas tree", "1 Christmas trees."),
        ("language", "rouge", "orange", "rot"),
        ("language", "grün", "weiß", "weiß."),
    ],
)
def test_forms(form, first, right, wrong):
    assert FORM_CHECK_BY_NAME[form](right, first)
    assert not FORM_CHECK_BY_NAME[form](wrong, first)


@pytest.mark.parametrize("form", FORM_CHECK_BY_NAME)
def test_the_form_can_be_right_and_the_content_wrong(form):
    """The answer for another picture has the right form and the wrong content."""
    for mark in EVALUATION_BY_KIND[f"shots/{form}"](run_evaluation(f"shots/{form}")):
        others = {
            "fact": "An image of a key. Fun fact: keys were first made of wood.",
            "upper": "FOUR KEYS",
            "counted": "4 keys",
        }
        if mark.test.endswith("/form") and form in others:
            assert FORM_CHECK_BY_NAME[form](others[form], mark.question)
            assert others[form] != mark.expected


def test_stories_name_the_things_the_ground_and_the_time():
    rng = random.Random(8)
    for _ in range(40):
        sample = make_sample(rng, "held-out", "story")
        (scene,), text = sample.scenes, sample.turns[1].parts[0]
        assert is_fitting_story(text, scene)
        absent = next(thing for thing in CATALOG[1:] if thing.name not in text and thing.plural not in text)
        named = scene.items[0].thing
        assert not is_fitting_story(
            text.replace(named.plural, absent.plural).replace(named.name, absent.name), scene
        )
        assert not is_fitting_story(text.replace(f"{scene.ground} ground", "no ground"), scene)
        assert not is_fitting_story(
            text + (" It was a bright day." if scene.is_night else " It was a dark night."), scene
        )


def test_the_table():
    kinds = {
        kind: list(EVALUATION_BY_KIND[kind](run_evaluation(kind)))
        for kind in EVALUATION_BY_KIND
        if not kind.startswith("raw/")
    }
    results = {"demo": [mark for marks in kinds.values() for mark in marks], "other": kinds["question/color"]}
    short, long = (evaluate_demo.format_table(results, detailed).splitlines() for detailed in (False, True))
    assert short[0] == "| % right | asked | goal | demo | other |"
    assert f"| what colour | {NUM_SAMPLES} | 95 | 100.0 | 100.0 |" in short
    assert f"| yes or no | {2 * NUM_SAMPLES} | 95 | 100.0 | – |" in short
    assert not any("raw" in line for line in long)
    assert set(short) < set(long)
    joined = {test for row in evaluate_demo.TABLE_ROWS for test in row.test_names}
    assert {mark.test for mark in results["demo"]} <= joined
    assert joined - {mark.test for mark in results["demo"]} == {
        kind for kind in EVALUATION_BY_KIND if "raw" in kind
    }
    assert any(CAPTION_PREFIX in line for line in short)


@pytest.mark.skipif(not FONT_PATH.is_file(), reason="needs the package fonts-noto-color-emoji")
def test_the_script_evaluates_a_checkpoint(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate_demo.py", "demo-idefics1", "--scenes", "1", "--json"])
    evaluate_demo.main()
    found = json.loads(capsys.readouterr().out)
    assert found["scenes"] == 1
    assert [row["row"] for row in found["rows"]] == [row.title for row in evaluate_demo.TABLE_ROWS]
    assert all(row["right_of"]["demo-idefics1"][1] >= len(row["tests"]) for row in found["rows"])
