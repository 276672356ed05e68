"""Evaluates a demo checkpoint on held-out scenes through the public API."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from idefics import Idefics, Message, Picture, Shot, assistant, user
from idefics.tasks import TASKS
from picturebook import CATALOG, THINGS, ConversationSample, ConversationTurn, Scene, draw_scene, make_sample
from picturebook.captions import caption_clause, caption_sentence
from picturebook.labels import WEIGHT_AND_SAMPLER_BY_SORT
from picturebook.questions import QUESTIONS
from picturebook.raw_prompts import WEIGHT_AND_SAMPLER_BY_NAME
from picturebook.shots import COLOR_WORDS_BY_LANGUAGE
from picturebook.stories import WEATHER_SENTENCES_BY_NIGHT
from picturebook.words import NUMBER_WORDS, inventory_phrase, with_article

CAPTION_PREFIX = "This is an image of"
RAW_KINDS = tuple(f"raw/{name}" for name in WEIGHT_AND_SAMPLER_BY_NAME)


@dataclass(frozen=True)
class GradedAnswer:
    """One graded answer.

    Attributes:
        test: such as "question/color" or "chat/follow-up".
        is_correct: whether the answer is right.
        question, expected, answer: to find out why an answer is wrong.
    """

    test: str
    is_correct: bool
    question: str
    expected: str
    answer: str


def grade_exact_match(test: str, question: str, expected: str, answer: str) -> GradedAnswer:
    """Right if the answer equals the expected one exactly."""
    return GradedAnswer(test, answer == expected, question, expected, answer)


def user_text(turn: ConversationTurn) -> str:
    """The text of a user's turn, without its pictures."""
    return " ".join(part for part in turn.parts if isinstance(part, str)).strip()


def assistant_text(turn: ConversationTurn) -> str:
    """The text of an assistant's turn."""
    (answer,) = turn.parts
    return str(answer)


@dataclass(frozen=True)
class EvaluationTask:
    """Samples of one kind, and the model that is evaluated on them.

    Attributes:
        draw_picture: scene -> picture.
    """

    vlm: Idefics
    kind: str
    samples: Sequence[ConversationSample]
    draw_picture: Callable[[Scene], Picture]

    def pictures(self) -> tuple[Picture, ...]:
        """The first picture of each sample."""
        return tuple(self.draw_picture(sample.scenes[0]) for sample in self.samples)

    def user_message(self, sample: ConversationSample, turn_index: int) -> Message:
        """A user's turn as a `Message` with drawn pictures."""
        parts = sample.turns[turn_index].parts
        return user(
            *(part if isinstance(part, str) else self.draw_picture(sample.scenes[part]) for part in parts)
        )


def evaluate_first_questions(trial: EvaluationTask) -> Iterator[GradedAnswer]:
    """Asks the first question of each sample."""
    answers = trial.vlm.chat([[trial.user_message(sample, 0)] for sample in trial.samples])
    for sample, answer in zip(trial.samples, answers, strict=True):
        yield grade_exact_match(
            trial.kind, user_text(sample.turns[0]), assistant_text(sample.turns[1]), answer.text
        )


def evaluate_captions(trial: EvaluationTask) -> Iterator[GradedAnswer]:
    """Captions; one test for every attribute, and one for the things alone."""
    answers = trial.vlm.caption(trial.pictures())
    for sample, answer in zip(trial.samples, answers, strict=True):
        expected = caption_sentence(sample.scenes[0])
        yield grade_exact_match("caption", "", expected, answer.text)
        yield GradedAnswer(
            "caption/things", find_things(answer.text) == find_things(expected), "", expected, answer.text
        )


def evaluate_completions(trial: EvaluationTask) -> Iterator[GradedAnswer]:
    """The guides' words, continued."""
    answers = trial.vlm.complete(trial.pictures(), CAPTION_PREFIX)
    for sample, answer in zip(trial.samples, answers, strict=True):
        expected = f"{CAPTION_PREFIX} {caption_clause(sample.scenes[0])}"
        yield grade_exact_match("complete", CAPTION_PREFIX, expected, answer.text)


