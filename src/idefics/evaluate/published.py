"""Published figures of the family, which stand next to one's own: `published.json`, with their sources."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from idefics.catalog import CATALOG

FILE = Path(__file__).with_name("published.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFigure:
    """A published figure.

    Attributes:
        suite: a key of `SUITES`.
        model: the checkpoint's short name.
        shots: number of few-shot examples.
        value: as it was published.
        metric: what the source calls it.
        split: the part of the data; "" if the source does not say.
        source: where it was published.
        settings: what is known and not known of how it was computed.
    """

    suite: str
    model: str
    shots: int
    value: float
    metric: str
    split: str
    source: str
    settings: str


@cache
def published_figures(suite: str) -> tuple[PublishedFigure, ...]:
    """The published figures of a suite, by model and shots."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    figures = []
    for one in content["figures"]:
        if one["suite"] != suite:
            continue
        known = content["sources"][one["source"]]
        note = one.pop("note", "")
        figures.append(PublishedFigure(**one, settings=f"{note}; {known}" if note else known))
    return tuple(sorted(figures, key=lambda figure: (figure.model, figure.shots)))


def figures_of_model(figures: Sequence[PublishedFigure], model: str) -> list[PublishedFigure]:
    """The figures of one checkpoint.

    Args:
        figures: from `published_figures`.
        model: its short name, its id on the hub, or a folder with the name of its repository.
    """
    name = Path(model).name.lower()
    names = {name}
    for entry in CATALOG:
        hub_name = entry.hub_id.rpartition("/")[2].lower()
        if name in (*entry.short_names, hub_name):
            names |= {*entry.short_names, hub_name}
    return [one for one in figures if one.model in names]
