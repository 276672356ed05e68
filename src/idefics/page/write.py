"""The tab "Write": writes a text about a picture, with a choice of decoding strategies."""

from __future__ import annotations

from idefics.page.backend import PageBackend
from idefics.page.task_tab import TaskTab, TaskTabConfig
from idefics.tasks import TASKS
from idefics.tasks.write import STORY


def build_tab(backend: PageBackend) -> None:
    """Builds the tab "Write" inside the current Gradio block."""
    TaskTab(backend, TAB_CONFIG)


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