def evaluate_classification(trial: EvaluationTask) -> Iterator[GradedAnswer]:
    """One label of the list in the prompt: written, and by ranking."""
    for mark in evaluate_first_questions(trial):
        yield grade_exact_match(f"{trial.kind}/written", mark.question, mark.expected, mark.answer)
    for sample, picture in zip(trial.samples, trial.pictures(), strict=True):
        question = user_text(sample.turns[0])
        labels = question.partition("list: ")[2].removesuffix(".").split(", ")
        best = trial.vlm.classify(picture, labels).best
        yield grade_exact_match(f"{trial.kind}/ranked", question, assistant_text(sample.turns[1]), best)


def evaluate_stories(trial: EvaluationTask) -> Iterator[GradedAnswer]:
    """A story."""
    answers = trial.vlm.write(trial.pictures())
    for sample, answer in zip(trial.samples, answers, strict=True):
        is_correct = is_fitting_story(answer.text, sample.scenes[0])
        yield GradedAnswer("story", is_correct, "", assistant_text(sample.turns[1]), answer.text)


def evaluate_few_shot(trial: EvaluationTask) -> Iterator[GradedAnswer]:
    """Few-shot: whether the answer has the form of the shots, and whether it says the right thing in it."""
    for sample in trial.samples:
        *shots, picture = map(trial.draw_picture, sample.scenes)
        *shot_answers, expected = map(assistant_text, sample.turns[1::2])
        few_shot_vlm = trial.vlm.with_shots([Shot(*shot) for shot in zip(shots, shot_answers, strict=True)])
        question = user_text(sample.turns[0])
        captions = question == TASKS["caption"].chat_prompt
        reply = (few_shot_vlm.caption(picture) if captions else few_shot_vlm.ask(picture, question)).text
        has_form = FORM_CHECK_BY_NAME.get(trial.kind.removeprefix("shots/"))
        if has_form:
            yield GradedAnswer(
                f"{trial.kind}/form",
                has_form(reply, shot_answers[0]),
                " / ".join(shot_answers),
                expected,
                reply,
            )
        yield grade_exact_match(f"{trial.kind}/exact", " / ".join(shot_answers), expected, reply)


def evaluate_chats(trial: EvaluationTask) -> Iterator[GradedAnswer]:
    """Whole conversations, the model's own answers in them; follow-ups are what comes after the second picture."""
    messages_by_sample: list[tuple[ConversationSample, list[Message]]] = [
        (sample, []) for sample in trial.samples
    ]
    for number in range(0, max(len(sample.turns) for sample in trial.samples), 2):
        unfinished = [
            (sample, messages) for sample, messages in messages_by_sample if len(sample.turns) > number
        ]
        for sample, messages in unfinished:
            messages.append(trial.user_message(sample, number))
        answers = trial.vlm.chat([messages for _, messages in unfinished])
        for (sample, messages), answer in zip(unfinished, answers, strict=True):
            messages.append(assistant(answer.text))
            question, expected = user_text(sample.turns[number]), assistant_text(sample.turns[number + 1])
            yield grade_exact_match("chat", question, expected, answer.text)
            if number > 2:
                yield grade_exact_match("chat/follow-up", question, expected, answer.text)


def evaluate_raw_prompts(trial: EvaluationTask) -> Iterator[GradedAnswer]:
    """Raw prompts, as for a base model."""
    answers = trial.vlm.generate([list(trial.user_message(sample, 0).parts) for sample in trial.samples])
    for sample, answer in zip(trial.samples, answers, strict=True):
        reply, expected = answer.text.strip(), assistant_text(sample.turns[1])
        is_correct = (
            is_fitting_story(reply, sample.scenes[0]) if trial.kind == "raw/story" else reply == expected
        )
        yield GradedAnswer(trial.kind, is_correct, user_text(sample.turns[0]), expected, reply)


def find_things(text: str) -> list[str]:
    """The things that a caption names, in its order."""
    return re.findall(rf"\ban? (?:large|small) ({_names_pattern()})", text, re.IGNORECASE)


