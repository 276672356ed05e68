"""Checks without the model: of the tokenizer, the chat template, and the frames of a drawn picture."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from idefics.errors import IdeficsError
from idefics.evaluate.check.checks import CheckOutcome, CheckSubject, ModelCheck, join_names, judge, skipped
from idefics.evaluate.check.drawn_pictures import draw_landscape
from idefics.generation.loading import collect_stop_ids
from idefics.messages import Message, Picture, assistant, user
from idefics.processing.chat_prompt import render_conversation
from idefics.processing.image_processor import preprocess_image
from idefics.processing.picture_expansion import FAKE_IMAGE_TOKEN
from idefics.processing.tokenizer import TextPiece

if TYPE_CHECKING:
    from idefics.config import ImageProcessorConfig


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


ROUND_TRIPS = (
    "The quick brown fox jumps over the lazy dog. 0123456789",
    "L'été, où ça? Größe über alles, señor.",
    "日本語のテキスト и русский текст",
    "👩‍🚀🎉 and ∑∞≠",
    "two  spaces,\ttab,\n\nnew lines \\n {braces} <tags> |pipes|",
)
QUESTION, ANSWER, SECOND_QUESTION = "What is in this image?", "A red circle.", "And what else?"
TURNS = (
    f"User:<image>{QUESTION}<end_of_utterance>\nAssistant: {ANSWER}<end_of_utterance>\n"
    f"User: {SECOND_QUESTION}<end_of_utterance>\nAssistant:"
)
UNSEEN_TEMPLATES = ("granite-docling-258m", "smoldocling-256m")  # their files were not seen
GRANITE_ROLE = "<|start_of_role|>{}<|end_of_role|>"
# What the templates of all released checkpoints make of one conversation. Source: their model cards and template files.
GOLDEN_RENDERS = {
    "idefics": (TURNS,),
    "idefics2": (TURNS,),
    "idefics3": (
        f"<|begin_of_text|>{TURNS}",
        f"<|im_start|>{TURNS}",
        "".join(
            GRANITE_ROLE.format(role) + text
            for role, text in (
                ("user", f"<image>{QUESTION}<|end_of_text|>\n"),
                ("assistant", f"{ANSWER}<|end_of_text|>\n"),
                ("user", f"{SECOND_QUESTION}<|end_of_text|>\n"),
                ("assistant", ""),
            )
        ),
    ),
    "smolvlm": (f"<|im_start|>{TURNS}",),
}


def check_round_trips(subject: CheckSubject) -> CheckOutcome:
    """Encodes and decodes texts of several scripts."""
    tokenizer = subject.processor.tokenizer
    wrong = []
    for text in ROUND_TRIPS:
        found = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), hidden_ids=())
        if found != text:
            wrong.append(f"{text!r} becomes {found!r}")
    return judge(f"{len(ROUND_TRIPS)} texts", "equal after encoding and decoding", wrong)


def check_special_tokens(subject: CheckSubject) -> CheckOutcome:
    """Encodes each added token, and compares the ids with the rows of the embedding."""
    processor, text = subject.processor, subject.checkpoint.config.text
    tokenizer, num_rows = processor.tokenizer, text.vocab_size + text.additional_vocab_size
    wrong = []
    for id, token in tokenizer.added_tokens.items():
        if id not in tokenizer.encode(token.content, add_special_tokens=False):
            wrong.append(f"{token.content} is not encoded as its id {id}")
    needed: dict[int | None, str] = {
        **{tokenizer.token_to_id(token): token for token in (FAKE_IMAGE_TOKEN, "<image>")},
        **{id: f"the stop id {id}" for id in collect_stop_ids(subject.checkpoint, processor)},
    }
    wrong += [
        f"{name} has no row in the embedding of {num_rows} rows"
        for id, name in needed.items()
        if id is None or id >= num_rows
    ]
    without_row = [token.content for id, token in tokenizer.added_tokens.items() if id >= num_rows]
    unused = f", without a row in the embedding: {join_names(without_row)}" if without_row else ""
    return judge(
        f"{len(tokenizer.added_tokens)} tokens{unused}",
        "each its own id; those that are used have a row",
        wrong,
    )


def check_template(subject: CheckSubject) -> CheckOutcome:
    """Renders a conversation, and compares with what the released checkpoints' templates make of it."""
    prompt_format = subject.processor.prompt_format
    if not prompt_format.chat_template:
        return skipped("a base checkpoint without chat template")
    messages = [user(Picture("drawn.png"), QUESTION), assistant(ANSWER), user(SECOND_QUESTION)]
    try:
        rendered = _render(subject, messages)
    except IdeficsError as error:
        return judge("it cannot be rendered", "a released template", [str(error)])
    texts = [rendered.find(text) for text in (QUESTION, ANSWER, SECOND_QUESTION)]
    if -1 in texts or texts != sorted(texts):
        return judge(
            repr(rendered), "all texts in their order", ["the template loses a text or changes the order"]
        )
    is_known = rendered in GOLDEN_RENDERS[subject.checkpoint.config.model_type]
    if not is_known and (subject.entry is None or subject.entry.name in UNSEEN_TEMPLATES):
        return skipped("not a released template: it keeps all texts and the picture in their order")
    return judge(
        f"{len(rendered)} characters",
        "the render of a released template",
        [] if is_known else [f"the render is {rendered!r}"],
    )


def _render(subject: CheckSubject, messages: list[Message]) -> str:
    """The text that the template makes of a conversation, with "<image>" for each picture."""
    tokenizer = subject.processor.tokenizer
    pieces = render_conversation(
        subject.processor.prompt_format.chat_template, messages, variables=tokenizer.token_by_role
    )
    return "".join(piece.text if isinstance(piece, TextPiece) else "<image>" for piece in pieces)


TEXT_CHECKS = (
    ModelCheck(
        name="text round trips",
        shows="the tokenizer keeps every character: accents, other scripts, emoji, spaces",
        tolerance="none",
        run=check_round_trips,
    ),
    ModelCheck(
        name="special tokens",
        shows="added tokens have their ids, and those that the model reads or writes have rows in the embedding",
        tolerance="none; Idefics2-8B-base has no row for its <end_of_utterance>, which is therefore never used",
        run=check_special_tokens,
    ),
    ModelCheck(
        name="chat template",
        shows="a conversation is rendered as the released checkpoints were trained",
        tolerance="none",
        run=check_template,
    ),
)
