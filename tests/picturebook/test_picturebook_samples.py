"""Samples of the picture book: their texts, checked against the scenes independently."""

import random
import re
from collections import Counter

import pytest

from picturebook import (
    CATALOG,
    DETAILED_KINDS,
    WEIGHT_BY_KIND,
    class_id_of,
    is_held_out_scene,
    iterate_texts,
    make_sample,
)
from picturebook.things import CATEGORY_PLURALS, COLOR_RGB, POSITION_PHRASES, SHAPES
from picturebook.words import count_phrase, with_article

KINDS = (*WEIGHT_BY_KIND, *DETAILED_KINDS)
NUMBER_BY_WORD = {"None": 0, "One": 1, "Two": 2, "Three": 3, "Four": 4}
SINGULAR_BY_PLURAL = {thing.plural: thing.name for thing in CATALOG} | {
    f"{shape}s": shape for shape in SHAPES
}
SINGULAR_BY_PLURAL["crosses"] = "cross"
FRENCH = ["rouge", "orange", "jaune", "vert", "bleu", "violet", "noir", "blanc"]
DIRECTIONS = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}


def make_samples(kind, number=300, split="train", seed=2):
    rng = random.Random(seed)
    return [make_sample(rng, split, kind) for _ in range(number)]


def question_text(turn):
    return next(part for part in turn.parts if isinstance(part, str))


def items_named(scene, name):
    """The items that have a name."""
    return [item for item in scene.items if item.thing.name == name or item.thing.name.endswith(f" {name}")]


def cell_position(item):
    return item.cell % 3, item.cell // 3


def is_in_relation(scene, relation, item):
    axis, way = DIRECTIONS[relation]
    return [
        other for other in scene.items if way * (cell_position(item)[axis] - cell_position(other)[axis]) > 0
    ]


def with_indefinite_article(name):
    return ("An " if name[0] in "aeiou" else "A ") + name + "."


def describe_scene(scene):
    """The answer to "What is in this image?", computed independently."""
    names = list(dict.fromkeys(item.thing.name for item in scene.items))
    phrases = []
    for name in names:
        found = items_named(scene, name)
        number = ["", "", "two ", "three ", "four "][len(found)]
        phrases.append(
            number + found[0].thing.plural
            if number
            else with_indefinite_article(name)[:-1].lower().replace("christ", "Christ")
        )
    text = " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]
    return text[0].upper() + text[1:] + "."


def expected_answer(question, scene):
    """The answer to a question, derived from its text."""
    if question in ("What is in this image?", "What is in this picture?", "What can you see?"):
        return describe_scene(scene)
    if question == "How many things are there?":
        return list(NUMBER_BY_WORD)[len(scene.items)] + "."
    if question == "Is it day or night?":
        return "Night." if scene.is_night else "Day."
    if re.fullmatch(r"What colou?r is the ground\?", question):
        return scene.ground.capitalize() + "."
    if match := re.fullmatch(r"What colou?r is the (\w+)\?", question):
        (item,) = items_named(scene, match[1])
        return item.thing.name.split()[0].capitalize() + "."
    if match := re.fullmatch(r"How many (.+) are there\?", question):
        if match[1] in CATEGORY_PLURALS.values():
            found = [item for item in scene.items if CATEGORY_PLURALS[item.thing.category] == match[1]]
        else:
            found = items_named(scene, SINGULAR_BY_PLURAL[match[1]])
        return list(NUMBER_BY_WORD)[len(found)] + "."
    if match := re.fullmatch(r"Where is the (.+)\?", question):
        (item,) = items_named(scene, match[1])
        return POSITION_PHRASES[item.cell].capitalize() + "."
    if match := re.fullmatch(r"Is there (an?) (.+)\?", question):
        assert match[1] == ("an" if match[2][0] in "aeiou" else "a")
        return "Yes." if items_named(scene, match[2]) else "No."
    if match := re.fullmatch(r"Is the (.+) large or small\?", question):
        (item,) = items_named(scene, match[1])
        return item.size.capitalize() + "."
    if match := re.fullmatch(r"Is the (.+) (left of|right of|above|below) the (.+)\?", question):
        (first,), (second,) = items_named(scene, match[1]), items_named(scene, match[3])
        axis = DIRECTIONS[match[2]][0]
        assert cell_position(first)[axis] != cell_position(second)[axis]
        return "Yes." if first in is_in_relation(scene, match[2], second) else "No."
    if match := re.fullmatch(r"What is (left of|right of|above|below) the (.+)\?", question):
        (item,) = items_named(scene, match[2])
        found = is_in_relation(scene, match[1], item)
        assert len(found) < 2
        return with_indefinite_article(found[0].thing.name) if found else "Nothing."
    match = re.fullmatch(r"What is ((?:at|on|in) .+)\?", question)
    found = [item for item in scene.items if POSITION_PHRASES[item.cell] == match[1]]
    return with_indefinite_article(found[0].thing.name) if found else "Nothing."