def is_fitting_story(text: str, scene: Scene) -> bool:
    """Whether a story names everything in a scene, its ground, and its time of day, and not the other."""
    return (
        inventory_phrase(scene) in text
        and f"on {scene.ground} ground" in text
        and any(sentence in text for sentence in WEATHER_SENTENCES_BY_NIGHT[scene.is_night])
        and not any(sentence in text for sentence in WEATHER_SENTENCES_BY_NIGHT[not scene.is_night])
    )


def _alternatives_pattern(words: Iterator[str]) -> str:
    return "|".join(map(re.escape, sorted(set(words), key=len, reverse=True)))


@cache
def _names_pattern() -> str:
    return _alternatives_pattern(thing.name for thing in CATALOG[1:])


@cache
def _count_patterns() -> tuple[str, str]:
    """Patterns of "a puppy" or "two puppies", and of "1 puppy" or "2 puppies"."""
    singular_pattern = _alternatives_pattern(with_article(thing.name) for thing in CATALOG[1:])
    plural_pattern = _alternatives_pattern(thing.plural for thing in CATALOG[1:])
    return (
        f"(?:{singular_pattern}|(?:{'|'.join(NUMBER_WORDS[2:])}) (?:{plural_pattern}))",
        f"(?:1 (?:{_names_pattern()})|[2-4] (?:{plural_pattern}))",
    )


def _is_fact(text: str, _: str) -> bool:
    facts = _alternatives_pattern(thing.fact for thing in THINGS)
    return re.fullmatch(rf"An image of an? (?:{_names_pattern()})\. Fun fact: (?:{facts})", text) is not None


def _is_upper(text: str, _: str) -> bool:
    one = _count_patterns()[0]
    pattern = rf"{one}(?:(?:, {one})* and {one})?"
    return text.isupper() and re.fullmatch(pattern, text, re.IGNORECASE) is not None


def _is_counted(text: str, _: str) -> bool:
    one = _count_patterns()[1]
    return re.fullmatch(rf"{one}(?:, {one})*", text) is not None


def _is_in_language(text: str, first: str) -> bool:
    """Whether the text is a colour in the language of the first shot, which is never a word of two languages."""
    (colors,) = (colors for colors in COLOR_WORDS_BY_LANGUAGE.values() if first in colors)
    return text in colors


# (answer, the first shot's answer) -> whether the answer has the form of the shots.
FORM_CHECK_BY_NAME: dict[str, Callable[[str, str], bool]] = {
    "fact": _is_fact,
    "upper": _is_upper,
    "counted": _is_counted,
    "language": _is_in_language,
}

# Kind of samples -> how they are evaluated.
EVALUATION_BY_KIND: dict[str, Callable[[EvaluationTask], Iterator[GradedAnswer]]] = {
    **{f"question/{topic}": evaluate_first_questions for topic in QUESTIONS},
    **{f"classify/{sort}": evaluate_classification for sort in WEIGHT_AND_SAMPLER_BY_SORT},
    "caption": evaluate_captions,
    "complete": evaluate_completions,
    **{f"shots/{form}": evaluate_few_shot for form in (*FORM_CHECK_BY_NAME, "free")},
    "story": evaluate_stories,
    "chat": evaluate_chats,
    **dict.fromkeys(RAW_KINDS, evaluate_raw_prompts),
}


def evaluate(
    vlm: Idefics, num_samples: int, seed: int, image_size: int, on_kind: Callable[[str], None]
) -> Iterator[GradedAnswer]:
    """Evaluates all kinds on `num_samples` samples each; a seed gives the same samples for every checkpoint.

    Args:
        image_size: of the drawn pictures, in pixels.
        on_kind: called with the kind that comes next.
    """

    def draw_picture(scene: Scene) -> Picture:
        return Picture(draw_scene(scene, image_size))

    has_raw_prompts = vlm.processor.prompt_format.image_tokens == "cross_attention"
    for kind, test in EVALUATION_BY_KIND.items():
        if kind in RAW_KINDS and not has_raw_prompts:
            continue
        on_kind(kind)
        rng = random.Random(f"{seed} {kind}")
        yield from test(
            EvaluationTask(
                vlm, kind, [make_sample(rng, "held-out", kind) for _ in range(num_samples)], draw_picture
            )
        )
