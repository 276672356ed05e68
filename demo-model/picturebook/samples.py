"""Random samples of every kind, and the texts that tokenizers are trained on."""

import random
from collections.abc import Callable, Iterator, Mapping

from .captions import make_caption_sample, make_complete_sample, make_readout_sample
from .chats import make_chat_sample
from .labels import WEIGHT_AND_SAMPLER_BY_SORT, make_classify_sample
from .questions import QUESTIONS, make_question_sample
from .raw_prompts import WEIGHT_AND_SAMPLER_BY_NAME, make_raw_sample
from .scene import Scene, Split, sample_scene
from .shots import FORM_SAMPLER_BY_NAME, make_shots_sample
from .stories import make_story_sample
from .turns import ConversationSample, assistant_turn, user_turn

# How often each kind is drawn.
WEIGHT_BY_KIND: dict[str, float] = {
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
SCENE_SAMPLER_BY_KIND: dict[str, Callable[[random.Random, Scene], ConversationSample]] = {
    "caption": make_caption_sample,
    "complete": make_complete_sample,
    "question": make_question_sample,
    "classify": make_classify_sample,
    "story": make_story_sample,
    "readout": make_readout_sample,
}
# Further kinds for evaluation: a single topic, form or sort of a kind in `WEIGHT_BY_KIND`.
DETAILED_KINDS: tuple[str, ...] = (
    *(f"question/{topic}" for topic in QUESTIONS),
    *(f"classify/{sort}" for sort in WEIGHT_AND_SAMPLER_BY_SORT),
    *(f"shots/{form}" for form in (*FORM_SAMPLER_BY_NAME, "free")),
    *(f"raw/{name}" for name in WEIGHT_AND_SAMPLER_BY_NAME),
)


def make_sample(
    rng: random.Random,
    split: Split,
    kind: str | None = None,
    weight_by_kind: Mapping[str, float] = WEIGHT_BY_KIND,
) -> ConversationSample:
    """A random sample of `kind`, or of a kind drawn by the weights of the mix."""
    kind = kind or rng.choices(tuple(weight_by_kind), tuple(weight_by_kind.values()))[0]
    if kind not in WEIGHT_BY_KIND and kind not in DETAILED_KINDS:
        raise ValueError(
            f"no kind of sample is named {kind!r}; there are {', '.join((*WEIGHT_BY_KIND, *DETAILED_KINDS))}"
        )
    base, _, detail = kind.partition("/")
    if base == "shots":
        return make_shots_sample(rng, split, detail or None)
    if base == "raw":
        return make_raw_sample(rng, split, detail or None)
    if base == "chat":
        return make_chat_sample(rng, split)
    if kind.startswith("question/"):
        return _make_topic_sample(rng, split, detail)
    if kind.startswith("classify/"):
        return make_classify_sample(rng, sample_scene(rng, split), detail)
    return SCENE_SAMPLER_BY_KIND[kind](rng, sample_scene(rng, split))


def _make_topic_sample(rng: random.Random, split: Split, topic: str) -> ConversationSample:
    """One question of one topic, about a scene that has an answer."""
    while True:
        scene = sample_scene(rng, split)
        question_and_answer = QUESTIONS[topic][1](rng, scene)
        if question_and_answer:
            return ConversationSample(
                f"question/{topic}",
                (scene,),
                (user_turn(0, question_and_answer[0]), assistant_turn(question_and_answer[1])),
            )


def iterate_texts(num_samples: int, seed: int) -> Iterator[str]:
    """All texts of `num_samples` training samples."""
    rng = random.Random(seed)
    for _ in range(num_samples):
        for turn in make_sample(rng, "train").turns:
            if turn.answer_prefix:
                yield turn.answer_prefix
            yield from (part for part in turn.parts if isinstance(part, str))
