"""The tab "Ask": a question about a picture."""

from __future__ import annotations

from idefics.errors import BadPrompt
from idefics.tasks import TASKS
from idefics.ui.desk import Desk
from idefics.ui.reply import Reply, build


def _task(words: str) -> str:
    if not words.strip():
        raise BadPrompt("the question is empty: give one, such as “What is on the left?”")
    return "ask"


REPLY = Reply(
    place="ask",
    button="Ask",
    label="Question",
    placeholder="What is on the table?",
    task=_task,
    answer="Answer",
    most=TASKS["ask"].max_new_tokens,
    examples=(
        ("picnic.png", "What is on the left?"),
        ("puppy.png", "Where is the puppy?"),
        ("tower.png", "Is it day or night?"),
        ("shapes.png", "What color is the star?"),
    ),
)


def tab(desk: Desk) -> None:
    """Makes it."""
    build(desk, REPLY)
