"""The tab "Write": stories and other texts, and how their words are chosen."""

from __future__ import annotations

from idefics.tasks import TASKS
from idefics.tasks.write import STORY
from idefics.ui.desk import Desk
from idefics.ui.reply import Reply, build


def tab(desk: Desk) -> None:
    """Makes it."""
    build(desk, REPLY)


REPLY = Reply(
    place="write",
    button="Write",
    label="Instruction",
    placeholder=STORY,
    task=lambda words: "write",
    answer="Text",
    most=TASKS["write"].max_new_tokens,
    examples=(("door.png", STORY), ("puppy.png", STORY), ("vegetables.png", STORY), ("statue.png", STORY)),
    words=STORY,
    strategies=True,
)
