"""Everything that is said about scenes: samples of every kind by lot, and texts to train a tokenizer on."""

import random
from collections.abc import Callable, Iterator, Mapping

from .captions import caption_sample, complete_sample, readout_sample
from .chats import chat_sample
from .labels import LABELS, classify_sample
from .questions import QUESTIONS, question_sample
from .raws import RAW, raw_sample
from .scene import Scene, Split, sample
from .shots import NAMED_FORMS, shots_sample
from .stories import story_sample
from .turns import Sample, assistant, user

# How often each kind is drawn.
MIX: dict[str, float] = {
    "caption": 1.5,
    "complete": 1.0,
    "question": 6.0,
    "classify": 4.0,
    "story": 0.6,
    "shots": 2.0,
    "chat": 2.5,
    "readout": 0.5,
    "raw": 2.0,
}
ABOUT_ONE_SCENE: dict[str, Callable[[random.Random, Scene], Sample]] = {
    "caption": caption_sample,
    "complete": complete_sample,
    "question": question_sample,
    "classify": classify_sample,
    "story": story_sample,
    "readout": readout_sample,
}
# Kinds that `make` knows beside those of MIX: one topic, form or sort of a kind alone, for evaluation.
DETAILED_KINDS: tuple[str, ...] = (
    *(f"question/{topic}" for topic in QUESTIONS),
    *(f"classify/{sort}" for sort in LABELS),
    *(f"shots/{form}" for form in (*NAMED_FORMS, "free")),
    *(f"raw/{name}" for name in RAW),
)


def make(rng: random.Random, split: Split, kind: str | None = None, mix: Mapping[str, float] = MIX) -> Sample:
    """Draw a sample; its kind by the weights of the mix, unless it is named."""
    kind = kind or rng.choices(tuple(mix), tuple(mix.values()))[0]
    if kind not in MIX and kind not in DETAILED_KINDS:
        raise ValueError(
            f"no kind of sample is named {kind!r}; there are {', '.join((*MIX, *DETAILED_KINDS))}"
        )
    base, _, detail = kind.partition("/")
    if base == "shots":
        return shots_sample(rng, split, detail or None)
    if base == "raw":
        return raw_sample(rng, split, detail or None)
    if base == "chat":
        return chat_sample(rng, split)
    if kind.startswith("question/"):
        return _one_question(rng, split, detail)
    if kind.startswith("classify/"):
        return classify_sample(rng, sample(rng, split), detail)
    return ABOUT_ONE_SCENE[kind](rng, sample(rng, split))


def _one_question(rng: random.Random, split: Split, topic: str) -> Sample:
    """One question of one topic, about a scene that allows it."""
    while True:
        scene = sample(rng, split)
        asked = QUESTIONS[topic][1](rng, scene)
        if asked:
            return Sample(f"question/{topic}", (scene,), (user(0, asked[0]), assistant(asked[1])))


def corpus(number: int, seed: int) -> Iterator[str]:
    """Every text of so many training samples."""
    rng = random.Random(seed)
    for _ in range(number):
        for turn in make(rng, "train").turns:
            if turn.given:
                yield turn.given
            yield from (part for part in turn.parts if isinstance(part, str))
