"""Checks with drawn pictures and plain English: frames as computed before, and what a trained model knows."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from idefics.evaluate.check.checks import CheckOutcome, CheckSubject, ModelCheck, judge, skipped
from idefics.evaluate.check.drawn_pictures import COLORS, PLAIN_TEXT, SHAPES, draw_landscape, draw_shape
from idefics.evaluate.check.logits_record import prompt_logprobs
from idefics.messages import Picture, user
from idefics.processing.image_processor import preprocess_image

if TYPE_CHECKING:
    from idefics.config import ImageProcessorConfig
    from idefics.generation.prompts import Conversation, PromptItems


HASHES_FILE = Path(__file__).parent / "picture_hashes.json"
PICTURE_SIZE = (301, 207)
STEPS_PER_UNIT = (
    1024  # frames are rounded to this before they are hashed; one step of a pixel is at least 0.0078
)


def settings_key(config: ImageProcessorConfig) -> str:
    """Identifies the settings that frames depend on: the beginning of a SHA-256 (hex)."""
    settings = {name: value for name, value in asdict(config).items() if name != "video"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def frames_hash(config: ImageProcessorConfig) -> tuple[int, str]:
    """The number of frames of the drawn picture, and the beginning of their SHA-256 (hex)."""
    picture = preprocess_image(PIL.Image.fromarray(draw_landscape(*PICTURE_SIZE)), config)
    digest = hashlib.sha256()
    for frame in picture.frames:
        digest.update(repr(frame.shape).encode())
        digest.update(np.rint(frame * STEPS_PER_UNIT).astype("<i4").tobytes())
    return len(picture.frames), digest.hexdigest()[:32]


def check_frames(subject: CheckSubject) -> CheckOutcome:
    """Preprocesses a drawn picture, and compares the hash of its frames with the known one for these settings."""
    key = settings_key(subject.processor.image_config)
    known = json.loads(HASHES_FILE.read_text(encoding="utf-8")).get(key)
    num_frames, found = frames_hash(subject.processor.image_config)
    if known is None:
        measured = f"no hash is known for these picture settings: {num_frames} frames, {found}"
        if subject.entry is None:
            return skipped(measured)
        return judge(measured, "the released settings", ["preprocessor_config.json is not the released one"])
    wrong = [] if found == known else [f"the frames have the hash {found}, known is {known}"]
    return judge(f"{num_frames} frames, {found[:8]}", known[:8], wrong)


PICTURE_CHECKS = (
    ModelCheck(
        name="preprocessing",
        shows="pictures are resized, cut and normalised as when the hashes were computed",
        tolerance="none: resizing is in whole numbers; normalised values are rounded to 1/1024 before they are hashed",
        run=check_frames,
    ),
)


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
