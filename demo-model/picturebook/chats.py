"""Samples of conversations about two pictures.

After the second picture, questions about the first one ask only for what has been said: in cross-attention models a
token attends to the latest picture alone.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from .captions import caption_sentence, choose_caption_request
from .questions import (
    CONTENT_QUESTIONS,
    COUNT_QUESTION,
    TIME_QUESTION,
    answer_cell,
    answer_count,
    answer_ground,
    answer_number,
    answer_time,
    answer_what,
    choose_absent_name,
    choose_ground_question,
    choose_question,
    count_items_by_name,
    plural_of,
    to_sentence,
    yes_or_no,
)
from .scene import Scene, Split, sample_scene
from .things import POSITION_PHRASES
from .turns import ConversationSample, ConversationTurn, assistant_turn, user_turn
from .words import with_article

SAME_QUESTION_REQUESTS = ("And in this one?", "And this one?", "What about this one?")
RECALL_QUESTION_BY_TOPIC = {
    "what": "What was in the first image?",
    "ground": "What color was the ground in the first image?",
    "time": "Was it day or night in the first image?",
    "number": "How many things were there in the first image?",
}
PROBABILITY_BY_NUM_THINGS = {1: 0.45, 2: 0.33, 3: 0.22}


@dataclass(frozen=True)
class QuestionTopic:
    """A question that can be asked about any picture, and the function that answers it."""

    name: str
    question: str
    answer: Callable[[Scene], str]


def _choose_topic(rng: random.Random, scene: Scene) -> QuestionTopic:
    """A random question about something in the scene; it has an answer for every scene."""
    name = rng.choices(
        ("what", "ground", "time", "number", "at", "exists", "count", "caption"), (5, 2, 1, 2, 1.5, 1, 1, 1)
    )[0]
    if name == "what":
        return QuestionTopic(name, rng.choices(CONTENT_QUESTIONS, (2, 1, 1))[0], answer_what)
    if name == "ground":
        return QuestionTopic(name, choose_ground_question(rng), answer_ground)
    if name == "time":
        return QuestionTopic(name, TIME_QUESTION, answer_time)
    if name == "number":
        return QuestionTopic(name, COUNT_QUESTION, answer_number)
    if name == "caption":
        return QuestionTopic(name, choose_caption_request(rng), caption_sentence)
    if name == "at":
        cell = rng.choice(scene.items).cell
        return QuestionTopic(name, f"What is {POSITION_PHRASES[cell]}?", lambda seen: answer_cell(seen, cell))
    thing = rng.choice(scene.items).thing.name if rng.random() < 0.7 else choose_absent_name(rng, scene)
    if name == "exists":
        return QuestionTopic(
            name,
            f"Is there {with_article(thing)}?",
            lambda seen: yes_or_no(count_items_by_name(seen)[thing] > 0),
        )
    return QuestionTopic(
        name, f"How many {plural_of(thing)} are there?", lambda seen: answer_count(seen, thing)
    )


def _choose_follow_up(
    rng: random.Random, first: Scene, second: Scene, topics: tuple[QuestionTopic, QuestionTopic]
) -> tuple[str, str]:
    """(question, answer) without a new picture: about the second one, or about what was said of the first."""
    if topics[0].name in RECALL_QUESTION_BY_TOPIC and rng.random() < 0.45:
        return RECALL_QUESTION_BY_TOPIC[topics[0].name], topics[0].answer(first)
    if topics[1].name == "what" and len(second.items) == 1 and rng.random() < 0.6:
        item = second.items[0]
        return rng.choice(
            (
                ("Where is it?", to_sentence(item.position_phrase)),
                ("Is it large or small?", to_sentence(item.size)),
            )
        )
    if rng.random() < 0.5:
        simple_questions = (
            (choose_ground_question(rng), answer_ground(second)),
            (COUNT_QUESTION, answer_number(second)),
            (TIME_QUESTION, answer_time(second)),
        )
        return rng.choice(simple_questions)
    return choose_question(rng, second)


def make_chat_sample(rng: random.Random, split: Split) -> ConversationSample:
    """A sample with two pictures, a question about each, then one or two follow-up questions."""
    sizes, weights = tuple(PROBABILITY_BY_NUM_THINGS), tuple(PROBABILITY_BY_NUM_THINGS.values())
    first, second = (sample_scene(rng, split, number) for number in rng.choices(sizes, weights, k=2))
    topic = _choose_topic(rng, rng.choice((first, second)))
    repeats_question = rng.random() < 0.5
    second_topic = topic if repeats_question else _choose_topic(rng, second)
    turns: list[ConversationTurn] = [
        user_turn(0, topic.question),
        assistant_turn(topic.answer(first)),
        user_turn(
            1,
            rng.choices(SAME_QUESTION_REQUESTS, (2, 2, 1))[0] if repeats_question else second_topic.question,
        ),
        assistant_turn(second_topic.answer(second)),
    ]
    used_questions = {second_topic.question}
    num_questions = rng.randint(1, 2) + 1
    while len(used_questions) < num_questions:
        question, answer = _choose_follow_up(rng, first, second, (topic, second_topic))
        if question not in used_questions:
            used_questions.add(question)
            turns += [user_turn(question), assistant_turn(answer)]
    return ConversationSample("chat", (first, second), tuple(turns))
