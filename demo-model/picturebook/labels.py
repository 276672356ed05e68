"""Samples of classification: a list of labels of which exactly one fits the picture."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from .questions import choose_absent_name, count_items_by_name, plural_of
from .scene import Scene
from .things import CATEGORY_PLURALS, THINGS
from .turns import ConversationSample, assistant_turn, user_turn
from .words import capitalize

# Kinds that a person might mix up: a tomato is food as well.
OVERLAPPING_CATEGORIES = ({"vegetable", "fruit", "food"}, {"building", "landmark"})
CITY_CATEGORIES = {"building", "landmark"}
MAX_LABELS = 8


@dataclass(frozen=True)
class LabelChoice:
    """Labels, and the one that fits."""

    labels: tuple[str, ...]
    correct_label: str


def _category_fits(scene: Scene, category: str) -> bool | None:
    """Whether a label fits the scene; None if that is ambiguous."""
    categories = {item.thing.category for item in scene.items}
    if category in categories:
        return True
    return None if any(category in both and categories & both for both in OVERLAPPING_CATEGORIES) else False


def _city_fits(scene: Scene) -> bool | None:
    is_city_item = [item.thing.category in CITY_CATEGORIES for item in scene.items]
    return all(is_city_item) if all(is_city_item) == any(is_city_item) else None


def _name_labels(rng: random.Random, scene: Scene) -> LabelChoice:
    right = rng.choice(scene.items).thing.name
    wrong: set[str] = set()
    num_wrong = rng.randint(1, MAX_LABELS - 1)
    while len(wrong) < num_wrong:
        wrong.add(choose_absent_name(rng, scene))
    return _shuffle_labels(rng, [right], sorted(wrong), num_wrong)


def _category_labels(rng: random.Random, scene: Scene) -> LabelChoice:
    fits = {kind: _category_fits(scene, kind) for kind in CATEGORY_PLURALS}
    right = [kind for kind, fit in fits.items() if fit]
    wrong = [kind for kind, fit in fits.items() if fit is False]
    return _shuffle_labels(rng, right, wrong, rng.randint(1, MAX_LABELS - 1))


def _plural_labels(rng: random.Random, scene: Scene) -> LabelChoice:
    kinds = _category_labels(rng, scene)
    return LabelChoice(
        tuple(CATEGORY_PLURALS[label] for label in kinds.labels), CATEGORY_PLURALS[kinds.correct_label]
    )


def _album_labels(rng: random.Random, scene: Scene) -> LabelChoice:
    """Labels as for sorting an album: "animals", "city landscape", "cars", "office"."""
    fits = {CATEGORY_PLURALS[kind]: _category_fits(scene, kind) for kind in CATEGORY_PLURALS}
    fits["city landscape"] = _city_fits(scene)
    fits["office"] = False
    count_by_name = count_items_by_name(scene)
    for thing in (*rng.sample(THINGS, 3), *(item.thing for item in scene.items)):
        fits[plural_of(thing.name)] = bool(count_by_name[thing.name])
    right = [label for label, fit in fits.items() if fit]
    wrong = [label for label, fit in fits.items() if fit is False]
    return _shuffle_labels(rng, right, wrong, rng.randint(2, MAX_LABELS - 1))


def _shuffle_labels(rng: random.Random, right: list[str], wrong: list[str], num_wrong: int) -> LabelChoice:
    """One right label among wrong ones, in random order, sometimes capitalised."""
    chosen = rng.choice(right)
    labels = [chosen, *rng.sample(wrong, min(num_wrong, len(wrong)))]
    rng.shuffle(labels)
    return LabelChoice(tuple(labels), chosen)


WEIGHT_AND_SAMPLER_BY_SORT: dict[str, tuple[float, Callable[[random.Random, Scene], LabelChoice]]] = {
    "names": (0.5, _name_labels),
    "kinds": (0.15, _category_labels),
    "plurals": (0.15, _plural_labels),
    "album": (0.2, _album_labels),
}


def choose_labels(rng: random.Random, scene: Scene, sort: str | None = None) -> LabelChoice:
    """Random labels of one sort; one list in seven is capitalised."""
    sort = (
        sort
        or rng.choices(
            tuple(WEIGHT_AND_SAMPLER_BY_SORT),
            tuple(weight for weight, _ in WEIGHT_AND_SAMPLER_BY_SORT.values()),
        )[0]
    )
    label_choice = WEIGHT_AND_SAMPLER_BY_SORT[sort][1](rng, scene)
    if rng.random() < 1 / 7:
        return LabelChoice(
            tuple(capitalize(label) for label in label_choice.labels), capitalize(label_choice.correct_label)
        )
    return label_choice


def make_classify_sample(rng: random.Random, scene: Scene, sort: str | None = None) -> ConversationSample:
    """A sample: a picture, labels, and as answer the one that fits, spelled as in the list."""
    label_choice = choose_labels(rng, scene, sort)
    label_list = ", ".join(label_choice.labels)
    question = f"Classify this image into a single category from the following list: {label_list}."
    return ConversationSample(
        "classify", (scene,), (user_turn(0, question), assistant_turn(label_choice.correct_label))
    )
