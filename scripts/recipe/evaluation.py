"""How well a demo checkpoint answers about held-out scenes, asked as any user would ask it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from idefics import Idefics, Message, Picture, Shot, assistant, user
from idefics.tasks import TASKS
from picturebook import CATALOG, MIX, THINGS, Sample, Scene, Turn, draw, make
from picturebook.captions import caption, lower_caption
from picturebook.questions import QUESTIONS
from picturebook.raws import RAW
from picturebook.shots import LANGUAGES, NAMED_FORMS
from picturebook.stories import WEATHER
from picturebook.words import NUMBERS, inventory, with_article

BEGINNING = "This is an image of"
RAW_KINDS = tuple(f"raw/{name}" for name in RAW)
SHOT_KINDS = tuple(f"shots/{form}" for form in NAMED_FORMS)

Look = Callable[[Scene], Picture]


@dataclass(frozen=True)
class Mark:
    """One answer, judged.

    Attributes:
        test: what was tried, such as "question/color" or "chat/follow-up"; a `Row` joins some of them.
        right: whether it passed.
        asked, wanted, said: for people who want to know what went wrong.
    """

    test: str
    right: bool
    asked: str
    wanted: str
    said: str


def exact(test: str, asked: str, wanted: str, said: str) -> Mark:
    """Right if what was said is what was wanted, to the letter."""
    return Mark(test, said == wanted, asked, wanted, said)


def question_of(turn: Turn) -> str:
    """The words of a user's turn."""
    return " ".join(part for part in turn.parts if isinstance(part, str)).strip()


def answer_of(turn: Turn) -> str:
    """The words of an assistant's turn."""
    (answer,) = turn.parts
    return str(answer)


def said_by(turn: Turn, sample: Sample, look: Look) -> Message:
    """A user's turn as the product takes it."""
    return user(*(part if isinstance(part, str) else look(sample.scenes[part]) for part in turn.parts))


def asked(vlm: Idefics, samples: Sequence[Sample], look: Look) -> Iterator[Mark]:
    """The first question of each sample."""
    answers = vlm.chat([[said_by(sample.turns[0], sample, look)] for sample in samples])
    for sample, answer in zip(samples, answers, strict=True):
        yield exact(sample.kind, question_of(sample.turns[0]), answer_of(sample.turns[1]), answer.text)


def captioned(vlm: Idefics, samples: Sequence[Sample], look: Look) -> Iterator[Mark]:
    """No words at all: right in every attribute, and right in its things alone."""
    answers = vlm.caption([look(sample.scenes[0]) for sample in samples])
    for sample, answer in zip(samples, answers, strict=True):
        wanted = caption(sample.scenes[0])
        yield exact("caption", "", wanted, answer.text)
        yield Mark("caption/things", things_in(answer.text) == things_in(wanted), "", wanted, answer.text)


def completed(vlm: Idefics, samples: Sequence[Sample], look: Look) -> Iterator[Mark]:
    """The guides' words, continued."""
    answers = vlm.complete([look(sample.scenes[0]) for sample in samples], BEGINNING)
    for sample, answer in zip(samples, answers, strict=True):
        yield exact("complete", BEGINNING, f"{BEGINNING} {lower_caption(sample.scenes[0])}", answer.text)


def classified(vlm: Idefics, samples: Sequence[Sample], look: Look) -> Iterator[Mark]:
    """One label of the list in the prompt, written."""
    for mark in asked(vlm, samples, look):
        yield exact("classify/answer", mark.asked, mark.wanted, mark.said)
    yield from ranked(vlm, samples, look)


def ranked(vlm: Idefics, samples: Sequence[Sample], look: Look) -> Iterator[Mark]:
    """The same by ranking the labels."""
    for sample in samples:
        question = question_of(sample.turns[0])
        labels = question.partition("list: ")[2].removesuffix(".").split(", ")
        best = vlm.classify(look(sample.scenes[0]), labels).best
        yield exact(sample.kind, question, answer_of(sample.turns[1]), best)


def told(vlm: Idefics, samples: Sequence[Sample], look: Look) -> Iterator[Mark]:
    """A story: everything in it by name, the ground, day or night."""
    answers = vlm.write([look(sample.scenes[0]) for sample in samples])
    for sample, answer in zip(samples, answers, strict=True):
        yield Mark(
            "story", fits(answer.text, sample.scenes[0]), "", answer_of(sample.turns[1]), answer.text
        )


def shown(vlm: Idefics, samples: Sequence[Sample], look: Look) -> Iterator[Mark]:
    """Few-shot: whether the answer has the form of the shots, and whether it says the right thing in it."""
    for sample in samples:
        pictures = [look(scene) for scene in sample.scenes]
        answers = [answer_of(turn) for turn in sample.turns[1::2]]
        shots = [Shot(picture, answer) for picture, answer in zip(pictures, answers[:-1], strict=False)]
        question, few = question_of(sample.turns[0]), vlm.with_shots(shots)
        captions = question == TASKS["caption"].chat
        said = (few.caption(pictures[-1]) if captions else few.ask(pictures[-1], question)).text
        before, name = " / ".join(answers[:-1]), sample.kind.removeprefix("shots/")
        yield exact(f"{sample.kind}/exact", before, answers[-1], said)
        if name in FORMS:
            right = FORMS[name](said, answers[0])
            yield Mark(f"{sample.kind}/form", right, before, answers[-1], said)


