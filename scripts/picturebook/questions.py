"""Questions about one picture that have one right answer."""

import random
from collections import Counter
from collections.abc import Callable

from .scene import Item, Scene
from .things import (
    CATALOG,
    CELL_CLASSES,
    COLORS,
    FIRST_SHAPE,
    KIND_PLURALS,
    PLACES,
    SHAPES,
    is_shape,
    shape_and_color,
)
from .turns import Sample, Turn, assistant, user
from .words import NUMBERS, capitalized, inventory, with_article

QuestionAndAnswer = tuple[str, str]
CLEAR_KINDS = ("animal", "flower", "vegetable", "fruit", "vehicle", "shape")
WHAT = ("What is in this image?", "What is in this picture?", "What can you see?")
NUMBER = "How many things are there?"
TIME = "Is it day or night?"


def sentence(words: str) -> str:
    """An answer: first letter in upper case, and a full stop."""
    return capitalized(words) + "."


def yes_or_no(truth: bool) -> str:
    """ "Yes." or "No." """
    return "Yes." if truth else "No."


def names(item: Item) -> tuple[str, ...]:
    """What an item may be called: "puppy", or both "red circle" and "circle"."""
    return (item.thing.name, shape_and_color(item.what)[0]) if is_shape(item.what) else (item.thing.name,)


def name_counts(scene: Scene) -> Counter[str]:
    """How many items each name fits."""
    return Counter(name for item in scene.items for name in names(item))


def references(scene: Scene) -> list[tuple[str, Item]]:
    """The names that mean exactly one item, with that item."""
    number = name_counts(scene)
    return [(name, item) for item in scene.items for name in names(item) if number[name] == 1]


def plural(name: str) -> str:
    """The plural of any name of `names`."""
    return PLURALS[name]


PLURALS = {thing.name: thing.plural for thing in CATALOG[1:]} | {
    shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES
}


def other_name(rng: random.Random, scene: Scene) -> str:
    """The name of something that is not in the scene, often of a shape or a colour that is."""
    present = name_counts(scene)
    shapes = [item.what for item in scene.items if is_shape(item.what)]
    while True:
        if shapes and rng.random() < 0.5:
            shape, color = shape_and_color(rng.choice(shapes))
            name = rng.choice((f"{rng.choice(tuple(COLORS))} {shape}", f"{color} {rng.choice(SHAPES)}"))
        elif rng.random() < 0.7:
            name = CATALOG[rng.randrange(1, FIRST_SHAPE)].name
        else:
            name = rng.choice((CATALOG[rng.randrange(FIRST_SHAPE, CELL_CLASSES)].name, rng.choice(SHAPES)))
        if not present[name]:
            return name


def ground_question(rng: random.Random) -> str:
    """The question after the ground, in either spelling."""
    return f"What {rng.choice(('color', 'colour'))} is the ground?"


def answer_what(scene: Scene) -> str:
    """What is in the picture."""
    return sentence(inventory(scene))


def answer_at(scene: Scene, cell: int) -> str:
    """What is in one cell."""
    found = [item for item in scene.items if item.cell == cell]
    return sentence(with_article(found[0].thing.name)) if found else "Nothing."


def answer_count(scene: Scene, name: str) -> str:
    """How many of a name there are."""
    return sentence(NUMBERS[name_counts(scene)[name]])


def answer_number(scene: Scene) -> str:
    """How many things there are."""
    return sentence(NUMBERS[len(scene.items)])


def answer_time(scene: Scene) -> str:
    """Day or night."""
    return "Night." if scene.night else "Day."


def answer_ground(scene: Scene) -> str:
    """The ground's colour."""
    return sentence(scene.ground)


