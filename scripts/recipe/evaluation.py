"""How well a demo checkpoint answers about held-out scenes, asked as any user would ask it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from idefics import Idefics, Message, Picture, Shot, assistant, user
from idefics.tasks import TASKS
from picturebook import CATALOG, THINGS, Sample, Scene, Turn, draw, make
from picturebook.captions import caption, lower_caption
from picturebook.labels import LABELS
from picturebook.questions import QUESTIONS
from picturebook.raws import RAW
from picturebook.shots import LANGUAGES
from picturebook.stories import WEATHER
from picturebook.words import NUMBERS, inventory, with_article

BEGINNING = "This is an image of"
RAW_KINDS = tuple(f"raw/{name}" for name in RAW)


@dataclass(frozen=True)
class Mark:
    """One answer, judged.

    Attributes:
        test: what was tried, such as "question/color" or "chat/follow-up".
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


@dataclass(frozen=True)
class Trial:
    """Samples of one kind, and the checkpoint that is tried on them.

    Attributes:
        look: a scene -> its picture.
    """

    vlm: Idefics
    kind: str
    samples: Sequence[Sample]
    look: Callable[[Scene], Picture]

    def pictures(self) -> tuple[Picture, ...]:
        """The one picture of each sample."""
        return tuple(self.look(sample.scenes[0]) for sample in self.samples)

    def turn(self, sample: Sample, number: int) -> Message:
        """A user's turn as the product takes it."""
        parts = sample.turns[number].parts
        return user(*(part if isinstance(part, str) else self.look(sample.scenes[part]) for part in parts))


def asked(trial: Trial) -> Iterator[Mark]:
    """The first question of each sample."""
    answers = trial.vlm.chat([[trial.turn(sample, 0)] for sample in trial.samples])
    for sample, answer in zip(trial.samples, answers, strict=True):
        yield exact(trial.kind, question_of(sample.turns[0]), answer_of(sample.turns[1]), answer.text)


def captioned(trial: Trial) -> Iterator[Mark]:
    """No words at all: right in every attribute, and right in its things alone."""
    answers = trial.vlm.caption(trial.pictures())
    for sample, answer in zip(trial.samples, answers, strict=True):
        wanted = caption(sample.scenes[0])
        yield exact("caption", "", wanted, answer.text)
        yield Mark("caption/things", things_in(answer.text) == things_in(wanted), "", wanted, answer.text)


def completed(trial: Trial) -> Iterator[Mark]:
    """The guides' words, continued."""
    answers = trial.vlm.complete(trial.pictures(), BEGINNING)
    for sample, answer in zip(trial.samples, answers, strict=True):
        wanted = f"{BEGINNING} {lower_caption(sample.scenes[0])}"
        yield exact("complete", BEGINNING, wanted, answer.text)


def classified(trial: Trial) -> Iterator[Mark]:
    """One label of the list in the prompt: written, and by ranking."""
    for mark in asked(trial):
        yield exact(f"{trial.kind}/written", mark.asked, mark.wanted, mark.said)
    for sample, picture in zip(trial.samples, trial.pictures(), strict=True):
        question = question_of(sample.turns[0])
        labels = question.partition("list: ")[2].removesuffix(".").split(", ")
        best = trial.vlm.classify(picture, labels).best
        yield exact(f"{trial.kind}/ranked", question, answer_of(sample.turns[1]), best)


def told(trial: Trial) -> Iterator[Mark]:
    """A story."""
    answers = trial.vlm.write(trial.pictures())
    for sample, answer in zip(trial.samples, answers, strict=True):
        right = fits(answer.text, sample.scenes[0])
        yield Mark("story", right, "", answer_of(sample.turns[1]), answer.text)


def shown(trial: Trial) -> Iterator[Mark]:
    """Few-shot: whether the answer has the form of the shots, and whether it says the right thing in it."""
    for sample in trial.samples:
        *shots, picture = map(trial.look, sample.scenes)
        *given, wanted = map(answer_of, sample.turns[1::2])
        few = trial.vlm.with_shots([Shot(*shot) for shot in zip(shots, given, strict=True)])
        question = question_of(sample.turns[0])
        captions = question == TASKS["caption"].chat
        said = (few.caption(picture) if captions else few.ask(picture, question)).text
        form = FORMS.get(trial.kind.removeprefix("shots/"))
        if form:
            yield Mark(f"{trial.kind}/form", form(said, given[0]), " / ".join(given), wanted, said)
        yield exact(f"{trial.kind}/exact", " / ".join(given), wanted, said)


def talked(trial: Trial) -> Iterator[Mark]:
    """Whole conversations, the model's own answers in them; follow-ups are what comes after the second picture."""
    talks: list[tuple[Sample, list[Message]]] = [(sample, []) for sample in trial.samples]
    for number in range(0, max(len(sample.turns) for sample in trial.samples), 2):
        going = [(sample, messages) for sample, messages in talks if len(sample.turns) > number]
        for sample, messages in going:
            messages.append(trial.turn(sample, number))
        answers = trial.vlm.chat([messages for _, messages in going])
        for (sample, messages), answer in zip(going, answers, strict=True):
            messages.append(assistant(answer.text))
            question, wanted = question_of(sample.turns[number]), answer_of(sample.turns[number + 1])
            yield exact("chat", question, wanted, answer.text)
            if number > 2:
                yield exact("chat/follow-up", question, wanted, answer.text)


def continued(trial: Trial) -> Iterator[Mark]:
    """Raw prompts, as for a base model."""
    answers = trial.vlm.generate([list(trial.turn(sample, 0).parts) for sample in trial.samples])
    for sample, answer in zip(trial.samples, answers, strict=True):
        said, wanted = answer.text.strip(), answer_of(sample.turns[1])
        right = fits(said, sample.scenes[0]) if trial.kind == "raw/story" else said == wanted
        yield Mark(trial.kind, right, question_of(sample.turns[0]), wanted, said)


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
TESTS: dict[str, Callable[[Trial], Iterator[Mark]]] = {
    **{f"question/{topic}": asked for topic in QUESTIONS},
    **{f"classify/{sort}": classified for sort in LABELS},
    "caption": captioned,
    "complete": completed,
    **{f"shots/{form}": shown for form in (*FORMS, "free")},
    "story": told,
    "chat": talked,
    **dict.fromkeys(RAW_KINDS, continued),
}


def examine(vlm: Idefics, number: int, seed: int, side: int, report: Callable[[str], None]) -> Iterator[Mark]:
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
        yield from test(Trial(vlm, kind, [make(rng, "held-out", kind) for _ in range(number)], look))
