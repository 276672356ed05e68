"""Samples of questions about one picture, each with exactly one right answer."""

import random
from collections import Counter
from collections.abc import Callable

from .scene import Scene, SceneItem
from .things import (
    CATALOG,
    CATEGORY_PLURALS,
    COLOR_RGB,
    FIRST_SHAPE_ID,
    NUM_CLASSES,
    POSITION_PHRASES,
    SHAPES,
    is_colored_shape,
    shape_and_color,
)
from .turns import ConversationSample, ConversationTurn, assistant_turn, user_turn
from .words import NUMBER_WORDS, capitalize, inventory_phrase, with_article

QuestionAndAnswer = tuple[str, str]
UNAMBIGUOUS_CATEGORIES = ("animal", "flower", "vegetable", "fruit", "vehicle", "shape")
CONTENT_QUESTIONS = ("What is in this image?", "What is in this picture?", "What can you see?")
COUNT_QUESTION = "How many things are there?"
TIME_QUESTION = "Is it day or night?"


def to_sentence(words: str) -> str:
    """The text with a capital letter and a full stop."""
    return capitalize(words) + "."


def yes_or_no(truth: bool) -> str:
    """ "Yes." or "No." """
    return "Yes." if truth else "No."


def item_names(item: SceneItem) -> tuple[str, ...]:
    """The names of an item: "puppy", or "red circle" and "circle"."""
    return (
        (item.thing.name, shape_and_color(item.class_id)[0])
        if is_colored_shape(item.class_id)
        else (item.thing.name,)
    )


def count_items_by_name(scene: Scene) -> Counter[str]:
    """Name -> number of items that have it."""
    return Counter(name for item in scene.items for name in item_names(item))


def unambiguous_names(scene: Scene) -> list[tuple[str, SceneItem]]:
    """Name -> item, for names of exactly one item."""
    count_by_name = count_items_by_name(scene)
    return [(name, item) for item in scene.items for name in item_names(item) if count_by_name[name] == 1]


def plural_of(name: str) -> str:
    """The plural of any name of `names`."""
    return PLURAL_BY_NAME[name]


PLURAL_BY_NAME = {thing.name: thing.plural for thing in CATALOG[1:]} | {
    shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES
}


def choose_absent_name(rng: random.Random, scene: Scene) -> str:
    """A random name of something that is not in the scene, often with a shape or colour that is."""
    count_by_name = count_items_by_name(scene)
    shapes = [item.class_id for item in scene.items if is_colored_shape(item.class_id)]
    while True:
        if shapes and rng.random() < 0.5:
            shape, color = shape_and_color(rng.choice(shapes))
            name = rng.choice((f"{rng.choice(tuple(COLOR_RGB))} {shape}", f"{color} {rng.choice(SHAPES)}"))
        elif rng.random() < 0.7:
            name = CATALOG[rng.randrange(1, FIRST_SHAPE_ID)].name
        else:
            name = rng.choice((CATALOG[rng.randrange(FIRST_SHAPE_ID, NUM_CLASSES)].name, rng.choice(SHAPES)))
        if not count_by_name[name]:
            return name


def choose_ground_question(rng: random.Random) -> str:
    """The question about the ground's colour, in either spelling."""
    return f"What {rng.choice(('color', 'colour'))} is the ground?"


def answer_what(scene: Scene) -> str:
    """The answer: everything in the scene."""
    return to_sentence(inventory_phrase(scene))


def answer_cell(scene: Scene, cell: int) -> str:
    """The answer: the content of one cell."""
    items_in_cell = [item for item in scene.items if item.cell == cell]
    return to_sentence(with_article(items_in_cell[0].thing.name)) if items_in_cell else "Nothing."


def answer_count(scene: Scene, name: str) -> str:
    """The answer: how many items have a name."""
    return to_sentence(NUMBER_WORDS[count_items_by_name(scene)[name]])


def answer_number(scene: Scene) -> str:
    """How many things there are."""
    return to_sentence(NUMBER_WORDS[len(scene.items)])


def answer_time(scene: Scene) -> str:
    """Day or night."""
    return "Night." if scene.is_night else "Day."


def answer_ground(scene: Scene) -> str:
    """The ground's colour."""
    return to_sentence(scene.ground)


