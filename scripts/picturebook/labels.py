"""Classification: a list of labels of which exactly one fits the picture."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from .questions import name_counts, other_name, plural
from .scene import Scene
from .things import KIND_PLURALS, THINGS
from .turns import Sample, assistant, user
from .words import capitalized

# Kinds that a person might mix up: a tomato is food as well.
OVERLAPPING = ({"vegetable", "fruit", "food"}, {"building", "landmark"})
CITY = {"building", "landmark"}
MOST_LABELS = 8


@dataclass(frozen=True)
class Labels:
    """A list of labels and the one that fits."""

    labels: tuple[str, ...]
    right: str


def _kind_fits(scene: Scene, kind: str) -> bool | None:
    """Whether a kind fits the scene; None if one might argue."""
    kinds = {item.thing.kind for item in scene.items}
    if kind in kinds:
        return True
    return None if any(kind in both and kinds & both for both in OVERLAPPING) else False


def _city_fits(scene: Scene) -> bool | None:
    city = [item.thing.kind in CITY for item in scene.items]
    return all(city) if all(city) == any(city) else None


def _name_labels(rng: random.Random, scene: Scene) -> Labels:
    right = rng.choice(scene.items).thing.name
    wrong: set[str] = set()
    wanted = rng.randint(1, MOST_LABELS - 1)
    while len(wrong) < wanted:
        wrong.add(other_name(rng, scene))
    return _mixed(rng, [right], sorted(wrong), wanted)


def _kind_labels(rng: random.Random, scene: Scene) -> Labels:
    fits = {kind: _kind_fits(scene, kind) for kind in KIND_PLURALS}
    right = [kind for kind, fit in fits.items() if fit]
    wrong = [kind for kind, fit in fits.items() if fit is False]
    return _mixed(rng, right, wrong, rng.randint(1, MOST_LABELS - 1))


def _plural_labels(rng: random.Random, scene: Scene) -> Labels:
    kinds = _kind_labels(rng, scene)
    return Labels(tuple(KIND_PLURALS[label] for label in kinds.labels), KIND_PLURALS[kinds.right])


def _album_labels(rng: random.Random, scene: Scene) -> Labels:
    """Labels of all sorts, as for sorting an album: "animals", "city landscape", "cars", "office"."""
    fits = {KIND_PLURALS[kind]: _kind_fits(scene, kind) for kind in KIND_PLURALS}
    fits["city landscape"] = _city_fits(scene)
    fits["office"] = False
    present = name_counts(scene)
    for thing in (*rng.sample(THINGS, 3), *(item.thing for item in scene.items)):
        fits[plural(thing.name)] = bool(present[thing.name])
    right = [label for label, fit in fits.items() if fit]
    wrong = [label for label, fit in fits.items() if fit is False]
    return _mixed(rng, right, wrong, rng.randint(2, MOST_LABELS - 1))


def _mixed(rng: random.Random, right: list[str], wrong: list[str], wanted: int) -> Labels:
    """One right label among some wrong ones, in any order, now and then with capitals."""
    chosen = rng.choice(right)
    labels = [chosen, *rng.sample(wrong, min(wanted, len(wrong)))]
    rng.shuffle(labels)
    return Labels(tuple(labels), chosen)


LABELS: dict[str, tuple[float, Callable[[random.Random, Scene], Labels]]] = {
    "names": (0.5, _name_labels),
    "kinds": (0.15, _kind_labels),
    "plurals": (0.15, _plural_labels),
    "album": (0.2, _album_labels),
}


def choose_labels(rng: random.Random, scene: Scene, sort: str | None = None) -> Labels:
    """A list of labels of one sort; one in seven begins with capitals."""
    sort = sort or rng.choices(tuple(LABELS), tuple(weight for weight, _ in LABELS.values()))[0]
    found = LABELS[sort][1](rng, scene)
    if rng.random() < 1 / 7:
        return Labels(tuple(capitalized(label) for label in found.labels), capitalized(found.right))
    return found


def classify_sample(rng: random.Random, scene: Scene, sort: str | None = None) -> Sample:
    """A picture, labels, and the one that fits, exactly as it was listed."""
    found = choose_labels(rng, scene, sort)
    listed = ", ".join(found.labels)
    question = f"Classify this image into a single category from the following list: {listed}."
    return Sample("classify", (scene,), (user(0, question), assistant(found.right)))
