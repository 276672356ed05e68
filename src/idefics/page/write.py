"""The tab "Write": stories and other texts, and how their words are chosen."""

from __future__ import annotations

from idefics.page.backend import PageBackend
from idefics.page.task_tab import TaskTabConfig, build_task_tab
from idefics.tasks import TASKS
from idefics.tasks.write import STORY


def build_tab(backend: PageBackend) -> None:
    """Makes it."""
    build_task_tab(backend, TAB_CONFIG)


TAB_CONFIG = TaskTabConfig(
    tab_name="write",
    button_label="Write",
    text_label="Instruction",
    placeholder=STORY,
    select_task=lambda words: "write",
    answer_label="Text",
    max_new_tokens=TASKS["write"].max_new_tokens,
    examples=(("door.png", STORY), ("puppy.png", STORY), ("vegetables.png", STORY), ("statue.png", STORY)),
    initial_text=STORY,
    has_strategies=True,
)