def ask_what(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """(question, answer): what is in the picture."""
    return rng.choices(CONTENT_QUESTIONS, (2, 1, 1))[0], answer_what(scene)


def ask_cell(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """(question, answer): what is in one cell, which is empty in a quarter of the questions."""
    cell = rng.choice(scene.items).cell if rng.random() < 0.7 else rng.randrange(len(POSITION_PHRASES))
    return f"What is {POSITION_PHRASES[cell]}?", answer_cell(scene, cell)


def ask_color(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """(question, answer): the colour of a shape."""
    shapes = [item for name, item in unambiguous_names(scene) if name in SHAPES]
    if not shapes:
        return None
    shape, color = shape_and_color(rng.choice(shapes).class_id)
    return f"What {rng.choice(('color', 'colour'))} is the {shape}?", to_sentence(color)


def ask_count(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """(question, answer): how many items of one name, of one category, or in all."""
    draw = rng.random()
    if draw < 0.2:
        return COUNT_QUESTION, answer_number(scene)
    if draw < 0.35:
        category = rng.choice((scene.items[0].thing.category, rng.choice(UNAMBIGUOUS_CATEGORIES)))
        if category in UNAMBIGUOUS_CATEGORIES:
            count = sum(item.thing.category == category for item in scene.items)
            return f"How many {CATEGORY_PLURALS[category]} are there?", to_sentence(NUMBER_WORDS[count])
    name = rng.choice(item_names(rng.choice(scene.items))) if draw < 0.85 else choose_absent_name(rng, scene)
    return f"How many {plural_of(name)} are there?", answer_count(scene, name)


def ask_number(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """How many things there are."""
    return COUNT_QUESTION, answer_number(scene)


def ask_where(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """(question, answer): the position of a thing."""
    names_and_items = unambiguous_names(scene)
    if not names_and_items:
        return None
    name, item = rng.choice(names_and_items)
    return f"Where is the {name}?", to_sentence(item.position_phrase)


def ask_exists(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """(question, answer): whether something is there; half the time it is."""
    is_true = rng.random() < 0.5
    name = rng.choice(item_names(rng.choice(scene.items))) if is_true else choose_absent_name(rng, scene)
    return f"Is there {with_article(name)}?", yes_or_no(is_true)


def item_column(item: SceneItem) -> int:
    """The item's column, 0 to 2."""
    return item.cell % 3


def item_row(item: SceneItem) -> int:
    """The item's row, 0 to 2."""
    return item.cell // 3


# A relation's words, the axis it is about, and the way it points along that axis.
AXIS_AND_SIGN_BY_RELATION: dict[str, tuple[Callable[[SceneItem], int], int]] = {
    "left of": (item_column, -1),
    "right of": (item_column, 1),
    "above": (item_row, -1),
    "below": (item_row, 1),
}


def is_related(first: SceneItem, relation: str, second: SceneItem) -> bool:
    """Whether the first item is, say, left of the second."""
    axis, sign = AXIS_AND_SIGN_BY_RELATION[relation]
    return sign * (axis(first) - axis(second)) > 0


def ask_relation(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """(question, answer): whether one thing is left of, right of, above or below another; half the time it is."""
    names_and_items, is_true, relation = (
        unambiguous_names(scene),
        rng.random() < 0.5,
        rng.choice(tuple(AXIS_AND_SIGN_BY_RELATION)),
    )
    pairs = [
        (first, second)
        for first, first_item in names_and_items
        for second, second_item in names_and_items
        if (
            is_related(first_item, relation, second_item)
            if is_true
            else is_related(second_item, relation, first_item)
        )
    ]
    if not pairs:
        return None
    first, second = rng.choice(pairs)
    return f"Is the {first} {relation} the {second}?", yes_or_no(is_true)


def ask_neighbor(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """(question, answer): what is left of, right of, above or below a thing, if that is one thing or nothing."""
    names_and_items, relation, has_neighbor = (
        unambiguous_names(scene),
        rng.choice(tuple(AXIS_AND_SIGN_BY_RELATION)),
        rng.random() < 0.75,
    )
    candidates = []
    for name, item in names_and_items:
        others = [other for other in scene.items if is_related(other, relation, item)]
        if len(others) == int(has_neighbor):
            candidates.append((name, with_article(others[0].thing.name) if others else "nothing"))
    if not candidates:
        return None
    name, other = rng.choice(candidates)
    return f"What is {relation} the {name}?", to_sentence(other)


def ask_ground(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """The ground's colour."""
    return choose_ground_question(rng), answer_ground(scene)


def ask_time(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """Day or night."""
    return TIME_QUESTION, answer_time(scene)


def ask_size(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """(question, answer): whether a thing is large or small."""
    names_and_items = unambiguous_names(scene)
    if not names_and_items:
        return None
    name, item = rng.choice(names_and_items)
    return f"Is the {name} large or small?", to_sentence(item.size)


QUESTIONS: dict[str, tuple[float, Callable[[random.Random, Scene], QuestionAndAnswer | None]]] = {
    "what": (4.0, ask_what),
    "at": (2.0, ask_cell),
    "color": (1.5, ask_color),
    "count": (6.0, ask_count),
    "where": (2.0, ask_where),
    "exists": (2.0, ask_exists),
    "relation": (3.0, ask_relation),
    "neighbour": (2.0, ask_neighbor),
    "ground": (0.5, ask_ground),
    "time": (0.4, ask_time),
    "size": (1.0, ask_size),
}
_TOPICS, _WEIGHTS = tuple(QUESTIONS), tuple(weight for weight, _ in QUESTIONS.values())


def choose_question(rng: random.Random, scene: Scene) -> QuestionAndAnswer:
    """A question of any topic that the scene allows."""
    while True:
        question_and_answer = QUESTIONS[rng.choices(_TOPICS, _WEIGHTS)[0]][1](rng, scene)
        if question_and_answer:
            return question_and_answer


def make_question_sample(rng: random.Random, scene: Scene) -> ConversationSample:
    """A sample with one question, or with three to seven, about one picture."""
    num_questions = 1 if rng.random() < 0.15 else rng.randint(3, 7)
    answer_by_question: dict[str, str] = {}
    while len(answer_by_question) < num_questions:
        question, answer = choose_question(rng, scene)
        answer_by_question.setdefault(question, answer)
    turns: list[ConversationTurn] = []
    for question, answer in answer_by_question.items():
        turns += [user_turn(question) if turns else user_turn(0, question), assistant_turn(answer)]
    return ConversationSample("question", (scene,), tuple(turns))
