"""The tab "Caption": what a picture shows, with or without the person's first words."""

from __future__ import annotations

from idefics.tasks import TASKS
from idefics.ui.desk import Desk
from idefics.ui.reply import Reply, build

REPLY = Reply(
    place="caption",
    button="Caption",
    label="How it begins (optional)",
    placeholder="This is an image of",
    task=lambda words: "complete" if words.strip() else "caption",
    answer="Caption",
    most=TASKS["caption"].max_new_tokens,
    examples=(
        ("puppy.png", "This is an image of"),
        ("tower.png", ""),
        ("shapes.png", ""),
        ("picnic.png", ""),
    ),
)


def tab(desk: Desk) -> None:
    """Makes it."""
    build(desk, REPLY)
