"""Phrases: articles, numbers, enumerations, inventories of a scene."""

from collections import Counter

from .scene import Scene
from .things import CATALOG

NUMBER_WORDS = ("none", "one", "two", "three", "four")


def with_article(name: str) -> str:
    """The name with "a" or "an" before it."""
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def capitalize(text: str) -> str:
    """The text with its first letter in upper case and all others as they were."""
    return text[:1].upper() + text[1:]


def join_words(words: list[str]) -> str:
    """The words as an enumeration: "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def count_by_class(scene: Scene) -> list[tuple[int, int]]:
    """(class id, count) of each different thing, in the order of first appearance."""
    return list(Counter(item.class_id for item in scene.items).items())


def count_phrase(class_id: int, count: int) -> str:
    """Such as "a puppy" or "two tulips"."""
    thing = CATALOG[class_id]
    return with_article(thing.name) if count == 1 else f"{NUMBER_WORDS[count]} {thing.plural}"


def inventory_phrase(scene: Scene) -> str:
    """Everything in a scene, such as "a puppy and two tulips"."""
    return join_words([count_phrase(what, count) for what, count in count_by_class(scene)])
