"""Conversations about two pictures.

Nothing is asked of the first picture, once the second is there, that the conversation has not said: in one
of the two model families a word sees the latest picture alone.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from .captions import caption, describing
from .questions import (
    NUMBER,
    TIME,
    WHAT,
    answer_at,
    answer_count,
    answer_ground,
    answer_number,
    answer_time,
    answer_what,
    any_question,
    ground_question,
    name_counts,
    other_name,
    plural,
    sentence,
    yes_or_no,
)
from .scene import Scene, Split, sample
from .things import PLACES
from .turns import Sample, Turn, assistant, user
from .words import with_article

AGAIN = ("And in this one?", "And this one?", "What about this one?")
RECALL = {
    "what": "What was in the first image?",
    "ground": "What color was the ground in the first image?",
    "time": "Was it day or night in the first image?",
    "number": "How many things were there in the first image?",
}
NUMBER_OF_THINGS = {1: 0.45, 2: 0.33, 3: 0.22}


@dataclass(frozen=True)
class Topic:
    """A question that can be asked of any picture."""

    name: str
    question: str
    answer: Callable[[Scene], str]


def _topic(rng: random.Random, scene: Scene) -> Topic:
    """A question that suits one scene and has an answer for all others."""
    name = rng.choices(
        ("what", "ground", "time", "number", "at", "exists", "count", "caption"), (5, 2, 1, 2, 1.5, 1, 1, 1)
    )[0]
    if name == "what":
        return Topic(name, rng.choices(WHAT, (2, 1, 1))[0], answer_what)
    if name == "ground":
        return Topic(name, ground_question(rng), answer_ground)
    if name == "time":
        return Topic(name, TIME, answer_time)
    if name == "number":
        return Topic(name, NUMBER, answer_number)
    if name == "caption":
        return Topic(name, describing(rng), caption)
    if name == "at":
        cell = rng.choice(scene.items).cell
        return Topic(name, f"What is {PLACES[cell]}?", lambda seen: answer_at(seen, cell))
    thing = rng.choice(scene.items).thing.name if rng.random() < 0.7 else other_name(rng, scene)
    if name == "exists":
        return Topic(
            name, f"Is there {with_article(thing)}?", lambda seen: yes_or_no(name_counts(seen)[thing] > 0)
        )
    return Topic(name, f"How many {plural(thing)} are there?", lambda seen: answer_count(seen, thing))


def _follow_up(
    rng: random.Random, first: Scene, second: Scene, topics: tuple[Topic, Topic]
) -> tuple[str, str]:
    """A question with no picture: about the second one, or about what was said of the first."""
    if topics[0].name in RECALL and rng.random() < 0.45:
        return RECALL[topics[0].name], topics[0].answer(first)
    if topics[1].name == "what" and len(second.items) == 1 and rng.random() < 0.6:
        item = second.items[0]
        return rng.choice(
            (("Where is it?", sentence(item.place)), ("Is it large or small?", sentence(item.size)))
        )
    if rng.random() < 0.5:
        simple = (
            (ground_question(rng), answer_ground(second)),
            (NUMBER, answer_number(second)),
            (TIME, answer_time(second)),
        )
        return rng.choice(simple)
    return any_question(rng, second)


def chat_sample(rng: random.Random, split: Split) -> Sample:
    """Two pictures, each with a question, then one or two questions more."""
    sizes, weights = tuple(NUMBER_OF_THINGS), tuple(NUMBER_OF_THINGS.values())
    first, second = (sample(rng, split, number) for number in rng.choices(sizes, weights, k=2))
    topic = _topic(rng, rng.choice((first, second)))
    again = rng.random() < 0.5
    other = topic if again else _topic(rng, second)
    turns: list[Turn] = [
        user(0, topic.question),
        assistant(topic.answer(first)),
        user(1, rng.choices(AGAIN, (2, 2, 1))[0] if again else other.question),
        assistant(other.answer(second)),
    ]
    asked = {other.question}
    wanted = rng.randint(1, 2) + 1
    while len(asked) < wanted:
        question, answer = _follow_up(rng, first, second, (topic, other))
        if question not in asked:
            asked.add(question)
            turns += [user(question), assistant(answer)]
    return Sample("chat", (first, second), tuple(turns))
