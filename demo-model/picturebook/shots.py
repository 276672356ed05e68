"""Few-shot samples: the shots alone define content and form of the answer."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from .captions import caption_sentence, setting_phrase
from .scene import Scene, Split, ThingFilter, sample_scene
from .things import CATALOG, COLOR_RGB, shape_and_color
from .turns import ConversationSample, ConversationTurn, assistant_turn, user_turn
from .words import NUMBER_WORDS, count_by_class, count_phrase, inventory_phrase, join_words, with_article

COLOR_WORDS_BY_LANGUAGE = {
    "French": ("rouge", "orange", "jaune", "vert", "bleu", "violet", "noir", "blanc"),
    "German": ("rot", "orange", "gelb", "grün", "blau", "lila", "schwarz", "weiß"),
    "Spanish": ("rojo", "naranja", "amarillo", "verde", "azul", "morado", "negro", "blanco"),
}
NONSENSE_WORDS = (
    "blip",
    "zorp",
    "mimo",
    "tak",
    "rundi",
    "olla",
    "pesk",
    "vum",
    "fani",
    "gork",
    "lusi",
    "wex",
)
PREFIXES = ("Photo: ", "I see ", "An image of ", "Look: ", "Here: ", "Answer: ", "This is ", "- ")
SUFFIXES = ("!", ".", " ...", "?", "!!", " it is.")
CASE_FUNCTION_BY_NAME: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "upper": str.upper,
    "lower": str.lower,
}


def _numbered_inventory(scene: Scene) -> str:
    return ", ".join(
        f"{count} {CATALOG[what].name if count == 1 else CATALOG[what].plural}"
        for what, count in count_by_class(scene)
    )


def _color_name(scene: Scene) -> str:
    return shape_and_color(scene.items[0].class_id)[1]


def _make_color_word(language: str) -> Callable[[Scene], str]:
    return lambda scene: COLOR_WORDS_BY_LANGUAGE[language][tuple(COLOR_RGB).index(_color_name(scene))]


@dataclass(frozen=True)
class ShotContent:
    """The content of an answer, and the pictures that it is possible for."""

    describe: Callable[[Scene], str]
    num_things_choices: tuple[int, ...] = (1, 2)
    thing_filter: ThingFilter | None = None


CONTENT_BY_NAME: dict[str, ShotContent] = {
    "inventory": ShotContent(inventory_phrase, (1, 2, 2, 3)),
    "numbered": ShotContent(_numbered_inventory, (2, 2, 3, 3)),
    "reversed": ShotContent(
        lambda scene: join_words([count_phrase(*group) for group in reversed(count_by_class(scene))]),
        (2, 2, 3),
    ),
    "names": ShotContent(
        lambda scene: ", ".join(CATALOG[what].name for what, _ in count_by_class(scene)), (1, 2, 2, 3)
    ),
    "thing": ShotContent(lambda scene: with_article(scene.items[0].thing.name), (1,)),
    "kind": ShotContent(lambda scene: scene.items[0].thing.category, (1,)),
    "place": ShotContent(lambda scene: scene.items[0].position_phrase, (1,)),
    "size": ShotContent(lambda scene: scene.items[0].size, (1,)),
    "setting": ShotContent(setting_phrase),
    "ground": ShotContent(lambda scene: scene.ground),
    "time": ShotContent(lambda scene: "night" if scene.is_night else "day"),
    "number": ShotContent(lambda scene: NUMBER_WORDS[len(scene.items)], (1, 2, 3, 4)),
    "caption": ShotContent(caption_sentence),
    "color": ShotContent(_color_name, (1,), "shape"),
    "fact": ShotContent(lambda scene: scene.items[0].thing.fact, (1,), "thing"),
    "image and fact": ShotContent(
        lambda scene: f"{with_article(scene.items[0].thing.name)}. Fun fact: {scene.items[0].thing.fact}",
        (1,),
        "thing",
    ),
    **{
        language: ShotContent(_make_color_word(language), (1,), "shape")
        for language in COLOR_WORDS_BY_LANGUAGE
    },
}


@dataclass(frozen=True)
class ShotForm:
    """A content, and prefix, suffix and letter case around it."""

    content_name: str
    prefix: str = ""
    suffix: str = ""
    letter_case: str = "as it is"

    def __call__(self, scene: Scene) -> str:
        """The answer in this form about a scene."""
        return CASE_FUNCTION_BY_NAME[self.letter_case](
            self.prefix + CONTENT_BY_NAME[self.content_name].describe(scene) + self.suffix
        )


FACT_FORM = ShotForm("image and fact", "An image of ")
FORM_SAMPLER_BY_NAME: dict[str, Callable[[random.Random], ShotForm]] = {
    "fact": lambda rng: FACT_FORM,
    "upper": lambda rng: ShotForm("inventory", letter_case="upper"),
    "counted": lambda rng: ShotForm("numbered"),
    "language": lambda rng: ShotForm(rng.choice(tuple(COLOR_WORDS_BY_LANGUAGE))),
}


def sample_free_form(rng: random.Random) -> ShotForm:
    """A random content with random prefix, suffix and letter case, often with nonsense words."""
    prefix, suffix = "", ""
    if rng.random() < 0.5:
        prefix = (
            rng.choice(PREFIXES)
            if rng.random() < 0.5
            else rng.choice(NONSENSE_WORDS) + rng.choice((" ", ": ", ", "))
        )
    if rng.random() < 0.5:
        suffix = rng.choice(SUFFIXES) if rng.random() < 0.6 else f" {rng.choice(NONSENSE_WORDS)}"
    content, case = (
        rng.choice(tuple(CONTENT_BY_NAME)),
        rng.choices(tuple(CASE_FUNCTION_BY_NAME), (6, 2, 1))[0],
    )
    return ShotForm(
        content, prefix, suffix, "as it is" if "fact" in content else case
    )  # facts in capitals: too many words


def choose_form(rng: random.Random, name: str | None = None) -> tuple[str, ShotForm]:
    """A form by its name; without one, one of the named forms or, in half of the cases, a free form."""
    if name is None:
        name = "free" if rng.random() < 0.5 else rng.choices(tuple(FORM_SAMPLER_BY_NAME), (2, 1, 1, 1))[0]
    return name, sample_free_form(rng) if name == "free" else FORM_SAMPLER_BY_NAME[name](rng)


def sample_shot_scenes(rng: random.Random, split: Split, form: ShotForm, num_shots: int) -> tuple[Scene, ...]:
    """Scenes for the shots, always of the training split, and one for the query, of `split`."""
    content = CONTENT_BY_NAME[form.content_name]
    scenes: list[Scene] = []
    while len(scenes) < num_shots + 1:
        scene = sample_scene(
            rng,
            split if len(scenes) == num_shots else "train",
            rng.choice(content.num_things_choices),
            content.thing_filter,
        )
        is_unambiguous = (
            form.content_name not in COLOR_WORDS_BY_LANGUAGE or _color_name(scene) != "orange"
        )  # it is "orange" in three of them
        if scenes or is_unambiguous:
            scenes.append(scene)
    return tuple(scenes)


def make_shots_sample(rng: random.Random, split: Split, name: str | None = None) -> ConversationSample:
    """One to three shots and a query. The first shot's answer is not predictable and no target of the loss."""
    name, form = choose_form(rng, name)
    scenes = sample_shot_scenes(rng, split, form, rng.randint(1, 3))
    question = rng.choices(("Describe this image.", "Can you describe this image?"), (4, 1))[0]
    turns: list[ConversationTurn] = []
    for index, scene in enumerate(scenes):
        turns += [user_turn(index, question), assistant_turn(form(scene), is_target=index > 0)]
    return ConversationSample(f"shots/{name}", scenes, tuple(turns))