@pytest.mark.parametrize("split", ["train", "held-out"])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_well_formed(kind, split):
    for sample in make_samples(kind, 60, split):
        assert sample.kind.split("/")[0] == kind.split("/")[0]
        assert [turn.role for turn in sample.turns] == ["user", "assistant"] * (len(sample.turns) // 2)
        pictures = [part for turn in sample.turns for part in turn.parts if isinstance(part, int)]
        assert pictures == list(range(len(sample.scenes)))
        assert sample.turns[-1].is_target
        assert sample.is_raw_prompt == (kind.split("/")[0] == "raw")
        for turn in sample.turns:
            if turn.role == "assistant":
                (answer,) = turn.parts
                assert answer == answer.strip() != ""
            elif not sample.is_raw_prompt:
                assert [isinstance(part, str) for part in turn.parts] == [False] * (len(turn.parts) - 1) + [
                    True
                ]
        asked = sample.scenes[-1:] if "shots" in sample.kind else sample.scenes
        assert all(is_held_out_scene(scene) == (split == "held-out") for scene in asked)


def test_the_same_seed_gives_the_same_samples():
    for kind in KINDS:
        assert make_samples(kind, 5) == make_samples(kind, 5)
    assert list(iterate_texts(50, 3)) == list(iterate_texts(50, 3)) != list(iterate_texts(50, 4))


def test_questions_are_answered_right():
    for sample in make_samples("question", 3000):
        (scene,) = sample.scenes
        for asked, answered in zip(sample.turns[::2], sample.turns[1::2], strict=True):
            assert answered.parts == (expected_answer(question_text(asked), scene),)
        assert len(sample.turns) == 2 or 6 <= len(sample.turns) <= 14


@pytest.mark.parametrize("topic", ["exists", "relation"])
def test_yes_and_no_are_as_frequent(topic):
    answers = Counter(sample.turns[1].parts[0] for sample in make_samples(f"question/{topic}", 1500))
    assert set(answers) == {"Yes.", "No."}
    assert 0.43 < answers["Yes."] / 1500 < 0.57


def test_captions_say_everything():
    for sample in make_samples("caption") + make_samples("raw/caption"):
        (scene,), text = sample.scenes, sample.turns[-1].parts[0]
        things, ground = text.rsplit(", on ", 1)
        assert ground == f"{scene.ground} ground{' at night' if scene.is_night else ''}."
        said = re.split(r", (?=a )| and (?=a )", things[0].lower() + things[1:])
        assert said == [
            f"a {item.size} {item.thing.name} {POSITION_PHRASES[item.cell]}" for item in scene.items
        ]


def test_completions_continue_their_prefix():
    beginnings = set()
    for sample in make_samples("complete", 600):
        answer, given = sample.turns[1].parts[0], sample.turns[1].answer_prefix
        assert given == given.strip() != ""
        assert answer[0].islower() or answer.startswith("Christmas")
        beginnings.add(given)
        assert answer.endswith((sample.scenes[0].ground + " ground.", "ground.", "night."))
    assert "This is an image of" in beginnings
    raw = [sample.turns[0].parts for sample in make_samples("raw/complete", 100)]
    assert (0, "This is an image of ") in raw


def test_exactly_one_label_fits():
    for sample in make_samples("classify", 3000) + make_samples("raw/classify", 1000):
        (scene,), right = sample.scenes, sample.turns[1].parts[0]
        text = " ".join(part for part in sample.turns[0].parts if isinstance(part, str))
        listed = re.search(r"following list: \[?(.+?)\]?\.(?:\n|$)", text)[1]
        labels = [label.strip("'") for label in listed.split(", ")]
        assert labels.count(right) == 1
        assert 2 <= len(labels) == len(set(labels)) <= 8
        fitting = set()
        for item in scene.items:
            thing = item.thing
            fitting |= {thing.name, thing.plural, thing.category, CATEGORY_PLURALS[thing.category]}
            if thing.category in ("building", "landmark"):
                fitting.add("city landscape")
        fits = [label for label in labels if label in fitting or label[0].lower() + label[1:] in fitting]
        assert fits == [right]


def test_stories_name_everything():
    for sample in make_samples("story"):
        (scene,), text = sample.scenes, sample.turns[1].parts[0]
        assert text.startswith("Once upon a time, ")
        assert f"on {scene.ground} ground" in text
        assert any(word in text for word in (("stars", "night") if scene.is_night else ("sun", "bright")))
        for what, count in Counter(item.class_id for item in scene.items).items():
            assert count_phrase(what, count) in text
        assert 3 <= text.count(".") <= 4


def test_named_forms():
    for sample in make_samples("shots/fact") + make_samples("raw/shots"):
        for scene, answer in zip(sample.scenes, sample.turns[1::2], strict=not sample.is_raw_prompt):
            if sample.kind == "shots/fact":
                thing = scene.items[0].thing
                article = "an" if thing.name[0] in "aeiou" else "a"
                assert answer.parts == (f"An image of {article} {thing.name}. Fun fact: {thing.fact}",)
    for sample in make_samples("shots/upper"):
        for scene, answer in zip(sample.scenes, sample.turns[1::2], strict=True):
            assert answer.parts[0] == describe_scene(scene)[:-1].upper()
    for sample in make_samples("shots/counted"):
        for scene, answer in zip(sample.scenes, sample.turns[1::2], strict=True):
            numbers = [int(part.split()[0]) for part in answer.parts[0].split(", ")]
            assert sum(numbers) == len(scene.items)
    french = dict(
        zip(COLOR_RGB, ["rouge", "orange", "jaune", "vert", "bleu", "violet", "noir", "blanc"], strict=True)
    )
    in_french = 0
    for sample in make_samples("shots/language"):
        colors = [scene.items[0].thing.name.split()[0] for scene in sample.scenes]
        assert colors[0] != "orange"
        answers = [turn.parts[0] for turn in sample.turns[1::2]]
        if answers[0] in french.values():
            in_french += 1
            assert answers == [french[color] for color in colors]
    assert in_french > 60


def test_only_the_first_shot_is_no_target():
    for sample in make_samples("shots"):
        assert [turn.is_target for turn in sample.turns[1::2]] == [False] + [True] * (len(sample.scenes) - 1)
        assert 2 <= len(sample.scenes) <= 4


QUESTION_BY_RECALL_QUESTION = {
    "What was in the first image?": "What is in this image?",
    "What color was the ground in the first image?": "What color is the ground?",
    "Was it day or night in the first image?": "Is it day or night?",
    "How many things were there in the first image?": "How many things are there?",
}


def test_conversations_ask_only_what_was_said_or_is_visible():
    recalled = again = 0
    for sample in make_samples("chat", 3000):
        first, second = sample.scenes
        said, scene = [], first
        for asked, answered in zip(sample.turns[::2], sample.turns[1::2], strict=True):
            question, (answer,) = question_text(asked), answered.parts
            if 1 in asked.parts:
                scene = second
                if question in ("And in this one?", "And this one?", "What about this one?"):
                    question, again = question_text(sample.turns[0]), again + 1
            if question in QUESTION_BY_RECALL_QUESTION:
                recalled += 1
                assert answer == expected_answer(QUESTION_BY_RECALL_QUESTION[question], first)
                assert answer in said
            elif question in ("Where is it?", "Is it large or small?"):
                assert len(second.items) == 1
                assert answer == expected_answer(
                    question.replace("it", f"the {second.items[0].thing.name}", 1), second
                )
            elif "image." in question or question == "Can you describe this image?":
                assert answer.endswith(("ground.", "ground at night."))
            else:
                assert answer == expected_answer(question, scene)
            said.append(answer)
    assert again > 1000
    assert recalled > 300


def test_the_grid_lists_nine_cells():
    for sample in make_samples("readout"):
        cells = sample.turns[1].parts[0].rstrip(".").split(", ")
        assert len(cells) == 9
        assert {index: name for index, name in enumerate(cells) if name != "none"} == {
            item.cell: item.thing.name for item in sample.scenes[0].items
        }


def test_raw_prompts_are_those_of_the_guides():
    asked = make_samples("raw/ask", 1)[0].turns[0].parts
    assert asked[0] == "Instruction: Provide an answer to the question. Use the image to answer.\n"
    assert re.fullmatch(r"Question: .+\? Answer:", asked[2])
    told = make_samples("raw/story", 1)[0].turns[0].parts
    assert told == ("Instruction: Use the image to write a story. \n", 0, "Story: \n")
    labelled = make_samples("raw/classify", 1)[0].turns[0].parts
    assert labelled[2] == "Category: "
    for sample in make_samples("raw/shots", 20):
        parts = sample.turns[0].parts
        assert parts[0] == "User:"
        assert re.fullmatch(r"Describe this image.\nAssistant: .+\n", parts[2])
        assert parts[-1] == "Describe this image.\nAssistant:"


def test_articles():
    assert with_article("orange circle") == "an orange circle"
    assert count_phrase(class_id_of("ice cream"), 1) == "an ice cream"
    assert count_phrase(class_id_of("fish"), 2) == "two fish"


def test_the_vocabulary_is_small():
    words = {word.strip(".,:;!?'[]-") for text in iterate_texts(8000, 1) for word in text.split()}
    assert len(words) < 900


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="no kind of sample is named 'poem'"):
        make_sample(random.Random(0), "train", "poem")
