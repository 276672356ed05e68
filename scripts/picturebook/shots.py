"""Few-shot samples: what is said and in which form is defined by the shots alone."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from .captions import caption, setting
from .scene import Only, Scene, Split, sample
from .things import CATALOG, COLORS, shape_and_color
from .turns import Sample, Turn, assistant, user
from .words import NUMBERS, counted, groups, inventory, joined, with_article

LANGUAGES = {
    "French": ("rouge", "orange", "jaune", "vert", "bleu", "violet", "noir", "blanc"),
    "German": ("rot", "orange", "gelb", "grün", "blau", "lila", "schwarz", "weiß"),
    "Spanish": ("rojo", "naranja", "amarillo", "verde", "azul", "morado", "negro", "blanco"),
}
NONSENSE = ("blip", "zorp", "mimo", "tak", "rundi", "olla", "pesk", "vum", "fani", "gork", "lusi", "wex")
PREFIXES = ("Photo: ", "I see ", "An image of ", "Look: ", "Here: ", "Answer: ", "This is ", "- ")
SUFFIXES = ("!", ".", " ...", "?", "!!", " it is.")
CASES: dict[str, Callable[[str], str]] = {"as it is": str, "upper": str.upper, "lower": str.lower}


def _numbered(scene: Scene) -> str:
    return ", ".join(
        f"{count} {CATALOG[what].name if count == 1 else CATALOG[what].plural}"
        for what, count in groups(scene)
    )


def _color(scene: Scene) -> str:
    return shape_and_color(scene.items[0].what)[1]


def _in_language(language: str) -> Callable[[Scene], str]:
    return lambda scene: LANGUAGES[language][tuple(COLORS).index(_color(scene))]


@dataclass(frozen=True)
class Content:
    """What a form says of a picture, and which pictures it can be said of."""

    say: Callable[[Scene], str]
    things: tuple[int, ...] = (1, 2)
    only: Only | None = None


CONTENTS: dict[str, Content] = {
    "inventory": Content(inventory, (1, 2, 2, 3)),
    "numbered": Content(_numbered, (2, 2, 3, 3)),
    "reversed": Content(
        lambda scene: joined([counted(*group) for group in reversed(groups(scene))]), (2, 2, 3)
    ),
    "names": Content(lambda scene: ", ".join(CATALOG[what].name for what, _ in groups(scene)), (1, 2, 2, 3)),
    "thing": Content(lambda scene: with_article(scene.items[0].thing.name), (1,)),
    "kind": Content(lambda scene: scene.items[0].thing.kind, (1,)),
    "place": Content(lambda scene: scene.items[0].place, (1,)),
    "size": Content(lambda scene: scene.items[0].size, (1,)),
    "setting": Content(setting),
    "ground": Content(lambda scene: scene.ground),
    "time": Content(lambda scene: "night" if scene.night else "day"),
    "number": Content(lambda scene: NUMBERS[len(scene.items)], (1, 2, 3, 4)),
    "caption": Content(caption),
    "color": Content(_color, (1,), "shape"),
    "fact": Content(lambda scene: scene.items[0].thing.fact, (1,), "thing"),
    "image and fact": Content(
        lambda scene: f"{with_article(scene.items[0].thing.name)}. Fun fact: {scene.items[0].thing.fact}",
        (1,),
        "thing",
    ),
    **{language: Content(_in_language(language), (1,), "shape") for language in LANGUAGES},
}


@dataclass(frozen=True)
class Form:
    """A content and its dress."""

    content: str
    prefix: str = ""
    suffix: str = ""
    case: str = "as it is"

    def __call__(self, scene: Scene) -> str:
        """What this form says of a scene."""
        return CASES[self.case](self.prefix + CONTENTS[self.content].say(scene) + self.suffix)


FACT = Form("image and fact", "An image of ")
NAMED_FORMS: dict[str, Callable[[random.Random], Form]] = {
    "fact": lambda rng: FACT,
    "upper": lambda rng: Form("inventory", case="upper"),
    "counted": lambda rng: Form("numbered"),
    "language": lambda rng: Form(rng.choice(tuple(LANGUAGES))),
}


def free_form(rng: random.Random) -> Form:
    """Any content in any dress, often with words that mean nothing."""
    prefix, suffix = "", ""
    if rng.random() < 0.5:
        prefix = (
            rng.choice(PREFIXES)
            if rng.random() < 0.5
            else rng.choice(NONSENSE) + rng.choice((" ", ": ", ", "))
        )
    if rng.random() < 0.5:
        suffix = rng.choice(SUFFIXES) if rng.random() < 0.6 else f" {rng.choice(NONSENSE)}"
    content, case = rng.choice(tuple(CONTENTS)), rng.choices(tuple(CASES), (6, 2, 1))[0]
    return Form(
        content, prefix, suffix, "as it is" if "fact" in content else case
    )  # facts in capitals: too many words


def choose_form(rng: random.Random, name: str | None = None) -> tuple[str, Form]:
    """A form by its name; without one, one of the named forms or, in half of the cases, a free form."""
    if name is None:
        name = "free" if rng.random() < 0.5 else rng.choices(tuple(NAMED_FORMS), (2, 1, 1, 1))[0]
    return name, free_form(rng) if name == "free" else NAMED_FORMS[name](rng)


def shot_scenes(rng: random.Random, split: Split, form: Form, shots: int) -> tuple[Scene, ...]:
    """Scenes for the shots, of the training split always, and for the query, of the split asked for."""
    content = CONTENTS[form.content]
    scenes: list[Scene] = []
    while len(scenes) < shots + 1:
        scene = sample(
            rng, split if len(scenes) == shots else "train", rng.choice(content.things), content.only
        )
        tells_language = (
            form.content not in LANGUAGES or _color(scene) != "orange"
        )  # it is "orange" in three of them
        if scenes or tells_language:
            scenes.append(scene)
    return tuple(scenes)


def shots_sample(rng: random.Random, split: Split, name: str | None = None) -> Sample:
    """One to three shots and a query; the first shot's answer cannot be foreseen and is not learned."""
    name, form = choose_form(rng, name)
    scenes = shot_scenes(rng, split, form, rng.randint(1, 3))
    question = rng.choices(("Describe this image.", "Can you describe this image?"), (4, 1))[0]
    turns: list[Turn] = []
    for index, scene in enumerate(scenes):
        turns += [user(index, question), assistant(form(scene), learn=index > 0)]
    return Sample(f"shots/{name}", scenes, tuple(turns))
