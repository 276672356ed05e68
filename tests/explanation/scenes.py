"""Questions about drawn scenes whose answer depends on one thing in a known place."""

import random
from dataclasses import dataclass

import numpy as np

from picturebook import draw_scene, sample_scene
from picturebook.questions import POSITION_PHRASES, SHAPES, answer_cell, to_sentence, unambiguous_names
from picturebook.things import shape_and_color

NUM_CELLS = 3  # a scene has 3 x 3 places


@dataclass(frozen=True)
class PlacedQuestion:
    """A question, its right answer, and the place (0 to 8) of the thing that it is about."""

    pixels: np.ndarray
    question: str
    answer: str
    place: int

    def holds_peak(self, heat):
        """Whether the hottest pixel or cell lies in the place."""
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        peak = (int((row + 0.5) / heat.shape[0] * NUM_CELLS), int((column + 0.5) / heat.shape[1] * NUM_CELLS))
        return peak == divmod(self.place, NUM_CELLS)


def _ask(rng, scene):
    topic = rng.choice(("what", "color", "where"))
    if topic == "what":
        item = rng.choice(scene.items)
        return f"What is {POSITION_PHRASES[item.cell]}?", answer_cell(scene, item.cell), item
    named = [one for one in unambiguous_names(scene) if topic == "where" or one[0] in SHAPES]
    if not named:
        return None
    name, item = rng.choice(named)
    if topic == "where":
        return f"Where is the {name}?", to_sentence(item.position_phrase), item
    return f"What color is the {name}?", to_sentence(shape_and_color(item.class_id)[1]), item


def placed_questions(number, seed=7, size=96):
    """That many questions, each about a scene of its own; equal seeds give equal questions."""
    rng, questions = random.Random(seed), []
    while len(questions) < number:
        scene = sample_scene(rng, "train")
        if asked := _ask(rng, scene):
            question, answer, item = asked
            questions.append(PlacedQuestion(draw_scene(scene, size), question, answer, item.cell))
    return questions