def ask_what(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """What is in the picture, everything."""
    return rng.choices(WHAT, (2, 1, 1))[0], answer_what(scene)


def ask_at(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """What is in one cell, which is empty in a quarter of the questions."""
    cell = rng.choice(scene.items).cell if rng.random() < 0.7 else rng.randrange(len(PLACES))
    return f"What is {PLACES[cell]}?", answer_at(scene, cell)


def ask_color(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """The colour of a shape."""
    shapes = [item for name, item in references(scene) if name in SHAPES]
    if not shapes:
        return None
    shape, color = shape_and_color(rng.choice(shapes).what)
    return f"What {rng.choice(('color', 'colour'))} is the {shape}?", sentence(color)


def ask_count(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """How many of one name, of one kind, or of all things."""
    choice = rng.random()
    if choice < 0.2:
        return NUMBER, answer_number(scene)
    if choice < 0.35:
        kind = rng.choice((scene.items[0].thing.kind, rng.choice(CLEAR_KINDS)))
        if kind in CLEAR_KINDS:
            count = sum(item.thing.kind == kind for item in scene.items)
            return f"How many {KIND_PLURALS[kind]} are there?", sentence(NUMBERS[count])
    name = rng.choice(names(rng.choice(scene.items))) if choice < 0.85 else other_name(rng, scene)
    return f"How many {plural(name)} are there?", answer_count(scene, name)


def ask_number(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """How many things there are."""
    return NUMBER, answer_number(scene)


def ask_where(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """The place of a thing."""
    known = references(scene)
    if not known:
        return None
    name, item = rng.choice(known)
    return f"Where is the {name}?", sentence(item.place)


def ask_exists(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """Whether something is there; every second time it is."""
    truth = rng.random() < 0.5
    name = rng.choice(names(rng.choice(scene.items))) if truth else other_name(rng, scene)
    return f"Is there {with_article(name)}?", yes_or_no(truth)


def column(item: Item) -> int:
    """The item's column, 0 to 2."""
    return item.cell % 3


def row(item: Item) -> int:
    """The item's row, 0 to 2."""
    return item.cell // 3


# A relation's words, the axis it is about, and the way it points along that axis.
RELATIONS: dict[str, tuple[Callable[[Item], int], int]] = {
    "left of": (column, -1),
    "right of": (column, 1),
    "above": (row, -1),
    "below": (row, 1),
}


def related(first: Item, relation: str, second: Item) -> bool:
    """Whether the first item is, say, left of the second."""
    axis, way = RELATIONS[relation]
    return way * (axis(first) - axis(second)) > 0


def ask_relation(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """Whether one thing is left of, right of, above or below another one; every second time it is."""
    known, truth, relation = references(scene), rng.random() < 0.5, rng.choice(tuple(RELATIONS))
    pairs = [
        (first, second)
        for first, here in known
        for second, there in known
        if (related(here, relation, there) if truth else related(there, relation, here))
    ]
    if not pairs:
        return None
    first, second = rng.choice(pairs)
    return f"Is the {first} {relation} the {second}?", yes_or_no(truth)


def ask_neighbour(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """What is left of, right of, above or below a thing, if that is one thing or nothing."""
    known, relation, something = references(scene), rng.choice(tuple(RELATIONS)), rng.random() < 0.75
    found = []
    for name, item in known:
        others = [other for other in scene.items if related(other, relation, item)]
        if len(others) == int(something):
            found.append((name, with_article(others[0].thing.name) if others else "nothing"))
    if not found:
        return None
    name, other = rng.choice(found)
    return f"What is {relation} the {name}?", sentence(other)


def ask_ground(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """The ground's colour."""
    return ground_question(rng), answer_ground(scene)


def ask_time(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """Day or night."""
    return TIME, answer_time(scene)


def ask_size(rng: random.Random, scene: Scene) -> QuestionAndAnswer | None:
    """Large or small."""
    known = references(scene)
    if not known:
        return None
    name, item = rng.choice(known)
    return f"Is the {name} large or small?", sentence(item.size)


QUESTIONS: dict[str, tuple[float, Callable[[random.Random, Scene], QuestionAndAnswer | None]]] = {
    "what": (4.0, ask_what),
    "at": (2.0, ask_at),
    "color": (1.5, ask_color),
    "count": (6.0, ask_count),
    "where": (2.0, ask_where),
    "exists": (2.0, ask_exists),
    "relation": (3.0, ask_relation),
    "neighbour": (2.0, ask_neighbour),
    "ground": (0.5, ask_ground),
    "time": (0.4, ask_time),
    "size": (1.0, ask_size),
}
_TOPICS, _WEIGHTS = tuple(QUESTIONS), tuple(weight for weight, _ in QUESTIONS.values())


def any_question(rng: random.Random, scene: Scene) -> QuestionAndAnswer:
    """A question of any topic that the scene allows."""
    while True:
        asked = QUESTIONS[rng.choices(_TOPICS, _WEIGHTS)[0]][1](rng, scene)
        if asked:
            return asked


def question_sample(rng: random.Random, scene: Scene) -> Sample:
    """Three to seven questions about one picture, or one."""
    wanted = 1 if rng.random() < 0.15 else rng.randint(3, 7)
    asked: dict[str, str] = {}
    while len(asked) < wanted:
        question, answer = any_question(rng, scene)
        asked.setdefault(question, answer)
    turns: list[Turn] = []
    for question, answer in asked.items():
        turns += [user(question) if turns else user(0, question), assistant(answer)]
    return Sample("question", (scene,), tuple(turns))