def talked(vlm: Idefics, samples: Sequence[Sample], look: Look) -> Iterator[Mark]:
    """Whole conversations, the model's own earlier answers in them; "follow-up" is all after the second picture."""
    talks: list[tuple[Sample, list[Message]]] = [(sample, []) for sample in samples]
    for number in range(0, max(len(sample.turns) for sample in samples), 2):
        going = [(sample, messages) for sample, messages in talks if len(sample.turns) > number]
        for sample, messages in going:
            messages.append(said_by(sample.turns[number], sample, look))
        answers = vlm.chat([messages for _, messages in going])
        for (sample, messages), answer in zip(going, answers, strict=True):
            messages.append(assistant(answer.text))
            question, wanted = question_of(sample.turns[number]), answer_of(sample.turns[number + 1])
            yield exact("chat", question, wanted, answer.text)
            if number > 2:
                yield exact("chat/follow-up", question, wanted, answer.text)


def continued(vlm: Idefics, samples: Sequence[Sample], look: Look) -> Iterator[Mark]:
    """Raw prompts, as for a base model."""
    answers = vlm.generate([list(said_by(sample.turns[0], sample, look).parts) for sample in samples])
    for sample, answer in zip(samples, answers, strict=True):
        said, wanted = answer.text.strip(), answer_of(sample.turns[1])
        right = fits(said, sample.scenes[0]) if sample.kind == "raw/story" else said == wanted
        yield Mark(sample.kind, right, question_of(sample.turns[0]), wanted, said)


def things_in(text: str) -> list[str]:
    """The things that a caption names, in its order."""
    return re.findall(rf"\ban? (?:large|small) ({_names()})", text, re.IGNORECASE)


def fits(text: str, scene: Scene) -> bool:
    """Whether a story names everything in a scene, its ground, and its time of day, and not the other."""
    return (
        inventory(scene) in text
        and f"on {scene.ground} ground" in text
        and any(sentence in text for sentence in WEATHER[scene.night])
        and not any(sentence in text for sentence in WEATHER[not scene.night])
    )


def _any_of(words: Iterator[str]) -> str:
    return "|".join(map(re.escape, sorted(set(words), key=len, reverse=True)))


@cache
def _names() -> str:
    return _any_of(thing.name for thing in CATALOG[1:])


@cache
def _counted() -> tuple[str, str]:
    """Patterns of "a puppy" or "two puppies", and of "1 puppy" or "2 puppies"."""
    ones = _any_of(with_article(thing.name) for thing in CATALOG[1:])
    many = _any_of(thing.plural for thing in CATALOG[1:])
    return f"(?:{ones}|(?:{'|'.join(NUMBERS[2:])}) (?:{many}))", f"(?:1 (?:{_names()})|[2-4] (?:{many}))"


def _is_fact(text: str, _: str) -> bool:
    facts = _any_of(thing.fact for thing in THINGS)
    return re.fullmatch(rf"An image of an? (?:{_names()})\. Fun fact: (?:{facts})", text) is not None


def _is_upper(text: str, _: str) -> bool:
    one = _counted()[0]
    whole = rf"{one}(?:(?:, {one})* and {one})?"
    return text.isupper() and re.fullmatch(whole, text, re.IGNORECASE) is not None


def _is_counted(text: str, _: str) -> bool:
    one = _counted()[1]
    return re.fullmatch(rf"{one}(?:, {one})*", text) is not None


def _is_in_language(text: str, first: str) -> bool:
    """Whether it is a colour in the language of the first shot, which is never one that languages share."""
    (colors,) = (colors for colors in LANGUAGES.values() if first in colors)
    return text in colors


# (what was said, the first shot's answer) -> whether it has the form of the shots.
FORMS: dict[str, Callable[[str, str], bool]] = {
    "fact": _is_fact,
    "upper": _is_upper,
    "counted": _is_counted,
    "language": _is_in_language,
}

# The kind of samples to draw -> how they are tried.
TESTS: dict[str, Callable[[Idefics, Sequence[Sample], Look], Iterator[Mark]]] = {
    **{f"question/{topic}": asked for topic in QUESTIONS},
    "classify": classified,
    "classify/kinds": ranked,
    "classify/album": ranked,
    "caption": captioned,
    "complete": completed,
    **dict.fromkeys((*SHOT_KINDS, "shots/free"), shown),
    "story": told,
    "chat": talked,
    **dict.fromkeys(RAW_KINDS, continued),
}


def examine(
    vlm: Idefics, number: int, seed: int, side: int, report: Callable[[str], None]
) -> Iterator[Mark]:
    """Tries everything on so many samples of each kind; one seed means the same samples for every checkpoint.

    Args:
        side: of the drawn pictures, in pixels.
        report: told the kind that is tried next.
    """

    def look(scene: Scene) -> Picture:
        return Picture(draw(scene, side))

    reads_documents = vlm.processor.style.marks == "beside"  # as `Recipe.raw` says
    for kind, test in TESTS.items():
        if kind in RAW_KINDS and not reads_documents:
            continue
        report(kind)
        rng = random.Random(f"{seed} {kind}")
        yield from test(vlm, [make(rng, "held-out", kind) for _ in range(number)], look)
