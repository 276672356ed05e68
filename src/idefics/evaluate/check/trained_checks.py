"""Checks of what a trained model knows: plain English, and the colours of drawn shapes."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

from idefics.evaluate.check.checks import CheckOutcome, CheckSubject, ModelCheck, judge, skipped
from idefics.evaluate.check.drawn_pictures import COLORS, PLAIN_TEXT, SHAPES, draw_shape
from idefics.evaluate.check.logits_record import prompt_logprobs
from idefics.messages import Picture, user

if TYPE_CHECKING:
    from idefics.generation.prompts import Conversation, PromptItems

MIN_TRAINED_PARAMETERS = 100_000_000  # of a model that knows English and everyday pictures
MIN_RIGHT = 8  # of 12 drawn pictures; guessing reaches it once in 360 times
TOO_SMALL = f"fewer than {MIN_TRAINED_PARAMETERS // 10**6} million parameters: it need not know this"


def check_plain_text(subject: CheckSubject) -> CheckOutcome:
    """Measures how surprising plain English is."""
    if subject.num_parameters < MIN_TRAINED_PARAMETERS:
        return skipped(TOO_SMALL)
    prompt = subject.vlm.prompt([PLAIN_TEXT])
    surprise = -float(prompt_logprobs(prompt, subject.vlm.logits(prompt)).mean())
    text = subject.checkpoint.config.text
    limit = math.log(text.vocab_size + text.additional_vocab_size) / 2
    wrong = [f"{surprise:.2f} nats a token for plain English: the weights do not fit together"]
    return judge(f"{surprise:.2f} nats a token", f"{limit:.2f}", wrong if not surprise <= limit else ())


def check_drawn_pictures(subject: CheckSubject) -> CheckOutcome:
    """Asks for the colour of drawn shapes: the likeliest of four."""
    if subject.num_parameters < MIN_TRAINED_PARAMETERS:
        return skipped(TOO_SMALL)
    pictures = list(product(SHAPES, COLORS))
    right, mistakes = 0, []
    for shape, color in pictures:
        scores = _score_colors(subject, shape, color)
        best = max(zip(scores, COLORS, strict=True), key=lambda pair: sum(pair[0]))[1]
        right += best == color
        if best != color:
            mistakes.append(f"a {color} {shape} is called {best}")
    return judge(
        f"{right} of {len(pictures)}",
        f"{MIN_RIGHT} of {len(pictures)}",
        mistakes if right < MIN_RIGHT else (),
    )


def _score_colors(subject: CheckSubject, shape: str, color: str) -> list[list[float]]:
    """The log-probabilities of each colour after the picture of a shape, asked as the checkpoint was trained."""
    pixels, start = draw_shape(shape, color), f"The color of this {shape} is"
    names = [f" {name}" for name in COLORS]
    if subject.processor.prompt_format.kind == "chat":
        question: Conversation = [user(Picture(pixels), f"What is the color of this {shape}?")]
        return subject.vlm.score(question, names, answer_start=start, detail="low", max_tiles=1)[1]
    items: PromptItems = [pixels, start]
    return subject.vlm.score(items, names, detail="low", max_tiles=1)[1]


TRAINED_CHECKS = (
    ModelCheck(
        name="plain text",
        shows="the decoder's weights fit together: plain English is likely",
        tolerance="half of the logarithm of the vocabulary's size, which is the surprise of an untrained model. "
        "Not measured on released checkpoints",
        run=check_plain_text,
    ),
    ModelCheck(
        name="drawn pictures",
        shows="pictures reach the decoder: the colours of drawn circles, squares and triangles are seen",
        tolerance=f"{MIN_RIGHT} of 12, of four colours each. Not measured on released checkpoints",
        run=check_drawn_pictures,
    ),
)
